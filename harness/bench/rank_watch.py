"""How the ranks of a run end together: a thread in each rank, and words that they leave in torchrun's store.

The main thread may wait in a collective whose other ranks are gone, where no signal reaches it. The store is
that of torchrun's agent, so it outlives any rank.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..core.errors import FailureError
from ..core.rank_process import rank_and_size

TICK_S = 0.3
"""Seconds between two looks at the store and at the parent process."""

REPORT_S = 3.0
"""Seconds within which each rank that still runs says so once the run is over: several ticks."""

GRACE_S = 3.0
"""Seconds that rank 0 has to leave a call after a signal; then it ends from the thread."""

ALONE_S = 0.2
"""Two ranks that got SIGTERM within this time got it from the same sender, torchrun or a scheduler."""

STORE_TIMEOUT_S = 10.0
"""Seconds to reach the store with what a rank says last."""

ENDING = frozenset({signal.SIGTERM, signal.SIGHUP})
"""Signals that end every rank; SIGINT, which a terminal sends to all of them, is rank 0's affair."""

OVER = "over"
_BROKEN_STORE = RuntimeError  # DistNetworkError and DistStoreError are such


@dataclass(frozen=True)
class Report:
    """What a rank said when it ended.

    Attributes:
        kind: "failed" with the reason as text; "terminated" with the time, in seconds of the host's
            monotonic clock, and the name of the signal; "left", because a message failed, with its count
            of messages and why; or "ended", as the run was over, with that count.
        text: see kind.
    """

    kind: str
    text: str


class Watch:
    """The thread of one rank.

    Args:
        store: the ranks' store, a client of its own.
        rank: this rank.
        progress: this rank's count of messages so far: a rank that hangs is behind the others.

    Attributes:
        terminated_s: when this rank got one of ENDING, in seconds of the host's monotonic clock; None if it
            did not.
        at_forced_end: on rank 0, called in the thread if a signal does not reach the main thread in time;
            ends the process.
    """

    def __init__(self, store: Store, rank: int, progress: Callable[[], int]) -> None:
        self.store, self.rank = store, rank
        self.terminated_s: float | None = None
        self.at_forced_end: Callable[[], None] = lambda: os._exit(1)
        self._progress, self._armed = progress, True
        self._wakeup, self._signalled = socket.socketpair()
        self._signalled.setblocking(False)
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        interrupt = self._interrupt if rank == 0 else signal.SIG_IGN
        signal.signal(signal.SIGINT, interrupt)
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, self._interrupt)
        self._parent = os.getppid()
        threading.Thread(target=self._run, name="decodetax-ranks", daemon=True).start()

    @property
    def orphaned(self) -> bool:
        """Whether the process that started this one has ended."""
        return os.getppid() != self._parent

    def disarm(self) -> None:
        """From here on signals no longer interrupt: what is left is to write and print."""
        self._armed = False

    def report(self, kind: str, text: str) -> None:
        """Say how this rank ends; only the first report counts."""
        with contextlib.suppress(_BROKEN_STORE):
            self.store.compare_set(f"report/{self.rank}", "", f"{kind} {text}")

    def over(self) -> bool:
        """Whether rank 0 has said that the run is over."""
        with contextlib.suppress(_BROKEN_STORE):
            return self.store.check([OVER])
        return True

    def reports(self, size: int, gone: Callable[[int], bool]) -> dict[int, Report]:
        """Say that the run is over, and wait for the reports of the other ranks.

        Args:
            size: number of ranks.
            gone: whether a rank's process has ended, so that only a report from before can be found.
        """
        found: dict[int, Report] = {}
        waiting, end_s = set(range(1, size)), time.monotonic() + REPORT_S
        with contextlib.suppress(_BROKEN_STORE):
            self.store.set(OVER, "1")
            while waiting and time.monotonic() < end_s:
                for rank in sorted(waiting):
                    ended = gone(rank)
                    if self.store.check([f"report/{rank}"]):
                        kind, _, text = self.store.get(f"report/{rank}").decode().partition(" ")
                        found[rank] = Report(kind, text)
                    elif not ended:
                        continue
                    waiting.discard(rank)
                time.sleep(0.02)
        return found

    def _interrupt(self, number: int, _frame: object) -> None:
        del number
        if self.rank == 0 and self._armed:
            self._armed = False
            raise KeyboardInterrupt

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._wakeup], [], [], TICK_S)
            if ready:
                numbers = self._wakeup.recv(64)
                if not ENDING.isdisjoint(numbers) and self.terminated_s is None:
                    self.terminated_s = time.monotonic()
                if self.rank == 0:
                    self._end_in_time()
                elif found := ENDING.intersection(numbers):
                    self._end_terminated(signal.Signals(min(found)))
            if self._over():
                self._end_orphaned()

    def _over(self) -> bool:
        """Whether the run is over, or what started this rank is gone."""
        try:
            return self.orphaned or (self.rank > 0 and self.store.check([OVER]))
        except _BROKEN_STORE:
            return True

    def _end_in_time(self) -> None:
        """Rank 0 got a signal: end it here unless its main thread leaves what it does."""
        end_s = time.monotonic() + GRACE_S
        while self._armed and time.monotonic() < end_s:
            time.sleep(0.05)
        if self._armed:
            self._armed = False
            self.at_forced_end()

    def _end_terminated(self, by: signal.Signals) -> None:
        self.report("terminated", f"{time.monotonic()} {by.name}")
        time.sleep(2 * ALONE_S)
        os._exit(128 + by)

    def _end_orphaned(self) -> None:
        if self.rank == 0:
            if self._armed:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(TICK_S)
        else:
            if self.orphaned:
                self.report("failed", "the process that started it ended")
            self.report("ended", str(self._progress()))
            os._exit(0)


def open_store(name: str, timeout_s: float = STORE_TIMEOUT_S) -> Store:
    """A client of its own of the store that torchrun's environment names.

    Raises:
        FailureError: it cannot be reached in time.
    """
    try:
        store = next(iter(rendezvous("env://", timeout=timedelta(seconds=timeout_s))))[0]
    except RuntimeError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise FailureError(
            f"the ranks did not meet at MASTER_ADDR and MASTER_PORT, {place}, within {timeout_s:g} s"
        ) from error
    return PrefixStore(f"decodetax/{name}", store)


def report_failure(reason: str) -> None:
    """Say in the store why this rank could not join, for rank 0 to find."""
    found = rank_and_size()
    if found is not None:
        with contextlib.suppress(RuntimeError):  # FailureError is one
            open_store("run").compare_set(f"report/{found[0]}", "", f"failed {reason}")
