"""Runs `decodetax run` beside busy processes and holds it to its limits of time and memory.

    python tests/bench/busy_runs.py

Exit code 1 means that a limit was broken. With --json the rows are also kept in a file; those that it already
has are not measured again, so that a long series can be measured in parts.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from decodetax.harness.bench.trust import warnings_of
from decodetax.harness.core.records import Run
from decodetax.harness.core.run_file import read_run
from decodetax.harness.core.table import Column, Table, percent
from msgspec import convert, to_builtins
from timed_process import TimedProcess, timed_run

OPTIONS = {"default": (), "quick": ("--quick",)}

WALL_LIMIT_S = {("default", 0): 60, ("quick", 0): 15, ("default", 2): 120, ("quick", 2): 30}
"""Most seconds of a run by its kind and its number of busy neighbours."""

PEAK_LIMIT_BYTES = 3e9
MIN_TIMED_SHARE = 0.5
MIN_PREFILL_SAMPLES = 10

LOOPS = {
    "python": "sum(range(100_000))",
    "torch": "torch.mm(a, a)",
}
"""What a busy process repeats; torch competes for memory bandwidth and vector units too."""

BUSY = """
import os
parent = os.getppid()
if {torch}:
    import torch
    torch.set_num_threads(1)
    a = torch.randn(1500, 1500)
print("busy", flush=True)
while os.getppid() == parent:  # ends with its parent, however that ends
    {loop}
"""


@dataclass(frozen=True, kw_only=True)
class BusyRun:
    """A run beside busy processes.

    Attributes:
        kind: its options, by OPTIONS.
        busy: number of busy processes.
        process: what its process needed.
        timed_share: share of its seconds in timed calls.
        rounds: rounds of its rows, the most.
        prefill_samples: samples of a prefill row, the fewest.
        warnings: why it says that it cannot be trusted.
    """

    kind: str
    busy: int
    process: TimedProcess
    timed_share: float
    rounds: int
    prefill_samples: int
    warnings: tuple[str, ...]

    @property
    def broken(self) -> list[str]:
        """The limits that it broke."""
        name = f"{self.kind} beside {self.busy} busy processes"
        limit_s, process = WALL_LIMIT_S.get((self.kind, self.busy)), self.process
        found = []
        if limit_s is not None and process.wall_s > limit_s:
            found.append(f"{name}: {process.wall_s:.1f} s, at most {limit_s}")
        if process.peak_bytes > PEAK_LIMIT_BYTES:
            found.append(f"{name}: {process.peak_bytes / 1e9:.2f} GB, at most {PEAK_LIMIT_BYTES / 1e9:.0f}")
        if self.busy:
            return found if self.warnings else [*found, f"{name}: does not say that it was disturbed"]
        if self.timed_share < MIN_TIMED_SHARE:
            found.append(f"{name}: {self.timed_share:.0%} in timed calls, at least {MIN_TIMED_SHARE:.0%}")
        if self.kind == "default" and self.prefill_samples < MIN_PREFILL_SAMPLES:
            found.append(f"{name}: {self.prefill_samples} prefill samples, at least {MIN_PREFILL_SAMPLES}")
        return found


@contextlib.contextmanager
def busy_processes(count: int, load: str) -> Iterator[None]:
    """Keep some processes busy; they are killed at the end, however it comes."""
    code = BUSY.format(torch=load == "torch", loop=LOOPS[load])
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()


def busy_run(kind: str, busy: int, process: TimedProcess, run: Run) -> BusyRun:
    """What a run and its process say."""
    rows = [row for row in run.rows if row.status == "ok"]
    return BusyRun(
        kind=kind,
        busy=busy,
        process=process,
        timed_share=run.timed_share,
        rounds=max((len(row.rounds_s) for row in rows), default=0),
        prefill_samples=min((len(row.samples_s) for row in rows if row.case.phase == "prefill"), default=0),
        warnings=tuple(warnings_of(run)),
    )


COLUMNS = {
    "kind": Column("run"),
    "busy": Column("busy processes"),
    "wall_s": Column("wall s", show="{:.1f}".format),
    "limit_s": Column("limit s"),
    "peak_gb": Column("peak GB", show="{:.2f}".format),
    "timed_share": Column("in timed calls", show=percent),
    "rounds": Column("rounds"),
    "prefill_samples": Column("prefill samples"),
    "minor_faults": Column("page faults, M", show="{:.2f}".format),
    "warnings": Column("warnings"),
}


def text_of(runs: Sequence[BusyRun]) -> str:
    """The runs, one a line; why those say that they cannot be trusted; and the limits that they broke."""
    rows = [
        {
            **vars(run),
            "wall_s": run.process.wall_s,
            "limit_s": WALL_LIMIT_S.get((run.kind, run.busy)),
            "peak_gb": run.process.peak_bytes / 1e9,
            "warnings": len(run.warnings),
            "minor_faults": run.process.minor_faults / 1e6,
        }
        for run in runs
    ]
    said = [f"{run.kind} beside {run.busy} says: {line}" for run in runs for line in run.warnings]
    broken = [f"broken: {line}" for run in runs for line in run.broken]
    return "\n".join((Table.select("", COLUMNS, rows).text(), *said, *(broken or ["all limits kept"])))


@click.command()
@click.option("--kind", "kinds", type=click.Choice(list(OPTIONS)), multiple=True, default=list(OPTIONS))
@click.option("--busy", "counts", type=click.IntRange(0), multiple=True, default=(0, 2, 4), show_default=True)
@click.option("--load", type=click.Choice(list(LOOPS)), default="python", show_default=True)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Keep the rows here; go on with those."
)
def main(kinds: tuple[str, ...], counts: tuple[int, ...], load: str, json_file: Path | None) -> None:
    """Run `decodetax run` alone and beside busy processes."""
    runs: list[BusyRun] = []
    if json_file is not None and json_file.exists():
        runs = convert(json.loads(json_file.read_text(encoding="utf-8")), list[BusyRun])
    known = {(run.kind, run.busy) for run in runs}
    for kind, busy in itertools.product(kinds, counts):
        if (kind, busy) in known:
            continue
        click.echo(f"{kind}, {busy} busy processes", err=True)
        with tempfile.TemporaryDirectory() as folder, busy_processes(busy, load):
            target = Path(folder) / "run.json"
            process = timed_run(OPTIONS[kind], target)
            runs.append(busy_run(kind, busy, process, read_run(target)))
        if json_file is not None:
            json_file.write_text(json.dumps(to_builtins(runs), indent=1) + "\n", encoding="utf-8")
    click.echo(text_of(runs))
    sys.exit(1 if any(run.broken for run in runs) else 0)


if __name__ == "__main__":
    main()
