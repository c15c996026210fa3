"""What `decodetax doctor` asks in processes of their own: imports, the device, and the kernels' forms.

A broken installation may raise anything, crash or hang, so nothing here runs in the command's own process.
Run as a program, this module is a worker of `core.worker_processes`: a job names a probe or a form.
"""

import dataclasses
import importlib
import importlib.metadata
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..core.cases import Case, DecodeAttention, PrefillMatmul
from ..core.errors import one_line
from ..core.worker_processes import serve_jobs

PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA_VENDOR, DISPLAY_CLASSES = "0x10de", ("0x0300", "0x0302")


def _imported(name: str) -> dict[str, Any]:
    """The version of a package that is imported now."""
    return {"version": str(importlib.import_module(name).__version__)}


def torch_probe(*, cuda: Any = None) -> dict[str, Any]:
    """Version and build of torch, its pin of Triton, and why it finds no CUDA GPU.

    Args:
        cuda: replaces `torch.cuda` in tests.
    """
    import torch

    return {
        **_imported("torch"),
        "cuda": torch.version.cuda,
        "rocm": getattr(torch.version, "hip", None),
        "triton_pin": _triton_pin(),
        "no_gpu": _no_gpu(cuda or torch.cuda),
    }


def _no_gpu(cuda: Any) -> str | None:
    """Why torch finds no CUDA GPU, in its own words; None if it finds one."""
    if cuda.is_available() and cuda.device_count():
        return None
    try:
        cuda.init()
    except (AssertionError, RuntimeError) as error:
        return re.split(r"\.\s|\n", str(error))[0].rstrip(".")
    return "torch counts none"


def _triton_pin() -> str | None:
    """The version of Triton that the installed torch asks for exactly; None if any will do."""
    for requirement in importlib.metadata.requires("torch") or ():
        if found := re.match(r"(?:pytorch-)?triton[\w-]*\s*\(?==\s*([\w.+]+)", requirement):
            return found[1]
    return None


def _triton_probe() -> dict[str, Any]:
    """Version of Triton; its language is imported too, as kernels need it."""
    importlib.import_module("triton.language")
    return _imported("triton")


def nvidia_probe(*, nvml: Any = None, devices: Path = PCI_DEVICES) -> dict[str, Any]:
    """The driver, its CUDA version and GPUs by NVML, without torch; and how many GPUs the PCI bus has.

    Args:
        nvml: replaces `pynvml` in tests.
        devices: replaces the folder of PCI devices in tests.
    """
    import pynvml

    from ..bench.clocks import nvidia_driver

    on_bus = sum(map(_is_nvidia_gpu, devices.glob("*")))
    try:
        return {"on_bus": on_bus, **nvidia_driver(nvml=nvml or pynvml)}
    except pynvml.NVMLError as error:
        return {"on_bus": on_bus, "problem": one_line(error)}


def _is_nvidia_gpu(folder: Path) -> bool:
    try:
        vendor, kind = ((folder / name).read_text("ascii").strip() for name in ("vendor", "class"))
    except (OSError, ValueError):
        return False
    return vendor == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASSES)


def device_probe(*, cuda: Any = None, nvml: Any = None) -> dict[str, Any]:
    """The device that `decodetax run` takes by default, opened as it opens it, and its state.

    Args:
        cuda: replaces `torch.cuda` in tests.
        nvml: replaces `pynvml` in tests.
    """
    import pynvml
    import torch

    from ..bench import clocks, cpu_facts, session  # noqa: F401  (all that a run imports)
    from ..bench.device import open_device
    from ..core.gpus import gpu_of_device

    cuda, found = cuda or torch.cuda, clocks.Clocks()
    if cuda.is_available() and cuda.device_count():
        # Before the device is opened, which makes this process one of those on the GPU.
        found = clocks.NvmlClocks.of(str(cuda.get_device_properties(0).uuid), nvml=nvml or pynvml)
    state = found.state()
    opened = open_device("auto", cuda=cuda)
    return {
        "kind": opened.kind,
        "name": opened.name,
        "memory_bytes": opened.memory_bytes,
        "free_bytes": opened.free_bytes(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_quota_cores": cpu_facts.cpu_quota_cores(),
        "compute_capability": getattr(opened, "compute_capability", None),
        "in_table": gpu_of_device(opened.name, opened.memory_bytes) is not None,
        "throttle_reasons": found.throttle_reasons(),
        **found.facts(),
        **state,
    }


Prepare = Callable[[Any], tuple[Any, Callable[[], Any]]]
"""Takes drawn inputs; returns those of the oracle, and the call to check on the same values."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of a kernel on one small case.

    Attributes:
        case: its shapes.
        prepare: makes the call to check.
        targets: GPUs that it is compiled and executed for on a machine without one.
        capability: the first and the last compute capability with this form, major and minor in one number.
    """

    case: Case
    prepare: Prepare
    targets: tuple[str, ...]
    capability: tuple[int, int] = (80, 999)


def _provider(name: str) -> Prepare:
    """The call of a provider of `decodetax run`."""

    def prepare(inputs: Any) -> tuple[Any, Callable[[], Any]]:
        from ..bench.providers import PROVIDERS

        provider = next(each for each in itertools.chain(*PROVIDERS.values()) if each.name == name)
        return inputs, partial(provider.run, inputs)

    return prepare


def _matmul_float8(inputs: Any) -> tuple[Any, Callable[[], Any]]:
    """A matmul whose operands are rounded to float8 e4m3, the weight scaled into its range."""
    import torch

    from ... import kernels

    x, weight = (each.to(torch.float8_e4m3fn) for each in (inputs.x, 16 * inputs.weight))
    exact = dataclasses.replace(inputs, x=x.to(inputs.x.dtype), weight=weight.to(inputs.x.dtype))
    return exact, partial(kernels.prefill_matmul, x, weight)


def _decode_attention(inputs: Any) -> tuple[Any, Callable[[], Any]]:
    from ... import kernels

    return inputs, partial(
        kernels.decode_attention, inputs.q, inputs.k_cache, inputs.v_cache, inputs.context_lens
    )


def _decode_float8(inputs: Any) -> tuple[Any, Callable[[], Any]]:
    """Decode attention over caches that are rounded to float8 e4m3."""
    import torch

    from ... import kernels

    k_cache, v_cache = (each.to(torch.float8_e4m3fn) for each in (inputs.k_cache, inputs.v_cache))
    exact = dataclasses.replace(
        inputs, k_cache=k_cache.to(inputs.q.dtype), v_cache=v_cache.to(inputs.q.dtype)
    )
    return exact, partial(kernels.decode_attention, inputs.q, k_cache, v_cache, inputs.context_lens)


def _decode_paged(inputs: Any) -> tuple[Any, Callable[[], Any]]:
    """Decode attention with the tokens of the caches in shuffled pages."""
    import torch

    from ... import kernels

    batch, capacity, *heads = inputs.k_cache.shape
    count = batch * capacity // PAGE_SIZE
    place = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(inputs.q.device)
    k_pages, v_pages = (
        cache.reshape(count, PAGE_SIZE, *heads)[place.argsort()] for cache in (inputs.k_cache, inputs.v_cache)
    )
    table = place.view(batch, -1).to(torch.int32)
    return inputs, partial(
        kernels.decode_attention, inputs.q, k_pages, v_pages, inputs.context_lens, block_table=table
    )


def _matmul(rows: int, in_features: int, out_features: int) -> PrefillMatmul:
    return PrefillMatmul(
        phase="prefill",
        part="doctor",
        rows=rows,
        in_features=in_features,
        out_features=out_features,
        dtype="bf16",
    )


PAGE_SIZE = 16
_FEW_ROWS, _MANY_ROWS = _matmul(3, 1000, 130), _matmul(130, 72, 150)
# Empty, one token, within a tile, and several tiles.
_DECODE = DecodeAttention(
    contexts=(0, 1, 70, 21 * PAGE_SIZE), q_heads=8, kv_heads=2, head_dim=64, dtype="bf16"
)
FORMS: Mapping[str, Form] = {
    "matmul, few rows": Form(
        case=_FEW_ROWS, prepare=_provider("triton-pointers"), targets=("sm_80", "sm_90")
    ),
    "matmul, many rows": Form(case=_MANY_ROWS, prepare=_provider("triton-pointers"), targets=("sm_80",)),
    "matmul by TMA": Form(
        case=_MANY_ROWS,
        prepare=_provider("triton-descriptors"),
        targets=("sm_90",),
        capability=(90, 999),
    ),
    "matmul, warps specialized": Form(
        case=_MANY_ROWS, prepare=_provider("triton-warp-specialized"), targets=(), capability=(100, 109)
    ),
    "matmul, float8": Form(case=_matmul(130, 144, 150), prepare=_matmul_float8, targets=("sm_90",)),
    "decode attention": Form(case=_DECODE, prepare=_decode_attention, targets=("sm_80", "sm_90")),
    "decode, paged cache": Form(case=_DECODE, prepare=_decode_paged, targets=("sm_80",)),
    "decode, float8 cache": Form(case=_DECODE, prepare=_decode_float8, targets=("sm_90",)),
}


def form_probe(form: Form, how: str) -> dict[str, Any]:
    """One form against the float64 oracle.

    Args:
        form: the form.
        how: "compiled" to run it on a GPU; "interpreted"; or a target such as "sm_80", to execute its PTX.

    Returns:
        "reason": why it is wrong, or None; "error" and "tolerance"; "seconds" without imports.
    """
    from ...kernels import use_interpreter

    if how == "interpreted":
        use_interpreter()
    import torch

    from ..bench.providers import gate_of
    from ..core.inputs import Source, draw

    torch.set_num_threads(1)  # faster for tensors so small, above all beside other processes
    start_s = time.perf_counter()
    source = Source(torch.device("cuda" if how == "compiled" else "cpu"), seed=0)
    inputs, call = form.prepare(draw(form.case, source))
    gate = gate_of(form.case, inputs, all_columns=True)
    output, violation = (call(), None) if how in {"compiled", "interpreted"} else _executed(call, how)
    verdict = gate.judge(output)
    return {
        "reason": verdict.reason or violation,
        "error": verdict.relative_error,
        "tolerance": verdict.tolerance,
        "seconds": time.perf_counter() - start_s,
    }


def _executed(call: Callable[[], Any], target: str) -> tuple[Any, str | None]:
    """The output of a call whose launches are compiled for a target and executed; and the first violation."""
    from ... import kernels
    from ..core.gpus import find_gpu
    from ..offline.ptx.launch import executed

    # Loaded now: within `executed`, importing them would choose interpreted kernels.
    _ = kernels.decode_attention, kernels.prefill_matmul
    with executed(find_gpu(target, with_limits=True), sm_count=4) as execution:
        output = call()
    return output, next((f"{found.kind}: {found.detail}" for found in execution.violations), None)


PROBES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "numpy": lambda: _imported("numpy"),
    "torch": torch_probe,
    "triton": _triton_probe,
    "nvidia": nvidia_probe,
    "device": device_probe,
}


def _answer(job: Mapping[str, str]) -> dict[str, Any]:
    """The answer of a probe, or its error in one line."""
    try:
        return form_probe(FORMS[job["form"]], job["how"]) if "form" in job else PROBES[job["probe"]]()
    except KeyboardInterrupt:
        sys.exit(1)
    except BaseException as error:  # noqa: BLE001  (a broken package may raise anything when it is imported)
        return {"broken": one_line(error)}


if __name__ == "__main__":
    serve_jobs(_answer)
