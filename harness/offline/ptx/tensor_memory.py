"""Tensor memory of one CTA (sm_100): 128 lanes by 512 columns of 32 bits, and what happened to each cell.

A warp may use the quarter of the lanes that its number modulo 4 names. PTX ISA, "Tensor Memory".
"""

import functools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from .lanes import WARP_LANES, Array, CtaLanes, Mask
from .shared_memory import SharedMemory
from .unsupported import UnsupportedPtxError
from .violations import Kind

TENSOR_LANES, TENSOR_COLUMNS = 128, 512
_LEAST_COLUMNS = 32  # of an allocation
_FIRST_BITS = 0xFFFFFFFF  # what a cell holds before it is written: NaN
_IN_FLIGHT = np.iinfo(np.int32).max  # a time that no barrier covers: of tcgen05.ld and .st before their wait

Cells: TypeAlias = tuple[Array, Array]
"""Lanes and columns of cells, two arrays of one shape (or that broadcast to one)."""


@dataclass(frozen=True)
class Access:
    """How tcgen05.ld and .st of one shape place a warp's registers.

    Attributes:
        shape: "32x32b", "16x32bx2", "16x64b", "16x128b" or "16x256b".
        registers: of each lane.
        half_columns: columns from the first half of a 16x32bx2 to its second.
        packed: whether a register holds the low halves of two neighbouring columns (`pack::16b`).
    """

    shape: str
    registers: int
    half_columns: int = 0
    packed: bool = False

    @functools.cached_property
    def cells(self) -> Cells:
        """Lane and column of each register [32, registers], from those of the address."""
        lane, register = np.arange(WARP_LANES)[:, None], np.arange(self.registers)[None, :]
        if self.shape == "32x32b":
            at = lane + 0 * register, 0 * lane + register
        elif self.shape == "16x32bx2":
            at = lane % 16 + 0 * register, register + lane // 16 * self.half_columns
        elif self.shape == "16x64b":
            at = lane // 4 + lane % 2 * 8 + 0 * register, lane // 2 % 2 + 2 * register
        elif self.shape == "16x128b":
            at = lane // 4 + register % 2 * 8, lane % 4 + register // 2 * 4
        elif self.shape == "16x256b":
            at = lane // 4 + register // 2 % 2 * 8, register % 2 + lane % 4 * 2 + register // 4 * 8
        else:
            raise UnsupportedPtxError(f"a tcgen05 access of shape {self.shape}")
        return at if not self.packed else (at[0], 2 * at[1])


class TensorMemory:
    """The cells and their state.

    Attributes:
        data: [lanes, columns], uint32.
        writer, written_at: who wrote a cell last (-1 nobody, the number of warps a tcgen05.mma), and when.
        read_at: when each warp, or a tcgen05.mma (the last index), read it last.
        products_writing: how many tcgen05.mma in flight write a cell.
        products_reading: how many read it as their operand A.
        product_warp: the warp that issued the last tcgen05.mma to write it.
    """

    def __init__(self, lanes: CtaLanes, shared: SharedMemory) -> None:
        self._lanes, self._shared, self._clocks = lanes, shared, shared.clocks
        shape = (TENSOR_LANES, TENSOR_COLUMNS)
        self.data = np.full(shape, _FIRST_BITS, np.uint32)
        self.writer = np.full(shape, -1, np.int16)
        self.written_at = np.zeros(shape, np.int32)
        self.read_at = np.zeros((lanes.warps + 1, *shape), np.int32)
        self.products_writing = np.zeros(shape, np.uint16)
        self.products_reading = np.zeros(shape, np.uint16)
        self.product_warp = np.zeros(shape, np.int16)
        self._owner = np.full(TENSOR_COLUMNS, -1)  # line of the allocation that a column belongs to
        self._allocations: dict[int, tuple[int, int]] = {}  # columns and PTX line, by first column
        self._relinquished = False
        self._loads: list[list[Cells]] = [[] for _ in range(lanes.warps)]
        self._stores: list[list[Cells]] = [[] for _ in range(lanes.warps)]

    # Allocation -----------------------------------------------------------------------------------------

    def allocate(self, address: Array, columns: int, mask: Mask, line: int) -> None:
        """tcgen05.alloc: takes columns, and stores their address to shared memory."""
        for warp in self._lanes.active_warps(mask, line):
            if self._relinquished:
                self._wrong("tcgen05.alloc after tcgen05.relinquish_alloc_permit", line, warp)
            if columns not in {32, 64, 128, 256, 512}:
                self._wrong(f"{columns} columns; a power of 2 from {_LEAST_COLUMNS} to 512", line, warp)
                continue
            # From the end: a kernel may not rely on column 0, which another CTA of the SM may hold.
            starts = range(TENSOR_COLUMNS - columns, -1, -_LEAST_COLUMNS)
            start = next((at for at in starts if (self._owner[at : at + columns] < 0).all()), None)
            if start is None:
                self._lanes.report(
                    Kind.STUCK, line, f"{columns} columns; this CTA holds the others", warp=warp
                )
                continue
            self._owner[start : start + columns] = line
            self._allocations[start] = columns, line
            first_lane = np.array([warp * WARP_LANES])
            found, offset = self._shared.locate(address, 4, first_lane, line, "tcgen05.alloc")
            if len(found):
                stored = np.array([[start]], np.uint32).view(np.uint8)
                self._shared.put(offset, stored, np.array([warp]), line)

    def deallocate(self, address: Array, columns: int, mask: Mask, line: int) -> None:
        """tcgen05.dealloc: gives columns back; nothing may use them any more."""
        for warp in self._lanes.active_warps(mask, line):
            start = int(address[warp * WARP_LANES])
            if self._allocations.get(start, (None,))[0] != columns:
                self._wrong(f"{columns} columns at {start:#x} were not allocated so", line, warp)
                continue
            cells = np.arange(TENSOR_LANES)[:, None], np.arange(start, start + columns)[None, :]
            self.check_write(cells, warp, line, "tcgen05.dealloc")
            del self._allocations[start]
            self._owner[start : start + columns] = -1
            self.writer[:, start : start + columns] = -1

    def relinquish(self, mask: Mask, line: int) -> None:
        """tcgen05.relinquish_alloc_permit."""
        if len(self._lanes.active_warps(mask, line)):
            self._relinquished = True

    def finish(self) -> None:
        """Reports columns that the CTA still holds when it ends."""
        for start, (columns, line) in self._allocations.items():
            self._lanes.report(
                Kind.TENSOR_MEMORY, line, f"{columns} columns at {start:#x} are never deallocated"
            )

    # tcgen05.ld and .st ---------------------------------------------------------------------------------

    def load(self, address: Array, access: Access, mask: Mask, line: int) -> list[Array]:
        """tcgen05.ld. The registers hold the values at once; their cells stay in use until the wait."""
        loaded = [np.full(self._lanes.threads, _FIRST_BITS, np.uint32) for _ in range(access.registers)]
        for warp in self._lanes.active_warps(mask, line):
            cells = self._locate(address, access, warp, line)
            self.check_read(cells, np.array([warp]), line, "tcgen05.ld")
            values = np.where(self.products_writing[cells] > 0, np.uint32(_FIRST_BITS), self.data[cells])
            if access.packed:
                second = self.data[cells[0], cells[1] + 1]
                values = (values & np.uint32(0xFFFF)) | (second << np.uint32(16))
            self.read_at[warp][cells] = _IN_FLIGHT
            self._loads[warp].append(cells)
            lanes = slice(warp * WARP_LANES, (warp + 1) * WARP_LANES)
            for register, values_of_lanes in zip(loaded, values.T, strict=True):
                register[lanes] = values_of_lanes
        return loaded

    def store(self, address: Array, access: Access, words: list[Array], mask: Mask, line: int) -> None:
        """tcgen05.st. Its cells may not be used before the wait."""
        for warp in self._lanes.active_warps(mask, line):
            cells = self._locate(address, access, warp, line)
            self.check_write(cells, warp, line, "tcgen05.st")
            lanes = slice(warp * WARP_LANES, (warp + 1) * WARP_LANES)
            values = np.stack([word[lanes] for word in words], 1)
            parts = [(cells, values)]
            if access.packed:
                second = cells[0], cells[1] + 1
                parts = [(cells, values & np.uint32(0xFFFF)), (second, values >> np.uint32(16))]
            for where, part in parts:
                self.data[where] = part
                self.writer[where] = warp
                self.written_at[where] = _IN_FLIGHT
                self._stores[warp].append(where)

    def wait_loads(self, mask: Mask, line: int) -> None:
        """tcgen05.wait::ld."""
        for warp in self._lanes.active_warps(mask, line):
            for cells in self._loads[warp]:
                self.read_at[warp][cells] = self._clocks.of[warp, warp]
            self._loads[warp].clear()

    def wait_stores(self, mask: Mask, line: int) -> None:
        """tcgen05.wait::st."""
        for warp in self._lanes.active_warps(mask, line):
            for cells in self._stores[warp]:
                mine = self.writer[cells] == warp
                self.written_at[cells] = np.where(mine, self._clocks.of[warp, warp], self.written_at[cells])
            self._stores[warp].clear()

    def _locate(self, address: Array, access: Access, warp: int, line: int) -> Cells:
        """The cells of a warp's access; those that it may not use are reported and replaced."""
        lanes = address[warp * WARP_LANES : (warp + 1) * WARP_LANES]
        if (lanes != lanes[0]).any():
            self._wrong("an address that differs between the lanes of a warp", line, warp)
        first_lane, first_column = int(lanes[0]) >> 16, int(lanes[0]) & 0xFFFF
        quarter = WARP_LANES * (warp % 4)
        steps = {0} if access.shape == "32x32b" else {0, 16}
        if first_lane - quarter not in steps:
            detail = f"lane {first_lane}; warp {warp} may use lanes {quarter} to {quarter + WARP_LANES - 1}"
            self._lanes.report(Kind.TENSOR_OUTSIDE, line, detail, warp=warp)
            first_lane = quarter
        lane, column = access.cells
        return self.allocated((first_lane + lane, first_column + column), line, warp)

    # Checks ---------------------------------------------------------------------------------------------

    def allocated(self, cells: Cells, line: int, warp: int) -> Cells:
        """The cells; columns that are not allocated are reported, and wrapped into the memory."""
        columns = np.unique(cells[1])
        outside = (columns < 0) | (columns >= TENSOR_COLUMNS)
        outside |= self._owner[columns % TENSOR_COLUMNS] < 0
        if outside.any():
            detail = f"column {int(columns[outside][0])} is not allocated"
            self._lanes.report(Kind.TENSOR_OUTSIDE, line, detail, warp=warp)
        return cells[0], cells[1] % TENSOR_COLUMNS

    def check_read(self, cells: Cells, warps: Array, line: int, what: str, issuer: int = -1) -> None:
        """Reports reads of cells that are in flight, unwritten, or not ordered after their write.

        Args:
            cells: what is read.
            warps: the warp that reads, or that issues the tcgen05.mma.
            line: of the PTX.
            what: the instruction, for the message.
            issuer: the warp whose tcgen05.mma in flight may write the cells: they run in order; -1 for none.
        """
        warp = int(warps[0])
        writing = self.products_writing[cells] > 0
        if issuer >= 0:
            writing &= self.product_warp[cells] != issuer
        self._check(
            Kind.TENSOR_IN_FLIGHT, writing, f"{what} reads what a tcgen05.mma writes", cells, line, warp
        )
        writer, written_at = self.writer[cells], self.written_at[cells]
        settled = self.products_writing[cells] == 0
        # Software pipelining loads what a loop of no iterations never wrote, and does not use it.
        kind = Kind.TENSOR_UNWRITTEN if issuer >= 0 else Kind.TENSOR_LOAD_UNWRITTEN
        self._check(kind, (writer < 0) & settled, what, cells, line, warp)
        stored = (written_at == _IN_FLIGHT) & settled & (writer >= 0)
        self._check(
            Kind.TENSOR_IN_FLIGHT, stored, f"{what} reads what a tcgen05.st writes", cells, line, warp
        )
        late = (writer >= 0) & (writer != warp) & settled & ~stored
        if issuer >= 0:  # products of one warp run in order
            late &= (writer != self._lanes.warps) | (self.product_warp[cells] != issuer)
        late &= written_at > self._clocks.of[warp, writer]
        self._check(Kind.TENSOR_RACE, late, f"{what} reads another's write", cells, line, warp)

    def check_write(self, cells: Cells, warp: int, line: int, what: str, issuer: int = -1) -> None:
        """Reports writes over cells that are in use, or that are not ordered after their last use."""
        writing = self.products_writing[cells] > 0
        if issuer >= 0:
            writing &= self.product_warp[cells] != issuer
        self._check(
            Kind.TENSOR_IN_FLIGHT, writing, f"{what} over what a tcgen05.mma writes", cells, line, warp
        )
        if issuer < 0:
            reading = self.products_reading[cells] > 0
            detail = f"{what} over what a tcgen05.mma reads"
            self._check(Kind.TENSOR_IN_FLIGHT, reading, detail, cells, line, warp)
        writer, written_at = self.writer[cells], self.written_at[cells]
        stored = (written_at == _IN_FLIGHT) & (writer >= 0) & (self.products_writing[cells] == 0)
        self._check(Kind.TENSOR_IN_FLIGHT, stored, f"{what} over what a tcgen05.st writes", cells, line, warp)
        late = (writer >= 0) & (writer != warp) & ~writing & ~stored
        if issuer >= 0:
            late &= (writer != self._lanes.warps) | (self.product_warp[cells] != issuer)
        late &= written_at > self._clocks.of[warp, writer]
        self._check(Kind.TENSOR_RACE, late, f"{what} over another's write", cells, line, warp)
        for reader in range(self._lanes.warps + (issuer < 0)):
            read_at = self.read_at[reader][cells]
            loading = read_at == _IN_FLIGHT
            detail = f"{what} over what a tcgen05.ld of warp {reader} reads"
            self._check(Kind.TENSOR_IN_FLIGHT, loading, detail, cells, line, warp)
            if reader != warp:
                late = ~loading & (read_at > self._clocks.of[warp, reader])
                self._check(Kind.TENSOR_RACE, late, detail, cells, line, warp)

    def _check(self, kind: Kind, wrong: Array, detail: str, cells: Cells, line: int, warp: int) -> None:
        if wrong.any():
            lane, column = (np.broadcast_to(each, wrong.shape)[wrong][0] for each in cells)
            self._lanes.report(kind, line, f"{detail}; lane {lane}, column {column}", warp=warp)

    def _wrong(self, detail: str, line: int, warp: int) -> None:
        self._lanes.report(Kind.TENSOR_MEMORY, line, detail, warp=warp)
