"""Shared memory of one CTA: its bytes, who wrote and read them, and vector clocks that find races."""

import numpy as np

from .atomics import apply_atomics
from .lanes import SHARED_BASE, UNSIGNED, Array, CtaLanes, Mask
from .violations import Kind

_FIRST_BYTES = 0xFF  # what shared memory holds before it is written: NaN in every float format


class Clocks:
    """A vector clock for each warp: what it knows of every other warp's progress.

    An access at clock c of warp v happened before what warp w does now if `of[w, v] >= c`. The last column is
    the clock of what is asynchronous: copies by TMA, products of tcgen05.
    """

    def __init__(self, warps: int) -> None:
        self.of = np.eye(warps, warps + 1, dtype=np.int32)
        self.now_asynchronous = 0

    def next_asynchronous(self) -> int:
        """The clock of the next copy or product that completes."""
        self.now_asynchronous += 1
        return self.now_asynchronous

    def own(self, warps: Array) -> Array:
        """Each warp's own clock."""
        return np.asarray(self.of[warps, warps])

    def tick(self, warps: Array) -> None:
        """What these warps do from now on comes later."""
        self.of[warps, warps] += 1

    def join(self, warps: Array) -> None:
        """A barrier: each of these warps knows what any of them knew."""
        self.of[warps] = self.of[warps].max(0)
        self.tick(warps)


class SharedMemory:
    """Bytes of shared memory, and the state of each byte.

    Attributes:
        data: the bytes.
        in_flight: an asynchronous copy will write it.
        unfenced: written, with no fence.proxy.async since.
        async_readers: how many wgmma, tcgen05.mma and TMA stores in flight read it.
        writer, written_at: the last warp that wrote it (-1 for none; the number of warps for TMA), and when.
        atomic_written: its last write was an atomic.
        read_at: the last time that each warp, or a product of tcgen05 (the last index), read it.
    """

    def __init__(self, lanes: CtaLanes, size: int) -> None:
        self._lanes, self.size = lanes, size
        length = (size + 127) // 128 * 128 + 128
        self.clocks = Clocks(lanes.warps)
        self.data = np.full(length, _FIRST_BYTES, np.uint8)
        self.in_flight = np.zeros(length, np.bool_)
        self.unfenced = np.zeros(length, np.bool_)
        self.async_readers = np.zeros(length, np.uint16)
        self.writer = np.full(length, -1, np.int16)
        self.atomic_written = np.zeros(length, np.bool_)
        self.written_at = np.zeros(length, np.int32)
        self.read_at = np.zeros((lanes.warps + 1, length), np.int32)

    def load(self, address: Array, width: int, count: int, mask: Mask, line: int) -> list[Array]:
        """Loads `count` elements of `width` bytes a lane; lanes that may not load get all ones."""
        loaded, size = self._lanes.all_ones(width, count), width * count
        lanes, offset = self.locate(address, size, self._lanes.active(mask), line, "ld.shared")
        if len(lanes):
            self.check_read(offset, size, self._lanes.warp[lanes], line)
            rows = self.rows(self.data, offset, size).view(UNSIGNED[8 * width])
            for j, element in enumerate(loaded):
                element[lanes] = rows[:, j]
        return loaded

    def store(self, address: Array, width: int, values: list[Array], mask: Mask, line: int) -> None:
        """Stores elements of `width` bytes."""
        lanes, offset = self.locate(address, width * len(values), self._lanes.active(mask), line, "st.shared")
        if len(lanes):
            data = np.ascontiguousarray(np.stack([value[lanes] for value in values], 1)).view(np.uint8)
            self.put(offset, data, self._lanes.warp[lanes], line)

    def atomic(
        self,
        address: Array,
        kind: str,
        operation: str,
        values: list[Array],
        _order: str,
        mask: Mask,
        line: int,
    ) -> Array:
        """An atomic of each lane, one after another; returns the old values.

        Atomics do not race with each other; ordinary accesses before and after need barriers.
        """
        width = values[0].dtype.itemsize
        old = np.zeros(self._lanes.threads, UNSIGNED[8 * width])
        lanes, offset = self.locate(address, width, self._lanes.active(mask), line, "atomic")
        if not len(lanes):
            return old
        self._check_atomic(offset, width, self._lanes.warp[lanes], line)
        view = self.data.view(UNSIGNED[8 * width])
        apply_atomics(view, offset // width, lanes, (operation, kind), values, old)
        return old

    def _check_atomic(self, offset: Array, size: int, warps: Array, line: int) -> None:
        """As `check_read` and `check_write`, except that what atomics wrote last does not race."""
        for each in (self.in_flight, self.async_readers > 0):
            if (wrong := self.rows(each, offset, size)).any():
                self.report(Kind.WRITE_IN_FLIGHT, line, "atomic", offset, warps, wrong)
        writer, me = self.rows(self.writer, offset, size), warps[:, None]
        if (wrong := writer < 0).any():
            self.report(Kind.UNWRITTEN_SHARED, line, "atomic", offset, warps, wrong)
        unknown = self.rows(self.written_at, offset, size) > self.clocks.of[me, writer]
        raced = (writer >= 0) & (writer != me) & unknown & ~self.rows(self.atomic_written, offset, size)
        row = offset // size
        for other in range(len(self.read_at)):
            read_at = self.read_at[other].reshape(-1, size)[row]
            raced |= (read_at > self.clocks.of[warps, other][:, None]) & (me != other)
        if raced.any():
            self.report(Kind.SHARED_RACE, line, "atomic, with no barrier between", offset, warps, raced)
        self.writer.reshape(-1, size)[row] = me
        self.written_at.reshape(-1, size)[row] = self.clocks.own(warps)[:, None]
        self.unfenced.reshape(-1, size)[row] = True
        self.atomic_written.reshape(-1, size)[row] = True

    def locate(self, address: Array, size: int, lanes: Array, line: int, what: str) -> tuple[Array, Array]:
        """Lanes and their offsets, without those that are misaligned or outside, which are reported."""
        offset = address[lanes] - SHARED_BASE
        misaligned = offset % size != 0
        wrong = misaligned | (offset < 0) | (offset + size > self.size)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            self._lanes.report(
                Kind.MISALIGNED_SHARED if misaligned[first] else Kind.OUTSIDE_SHARED,
                line,
                f"{what} of {size} bytes; shared memory has {self.size}",
                shared_address=int(offset[first]),
                warp=int(self._lanes.warp[lanes[first]]),
            )
            lanes, offset = lanes[~wrong], offset[~wrong]
        self._lanes.counters.shared_access(offset, lanes, size, line)
        return lanes, offset

    @staticmethod
    def rows(array: Array, offset: Array, size: int) -> Array:
        """Values [accesses, size] of one of the arrays by byte; offsets are multiples of `size`."""
        return np.asarray(array.reshape(-1, size)[offset // size])

    def check_read(self, offset: Array, size: int, warps: Array, line: int) -> None:
        """Notes reads, and reports those of bytes in flight, unwritten, or racing."""
        if (wrong := self.rows(self.in_flight, offset, size)).any():
            self.report(Kind.READ_IN_FLIGHT, line, "no wait covers it", offset, warps, wrong)
        writer, written_at = self.rows(self.writer, offset, size), self.rows(self.written_at, offset, size)
        if (wrong := writer < 0).any():
            wrong &= ~self.rows(self.in_flight, offset, size)
            if wrong.any():
                self.report(Kind.UNWRITTEN_SHARED, line, "", offset, warps, wrong)
        me = warps[:, None]
        wrong = (writer >= 0) & (writer != me) & (written_at > self.clocks.of[me, writer])
        if wrong.any():
            detail = f"reads what warp {int(writer[wrong][0])} wrote, with no barrier between"
            self.report(Kind.SHARED_RACE, line, detail, offset, warps, wrong)
        row = offset // size
        for warp in np.unique(warps):
            self.read_at[warp].reshape(-1, size)[row[warps == warp]] = self.clocks.of[warp, warp]

    def check_write(
        self, offset: Array, size: int, warps: Array, line: int, values: Array | None = None
    ) -> bool:
        """Notes writes, and reports those over copies in flight and those that race.

        Args:
            offset: of each access, multiples of `size`.
            size: bytes of each access.
            warps: of each access.
            line: of the PTX.
            values: what is written, [accesses, size]; None if it is not known yet.

        Returns:
            Whether two warps write one byte in this instruction.
        """
        if (wrong := self.rows(self.in_flight, offset, size)).any():
            self.report(Kind.WRITE_IN_FLIGHT, line, "", offset, warps, wrong)
        if (wrong := self.rows(self.async_readers, offset, size) > 0).any():
            self.report(Kind.ASYNC_OPERAND, line, "", offset, warps, wrong)
        writer, written_at = self.rows(self.writer, offset, size), self.rows(self.written_at, offset, size)
        me = warps[:, None]
        wrong = (writer >= 0) & (writer != me) & (written_at > self.clocks.of[me, writer])
        if wrong.any():
            same = values is not None and (self.rows(self.data, offset, size)[wrong] == values[wrong]).all()
            detail = f"writes what warp {int(writer[wrong][0])} wrote, with no barrier between"
            self.report(Kind.SAME_VALUE if same else Kind.SHARED_RACE, line, detail, offset, warps, wrong)
        row = offset // size
        for other in range(self._lanes.warps + 1):
            read_at = self.read_at[other].reshape(-1, size)[row]
            wrong = (read_at > self.clocks.of[warps, other][:, None]) & (me != other)
            if wrong.any():
                detail = f"writes what warp {other} read, with no barrier between"
                self.report(Kind.SHARED_RACE, line, detail, offset, warps, wrong)
        self.writer.reshape(-1, size)[row] = me
        self.written_at.reshape(-1, size)[row] = self.clocks.own(warps)[:, None]
        self.unfenced.reshape(-1, size)[row] = True
        self.atomic_written.reshape(-1, size)[row] = False
        return bool((self.writer.reshape(-1, size)[row] != me).any())

    def put(self, offset: Array, values: Array, warps: Array, line: int) -> None:
        """Writes `values` [accesses, bytes]."""
        size = values.shape[1]
        shared_by_warps = self.check_write(offset, size, warps, line, values)
        view, row = self.data.reshape(-1, size), offset // size
        view[row] = values
        wrong = view[row] != values
        if wrong.any():
            self.report(Kind.ONE_ADDRESS, line, "", offset, warps, wrong)
        elif shared_by_warps:
            self._lanes.report(Kind.SAME_VALUE, line, "in one instruction")

    def report(self, kind: Kind, line: int, detail: str, offset: Array, warps: Array, wrong: Array) -> None:
        """Reports the first of some wrong accesses; `wrong` is [accesses, bytes]."""
        access, byte = np.argwhere(wrong)[0]
        self._lanes.report(
            kind, line, detail, shared_address=int(offset[access] + byte), warp=int(warps[access])
        )

    def check_bulk_read(self, offset: Array, warps: Array, line: int, what: str) -> None:
        """Reports an asynchronous read, by wgmma or TMA, of bytes that are not ready for it."""
        known = self.clocks.of[warps].min(0)
        writer = self.writer[offset]
        for kind, wrong in (
            (Kind.READ_IN_FLIGHT, self.in_flight[offset]),
            (Kind.UNWRITTEN_SHARED, (writer < 0) & ~self.in_flight[offset]),
            (Kind.NO_PROXY_FENCE, self.unfenced[offset]),
            (Kind.SHARED_RACE, (writer >= 0) & (self.written_at[offset] > known[writer])),
        ):
            if wrong.any():
                place = int(offset[wrong][0])
                self._lanes.report(kind, line, what, shared_address=place, warp=int(warps[0]))

    def fence_proxy(self, mask: Mask, line: int) -> None:
        """fence.proxy.async: stores that the fencing warps know of become visible to wgmma and TMA."""
        for warp in self._lanes.active_warps(mask, line):
            seen = (self.writer < 0) | (self.written_at <= self.clocks.of[warp, self.writer])
            self.unfenced &= ~seen
