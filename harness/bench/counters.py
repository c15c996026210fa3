"""DRAM bytes and matrix-unit activity of timed rows, by the GPU's own counters, through nsight-python.

Nsight Compute attaches before CUDA is initialised and replays each kernel, so counters are read when the
timing is over, in a process of its own: run as a program, this module takes a job as JSON on standard input
and answers a line of JSON a row.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ...kernels import DecodeTiling, MatmulTiling
from ..core.errors import one_line
from ..core.inputs import Source, draw
from ..core.records import Row, Run
from ..core.run_file import run_of
from .device import Device
from .library_providers import installed
from .providers import PROVIDERS, Provider, user_providers

OPERATIONS = ("prefill_matmul", "decode_attention")
"""Whose rows are counted: those that one kernel or two make up."""

DRAM_READ, DRAM_WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"

MATRIX_ACTIVE = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"
"""Of the matrix units, by whichever instructions of a GPU's generation reach them."""

Counters = Mapping[str, float]
Profile = Callable[[Callable[[], object], Sequence[str], Callable[[Any, Any], Any]], dict[str, float]]
"""Runs a call once and gives each metric's value, those of several launches combined by a Python function."""


def read_counters(run: Run, device: Device, progress: Callable[[float, str], None]) -> str | None:
    """Put counters into the rows of a run that one can read here.

    Args:
        run: its ok rows of OPERATIONS get them.
        device: the one it was timed on.
        progress: told the share that is done, and the case.

    Returns:
        Why some or all rows have none; None where all have.
    """
    if device.kind != "cuda":
        return "hardware counters are those of a CUDA GPU, this run was on a CPU"
    if not installed("nsight"):
        return "nsight-python is not installed (pip install nsight-python)"
    places = [
        place for place, row in enumerate(run.rows) if row.status == "ok" and row.case.operation in OPERATIONS
    ]
    job = {"device": str(device.torch_device), "rows": places, "run": run.to_json()}
    reasons: list[str] = []
    answered = 0
    for answer in _answers(job):
        answered += "place" in answer
        if "place" in answer and "counters" in answer:
            row = run.rows[answer["place"]]
            run.rows[answer["place"]] = dataclasses.replace(row, counters=answer["counters"])
            progress(answered / len(places), row.case.id)
        else:
            reasons.append(str(answer["reason"]))
    return reasons[0] if reasons else None


def _answers(job: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What the process that reads the counters says, line by line, and at last why it died, where it did."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as question, tempfile.TemporaryFile("w+") as errors:
        json.dump(job, question)
        question.seek(0)
        command = [sys.executable, "-m", __name__]
        with subprocess.Popen(
            command, stdin=question, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        ) as process:
            try:
                yield from map(json.loads, process.stdout or ())
                code = process.wait()
            finally:
                process.kill()
        if code:
            errors.seek(0)
            yield {"reason": " ".join(errors.read().split())[-300:] or f"the profiler ended with {code}"}


def main() -> None:
    """Answer a job."""
    # Profilers write to standard output as they please; the answers go to what it was.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers, tempfile.TemporaryDirectory() as folder:
        os.dup2(2, 1)
        job = json.load(sys.stdin)
        for answer in _counted(job, partial(_profile, folder)):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _counted(job: Mapping[str, Any], profile: Profile) -> Iterator[dict[str, Any]]:
    """An answer a row; the first that the profiler itself refuses is the last: it would refuse all others."""
    import nsight.exceptions  # noqa: PLC0415  (before CUDA is initialised, and only where it is asked for)

    refusals = (nsight.exceptions.ProfilerException, nsight.exceptions.NCUNotAvailableError)
    run = run_of(job["run"])
    device = torch.device(job["device"])
    source = Source(device, run.settings["seed"])
    own = user_providers(run.settings.get("providers", ()))
    for place in job["rows"]:
        row = run.rows[place]
        try:
            counters = _counters(row, provider_of(row, own), source, profile)
        except Exception as error:  # noqa: BLE001  (a kernel may raise anything; the others still come)
            yield {"place": place, "reason": one_line(error)}
            if isinstance(error, refusals):
                return
        else:
            yield {"place": place, "counters": counters}


def provider_of(row: Row, own: Mapping[str, Sequence[Provider]]) -> Provider:
    """The provider that a row was timed by: in the form and the tiling that it names."""
    operation = row.case.operation
    known = (*PROVIDERS[operation], *own.get(operation, ()))
    provider = next(each for each in known if each.name == row.provider)
    if row.tiling is not None:
        tilings: Mapping[str, Any] = {"prefill_matmul": MatmulTiling, "decode_attention": DecodeTiling}
        return provider.with_tiling(tilings[operation](**row.tiling))
    if provider.best_of:
        return next(each for each in known if each.variant == row.variant)
    return provider


def _counters(row: Row, provider: Provider, source: Source, profile: Profile) -> Counters:
    inputs = draw(row.case, source)
    call = provider.bind(inputs) if provider.bind is not None else partial(provider.run, inputs)
    call()  # compiles, and allocates what it keeps
    # Bytes of several launches add up; of the shares that matrix units were active, the largest is told.
    moved = profile(call, (DRAM_READ, DRAM_WRITTEN), _sum)
    active = profile(call, (MATRIX_ACTIVE,), _largest)
    for name, value in (moved | active).items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is told to be {value}")
    return {
        "dram_bytes_read": moved[DRAM_READ],
        "dram_bytes_written": moved[DRAM_WRITTEN],
        "matrix_active_share": active[MATRIX_ACTIVE] / 100,
    }


def _sum(one: Any, other: Any) -> Any:
    return one + other


def _largest(one: Any, other: Any) -> Any:
    return np.maximum(one, other)


def _profile(
    folder: str, call: Callable[[], object], metrics: Sequence[str], combine: Any
) -> dict[str, float]:
    """The values of metrics by Nsight Compute, with cold caches."""
    import nsight  # noqa: PLC0415  (loaded before: see `_counted`)

    def profiled(_turn: int) -> None:
        with nsight.annotate("call"):
            call()

    found = nsight.analyze.kernel(
        configs=[(0,)],
        runs=1,
        metrics=list(metrics),
        combine_kernel_metrics=combine,
        verbosity=nsight.VerbosityLevel.SILENT,
        thermal_mode="off",
        output_prefix=os.path.join(folder, ""),  # noqa: PTH118  (a prefix that ends in a separator)
    )(profiled)()
    frame = found.to_dataframe()
    return {str(name): float(value) for name, value in zip(frame["Metric"], frame["AvgValue"], strict=True)}


if __name__ == "__main__":
    main()
