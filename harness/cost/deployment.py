"""A deployment of a model on GPUs, and the time of each part of a forward there, by component."""

import math
from dataclasses import dataclass

from ..core.gpus import Gpu, find_gpu
from .forward import ACTIVATION_BYTES, STORED_BYTES, Attention, Elementwise, Forward, Matmul, Part
from .kernel_time import KernelTime, decode_attention_time, gemm_time, prefill_attention_time
from .parallelism import ONE_GPU, Parallelism

ELEMENTWISE_LAUNCH_S = 2e-6
"""Launch cost of one small kernel in a CUDA graph; assumed, not measured."""

COMPONENTS = (
    "weights",
    "matmul_arithmetic",
    "kv_cache",
    "attention_arithmetic",
    "activations",
    "communication",
    "launch",
)
"""Components of a forward's time; a kernel's time beyond its fixed costs counts for its limiting roof."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """GPUs of one kind, and how a model is stored on them.

    Attributes:
        gpu: the GPU, with its link to the others.
        parallelism: how many GPUs there are, and what each has.
        dtype: dtype of weights; "fp8" is multiplied in fp8 where the GPU can, "int8" and "int4" in bf16.
        cache_dtype: dtype of the KV cache.
        usd_per_hour: price of one GPU, US dollars per hour; None if unknown.
    """

    gpu: Gpu
    parallelism: Parallelism
    dtype: str
    cache_dtype: str
    usd_per_hour: float | None

    @property
    def tensor_parallel(self) -> int:
        """GPUs that share each layer."""
        return self.parallelism.tensor_parallel

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return self.parallelism.gpus

    def usd_per_mtok(self, s_per_token: float) -> float | None:
        """US dollars of 1M tokens that each occupy all GPUs for `s_per_token`; None without a price."""
        if self.usd_per_hour is None:
            return None
        return s_per_token * 1e6 / 3600 * self.usd_per_hour * self.gpus


def deployment(gpu: str, *, dtype: str = "bf16", cache_dtype: str = "bf16") -> Deployment:
    """One GPU without a price."""
    return Deployment(
        gpu=find_gpu(gpu),
        parallelism=ONE_GPU,
        dtype=dtype,
        cache_dtype=cache_dtype,
        usd_per_hour=None,
    )


def communication_s(forward: Forward, on: Deployment) -> float:
    """Seconds of a forward's all-reduces."""
    if not forward.all_reduces:
        return 0.0
    return forward.all_reduces * on.gpu.all_reduce_s(forward.reduced_bytes, on.tensor_parallel)


def part_split_s(part: Part, on: Deployment) -> dict[str, float]:
    """Seconds of all occurrences of a part in a forward, by component."""
    if isinstance(part, Elementwise):
        moved_s = part.activation_bytes / on.gpu.bandwidth_bytes_per_s
        return {
            "activations": part.times * moved_s,
            "launch": part.times * part.kernels * ELEMENTWISE_LAUNCH_S,
        }
    if isinstance(part, Matmul):
        return _split(part.times, matmul_time(part, on), "weights", "matmul_arithmetic")
    return _split(part.times, attention_time(part, on), "kv_cache", "attention_arithmetic")


def _split(times: int, kernel: KernelTime, by_memory: str, by_compute: str) -> dict[str, float]:
    # Fixed costs that overlap with a roof belong to the roof.
    fixed_s = min(kernel.fixed_s, max(0.0, kernel.time_s - max(kernel.memory_s, kernel.compute_s)))
    name = by_memory if kernel.memory_s >= kernel.compute_s else by_compute
    return {name: times * (kernel.time_s - fixed_s), "launch": times * fixed_s}


def matmul_time(part: Matmul, on: Deployment) -> KernelTime:
    """Time of one GEMM; in fp8 with the time to quantise activations of 16 bits."""
    # Each expert has its own input; `gemm_time` counts one, so those of the others are added to the weights.
    inputs = (part.groups - 1) * part.rows * ACTIVATION_BYTES / part.out_features
    return gemm_time(
        on.gpu,
        rows=max(1, math.ceil(part.rows)),
        out_features=max(1, round(part.out_features)),
        in_features=part.in_features,
        dtype="fp8" if on.dtype == "fp8" else "bf16",
        weight_bytes_per_element=STORED_BYTES[on.dtype] + inputs,
        activation_bytes_per_element=ACTIVATION_BYTES,
    )


def attention_time(part: Attention, on: Deployment) -> KernelTime:
    """Time of one layer's attention; caches of 8 and 4 bits are read at the bandwidth of fp8."""
    if part.decode:
        return decode_attention_time(
            on.gpu,
            sequences=part.sequences,
            kv_heads=part.kv_heads,
            kv_bytes=part.cached * STORED_BYTES[on.cache_dtype],
            operations=part.operations,
            dtype="bf16" if STORED_BYTES[on.cache_dtype] > 1 else "fp8",
            group=part.q_heads // part.kv_heads,
        )
    whole = prefill_attention_time(
        on.gpu,
        sequences=part.sequences,
        q_heads=part.q_heads,
        kv_heads=part.kv_heads,
        head_dim=(part.head_dim + part.v_head_dim) // 2,
        prompt=part.tokens,
    )
    if part.window is None or part.window >= part.tokens:
        return whole
    # A window skips tiles of keys; the others run at the same rate.
    share = part.pairs / (part.sequences * part.tokens * (part.tokens + 1) // 2)
    return KernelTime(
        time_s=whole.fixed_s + (whole.time_s - whole.fixed_s) * share,
        memory_s=whole.memory_s * share,
        compute_s=whole.compute_s * share,
        fixed_s=whole.fixed_s,
    )
