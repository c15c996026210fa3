"""Memory sanitizer of interpreted launches: out-of-bounds accesses, data races, uninitialised reads.

These faults need not show in a result: the interpreter runs programs (CTAs) one after another, and an
out-of-bounds address often lies in other mapped memory. Shadow memory therefore keeps, for each granule that
a launch accesses, the epoch of the last load, store and atomic. An epoch is the part of a program between two
releasing atomics. Two accesses are ordered if one program made both, or if the later program acquired, with
an atomic, what the earlier program released after its access. This is the happens-before relation of
FastTrack (Flanagan and Freund, PLDI 2009), for programs in the order in which the interpreter ran them.
"""

from __future__ import annotations

import functools
import mmap
from typing import TYPE_CHECKING, Literal

import numpy as np

from .traffic import SECTOR_BYTES, TensorTraffic

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .uninitialized import UninitializedShadow

    Program = tuple[int, int, int]
    Offsets = NDArray[np.int64]
    Epochs = NDArray[np.int32]
    Fault = Literal["bounds", "race", "uninitialized"]
    Access = Literal["load", "store", "atomic"]

_PAST_TENSE = {"load": "read", "store": "wrote", "atomic": "atomically updated"}
_MAX_LOGGED_GRANULES = 1 << 22
_HUGE_PAGE_BYTES = 1 << 21


class SanitizerError(RuntimeError):
    """A launch made an access that is out of bounds, a data race, or a read of uninitialised memory.

    Attributes:
        kind: "bounds", "race" or "uninitialized".
        tensor: parameter name of the tensor; empty if the address lies in no known tensor.
        program: grid index of the program that made the access.
        byte_offset: offset of the access in the tensor; an address if the tensor is unknown.
    """

    def __init__(self, message: str, *, kind: Fault, tensor: str, program: Program, byte_offset: int) -> None:
        super().__init__(message)
        self.kind: Fault = kind
        self.tensor = tensor
        self.program = program
        self.byte_offset = byte_offset


class HappensBefore:
    """Which epochs of a launch are ordered before the running program.

    A set of epochs is an integer with a bit for each. Epoch 0 stands for "no access".
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.programs: list[Program] = [(-1, -1, -1)]
        """Grid index of the program of each epoch."""
        self._first_epoch = 0
        self._acquired = 0
        self._released: dict[int, int] = {}

    @property
    def program(self) -> Program:
        """Grid index of the running program."""
        return self.programs[self.epoch]

    def start_program(self, program: Program) -> None:
        """Start the next program, which is ordered after no other."""
        self._start_epoch(program)
        self._first_epoch = self.epoch
        self._acquired = 0

    def acquire(self, releases: Epochs) -> None:
        """Order the running program after everything that was released at the end of these epochs."""
        self._acquired |= self._released_by(releases)

    def release(self, releases: Epochs) -> int:
        """Release all accesses that the running program made or acquired, and those of earlier `releases`.

        Returns:
            The epoch that the release ends.
        """
        ended = self.epoch
        own = (1 << (ended + 1)) - (1 << self._first_epoch)
        self._released[ended] = own | self._acquired | self._released_by(releases)
        self._start_epoch(self.program)
        return ended

    def first_unordered(self, epochs: Epochs) -> int | None:
        """Position of the first epoch of another program that is not ordered before the running one."""
        others = epochs.view(np.uint32) - np.uint32(1) < self._first_epoch - 1  # 0 wraps to the largest
        if not others.any():
            return None
        if not self._acquired:
            return int(others.argmax())
        for epoch in np.unique(epochs[others]).tolist():
            if not self._acquired >> epoch & 1:
                return int((epochs == epoch).argmax())
        return None

    def _released_by(self, releases: Epochs) -> int:
        return functools.reduce(
            lambda epochs, ended: epochs | self._released.get(ended, 0), np.unique(releases).tolist(), 0
        )

    def _start_epoch(self, program: Program) -> None:
        self.epoch = len(self.programs)
        self.programs.append(program)


class StorageShadow:
    """Shadow memory of a storage, in granules: the smallest elements accessed so far.

    Args:
        size_bytes: of the storage.
        granule_bytes: size of a granule at first.
        uninitialized: which granules nothing has written; None if the storage is not tracked.
    """

    def __init__(
        self, size_bytes: int, granule_bytes: int, uninitialized: UninitializedShadow | None
    ) -> None:
        self.granule_bytes, self.uninitialized = granule_bytes, uninitialized
        self.sectors = -(-size_bytes // SECTOR_BYTES)
        self.tensors: list[TensorShadow] = []
        self.releases: Epochs | None = None
        """Epoch of the last releasing atomic on each granule."""
        if uninitialized is not None:
            self.granule_bytes = max(granule_bytes, uninitialized.granule_bytes)
            self.refine(min(granule_bytes, uninitialized.granule_bytes))

    @property
    def granules_per_sector(self) -> int:
        """Granules of a 32-byte sector."""
        return SECTOR_BYTES // self.granule_bytes

    def granules(self, offsets: Offsets, size_bytes: int) -> Offsets:
        """Granules of elements of `size_bytes` at these byte offsets from the start of the storage."""
        bits = int(offsets[0]) if offsets.size == 1 else int(np.bitwise_or.reduce(offsets))
        aligned_bytes = size_bytes
        while bits % aligned_bytes:
            aligned_bytes //= 2
        if aligned_bytes < self.granule_bytes:
            self.refine(aligned_bytes)
        return _ranges(offsets >> (self.granule_bytes.bit_length() - 1), size_bytes // self.granule_bytes)

    def refine(self, granule_bytes: int) -> None:
        """Split the granules into granules of `granule_bytes`, if those are smaller."""
        if self.uninitialized is not None:
            self.uninitialized.refine(granule_bytes)
        if granule_bytes >= self.granule_bytes:
            return
        factor = self.granule_bytes // granule_bytes
        for tensor in self.tensors:
            tensor.refine(factor)
        if self.releases is not None:
            self.releases = np.repeat(self.releases, factor)
        self.granule_bytes = granule_bytes

    def no_accesses(self) -> Epochs:
        """An epoch of 0 for each granule of all sectors."""
        return _zeros(self.sectors * self.granules_per_sector)


class TensorShadow:
    """A tensor argument of a launch: its place in a storage, the epochs of its accesses, and its traffic.

    Args:
        name: name of the parameter.
        storage: shadow of the storage that the tensor views.
        offset: bytes from the start of the storage to the first element.
        span: bytes from the start of the first element to the end of the last.
        element_bytes: bytes of an element, for messages.
        addressed: for each element of the span, whether the view's strides address it; None if all are.
        order: happens-before relation of the launch.
    """

    def __init__(
        self,
        *,
        name: str,
        storage: StorageShadow,
        offset: int,
        span: int,
        element_bytes: int,
        addressed: NDArray[np.bool_] | None,
        order: HappensBefore,
    ) -> None:
        self.name, self.storage, self.offset, self.span = name, storage, offset, span
        self.bytes_requested = self.bytes_written = self.sectors_requested = self.sectors_written = 0
        self.addressed = addressed
        self._element_bytes = element_bytes
        self._order = order
        self._epochs: dict[Access, Epochs] = {}
        # Loads of the running program. They replace those of earlier programs only when it ends: its own
        # stores are checked against the earlier loads.
        self._load_log: list[tuple[int, Offsets]] = []
        self._logged_granules, self._max_logged_granules = 0, _MAX_LOGGED_GRANULES
        self._sector_lanes: Epochs | None = None
        storage.tensors.append(self)
        # Includes this tensor. Views that do not overlap cannot conflict.
        self._overlapping = [other for other in storage.tensors if self._overlaps(other)]
        for other in self._overlapping:
            if other is not self:
                other._overlapping.append(self)  # noqa: SLF001  (of the same class)

    def check_bounds(self, offsets: NDArray[np.uint64], size_bytes: int, verb: str) -> None:
        """Check elements of `size_bytes` at these byte offsets from the first element.

        Raises:
            SanitizerError: one lies outside the tensor, or in a gap between the elements of the view.
        """
        faulty = offsets > self.span - size_bytes if self.span >= size_bytes else np.ones(offsets.shape, bool)
        where = f"outside the {self.span} bytes of the tensor"
        if self.addressed is not None and not faulty.any():
            faulty = ~self.addressed[offsets.view(np.int64) // self._element_bytes]
            where = "in a gap between the elements of the view"
        if faulty.any():
            raise self._error("bounds", int(offsets[faulty][0].astype(np.int64)), verb, where)

    def load(self, granules: Offsets, *, atomic: bool = False, uses_value: bool = True) -> None:
        """Check and record a load, or the load of an atomic.

        Raises:
            SanitizerError: nothing has written a granule, or an unordered program wrote it.
        """
        verb = "updates" if atomic else "reads"
        shadow = self.storage.uninitialized
        if shadow is not None and uses_value:
            uninitialized = shadow.mask[granules]
            if uninitialized.any():
                offset = self._byte_offset(granules[int(uninitialized.argmax())])
                raise self._error("uninitialized", offset, "reads", "which nothing has written")
        self._check_order("store", granules, verb)
        if not atomic:
            self._load_log.append((self._order.epoch, granules))
            self._logged_granules += granules.size
            if self._logged_granules > self._max_logged_granules:
                self._compact_load_log()

    def store(self, granules: Offsets, *, atomic: bool = False) -> None:
        """Check and record a store, or the store of an atomic.

        Raises:
            SanitizerError: an unordered program accessed a granule, and one of the two was not atomic.
        """
        conflicting: tuple[Access, ...] = ("store",) if atomic else ("store", "load", "atomic")
        for access in conflicting:
            self._check_order(access, granules, "updates" if atomic else "writes")
        self._epochs_of("atomic" if atomic else "store")[granules] = self._order.epoch
        if self.storage.uninitialized is not None:
            self.storage.uninitialized.mask[granules] = False

    def acquire(self, granules: Offsets) -> None:
        """Order the program after the releases at these granules, before its acquiring atomic."""
        if self.storage.releases is not None:
            self._order.acquire(self.storage.releases[granules])

    def release(self, granules: Offsets) -> None:
        """Release the program's accesses at these granules, after its releasing atomic."""
        if self.storage.releases is None:
            self.storage.releases = self.storage.no_accesses()
        self.storage.releases[granules] = self._order.release(self.storage.releases[granules])

    def count_sectors(self, granules: Offsets) -> int:
        """Distinct sectors that one instruction of a program accesses."""
        sectors = granules >> (self.storage.granules_per_sector.bit_length() - 1)
        if self._sector_lanes is None:
            self._sector_lanes = _zeros(self.storage.sectors)
        if sectors.size == 1:
            self._sector_lanes[sectors] = 1
            return 1
        lanes = _lane_numbers(sectors.size)
        self._sector_lanes[sectors] = lanes  # each sector keeps its last lane
        return int(np.count_nonzero(self._sector_lanes[sectors] == lanes))

    def end_program(self) -> None:
        """Record the loads of the program that ends, so that later programs are checked against them."""
        if self._load_log:
            loads = self._epochs_of("load")
            for epoch, granules in self._load_log:
                loads[granules] = epoch
            self._load_log.clear()
            self._logged_granules = 0

    def traffic(self) -> TensorTraffic:
        """The tensor's traffic in the programs that have ended."""
        if self._sector_lanes is None:
            return TensorTraffic()
        # Only the sectors that were accessed: a large cache has many.
        sectors = np.flatnonzero(self._sector_lanes != 0)
        none = np.zeros((sectors.size, self.storage.granules_per_sector), np.bool_)
        accesses: tuple[Access, ...] = ("load", "store", "atomic")
        loaded, stored, atomic = (
            self._epochs[access].reshape(-1, none.shape[1])[sectors] != 0 if access in self._epochs else none
            for access in accesses
        )
        read, written, either = (
            int(np.count_nonzero(granules)) * self.storage.granule_bytes
            for granules in (loaded | atomic, stored | atomic, loaded | stored | atomic)
        )
        return TensorTraffic(
            bytes_requested=self.bytes_requested,
            bytes_written=self.bytes_written,
            bytes_distinct=either,
            bytes_read_distinct=read,
            bytes_written_distinct=written,
            sectors=sectors.size,
            sectors_requested=self.sectors_requested,
            sectors_written=self.sectors_written,
        )

    def refine(self, factor: int) -> None:
        """Split each granule into `factor` granules."""
        self._epochs = {access: np.repeat(epochs, factor) for access, epochs in self._epochs.items()}
        self._load_log = [(epoch, _ranges(granules * factor, factor)) for epoch, granules in self._load_log]

    def _epochs_of(self, access: Access) -> Epochs:
        if access not in self._epochs:
            self._epochs[access] = self.storage.no_accesses()
        return self._epochs[access]

    def _overlaps(self, other: TensorShadow) -> bool:
        return self.offset < other.offset + other.span and other.offset < self.offset + self.span

    def _compact_load_log(self) -> None:
        """Keep each granule that the program loaded once, with its last epoch."""
        last = self.storage.no_accesses()
        for epoch, granules in self._load_log:
            last[granules] = epoch
        kept = np.flatnonzero(last)
        self._load_log = [(epoch, kept[last[kept] == epoch]) for epoch in np.unique(last[kept]).tolist()]
        self._logged_granules = kept.size
        self._max_logged_granules = max(_MAX_LOGGED_GRANULES, 2 * kept.size)

    def _check_order(self, access: Access, granules: Offsets, verb: str) -> None:
        """Raise if an unordered program made such an access to one of the granules."""
        for tensor in self._overlapping:
            epochs = tensor._epochs.get(access)  # noqa: SLF001  (of the same class)
            if epochs is None:
                continue
            position = self._order.first_unordered(epochs[granules])
            if position is None:
                continue
            earlier = self._order.programs[int(epochs[granules[position]])]
            through = "" if tensor is self else f" through {tensor.name}"
            what = f"which program {earlier} {_PAST_TENSE[access]}{through}: a race, no atomic orders the two"
            raise self._error("race", self._byte_offset(granules[position]), verb, what)

    def _byte_offset(self, granule: np.int64) -> int:
        return int(granule) * self.storage.granule_bytes - self.offset

    def _error(self, kind: Fault, byte_offset: int, verb: str, what: str) -> SanitizerError:
        program, element = self._order.program, byte_offset // self._element_bytes
        return SanitizerError(
            f"{self.name}: program {program} {verb} byte offset {byte_offset} (element {element}), {what}",
            kind=kind,
            tensor=self.name,
            program=program,
            byte_offset=byte_offset,
        )


def _zeros(count: int) -> Epochs:
    """Zeros; only pages that are written take memory and time."""
    # numpy asks for huge pages, and the system clears all 2 MiB of one at the first access.
    if count < _HUGE_PAGE_BYTES // 4:
        return np.zeros(count, np.int32)
    return np.frombuffer(mmap.mmap(-1, 4 * count), np.int32)


@functools.lru_cache(maxsize=8)
def _lane_numbers(count: int) -> Epochs:
    """The numbers from 1 to count."""
    lanes = np.arange(1, count + 1, dtype=np.int32)
    lanes.flags.writeable = False  # all callers share one array
    return lanes


def _ranges(first: Offsets, count: int) -> Offsets:
    """Each of `first` and the count - 1 numbers after it."""
    return first if count == 1 else (first[:, None] + np.arange(count)).reshape(-1)
