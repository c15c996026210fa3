"""One launch while it runs: which tensor each live lane belongs to, what is counted and checked."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .sanitizer import Argument, Memory, Ordering, TrafficError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from .sanitizer import Offsets, Program
    from .unwritten import UnwrittenWatch

    Addresses = NDArray[np.uint64]

_NUMBER_SHIFT = 48
_ADDRESS = np.uint64((1 << _NUMBER_SHIFT) - 1)


class Launch:
    """One launch while it runs.

    Each tensor argument's address carries the argument's number in the 16 bits that user-space addresses
    leave unused. Whatever a kernel computes from a pointer keeps them, so that an address always tells the
    argument that it came from, however far it strays. The number is taken off before memory is touched.

    Args:
        kernel: name of the kernel.
        tensors: name and tensor of every tensor argument, and of what the kernel reaches through stored
            addresses, in order.
        watch: knows which memory is unwritten.
    """

    def __init__(self, kernel: str, tensors: Sequence[tuple[str, Any]], watch: UnwrittenWatch) -> None:
        self.kernel, self.grid = kernel, (0, 0, 0)
        self.arguments: list[Argument] = []
        self.operations: Counter[str] = Counter()
        self.programs: list[tuple[int, int, int]] = []
        self._tensors, self._watch = tensors, watch
        self._ordering = Ordering()
        self._starts: list[int] = []
        self._memories: dict[int, Memory] = {}
        self._base = (0, 0, 0)

    @property
    def names(self) -> list[str]:
        """Names of the tensor arguments."""
        return [name for name, _ in self._tensors]

    def bind(self, handles: Iterable[Any]) -> None:
        """Take the addresses of the arguments in order, and put their numbers on them.

        Args:
            handles: the interpreter's pointer for each tensor; none for one that is no argument.
        """
        for number, ((name, tensor), handle) in enumerate(zip(self._tensors, handles, strict=True), start=1):
            address = tensor.data_ptr() if handle is None else int(handle.data.item())
            self._add(name, tensor, address)
            if handle is not None:
                handle.data = np.array([number << _NUMBER_SHIFT | address], dtype=np.uint64)

    def _add(self, name: str, tensor: torch.Tensor, address: int) -> None:
        size = tensor.element_size()
        reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        span = (reach + 1) * size if tensor.numel() else 0
        offset = int(tensor.storage_offset()) * size
        storage = tensor.untyped_storage()
        memory = self._memories.get(storage.data_ptr())
        if memory is None:
            memory = Memory(storage.nbytes(), size, self._watch.marks_of(tensor))
            if span:
                self._memories[storage.data_ptr()] = memory
        memory.refine(size)
        self.arguments.append(
            Argument(
                name=name,
                memory=memory,
                offset=offset,
                span=span,
                element_bytes=size,
                addressed=_addressed(tensor, reach + 1),
                ordering=self._ordering,
            )
        )
        self._starts.append(address)

    def start_program(self, program: Program) -> None:
        """A program begins."""
        self._ordering.start_program(program)
        self._base = self._totals()

    def end_program(self) -> None:
        """A program ended."""
        for argument in self.arguments:
            argument.end_program()
        read, written, operations = (now - then for now, then in zip(self._totals(), self._base, strict=True))
        self.programs.append((read, written, operations))

    def load(self, addresses: Addresses, mask: Any, size: int, *, acquire: bool = False) -> Addresses:
        """Count a load of elements of `size` bytes, and hold it against its tensor.

        Returns:
            The addresses without numbers.

        Raises:
            TrafficError: a live lane is at fault.
        """
        for argument, places in self._parts(addresses, mask, size, "reads"):
            argument.bytes_requested += places.size * size
            granules = argument.memory.granules(places, size)
            argument.sectors_requested += argument.count_sectors(granules)
            if acquire:
                argument.acquire(granules)
            argument.read(granules)
        return addresses & _ADDRESS

    def store(
        self, addresses: Addresses, mask: Any, size: int, *, atomic: bool = False, release: bool = False
    ) -> Addresses:
        """Count a store, the same."""
        for argument, places in self._parts(addresses, mask, size, "writes"):
            argument.bytes_written += places.size * size
            granules = argument.memory.granules(places, size)
            argument.sectors_written += argument.count_sectors(granules)
            argument.write(granules, atomic=atomic)
            if release:
                argument.release(granules)
        return addresses & _ADDRESS

    def update(
        self, addresses: Addresses, mask: Any, size: int, *, acquire: bool, release: bool, uses_value: bool
    ) -> Addresses:
        """Count an atomic, which reads and writes, the same."""
        for argument, places in self._parts(addresses, mask, size, "updates"):
            argument.bytes_requested += places.size * size
            argument.bytes_written += places.size * size
            granules = argument.memory.granules(places, size)
            sectors = argument.count_sectors(granules)
            argument.sectors_requested += sectors
            argument.sectors_written += sectors
            if acquire:
                argument.acquire(granules)
            argument.read(granules, atomic=True, uses_value=uses_value)
            argument.write(granules, atomic=True)
            if release:
                argument.release(granules)
        return addresses & _ADDRESS

    def _totals(self) -> tuple[int, int, int]:
        return (
            sum(argument.bytes_requested for argument in self.arguments),
            sum(argument.bytes_written for argument in self.arguments),
            sum(self.operations.values()),
        )

    def _parts(
        self, addresses: Addresses, mask: Any, size: int, verb: str
    ) -> Iterator[tuple[Argument, Offsets]]:
        """The live lanes by argument: places in bytes from the start of its storage."""
        if addresses.size == 1:  # a scalar: numpy would take longer than the interpreter itself
            if mask is not None and not mask.any():
                return
            address = addresses.item()
            argument, start = self._owner(address, address >> _NUMBER_SHIFT, size, verb)
            if argument.addressed is None and 0 <= address - start <= argument.span - size:
                yield argument, np.array([address - start + argument.offset])
                return
        live = addresses.reshape(-1)
        if mask is not None:
            lanes = mask if mask.shape == addresses.shape else np.broadcast_to(mask, addresses.shape)
            if not lanes.all():
                live = addresses[lanes]
        while live.size:
            number = int(live[0]) >> _NUMBER_SHIFT
            argument, start = self._owner(int(live[0]), number, size, verb)
            offsets = live - np.uint64(start)
            rest = live[:0]
            strays = int(offsets[0] if offsets.size == 1 else offsets.max()) > argument.span - size
            if strays:
                same = live >> np.uint64(_NUMBER_SHIFT) == number
                if number == 0:
                    same &= offsets < argument.span
                offsets, rest = offsets[same], live[~same]
            if strays or argument.addressed is not None:
                argument.check_span(offsets, size, verb)
            places = offsets.view(np.int64)
            yield argument, places + argument.offset if argument.offset else places
            live = rest

    def _owner(self, address: int, number: int, size: int, verb: str) -> tuple[Argument, int]:
        """The argument that an address belongs to, and where that starts; a loaded address has no number."""
        if 0 < number <= len(self.arguments):
            return self.arguments[number - 1], number << _NUMBER_SHIFT | self._starts[number - 1]
        if number == 0:
            for argument, start in zip(self.arguments, self._starts, strict=True):
                if start <= address < start + argument.span:
                    return argument, start
        hint = "" if number else "; one reached through an address in memory must be named in known=[...]"
        raise TrafficError(
            f"{self.kernel}: program {self._ordering.program} {verb} {size} bytes at address {address:#x}, "
            f"outside every known tensor ({', '.join(self.names)}){hint}",
            kind="bounds",
            tensor="",
            program=self._ordering.program,
            byte_offset=address,
        )


def _addressed(tensor: torch.Tensor, reach: int) -> NDArray[np.bool_] | None:
    """Which of `reach` elements from the first to the last the strides of a view address; none for all."""
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
