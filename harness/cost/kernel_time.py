"""The modelled time of one kernel, and what the formulas of all kernels share.

`docs/accuracy.md` has the formulas, the constants and their error against measured times. Each `*_terms`
function takes floats or arrays: the same formula is fitted and used.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..core.errors import UsageError
from ..core.gpus import Gpu

Quantity: TypeAlias = Any  # a float, or an array of floats with one element a case

DTYPES = ("bf16", "fp8", "fp4")
_SHARPNESS = 3  # exponent of the smooth maximum of overlapping terms
_L2_SHARPNESS = 12  # hits fall from 97% to 3% while the bytes grow from 3/4 to 4/3 of what the L2 keeps


@dataclass(frozen=True)
class KernelTime:
    """The modelled time of one call, or an array with an element a call.

    Attributes:
        time_s: time of the call; at most the sum of the terms, as memory and compute overlap.
        memory_s: time to read and write at the bandwidth that kernels reach.
        compute_s: time to multiply at the rate that kernels reach, with tile and wave quantization.
        fixed_s: time independent of bytes and operations: launches, costs per CTA, ramp-up.
        launch_s: the part of `fixed_s` that a call without work takes: launch, prologue and last
            synchronisation of its kernels, as timed alone. Programmatic dependent launch hides part of it.
    """

    time_s: Quantity
    memory_s: Quantity
    compute_s: Quantity
    fixed_s: Quantity
    launch_s: Quantity = 0.0

    @property
    def bound(self) -> str:
        """The largest of the three terms: "memory", "compute" or "fixed"."""
        terms = {"memory": self.memory_s, "compute": self.compute_s, "fixed": self.fixed_s}
        return max(terms, key=lambda name: terms[name])


def multiplied_in(gpu: Gpu, dtype: str) -> str:
    """The dtype in which a GPU multiplies: bf16 where it lacks fp8 or fp4."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    return "bf16" if gpu.flop_per_s[dtype] is None else dtype


def rate_of(gpu: Gpu, dtype: str) -> float:
    """The datasheet's operations per second; on a GPU without bf16 those of fp16."""
    return gpu.flop_per_s[dtype] or gpu.flop_per_s["fp16"] or math.nan


def l2_saving_s(
    gpu: Gpu,
    read_bytes: Quantity,
    memory_share: float,
    *,
    l2_share: float | None,
    l2_sm_bytes_per_s: float | None,
    in_l2: bool,
) -> Quantity:
    """How much faster a call reads what lies in the L2 cache since the call before.

    Args:
        gpu: the GPU.
        read_bytes: bytes that both calls read.
        memory_share: share of the memory bandwidth reached.
        l2_share: bytes that the L2 keeps from one call to the next, as a share of the L2 in the table of
            GPUs; None where measured calls show no hits.
        l2_sm_bytes_per_s: bandwidth from L2 to one SM.
        in_l2: whether the call before read the same bytes; if not, all come from memory.
    """
    if l2_share is None or l2_sm_bytes_per_s is None or not in_l2:
        return 0.0
    hits = 1 / (1 + (read_bytes / (l2_share * gpu.l2_bytes)) ** _L2_SHARPNESS)
    memory_s = read_bytes / (gpu.bandwidth_bytes_per_s * memory_share)
    return hits * (memory_s - read_bytes / (gpu.sm_count * l2_sm_bytes_per_s))


def smooth_maximum(*terms_s: Quantity) -> Quantity:
    """The largest term, and more if others are near it, because they overlap imperfectly."""
    return sum(term_s**_SHARPNESS for term_s in terms_s) ** (1 / _SHARPNESS)


def ceil_div(size: Quantity, by: int) -> Quantity:
    """Size / by, rounded up."""
    return -(-size // by)


def positive(**sizes: float) -> dict[str, Quantity]:
    """The sizes as floats, whose products do not overflow.

    Raises:
        UsageError: a size is not positive and finite; names it.
    """
    for name, size in sizes.items():
        if not (math.isfinite(size) and size > 0):
            raise UsageError(f"{name}: {size} is not positive and finite")
    return {name: float(size) for name, size in sizes.items()}
