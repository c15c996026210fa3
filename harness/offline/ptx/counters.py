"""Counts of a launch while it is executed: blocks, sectors of global memory, shared-memory bank conflicts."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..traffic import SECTOR_BYTES

_WARP_LANES = 32
_BANK_BYTES = 4
_BANKS = 32
_MAX_PATTERNS = 4096  # address patterns whose figures are kept: those of loops repeat


@dataclass
class LineCounts:
    """What one PTX line asked of memory.

    Attributes:
        requested, written: 32-byte sectors by tensor.
        wavefronts: passes of shared memory without conflicts.
        conflicts: passes that bank conflicts add.
    """

    requested: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    wavefronts: int = 0
    conflicts: int = 0


class LaunchCounters:
    """Counts of one launch, over all CTAs.

    Args:
        blocks: basic blocks of the kernel.

    Attributes:
        executions: by block, how often a warp executed it.
        executing_warps: by block, warps that ever did, a bit each.
        lines: by PTX line.
    """

    def __init__(self, blocks: int) -> None:
        self.executions = [0] * blocks
        self.executing_warps = [0] * blocks
        self.lines: dict[int, LineCounts] = defaultdict(LineCounts)
        self._patterns: dict[tuple[bytes, bytes, int], tuple[int, int]] = {}

    def executed(self, block: int, warps: int) -> None:
        """Counts a block that some warps, a bit each, executed."""
        self.executions[block] += warps.bit_count()
        self.executing_warps[block] |= warps

    def global_access(
        self, tensor: str, address: NDArray[Any], lanes: NDArray[Any], line: int, *, stores: bool
    ) -> None:
        """Counts the sectors of one instruction.

        Args:
            tensor: name of the kernel's argument.
            address: of each access, which lies in one sector.
            lanes: that access; each warp asks on its own.
            line: of the PTX.
            stores: whether it stores.
        """
        sector = (address - (int(address[0]) & -SECTOR_BYTES)) // SECTOR_BYTES
        sectors, _ = self._remembered(sector, lanes // _WARP_LANES, 0)
        counts = self.lines[line]
        (counts.written if stores else counts.requested)[tensor] += sectors

    def shared_access(self, offset: NDArray[Any], lanes: NDArray[Any], size: int, line: int) -> None:
        """Counts the passes of one access to shared memory of `size` bytes a lane."""
        if not len(offset):
            return
        shifted = offset - (int(offset[0]) & -_BANKS * _BANK_BYTES)
        wavefronts, conflicts = self._remembered(shifted, lanes, size)
        counts = self.lines[line]
        counts.wavefronts += wavefronts
        counts.conflicts += conflicts

    def _remembered(self, place: NDArray[Any], lanes: NDArray[Any], size: int) -> tuple[int, int]:
        """Figures of a pattern of addresses; `size` 0 for sectors."""
        key = (place.tobytes(), lanes.tobytes(), size)
        known = self._patterns.get(key)
        if known is None:
            if size:
                known = bank_passes(place, lanes, size)
            else:
                known = (np.unique(np.stack((place, lanes)), axis=1).shape[1], 0)
            if len(self._patterns) < _MAX_PATTERNS:
                self._patterns[key] = known
        return known


def bank_passes(offset: NDArray[Any], lanes: NDArray[Any], size: int) -> tuple[int, int]:
    """Passes of an access to shared memory: those it needs at least, and those that conflicts add.

    A pass serves 32 banks of 4 bytes: a warp's lanes of up to 4 bytes each, half a warp at 8 bytes, a quarter
    at 16. Lanes that use one word share it; different words of a bank take a pass each. CUDA C++
    Programming Guide, "Shared Memory".

    Args:
        offset: of each lane's access, a multiple of `size`.
        lanes: their numbers.
        size: 1, 2, 4, 8 or 16 bytes.
    """
    unit = max(size, _BANK_BYTES)
    groups = _BANKS * _BANK_BYTES // unit
    phase = lanes // groups  # as many lanes as units of this size that the banks hold
    phase = phase - phase.min()
    word = offset // unit
    words = np.unique(np.stack((phase, word)), axis=1)
    used = np.bincount(words[0] * groups + words[1] % groups, minlength=(int(phase.max()) + 1) * groups)
    most = used.reshape(-1, groups).max(1)
    needed = int((most > 0).sum())
    return needed, int(most.sum()) - needed
