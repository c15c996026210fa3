"""`decodetax doctor`: whether `decodetax run` can work on this machine, and on what."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from ..core import options
from ..core.errors import FAILED as EXIT_FAILED
from ..core.errors import FailureError
from ..core.progress import progress_bar
from ..core.table import Column, Table, prose
from ..core.worker_processes import Crash, run_jobs
from .checks import conclusion, findings, ways
from .facts import FAILED, Answer, Facts, Finding
from .probes import FORMS

PROBE_LIMIT_S, FORM_LIMIT_S, TOTAL_LIMIT_S = 20.0, 20.0, 52.0
"""Seconds for an import or the device, for one form of a kernel, and for all of them."""

_WORKER = f"{__package__}.probes"
_IMPORTS = ("torch", "triton", "numpy", "nvidia")


@click.command("doctor")
@options.JSON
def doctor_command(as_json: bool) -> int:
    """Check this machine: versions, GPU, compiler, folders, and every form of the kernels.

    The forms are compiled and run on a GPU; without one they are interpreted, and compiled for GPUs and
    executed on the CPU, within a minute. Each check that is not ok says what it means for `decodetax run`.
    Exit code 1 means that `decodetax run` cannot work here.
    """
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


def _table(found: Sequence[tuple[str, Finding]]) -> Table:
    columns = (Column("check"), Column("status"), Column("finding"))
    rows = (
        (name, each.status, each.text + (each.consequence and f"; {each.consequence}"))
        for name, each in found
    )
    return Table(columns=columns, rows=tuple(rows))


def gather(progress: Callable[[float, str], None]) -> Facts:
    """The facts of this machine: imports first, then the device, then the forms of the kernels."""
    end_s = time.monotonic() + TOTAL_LIMIT_S

    def ask(jobs: Sequence[Mapping[str, str]], limit_s: float, processes: int) -> list[Answer]:
        answers: dict[int, Answer] = {}

        def on_answer(at: int, answer: Any) -> None:
            answers[at] = {"broken": answer.reason} if isinstance(answer, Crash) else answer
            progress(1 - (end_s - time.monotonic()) / TOTAL_LIMIT_S, " ".join(jobs[at].values()))

        def left_s() -> float:
            return min(limit_s, end_s - time.monotonic())

        run_jobs(_WORKER, jobs, on_answer, processes=processes, limit_s=left_s)
        return [answers[at] for at in range(len(jobs))]

    imports = ask([{"probe": name} for name in _IMPORTS], PROBE_LIMIT_S, 2)
    torch, triton, numpy, nvidia = imports
    facts = Facts(torch=torch, triton=triton, numpy=numpy, nvidia=nvidia, device={"broken": "was not asked"})
    if not facts.imports:
        return facts
    [device] = ask([{"probe": "device"}], PROBE_LIMIT_S, 1)
    facts = dataclasses.replace(facts, device=device)
    jobs = [{"form": name, "how": how} for name, form in FORMS.items() for how in ways(form, facts)]
    forms: dict[tuple[str, str], Answer] = {}
    for interpreted in (True, False):  # a process does either
        mine = [job for job in jobs if (job["how"] == "interpreted") == interpreted]
        alone = facts.device.get("compute_mode", "default") != "default"
        answers = ask(mine, FORM_LIMIT_S, 1 if alone else 2)
        forms |= {(job["form"], job["how"]): answer for job, answer in zip(mine, answers, strict=True)}
    return dataclasses.replace(facts, forms=forms)
