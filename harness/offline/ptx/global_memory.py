"""Global memory: the tensors of a launch at their real addresses, and what each CTA does to them."""

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

from .lanes import SIGNED, UNSIGNED, Array, CtaLanes, Mask
from .violations import Kind

_NEAR_BYTES = 4096  # how far from a tensor an address outside is said to be near it
_MAP_NORESERVE = 0x4000
_LARGE = 2**24
_FLOATS: dict[int, type[np.generic]] = {2: np.float16, 4: np.float32, 8: np.float64}


def _untouched_zeros(length: int) -> Array:
    """Zeros (int32) whose pages take no memory until they are written."""
    if length < _LARGE:
        return np.zeros(length, np.int32)
    area = mmap.mmap(-1, 4 * length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return np.frombuffer(area, np.int32)


class Buffer:
    """The memory that one tensor spans.

    Args:
        name: of the kernel's argument.
        start: address of its first byte.
        size: in bytes.

    Attributes:
        base: `start` rounded down to 16 bytes; arrays below are indexed by bytes from there.
        writer, reader: number of the CTA that touched each byte, and 1; 0 for none, -1 for several readers.
        dead: which bytes no kernel may read; None for none.
    """

    def __init__(self, name: str, start: int, size: int) -> None:
        self.name, self.start, self.end = name, start, start + size
        self.base = start & ~15
        span = (self.end - self.base + 15) & ~15
        memory = (ctypes.c_uint8 * max(span, 16)).from_address(self.base)
        self.bytes: Array = np.ctypeslib.as_array(memory)
        self.views: dict[int, Array] = {w: self.bytes.view(UNSIGNED[8 * w]) for w in (1, 2, 4, 8)}
        self.dead: Array | None = None
        self.writer, self.reader = _untouched_zeros(len(self.bytes)), _untouched_zeros(len(self.bytes))
        self.was_written = False


class GlobalMemory:
    """The buffers of one launch."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.last_hit: dict[int, Buffer] = {}  # by PTX line: an instruction mostly stays in one tensor

    def add(self, name: str, start: int, size: int) -> None:
        """Adds a tensor's memory; of two tensors where one spans the other, the larger is kept."""
        if any(start >= known.start and start + size <= known.end for known in self.buffers):
            return
        self.buffers = [each for each in self.buffers if each.start < start or each.end > start + size]
        self.buffers.append(Buffer(name, start, size))
        self.buffers.sort(key=lambda each: each.start)

    def forbid(self, start: int, dead: Array) -> None:
        """Marks bytes from an address on that no kernel may read."""
        for buffer in self.buffers:
            low, high = max(buffer.start, start), min(buffer.end, start + len(dead))
            if low < high:
                if buffer.dead is None:
                    buffer.dead = np.zeros(len(buffer.bytes), np.bool_)
                buffer.dead[low - buffer.base : high - buffer.base] |= dead[low - start : high - start]

    def search_order(self, line: int) -> list[Buffer]:
        """The buffers, first the one that this instruction found last."""
        likely = self.last_hit.get(line)
        if likely is None:
            return self.buffers
        return [likely, *(each for each in self.buffers if each is not likely)]


class GlobalAccess:
    """What one CTA does to global memory."""

    def __init__(self, lanes: CtaLanes, memory: GlobalMemory) -> None:
        self._lanes, self._memory = lanes, memory
        self._me = lanes.number + 1

    def load(self, address: Array, width: int, count: int, mask: Mask, line: int) -> list[Array]:
        """Loads `count` elements of `width` bytes a lane; lanes that may not gives all ones."""
        kind = UNSIGNED[8 * width]
        loaded = [np.full(self._lanes.threads, 2 ** (8 * width) - 1, kind) for _ in range(count)]
        for buffer, lanes, offset in self.find(
            address, width * count, self._lanes.active(mask), line, "load"
        ):
            self.check_read(buffer, offset[:, None] + np.arange(width * count), line, lanes)
            view, at = buffer.views[width], offset // width
            for j, element in enumerate(loaded):
                element[lanes] = view[at + j]
        return loaded

    def store(self, address: Array, width: int, values: list[Array], mask: Mask, line: int) -> None:
        """Stores elements of `width` bytes."""
        size = width * len(values)
        for buffer, lanes, offset in self.find(address, size, self._lanes.active(mask), line, "store"):
            self.check_write(buffer, offset[:, None] + np.arange(size), line, lanes)
            view, at = buffer.views[width], offset // width
            for j, value in enumerate(values):
                view[at + j] = value[lanes]
                if (view[at + j] != value[lanes]).any():
                    self._lanes.report(Kind.ONE_ADDRESS, line, tensor=buffer.name)

    def atomic(
        self, address: Array, kind: str, operation: str, values: list[Array], mask: Mask, line: int
    ) -> Array:
        """An atomic of each lane, one after another; returns the old values."""
        width = int(kind.lstrip("bfsu")) // 8
        numbers = _FLOATS[width] if kind[0] == "f" else (SIGNED if kind[0] == "s" else UNSIGNED)[8 * width]
        operands = [np.ascontiguousarray(value).view(numbers) for value in values]
        old = np.zeros(self._lanes.threads, numbers)
        for buffer, lanes, offset in self.find(address, width, self._lanes.active(mask), line, "atomic"):
            for stores in (False, True):
                self._count(buffer, offset[:, None], lanes, line, stores=stores)
            view = buffer.views[width].view(numbers)
            for lane, at in zip(lanes, offset // width, strict=True):
                old[lane] = view[at]
                view[at] = atomic_result(operation, view[at], [each[lane] for each in operands])
        return old.view(UNSIGNED[8 * width])

    def find(
        self, address: Array, size: int, lanes: Array, line: int, what: str
    ) -> Iterator[tuple[Buffer, Array, Array]]:
        """Buffers that an access touches, each with its lanes and their offsets in it.

        Lanes whose address is misaligned for `size` bytes or outside every buffer are reported and left out.
        """
        at = address[lanes]
        misaligned = at % size != 0
        if misaligned.any():
            self._misplaced(Kind.MISALIGNED_GLOBAL, at, lanes, misaligned, size, line, what)
            lanes, at = lanes[~misaligned], at[~misaligned]
        left = np.ones(len(lanes), np.bool_)
        for buffer in self._memory.search_order(line):
            if not left.any():
                return
            inside = left & (at >= buffer.start) & (at + size <= buffer.end)
            if inside.any():
                self._memory.last_hit[line] = buffer
                left &= ~inside
                yield buffer, lanes[inside], at[inside] - buffer.base
        if left.any():
            self._misplaced(Kind.OUTSIDE_TENSOR, at, lanes, left, size, line, what)

    def _misplaced(
        self, kind: Kind, at: Array, lanes: Array, wrong: Array, size: int, line: int, what: str
    ) -> None:
        first, warp = int(at[wrong][0]), int(self._lanes.warp[lanes[wrong][0]])
        detail = f"{what} of {size} bytes at {first:#x}, {int(wrong.sum())} lanes"
        tensor = ""
        for buffer in self._memory.buffers:
            if buffer.start - _NEAR_BYTES <= first < buffer.end + _NEAR_BYTES:
                tensor = buffer.name
                detail += f", byte {first - buffer.start} of {buffer.end - buffer.start}"
                break
        self._lanes.report(kind, line, detail, tensor=tensor, warp=warp)

    def check_read(self, buffer: Buffer, index: Array, line: int, lanes: Array) -> None:
        """Reports reads of dead bytes and of what another CTA writes; `index` is [lanes, bytes]."""
        self._count(buffer, index, lanes, line, stores=False)
        if buffer.dead is not None and (dead := buffer.dead[index]).any():
            self._report(Kind.DEAD_READ, buffer, index, dead, line, lanes)
        if buffer.was_written:
            writer = buffer.writer[index]
            if (other := (writer > 0) & (writer != self._me)).any():
                self._report(
                    Kind.GLOBAL_RACE, buffer, index, other, line, lanes, "reads what another CTA wrote"
                )
        reader = buffer.reader[index]
        buffer.reader[index] = np.where((reader == 0) | (reader == self._me), self._me, -1)

    def check_write(self, buffer: Buffer, index: Array, line: int, lanes: Array) -> None:
        """Reports writes of what another CTA reads or writes; `index` is [lanes, bytes]."""
        self._count(buffer, index, lanes, line, stores=True)
        writer, reader = buffer.writer[index], buffer.reader[index]
        if (other := (writer > 0) & (writer != self._me)).any():
            self._report(Kind.GLOBAL_RACE, buffer, index, other, line, lanes, "writes what another CTA wrote")
        if (other := (reader != 0) & (reader != self._me)).any():
            self._report(Kind.GLOBAL_RACE, buffer, index, other, line, lanes, "writes what another CTA read")
        buffer.writer[index] = self._me
        buffer.was_written = True

    def _count(self, buffer: Buffer, index: Array, lanes: Array, line: int, *, stores: bool) -> None:
        address = index[:, 0] + buffer.base
        self._lanes.counters.global_access(buffer.name, address, lanes, line, stores=stores)

    def _report(
        self, kind: Kind, buffer: Buffer, index: Array, wrong: Array, line: int, lanes: Array, what: str = ""
    ) -> None:
        lane, _ = np.argwhere(wrong)[0]
        byte = int(index[wrong][0]) + buffer.base - buffer.start
        detail = f"{what}, byte {byte}" if what else f"byte {byte}"
        self._lanes.report(kind, line, detail, tensor=buffer.name, warp=int(self._lanes.warp[lanes[lane]]))


def atomic_result(operation: str, old: Any, operands: list[Any]) -> Any:
    """What an atomic leaves in memory."""
    value = operands[0]
    if operation == "cas":
        return operands[1] if old == value else old
    if operation in {"min", "max"}:
        return (np.fmin if operation == "min" else np.fmax)(old, value)
    if operation == "inc":
        return 0 if old >= value else old + 1
    if operation == "dec":
        return value if old == 0 or old > value else old - 1
    functions = {"add": np.add, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    return value if operation == "exch" else functions[operation](old, value)
