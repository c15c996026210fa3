"""Holds every access of an interpreted launch against what a GPU would let pass unseen.

The interpreter runs programs one after another on memory that has neighbours, so a stray lane, a race or a
read of memory that nothing wrote leaves no trace in a result. Here each element that a launch touches
carries the segment that touched it last: a segment is a stretch of one program between two releasing
atomics. Two accesses are ordered when they belong to one program, or when the later program acquired, with
an atomic, what the earlier one released after its access: happens-before, as in FastTrack (Flanagan and
Freund, 2009), with the programs in the order in which the interpreter ran them.
"""

from __future__ import annotations

import functools
import mmap
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .unwritten import UnwrittenMarks

    Program = tuple[int, int, int]
    Offsets = NDArray[np.int64]
    Marks = NDArray[np.int32]

SECTOR_BYTES = 32
"""What a GPU's memory moves at the least."""

_MOST_LOGGED = 1 << 22
_HUGE_PAGE_BYTES = 1 << 21


class TrafficError(RuntimeError):
    """A launch touched memory that it must not touch, or not so.

    Attributes:
        kind: "bounds", "race" or "unwritten".
        tensor: parameter name of the tensor.
        program: grid index of the program that made the access at fault.
        byte_offset: of the access, from the first byte of the tensor.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: Literal["bounds", "race", "unwritten"],
        tensor: str,
        program: Program,
        byte_offset: int,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.tensor = tensor
        self.program = program
        self.byte_offset = byte_offset


class Touched(NamedTuple):
    """Bytes touched through an argument by loads, by stores and by either, and sectors; atomics are both."""

    read: int
    written: int
    either: int
    sectors: int


class Ordering:
    """Which segments of a launch happen before what the running program does next.

    Sets of segments are bits of integers. Segment 0 stands for no access.
    """

    def __init__(self) -> None:
        self.programs: list[Program] = [(-1, -1, -1)]
        self.now = 0
        self._first = 0
        self._before = 0
        self._published: dict[int, int] = {}

    @property
    def program(self) -> Program:
        """Grid index of the running program."""
        return self.programs[self.now]

    def start_program(self, program: Program) -> None:
        """The next program begins; it is ordered after none."""
        self._open_segment(program)
        self._first = self.now
        self._before = 0

    def acquire(self, released: Marks) -> None:
        """Order the running program after what these segments had published."""
        for segment in np.unique(released).tolist():
            self._before |= self._published.get(segment, 0)

    def release(self, released: Marks) -> int:
        """Publish all that the running program did and knows, and what was published there before.

        Returns:
            The segment under which it is published.
        """
        own = (1 << (self.now + 1)) - (1 << self._first)
        earlier = 0
        for segment in np.unique(released).tolist():
            earlier |= self._published.get(segment, 0)
        published = self.now
        self._published[published] = self._before | own | earlier
        self._open_segment(self.program)
        return published

    def first_unordered(self, segments: Marks) -> int | None:
        """Position of a segment of another program that is not ordered before the running one."""
        others = segments.view(np.uint32) - np.uint32(1) < self._first - 1  # 0 wraps to the largest
        if not others.any():
            return None
        if not self._before:
            return int(others.argmax())
        for segment in np.unique(segments[others]).tolist():
            if not self._before >> segment & 1:
                return int((segments == segment).argmax())
        return None

    def _open_segment(self, program: Program) -> None:
        self.now = len(self.programs)
        self.programs.append(program)


class Memory:
    """The storage that tensor arguments of a launch view, in granules: the smallest elements accessed so far.

    Args:
        size_bytes: of the storage.
        granule: bytes that share a mark, to begin with.
        unwritten: which of it nothing has written, where that is watched.
    """

    def __init__(self, size_bytes: int, granule: int, unwritten: UnwrittenMarks | None) -> None:
        self.granule, self.unwritten = granule, unwritten
        self.sectors = -(-size_bytes // SECTOR_BYTES)
        self.arguments: list[Argument] = []
        self.released: Marks | None = None
        if unwritten is not None:
            self.granule = max(granule, unwritten.granule)
            self.refine(min(granule, unwritten.granule))

    @property
    def granules_per_sector(self) -> int:
        """Granules that a sector holds."""
        return SECTOR_BYTES // self.granule

    def granules(self, places: Offsets, size: int) -> Offsets:
        """Granules of elements of `size` bytes at these places, in bytes from the start of the storage."""
        bits = int(places[0]) if places.size == 1 else int(np.bitwise_or.reduce(places))
        piece = size
        while bits % piece:
            piece //= 2
        if piece < self.granule:
            self.refine(piece)
        return _pieces(places >> (self.granule.bit_length() - 1), size // self.granule)

    def refine(self, granule: int) -> None:
        """Keep marks for pieces of `granule` bytes from now on, where they are coarser."""
        if self.unwritten is not None:
            self.unwritten.refine(granule)
        if granule >= self.granule:
            return
        factor = self.granule // granule
        for argument in self.arguments:
            argument.refine(factor)
        if self.released is not None:
            self.released = np.repeat(self.released, factor)
        self.granule = granule

    def new_marks(self) -> Marks:
        """A mark of nothing for each granule of all sectors; pages of it that stay so take no memory."""
        return _blank(self.sectors * self.granules_per_sector)


class Argument:
    """A tensor argument of a launch: its span of a memory, what was touched through it, and counts.

    Args:
        name: of the parameter.
        memory: the storage that it views.
        offset: bytes from the start of the storage to the first element.
        span: bytes from the start of the first element to the end of the last.
        element_bytes: of the tensor, for messages.
        addressed: which elements of the span the view's strides reach; none where that is all.
        ordering: of the launch.
    """

    def __init__(
        self,
        *,
        name: str,
        memory: Memory,
        offset: int,
        span: int,
        element_bytes: int,
        addressed: NDArray[np.bool_] | None,
        ordering: Ordering,
    ) -> None:
        self.name, self.memory, self.offset, self.span = name, memory, offset, span
        self.bytes_requested = self.bytes_written = self.sectors_requested = self.sectors_written = 0
        self.addressed = addressed
        self._element_bytes = element_bytes
        self._ordering = ordering
        self._marks: dict[str, Marks] = {}
        self._log: list[tuple[int, Offsets]] = []
        self._logged, self._most_logged = 0, _MOST_LOGGED
        self._sector_lanes: Marks | None = None
        memory.arguments.append(self)
        # Itself among them; views that lie side by side have nothing to say of each other.
        self._overlapping = [other for other in memory.arguments if self._overlaps(other)]
        for other in self._overlapping:
            if other is not self:
                other._overlapping.append(self)  # noqa: SLF001  (of the same class)

    def check_span(self, offsets: NDArray[np.uint64], size: int, verb: str) -> None:
        """Hold elements of `size` bytes at these offsets from the first byte against the tensor's span.

        Raises:
            TrafficError: one lies outside, or in a gap between the elements of the view.
        """
        outside = offsets > self.span - size if self.span >= size else np.ones(offsets.shape, np.bool_)
        where = f"outside the {self.span} bytes of the tensor"
        if not outside.any():
            if self.addressed is None:
                return
            outside = ~self.addressed[offsets.view(np.int64) // self._element_bytes]
            if not outside.any():
                return
            where = "in a gap between the elements of the view"
        offset = int(offsets[outside][0].astype(np.int64))
        raise self._error("bounds", offset, f"program {self._ordering.program} {verb}", where)

    def read(self, granules: Offsets, *, atomic: bool = False, uses_value: bool = True) -> None:
        """Elements were loaded, or are about to be by an atomic.

        Raises:
            TrafficError: nothing has written one, or a program did that is not ordered before this one.
        """
        unwritten = self.memory.unwritten
        if unwritten is not None and uses_value:
            bare = unwritten.mask[granules]
            if bare.any():
                offset = self._offset(granules[int(bare.argmax())])
                who = f"program {self._ordering.program} reads"
                raise self._error("unwritten", offset, who, "which nothing has written")
        self._hold_against("writes", granules, "reads" if not atomic else "updates")
        if not atomic:
            self._log.append((self._ordering.now, granules))
            self._logged += granules.size
            if self._logged > self._most_logged:
                self._shorten_log()

    def write(self, granules: Offsets, *, atomic: bool = False) -> None:
        """Elements are about to be stored.

        Raises:
            TrafficError: a program touched one that is not ordered before this one, unless both are atomic.
        """
        verb = "updates" if atomic else "writes"
        for kind in ("writes",) if atomic else ("writes", "reads", "atomics"):
            self._hold_against(kind, granules, verb)
        self._marks_of("atomics" if atomic else "writes")[granules] = self._ordering.now
        if self.memory.unwritten is not None:
            self.memory.unwritten.mask[granules] = False

    def acquire(self, granules: Offsets) -> None:
        """An atomic is about to take place here that orders the program after what others released."""
        if self.memory.released is not None:
            self._ordering.acquire(self.memory.released[granules])

    def release(self, granules: Offsets) -> None:
        """An atomic took place here that publishes what the program has done."""
        if self.memory.released is None:
            self.memory.released = self.memory.new_marks()
        self.memory.released[granules] = self._ordering.release(self.memory.released[granules])

    def count_sectors(self, granules: Offsets) -> int:
        """How many sectors one instruction of a program asks for, each once."""
        sectors = granules >> (self.memory.granules_per_sector.bit_length() - 1)
        if self._sector_lanes is None:
            self._sector_lanes = _blank(self.memory.sectors)
        if sectors.size == 1:
            self._sector_lanes[sectors] = 1
            return 1
        lanes = _lanes(sectors.size)
        self._sector_lanes[sectors] = lanes  # of the lanes that share a sector, one stays
        return int(np.count_nonzero(self._sector_lanes[sectors] == lanes))

    def end_program(self) -> None:
        """Turn the reads of the program that ends into marks that later programs are held against."""
        if self._log:
            reads = self._marks_of("reads")
            for segment, granules in self._log:
                reads[granules] = segment
            self._log.clear()
            self._logged = 0

    def touched(self) -> Touched:
        """What was touched so far, each byte and sector once."""
        if self._sector_lanes is None:
            return Touched(read=0, written=0, either=0, sectors=0)
        seen = np.flatnonzero(self._sector_lanes != 0)  # looking through all of a large cache would take long
        nothing = np.zeros((seen.size, self.memory.granules_per_sector), np.bool_)
        reads, writes, atomics = (
            self._marks[kind].reshape(-1, nothing.shape[1])[seen] != 0 if kind in self._marks else nothing
            for kind in ("reads", "writes", "atomics")
        )
        read, written = reads | atomics, writes | atomics
        either = read | written
        granule = self.memory.granule
        return Touched(
            read=int(np.count_nonzero(read)) * granule,
            written=int(np.count_nonzero(written)) * granule,
            either=int(np.count_nonzero(either)) * granule,
            sectors=seen.size,
        )

    def refine(self, factor: int) -> None:
        """Split each granule into `factor`."""
        self._marks = {kind: np.repeat(marks, factor) for kind, marks in self._marks.items()}
        self._log = [(segment, _pieces(granules * factor, factor)) for segment, granules in self._log]

    def _marks_of(self, kind: str) -> Marks:
        if kind not in self._marks:
            self._marks[kind] = self.memory.new_marks()
        return self._marks[kind]

    def _overlaps(self, other: Argument) -> bool:
        return self.offset < other.offset + other.span and other.offset < self.offset + self.span

    def _shorten_log(self) -> None:
        """Keep each granule that the program read once, under its last segment."""
        last = self.memory.new_marks()
        for segment, granules in self._log:
            last[granules] = segment
        kept = np.flatnonzero(last)
        self._log = [(segment, kept[last[kept] == segment]) for segment in np.unique(last[kept]).tolist()]
        self._logged, self._most_logged = kept.size, max(_MOST_LOGGED, 2 * kept.size)

    def _hold_against(self, kind: str, granules: Offsets, verb: str) -> None:
        for argument in self._overlapping:
            marks = argument._marks.get(kind)  # noqa: SLF001  (of the same class)
            if marks is None:
                continue
            segments = marks[granules]
            position = self._ordering.first_unordered(segments)
            if position is None:
                continue
            earlier = self._ordering.programs[int(segments[position])]
            did = {"writes": "wrote", "reads": "read", "atomics": "atomically updated"}[kind]
            via = "" if argument is self else f" through {argument.name}"
            raise self._error(
                "race",
                self._offset(granules[position]),
                f"program {self._ordering.program} {verb}",
                f"which program {earlier} {did}{via}: a race, for nothing orders the two",
            )

    def _offset(self, granule: np.int64) -> int:
        return int(granule) * self.memory.granule - self.offset

    def _error(
        self, kind: Literal["bounds", "race", "unwritten"], offset: int, who: str, what: str
    ) -> TrafficError:
        element = offset // self._element_bytes
        return TrafficError(
            f"{self.name}: {who} byte offset {offset} (element {element}), {what}",
            kind=kind,
            tensor=self.name,
            program=self._ordering.program,
            byte_offset=offset,
        )


def _blank(count: int) -> Marks:
    """Zeros of which only the pages that are written take memory and time."""
    # numpy asks for huge pages, and the system clears one whole where a program touches a few bytes.
    if count < _HUGE_PAGE_BYTES // 4:
        return np.zeros(count, np.int32)
    return np.frombuffer(mmap.mmap(-1, 4 * count), np.int32)


@functools.lru_cache(maxsize=8)
def _lanes(count: int) -> Marks:
    """The numbers from 1 to count."""
    lanes = np.arange(1, count + 1, dtype=np.int32)
    lanes.flags.writeable = False  # one array for all who ask
    return lanes


def _pieces(first: Offsets, count: int) -> Offsets:
    """Each of `first` and the count - 1 that follow it."""
    return first if count == 1 else (first[:, None] + np.arange(count)).reshape(-1)
