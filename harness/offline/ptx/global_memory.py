"""Global memory: the tensors of a launch at their real addresses, and what each CTA does to them."""

import ctypes
import mmap
from collections.abc import Iterator

import numpy as np

from .atomics import apply_atomics
from .cta_order import SEVERAL, CtaOrder, Segments
from .lanes import UNSIGNED, Array, CtaLanes, Mask
from .shared_memory import Clocks
from .violations import Kind

_NEAR_BYTES = 4096  # how far from a tensor an address outside is said to be near it
_MAP_NORESERVE = 0x4000
_LARGE = 2**24


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
        writer, reader: the mark (`cta_order`) of the last access to each byte; 0 for none, -1 for several.
        atomic: whether the last write of each byte was an atomic or ordered store; None before the first.
        dead: which bytes no kernel may read; None for none.
        unwritten: which bytes nothing has written yet, and the place in it of the byte at `base`; None if
            all were written before.
    """

    def __init__(self, name: str, start: int, size: int) -> None:
        self.name, self.start, self.end = name, start, start + size
        self.base = start & ~15
        span = (self.end - self.base + 15) & ~15
        memory = (ctypes.c_uint8 * max(span, 16)).from_address(self.base)
        self.bytes: Array = np.ctypeslib.as_array(memory)
        self.views: dict[int, Array] = {w: self.bytes.view(UNSIGNED[8 * w]) for w in (1, 2, 4, 8)}
        self.atomic: Array | None = None
        self.dead: Array | None = None
        self.unwritten: tuple[Array, int] | None = None
        self.writer, self.reader = _untouched_zeros(len(self.bytes)), _untouched_zeros(len(self.bytes))
        self.was_written = False


class GlobalMemory:
    """The buffers of one launch."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.segments = Segments()
        self.last_hit: dict[int, Buffer] = {}  # by PTX line: an instruction mostly stays in one tensor

    def add(self, name: str, start: int, size: int) -> None:
        """Adds a tensor's memory. Tensors that overlap become one buffer, named after those that it needs."""
        end, names = start + size, [name]
        for known in [each for each in self.buffers if each.start < end and start < each.end]:
            self.buffers.remove(known)
            if known.start <= start and end <= known.end:
                names = [known.name]
            elif known.start < start or end < known.end:
                names = [known.name, *names]
            start, end = min(start, known.start), max(end, known.end)
        self.buffers.append(Buffer(" and ".join(names), start, end - start))
        self.buffers.sort(key=lambda each: each.start)

    def forbid(self, start: int, dead: Array) -> None:
        """Marks bytes from an address on that no kernel may read."""
        for buffer in self.buffers:
            low, high = max(buffer.start, start), min(buffer.end, start + len(dead))
            if low < high:
                if buffer.dead is None:
                    buffer.dead = np.zeros(len(buffer.bytes), np.bool_)
                buffer.dead[low - buffer.base : high - buffer.base] |= dead[low - start : high - start]

    def track_unwritten(self, start: int, unwritten: Array) -> None:
        """Follows bytes from an address on that nothing has written; marks them where a kernel does."""
        for buffer in self.buffers:
            if start <= buffer.start and buffer.end <= start + len(unwritten):
                buffer.unwritten = (unwritten, buffer.base - start)

    def search_order(self, line: int) -> list[Buffer]:
        """The buffers, first the one that this instruction found last."""
        likely = self.last_hit.get(line)
        if likely is None:
            return self.buffers
        return [likely, *(each for each in self.buffers if each is not likely)]


class GlobalAccess:
    """What one CTA does to global memory."""

    def __init__(self, lanes: CtaLanes, memory: GlobalMemory, clocks: Clocks) -> None:
        self._lanes, self._memory = lanes, memory
        self._order = CtaOrder(memory.segments, clocks)

    def load(self, address: Array, width: int, count: int, mask: Mask, line: int) -> list[Array]:
        """Loads `count` elements of `width` bytes a lane; lanes that may not load get all ones."""
        return self._load(address, width, count, mask, line, atomic=False)

    def ordered_load(
        self, address: Array, width: int, count: int, acquire: bool, mask: Mask, line: int
    ) -> list[Array]:
        """ld.acquire, ld.relaxed and ld.volatile: as `load`, and no race with atomics."""
        active = self._lanes.active(mask)
        self._order.synchronise(address[active], self._lanes.warp[active], acquire=acquire, release=False)
        return self._load(address, width, count, mask, line, atomic=True)

    def _load(
        self, address: Array, width: int, count: int, mask: Mask, line: int, *, atomic: bool
    ) -> list[Array]:
        loaded = self._lanes.all_ones(width, count)
        for buffer, lanes, offset in self.find(
            address, width * count, self._lanes.active(mask), line, "load"
        ):
            self.check_read(buffer, offset[:, None] + np.arange(width * count), line, lanes, atomic=atomic)
            view, at = buffer.views[width], offset // width
            for j, element in enumerate(loaded):
                element[lanes] = view[at + j]
        return loaded

    def store(self, address: Array, width: int, values: list[Array], mask: Mask, line: int) -> None:
        """Stores elements of `width` bytes."""
        self._store(address, width, values, mask, line, atomic=False)

    def ordered_store(
        self, address: Array, width: int, values: list[Array], release: bool, mask: Mask, line: int
    ) -> None:
        """st.release, st.relaxed and st.volatile: as `store`, and no race with atomics."""
        active = self._lanes.active(mask)
        self._order.synchronise(address[active], self._lanes.warp[active], acquire=False, release=release)
        self._store(address, width, values, mask, line, atomic=True)

    def _store(
        self, address: Array, width: int, values: list[Array], mask: Mask, line: int, *, atomic: bool
    ) -> None:
        size = width * len(values)
        for buffer, lanes, offset in self.find(address, size, self._lanes.active(mask), line, "store"):
            chosen = np.stack([value[lanes] for value in values], 1).view(np.uint8)
            self.check_write(buffer, offset[:, None] + np.arange(size), line, lanes, chosen, atomic=atomic)
            view, at = buffer.views[width], offset // width
            for j, value in enumerate(values):
                view[at + j] = value[lanes]
                if (view[at + j] != value[lanes]).any():
                    self._lanes.report(Kind.ONE_ADDRESS, line, tensor=buffer.name)

    def atomic(
        self,
        address: Array,
        kind: str,
        operation: str,
        values: list[Array],
        order: str,
        mask: Mask,
        line: int,
    ) -> Array:
        """An atomic of each lane, one after another; returns the old values.

        Args:
            address: of each lane.
            kind: PTX type of the element.
            operation: such as "add".
            values: bits of the operands; "cas" has two.
            order: "relaxed", "acquire", "release" or "acq_rel".
            mask: active lanes.
            line: of the PTX.
        """
        width = values[0].dtype.itemsize
        old = np.zeros(self._lanes.threads, UNSIGNED[8 * width])
        active = self._lanes.active(mask)
        acquire, release = order in {"acquire", "acq_rel"}, order in {"release", "acq_rel"}
        self._order.synchronise(address[active], self._lanes.warp[active], acquire=acquire, release=release)
        for buffer, lanes, offset in self.find(address, width, active, line, "atomic"):
            index = offset[:, None] + np.arange(width)
            self.check_read(buffer, index, line, lanes, atomic=True)
            self.check_write(buffer, index, line, lanes, None, atomic=True)
            apply_atomics(buffer.views[width], offset // width, lanes, (operation, kind), values, old)
        return old

    def fence(self) -> None:
        """fence.acq_rel or stronger, of scope gpu or wider."""
        self._order.fence()

    def find(
        self, address: Array, size: int, lanes: Array, line: int, what: str, *, lane: int | None = None
    ) -> Iterator[tuple[Buffer, Array, Array]]:
        """Buffers that an access touches, each with its lanes and their offsets in it.

        Accesses that are misaligned for `size` bytes or outside every buffer are reported and left out.

        Args:
            address: of each lane, or of each element that one lane accesses.
            size: bytes of each access.
            lanes: indices into `address`.
            line: of the PTX.
            what: the access, in words.
            lane: the lane that accesses all elements; None if the indices are lanes.
        """
        at = address[lanes]
        misaligned = at % size != 0
        if misaligned.any():
            self._misplaced(Kind.MISALIGNED_GLOBAL, at, lanes, misaligned, (size, line, what, lane))
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
            self._misplaced(Kind.OUTSIDE_TENSOR, at, lanes, left, (size, line, what, lane))

    def _misplaced(
        self, kind: Kind, at: Array, lanes: Array, wrong: Array, access: tuple[int, int, str, int | None]
    ) -> None:
        size, line, what, lane = access
        first = int(at[wrong][0])
        warp = int(self._lanes.warp[lanes[wrong][0] if lane is None else lane])
        tensor, place = "", f"{first:#x}"
        for buffer in self._memory.buffers:
            if buffer.start - _NEAR_BYTES <= first < buffer.end + _NEAR_BYTES:
                tensor = buffer.name
                place = f"byte {first - buffer.start} of {buffer.end - buffer.start}"
                break
        detail = f"{what} of {size} bytes at {place}, {int(wrong.sum())} accesses"
        self._lanes.report(kind, line, detail, tensor=tensor, warp=warp)

    def check_read(
        self, buffer: Buffer, index: Array, line: int, lanes: Array, *, atomic: bool = False
    ) -> None:
        """Reports reads of dead or unwritten bytes and of what another CTA or warp writes.

        Args:
            buffer: the tensor.
            index: of the bytes, [accesses, bytes].
            line: of the PTX.
            lanes: lane of each access.
            atomic: whether it is an atomic or an ordered load, which does not race with another.
        """
        self._count(buffer, index, lanes, line, stores=False)
        if buffer.dead is not None and (wrong := buffer.dead[index]).any():
            self._report(Kind.DEAD_READ, buffer, index, wrong, line, lanes)
        if buffer.unwritten is not None:
            unwritten, start = buffer.unwritten
            if (wrong := unwritten[index + start]).any():
                self._report(Kind.UNWRITTEN_GLOBAL, buffer, index, wrong, line, lanes)
        if buffer.was_written:
            self._check_order(
                buffer, buffer.writer, index, line, lanes, "reads what another {} wrote", atomic
            )
        if not atomic:
            me, reader = self._order.marks()[self._lanes.warp[lanes]][:, None], buffer.reader[index]
            buffer.reader[index] = np.where(self._order.unknown(reader), SEVERAL, me)

    def check_write(
        self,
        buffer: Buffer,
        index: Array,
        line: int,
        lanes: Array,
        values: Array | None,
        *,
        atomic: bool = False,
    ) -> None:
        """Reports writes of what another CTA or warp reads or writes, and notes them; as `check_read`.

        Two warps of a CTA may write the same bytes, `values` [accesses, bytes].
        """
        self._count(buffer, index, lanes, line, stores=True)
        detail = "writes what another {} wrote"
        self._check_order(buffer, buffer.writer, index, line, lanes, detail, atomic, values)
        self._check_order(buffer, buffer.reader, index, line, lanes, "writes what another {} read")
        buffer.writer[index] = self._order.marks()[self._lanes.warp[lanes]][:, None]
        buffer.was_written = True
        if atomic and buffer.atomic is None:
            buffer.atomic = np.zeros(len(buffer.bytes), np.bool_)
        if buffer.atomic is not None:
            buffer.atomic[index] = atomic
        if buffer.unwritten is not None:
            unwritten, start = buffer.unwritten
            unwritten[index + start] = False

    def _check_order(
        self,
        buffer: Buffer,
        marks: Array,
        index: Array,
        line: int,
        lanes: Array,
        detail: str,
        atomic: bool = False,
        values: Array | None = None,
    ) -> None:
        """Reports accesses that nothing orders after those of `marks`, of other CTAs or warps of this one."""
        last = marks[index]
        for who, unordered in (
            ("CTA", self._order.unknown(last)),
            ("warp", self._order.unordered(last, self._lanes.warp[lanes])),
        ):
            ordinary = ~buffer.atomic[index] if atomic and buffer.atomic is not None else True
            wrong = unordered & ordinary
            if wrong.any():
                kind = Kind.GLOBAL_RACE
                if who == "warp" and values is not None and (buffer.bytes[index] == values)[wrong].all():
                    kind = Kind.SAME_VALUE
                self._report(kind, buffer, index, wrong, line, lanes, detail.format(who))

    def _count(self, buffer: Buffer, index: Array, lanes: Array, line: int, *, stores: bool) -> None:
        address = index[:, 0] + buffer.base
        self._lanes.counters.global_access(buffer.name, address, lanes, line, stores=stores)

    def _report(
        self,
        kind: Kind,
        buffer: Buffer,
        index: Array,
        wrong: Array,
        line: int,
        lanes: Array,
        what: str = "",
    ) -> None:
        access, _ = np.argwhere(wrong)[0]
        byte = int(index[wrong][0]) + buffer.base - buffer.start
        detail = f"{what}, byte {byte}" if what else f"byte {byte}"
        self._lanes.report(kind, line, detail, tensor=buffer.name, warp=int(self._lanes.warp[lanes[access]]))
