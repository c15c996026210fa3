"""cp.async: copies from global to shared memory. They land at the wait that covers them, no earlier."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from .global_memory import GlobalAccess
from .lanes import Array, CtaLanes, Mask
from .shared_memory import SharedMemory
from .violations import Kind

_IN_FLIGHT_BYTES = 0xFF


@dataclass(frozen=True)
class _Copy:
    """Rows of `size` bytes of shared memory, and what they will hold."""

    rows: Array
    size: int
    data: Array


class AsyncCopies:
    """The copies of each warp: those not committed, and the committed groups in order."""

    def __init__(self, lanes: CtaLanes, memory: GlobalAccess, shared: SharedMemory) -> None:
        self._lanes, self._global, self._shared = lanes, memory, shared
        self._open: list[list[_Copy]] = [[] for _ in range(lanes.warps)]
        self._groups: list[deque[list[_Copy]]] = [deque() for _ in range(lanes.warps)]

    def copy(self, target: Array, source: Array, size: int, used: Array, mask: Mask, line: int) -> None:
        """Starts a copy of `size` bytes a lane; bytes past `used` become zeros."""
        lanes, offset = self._shared.locate(target, size, self._lanes.active(mask), line, "cp.async")
        if not len(lanes):
            return
        warps, amount = self._lanes.warp[lanes], used[lanes].astype(np.int64)
        if (amount > size).any():
            self._lanes.report(Kind.COPY_SIZE, line, f"{int(amount.max())} bytes of a copy of {size}")
        if (source[lanes][amount == 0] % size != 0).any():
            self._lanes.report(Kind.NOTHING_COPIED, line)
        data = self._fetch(source, size, lanes, np.minimum(amount, size), line)[lanes]
        self._shared.check_write(offset, size, warps, line)
        rows = offset // size
        self._shared.data.reshape(-1, size)[rows] = _IN_FLIGHT_BYTES
        self._shared.in_flight.reshape(-1, size)[rows] = True
        for warp in np.unique(warps):
            own = warps == warp
            self._open[warp].append(_Copy(rows[own], size, data[own]))

    def _fetch(self, source: Array, size: int, lanes: Array, amount: Array, line: int) -> Array:
        """Bytes [lanes of the CTA, size] from global memory."""
        data = np.zeros((self._lanes.threads, size), np.uint8)
        for buffer, found, at in self._global.find(source, size, lanes[amount == size], line, "cp.async"):
            index = at[:, None] + np.arange(size)
            self._global.check_read(buffer, index, line, found)
            data[found] = buffer.bytes[index]
        partial = (amount > 0) & (amount < size)
        for j in range(int(amount[partial].max(initial=0))):
            short = lanes[partial & (amount > j)]
            for buffer, found, at in self._global.find(source + j, 1, short, line, "cp.async"):
                self._global.check_read(buffer, at[:, None], line, found)
                data[found, j] = buffer.bytes[at]
        return data

    def commit(self, mask: Mask, line: int) -> None:
        """cp.async.commit_group: closes each warp's group."""
        for warp in self._lanes.active_warps(mask, line):
            self._groups[warp].append(self._open[warp])
            self._open[warp] = []

    def wait(self, left: int, mask: Mask, line: int) -> None:
        """cp.async.wait_group: lands all but the last `left` groups."""
        for warp in self._lanes.active_warps(mask, line):
            while len(self._groups[warp]) > left:
                self._land(warp, self._groups[warp].popleft())

    def wait_all(self, mask: Mask, line: int) -> None:
        """cp.async.wait_all: lands what is committed and what is not."""
        self.wait(0, mask, line)
        for warp in self._lanes.active_warps(mask, line):
            self._land(warp, self._open[warp])
            self._open[warp] = []

    def _land(self, warp: int, group: list[_Copy]) -> None:
        shared = self._shared
        for copy in group:
            shared.data.reshape(-1, copy.size)[copy.rows] = copy.data
            shared.in_flight.reshape(-1, copy.size)[copy.rows] = False
            shared.unfenced.reshape(-1, copy.size)[copy.rows] = True
            shared.writer.reshape(-1, copy.size)[copy.rows] = warp
            shared.written_at.reshape(-1, copy.size)[copy.rows] = shared.clocks.of[warp, warp]
