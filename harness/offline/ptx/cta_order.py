"""Which accesses of other CTAs a CTA may rely on: those before a release that it acquired.

A CTA's accesses between two of its releases are a segment. Atomics, ordered loads and stores, and fences of
scope gpu or wider order segments; all threads of a CTA count as one, so that a barrier that is missing
between a thread's store and another thread's release is not found.
"""

import numpy as np

from .lanes import Array

_FIRST_CAPACITY = 64
SEVERAL = -1
"""Stands for the segments of several CTAs; no CTA knows them."""


class Segments:
    """The segments of one launch, and what was released at each address."""

    def __init__(self) -> None:
        self.count = 1  # 0 stands for none
        self.released: dict[int, set[int]] = {}


class CtaOrder:
    """What one CTA knows of other CTAs.

    Attributes:
        segment: number of its current segment.
    """

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._known = np.zeros(_FIRST_CAPACITY, np.bool_)
        self._fenced = False
        self._relaxed: set[int] = set()  # addresses read without acquire
        self.segment = 0
        self._next_segment()

    def _next_segment(self) -> None:
        self.segment = self._segments.count
        self._segments.count += 1
        self._learn({self.segment})

    def _learn(self, segments: set[int]) -> None:
        self._grow(max(segments))
        self._known[list(segments)] = True

    def unknown(self, segments: Array) -> Array:
        """Whether each of these is a segment of other CTAs that is not known to have ended; 0 is none."""
        if (segments >= len(self._known)).any():
            self._grow(int(segments.max()))
        return np.asarray((segments != 0) & ~self._known[segments])

    def _grow(self, most: int) -> None:
        while most + 1 >= len(self._known):  # the last place stays false: SEVERAL refers to it
            self._known = np.concatenate([self._known, np.zeros_like(self._known)])

    def synchronise(self, addresses: Array, *, acquire: bool, release: bool) -> None:
        """An atomic, or an ordered load or store, at these addresses."""
        places = {int(each) for each in addresses}
        if acquire:
            self._acquire(places)
        else:
            self._relaxed |= places
        if release or self._fenced:
            known = {int(each) for each in np.flatnonzero(self._known)}
            for place in places:
                self._segments.released.setdefault(place, set()).update(known)
            self._next_segment()

    def fence(self) -> None:
        """fence.acq_rel or stronger: earlier relaxed accesses acquire, later ones release."""
        self._acquire(self._relaxed)
        self._relaxed = set()
        self._fenced = True

    def _acquire(self, places: set[int]) -> None:
        for place in places:
            if released := self._segments.released.get(place):
                self._learn(released)
