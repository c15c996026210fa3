"""The limits of a GPU that tile sizes depend on: compute capability, SMs, shared memory and registers."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class GpuLimits:
    """Limits of one GPU.

    Attributes:
        compute_capability: major and minor in one number: 90 for 9.0.
        sm_count: streaming multiprocessors.
        shared_bytes_per_block: shared memory that one CTA may use at most, in bytes.
        shared_bytes_per_sm: shared memory of one SM, in bytes.
    """

    compute_capability: int
    sm_count: int
    shared_bytes_per_block: int
    shared_bytes_per_sm: int


# Interpreted kernels use the tilings of this GPU. CUDA C++ programming guide, compute capability 9.0.
H100_LIMITS = GpuLimits(
    compute_capability=90, sm_count=132, shared_bytes_per_block=227 * 1024, shared_bytes_per_sm=228 * 1024
)

_REGISTERS_PER_SM = 65536  # CUDA C++ programming guide, compute capabilities 8.0 to 12.0


def gpu_limits(device: torch.device) -> GpuLimits:
    """Limits of a CUDA device; H100's for a CPU tensor, whose kernels run interpreted."""
    if device.type != "cuda":
        return H100_LIMITS
    return _cuda_limits(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _cuda_limits(index: int) -> GpuLimits:
    properties = torch.cuda.get_device_properties(index)
    return GpuLimits(
        compute_capability=10 * properties.major + properties.minor,
        sm_count=properties.multi_processor_count,
        shared_bytes_per_block=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # missing from torch's stub
        shared_bytes_per_sm=properties.shared_memory_per_multiprocessor,
    )


def registers_for(warps: int, ctas_per_sm: int) -> int:
    """Registers per thread that let an SM hold `ctas_per_sm` CTAs of `warps` warps."""
    return min(255, _REGISTERS_PER_SM // (32 * warps * ctas_per_sm) // 8 * 8)


def next_power_of_two(value: int) -> int:
    """The least power of two, from 1 on, that is not below a value."""
    return 1 << max(0, value - 1).bit_length()


def require_powers_of_two(tiling: object, *names: str) -> None:
    """Raise ValueError unless these fields of a tiling are powers of two."""
    for name in names:
        value = getattr(tiling, name)
        if type(value) is not int or value < 1 or value & (value - 1):
            raise ValueError(f"{name} is {value!r}; it must be a power of two")


def require_positive(tiling: object, *names: str) -> None:
    """Raise ValueError unless these fields of a tiling are ints of at least 1."""
    for name in names:
        value = getattr(tiling, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be an int of at least 1")


def require_max_registers(max_registers: int | None) -> None:
    """Raise ValueError unless the register limit is None or one that the compiler takes."""
    if max_registers is not None and not 32 <= max_registers <= 255:
        raise ValueError(f"max_registers is {max_registers}; it must be from 32 to 255, or None")
