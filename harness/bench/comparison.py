"""Compares two runs: how the times of their rows changed, what broke, and what else is not the same."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..core.records import Ceiling, Gap, Row, Run, Status
from ..core.statistics import round_medians
from .row_change import (
    LEAST_ROUNDS,
    MOST_SPREAD,
    Control,
    RowChange,
    resemblance_of,
    row_change,
    spread_of,
    with_verdicts,
)

DEFAULT_LIMIT = 0.05
"""Slower by surely more than this is a regression: beside the 2% that are the same it leaves 3% to prove."""

SAME_MEMORY_WITHIN = 0.01
"""Of one machine's memory: what a system keeps for itself differs a little from start to start."""

IDENTITY = ("kind", "name", "cores", "threads", "sm_count", "compute_capability")
"""What makes a device another one, beside its memory."""


@dataclass(frozen=True, kw_only=True)
class StatusChange:
    """A row whose status is another now, or one that only one run has (then the other's is None)."""

    case: str
    provider: str
    before: Status | None
    after: Status | None
    reason: str | None

    @property
    def broke(self) -> bool:
        """Gave right results before and wrong ones now."""
        return (self.before, self.after) == ("ok", "failed")


@dataclass(frozen=True, kw_only=True)
class GapChange:
    """The gap at one batch, context and prompt in both runs: information, without a verdict."""

    before: Gap
    after: Gap

    @property
    def ratio(self) -> float:
        """Gap after over gap before."""
        return self.after.gap / self.before.gap

    def to_json(self) -> dict[str, Any]:
        """The change as a JSON object."""
        return {
            "batch": self.after.batch,
            "context": self.after.context,
            "prompt": self.after.prompt,
            "gap_before": self.before.gap,
            "gap_after": self.after.gap,
            "ratio": self.ratio,
            "input_s_per_token_ratio": self.after.input_s_per_token / self.before.input_s_per_token,
            "output_s_per_token_ratio": self.after.output_s_per_token / self.before.output_s_per_token,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that two runs tell of one another."""

    limit: float
    same_device: bool
    across_devices: bool
    differences: tuple[tuple[str, Any, Any], ...]
    controls: tuple[Control, ...]
    rows: tuple[RowChange, ...]
    statuses: tuple[StatusChange, ...]
    gaps: tuple[GapChange, ...]
    unfinished: tuple[str, ...]

    @property
    def judged(self) -> bool:
        """Whether anything may be called a regression."""
        return self.same_device or self.across_devices

    @property
    def regressions(self) -> tuple[RowChange, ...]:
        """Rows that are surely slower, by surely more than the limit."""
        slower = (row for row in self.rows if row.verdict == "slower")
        return tuple(row for row in slower if row.low is not None and row.low > 1 + self.limit)

    @property
    def broke(self) -> tuple[StatusChange, ...]:
        """Rows that were ok and give wrong results now."""
        return tuple(change for change in self.statuses if change.broke)

    @property
    def worse(self) -> bool:
        """Whether anything surely got worse."""
        return self.judged and bool(self.regressions or self.broke)

    @property
    def empty(self) -> bool:
        """Whether the runs have nothing to compare: no row is in both that was ok in one of them."""
        return not self.rows and all(None in {change.before, change.after} for change in self.statuses)

    @property
    def median_ratio(self) -> float | None:
        """The median over the rows: what moved them all alike."""
        return statistics.median(row.ratio for row in self.rows) if self.rows else None

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON object."""
        return {
            "schema_version": 1,
            "limit": self.limit,
            "worse": self.worse,
            "same_device": self.same_device,
            "across_devices": self.across_devices,
            "unfinished": list(self.unfinished),
            "differences": [
                {"what": what, "before": old, "after": new} for what, old, new in self.differences
            ],
            "controls": [asdict(control) for control in self.controls],
            "median_ratio": self.median_ratio,
            "rows": [row.to_json() for row in self.rows],
            "regressions": [_named(row) for row in self.regressions],
            "broke": [_named(change) for change in self.broke],
            "statuses": [asdict(change) for change in self.statuses],
            "gaps": [change.to_json() for change in self.gaps],
        }


def compare(
    before: Run, after: Run, *, limit: float = DEFAULT_LIMIT, across_devices: bool = False
) -> Comparison:
    """Compare two runs.

    Args:
        before: the run to compare with.
        after: the run in question.
        limit: slower by surely more than this share is a regression.
        across_devices: judge runs of different devices too; what their ceilings differ by is then no excuse.
    """
    same = same_device(before, after)
    old, new = ({row.key: row for row in run.rows} for run in (before, after))
    both = [key for key in new if key in old and old[key].status == new[key].status == "ok"]
    rows: list[RowChange] = []
    blocked = _disturbance(before, after) if same or across_devices else "another device"
    alike = (resemblance_of(old.values()), resemblance_of(new.values()))
    for key in both:
        controls = controls_of(before, after, old[key], new[key]) if same else ()
        rows.append(row_change(old[key], new[key], alike, controls, blocked))
    keys = dict.fromkeys((*old, *new))
    statuses = [_status_change(old.get(key), new.get(key)) for key in keys]
    return Comparison(
        limit=limit,
        same_device=same,
        across_devices=across_devices,
        differences=tuple(_differences(before, after)),
        controls=ceiling_controls(before, after) if same else (),
        rows=with_verdicts(rows),
        statuses=tuple(change for change in statuses if change.before != change.after),
        gaps=tuple(_gap_changes(before, after)),
        unfinished=tuple(_unfinished(before, after)),
    )


def same_device(before: Run, after: Run) -> bool:
    """Whether two runs were made on the same device, as far as the runs tell."""
    one, other = (run.environment["device"] for run in (before, after))
    memory = (one["memory_bytes"], other["memory_bytes"])
    return max(memory) - min(memory) <= SAME_MEMORY_WITHIN * max(memory) and all(
        one.get(name) == other.get(name) for name in IDENTITY
    )


def ceiling_controls(before: Run, after: Run) -> tuple[Control, ...]:
    """How much longer each ceiling takes now: no kernel of this project runs in them.

    By the fastest call of either run and, where both timed it in rounds, by the level of the rounds.
    """
    measured = {_ceiling_name(c): c for c in before.ceilings if c.provenance == "measured"}
    found = []
    for ceiling in after.ceilings:
        name = _ceiling_name(ceiling)
        old = measured.get(name) if ceiling.provenance == "measured" else None
        if old is None or old.rate is None or ceiling.rate is None:
            continue
        ratios = [old.rate / ceiling.rate]
        levels = [ceiling_level_s(side) for side in (old, ceiling)]
        if levels[0] and levels[1] and (old.work, old.call) == (ceiling.work, ceiling.call):
            ratios.append(levels[1] / levels[0])
        found.append(Control(name=name, least=min(ratios), most=max(ratios)))
    return tuple(found)


def ceiling_level_s(ceiling: Ceiling) -> float | None:
    """Seconds of a ceiling's call over a whole run; None where it was not timed in enough rounds."""
    medians = round_medians(ceiling.samples_s, ceiling.rounds) if ceiling.rounds else []
    return statistics.geometric_mean(medians) if len(medians) >= LEAST_ROUNDS else None


def controls_of(before: Run, after: Run, old: Row, new: Row) -> tuple[Control, ...]:
    """What of the machine bears on a row: both bandwidths, matmul in its dtype, and its SM clock."""
    other_matmul = {
        _ceiling_name(c) for c in after.ceilings if c.kind == "matmul" and c.dtype != new.case.dtype
    }
    controls = [c for c in ceiling_controls(before, after) if c.name not in other_matmul]
    clocks = [[hz for hz in (row.clock_before_hz, row.clock_after_hz) if hz] for row in (old, new)]
    if all(clocks):
        least, most = min(clocks[0]) / max(clocks[1]), max(clocks[0]) / min(clocks[1])
        controls.append(Control(name="SM clock", least=least, most=most))
    return tuple(controls)


def _ceiling_name(ceiling: Ceiling) -> str:
    return " ".join(filter(None, (ceiling.dtype, ceiling.kind.replace("_", " "))))


def _named(change: RowChange | StatusChange) -> dict[str, str]:
    return {"case": change.case, "provider": change.provider}


def _disturbance(before: Run, after: Run) -> str:
    """Why no time of a run can be relied on; empty where both can be."""
    for side, run in (("before", before), ("after", after)):
        spread = spread_of(run.rows)
        if spread > MOST_SPREAD:
            return f"the machine was disturbed {side}: samples scatter by {spread:.0%}"
    return ""


def _status_change(old: Row | None, new: Row | None) -> StatusChange:
    [row, *_] = filter(None, (new, old))
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


def _gap_changes(before: Run, after: Run) -> Iterator[GapChange]:
    old = {(gap.batch, gap.context, gap.prompt): gap for gap in before.gaps}
    for gap in after.gaps:
        was = old.get((gap.batch, gap.context, gap.prompt))
        if was is not None:
            yield GapChange(before=was, after=gap)


def _differences(before: Run, after: Run) -> Iterator[tuple[str, Any, Any]]:
    """What of environment and settings is not the same, leaf by leaf; the clock just then left out."""
    old, new = ({**_leaves(run.environment), **_leaves(run.settings)} for run in (before, after))
    for name in dict.fromkeys((*old, *new)):
        if name not in {"started", "device.sm_clock_hz"} and old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _leaves(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = tuple(value) if isinstance(value, list) else value
    return leaves
