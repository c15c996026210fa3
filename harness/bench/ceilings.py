"""Measured ceilings of a device: read bandwidth, copy bandwidth, and dense matmul FLOP/s per dtype.

A ceiling is the rate of the fastest sample; all samples are kept. Ceilings are timed again in each round of a
run, which shows how the machine drifts.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from ..core.arena import Arena
from ..core.gpus import Gpu
from ..core.inputs import DTYPES
from ..core.records import Ceiling
from .device import Device, out_of_memory
from .timer import Budget, measure

READERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sum": torch.sum,
    "max": torch.amax,
    "dot": lambda x: torch.dot(*x.chunk(2)),
}
"""Ways to read a buffer once; which is fastest depends on the device."""

SQUARE_SIZES = {"cpu": (256, 512, 1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192, 16384)}

MIN_LIMIT_S = 0.1
"""Matrices of up to this many seconds per call are timed even beyond the time limit: small ones are noisy."""


def measure_ceilings(device: Device, arena: Arena, *, time_limit_s: float) -> Iterator[tuple[str, Ceiling]]:
    """Measure one ceiling after another; yields its name for the progress bar, and the ceiling.

    Args:
        device: the device to measure.
        arena: its block is read and copied; holds the matrices.
        time_limit_s: seconds for each buffer operation and each matmul size.
    """
    budget = Budget(time_limit_s=time_limit_s, warm_up_s=0.0)  # the fastest sample counts
    arena.block(torch.float32)
    yield "read bandwidth", _read_bandwidth(device, arena.words(), budget)
    yield "copy bandwidth", _copy_bandwidth(device, arena, budget)
    for dtype in DTYPES:
        yield f"{dtype} matmul", _matmul(device, arena, dtype, budget)


def datasheet_ceilings(gpu: Gpu | None) -> list[Ceiling]:
    """The datasheet's ceilings; none for an unknown device."""
    if gpu is None:
        return []

    def detail(field: str) -> str:
        mark = gpu.marks.get(field)
        return f"{gpu.name}, {gpu.source}" + (f" ({mark})" if mark else "")

    bandwidth = Ceiling(
        kind="read_bandwidth",
        provenance="datasheet",
        bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s,
        detail=detail("bandwidth_bytes_per_s"),
    )
    return [
        bandwidth,
        *(
            Ceiling(
                kind="matmul",
                provenance="datasheet",
                dtype=dtype,
                flop_per_s=rate,
                detail=detail(f"flop_per_s.{dtype}"),
            )
            for dtype in DTYPES
            if (rate := gpu.flop_per_s[dtype]) is not None
        ),
    ]


def time_again(ceiling: Ceiling, device: Device, arena: Arena, budget: Budget, *, number: int) -> Ceiling:
    """A measured ceiling with samples of the same call added in a later round, `number` from 1.

    Unchanged if it has no rate, if memory has run out, or if an old file does not name its call.
    """
    if ceiling.rate is None or not ceiling.samples_s:
        return ceiling
    if ceiling.kind == "read_bandwidth" and ceiling.call not in READERS:
        return ceiling
    call = _call_of(ceiling, arena)
    if call is None:
        return ceiling
    try:
        samples_s = measure(device, [call], budget, first_s=min(ceiling.samples_s)).samples_s
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return ceiling
    finally:
        arena.restore()
    return ceiling.with_round(samples_s, number)


def _samples_s(device: Device, call: Callable[[], object], budget: Budget) -> tuple[float, ...]:
    """Seconds of each call. The fastest counts, so a CPU needs no warm-up; on a GPU it decides on a graph."""
    return measure(
        device, [call], budget, first_s=budget.time_limit_s if device.kind == "cpu" else 0.0
    ).samples_s


def _call_of(ceiling: Ceiling, arena: Arena) -> Callable[[], object] | None:
    """The call whose samples a ceiling has; None if the arena is too small for it."""
    work = ceiling.work or {}
    if work.get("bytes_read", 0) + work.get("bytes_written", 0) > arena.size_bytes:
        return None
    if ceiling.kind == "matmul":
        return _product(arena, round((work["operations"] / 2) ** (1 / 3)), DTYPES[str(ceiling.dtype)])
    if ceiling.kind == "copy_bandwidth":
        target, buffer = _halves(arena, work["bytes_read"])
        return lambda: target.copy_(buffer)
    words, read = arena.words()[: work["bytes_read"] // 4], READERS[ceiling.call]
    return lambda: read(words)


def _product(arena: Arena, size: int, dtype: torch.dtype) -> Callable[[], object]:
    """A product of two square matrices into a third."""
    a, b = (arena.normal(size, size, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.matmul(a, b.t(), out=out)


def _halves(arena: Arena, half_bytes: int) -> tuple[Tensor, Tensor]:
    """Two parts of the arena's block; the first, which is copied to, is writable until `restore`."""
    words, half = arena.words(), half_bytes // 4
    return arena.writable(words[:half]), words[half : 2 * half]


def _read_bandwidth(device: Device, buffer: Tensor, budget: Budget) -> Ceiling:
    timings = {
        name: _samples_s(device, lambda read=read: read(buffer), budget)  # type: ignore[misc]
        for name, read in READERS.items()
    }
    name, samples_s = min(timings.items(), key=lambda item: min(item[1]))
    size = buffer.nbytes
    detail = f"fastest {name} of {size / 2**20:.0f} MiB of float32"
    return _ceiling("read_bandwidth", samples_s, detail, call=name, bytes_read=size, bytes_written=0)


def _copy_bandwidth(device: Device, arena: Arena, budget: Budget) -> Ceiling:
    target, buffer = _halves(arena, arena.size_bytes // 8 * 4)
    samples_s = _samples_s(device, lambda: target.copy_(buffer), budget)
    arena.restore()
    size = buffer.nbytes
    detail = f"fastest copy of {size / 2**20:.0f} MiB, bytes read and written"
    return _ceiling("copy_bandwidth", samples_s, detail, bytes_read=size, bytes_written=size)


def _matmul(device: Device, arena: Arena, dtype: str, budget: Budget) -> Ceiling:
    """The fastest square size; sizes grow until one would exceed the time limit or free memory."""
    best: Ceiling | None = None
    for size in SQUARE_SIZES[device.kind]:
        operations = 2 * size**3
        if best and operations / (best.flop_per_s or math.inf) > max(budget.time_limit_s, MIN_LIMIT_S):
            break
        if 2 * size**2 * DTYPES[dtype].itemsize > arena.size_bytes:
            break
        try:
            samples_s = _samples_s(device, _product(arena, size, DTYPES[dtype]), budget)
        except (MemoryError, RuntimeError) as error:
            if best:
                break
            reason = (str(error) or type(error).__name__).splitlines()[0]
            return Ceiling(kind="matmul", provenance="measured", dtype=dtype, reason=reason)
        detail = f"fastest product of {size} x {size} matrices"
        found = _ceiling("matmul", samples_s, detail, dtype=dtype, operations=operations)
        best = max(best or found, found, key=lambda ceiling: ceiling.flop_per_s or 0.0)
    return best or Ceiling(kind="matmul", provenance="measured", dtype=dtype, reason="out of memory")


def _ceiling(
    kind: Literal["read_bandwidth", "copy_bandwidth", "matmul"],
    samples_s: tuple[float, ...],
    detail: str,
    *,
    dtype: str | None = None,
    call: str = "",
    **work: int,
) -> Ceiling:
    """The ceiling that follows from the fastest sample of a call with this work."""
    rate = sum(work.values()) / min(samples_s)
    return Ceiling(
        kind=kind,
        provenance="measured",
        dtype=dtype,
        flop_per_s=rate if kind == "matmul" else None,
        bandwidth_bytes_per_s=None if kind == "matmul" else rate,
        detail=detail,
        samples_s=samples_s,
        work=work,
        call=call,
        rounds=(0,) * len(samples_s),
    )
