"""What a provider can change in this process: read before it runs, compared and put back after it.

A provider runs in the process that measures. One that leaves another number of threads or another precision
would change the times and results of all that follow it.
"""

import contextlib
import gc
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENVIRONMENT_PREFIXES = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "CUBLAS_")
"""Beginnings of the environment variables that set threads and instructions of the libraries."""

ENVIRONMENT_NAMES = (
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_TF32_OVERRIDE",
    "TRITON_INTERPRET",
)
"""Further environment variables that change how a provider computes."""

_TASKS = Path("/proc/self/task")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of the process.

    Attributes:
        name: the setting in words.
        read: gives its value, which `==` compares.
        write: sets it.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set for one backend alone
        return "mixed"


def _flushes_denormals() -> bool:
    """Whether this thread takes subnormal numbers as 0; only a product tells."""
    return float(torch.full((1,), 1e-40) * 1.0) == 0.0


def _affinity() -> frozenset[int]:
    """The CPUs that this thread may run on; empty where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def _set_affinity(cpus: frozenset[int]) -> None:
    """Set the CPUs of this thread, and of every thread that has its present ones: it may have begun since."""
    inherited = _affinity()
    with contextlib.suppress(OSError):
        for thread in [int(task.name) for task in _TASKS.iterdir()]:
            if frozenset(os.sched_getaffinity(thread)) == inherited:
                os.sched_setaffinity(thread, cpus)
    os.sched_setaffinity(0, cpus)


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(ENVIRONMENT_PREFIXES) or name in ENVIRONMENT_NAMES
    }


def _set_environment(before: Mapping[str, str]) -> None:
    for name in _environment().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _modes() -> tuple[int, int]:
    """Modes of `torch.overrides` and `torch.utils._python_dispatch`, which see each call to PyTorch."""
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()  # noqa: SLF001


def _pop_modes(before: tuple[int, int]) -> None:
    functions, dispatches = _modes()
    for _ in range(functions - before[0]):
        torch._C._pop_torch_function_stack()  # noqa: SLF001
    for _ in range(dispatches - before[1]):
        torch._C._pop_torch_dispatch_stack(None)  # noqa: SLF001


def _autocast() -> dict[str, bool]:
    return {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}


def _set_autocast(before: Mapping[str, bool]) -> None:
    for kind, enabled in before.items():
        torch.set_autocast_enabled(kind, enabled)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(before: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _attribute(name: str, owner: Any, attribute: str) -> Setting:
    return Setting(
        name=name,
        read=partial(getattr, owner, attribute, None),
        write=lambda value: setattr(owner, attribute, value),
    )


_CUDA: Any = torch.backends.cuda

SETTINGS: Sequence[Setting] = (
    Setting(name="PyTorch's modes", read=_modes, write=_pop_modes),
    Setting(name="the number of threads", read=torch.get_num_threads, write=torch.set_num_threads),
    Setting(name="the default dtype", read=torch.get_default_dtype, write=torch.set_default_dtype),
    Setting(
        name="the precision of float32 products",
        read=_matmul_precision,
        write=torch.set_float32_matmul_precision,
    ),
    Setting(name="deterministic algorithms", read=_deterministic, write=_set_deterministic),
    Setting(name="the grad mode", read=torch.is_grad_enabled, write=torch.set_grad_enabled),
    Setting(name="autocast", read=_autocast, write=_set_autocast),
    Setting(name="the flushing of denormals", read=_flushes_denormals, write=torch.set_flush_denormal),
    Setting(
        name="the use of oneDNN",
        read=torch._C._get_mkldnn_enabled,  # noqa: SLF001
        write=torch._C._set_mkldnn_enabled,  # noqa: SLF001
    ),
    Setting(name="the use of flash attention", read=_CUDA.flash_sdp_enabled, write=_CUDA.enable_flash_sdp),
    Setting(
        name="the use of memory-efficient attention",
        read=_CUDA.mem_efficient_sdp_enabled,
        write=_CUDA.enable_mem_efficient_sdp,
    ),
    Setting(name="the use of unfused attention", read=_CUDA.math_sdp_enabled, write=_CUDA.enable_math_sdp),
    Setting(name="the use of cuDNN attention", read=_CUDA.cudnn_sdp_enabled, write=_CUDA.enable_cudnn_sdp),
    *(
        _attribute(f"cuBLAS's {attribute}", _CUDA.matmul, attribute)
        for attribute in (
            "allow_bf16_reduced_precision_reduction",
            "allow_fp16_reduced_precision_reduction",
        )
    ),
    Setting(
        name="the garbage collector",
        read=gc.isenabled,
        write=lambda enabled: gc.enable() if enabled else gc.disable(),
    ),
    Setting(name="the CPU affinity", read=_affinity, write=_set_affinity),
    Setting(name="environment variables", read=_environment, write=_set_environment),
    Setting(name="the current folder", read=os.getcwd, write=os.chdir),
)
"""Read before and after each provider; a device adds its own."""

_OWNERS: Sequence[Any] = (time, torch, Tensor, torch._C.TensorBase, torch.nn.functional)  # noqa: SLF001
"""Modules and classes whose functions a provider must not replace."""


def _functions() -> list[tuple[Any, dict[str, Any]]]:
    """The attributes of each owner now."""
    return [(owner, dict(vars(owner))) for owner in _OWNERS]


def _replaced(before: Sequence[tuple[Any, dict[str, Any]]]) -> Iterator[tuple[Any, str, Any]]:
    """Owner, name and former value of each function that is another one now.

    A class's new function that takes the place of an inherited one has the former value None.
    """
    for owner, attributes in before:
        now = vars(owner)
        if len(now) == len(attributes) and all(map(operator.is_, attributes.values(), now.values())):
            continue
        for name, value in attributes.items():
            if callable(value) and now.get(name) is not value:
                yield owner, name, value
        for name in now.keys() - attributes.keys() if isinstance(owner, type) else ():
            if any(hasattr(base, name) for base in owner.__bases__):
                yield owner, name, None


class ProcessState:
    """The settings of the process when this object is made."""

    def __init__(self, of_device: Sequence[Setting] = ()) -> None:
        self._settings = (*SETTINGS, *of_device)
        self._values = [setting.read() for setting in self._settings]
        self._functions = _functions()

    def restore(self) -> list[str]:
        """Put back what has changed since; each change in words."""
        changes = []
        for owner, name, value in list(_replaced(self._functions)):
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
            changes.append(f"replaced {getattr(owner, '__name__', owner)}.{name}")
        for setting, before in zip(self._settings, self._values, strict=True):
            now = setting.read()
            if now != before:
                changes.append(_change(setting.name, before, now))
                setting.write(before)
        return changes


def _change(name: str, before: Any, now: Any) -> str:
    """A change in words; of a set of values only those that differ."""
    if isinstance(before, Mapping):
        differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        return f"changed {name}: " + ", ".join(f"{key} to {now.get(key)}" for key in differing)
    return f"changed {name} from {_text(before)} to {_text(now)}"


def _text(value: Any) -> str:
    if isinstance(value, frozenset):
        return "{" + ", ".join(map(str, sorted(value))) + "}"
    return str(value)
