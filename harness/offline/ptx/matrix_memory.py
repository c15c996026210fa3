"""Matrices between shared memory and registers: ldmatrix and stmatrix."""

import numpy as np

from .lanes import SHARED_BASE, WARP_LANES, Array, CtaLanes, Mask
from .shared_memory import SharedMemory
from .violations import Kind


class MatrixMemory:
    """ldmatrix and stmatrix: 8 x 8 matrices of 16-bit elements, a row of 16 bytes at each lane's address."""

    def __init__(self, lanes: CtaLanes, shared: SharedMemory) -> None:
        self._lanes, self._shared = lanes, shared

    def load(self, address: Array, count: int, transposed: bool, mask: Mask, line: int) -> list[Array]:
        """Loads `count` matrices a warp; lane l holds elements 2 l and 2 l + 1 of each."""
        loaded = [np.full(self._lanes.threads, 0xFFFFFFFF, np.uint32) for _ in range(count)]
        warps, rows = self._rows(address, count, mask, line)
        if not len(warps):
            return loaded
        self._shared.check_read(rows, 16, np.repeat(warps, 8 * count), line)
        data = self._shared.rows(self._shared.data, rows, 16).view(np.uint16)
        data = data.reshape(len(warps), count, 8, 8)
        if transposed:
            data = data.swapaxes(2, 3)
        words = np.ascontiguousarray(data).view(np.uint32).reshape(len(warps), count, WARP_LANES)
        for j, element in enumerate(loaded):
            element.reshape(self._lanes.warps, WARP_LANES)[warps] = words[:, j]
        return loaded

    def store(self, address: Array, words: list[Array], transposed: bool, mask: Mask, line: int) -> None:
        """Stores matrices, one for each of `words`."""
        count = len(words)
        warps, rows = self._rows(address, count, mask, line)
        if not len(warps):
            return
        stacked = np.stack([word.reshape(self._lanes.warps, WARP_LANES)[warps] for word in words], 1)
        data = np.ascontiguousarray(stacked).view(np.uint16).reshape(len(warps), count, 8, 8)
        if transposed:
            data = np.ascontiguousarray(data.swapaxes(2, 3))
        self._shared.put(rows, data.reshape(-1, 8).view(np.uint8), np.repeat(warps, 8 * count), line)

    def _rows(self, address: Array, count: int, mask: Mask, line: int) -> tuple[Array, Array]:
        """The warps, and the offsets of their rows; a wrong row is reported and replaced by row 0."""
        warps = self._lanes.active_warps(mask, line)
        rows = address.reshape(self._lanes.warps, WARP_LANES)[warps, : 8 * count].reshape(-1) - SHARED_BASE
        wrong = (rows % 16 != 0) | (rows < 0) | (rows + 16 > self._shared.size)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            self._lanes.report(
                Kind.MISALIGNED_SHARED if rows[first] % 16 else Kind.OUTSIDE_SHARED,
                line,
                "a row of a matrix",
                shared_address=int(rows[first]),
                warp=int(warps[first // (8 * count)]),
            )
            rows = np.where(wrong, 0, rows)
        self._lanes.counters.shared_access(rows, np.arange(len(rows)), 16, line)
        return warps, rows
