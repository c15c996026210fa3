"""Compiles tilings into Triton's cache without touching the GPU: a worker of `compile_ahead`."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
import torch

from ... import kernels
from ...kernels import GpuLimits
from ...kernels.launch_patches import launches_patched
from ..core.cases import Case
from ..core.errors import one_line
from ..core.inputs import BlankSource, Inputs, draw
from ..core.worker_processes import serve_jobs
from .tilings import TUNABLE

# Loaded now: within `launches_patched`, importing them would choose interpreted kernels.
_HOST_FUNCTIONS = kernels.decode_attention, kernels.prefill_attention, kernels.prefill_matmul

NICENESS = 10
"""Compilation gives way to the process that times on the GPU."""


def compile_tiling(job: Mapping[str, Any]) -> str | None:
    """Compile what a case launches with a tiling, for a GPU of these limits.

    The arguments are CPU tensors of the shapes and strides that the GPU call has, so that the compiled code
    is found in Triton's cache.

    Args:
        job: the case, the GPU's limits and the tiling, as JSON objects.

    Returns:
        The compiler's error, or None.
    """
    case = msgspec.convert(job["case"], Case)
    tunable = TUNABLE[case.operation]
    errors: list[str] = []

    def compile_launch(
        run: Callable[..., Any], function: Any, args: tuple[Any, ...], grid: Any, kwargs: dict[str, Any]
    ) -> Any:
        try:
            return run(*args, grid=grid, warmup=True, **kwargs)
        except Exception as error:  # noqa: BLE001  (any compiler error is the answer)
            errors.append(f"{function.__name__}: {one_line(error)}")
            return None

    with launches_patched(GpuLimits(**job["limits"]), compile_launch):
        tunable.run(_inputs(case), tunable.tiling(**job["tiling"]))
    return errors[0] if errors else None


def answer(job: Mapping[str, Any]) -> dict[str, str | None]:
    """The answer to a job: `error` is the compiler's. Any other error leaves the tiling to be tried."""
    if not job:  # the question whether this process works
        return {"error": None}
    try:
        return {"error": compile_tiling(job)}
    except Exception as error:  # noqa: BLE001  (such as no memory for the inputs)
        return {"error": None, "not_compiled": one_line(error)}


@lru_cache(maxsize=1)
def _inputs(case: Case) -> Inputs:
    inputs: Any = draw(case, BlankSource(torch.device("cpu"), 0))
    # Its output was poisoned, and so takes memory; this one takes none.
    blank: Inputs = dataclasses.replace(inputs, out=torch.empty_like(inputs.out))
    return blank


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.nice(NICENESS)
    serve_jobs(answer)
