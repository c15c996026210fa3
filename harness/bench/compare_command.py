"""`decodetax compare`: the options, and the text of two runs compared."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import FAILED, UsageError, path_text, printable
from ..core.table import Column, Table, prose, wide_option
from ..core.units import seconds

if TYPE_CHECKING:
    from ..core.records import Run
    from .comparison import RunComparison, StatusChange

RUN_FILE = click.Path(path_type=Path)


def _percentage(text: str) -> float:
    """A percentage as a share; the sign tells 5% from a share of 5."""
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?%", text, re.ASCII) or float(text[:-1]) > 100:
        raise ValueError(text)
    return float(text[:-1]) / 100


@click.command("compare")
@click.argument("before_file", type=RUN_FILE, metavar="BEFORE.json")
@click.argument("after_file", type=RUN_FILE, metavar="AFTER.json")
@click.option(
    "--fail-above",
    "limit",
    default="5%",
    show_default=True,
    callback=options.parsed(_percentage, "a percentage from 0% to 100%, such as 5% or 2.5%"),
    metavar="PERCENT",
    help="Exit with code 1 if a row is slower by significantly more than this.",
)
@click.option(
    "--across-devices", is_flag=True, help="Give verdicts also if the runs were made on different devices."
)
@click.option(
    "--fail-on-missing",
    is_flag=True,
    help="Exit with code 1 also if a row that was ok before is missing or not ok after.",
)
@options.JSON
@wide_option
def compare_command(
    before_file: Path,
    after_file: Path,
    limit: float,
    across_devices: bool,
    fail_on_missing: bool,
    as_json: bool,
    wide: bool,
) -> int:
    """Show which kernels became faster or slower between two runs.

    A row is one case run by one provider. Its verdict is faster, slower, same or not sure, from samples of
    several rounds; that of a gap is lower, higher, same or not sure. Exit code 1 means that a row is
    significantly slower than the limit allows, or was correct before and is wrong now; 2 means a wrong
    argument or file.

    Runs of several ranks are compared where they share the model in the same way; collectives are rows too.
    """
    from ..core.run_file import read_run
    from .comparison import compare_runs

    before, after = read_run(before_file), read_run(after_file)
    if before.parallelism != after.parallelism:
        raise UsageError(
            f"AFTER.json: {str(after_file)!r} is a run of {_ranks(after)} and {str(before_file)!r} of "
            f"{_ranks(before)}, whose kernels have other sizes; compare runs of the same ranks"
        )
    comparison = compare_runs(
        before, after, limit=limit, across_devices=across_devices, fail_on_missing=fail_on_missing
    )
    if comparison.empty:
        raise UsageError(
            f"AFTER.json: {str(after_file)!r} has no row to compare with {str(before_file)!r}: "
            f"{_workload(before)} and {_workload(after)}"
        )
    names = (path_text(before_file), path_text(after_file))
    if as_json:
        files = dict(zip(("before", "after"), names, strict=True))
        click.echo(json.dumps({**files, **comparison.to_json()}, indent=1, allow_nan=False))
    else:
        click.echo(comparison_text(comparison, (before, after), names, wide=wide))
    return FAILED if comparison.worse else 0


def _ranks(run: "Run") -> str:
    split = run.parallelism
    return f"{split.gpus} ranks ({split.text})" if split.gpus > 1 else "1 rank"


def _workload(run: "Run") -> str:
    settings = run.settings
    return printable(f"{settings['model']['name']} in {settings['dtype']} with {len(run.rows)} rows")


def comparison_text(
    comparison: "RunComparison", runs: tuple["Run", "Run"], names: tuple[str, str], *, wide: bool = False
) -> str:
    """The comparison of two runs, whose files have these names, for a terminal."""
    headings = (*map(_heading, ("Before", "After"), names, runs), *_notes(comparison))
    blocks = (
        [prose(line, wide=wide) for line in headings],
        _difference_lines(comparison),
        _row_lines(comparison, wide=wide),
        _status_lines(comparison),
        _gap_lines(comparison, wide=wide),
        [prose(line, wide=wide) for line in _conclusion(comparison)],
    )
    return "\n\n".join(filter(None, map("\n".join, blocks)))


def _heading(side: str, name: str, run: "Run") -> str:
    device, commit = run.environment["device"]["name"], run.environment["commit"] or "unknown"
    started = run.environment.get("started", "at an unknown time")
    ranks = f"{_ranks(run)} of " if run.parallelism.gpus > 1 else ""
    return printable(f"{side}: {name}: {ranks}{device}, {started}, commit {commit}")


def _notes(comparison: "RunComparison") -> Iterator[str]:
    yield from map(printable, comparison.unfinished)
    yield from (f"No verdicts: {reason}." for reason in comparison.disturbed)
    if not comparison.same_device:
        yield "The devices differ" + (
            "; rows get verdicts because of --across-devices."
            if comparison.across_devices
            else ", so no row gets a verdict; use --across-devices for verdicts."
        )


def _difference_lines(comparison: "RunComparison") -> Iterator[str]:
    if comparison.differences:
        yield "Differences in environment and settings"
    for what, old, new in comparison.differences:
        yield f"  {printable(what)}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _row_lines(comparison: "RunComparison", *, wide: bool) -> Iterator[str]:
    title = "Ratio of times, after / before; below 1 is faster"
    if not comparison.rows:
        yield f"{title}\n(no row is ok in both runs)"
        return
    columns = (
        Column("case"),
        Column("provider"),
        Column("before", show=seconds, wide=True),
        Column("after", show=seconds, wide=True),
        Column("ratio", show=_ratio),
        Column("95% interval"),
        Column("verdict"),
        Column("why"),
    )
    rows = tuple(
        (row.case, row.provider, row.before_s, row.after_s, row.ratio, _interval(row.low, row.high),
         row.verdict, row.reason)
        for row in comparison.rows
    )  # fmt: skip
    yield Table(title=title, columns=columns, rows=rows).text(wide=wide)
    for row in comparison.rows:
        for change in row.changes:
            yield f"changed: {printable(f'{row.case} {row.provider}')}: {_short(change)}"
    counts = Counter(row.verdict for row in comparison.rows)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("slower", "faster", "same", "not sure"))
    yield f"{tally}; the median ratio is {comparison.median_ratio:.3f}"
    if comparison.controls:
        moved = ", ".join(f"{control.name} {control.most:.3f}" for control in comparison.controls)
        moved = f"Ratios of the ceilings and the clock, which widen the intervals: {moved}"
        yield prose(moved, wide=wide)


def _interval(low: float | None, high: float | None) -> str | None:
    if low is None or high is None:
        return None
    return f"{low:.3f} to {'any' if high >= 1000 else f'{high:.3f}'}"


def _status_lines(comparison: "RunComparison") -> Iterator[str]:
    for change in sorted(comparison.statuses, key=lambda change: not change.broke):
        reason = f": {_short(change.reason)}" if change.reason else ""
        yield f"{_status_verb(change)}: {printable(f'{change.case} {change.provider}')}{reason}"


def _status_verb(change: "StatusChange") -> str:
    if change.broke:
        return "BROKE"
    if change.after is None:
        return f"only before ({change.before})"
    if change.before is None:
        return f"only after ({change.after})"
    return f"{change.before} -> {change.after}"


def _gap_lines(comparison: "RunComparison", *, wide: bool) -> Iterator[str]:
    if not comparison.gaps:
        return
    columns = (
        Column("batch"),
        Column("context"),
        Column("prompt", wide=True),
        Column("gap before", show="{:.2f}".format),
        Column("gap after", show="{:.2f}".format),
        Column("ratio", show=_ratio),
        Column("95% interval"),
        Column("input token", show=_ratio, wide=True),
        Column("output token", show=_ratio, wide=True),
        Column("verdict"),
        Column("why", wide=True),
    )
    rows = tuple(
        (gap.batch, gap.context, gap.prompt, gap.gap_before, gap.gap_after, gap.ratio,
         _interval(gap.low, gap.high), gap.input_s_per_token_ratio, gap.output_s_per_token_ratio,
         gap.verdict, gap.reason)
        for gap in comparison.gaps
    )  # fmt: skip
    title = "Gap, after / before" + ("; ratios of seconds per input and output token" if wide else "")
    yield Table(title=title, columns=columns, rows=rows).text(wide=wide)
    if wide:
        for gap in comparison.gaps:
            yield from (f"  {gap.batch}, {gap.context}: {printable(change)}" for change in gap.changes)
        return
    for reason in dict.fromkeys(gap.reason for gap in comparison.gaps if gap.verdict == "not sure"):
        yield prose(f"not sure: {printable(reason)}", wide=wide)


def _conclusion(comparison: "RunComparison") -> Iterator[str]:
    from .changes import ERROR, SAME_WITHIN

    limit = f"{comparison.limit:.6%}".rstrip("0%").rstrip(".") + "%"
    if comparison.fail_on_missing:
        for change in comparison.lost:
            name = printable(f"{change.case} {change.provider}")
            yield f"ok before, {'missing' if change.after is None else change.after} now: {name}"
    if not comparison.judged:
        yield "No verdicts: the devices differ."
        return
    for row in comparison.regressions:
        name = printable(f"{row.case} {row.provider}")
        yield f"slower by over {limit}: {name}: {row.ratio:.3f}, at least {row.low:.3f}"
    for change in comparison.broke:
        yield f"wrong now: {printable(f'{change.case} {change.provider}')}"
    if not comparison.regressions and not comparison.broke:
        yield (
            f"No row is significantly slower by over {limit}, and none became wrong "
            f"(the chance of any false verdict beyond {SAME_WITHIN:.0%} is below {ERROR:.0%})."
        )
