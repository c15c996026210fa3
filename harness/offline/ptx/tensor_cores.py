"""tcgen05.mma of sm_100: products of shared and tensor memory, summed in tensor memory, asynchronously.

One lane issues a product for the whole CTA. Products of one warp run in order. tcgen05.commit makes an
mbarrier complete when the products that its warp issued before are; here that is as late as a wait allows.
PTX ISA, "Tensorcore 5th Generation Family Instructions".
"""

import functools
from collections import deque
from dataclasses import dataclass

import numpy as np

from .lanes import Array, CtaLanes, Mask
from .mbarriers import Arrival, Mbarriers
from .mma import ACCUMULATORS, ELEMENT_BYTES, element_values
from .shared_memory import SharedMemory
from .tensor_memory import TENSOR_LANES, Cells, TensorMemory
from .unsupported import UnsupportedPtxError
from .violations import Kind
from .wgmma import matrix_offsets

_K_BYTES = 32  # of a row of A or B in one product
_MAX_COLUMNS = 256
ELEMENT_TYPES = {
    "kind::f16": {0: "f16", 1: "bf16"},
    "kind::tf32": {2: "tf32"},
    "kind::f8f6f4": {0: "e4m3", 1: "e5m2"},
    "kind::i8": {0: "u8", 1: "s8"},
}
"""Types of A and B by kind of product and by their number in an instruction descriptor."""

_SUM_TYPES = {
    "kind::f16": {0: "f16", 1: "f32"},
    "kind::tf32": {1: "f32"},
    "kind::f8f6f4": {0: "f16", 1: "f32"},
    "kind::i8": {2: "s32"},
}


@dataclass(frozen=True)
class Shape:
    """What an instruction descriptor says.

    Attributes:
        rows, columns: M and N.
        a_type, b_type: element types.
        sum_type: "f16", "f32" or "s32".
        signs: product of the signs of A and B.
        a_rows_last, b_rows_last: whether M (or N) is the dimension that is contiguous in memory.
    """

    rows: int
    columns: int
    a_type: str
    b_type: str
    sum_type: str
    signs: int
    a_rows_last: bool
    b_rows_last: bool

    @property
    def is_listed(self) -> bool:
        """Whether the PTX ISA has products of M by N."""
        step = {64: 8, TENSOR_LANES: 16}.get(self.rows, 0)
        return step > 0 and 0 < self.columns <= _MAX_COLUMNS and self.columns % step == 0


def shape_of(kind: str, descriptor: int) -> Shape:
    """The shape that an instruction descriptor of 32 bits says.

    Raises:
        UnsupportedPtxError: sparse or saturating products, or other types of elements or sums.
    """

    def bits(start: int, count: int) -> int:
        return descriptor >> start & ((1 << count) - 1)

    types, sums = ELEMENT_TYPES[kind], _SUM_TYPES[kind]
    if bits(2, 2):
        raise UnsupportedPtxError("a sparse or saturating tcgen05.mma")
    if bits(4, 2) not in sums:
        raise UnsupportedPtxError(f"sums of type {bits(4, 2)} of a tcgen05.mma of {kind}")
    if bits(7, 3) not in types or bits(10, 3) not in types:
        raise UnsupportedPtxError(f"element types {bits(7, 3)} and {bits(10, 3)} of a tcgen05.mma of {kind}")
    return Shape(
        rows=16 * bits(24, 5),
        columns=8 * bits(17, 6),
        a_type=types[bits(7, 3)],
        b_type=types[bits(10, 3)],
        sum_type=sums[bits(4, 2)],
        signs=(-1) ** (bits(13, 1) + bits(14, 1)),
        a_rows_last=bool(bits(15, 1)),
        b_rows_last=bool(bits(16, 1)),
    )


@dataclass(frozen=True)
class _Product:
    """A product in flight: what it reads and writes."""

    shared_bytes: Array
    read: Cells | None
    written: Cells


class TensorCores:
    """Products of one CTA.

    Args:
        lanes: of the CTA.
        shared: its shared memory.
        memory: its tensor memory.
        mbarriers: its mbarriers.
    """

    def __init__(
        self, lanes: CtaLanes, shared: SharedMemory, memory: TensorMemory, mbarriers: Mbarriers
    ) -> None:
        self._lanes, self._shared, self._memory, self._mbarriers = lanes, shared, memory, mbarriers
        self._in_flight: list[deque[_Product]] = [deque() for _ in range(lanes.warps)]
        self._commits: list[deque[Arrival]] = [deque() for _ in range(lanes.warps)]
        self._issued = [0] * lanes.warps
        self._landed = [0] * lanes.warps

    def product(
        self,
        kind: str,
        target: Array,
        a: Array,
        b: Array,
        descriptor: Array,
        accumulates: Array,
        a_in_tensor_memory: bool,
        mask: Mask,
        line: int,
    ) -> None:
        """tcgen05.mma of each active lane.

        Args:
            kind: "kind::f16", "kind::tf32", "kind::f8f6f4" or "kind::i8".
            target: address in tensor memory of the sums.
            a: matrix descriptor of A, or its address in tensor memory.
            b: matrix descriptor of B.
            descriptor: of the instruction.
            accumulates: whether it adds to the sums that are there.
            a_in_tensor_memory: which of both `a` is.
            mask: active lanes.
            line: of the PTX.
        """
        active = self._lanes.active(mask)
        if len(active) > 1:
            detail = f"{len(active)} lanes issue it; each multiplies"
            self._lanes.report(Kind.TENSOR_MEMORY, line, detail, warp=int(self._lanes.warp[active[0]]))
        for lane in active:
            warp = int(self._lanes.warp[lane])
            shape = shape_of(kind, int(descriptor[lane]))
            if not shape.is_listed:
                detail = f"no product has {shape.rows} x {shape.columns}"
                self._lanes.report(Kind.DESCRIPTOR, line, detail, warp=warp)
                if shape.rows not in {64, TENSOR_LANES}:
                    continue
            written = self._cells(int(target[lane]), shape.rows, shape.columns, line, warp)
            values_b, bytes_b = self._from_shared(
                int(b[lane]), shape.columns, shape.b_type, shape.b_rows_last, warp, line
            )
            if a_in_tensor_memory:
                read = self._cells(int(a[lane]), shape.rows, _K_BYTES // 4, line, warp)
                self._memory.check_read(read, np.array([warp]), line, "tcgen05.mma", issuer=warp)
                raw = np.ascontiguousarray(self._memory.data[read]).view(np.uint8)
                values_a = element_values(raw, shape.a_type)
                bytes_a = np.zeros(0, np.int64)
            else:
                read = None
                values_a, bytes_a = self._from_shared(
                    int(a[lane]), shape.rows, shape.a_type, shape.a_rows_last, warp, line
                )
            self._multiply(shape, values_a, values_b, written, bool(accumulates[lane]), warp, line)
            self._start(_Product(np.unique(np.concatenate((bytes_a, bytes_b))), read, written), warp)

    def commit(self, address: Array, mask: Mask, line: int) -> None:
        """tcgen05.commit: an mbarrier completes when the products so far of its warp have."""
        for lane in self._lanes.active(mask):
            warp = int(self._lanes.warp[lane])
            complete = functools.partial(self._complete, warp, self._issued[warp])
            arrival = self._mbarriers.arrive_when(int(address[lane]), warp, complete, line)
            if arrival is not None:
                self._commits[warp].append(arrival)

    def _complete(self, warp: int, upto: int, arrival: Arrival) -> None:
        """Completes what a commit covers, and commits before it: they come in order."""
        self._land(warp, upto)
        while (earlier := self._commits[warp].popleft()) is not arrival:
            earlier.arrive_before_wait()

    def _cells(self, address: int, rows: int, columns: int, line: int, warp: int) -> Cells:
        """Cells of a matrix [rows, columns]; of 64 rows, 16 lie in each quarter of the lanes."""
        row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
        lane = row if rows == TENSOR_LANES else row // 16 * 32 + row % 16
        first = address >> 16
        if first not in ({0} if rows == TENSOR_LANES else {0, 16}):
            detail = f"lane {first} of a matrix of {rows} rows"
            self._lanes.report(Kind.TENSOR_OUTSIDE, line, detail, warp=warp)
            first = 0
        return self._memory.allocated((first + lane, (address & 0xFFFF) + column), line, warp)

    def _from_shared(
        self, descriptor: int, rows: int, kind: str, rows_last: bool, warp: int, line: int
    ) -> tuple[Array, Array]:
        """Values [rows, K] of an operand in shared memory, and the offsets of its bytes."""
        if descriptor >> 46 & 7 != 1 or descriptor >> 61 & 1 or descriptor >> 52 & 1:
            self._lanes.report(Kind.DESCRIPTOR, line, f"{descriptor:#x} is none of sm_100", warp=warp)
        size = ELEMENT_BYTES[kind]
        offset = matrix_offsets(descriptor, (rows, _K_BYTES // size), size, rows_last)
        outside = (offset < 0) | (offset >= self._shared.size)
        if outside.any():
            place = int(offset[outside][0])
            self._lanes.report(Kind.OUTSIDE_SHARED, line, "tcgen05.mma", shared_address=place, warp=warp)
            offset = np.where(outside, 0, offset)
        flat = offset.reshape(-1)
        self._shared.check_bulk_read(flat, np.array([warp]), line, "tcgen05.mma")
        return element_values(self._shared.data[offset], kind)[..., 0], flat

    def _multiply(
        self, shape: Shape, a: Array, b: Array, cells: Cells, accumulates: bool, warp: int, line: int
    ) -> None:
        self._memory.check_write(cells, warp, line, "tcgen05.mma", issuer=warp)
        result = shape.signs * (a @ b.T)
        kind = ACCUMULATORS[shape.sum_type]
        # Float16 takes the low half of a cell.
        bits = np.uint16 if kind is np.float16 else np.uint32
        if accumulates:
            self._memory.check_read(cells, np.array([warp]), line, "tcgen05.mma", issuer=warp)
            result = result + self._memory.data[cells].astype(bits).view(kind)
        self._memory.data[cells] = result.astype(kind).view(bits)

    def _start(self, product: _Product, warp: int) -> None:
        self._shared.async_readers[product.shared_bytes] += np.uint16(1)
        memory = self._memory
        memory.products_writing[product.written] += np.uint16(1)
        memory.product_warp[product.written] = warp
        if product.read is not None:
            memory.products_reading[product.read] += np.uint16(1)
        self._in_flight[warp].append(product)
        self._issued[warp] += 1

    def _land(self, warp: int, upto: int) -> None:
        """Completes the products that a warp issued before its product number `upto`."""
        shared, memory, engine = self._shared, self._memory, self._lanes.warps
        while self._landed[warp] < upto:
            product = self._in_flight[warp].popleft()
            self._landed[warp] += 1
            now = shared.clocks.next_asynchronous()
            shared.async_readers[product.shared_bytes] -= np.uint16(1)
            shared.read_at[engine][product.shared_bytes] = now
            memory.products_writing[product.written] -= np.uint16(1)
            memory.writer[product.written], memory.written_at[product.written] = engine, now
            if product.read is not None:
                memory.products_reading[product.read] -= np.uint16(1)
                memory.read_at[engine][product.read] = now
