"""Runs the same code against itself on this machine: what its runs differ by is noise.

    python tests/bench/aa_runs.py --pairs 20

Each run is `decodetax run --quick`, or has the options named after `--`. Each is a process of its own, so
that memory is laid out anew, as between two versions of a program. With --folder the run files are kept, and
those that are there are not measured again. Exit code 1 means that `decodetax compare` found a regression,
that fewer than 95% of the gaps agree, or that their intervals are too wide.
"""

import itertools
import json
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
from decodetax.harness.bench.comparison import RunComparison, compare_runs
from decodetax.harness.core.gap import Gap
from decodetax.harness.core.records import Run
from decodetax.harness.core.run_file import read_run
from msgspec import to_builtins
from timed_process import timed_run

MIN_AGREE = 0.95
"""Smallest share of places at which the gaps of two runs agree within their 95% intervals."""

MAX_HALF_WIDTH = 0.1
"""Largest median of half of a gap's interval, as a share of the gap."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Findings in pairs of runs of the same code.

    Attributes:
        regressions: rows called slower by over the limit, with their pair's number from 1: all wrong.
        verdicts: how often each was given; faster and slower are wrong.
        gap_verdicts: the same of gaps; higher and lower are wrong.
        spread: standard deviation of the logarithm of the ratios.
        largest: the ratio farthest from 1.
        missed: share of the 95% intervals that leave out 1: at most 5% where they are honest.
    """

    pairs: int
    regressions: tuple[str, ...]
    verdicts: dict[str, int]
    gap_verdicts: dict[str, int]
    spread: float
    largest: float
    missed: float


def findings(comparisons: Sequence[RunComparison]) -> Findings:
    """The findings of comparisons of the same code with itself."""
    rows = list(itertools.chain.from_iterable(comparison.rows for comparison in comparisons))
    shifts = [math.log(row.ratio) for row in rows]
    known = [row for row in rows if row.low is not None]
    return Findings(
        pairs=len(comparisons),
        regressions=tuple(
            f"pair {number}: {row.case} {row.provider} {row.ratio:.3f}, at least {row.low:.3f}"
            for number, comparison in enumerate(comparisons, start=1)
            for row in comparison.regressions
        ),
        verdicts=dict(Counter(row.verdict for row in rows)),
        gap_verdicts=dict(Counter(gap.verdict for comparison in comparisons for gap in comparison.gaps)),
        spread=statistics.pstdev(shifts),
        largest=math.exp(max(shifts, key=abs)),
        missed=sum(not row.low <= 1 <= row.high for row in known) / max(1, len(known)),
    )


@dataclass(frozen=True, kw_only=True)
class GapFindings:
    """How well the gaps of pairs of runs of the same code agree.

    Attributes:
        places: batches and contexts, of all pairs together.
        agree: share of the places at which the two gaps agree: their logarithms differ by at most
            sqrt(a^2 + b^2), where a and b are the distances, in logarithms, from each gap to the end of its
            interval on the other's side. Where a gap or an interval is missing they do not agree.
        overlap: share of the places at which the two intervals overlap, which is weaker.
        half_width, widest: half of an interval's width as a share of the gap, the median and the largest.
        farthest: the ratio of two gaps that is farthest from 1.
    """

    places: int
    agree: float
    overlap: float
    half_width: float
    widest: float
    farthest: float


@dataclass(frozen=True, kw_only=True)
class Times:
    """What the runs took.

    Attributes:
        median_s, longest_s: wall-clock seconds of the process of a run.
        timed_share, least_timed_share: share of a run's seconds in timed calls, the median and the least.
    """

    median_s: float
    longest_s: float
    timed_share: float
    least_timed_share: float


def places_of(pair: tuple[Run, Run]) -> list[tuple[Gap | None, Gap | None]]:
    """The gaps of both runs at each batch and context that one of them has or was asked for."""
    before, after = ({(gap.batch, gap.context): gap for gap in run.gaps} for run in pair)
    asked = (itertools.product(run.settings["batches"], run.settings["contexts"]) for run in pair)
    places = dict.fromkeys((*before, *after, *itertools.chain.from_iterable(asked)))
    return [(before.get(place), after.get(place)) for place in places]


def agree(one: Gap | None, other: Gap | None) -> bool:
    """Whether two gaps differ by no more than their 95% intervals explain."""
    if one is None or other is None:
        return False
    lower, upper = sorted((one, other), key=lambda gap: gap.gap)
    if lower.gap_interval is None or upper.gap_interval is None:
        return False
    reach = math.hypot(
        math.log(lower.gap_interval.high / lower.gap), math.log(upper.gap / upper.gap_interval.low)
    )
    return math.log(upper.gap / lower.gap) <= reach


def overlap(one: Gap | None, other: Gap | None) -> bool:
    """Whether the 95% intervals of two gaps overlap."""
    a, b = one and one.gap_interval, other and other.gap_interval
    return a is not None and b is not None and a.low <= b.high and b.low <= a.high


def half_width(gap: Gap | None) -> float:
    """Half of the 95% interval of a gap, as a share of it; infinite where one of them is missing."""
    if gap is None or gap.gap_interval is None:
        return math.inf
    return (gap.gap_interval.high - gap.gap_interval.low) / 2 / gap.gap


def gap_findings(pairs: Sequence[tuple[Run, Run]]) -> GapFindings:
    """The findings of pairs of runs of the same code."""
    places = [place for pair in pairs for place in places_of(pair)]
    widths = [half_width(gap) for place in places for gap in place]
    shifts = [math.log(after.gap / before.gap) for before, after in places if before and after]
    return GapFindings(
        places=len(places),
        agree=sum(agree(*place) for place in places) / len(places),
        overlap=sum(overlap(*place) for place in places) / len(places),
        half_width=statistics.median(widths),
        widest=max(widths),
        farthest=math.exp(max(shifts, key=abs, default=0.0)),
    )


def times_of(pairs: Sequence[tuple[Run, Run]], walls_s: Sequence[float]) -> Times:
    """What the runs took, given the seconds of their processes."""
    shares = [run.timed_share for pair in pairs for run in pair]
    return Times(
        median_s=statistics.median(walls_s),
        longest_s=max(walls_s),
        timed_share=statistics.median(shares),
        least_timed_share=min(shares),
    )


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings of some pairs of runs."""

    rows: Findings
    gaps: GapFindings
    times: Times

    @property
    def broken(self) -> bool:
        """Whether a promise is broken."""
        return bool(
            self.rows.regressions or self.gaps.agree < MIN_AGREE or self.gaps.half_width > MAX_HALF_WIDTH
        )


def report_of(pairs: Sequence[tuple[Run, Run]], walls_s: Sequence[float]) -> Report:
    """The findings of pairs of runs of the same code, given the seconds of their processes."""
    return Report(
        rows=findings([compare_runs(*pair) for pair in pairs]),
        gaps=gap_findings(pairs),
        times=times_of(pairs, walls_s),
    )


def text_of(report: Report) -> str:
    """The findings in a few lines."""
    found, gaps, times = report.rows, report.gaps, report.times
    verdicts, gap_verdicts = (
        ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "none"
        for counts in (found.verdicts, found.gap_verdicts)
    )
    lines = [
        *found.regressions,
        f"{len(found.regressions)} sure regressions in {found.pairs} pairs of the same code (must be 0)",
        f"verdicts: {verdicts}; on gaps: {gap_verdicts}",
        f"ratios: spread {found.spread:.1%}, farthest from 1 {found.largest:.3f}",
        f"95% intervals that leave out 1: {found.missed:.1%}",
        f"{gaps.agree:.1%} of {gaps.places} gaps agree within their 95% intervals (at least {MIN_AGREE:.0%})",
        f"{gaps.overlap:.1%} of the intervals overlap",
        f"half of a gap's interval: median {gaps.half_width:.1%} of the gap (at most {MAX_HALF_WIDTH:.0%})",
        f"widest half of an interval: {gaps.widest:.1%}",
        f"gaps of a pair: ratio farthest from 1 {gaps.farthest:.3f}",
        f"seconds of a run: median {times.median_s:.1f}, longest {times.longest_s:.1f}",
        f"in timed calls: median {times.timed_share:.0%}, least {times.least_timed_share:.0%}",
    ]
    return "\n".join(lines)


def measured(file: Path, options: Sequence[str], walls_s: dict[str, float]) -> Run:
    """The run of a file, measured first if the file is not there."""
    if not file.exists() or file.name not in walls_s:
        walls_s[file.name] = timed_run(options, file).wall_s
        (file.parent / "seconds.txt").write_text(json.dumps(walls_s), encoding="utf-8")
    return read_run(file)


@click.command()
@click.option("--pairs", "count", type=click.IntRange(1), default=20, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the run files here; go on with those.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the findings here.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(count: int, folder: Path | None, json_file: Path | None, options: tuple[str, ...]) -> None:
    """Compare runs of the same code, pair by pair; OPTIONS are those of each run."""
    pairs: list[tuple[Run, Run]] = []
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as kept:
        place = Path(kept)
        place.mkdir(parents=True, exist_ok=True)
        seconds = place / "seconds.txt"
        walls_s = json.loads(seconds.read_text(encoding="utf-8")) if seconds.exists() else {}
        files = [
            [place / f"{number:02}-{which}.json" for which in ("before", "after")]
            for number in range(1, count + 1)
        ]
        for number, names in enumerate(files, start=1):
            before, after = (measured(file, options or ("--quick",), walls_s) for file in names)
            pairs.append((before, after))
            ratio = compare_runs(before, after).median_ratio
            click.echo(f"pair {number} of {count}: median ratio {ratio:.3f}")
    report = report_of(pairs, [walls_s[file.name] for names in files for file in names])
    click.echo(text_of(report))
    if json_file is not None:
        json_file.write_text(json.dumps(to_builtins(report), indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if report.broken else 0)


if __name__ == "__main__":
    main()
