"""Memory traffic and tensor-core operations of counted launches, as `count_traffic` records them.

The figures are those of the program as written: requests of its tile instructions, before any cache. They are
therefore the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTOR_BYTES = 32
"""A sector: the smallest transfer of a GPU's memory."""


@dataclass(frozen=True, kw_only=True)
class TensorTraffic:
    """Traffic of a launch through one tensor argument. An atomic counts as a load and a store.

    Attributes:
        bytes_requested: bytes of the unmasked lanes of all loads, repeated loads included.
        bytes_written: bytes of the unmasked lanes of all stores, repeated stores included.
        bytes_distinct: bytes that any load or store touched, each counted once.
        bytes_read_distinct: bytes that any load touched, each counted once.
        bytes_written_distinct: bytes that any store touched, each counted once.
        sectors: 32-byte sectors that any load or store touched, each counted once. Sectors start at the start
            of the tensor's storage, which a GPU's allocator aligns.
        sectors_requested: 32-byte sectors of all loads; a sector counts once for each load instruction of a
            program (a whole tile).
        sectors_written: the same of all stores.
    """

    bytes_requested: int = 0
    bytes_written: int = 0
    bytes_distinct: int = 0
    bytes_read_distinct: int = 0
    bytes_written_distinct: int = 0
    sectors: int = 0
    sectors_requested: int = 0
    sectors_written: int = 0


@dataclass(frozen=True, kw_only=True)
class LaunchTraffic:
    """Traffic and operations of one launch.

    Attributes:
        kernel: name of the kernel.
        grid: programs (CTAs) along each axis.
        tensors: by parameter name, in order; an item of a tuple is `name[0]`, a descriptor its base tensor.
        operations: of `tl.dot` and `tl.dot_scaled`, 2 M N K each, padded tiles included, by operand types as
            "bf16 x bf16". Other arithmetic is not counted.
        bytes_requested_per_program: least and most that a program loads.
        bytes_written_per_program: least and most that a program stores.
        operations_per_program: least and most operations of a program.
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
        """Bytes loaded from all tensors."""
        return sum(tensor.bytes_requested for tensor in self.tensors.values())

    @property
    def bytes_written(self) -> int:
        """Bytes stored to all tensors."""
        return sum(tensor.bytes_written for tensor in self.tensors.values())


@dataclass
class Traffic:
    """The launches that completed inside a `count_traffic` block.

    Attributes:
        launches: in order.
        fault: the last `SanitizerError` of the block, even if the block's own code caught it; else None.
    """

    launches: list[LaunchTraffic] = field(default_factory=list)
    fault: RuntimeError | None = None

    @property
    def bytes_requested(self) -> int:
        """Bytes loaded by all launches."""
        return sum(launch.bytes_requested for launch in self.launches)

    @property
    def bytes_written(self) -> int:
        """Bytes stored by all launches."""
        return sum(launch.bytes_written for launch in self.launches)

    @property
    def operations(self) -> Mapping[str, int]:
        """Tensor-core operations of all launches, by operand types."""
        return sum((Counter(launch.operations) for launch in self.launches), Counter[str]())
