"""Models the DRAM traffic of a matmul's tile order (swizzle) with an LRU cache of the GPU's L2 size.

CTAs start in launch order on SM count x CTAs per SM slots and step along K together. In each step, in slot
order, a CTA reads one panel of x [BLOCK_M, BLOCK_K] and one of the weight [BLOCK_N, BLOCK_K]. A CTA that ends
writes its output tile, and its slot takes the next one. The cache is fully associative, holds whole panels
and tiles, and starts empty. Figures are modelled: they rank tile orders and do not replace a measurement.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...kernels.matmul_tiling import MatmulTiling
from ..core.cases import MatmulShape
from ..core.gpus import Gpu
from .tile_order import PARTIAL_BYTES, WorkTile, matmul_tile_order

# The least that L2 and DRAM move. CUDA C++ programming guide, device memory accesses.
_SECTOR_BYTES = 32

Figures = NDArray[np.int64]


class MatmulOperands(MatmulShape[int], frozen=True, kw_only=True):
    """The contiguous operands of a matmul.

    Attributes:
        x_bytes: bytes of an element of x.
        weight_bytes: bytes of an element of the weight.
        out_bytes: bytes of an element of the result.
    """

    x_bytes: int
    weight_bytes: int
    out_bytes: int


@dataclass(frozen=True, kw_only=True)
class CacheTraffic:
    """Bytes of one call at three levels of the memory hierarchy, and its operations.

    Attributes:
        operations: 2 M N K.
        requested_bytes: elements that the CTAs read and write; split-K partial sums included.
        l2_bytes: the same in whole 32-byte sectors: traffic between the SMs and L2. Asynchronous copies of
            16 bytes and TMA copies bypass L1, so CTAs on one SM share nothing before L2.
        dram_read_bytes: sectors read that miss the modelled L2.
        dram_written_bytes: sectors written back, when evicted or when the call ends.
        distinct_bytes: each input panel and each written tile once: the DRAM traffic with an infinite L2.
    """

    operations: int
    requested_bytes: int
    l2_bytes: int
    dram_read_bytes: int
    dram_written_bytes: int
    distinct_bytes: int

    @property
    def dram_bytes(self) -> int:
        """Read and written."""
        return self.dram_read_bytes + self.dram_written_bytes

    @property
    def requested_ops_per_byte(self) -> float:
        """Operations per requested byte."""
        return self.operations / self.requested_bytes

    @property
    def l2_ops_per_byte(self) -> float:
        """Operations per byte between the SMs and L2."""
        return self.operations / self.l2_bytes

    @property
    def dram_ops_per_byte(self) -> float:
        """Operations per byte between L2 and DRAM."""
        return self.operations / self.dram_bytes


class LruCache:
    """A fully associative write-back cache that evicts the least recently used entry.

    An entry larger than the cache is not kept. Every kept entry was used later than every evicted one, so a
    larger cache never misses where a smaller one hits.

    Attributes:
        capacity_bytes: size of the cache.
        read_bytes: bytes of the reads that missed so far.
        written_bytes: bytes written back so far.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.read_bytes = 0
        self.written_bytes = 0
        self._used_bytes = 0
        self._entries: OrderedDict[int, int] = OrderedDict()
        self._dirty: set[int] = set()

    def read(self, key: int, size_bytes: int) -> None:
        """Reads an entry, from DRAM where it misses."""
        if key in self._entries:
            self._entries.move_to_end(key)
        else:
            self.read_bytes += size_bytes
            self._insert(key, size_bytes)

    def read_together(self, keys: Sequence[int], size_bytes: Sequence[int]) -> None:
        """Reads distinct entries that fit the cache together, in order; `size_bytes` is indexed by key."""
        if not self._entries.keys().isdisjoint(keys):
            for key in keys:
                self.read(key, size_bytes[key])
            return
        sizes = [size_bytes[key] for key in keys]  # all miss, and none is evicted for another of them
        self.read_bytes += sum(sizes)
        self._used_bytes += sum(sizes)
        self._entries.update(zip(keys, sizes, strict=True))
        self._evict()

    def write(self, key: int, size_bytes: int) -> None:
        """Writes a complete entry, without reading it first."""
        self._dirty.add(key)
        if key in self._entries:
            self._entries.move_to_end(key)
        else:
            self._insert(key, size_bytes)

    def touch(self, keys: Iterable[int]) -> None:
        """Marks held entries as just used, in the order given."""
        for key in keys:
            self._entries.move_to_end(key)

    def flush(self) -> None:
        """Writes back all dirty entries."""
        self.written_bytes += sum(self._entries[key] for key in self._dirty)
        self._dirty.clear()

    def _insert(self, key: int, size_bytes: int) -> None:
        self._entries[key] = size_bytes
        self._used_bytes += size_bytes
        self._evict()

    def _evict(self) -> None:
        used_bytes, popitem, dirty = self._used_bytes, self._entries.popitem, self._dirty
        while used_bytes > self.capacity_bytes:
            evicted, evicted_bytes = popitem(last=False)
            used_bytes -= evicted_bytes
            if evicted in dirty:
                dirty.remove(evicted)
                self.written_bytes += evicted_bytes
        self._used_bytes = used_bytes


def matmul_traffic(
    shape: MatmulOperands,
    tiling: MatmulTiling,
    *,
    gpu: Gpu,
    programs_per_sm: int,
) -> CacheTraffic:
    """Models the traffic of one `prefill_matmul` call at the three levels.

    With split-K the reduction kernel follows: it reads the partial sums one row of tiles at a time and writes
    the result. Bias and scales are left out: with `in_features` in the hundreds they vanish.

    Args:
        shape: M, N, K and element sizes.
        tiling: tile sizes, splits and group size.
        gpu: SM count and L2 size.
        programs_per_sm: occupancy, in CTAs per SM.

    Returns:
        Modelled bytes; nothing is allocated or run.

    Raises:
        ValueError: `programs_per_sm` below 1.
    """
    if programs_per_sm < 1:
        raise ValueError(f"programs_per_sm is {programs_per_sm}; it must be at least 1")
    order = matmul_tile_order(shape, tiling)
    traffic = _TileTraffic(shape, tiling)
    cache = LruCache(gpu.l2_bytes)
    for running, steps, finished in _lockstep(order, gpu.sm_count * programs_per_sm):
        traffic.read_panels(cache, running, steps)
        traffic.write_tiles(cache, finished)
    traffic.reduce(cache, sorted(order))
    cache.flush()
    return CacheTraffic(
        operations=shape.operations,
        requested_bytes=traffic.requested_bytes(order, in_sectors=False),
        l2_bytes=traffic.requested_bytes(order, in_sectors=True),
        dram_read_bytes=cache.read_bytes,
        dram_written_bytes=cache.written_bytes,
        distinct_bytes=traffic.distinct_bytes(order),
    )


def _lockstep(
    order: Sequence[WorkTile], slots: int
) -> Iterator[tuple[list[tuple[WorkTile, int]], int, list[WorkTile]]]:
    """Spans of K steps in which the same CTAs run.

    Yields the running work tiles, each with its current K tile; the steps of the span; and the work tiles
    that end with it.
    """
    waiting = iter(order)
    running = [(tile, tile.first_k) for tile in itertools.islice(waiting, slots)]
    while running:
        steps = min(tile.last_k - at for tile, at in running)
        yield running, steps, [tile for tile, at in running if at + steps == tile.last_k]
        still: list[tuple[WorkTile, int]] = []
        for tile, at in running:
            if at + steps < tile.last_k:
                still.append((tile, at + steps))
            elif (following := next(waiting, None)) is not None:
                still.append((following, following.first_k))
        running = still


class _TileTraffic:
    """Cache keys and bytes of the input panels and the output tiles."""

    def __init__(self, shape: MatmulOperands, tiling: MatmulTiling) -> None:
        self._splits = tiling.num_splits
        k, block_k = shape.in_features, tiling.block_k
        x = _block_bytes(shape.rows, k, tiling.block_m, block_k, shape.x_bytes)
        weight = _block_bytes(shape.out_features, k, tiling.block_columns, block_k, shape.weight_bytes)
        outputs = (shape.rows, shape.out_features, tiling.block_m, tiling.block_columns)
        self._out = _block_bytes(*outputs, shape.out_bytes)
        self._partial = _block_bytes(*outputs, PARTIAL_BYTES)
        self._x, self._weight = x, weight
        self._k_tiles: int = x[0].shape[1]
        self._blocks_n: int = weight[0].shape[0]
        # Keys count panels of x, panels of the weight, partial tiles, and tiles of the result.
        self._panel_sizes: list[int] = np.concatenate([x[1].ravel(), weight[1].ravel()]).tolist()
        self._largest_panel = max(self._panel_sizes)
        self._first_weight = x[0].size
        self._first_partial = len(self._panel_sizes)
        self._first_out = self._first_partial + self._out[0].size * self._splits

    def read_panels(self, cache: LruCache, running: list[tuple[WorkTile, int]], steps: int) -> None:
        """Reads the panels of the running CTAs for `steps` steps from their current ones."""
        sizes = self._panel_sizes
        keys = [
            key
            for tile, at in running
            for key in (
                tile.block_m * self._k_tiles + at,
                self._first_weight + tile.block_n * self._k_tiles + at,
            )
        ]
        once = list(dict.fromkeys(keys))
        if len(once) * self._largest_panel > cache.capacity_bytes:
            for step in range(steps):
                for key in keys:
                    cache.read(key + step, sizes[key + step])
            return
        # All panels of a step fit, so reading one again within the step hits and only moves it up.
        by_last_use = list(dict.fromkeys(reversed(keys)))[::-1]
        for step in range(steps):
            cache.read_together([key + step for key in once], sizes)
            cache.touch([key + step for key in by_last_use])

    def write_tiles(self, cache: LruCache, finished: Iterable[WorkTile]) -> None:
        """Writes the output tiles of CTAs that end, or their split-K partial sums."""
        for tile in finished:
            if tile.whole:
                self._write_out(cache, tile.block_m, tile.block_n)
            else:
                size = int(self._partial[1][tile.block_m, tile.block_n])
                cache.write(self._partial_key(tile.block_m, tile.block_n, tile.split), size)

    def reduce(self, cache: LruCache, order: Sequence[WorkTile]) -> None:
        """Reads the partial sums in order, and writes the result of each split tile."""
        for tile in order:
            if tile.whole:
                continue
            size = int(self._partial[1][tile.block_m, tile.block_n])
            cache.read(self._partial_key(tile.block_m, tile.block_n, tile.split), size)
            if tile.split == self._splits - 1:
                self._write_out(cache, tile.block_m, tile.block_n)

    def requested_bytes(self, order: Sequence[WorkTile], *, in_sectors: bool) -> int:
        """Bytes of all reads and writes of a call: of elements, or in whole sectors."""
        kind = int(in_sectors)
        tiles = np.array(order, dtype=np.int64)
        total = int(self._out[kind].sum()) + 2 * self._partial_bytes(order, kind)
        for blocks, panels in ((tiles[:, 0], self._x[kind]), (tiles[:, 1], self._weight[kind])):
            before = np.concatenate([np.zeros((len(panels), 1), np.int64), panels.cumsum(axis=1)], axis=1)
            total += int((before[blocks, tiles[:, 4]] - before[blocks, tiles[:, 3]]).sum())
        return total

    def distinct_bytes(self, order: Sequence[WorkTile]) -> int:
        """Sectors of each panel and each written tile, once."""
        return sum(self._panel_sizes) + int(self._out[1].sum()) + self._partial_bytes(order, 1)

    def _partial_bytes(self, order: Sequence[WorkTile], kind: int) -> int:
        return sum(int(self._partial[kind][tile.block_m, tile.block_n]) for tile in order if not tile.whole)

    def _write_out(self, cache: LruCache, block_m: int, block_n: int) -> None:
        key = self._first_out + block_m * self._blocks_n + block_n
        cache.write(key, int(self._out[1][block_m, block_n]))

    def _partial_key(self, block_m: int, block_n: int, split: int) -> int:
        return self._first_partial + (block_m * self._blocks_n + block_n) * self._splits + split


@lru_cache(maxsize=16)  # tile orders of the same tiles share them
def _block_bytes(
    rows: int, columns: int, block_rows: int, block_columns: int, element_bytes: int
) -> tuple[Figures, Figures]:
    """Bytes of each block of a contiguous matrix: of its elements, and in whole sectors.

    A row of a block covers the sectors from its first byte's to its last byte's. Where matrix rows are not
    whole sectors, the alignment differs from row to row.
    """
    starts = np.arange(0, columns, block_columns) * element_bytes
    ends = np.minimum(starts + block_columns * element_bytes, columns * element_bytes)
    live, sectors = [], []
    for first in range(0, rows, block_rows):
        row_starts = np.arange(first, min(first + block_rows, rows))[:, None] * (columns * element_bytes)
        covered = (row_starts + ends - 1) // _SECTOR_BYTES - (row_starts + starts) // _SECTOR_BYTES + 1
        sectors.append(covered.sum(axis=0) * _SECTOR_BYTES)
        live.append(len(row_starts) * (ends - starts))
    return np.array(live, dtype=np.int64), np.array(sectors, dtype=np.int64)
