"""DRAM bytes and tensor-core activity of timed rows, from hardware counters through nsight-python.

Nsight Compute attaches before CUDA is initialised and replays each kernel. Counters are therefore read after
the timing, in a process of their own: run as a program, this module takes a job as JSON on standard input and
writes one line of JSON for each row.
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

from ..core.errors import one_line
from ..core.inputs import Source, draw, in_layout
from ..core.records import Row, Run
from ..core.run_file import run_of
from ..core.worker_processes import safe_environment
from .device import Device
from .library_providers import installed
from .providers import PROVIDERS, Provider, user_providers
from .tilings import TUNABLE

OPERATIONS = ("prefill_matmul", "decode_attention", "prefill_attention")
"""Operations whose rows get counters: those of one or two kernels."""

DRAM_READ, DRAM_WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"

TENSOR_CORES_ACTIVE = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"
"""Percent of cycles with active tensor cores, for the instructions of any GPU generation."""

NEEDED = "Nsight Compute 2026.2.1 or newer, on the path, and permission to profile"
"""What nsight-python needs from version 1.0 on: docs.nvidia.com/nsight-python, Runtime Requirements."""

Counters = Mapping[str, float]
Profile = Callable[[Callable[[], object], Sequence[str], Callable[[Any, Any], Any]], dict[str, float]]
"""Profiles a call: the value of each metric, those of several launches combined by a function."""


def read_counters(run: Run, device: Device, progress: Callable[[float, str], None]) -> str | None:
    """Add hardware counters to the rows of a run.

    Args:
        run: the run; its ok rows of OPERATIONS get counters.
        device: the device that the run was timed on.
        progress: takes the share that is done, 0 to 1, and the case.

    Returns:
        Why some or all rows have no counters; None if all have them.
    """
    if device.kind != "cuda":
        return "hardware counters are those of a CUDA GPU, this run was on a CPU"
    if not installed("nsight"):
        return f"nsight-python is not installed (pip install nsight-python); it needs {NEEDED}"
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
    """The answers of the profiling process, line by line; at the end the reason if it failed."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as question, tempfile.TemporaryFile("w+") as errors:
        json.dump(job, question)
        question.seek(0)
        command = [sys.executable, "-m", __name__]
        with subprocess.Popen(
            command,
            stdin=question,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=safe_environment(),
            text=True,
            encoding="utf-8",
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
    # Profilers write to standard output, so it becomes stderr; answers go to a copy of the original.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers, tempfile.TemporaryDirectory() as folder:
        os.dup2(2, 1)
        job = json.load(sys.stdin)
        for answer in _counted(job, partial(_profile, folder)):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _counted(job: Mapping[str, Any], profile: Profile) -> Iterator[dict[str, Any]]:
    """One answer per row; an error of the profiler itself ends the job, as all other rows would fail too."""
    import nsight.exceptions  # noqa: PLC0415  (before CUDA is initialised)

    refusals = (nsight.exceptions.ProfilerException, nsight.exceptions.NCUNotAvailableError)
    run = run_of(job["run"])
    device = torch.device(job["device"])
    source = Source(device, run.settings["seed"])
    own = user_providers(run.settings.get("providers", ()))
    for place in job["rows"]:
        row = run.rows[place]
        try:
            counters = _counters(row, provider_of(row, own), source, profile)
        except Exception as error:  # noqa: BLE001  (a kernel may raise anything; other rows go on)
            if isinstance(error, refusals):
                yield {"place": place, "reason": f"{one_line(error)}; counters need {NEEDED}"}
                return
            yield {"place": place, "reason": one_line(error)}
        else:
            yield {"place": place, "counters": counters}


def provider_of(row: Row, own: Mapping[str, Sequence[Provider]]) -> Provider:
    """The provider of a row, with the variant and the tiling that the row names."""
    operation = row.case.operation
    known = (*PROVIDERS[operation], *own.get(operation, ()))
    provider = next(p for p in known if p.name == row.provider)
    if row.tiling is not None:
        return provider.with_tiling(TUNABLE[operation].tiling(**row.tiling))
    return next(p for p in known if p.variant == row.variant) if provider.best_of else provider


def _counters(row: Row, provider: Provider, source: Source, profile: Profile) -> Counters:
    inputs = in_layout(draw(row.case, source), provider.layout)
    call = provider.bind(inputs) if provider.bind is not None else partial(provider.run, inputs)
    call()  # compiles, and allocates what it keeps
    # Over several launches bytes add up; of the tensor-core shares the largest counts.
    moved = profile(call, (DRAM_READ, DRAM_WRITTEN), lambda one, other: one + other)
    active = profile(call, (TENSOR_CORES_ACTIVE,), _largest)
    for name, value in (moved | active).items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}")
    return {
        "dram_bytes_read": moved[DRAM_READ],
        "dram_bytes_written": moved[DRAM_WRITTEN],
        "matrix_active_share": active[TENSOR_CORES_ACTIVE] / 100,
    }


def _largest(one: Any, other: Any) -> Any:
    """`np.maximum` as a Python function: nsight counts its parameters."""
    return np.maximum(one, other)


def _profile(
    folder: str, call: Callable[[], object], metrics: Sequence[str], combine: Any
) -> dict[str, float]:
    """The metrics of a call by Nsight Compute, with cold caches."""
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
