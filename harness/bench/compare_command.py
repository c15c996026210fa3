"""`decodetax compare`: two runs against each other."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core import options
from ..core.errors import UsageError, path_text

if TYPE_CHECKING:
    from ..core.records import Run

WORSE = 1
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
    help="Exit with code 1 where a row is slower by surely more than this.",
)
@click.option(
    "--across-devices", is_flag=True, help="Judge runs of different devices too; else none is a regression."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
def compare_command(
    before_file: Path, after_file: Path, limit: float, across_devices: bool, as_json: bool
) -> int:
    """Tell which kernels became faster or slower between two runs, and of which that is not sure.

    Exit code 1 means that a row is surely slower by more than the limit, or was right before and is wrong
    now; 2 a wrong argument or file.
    """
    from ..core.run_file import read_run
    from .comparison import compare

    before, after = read_run(before_file), read_run(after_file)
    comparison = compare(before, after, limit=limit, across_devices=across_devices)
    if comparison.empty:
        sides = " and ".join(_workload(run) for run in (before, after))
        raise UsageError(
            f"AFTER.json: {str(after_file)!r} has no row to compare with {str(before_file)!r}: {sides}"
        )
    files = {"before": path_text(before_file), "after": path_text(after_file)}
    if as_json:
        click.echo(json.dumps({**files, **comparison.to_json()}, indent=1, allow_nan=False))
    else:
        from .comparison_text import comparison_text

        click.echo(comparison_text(comparison, list(zip(files.values(), (before, after), strict=True))))
    return WORSE if comparison.worse else 0


def _workload(run: "Run") -> str:
    settings = run.settings
    return f"{settings['model']['name']} in {settings['dtype']} with {len(run.rows)} rows"
