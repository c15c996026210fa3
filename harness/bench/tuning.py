"""Searches the tilings of a case on this machine's GPU by successive halving.

Each tiling runs as a separate provider, checked before and after every timing. A race of interleaved rounds
drops the slower half each round until one tiling is left. The selection biases its samples, so a duel of new
paired rounds against the default decides. Each round gives one ratio of two medians taken in succession, so
clock drift affects both.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import to_builtins

from ...kernels import gpu_limits
from ..core.cases import Case
from ..core.errors import UsageError
from ..core.record_fields import Status
from ..core.records import Roof, Row
from ..core.statistics import Summary, summarise
from .compile_ahead import Ahead, InOrder
from .device import Device, open_device
from .input_watch import InputWatch
from .providers import tunable_provider
from .runner import Bench, Blocked, arena_of, prepare, run_provider
from .tiling_cache import Entry, entry_name
from .tilings import Key
from .timer import Budget

MIN_GAIN = 0.01
"""Minimum gain, as a share of the default's time, for which another tiling is used."""

TRIAL_SHARE = 0.6
"""Share of a case's time for compiling and gating the tilings."""

RACE_SHARE = 0.85
"""Share of a case's time by which the race ends."""

TRIAL = Budget(time_limit_s=0.005, warm_up_s=0.0, enough_samples=3, max_samples=5)
ROUND = Budget(time_limit_s=0.02, warm_up_s=0.01, max_samples=50)
DUEL = Budget(time_limit_s=0.05, warm_up_s=0.02, max_samples=100)
DUEL_ROUNDS = 16

WON_SHARE = 14 / 16
"""Share of a duel's rounds to win by MIN_GAIN: 1 in 478 of equal tilings wins so many of 16."""

NO_ROOF = Roof(flop_per_s=float("inf"), bandwidth_bytes_per_s=float("inf"))
"""No case is skipped as too slow: no ceilings were measured."""

NOT_TRIED = "not tried: the time limit was over"
NO_DEFAULT = "not tried: the default did not run, or was wrong"

Progress = Callable[[float, str], None]


@dataclass(kw_only=True)
class Trial:
    """A tiling, its status and reason, and all its samples in seconds, in order."""

    tiling: Any
    status: Status = "skipped"
    reason: str | None = NOT_TRIED
    samples_s: list[float] = field(default_factory=list)

    def take(self, row: Row) -> None:
        """Add a row of this tiling."""
        self.status, self.reason = row.status, row.reason
        self.samples_s += row.samples_s

    @property
    def time_s(self) -> Summary | None:
        """Median seconds of a call with its 95% interval; None unless every row passed the gate."""
        return summarise(self.samples_s) if self.status == "ok" else None

    @property
    def median_s(self) -> float:
        """Median seconds of a call; infinite unless every row passed the gate."""
        return statistics.median(self.samples_s) if self.status == "ok" else float("inf")

    def to_json(self) -> dict[str, Any]:
        """This trial as a JSON object."""
        entry: dict[str, Any] = to_builtins(self)
        return entry | {"time_s": to_builtins(self.time_s)}


@dataclass(frozen=True, kw_only=True)
class Duel:
    """A paired comparison of the default with one other tiling: medians of each round, in seconds."""

    challenger: Any
    default_s: Sequence[float]
    challenger_s: Sequence[float]

    @property
    def ratio(self) -> Summary:
        """The challenger's time over the default's: median over the rounds, and its 95% interval."""
        return summarise([c / d for c, d in zip(self.challenger_s, self.default_s, strict=True)])

    @property
    def rounds_won(self) -> int:
        """Rounds in which the challenger was faster by MIN_GAIN."""
        pairs = zip(self.challenger_s, self.default_s, strict=True)
        return sum(c < (1 - MIN_GAIN) * d for c, d in pairs)

    @property
    def won(self) -> bool:
        """Whether the challenger is faster by more than the noise and by enough to matter."""
        return self.rounds_won >= WON_SHARE * len(self.default_s)

    def to_json(self) -> dict[str, Any]:
        """This duel as a JSON object."""
        entry: dict[str, Any] = to_builtins(self)
        return entry | {"ratio": to_builtins(self.ratio), "rounds_won": self.rounds_won, "won": self.won}


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The result of a search.

    Attributes:
        case: that was tuned.
        key: the facts of the case that its best tiling depends on.
        status: status of the default tiling; unless it is "ok", no other tiling was tried.
        reason: why it is not "ok"; None if it is.
        trials: the trials of all tilings, the default first.
        duel: the duel of the default and the fastest other tiling; None if no other passed the gate.
    """

    case: Case
    key: Key
    status: Status
    reason: str | None
    trials: Sequence[Trial]
    duel: Duel | None

    @property
    def tried(self) -> int:
        """How many of the tilings were tried, whether or not they passed."""
        return sum(trial.reason not in (NOT_TRIED, NO_DEFAULT) for trial in self.trials)

    @property
    def winner(self) -> Any:
        """The tiling that is better than the default; None if the default stays."""
        return self.duel.challenger if self.duel is not None and self.duel.won else None

    def cache_updates(self, **facts: str | None) -> dict[str, Entry | None]:
        """Updates for `TilingCache.merge`: the winner's entry, or its removal if the default stays.

        Args:
            facts: additional fields of the entry.
        """
        if self.duel is None:  # undecided: an older entry stays
            return {}
        entry = {
            "kernel": self.case.operation,
            "key": self.key,
            "tiling": dataclasses.asdict(self.duel.challenger),
            "default": dataclasses.asdict(self.trials[0].tiling),
            "time_over_default": dataclasses.asdict(self.duel.ratio),
            **facts,
        }
        return {entry_name(self.case.operation, self.key): entry if self.duel.won else None}

    def to_json(self) -> dict[str, Any]:
        """This result as a JSON object. Provenance: measured."""
        return {
            "case": self.case.id,
            "kernel": self.case.operation,
            "key": self.key,
            "provenance": "measured",
            "status": self.status,
            "reason": self.reason,
            "tried": {"tilings": self.tried, "of": len(self.trials)},
            "default": dataclasses.asdict(self.trials[0].tiling),
            "winner": to_builtins(self.winner),
            "duel": None if self.duel is None else self.duel.to_json(),
            "trials": [trial.to_json() for trial in self.trials],
        }


def open_gpu(case: Case) -> Device:
    """The first CUDA GPU.

    Raises:
        UsageError: there is none, or compiled Triton kernels cannot run this case on it.
    """
    device = open_device("auto")
    provider, _ = tunable_provider(case.operation)
    if device.kind != "cuda":
        problem = "needs a CUDA GPU and torch finds none here"
    elif refusal := provider.refuses(case, device):
        problem = refusal
    else:
        return device
    raise UsageError(
        f"tune: {problem}; `decodetax inspect --gpu NAME` bounds the kernels on a GPU that is not here"
    )


def tilings_of(cases: Sequence[Case], device: Device) -> int:
    """How many tilings a search of these cases may try."""
    limits = gpu_limits(device.torch_device)
    tunables = [(case, tunable_provider(case.operation)[1]) for case in cases]
    return sum(len(t.candidates(case, t.default(case, limits), limits)) for case, t in tunables)


def tune(
    cases: Sequence[Case],
    device: Device,
    *,
    time_limit_s: float,
    progress: Progress,
    ahead: Ahead | None = None,
    now_s: Callable[[], float] = time.perf_counter,
) -> Iterator[Tuned]:
    """Tune cases one after another, each with an equal share of the time left.

    Args:
        cases: cases of operations with a tunable provider.
        device: runs and times them.
        time_limit_s: limit for all cases together; a measurement that has begun is finished.
        progress: takes the share that is done, 0 to 1, and the case.
        ahead: compiles the tilings before they are timed; None compiles each when it is tried.
        now_s: the wall clock in seconds.
    """
    arena = arena_of(cases, device, 0)
    end_s = now_s() + time_limit_s
    for index, case in enumerate(cases):
        limit_s = max(0.0, end_s - now_s()) / (len(cases) - index)

        def report(share: float, index: int = index, case: Case = case) -> None:
            progress((index + min(share, 0.99)) / len(cases), case.id)

        bench = Bench(device=device, arena=arena, budget=TRIAL, roof=NO_ROOF)
        yield tune_case(case, bench, time_limit_s=limit_s, report=report, ahead=ahead, now_s=now_s)
        device.release()


def tune_case(
    case: Case,
    bench: Bench,
    *,
    time_limit_s: float,
    report: Callable[[float], None] = lambda _share: None,
    ahead: Ahead | None = None,
    now_s: Callable[[], float] = time.perf_counter,
) -> Tuned:
    """Search the tilings of one case."""
    provider, tunable = tunable_provider(case.operation)
    limits = gpu_limits(bench.device.torch_device)
    default = tunable.default(case, limits)
    trials = [Trial(tiling=tiling) for tiling in tunable.candidates(case, default, limits)]
    ahead = ahead or InOrder()
    start_s = now_s()
    ahead.begin(case, [trial.tiling for trial in trials[1:]])

    def elapsed() -> float:
        return (now_s() - start_s) / time_limit_s if time_limit_s > 0 else 1.0

    try:
        copies, gate = prepare(case, bench)
        watch = InputWatch(copies, fully=True)
    except Blocked as blocked:
        trials[0].status, trials[0].reason, duel = blocked.status, blocked.reason, None
    else:

        def run(trial: Trial, budget: Budget) -> None:
            nonlocal copies, gate, watch
            report(elapsed())
            tiled, at = provider.with_tiling(trial.tiling), dataclasses.replace(bench, budget=budget)
            trial.take(run_provider(case, tiled, copies, gate, at, watch=watch))
            if watch.found:
                bench.refill()  # no later tiling gets altered inputs
                copies, gate = prepare(case, bench)
                watch = InputWatch(copies, fully=True)

        duel = _search(trials, run, elapsed, ahead, time_limit_s)
    ahead.end()
    status, reason = trials[0].status, trials[0].reason
    if status != "ok":
        for trial in trials[1:]:
            trial.reason = NO_DEFAULT if trial.reason == NOT_TRIED else trial.reason
    key = tunable.key(case)
    return Tuned(case=case, key=key, status=status, reason=reason, trials=trials, duel=duel)


Run = Callable[[Trial, Budget], None]


def _search(
    trials: Sequence[Trial], run: Run, elapsed: Callable[[], float], ahead: Ahead, time_limit_s: float
) -> Duel | None:
    """Try each tiling, race those that pass, and compare the fastest with the default, the first trial."""
    default, *others = trials
    run(default, ROUND)
    for tried in range(len(others)):
        left = TRIAL_SHARE - elapsed()
        if default.status != "ok" or (tried and left < 0):
            break
        found = ahead.next(left * time_limit_s if tried else None)
        if found is None:
            break
        place, problem = found
        if problem is None:
            run(others[place], TRIAL)
        else:
            others[place].status, others[place].reason = "failed", problem
    ahead.end()  # the race and the duel are timed without compilers beside them
    duel = None
    while default.status == "ok" and duel is None and (best := _race(others, run, elapsed)) is not None:
        duel = _duel(default, best, run)  # None if one of the two failed in it
    return duel


def _race(trials: Sequence[Trial], run: Run, elapsed: Callable[[], float]) -> Trial | None:
    """The fastest trial that passes; the slower half is dropped each round."""
    alive = [trial for trial in trials if trial.status == "ok"]
    while len(alive) > 1 and elapsed() < RACE_SHARE:
        for trial in alive:
            run(trial, ROUND)
        alive = sorted(alive, key=lambda trial: trial.median_s)[: (len(alive) + 1) // 2]
    best = min(alive, key=lambda trial: trial.median_s, default=None)
    return best if best is not None and best.status == "ok" else None


def _duel(default: Trial, challenger: Trial, run: Run) -> Duel | None:
    """Alternating rounds of the two tilings, each first in every second round; None if one fails."""
    medians: dict[str, list[float]] = {"default": [], "challenger": []}
    pair = [("default", default), ("challenger", challenger)]
    for _ in range(DUEL_ROUNDS):
        for name, trial in pair:
            before = len(trial.samples_s)
            run(trial, DUEL)
            if trial.status != "ok":
                return None
            medians[name].append(summarise(trial.samples_s[before:]).median)
        pair.reverse()
    return Duel(
        challenger=challenger.tiling, default_s=medians["default"], challenger_s=medians["challenger"]
    )
