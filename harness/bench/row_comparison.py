"""One row in two runs: the ratio of its times (the inverse of the speedup), from medians of its rounds."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.collectives import CollectiveRow
from ..core.records import Row, Run
from ..core.statistics import MIN_ROUNDS, autocorrelation, level, round_medians
from .changes import Change, Control, tested

TimedRow = Row | CollectiveRow

STEADY_THROTTLING = frozenset({"power cap"})
"""Throttling that leaves times comparable if both runs have it: the clock settles at the power limit, and it
is recorded. Throttling by heat or faults comes and goes between two readings."""


def timed_rows(run: Run) -> list[TimedRow]:
    """The kernels of a run, and what its ranks exchange where there are several."""
    return [*run.rows, *run.collectives]


@dataclass(frozen=True, kw_only=True)
class RowChange(Change):
    """A row that is ok in both runs.

    Attributes:
        before_s, after_s: geometric mean of the rounds' medians, less outliers; with too few rounds, the
            median of all samples.
        changes: other differences of the row: variant, tiling, method of timing, copies of the inputs.
    """

    case: str
    provider: str
    before_s: float
    after_s: float

    @property
    def ratio(self) -> float:
        """Time after over time before."""
        return self.after_s / self.before_s


def _round_logs(row: TimedRow) -> list[float]:
    """The logarithm of each round's median, in the order of rounds."""
    rounds = row.rounds or (0,) * len(row.samples_s)
    return [math.log(median_s) for median_s in round_medians(row.samples_s, rounds)]


def round_autocorrelation(rows: Iterable[TimedRow]) -> float:
    """Lag-1 autocorrelation of the rounds of a run, from 0 to below 1: the common one of its rows."""
    return autocorrelation(_round_logs(row) for row in rows if row.samples_s)


def compare_row(
    old: TimedRow,
    new: TimedRow,
    autocorrelations: tuple[float, float],
    controls: Sequence[Control],
    blocked: str,
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
    if few := too_few_rounds(min(map(len, logs))):
        return replace(change, reason=few)
    before, after = map(level, logs, autocorrelations)
    change = replace(change, before_s=math.exp(before.mean), after_s=math.exp(after.mean))
    return tested(change, before, after, controls, blocked or throttling(old, new), _machine_change)


def too_few_rounds(count: int) -> str:
    """Why so few rounds give no interval; empty if they are enough."""
    if count >= MIN_ROUNDS:
        return ""
    rounds = "1 round" if count == 1 else f"{count} rounds"
    return f"samples of {rounds}, needs {MIN_ROUNDS}: drift is not known"


def _machine_change(controls: Sequence[Control], shift: float) -> str:
    """The change of the machine that could explain why the row is slower or faster."""
    if shift > 0:
        worst = max(controls, key=lambda control: control.most)
        return f"the machine was slower after: {worst.name} by {worst.most - 1:.1%}"
    best = min(controls, key=lambda control: control.least)
    return f"the machine was faster after: {best.name} by {1 / best.least - 1:.1%}"


def throttling(old: TimedRow, new: TimedRow) -> str:
    """Why throttling makes this row incomparable; empty if comparable. Collectives do not record it."""
    if isinstance(old, CollectiveRow) or isinstance(new, CollectiveRow):
        return ""
    before, after = set(old.throttle_reasons), set(new.throttle_reasons)
    if before == after and after <= STEADY_THROTTLING:
        return ""
    listed = [", ".join(sorted(reasons)) or "nothing" for reasons in (before, after)]
    return f"the clock was throttled: {listed[0]} before; {listed[1]} after"


def _field_changes(old: TimedRow, new: TimedRow) -> Iterator[str]:
    for name in ("variant", "tiling", "method", "input_copies"):
        before, after = getattr(old, name, None), getattr(new, name, None)
        if before != after:
            yield f"{name.replace('_', ' ')}: {_text(before)} -> {_text(after)}"


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return "none" if value is None else str(value)
