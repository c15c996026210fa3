"""Compares two runs: how the times of their rows changed, which rows became wrong, and what else differs."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import to_builtins

from ..core.collectives import CollectiveRow
from ..core.record_fields import Status
from ..core.records import Ceiling, Run
from ..core.statistics import MIN_ROUNDS, round_medians
from .changes import Change, Control, with_verdicts
from .gap_comparison import GapChange, compare_gaps
from .row_comparison import RowChange, TimedRow, compare_row, round_autocorrelation, timed_rows
from .trust import disturbances

DEFAULT_LIMIT = 0.05
"""A row significantly slower by more than this is a regression; times within SAME_WITHIN are the same."""

SAME_MEMORY_WITHIN = 0.01
"""Largest difference of one machine's memory size: what the system reserves varies a little."""

IDENTITY = ("kind", "name", "cores", "cpu_quota_cores", "threads", "sm_count", "compute_capability")
"""Facts that identify a device, together with its memory."""


@dataclass(frozen=True, kw_only=True)
class StatusChange:
    """A row whose status changed; a status is None if that run does not have the row."""

    case: str
    provider: str
    before: Status | None
    after: Status | None
    reason: str | None

    @property
    def broke(self) -> bool:
        """Whether it was correct before and is wrong now."""
        return (self.before, self.after) == ("ok", "failed")


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """How one run differs from another.

    Attributes:
        limit: a row significantly slower by more than this share is a regression.
        differences: settings and facts of the environment that differ, each as name, before, after.
        disturbed: what other work on the machine a run shows, so that nothing has a verdict.
        controls: changes of the machine itself between the runs.
        statuses: rows whose status changed or that only one run has.
        gaps: the gap at each batch, context and prompt of both runs.
        fail_on_missing: whether rows of `lost` make the run worse.
        unfinished: why rows may be missing.
    """

    limit: float
    same_device: bool
    across_devices: bool
    differences: tuple[tuple[str, Any, Any], ...]
    disturbed: tuple[str, ...]
    controls: tuple[Control, ...]
    rows: tuple[RowChange, ...]
    statuses: tuple[StatusChange, ...]
    gaps: tuple[GapChange, ...]
    unfinished: tuple[str, ...]
    fail_on_missing: bool = False

    @property
    def judged(self) -> bool:
        """Whether rows get verdicts."""
        return self.same_device or self.across_devices

    @property
    def regressions(self) -> tuple[RowChange, ...]:
        """Rows that are significantly slower, by significantly more than the limit."""
        slower = (row for row in self.rows if row.verdict == "slower")
        return tuple(row for row in slower if row.low is not None and row.low > 1 + self.limit)

    @property
    def broke(self) -> tuple[StatusChange, ...]:
        """Rows that were correct before and are wrong now."""
        return tuple(change for change in self.statuses if change.broke)

    @property
    def lost(self) -> tuple[StatusChange, ...]:
        """Rows that were correct before and are missing or not ok now."""
        return tuple(change for change in self.statuses if change.before == "ok")

    @property
    def worse(self) -> bool:
        """Whether there is a regression or a wrong result; with `fail_on_missing`, or a lost row."""
        lost = self.fail_on_missing and bool(self.lost)
        return lost or (self.judged and bool(self.regressions or self.broke))

    @property
    def empty(self) -> bool:
        """Whether the runs have nothing to compare: no common row has a time or changed its status."""
        if self.fail_on_missing and self.lost:
            return False
        return not self.rows and all(None in {change.before, change.after} for change in self.statuses)

    @property
    def median_ratio(self) -> float | None:
        """The median ratio of the rows, which shows a change common to all of them."""
        return statistics.median(row.ratio for row in self.rows) if self.rows else None

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON object."""
        return {
            "schema_version": 1,
            **to_builtins(self),
            "worse": self.worse,
            "differences": [
                {"what": what, "before": old, "after": new} for what, old, new in self.differences
            ],
            "median_ratio": self.median_ratio,
            "rows": [to_builtins(row) | {"ratio": row.ratio} for row in self.rows],
            "gaps": [to_builtins(gap) | {"ratio": gap.ratio} for gap in self.gaps],
            "regressions": [{"case": row.case, "provider": row.provider} for row in self.regressions],
            "broke": [{"case": change.case, "provider": change.provider} for change in self.broke],
            "lost": [{"case": change.case, "provider": change.provider} for change in self.lost],
        }


def compare_runs(
    before: Run,
    after: Run,
    *,
    limit: float = DEFAULT_LIMIT,
    across_devices: bool = False,
    fail_on_missing: bool = False,
) -> RunComparison:
    """Compare two runs.

    Args:
        before: the baseline.
        after: the run to judge.
        limit: a row significantly slower by more than this share is a regression.
        across_devices: whether runs of different devices get verdicts too. Ceiling differences then do not
            widen the interval.
        fail_on_missing: whether a row that was ok before and is missing or not ok now makes the run worse.
    """
    same = same_device(before, after)
    old, new = ({_key(row): row for row in timed_rows(run)} for run in (before, after))
    disturbed = tuple(_disturbances(before, after))
    blocked = next(iter(disturbed), "") if same or across_devices else "another device"
    autocorrelations = (round_autocorrelation(timed_rows(before)), round_autocorrelation(timed_rows(after)))

    def controls(was: TimedRow, row: TimedRow) -> Sequence[Control]:
        return controls_of(before, after, was, row) if same else ()

    rows = [
        compare_row(old[key], row, autocorrelations, controls(old[key], row), blocked)
        for key, row in new.items()
        if key in old and old[key].status == row.status == "ok"
    ]
    gaps = compare_gaps(before, after, autocorrelations, controls, blocked)
    changes: tuple[Change, ...] = with_verdicts((*rows, *gaps))
    statuses = [_status_change(old.get(key), new.get(key)) for key in dict.fromkeys((*old, *new))]
    return RunComparison(
        limit=limit,
        same_device=same,
        across_devices=across_devices,
        differences=tuple(_differences(before, after)),
        disturbed=disturbed,
        controls=ceiling_controls(before, after) if same else (),
        rows=tuple(change for change in changes if isinstance(change, RowChange)),
        statuses=tuple(change for change in statuses if change.before != change.after),
        gaps=tuple(change for change in changes if isinstance(change, GapChange)),
        unfinished=tuple(_unfinished(before, after)),
        fail_on_missing=fail_on_missing,
    )


def _key(row: TimedRow) -> tuple[str, str, int, int]:
    """What is the same row in two runs."""
    if isinstance(row, CollectiveRow):
        return row.case.id, row.provider, row.case.ranks, row.case.message_bytes
    return row.key


def same_device(before: Run, after: Run) -> bool:
    """Whether two runs were made on the same device, as far as their environments show."""
    one, other = (run.environment["device"] for run in (before, after))
    memory = (one["memory_bytes"], other["memory_bytes"])
    return max(memory) - min(memory) <= SAME_MEMORY_WITHIN * max(memory) and all(
        one.get(name) == other.get(name) for name in IDENTITY
    )


def ceiling_controls(before: Run, after: Run) -> tuple[Control, ...]:
    """The ratio of times of each ceiling, after over before. Ceilings run no kernel of this project.

    The ratio is that of the fastest calls and, if both runs timed the same call in rounds, also that of the
    mean round.
    """
    measured = {_ceiling_name(c): c for c in before.ceilings if c.provenance == "measured"}
    found = []
    for ceiling in after.ceilings:
        name = _ceiling_name(ceiling)
        old = measured.get(name) if ceiling.provenance == "measured" else None
        if old is None or old.rate is None or ceiling.rate is None:
            continue
        ratios = [old.rate / ceiling.rate]
        before_s, after_s = _level_s(old), _level_s(ceiling)
        if before_s and after_s and (old.work, old.call) == (ceiling.work, ceiling.call):
            ratios.append(after_s / before_s)
        found.append(Control(name=name, least=min(ratios), most=max(ratios)))
    return tuple(found)


def _level_s(ceiling: Ceiling) -> float | None:
    """Mean seconds of a ceiling's call over all rounds of a run; None if it was timed in too few rounds."""
    medians = round_medians(ceiling.samples_s, ceiling.rounds) if ceiling.rounds else []
    return statistics.geometric_mean(medians) if len(medians) >= MIN_ROUNDS else None


def controls_of(before: Run, after: Run, old: TimedRow, new: TimedRow) -> tuple[Control, ...]:
    """The controls that affect a row: both bandwidths, the matmul ceiling in its dtype, its SM clock.

    A collective moves data through memory and adds it up, and records no clock.
    """
    other_matmul = {
        _ceiling_name(c) for c in after.ceilings if c.kind == "matmul" and c.dtype != new.case.dtype
    }
    controls = [c for c in ceiling_controls(before, after) if c.name not in other_matmul]
    clocks = [
        []
        if isinstance(row, CollectiveRow)
        else [hz for hz in (row.clock_before_hz, row.clock_after_hz) if hz]
        for row in (old, new)
    ]
    if all(clocks):
        least, most = min(clocks[0]) / max(clocks[1]), max(clocks[0]) / min(clocks[1])
        controls.append(Control(name="SM clock", least=least, most=most))
    return tuple(controls)


def _ceiling_name(ceiling: Ceiling) -> str:
    return " ".join(filter(None, (ceiling.dtype, ceiling.kind.replace("_", " "))))


def _disturbances(before: Run, after: Run) -> Iterator[str]:
    """Why the times of each run are unreliable."""
    for side, run in (("before", before), ("after", after)):
        for disturbance in disturbances(run):
            yield f"the machine was disturbed {side}: {disturbance}"


def _status_change(old: TimedRow | None, new: TimedRow | None) -> StatusChange:
    rows: list[TimedRow] = [row for row in (new, old) if row is not None]
    row = rows[0]
    return StatusChange(
        case=row.case.id,
        provider=row.provider,
        before=old.status if old else None,
        after=new.status if new else None,
        reason=row.reason,
    )


def _unfinished(before: Run, after: Run) -> Iterator[str]:
    for side, run in (("before", before), ("after", after)):
        if run.interrupted:
            yield f"{side}: was interrupted, so that rows may be missing"
        if run.broken is not None:
            yield f"{side}: broke off ({run.broken}), so that rows may be missing"


def _differences(before: Run, after: Run) -> Iterator[tuple[str, Any, Any]]:
    """Environment and settings that differ, value by value, without the start time and the SM clock."""
    old, new = ({**_leaves(run.environment), **_leaves(run.settings)} for run in (before, after))
    for name in dict.fromkeys((*old, *new)):
        if name not in {"started", "device.sm_clock_hz"} and old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _leaves(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
            leaves |= _leaves({str(index): each for index, each in enumerate(value)}, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = tuple(value) if isinstance(value, list) else value
    return leaves
