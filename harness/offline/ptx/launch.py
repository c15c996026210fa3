"""Executes what a Triton host function launches: compiled for a GPU that need not be present, on CPU tensors.

with executed(find_gpu("a100"), sm_count=4) as execution:
    out = kernels.decode_attention(query, key, value, lengths)
execution.violations, execution.launches
"""

import contextlib
import ctypes
import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from ...core.gpus import Gpu, find_gpu
from ..offline_driver import launches_patched
from ..uninitialized import UninitializedShadow, UninitializedTracker
from .arguments import Arguments, span
from .counters import LaunchCounters
from .executable import Executable
from .figures import LaunchFigures, launch_figures
from .global_memory import GlobalMemory
from .lanes import Array
from .violations import Violation

Edit: TypeAlias = Callable[[str, str], str]
"""From a kernel's name and PTX to the PTX that is executed."""

_NAN_BYTE = 0xFF


@dataclass(frozen=True, kw_only=True)
class ExecutedLaunch:
    """One executed launch.

    Attributes:
        kernel: name of the Triton function.
        grid: number of CTAs along each axis.
        num_warps: warps of a CTA.
        shared_bytes: shared memory of a CTA.
        ctas: CTAs executed: fewer than the grid's where one is stuck.
        seconds: time that the execution took.
        counters: executed figures.
        compiled: Triton's compiled kernel.
    """

    kernel: str
    grid: tuple[int, ...]
    num_warps: int
    shared_bytes: int
    ctas: int
    seconds: float
    counters: LaunchFigures
    compiled: Any


@dataclass
class Execution:
    """What was launched within `executed`.

    Attributes:
        violations: what kernels may not do, each with kernel, place and PTX line.
        notes: the same of what is harmless.
        launches: in order.
        uninitialized: follows what host functions allocate and nothing has written yet.
    """

    seed: int = 0
    edit: Edit | None = None
    violations: list[Violation] = field(default_factory=list)
    notes: list[Violation] = field(default_factory=list)
    launches: list[ExecutedLaunch] = field(default_factory=list)
    _dead: list[tuple[int, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self.uninitialized = _Poisoned()

    def forbid(self, tensor: torch.Tensor, dead: torch.Tensor) -> None:
        """Forbids kernels to read dead elements of a tensor, and what lies between its elements.

        Args:
            tensor: any strides.
            dead: bool, broadcast over the tensor's trailing dimensions.
        """
        while dead.dim() < tensor.dim():
            dead = dead[..., None]
        marks = torch.ones(span(tensor.shape, tensor.stride()), dtype=torch.bool)
        marks.as_strided(tensor.shape, tensor.stride()).copy_(dead.expand(tensor.shape))
        self._dead.append((tensor.data_ptr(), np.repeat(marks.numpy(), tensor.element_size())))

    def _track_unwritten(self, memory: GlobalMemory, tensor: torch.Tensor) -> None:
        shadow = self.uninitialized.shadow_of(tensor)
        if shadow is not None:
            self.uninitialized.find_written(tensor, shadow)
            shadow.refine(1)
            memory.track_unwritten(tensor.untyped_storage().data_ptr(), shadow.mask)

    def execute(self, kernel: str, compiled: Any, grid: tuple[int, ...], values: Mapping[str, Any]) -> None:
        """Executes one launch.

        Args:
            kernel: name of the Triton function.
            compiled: Triton's compiled kernel.
            grid: number of CTAs along each axis.
            values: arguments by name.

        Raises:
            UnsupportedPtxError: names the PTX line and instruction, or the argument, that is not known.
        """
        ptx = compiled.asm["ptx"]
        if self.edit is not None:
            ptx = self.edit(kernel, ptx)
        executable = _executable(ptx, compiled.metadata.shared)
        arguments = Arguments(compiled, values, executable.kernel.parameters, grid)
        for tensor in arguments.tensors:
            self._track_unwritten(arguments.memory, tensor)
        for start, dead in self._dead:
            arguments.memory.forbid(start, dead)
        started_s = time.perf_counter()
        counters = LaunchCounters(len(executable.kernel.blocks))
        found, ctas = executable.launch(
            grid,
            arguments.parameters,
            arguments.memory,
            tensor_maps=arguments.tensor_maps,
            rng=self._rng,
            counters=counters,
        )
        self.launches.append(
            ExecutedLaunch(
                kernel=kernel,
                grid=grid,
                num_warps=compiled.metadata.num_warps,
                shared_bytes=compiled.metadata.shared,
                ctas=ctas,
                seconds=time.perf_counter() - started_s,
                counters=launch_figures(executable.kernel, counters),
                compiled=compiled,
            )
        )
        self.violations += [each for each in found if not each.kind.harmless]
        self.notes += [each for each in found if each.kind.harmless]


@functools.lru_cache(maxsize=64)
def _executable(ptx: str, shared_bytes: int) -> Executable:
    return Executable(ptx, shared_bytes)


@contextlib.contextmanager
def executed(
    gpu: Gpu | int, *, sm_count: int | None = None, seed: int = 0, edit: Edit | None = None
) -> Iterator[Execution]:
    """Within it, Triton launches on CPU tensors are compiled for a GPU and executed at once.

    Host functions of this package choose their tilings as on that GPU. A kernel under `triton.autotune` is
    executed in its first configuration, as a later one would overwrite its result. New tensors of
    `torch.empty` and its variants start as NaN bytes, and reading what nothing wrote is a violation.

    Args:
        gpu: a GPU with SM limits, or a compute capability such as 80.
        sm_count: SMs that the host functions see; None for the GPU's own.
        seed: of the order of CTAs.
        edit: changes the PTX before it is executed.

    Raises:
        UsageError: no GPU of that compute capability in the table.
        RuntimeError: this process runs Triton's interpreter.
    """
    if isinstance(gpu, int):
        gpu = find_gpu(f"sm_{gpu}", with_limits=True)
    execution = Execution(seed=seed, edit=edit)

    def launch(run: Callable[..., Any], function: Any, args: Any, grid: Any, kwargs: dict[str, Any]) -> Any:
        compiled = run(*args, grid=grid, warmup=True, **kwargs)
        values = _defaults(function) | dict(zip(function.arg_names, args, strict=False)) | kwargs
        execution.execute(
            function.__name__, compiled, tuple(grid(values) if callable(grid) else grid), values
        )
        return compiled

    patched = launches_patched(gpu, launch, sm_count=sm_count, each_configuration=False)
    with patched, execution.uninitialized:
        yield execution


def _defaults(function: Any) -> dict[str, Any]:
    """Default values of a Triton function's parameters, by name."""
    parameters = inspect.signature(function.fn).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


class _Poisoned(UninitializedTracker):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Tracks what nothing has written, and fills it with NaN bytes."""

    def add(self, tensor: torch.Tensor) -> None:
        super().add(tensor)
        storage = tensor.untyped_storage()
        ctypes.memset(storage.data_ptr(), _NAN_BYTE, storage.nbytes())

    @staticmethod
    def find_written(tensor: torch.Tensor, shadow: UninitializedShadow) -> None:
        """Marks elements that no longer are what they were filled with: written past torch, as by numpy."""
        storage = tensor.untyped_storage()
        size = tensor.element_size()
        if not shadow.mask.any() or storage.nbytes() % size:
            return
        now = np.ctypeslib.as_array((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()))
        written = (now.reshape(-1, size) != _NAN_BYTE).any(1)
        shadow.refine(size)
        shadow.mask &= ~np.repeat(written, size // shadow.granule_bytes)
