"""One row in two runs: the ratio of its times (the inverse of the speedup), its 95% interval, the verdict.

The medians of its rounds give a row's level in each run. Two levels give the ratio and Welch's interval,
widened by changes of the machine itself. p is the chance of such a ratio if the times are the same; corrected
for the number of rows (Holm) it gives the verdict.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..core.records import Row
from ..core.statistics import MIN_ROUNDS, Level, autocorrelation, holm, level, round_medians, t_tail

SAME_WITHIN = 0.02
"""Times closer than this are the same. The timer ends a warm-up when two medians differ by less than 2%, so
more samples do not determine the level of a run better than that."""

ERROR = 0.05
"""Chance of any wrong "faster" or "slower" in a comparison, and of a ratio outside its interval."""

STEADY_THROTTLING = frozenset({"power cap"})
"""Throttling that leaves times comparable if both runs have it: the clock settles at the power limit, and it
is recorded. Throttling by heat or faults comes and goes between two readings."""

LARGEST_LOG = 700.0
"""Largest logarithm whose exponential is taken; it is about that of the largest float."""

Verdict = Literal["faster", "slower", "same", "not sure"]


@dataclass(frozen=True, kw_only=True)
class Control:
    """A change of the machine itself between the runs, shown by something that both measured.

    Attributes:
        name: a ceiling or the SM clock.
        least, most: bounds of the factor by which this change alone makes times longer, after over before.
    """

    name: str
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class RowChange:
    """A row that is ok in both runs.

    Attributes:
        before_s, after_s: geometric mean of the rounds' medians; with too few rounds, the median of all
            samples.
        rounds_before, rounds_after: number of rounds of the samples.
        low, high: 95% interval of the ratio, widened by the controls; None with too few rounds.
        p: chance of such a ratio if the true ratio is 1 within 2%; None if no verdict is possible.
        corrected_p: p corrected for the number of rows with p (Holm).
        reason: reason for the verdict, or why it is not sure.
        changes: other differences of the row: variant, tiling, method of timing, copies of the inputs.
    """

    case: str
    provider: str
    before_s: float
    after_s: float
    rounds_before: int
    rounds_after: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    corrected_p: float | None = None
    verdict: Verdict = "not sure"
    reason: str = ""
    changes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Time after over time before."""
        return self.after_s / self.before_s


def _round_logs(row: Row) -> list[float]:
    """The logarithm of each round's median, in the order of rounds."""
    rounds = row.rounds or (0,) * len(row.samples_s)
    return [math.log(median_s) for median_s in round_medians(row.samples_s, rounds)]


def round_autocorrelation(rows: Iterable[Row]) -> float:
    """Lag-1 autocorrelation of the rounds of a run, from 0 to below 1: the common one of its rows."""
    return autocorrelation(_round_logs(row) for row in rows if row.samples_s)


def compare_row(
    old: Row, new: Row, autocorrelations: tuple[float, float], controls: Sequence[Control], blocked: str
) -> RowChange:
    """A row's ratio, interval and p, without a verdict yet.

    Args:
        old: the row before.
        new: the row after.
        autocorrelations: `round_autocorrelation` of both runs.
        controls: changes of the machine that affect the row.
        blocked: why no row of these runs can have a verdict; empty if rows can.
    """
    logs = (_round_logs(old), _round_logs(new))
    change = RowChange(
        case=new.case.id,
        provider=new.provider,
        before_s=statistics.median(old.samples_s),
        after_s=statistics.median(new.samples_s),
        rounds_before=len(logs[0]),
        rounds_after=len(logs[1]),
        changes=tuple(_field_changes(old, new)),
    )
    fewest = min(map(len, logs))
    if fewest < MIN_ROUNDS:
        rounds = "1 round" if fewest == 1 else f"{fewest} rounds"
        return replace(change, reason=f"samples of {rounds}, needs {MIN_ROUNDS}: drift is not known")
    before, after = map(level, logs, autocorrelations)
    change = replace(change, before_s=math.exp(before.mean), after_s=math.exp(after.mean))
    return _tested(change, before, after, controls, blocked or _throttling(old, new))


def _tested(
    change: RowChange, before: Level, after: Level, controls: Sequence[Control], blocked: str
) -> RowChange:
    """The change with Welch's interval of its ratio, widened by the controls, and p of "the same"."""
    shift, variance = after.mean - before.mean, before.variance + after.variance
    error, freedom = math.sqrt(variance), 1.0
    if variance > 0:
        freedom = variance**2 / (before.variance**2 / before.freedom + after.variance**2 / after.freedom)
    half = Level(mean=shift, variance=variance, freedom=freedom).half_width(ERROR)
    least = math.log(min([1.0, *(control.least for control in controls)]))
    most = math.log(max([1.0, *(control.most for control in controls)]))
    change = replace(change, low=_exp(shift - half - most), high=_exp(shift + half - least))
    if blocked:
        return replace(change, reason=blocked)

    def p_beyond(excess: float) -> float:
        if excess <= 0:
            return 1.0
        return 2 * t_tail(excess / error, freedom) if error > 0 else 0.0

    same = math.log1p(SAME_WITHIN)
    p = p_beyond(max(shift - most, least - shift) - same)
    by_machine = p > ERROR and p_beyond(abs(shift) - same) <= ERROR
    return replace(change, p=p, reason=_machine_change(controls, shift) if by_machine else "")


def _exp(logarithm: float) -> float:
    """The exponential within the range of a float: intervals of few, very different rounds exceed it."""
    return math.exp(max(-LARGEST_LOG, min(LARGEST_LOG, logarithm)))


def _machine_change(controls: Sequence[Control], shift: float) -> str:
    """The change of the machine that could explain why the row is slower or faster."""
    if shift > 0:
        worst = max(controls, key=lambda control: control.most)
        return f"the machine was slower after: {worst.name} by {worst.most - 1:.1%}"
    best = min(controls, key=lambda control: control.least)
    return f"the machine was faster after: {best.name} by {1 / best.least - 1:.1%}"


def _throttling(old: Row, new: Row) -> str:
    """Why throttling makes this row incomparable; empty if comparable."""
    before, after = set(old.throttle_reasons), set(new.throttle_reasons)
    if before == after and after <= STEADY_THROTTLING:
        return ""
    listed = [", ".join(sorted(reasons)) or "nothing" for reasons in (before, after)]
    return f"the clock was throttled: {listed[0]} before; {listed[1]} after"


def with_verdicts(rows: Sequence[RowChange]) -> tuple[RowChange, ...]:
    """The rows with p corrected for the number of rows that have one, and their verdicts."""
    p_values = [row.p for row in rows if row.p is not None]
    corrected = iter(holm(p_values))
    return tuple(
        row if row.p is None else _with_verdict(replace(row, corrected_p=next(corrected)), len(p_values))
        for row in rows
    )


def _with_verdict(row: RowChange, count: int) -> RowChange:
    """The verdict on a row with p; `count` rows were judged together."""
    if row.p is None or row.corrected_p is None or row.low is None or row.high is None:
        return row
    if row.low >= 1 / (1 + SAME_WITHIN) and row.high <= 1 + SAME_WITHIN:
        return replace(row, verdict="same", reason=f"within {SAME_WITHIN:.0%}")
    if row.corrected_p <= ERROR:
        verdict: Verdict = "slower" if row.ratio > 1 else "faster"
        return replace(row, verdict=verdict, reason=f"by over {SAME_WITHIN:.0%}")
    if row.p <= ERROR:
        doubt = f"by chance one of {count} rows may differ as much"
    else:
        doubt = "the interval is too wide to tell"
    return replace(row, reason=row.reason or doubt)


def _field_changes(old: Row, new: Row) -> Iterator[str]:
    for name in ("variant", "tiling", "method", "input_copies"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f"{name.replace('_', ' ')}: {_text(before)} -> {_text(after)}"


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return "none" if value is None else str(value)
