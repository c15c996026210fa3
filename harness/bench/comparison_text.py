"""Two runs compared, as text."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tabulate import tabulate

from ..core.records import Run
from ..core.units import seconds
from .comparison import Comparison, StatusChange
from .row_change import ERROR, SAME_WITHIN, RowChange, Verdict

VERDICTS: tuple[Verdict, ...] = ("slower", "faster", "same", "not sure")


def comparison_text(comparison: Comparison, runs: Sequence[tuple[str, Run]]) -> str:
    """The whole comparison; `runs` are both with the names of their files."""
    blocks = [
        "\n".join((*_headings(runs), *comparison.unfinished, *_device_lines(comparison))),
        "\n".join(_difference_lines(comparison)),
        "\n".join(_row_lines(comparison)),
        "\n".join(_status_lines(comparison)),
        _gap_table(comparison),
        "\n".join(_conclusion(comparison)),
    ]
    return "\n\n".join(filter(None, blocks))


def _headings(runs: Sequence[tuple[str, Run]]) -> Iterator[str]:
    for side, (name, run) in zip(("Before", "After"), runs, strict=True):
        device, commit = run.environment["device"]["name"], run.environment["commit"]
        started = run.environment.get("started", "at an unknown time")
        yield f"{side}: {name}: {device}, {started}, commit {commit or 'unknown'}"


def _device_lines(comparison: Comparison) -> Iterator[str]:
    if comparison.same_device:
        return
    yield "The devices are not the same" + (
        ": what slows one down is judged all the same, as --across-devices asks."
        if comparison.across_devices
        else ", so that nothing is judged; --across-devices judges it all the same."
    )


def _difference_lines(comparison: Comparison) -> Iterator[str]:
    if comparison.differences:
        yield "Not the same in both runs"
        yield from (f"  {what}: {_short(old)} -> {_short(new)}" for what, old, new in comparison.differences)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _row_lines(comparison: Comparison) -> Iterator[str]:
    yield "Rows: time after over time before, below 1 is faster"
    if not comparison.rows:
        yield "(no row is ok in both runs)"
        return
    headers = ("case", "provider", "before", "after", "ratio", "95% interval", "verdict", "why")
    rows = [_row_cells(row) for row in comparison.rows]
    yield tabulate(rows, headers=headers, disable_numparse=True)
    for row in comparison.rows:
        yield from (f"changed: {row.case} {row.provider}: {_short(change)}" for change in row.changes)
    counts = Counter(row.verdict for row in comparison.rows)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    yield f"{tally}; the median ratio is {comparison.median_ratio:.3f}"
    if comparison.controls:
        moved = ", ".join(f"{control.name} {control.most:.3f}" for control in comparison.controls)
        yield f"The machine's own ratios, by which intervals are widened: {moved}"


def _row_cells(row: RowChange) -> tuple[str, ...]:
    return (
        row.case,
        row.provider,
        seconds(row.before_s),
        seconds(row.after_s),
        f"{row.ratio:.3f}",
        "-" if row.low is None else f"{row.low:.3f} to {_bound(row.high)}",
        row.verdict,
        row.reason,
    )


def _bound(high: float | None) -> str:
    return "any" if high is None or high >= 1000 else f"{high:.3f}"


def _status_lines(comparison: Comparison) -> Iterator[str]:
    for change in sorted(comparison.statuses, key=lambda change: not change.broke):
        yield f"{_status_verb(change)}: {change.case} {change.provider}" + (
            f": {_short(change.reason)}" if change.reason else ""
        )


def _status_verb(change: StatusChange) -> str:
    if change.broke:
        return "BROKE"
    if change.after is None:
        return f"only before ({change.before})"
    if change.before is None:
        return f"only after ({change.after})"
    return f"{change.before} -> {change.after}"


def _gap_table(comparison: Comparison) -> str:
    if not comparison.gaps:
        return ""
    rows = [
        (
            change.after.batch,
            change.after.context,
            change.after.prompt,
            f"{change.before.gap:.2f}",
            f"{change.after.gap:.2f}",
            f"{change.ratio:.3f}",
            f"{change.after.input_s_per_token / change.before.input_s_per_token:.3f}",
            f"{change.after.output_s_per_token / change.before.output_s_per_token:.3f}",
        )
        for change in comparison.gaps
    ]
    headers = ("batch", "context", "prompt", "gap before", "after", "ratio", "input token", "output token")
    title = "Gap, and seconds of a token after over before (no verdict)"
    return f"{title}\n{tabulate(rows, headers=headers, disable_numparse=True)}"


def _conclusion(comparison: Comparison) -> Iterator[str]:
    limit = f"{comparison.limit:.6%}".rstrip("0%").rstrip(".") + "%"
    if not comparison.judged:
        yield "No verdicts: the devices are not the same."
        return
    for row in comparison.regressions:
        yield f"slower by over {limit}: {row.case} {row.provider}: {row.ratio:.3f}, surely over {row.low:.3f}"
    yield from (f"wrong now: {change.case} {change.provider}" for change in comparison.broke)
    if not comparison.worse:
        yield (
            f"No row is surely slower by over {limit} and none broke "
            f"(surely: any wrong verdict of over {SAME_WITHIN:.0%} has a chance below {ERROR:.0%})."
        )
