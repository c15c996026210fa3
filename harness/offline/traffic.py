"""What a Triton kernel moves and multiplies, counted while Triton's interpreter runs it.

    with count_traffic() as traffic:
        add_kernel[(4,)](x, y, out, x.numel(), BLOCK=1024)
    print(traffic.launches[0].tensors["x_ptr"].bytes_requested)

Any kernel can be counted. The same pass holds each access against the tensor that it came through, against
the accesses of other programs and against memory that nothing wrote, and raises `TrafficError` at the first
fault. The figures are those of the program as written: requests of a program's tile instructions, before any
cache, so that they are the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import triton
from triton.language import standard

from .sanitizer import SECTOR_BYTES, TrafficError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch

    from .launch import Launch

__all__ = ["SECTOR_BYTES", "LaunchTraffic", "TensorTraffic", "Traffic", "TrafficError", "count_traffic"]


@dataclass(frozen=True, kw_only=True)
class TensorTraffic:
    """What a launch moved through one tensor argument. An atomic counts as a load and a store.

    Attributes:
        bytes_requested: bytes of the live lanes of loads, each time they are loaded.
        bytes_written: bytes of the live lanes of stores, each time they are stored.
        bytes_distinct: bytes that any load or store touched, each once.
        bytes_read_distinct: bytes that any load touched, each once.
        bytes_written_distinct: bytes that any store touched, each once.
        sectors: 32-byte sectors that any load or store touched, each once. Sectors are counted from the start
            of the tensor's storage, which a GPU's allocator aligns.
        sectors_requested: 32-byte sectors that a program's loads ask for, each once a load instruction of the
            program (a whole tile).
        sectors_written: the same of its stores.
    """

    bytes_requested: int
    bytes_written: int
    bytes_distinct: int
    bytes_read_distinct: int
    bytes_written_distinct: int
    sectors: int
    sectors_requested: int
    sectors_written: int


@dataclass(frozen=True, kw_only=True)
class LaunchTraffic:
    """One launch.

    Attributes:
        kernel: name of the kernel.
        grid: programs along each axis.
        tensors: by parameter name, in order; an item of a tuple is `name[0]`, a descriptor its base tensor.
        operations: of `tl.dot` and `tl.dot_scaled`, 2 M N K each, padded tiles included, by operand types as
            "bf16 x bf16". Arithmetic outside products is not counted.
        bytes_requested_per_program: least and most that a program loads.
        bytes_written_per_program: least and most that a program stores.
        operations_per_program: least and most that a program multiplies and adds.
    """

    kernel: str
    grid: tuple[int, int, int]
    tensors: Mapping[str, TensorTraffic]
    operations: Mapping[str, int]
    bytes_requested_per_program: tuple[int, int]
    bytes_written_per_program: tuple[int, int]
    operations_per_program: tuple[int, int]

    @property
    def programs(self) -> int:
        """Programs of the grid."""
        x, y, z = self.grid
        return x * y * z

    @property
    def bytes_requested(self) -> int:
        """Bytes loaded, of all tensors."""
        return sum(tensor.bytes_requested for tensor in self.tensors.values())

    @property
    def bytes_written(self) -> int:
        """Bytes stored, to all tensors."""
        return sum(tensor.bytes_written for tensor in self.tensors.values())


@dataclass
class Traffic:
    """The launches that ended well inside a `count_traffic`, in order; the last fault, whoever caught it."""

    launches: list[LaunchTraffic] = field(default_factory=list)
    fault: TrafficError | None = None

    @property
    def bytes_requested(self) -> int:
        """Bytes loaded, by all launches."""
        return sum(launch.bytes_requested for launch in self.launches)

    @property
    def bytes_written(self) -> int:
        """Bytes stored, by all launches."""
        return sum(launch.bytes_written for launch in self.launches)

    @property
    def operations(self) -> Mapping[str, int]:
        """Operations of products by operand types, of all launches."""
        return sum((Counter(launch.operations) for launch in self.launches), Counter[str]())


@contextmanager
def count_traffic(
    *, unwritten: Iterable[torch.Tensor] = (), known: Iterable[torch.Tensor] = ()
) -> Iterator[Traffic]:
    """Count every launch inside, and hold its accesses against what a GPU would let pass unseen.

    A launch raises `TrafficError` (out of the `kernel[grid](...)` call) at the first live lane that

    - lies outside every known tensor, or outside the tensor whose pointer its address was computed from: past
      the first or last element of that very tensor, a view of a larger one included, or in a gap between
      elements that the view's strides do not address;
    - touches what another program of the launch touched, one of the two having written without an atomic
      (a race), unless an acquiring atomic of the later program met a releasing one of the earlier, at one
      address, after the earlier access. Writing the same value twice is a race too;
    - reads what nothing has written: tensors of the torch.empty family made inside, and `unwritten`, until
      torch or a kernel writes there.

    A launch that raises leaves no record. Blocks nest; the launches of an inner one are also the outer one's.

    Args:
        unwritten: tensors to take as unwritten, though they were made outside.
        known: further tensors that kernels reach through addresses stored in memory, as in a grouped product.

    Yields:
        What was counted so far; each launch is there once its call returns.

    Raises:
        RuntimeError: Triton compiles its kernels in this process; nothing can be counted then.
    """
    if isinstance(standard.sigmoid, triton.JITFunction) or not triton.knobs.runtime.interpret:
        raise RuntimeError(
            "Triton compiles its kernels in this process, and only interpreted ones can be counted; "
            "set TRITON_INTERPRET=1 before triton is imported"
        )
    from .recording import active_recorder  # noqa: PLC0415  (it names parts that only the interpreter has)

    traffic = Traffic()
    recorder = active_recorder()

    def listener(launch: Launch) -> None:
        traffic.launches.append(_summary(launch))

    before = recorder.fault
    try:
        with recorder.listening(listener, unwritten=unwritten, known=known):
            yield traffic
    finally:
        traffic.fault = recorder.fault if recorder.fault is not before else None


def _summary(launch: Launch) -> LaunchTraffic:
    requested, written, operations = zip(*launch.programs, strict=True) if launch.programs else ((0,),) * 3
    nothing = TensorTraffic(**dict.fromkeys(TensorTraffic.__dataclass_fields__, 0))
    tensors = dict.fromkeys(launch.names, nothing)
    for argument in launch.arguments:
        touched = argument.touched()
        tensors[argument.name] = TensorTraffic(
            bytes_requested=argument.bytes_requested,
            bytes_written=argument.bytes_written,
            bytes_distinct=touched.either,
            bytes_read_distinct=touched.read,
            bytes_written_distinct=touched.written,
            sectors=touched.sectors,
            sectors_requested=argument.sectors_requested,
            sectors_written=argument.sectors_written,
        )
    return LaunchTraffic(
        kernel=launch.kernel,
        grid=launch.grid,
        tensors=tensors,
        operations=dict(launch.operations),
        bytes_requested_per_program=(min(requested), max(requested)),
        bytes_written_per_program=(min(written), max(written)),
        operations_per_program=(min(operations), max(operations)),
    )
