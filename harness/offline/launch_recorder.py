"""Recorder of one interpreted launch: attributes each unmasked lane to a tensor, counts it and checks it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .sanitizer import HappensBefore, SanitizerError, StorageShadow, TensorShadow
from .traffic import LaunchTraffic, TensorTraffic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from .sanitizer import Offsets, Program
    from .uninitialized import UninitializedTracker

    Addresses = NDArray[np.uint64]

_TAG_SHIFT = 48
_UNTAGGED = np.uint64((1 << _TAG_SHIFT) - 1)


class LaunchRecorder:
    """Records one launch.

    The address of each tensor argument carries the argument's number, from 1 on, as a tag in its top 16 bits,
    which user-space addresses leave unused. Pointer arithmetic keeps the tag, so an address always tells from
    which argument it was computed, however far out of bounds it is. The tag is removed before the access.

    Args:
        kernel: name of the kernel.
        tensors: name and tensor of every tensor argument, then of each tensor that the kernel reaches through
            addresses in memory.
        tracker: knows which memory is uninitialised.
    """

    def __init__(
        self, kernel: str, tensors: Sequence[tuple[str, torch.Tensor]], tracker: UninitializedTracker
    ) -> None:
        self.grid = (0, 0, 0)
        self.operations: Counter[str] = Counter()
        self._kernel, self._inputs, self._tracker = kernel, tensors, tracker
        self._order = HappensBefore()
        self._tensors: list[TensorShadow] = []
        self._addresses: list[int] = []
        self._storages: dict[int, StorageShadow] = {}
        self._program_start = (0, 0, 0)
        self._programs: list[tuple[int, int, int]] = []
        """Bytes requested, bytes written and operations of each program."""

    @property
    def bound(self) -> bool:
        """Whether the arguments' addresses are known."""
        return bool(self._tensors)

    def bind(self, handles: Iterable[Any]) -> None:
        """Store the addresses of the tensors in order, and tag those of arguments.

        Args:
            handles: the interpreter's pointer to each tensor; None for a tensor that is not an argument.
        """
        for tag, ((name, tensor), handle) in enumerate(zip(self._inputs, handles, strict=True), start=1):
            address = tensor.data_ptr() if handle is None else int(handle.data.item())
            self._tensors.append(self._shadow_of(name, tensor))
            self._addresses.append(address)
            if handle is not None:
                handle.data = np.array([tag << _TAG_SHIFT | address], dtype=np.uint64)

    def start_program(self, program: Program) -> None:
        """Start a program (CTA)."""
        self._order.start_program(program)
        self._program_start = self._totals()

    def end_program(self) -> None:
        """End the program."""
        for tensor in self._tensors:
            tensor.end_program()
        read, written, operations = (
            now - start for now, start in zip(self._totals(), self._program_start, strict=True)
        )
        self._programs.append((read, written, operations))

    def access(
        self,
        addresses: Addresses,
        mask: NDArray[np.bool_] | None,
        element_bytes: int,
        *,
        loads: bool = False,
        stores: bool = False,
        atomic: bool = False,
        acquire: bool = False,
        release: bool = False,
        uses_value: bool = True,
    ) -> Addresses:
        """Count and check one instruction of a program, before it is executed.

        Args:
            addresses: tagged address of each lane.
            mask: lanes that access memory; None for all.
            element_bytes: bytes that each lane accesses.
            loads: whether the instruction loads; a read-modify-write loads and stores.
            stores: whether it stores.
            atomic: whether its store is atomic.
            acquire: whether it acquires at gpu or sys scope.
            release: whether it releases at gpu or sys scope.
            uses_value: whether the kernel depends on what is loaded; an exchange does not.

        Returns:
            The addresses without tags.

        Raises:
            SanitizerError: an unmasked lane makes a faulty access.
        """
        verb = "updates" if loads and stores else "writes" if stores else "reads"
        for tensor, offsets in self._by_tensor(addresses, mask, element_bytes, verb):
            granules = tensor.storage.granules(offsets, element_bytes)
            size_bytes, sectors = offsets.size * element_bytes, tensor.count_sectors(granules)
            if loads:
                tensor.bytes_requested += size_bytes
                tensor.sectors_requested += sectors
            if stores:
                tensor.bytes_written += size_bytes
                tensor.sectors_written += sectors
            if acquire:
                tensor.acquire(granules)
            if loads:
                tensor.load(granules, atomic=stores, uses_value=uses_value)
            if stores:
                tensor.store(granules, atomic=atomic)
            if release:
                tensor.release(granules)
        return addresses & _UNTAGGED

    def traffic(self) -> LaunchTraffic:
        """The completed launch's traffic."""
        requested, written, operations = zip(*self._programs, strict=True) if self._programs else ((0,),) * 3
        return LaunchTraffic(
            kernel=self._kernel,
            grid=self.grid,
            # Without a program no argument is bound.
            tensors={name: TensorTraffic() for name, _ in self._inputs}
            | {tensor.name: tensor.traffic() for tensor in self._tensors},
            operations=dict(self.operations),
            bytes_requested_per_program=(min(requested), max(requested)),
            bytes_written_per_program=(min(written), max(written)),
            operations_per_program=(min(operations), max(operations)),
        )

    def _shadow_of(self, name: str, tensor: torch.Tensor) -> TensorShadow:
        element_bytes = tensor.element_size()
        reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        span = (reach + 1) * element_bytes if tensor.numel() else 0
        storage = tensor.untyped_storage()
        shadow = self._storages.get(storage.data_ptr())
        if shadow is None:
            shadow = StorageShadow(storage.nbytes(), element_bytes, self._tracker.shadow_of(tensor))
            if span:
                self._storages[storage.data_ptr()] = shadow
        shadow.refine(element_bytes)
        return TensorShadow(
            name=name,
            storage=shadow,
            offset=int(tensor.storage_offset()) * element_bytes,
            span=span,
            element_bytes=element_bytes,
            addressed=_addressed(tensor, reach + 1),
            order=self._order,
        )

    def _totals(self) -> tuple[int, int, int]:
        return (
            sum(tensor.bytes_requested for tensor in self._tensors),
            sum(tensor.bytes_written for tensor in self._tensors),
            sum(self.operations.values()),
        )

    def _by_tensor(
        self, addresses: Addresses, mask: NDArray[np.bool_] | None, element_bytes: int, verb: str
    ) -> Iterator[tuple[TensorShadow, Offsets]]:
        """The unmasked lanes by tensor, as byte offsets from the start of its storage."""
        if addresses.size == 1:  # a scalar: the general path would take longer than the interpreter itself
            if mask is not None and not mask.any():
                return
            address = addresses.item()
            tensor, start = self._owner(address, element_bytes, verb)
            if tensor.addressed is None and 0 <= address - start <= tensor.span - element_bytes:
                yield tensor, np.array([address - start + tensor.offset])
                return
        lanes = addresses.reshape(-1)
        if mask is not None:
            unmasked = mask if mask.shape == addresses.shape else np.broadcast_to(mask, addresses.shape)
            if not unmasked.all():
                lanes = addresses[unmasked]
        while lanes.size:
            tensor, start = self._owner(int(lanes[0]), element_bytes, verb)
            offsets = lanes - np.uint64(start)
            rest = lanes[:0]
            strays = int(offsets[0] if offsets.size == 1 else offsets.max()) > tensor.span - element_bytes
            if strays:
                tag = lanes[0] >> np.uint64(_TAG_SHIFT)
                same = lanes >> np.uint64(_TAG_SHIFT) == tag
                if tag == 0:
                    same &= offsets < tensor.span
                offsets, rest = offsets[same], lanes[~same]
            if strays or tensor.addressed is not None:
                tensor.check_bounds(offsets, element_bytes, verb)
            signed = offsets.view(np.int64)
            yield tensor, signed + tensor.offset if tensor.offset else signed
            lanes = rest

    def _owner(self, address: int, element_bytes: int, verb: str) -> tuple[TensorShadow, int]:
        """The tensor of an address, and the (tagged) address of its first element."""
        tag = address >> _TAG_SHIFT
        if 0 < tag <= len(self._tensors):
            return self._tensors[tag - 1], tag << _TAG_SHIFT | self._addresses[tag - 1]
        if tag == 0:  # an address that was loaded from memory
            for tensor, start in zip(self._tensors, self._addresses, strict=True):
                if start <= address < start + tensor.span:
                    return tensor, start
        names = ", ".join(name for name, _ in self._inputs)
        hint = "" if tag else "; a tensor reached through an address in memory must be given in known=[...]"
        raise SanitizerError(
            f"{self._kernel}: program {self._order.program} {verb} {element_bytes} bytes at address "
            f"{address:#x}, outside every known tensor ({names}){hint}",
            kind="bounds",
            tensor="",
            program=self._order.program,
            byte_offset=address,
        )


def _addressed(tensor: torch.Tensor, reach: int) -> NDArray[np.bool_] | None:
    """Which of the `reach` elements from the first to the last a view's strides address; None if all."""
    dense = 1
    for stride, count in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if stride == dense:
            dense *= count
    if dense == reach or not tensor.numel():
        return None
    addressed = np.zeros(reach, np.bool_)
    strides = [stride * addressed.itemsize for stride in tensor.stride()]
    np.lib.stride_tricks.as_strided(addressed, tensor.shape, strides)[...] = True
    return None if addressed.all() else addressed
