"""Triton without a GPU: a driver that names the target, and patches that hand each launch to a function."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner

from . import launch as _launch  # noqa: F401  (loaded before a launch is replaced: it keeps Triton's own)
from .interpreter import interpreting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .gpu_limits import GpuLimits

Launch: TypeAlias = Callable[[Callable[..., Any], Any, tuple[Any, ...], Any, dict[str, Any]], Any]
"""Replaces a launch. Takes Triton's own `run`, the Triton function, the arguments by position, the grid, and
the arguments by name; returns the compiled kernel."""


class _OfflineDriver(DriverBase):  # type: ignore[misc]  # Triton ships no types
    """A driver of a GPU that is not present: it names the target and launches nothing."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # one device per target keeps their compiled code apart

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing runs on a GPU that is not present")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError(f"nothing is launched with a {ty}")

    @classmethod
    def is_active(cls) -> bool:
        return True


@contextlib.contextmanager
def launches_patched(limits: GpuLimits, launch: Launch, *, each_configuration: bool = True) -> Iterator[None]:
    """Within it, `launch` replaces every Triton launch, and the target is a GPU that need not be present.

    Host functions of this package accept CPU tensors and choose their tilings as on that GPU. A kernel under
    `triton.autotune` is launched in each of its configurations, or in the first.

    Args:
        limits: of the GPU to compile for, as host functions see them.
        launch: called instead of a launch.
        each_configuration: whether all configurations of an autotuned kernel are launched, else the first
            that its pruning leaves.

    Raises:
        RuntimeError: this process runs Triton's interpreter.
    """
    if interpreting():
        raise RuntimeError(
            "kernels are interpreted in this process; unset TRITON_INTERPRET before triton is imported"
        )
    run = triton.JITFunction.run

    def launched(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:  # noqa: ARG001  (never run)
        return launch(lambda *a, **k: run(self, *a, **k), self, args, grid, kwargs)

    with contextlib.ExitStack() as patches:
        patches.enter_context(_patched(driver, "_active", _OfflineDriver(limits.compute_capability)))
        patches.enter_context(_patched(triton.JITFunction, "run", launched))
        patches.enter_context(_patched(Autotuner, "run", _run_each if each_configuration else _run_first))
        for module in _modules_of_kernels():
            # The kernels' argument checks accept CPU tensors where kernels are interpreted.
            for name, fake in (("gpu_limits", lambda _device: limits), ("interpreting", lambda: True)):
                if name in vars(module):
                    patches.enter_context(_patched(module, name, fake))
        patches.enter_context(warnings.catch_warnings())
        # Triton 3.9 warns at its first compilation that one of its defaults will change.
        warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
        yield


def _modules_of_kernels() -> list[Any]:
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(f"{__package__}.") and name != __name__ and module
    ]


@contextlib.contextmanager
def _patched(owner: Any, name: str, replacement: object) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _run_each(self: Any, *args: Any, **kwargs: Any) -> None:
    """Runs every configuration of `triton.autotune`, which would time them and choose one."""
    _run_configurations(self, None, args, kwargs)


def _run_first(self: Any, *args: Any, **kwargs: Any) -> None:
    """Runs the first configuration of `triton.autotune`."""
    _run_configurations(self, 1, args, kwargs)


def _run_configurations(
    autotuner: Any, most: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    autotuner.nargs = dict(zip(autotuner.arg_names, args, strict=False))
    for config in list(autotuner.prune_configs(kwargs))[:most]:
        if config.pre_hook is not None:
            config.pre_hook({**autotuner.nargs, **kwargs, **config.all_kwargs()})
        autotuner.fn.run(*args, **kwargs, **config.all_kwargs())
