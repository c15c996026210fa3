"""Which accesses to global memory a warp may rely on: those that come before it in the order that PTX gives.

Each access leaves a mark: its warp, the warp's clock, and its CTA's segment. Within a CTA barriers order the
warps' clocks (`Clocks`). A segment is what a CTA does between two of its releases; atomics, ordered loads and
stores, and fences of scope gpu or wider order segments of different CTAs, and warps of one. A release covers
what its own warp knows of, so a barrier that is missing between it and another warp's store is found. What
one warp acquires, all warps of its CTA know.
"""

import numpy as np

from .lanes import Array
from .shared_memory import Clocks

_FIRST_CAPACITY = 64
SEVERAL = -1
"""Stands for the marks of several CTAs; no CTA knows them."""


class Segments:
    """The segments and marks of one launch, and what was released at each address.

    Attributes:
        segment, warp, clock: of each mark. Mark 0 stands for no access; the last place for `SEVERAL`.
    """

    def __init__(self) -> None:
        self.count = 1  # 0 stands for none
        self.marks = 1
        self.released: dict[int, set[int]] = {}
        self.segment, self.warp, self.clock = (np.zeros(_FIRST_CAPACITY, np.int32) for _ in range(3))
        self.segment[-1] = SEVERAL

    def mark(self, segment: int, warps: Array, clocks: Array) -> Array:
        """New marks, one for each of some warps of a CTA."""
        first, self.marks = self.marks, self.marks + len(warps)
        while self.marks >= len(self.segment):
            self.segment[-1] = 0
            self.segment, self.warp, self.clock = (
                np.concatenate([each, np.zeros_like(each)]) for each in (self.segment, self.warp, self.clock)
            )
            self.segment[-1] = SEVERAL
        own = np.arange(first, self.marks, dtype=np.int32)
        self.segment[own], self.warp[own], self.clock[own] = segment, warps, clocks
        return own


class CtaOrder:
    """What one CTA knows of other CTAs, and its warps of one another.

    Attributes:
        segment: number of its current segment.
    """

    def __init__(self, segments: Segments, clocks: Clocks) -> None:
        self._segments, self._clocks = segments, clocks
        self._known = np.zeros(_FIRST_CAPACITY, np.bool_)
        self._own: set[int] = set()  # segments of this CTA
        self._fenced = False
        self._relaxed: set[int] = set()  # addresses read without acquire
        self._released_clocks: dict[int, Array] = {}  # by address, of warps of this CTA
        warps = len(clocks.of)
        self._marks = np.zeros(warps, np.int32)  # the current mark of each warp, made at its clock
        self._marked_at = np.full(warps, -1, np.int32)
        self._segment_marks: list[Array] = []
        self.segment = 0
        self._next_segment()

    def _next_segment(self) -> None:
        self.segment = self._segments.count
        self._segments.count += 1
        self._own.add(self.segment)
        self._learn({self.segment})
        self._marked_at[:] = -1
        self._segment_marks = []

    def _learn(self, segments: set[int]) -> None:
        self._grow(max(segments))
        self._known[list(segments)] = True

    def marks(self) -> Array:
        """The mark of each warp for what it accesses now."""
        clock = self._clocks.of.diagonal()
        (stale,) = np.nonzero(self._marked_at != clock)
        if len(stale):
            self._marks[stale] = self._segments.mark(self.segment, stale, clock[stale])
            self._marked_at[stale] = clock[stale]
            self._segment_marks.append(self._marks[stale])
        return self._marks

    def unknown(self, marks: Array) -> Array:
        """Whether each of these is of another CTA whose segment is not known to have ended; 0 is none."""
        segments = self._segments.segment[marks]
        if self._segments.count > len(self._known):
            self._grow(self._segments.count)
        return np.asarray((segments != 0) & ~self._known[segments])

    def unordered(self, marks: Array, warps: Array) -> Array:
        """Whether each of these is of another warp of this CTA, with nothing that orders it before now.

        Args:
            marks: [accesses, bytes].
            warps: the warp of each access.
        """
        segments = self._segments
        here, other = warps[:, None], segments.warp[marks]
        later = (other != here) & (segments.clock[marks] > self._clocks.of[here, other])
        if later.any():
            later &= np.isin(segments.segment[marks], list(self._own))
        return np.asarray(later)

    def _grow(self, most: int) -> None:
        while most + 1 >= len(self._known):  # the last place stays false: SEVERAL refers to it
            self._known = np.concatenate([self._known, np.zeros_like(self._known)])

    def synchronise(self, addresses: Array, warps: Array, *, acquire: bool, release: bool) -> None:
        """An atomic, or an ordered load or store, at these addresses, each by a warp."""
        if not len(addresses):
            return
        places = {int(each) for each in addresses}
        if acquire:
            self._acquire(places)
            for place, warp in zip(addresses.tolist(), warps.tolist(), strict=True):
                if place in self._released_clocks:
                    own = self._clocks.of[warp]
                    np.maximum(own, self._released_clocks[place], out=own)
        else:
            self._relaxed |= places
        if release or self._fenced:
            self._release(places, np.unique(warps))

    def _release(self, places: set[int], warps: Array) -> None:
        """Ends the segment; marks in it that none of these warps knows of go into the next."""
        known = {int(each) for each in np.flatnonzero(self._known)}
        seen = self._clocks.of[warps].max(0)
        seen[warps] = np.iinfo(np.int32).max
        for place in places:
            self._segments.released.setdefault(place, set()).update(known)
            before = self._released_clocks.get(place, 0)
            self._released_clocks[place] = np.maximum(self._clocks.of[warps].max(0), before)
        self._clocks.tick(warps)
        marks = np.concatenate([np.zeros(0, np.int32), *self._segment_marks])
        late = marks[self._segments.clock[marks] > seen[self._segments.warp[marks]]]
        self._next_segment()
        if len(late):
            self._segments.segment[late] = self.segment
            self._segment_marks = [late]

    def fence(self) -> None:
        """fence.acq_rel or stronger: earlier relaxed accesses acquire, later ones release."""
        self._acquire(self._relaxed)
        self._relaxed = set()
        self._fenced = True

    def _acquire(self, places: set[int]) -> None:
        for place in places:
            if released := self._segments.released.get(place):
                self._learn(released)
