"""mbarriers: objects in shared memory that count arrivals and bytes copied, phase by phase."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .lanes import SHARED_BASE, Array, CtaLanes, Mask
from .shared_memory import Clocks, SharedMemory
from .violations import Kind

_MBARRIER_BYTES = 8
_MAX_POLLS = 1000


class StuckError(Exception):
    """A CTA waits for what never comes; it is reported as a violation, and the launch ends."""


@dataclass
class Mbarrier:
    """One mbarrier.

    Attributes:
        count: arrivals of each phase.
        pending: arrivals that this phase lacks.
        clock: what warps that arrived, and copies, have done; it is known to who waits.
        made_by: the warp that initialised it, and its clock then.
        pending_bytes: bytes that this phase expects and that have not landed.
        phase: completed phases.
        polls: whether a wait for this phase has been tried.
        copies: each lands when called, in order; products of tcgen05 among them.
    """

    count: int
    pending: int
    clock: Array
    made_by: tuple[int, int]
    pending_bytes: int = 0
    phase: int = 0
    polls: int = 0
    copies: deque[Callable[[], None]] = field(default_factory=deque)

    def advance(self) -> None:
        """Completes the phase if nothing is pending."""
        if self.pending == 0 and self.pending_bytes == 0:
            self.phase, self.pending = self.phase + 1, self.count


class Arrival:
    """An arrival that comes when something asynchronous is complete.

    Args:
        barrier: where it arrives.
        clocks: of the CTA.
        complete: completes it; called with the arrival before a wait takes it.
    """

    def __init__(self, barrier: Mbarrier, clocks: Clocks, complete: Callable[["Arrival"], None]) -> None:
        self._barrier, self._clocks, self._complete = barrier, clocks, complete

    def __call__(self) -> None:
        """Arrives, since a wait can be put off no longer."""
        self._complete(self)
        self._arrive()

    def arrive_before_wait(self) -> None:
        """Arrives, since what came after it is complete."""
        self._barrier.copies.remove(self)
        self._arrive()
        self._barrier.advance()

    def _arrive(self) -> None:
        self._barrier.clock[-1] = self._clocks.now_asynchronous
        self._barrier.pending -= 1


class Mbarriers:
    """The mbarriers of one CTA by address.

    Attributes:
        failures: waits so far that found their phase incomplete.
    """

    def __init__(self, lanes: CtaLanes, shared: SharedMemory) -> None:
        self._lanes, self._shared = lanes, shared
        self._at: dict[int, Mbarrier] = {}
        self.failures = 0
        self._failed_polls = 0  # since the last wait that succeeded

    def find(self, address: int, warp: int, line: int) -> Mbarrier | None:
        """The mbarrier at an address; reports one that does not exist or that the warp cannot know of."""
        barrier = self._at.get(address)
        if barrier is None:
            self._report(line, "never initialised", address, warp)
        elif barrier.made_by[1] > self._shared.clocks.of[warp, barrier.made_by[0]]:
            self._report(line, "used with no barrier after its initialisation", address, warp)
        return barrier

    def _report(self, line: int, detail: str, address: int, warp: int) -> None:
        self._lanes.report(Kind.MBARRIER, line, detail, shared_address=address - SHARED_BASE, warp=warp)

    def init(self, address: Array, count: Array, mask: Mask, line: int) -> None:
        """mbarrier.init."""
        for lane in self._lanes.active(mask):
            warp, at, arrivals = int(self._lanes.warp[lane]), int(address[lane]), int(count[lane])
            last = SHARED_BASE + self._shared.size - _MBARRIER_BYTES
            if at % _MBARRIER_BYTES or not SHARED_BASE <= at <= last:
                self._report(line, "misaligned or outside shared memory", at, warp)
            clocks = self._shared.clocks
            made_by = (warp, int(clocks.of[warp, warp]))
            self._at[at] = Mbarrier(arrivals, arrivals, np.zeros(clocks.of.shape[1], np.int32), made_by)

    def invalidate(self, address: Array, mask: Mask, line: int) -> None:
        """mbarrier.inval."""
        for lane in self._lanes.active(mask):
            at, warp = int(address[lane]), int(self._lanes.warp[lane])
            barrier = self.find(at, warp, line)
            if barrier is not None and barrier.copies:
                self._report(line, "invalidated with copies in flight", at, warp)
            self._at.pop(at, None)

    def arrive(self, address: Array, count: Array, copied_bytes: Array, mask: Mask, line: int) -> None:
        """mbarrier.arrive, with the bytes that copies of this phase will bring (`expect_tx`)."""
        clocks = self._shared.clocks
        for lane in self._lanes.active(mask):
            warp = int(self._lanes.warp[lane])
            barrier = self.find(int(address[lane]), warp, line)
            if barrier is None:
                continue
            barrier.pending_bytes += int(copied_bytes[lane])
            barrier.pending -= int(count[lane])
            barrier.clock = np.maximum(barrier.clock, clocks.of[warp])
            if barrier.pending < 0:
                self._report(line, f"too many arrivals in phase {barrier.phase}", int(address[lane]), warp)
            barrier.advance()
            clocks.of[warp, warp] += 1  # what the warp does from now on comes later

    def arrive_when(
        self, address: int, warp: int, complete: Callable[["Arrival"], None], line: int
    ) -> "Arrival | None":
        """An arrival that comes when something asynchronous is; None, and reported, at no mbarrier."""
        barrier = self.find(address, warp, line)
        if barrier is None:
            return None
        arrival = Arrival(barrier, self._shared.clocks, complete)
        barrier.copies.append(arrival)
        return arrival

    def wait(self, address: Array, parity: Array, mask: Mask, line: int) -> Array:
        """mbarrier.try_wait.parity: whether the phase of that parity is complete.

        The first try finds it incomplete. What is in flight lands at the second, as late as it can.

        Raises:
            StuckError: nothing will complete it.
        """
        done = np.zeros(self._lanes.threads, np.bool_)
        lanes = self._lanes.active(mask)
        for at in np.unique(address[lanes]):
            waiting = lanes[address[lanes] == at]
            warps = np.unique(self._lanes.warp[waiting])
            barrier = [self.find(int(at), int(warp), line) for warp in warps].pop()
            if barrier is None:
                done[waiting] = True
                continue
            wanted = int(parity[waiting[0]]) & 1
            self._poll(barrier, wanted)
            if barrier.phase & 1 != wanted:
                done[waiting] = True
                self._failed_polls = 0
                self._shared.clocks.of[warps] = np.maximum(self._shared.clocks.of[warps], barrier.clock)
                continue
            self._failed_polls += 1
            self.failures += 1
            if self._failed_polls > _MAX_POLLS:
                missing = f"{barrier.pending} arrivals and {barrier.pending_bytes} bytes are missing"
                self._lanes.report(
                    Kind.STUCK, line, missing, shared_address=int(at) - SHARED_BASE, warp=int(warps[0])
                )
                raise StuckError
        return done

    @staticmethod
    def _poll(barrier: Mbarrier, wanted: int) -> None:
        if barrier.phase & 1 != wanted:
            return
        if barrier.polls == 0:
            barrier.polls = 1
            return
        barrier.polls = 0
        while barrier.copies and barrier.phase & 1 == wanted:
            barrier.copies.popleft()()
            barrier.advance()
