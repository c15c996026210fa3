"""Triton's launches for a GPU of the table that need not be present."""

import dataclasses
from contextlib import AbstractContextManager

from ...kernels import launch_patches
from ..core.gpus import Gpu
from .default_tilings import kernel_limits


def launches_patched(
    gpu: Gpu, launch: launch_patches.Launch, *, sm_count: int | None = None, each_configuration: bool = True
) -> AbstractContextManager[None]:
    """`launch_patches.launches_patched` with the limits of a GPU.

    Args:
        gpu: the GPU to compile for.
        launch: called instead of a launch.
        sm_count: SMs that the host functions see; None for the GPU's own.
        each_configuration: whether all configurations of an autotuned kernel are launched, else the first.

    Raises:
        RuntimeError: on entry, if this process runs Triton's interpreter.
    """
    limits = kernel_limits(gpu)
    if sm_count is not None:
        limits = dataclasses.replace(limits, sm_count=sm_count)
    return launch_patches.launches_patched(limits, launch, each_configuration=each_configuration)
