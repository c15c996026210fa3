"""`decodetax doctor`: whether `decodetax run` can work on this machine, and on what."""

import json
import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..core import options
from ..core.errors import FAILED as EXIT_FAILED
from ..core.errors import FailureError
from ..core.progress import progress_bar
from ..core.table import Column, Table, prose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .checks import Finding


@click.command("doctor")
@options.JSON
def doctor_command(as_json: bool) -> int:
    """Check this machine: versions, GPU, compiler, folders, and every form of the kernels.

    The forms are compiled and run on a GPU; without one they are interpreted, and compiled for GPUs and
    executed on the CPU, within a minute. Each check that is not ok says what it means for `decodetax run`.
    Exit code 1 means that `decodetax run` cannot work here.
    """
    from .checks import FAILED, conclusion, findings
    from .facts import gather

    try:
        tempfile.gettempdir()
    except OSError as error:
        raise FailureError("no folder for temporary files can be written; let TMPDIR name one") from error
    with progress_bar() as progress:
        facts = gather(progress)
    found = list(findings(facts))
    sentence = conclusion(facts, found)
    works = all(finding.status != FAILED for _, finding in found)
    if as_json:
        rows = [{"check": name, **asdict(finding)} for name, finding in found]
        device = facts.device.get("kind") if works else None
        document = {"schema_version": 1, "rows": rows, "run_device": device, "conclusion": sentence}
        click.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        click.echo(_table(found).text())
        click.echo(prose(f"\n{sentence}", wide=False))
    return 0 if works else EXIT_FAILED


def _table(found: "Sequence[tuple[str, Finding]]") -> Table:
    columns = (Column("check"), Column("status"), Column("finding"))
    rows = (
        (name, each.status, each.text + (each.consequence and f"; {each.consequence}"))
        for name, each in found
    )
    return Table(columns=columns, rows=tuple(rows))
