"""Runs the same code against itself on this machine: a regression that `decodetax compare` finds is wrong.

    python tests/bench/aa_runs.py --pairs 20

Each run is a process of its own, so that memory is laid out anew, as between two versions of a program. Exit
code 1 means that a regression was found.
"""

import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from decodetax.harness.bench.comparison import RunComparison, compare_runs
from decodetax.harness.core.run_file import read_run

QUICK_ROW_S = 0.05
"""Seconds of sampling that `decodetax run --quick` gives a row."""

QUICK_TOTAL_S = {"cpu": 8, "cuda": 60}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Findings in pairs of runs of the same code.

    Attributes:
        regressions: rows called slower by over the limit, with their pair's number from 1: all wrong.
        verdicts: how often each was given; faster and slower are wrong.
        spread: standard deviation of the logarithm of the ratios.
        largest: the ratio farthest from 1.
        missed: share of the 95% intervals that leave out 1: at most 5% where they are honest.
    """

    pairs: int
    regressions: tuple[str, ...]
    verdicts: Counter[str]
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
        verdicts=Counter(row.verdict for row in rows),
        spread=statistics.pstdev(shifts),
        largest=math.exp(max(shifts, key=abs)),
        missed=sum(not row.low <= 1 <= row.high for row in known) / max(1, len(known)),
    )


def text_of(found: Findings) -> str:
    """The findings in a few lines."""
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(found.verdicts.items()))
    return "\n".join(
        (
            *found.regressions,
            f"{len(found.regressions)} sure regressions in {found.pairs} pairs of the same code (must be 0)",
            f"verdicts: {verdicts}",
            f"ratios: spread {found.spread:.1%}, farthest from 1 {found.largest:.3f}",
            f"95% intervals that leave out 1: {found.missed:.1%}",
        )
    )


def one_run(target: Path, row_limit_s: float) -> None:
    """Measure as `decodetax run --quick` does, with this many seconds per row, into a file."""
    from decodetax.harness.bench.device import open_device  # noqa: PLC0415
    from decodetax.harness.bench.session import Settings, begin, measure  # noqa: PLC0415
    from decodetax.harness.core.language_model import load_timed_model  # noqa: PLC0415

    device = open_device("auto")
    gpu = device.kind == "cuda"
    settings = Settings(
        model=load_timed_model("llama-3.1-8b" if gpu else "llama-3.2-1b"),
        batches=(1, 8),
        contexts=(256,),
        prompt=None,
        prefill_tokens=1024 if gpu else 256,
        dtype="auto",
        usd_per_hour=None,
        row_limit_s=row_limit_s,
        ceiling_limit_s=0.05,
        total_limit_s=QUICK_TOTAL_S[device.kind] * row_limit_s / QUICK_ROW_S,
    )
    run = begin(settings, device)
    measure(run, settings, device, lambda _done, _what: None)
    target.write_text(json.dumps(run.to_json(), allow_nan=False), encoding="utf-8")


@click.command()
@click.option("--pairs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--row-limit-s", type=click.FloatRange(0.001), default=QUICK_ROW_S, show_default=True)
@click.option("--one", type=click.Path(path_type=Path), hidden=True)
def main(pairs: int, row_limit_s: float, one: Path | None) -> None:
    """Compare runs of the same code, pair by pair."""
    if one is not None:
        one_run(one, row_limit_s)
        return
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("before.json", "after.json")]
        for number in range(1, pairs + 1):
            for file in files:
                command = [sys.executable, __file__, "--one", str(file), "--row-limit-s", str(row_limit_s)]
                subprocess.run(command, check=True)
            comparisons.append(compare_runs(*map(read_run, files)))
            click.echo(f"pair {number} of {pairs}: median ratio {comparisons[-1].median_ratio:.3f}")
    found = findings(comparisons)
    click.echo(text_of(found))
    sys.exit(1 if found.regressions else 0)


if __name__ == "__main__":
    main()
