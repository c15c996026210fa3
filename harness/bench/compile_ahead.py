"""Compiles the tilings of a case in parallel processes, ahead of their timing.

The processes fill Triton's cache, from which the process that times only loads: compiling one kernel takes
seconds, timing it some milliseconds.
"""

import contextlib
import dataclasses
import heapq
import queue
from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import to_builtins

from ...kernels import GpuLimits
from ..core.cases import Case
from ..core.worker_processes import Crash, WorkerPool
from .cpu_facts import threads_allowed

COMPILE_LIMIT_S = 60.0
"""A compiler that takes longer hangs; the slowest kernels take 6 s."""

MAX_PROCESSES = 32
"""Each takes about half a gigabyte of memory."""

_WORKER = f"{__package__}.compile_worker"
_WORKS = (0, 0)
"""Key of the first job, which compiles nothing: if its process dies, none works here."""


class Ahead(Protocol):
    """Gives the tilings of one case after another, each when it can be tried."""

    def begin(self, case: Case, tilings: Sequence[Any]) -> None:
        """Take the tilings of a case, in the order in which they should be tried."""

    def next(self, timeout_s: float | None) -> tuple[int, str | None] | None:
        """The place of a tiling to try, each once, and why it does not compile, if that is known.

        None if none is ready in time; a timeout of None waits for one.
        """

    def end(self) -> None:
        """Begin no further compilation for this case."""


class InOrder:
    """Tilings in order; they compile when they are tried."""

    def begin(self, case: Case, tilings: Sequence[Any]) -> None:  # noqa: ARG002, D102
        self._places = iter(range(len(tilings)))

    def next(self, timeout_s: float | None) -> tuple[int, str | None] | None:  # noqa: ARG002, D102
        place = next(self._places, None)
        return None if place is None else (place, None)

    def end(self) -> None:  # noqa: D102
        self._places = iter(())


class CompileAhead:
    """Tilings as they are compiled in processes of their own; of those ready, the first in order.

    If the processes cannot work here, tilings are given in order and compile when they are tried.

    Args:
        limits: the GPU to compile for.
        processes: how many; None means one for each processor except the one that times.
        worker: name of the module that each process runs.

    Attributes:
        processes: how many.
        problem: why the processes cannot work here, or None.
        skipped: why tilings were not compiled ahead though the processes work, such as too little memory.
    """

    def __init__(self, limits: GpuLimits, *, processes: int | None = None, worker: str = _WORKER) -> None:
        free = threads_allowed() - 1
        self.processes = processes or max(1, min(MAX_PROCESSES, free))
        self.problem: str | None = None
        self.skipped: list[str] = []
        self._limits = limits
        self._pool = WorkerPool(worker, processes=self.processes, limit_s=lambda: COMPILE_LIMIT_S)
        self._works: bool | None = None  # unknown until a process has answered
        self._crashed: list[tuple[Any, Crash]] = []
        self._case = 0
        self._ready: list[tuple[int, str | None]] = []
        self._waiting: set[int] = set()

    def begin(self, case: Case, tilings: Sequence[Any]) -> None:
        """Compile the tilings of a case, in this order; what is left of the case before is dropped."""
        self.end()
        if self._case == 0:
            self._pool.ask({_WORKS: {}})
        self._case += 1
        places = range(len(tilings))
        if self.problem is not None:
            self._ready = [(place, None) for place in places]
            return
        self._waiting = set(places)
        fixed = {"case": to_builtins(case), "limits": dataclasses.asdict(self._limits)}
        self._pool.ask(
            {(self._case, place): {**fixed, "tiling": dataclasses.asdict(tilings[place])} for place in places}
        )

    def next(self, timeout_s: float | None) -> tuple[int, str | None] | None:
        """The first in order of the tilings that are compiled: see `Ahead`."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(*self._pool.next_answer(0.0 if self._ready else timeout_s))
        return heapq.heappop(self._ready) if self._ready else None

    def end(self) -> None:
        """Begin no further compilation for this case; those that have begun end within seconds."""
        self._pool.drop()
        self._ready, self._waiting = [], set()

    def close(self) -> None:
        """End all processes."""
        self._pool.close()

    def _take(self, key: Any, answer: Any) -> None:
        if key == _WORKS:
            self._works = not isinstance(answer, Crash)
            if isinstance(answer, Crash):
                self._give_up(answer.reason)
            for crashed in self._crashed:
                self._settle(*crashed)
        elif isinstance(answer, Crash) and not self._works:
            self._crashed.append((key, answer))  # by the tiling, or as any process does here
        else:
            self._settle(key, answer)

    def _settle(self, key: Any, answer: Any) -> None:
        case, place = key
        if case == self._case and place in self._waiting:
            self._waiting.remove(place)
            reason, skipped = None, None
            if not isinstance(answer, Crash):
                reason, skipped = answer["error"], answer.get("not_compiled")
            elif answer.blameless:
                skipped = answer.reason
            else:
                reason = f"the compiler failed: {answer.reason}"
            self.skipped += [skipped] if skipped else []
            heapq.heappush(self._ready, (place, reason))

    def _give_up(self, problem: str) -> None:
        self.problem = problem
        self._pool.drop()
        for place in self._waiting:
            heapq.heappush(self._ready, (place, None))
        self._waiting = set()
