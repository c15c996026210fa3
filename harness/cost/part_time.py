"""Time of each part of a forward on a deployment, by component."""

import math
from typing import Literal

from ..core.formats import BF16, FP8_BLOCKS, Format
from ..core.gpus import Gpu
from .attention_parts import Attention, IndexScores, StateUpdate
from .attention_time import decode_attention_time, prefill_attention_time
from .communication import transfer_s
from .deployment import Deployment
from .forward import Forward, Part
from .gemm_time import gemm_time
from .kernel_constants import GROUPED, SINGLE, constants_for
from .kernel_time import KernelTime, rate_of
from .mla_time import mla_decode_time
from .moe_time import moe_time
from .parts import ACTIVATION_BYTES, Elementwise, Matmul, RoutedExperts

SMALL_KERNEL_S = 2e-6
"""Time of a small kernel in a CUDA graph before its bytes move; assumed, not measured."""

HOPPER = 90
"""Compute capability of the GPUs that some engines have kernels of their own for."""

HOPPER_SMALL_ROWS = 16
"""Rows up to which vLLM's fp8 GEMM on Hopper takes its narrowest tile."""

ROUTING = "uniform"
"""Every expert is equally likely; an engine with skewed routing balances its GPUs by copies of experts."""

COMPONENTS = (
    "weights",
    "matmul_arithmetic",
    "kv_cache",
    "attention_arithmetic",
    "activations",
    "communication",
    "launch",
    "engine",
)
"""Components of a forward's time; a kernel's time beyond its fixed costs counts for its limiting roof."""


def forward_split_s(forward: Forward, on: Deployment) -> dict[str, float]:
    """Seconds of a forward by component, without the engine's own time."""
    split = dict.fromkeys(COMPONENTS, 0.0)
    for part in forward.parts:
        for name, seconds in part_split_s(part, on).items():
            split[name] += seconds
    split["communication"] = communication_s(forward, on)
    return split


def communication_s(forward: Forward, on: Deployment) -> float:
    """Seconds of a forward's communication between GPUs."""
    return math.fsum(each.times * transfer_s(each, on) for each in forward.transfers)


def part_split_s(part: Part, on: Deployment) -> dict[str, float]:
    """Seconds of all occurrences of a part in a forward, by component."""
    if isinstance(part, Elementwise):
        return _elementwise_split_s(part, on)
    if isinstance(part, Matmul):
        return _split(part.times, matmul_time(part, on), "weights", "matmul_arithmetic")
    if isinstance(part, RoutedExperts):
        return _split(part.times, experts_time(part, on), "weights", "matmul_arithmetic")
    kernel = attention_time(part, on) if isinstance(part, Attention) else streaming_time(part, on)
    return _split(part.times, kernel, "kv_cache", "attention_arithmetic")


def _elementwise_split_s(part: Elementwise, on: Deployment) -> dict[str, float]:
    moved, kernels = part.activation_bytes, part.kernels
    if not on.engine.fuses_quantisation:
        moved, kernels = moved + part.quantised_bytes, kernels + part.quantise_kernels
    return {
        "activations": part.times * moved / _streamed_bytes_per_s(on.gpu),
        "launch": part.times * kernels * SMALL_KERNEL_S,
    }


def _streamed_bytes_per_s(gpu: Gpu) -> float:
    """Bandwidth that kernels reach which read and write once: as GEMM's."""
    return gpu.bandwidth_bytes_per_s * constants_for(gpu).gemm["bf16"].memory_share


def _split(times: int, kernel: KernelTime, by_memory: str, by_compute: str) -> dict[str, float]:
    # Fixed costs that overlap with a roof belong to the roof.
    fixed_s = min(kernel.fixed_s, max(0.0, kernel.time_s - max(kernel.memory_s, kernel.compute_s)))
    name = by_memory if kernel.memory_s >= kernel.compute_s else by_compute
    return {name: times * (kernel.time_s - fixed_s), "launch": times * fixed_s}


def product_dtype(gpu: Gpu, weight_format: Format) -> Literal["bf16", "fp8", "fp4"]:
    """The dtype of a product: bf16, to which weights are dequantised, where the GPU lacks the format's."""
    dtype = weight_format.multiplied_in
    return "bf16" if dtype != "bf16" and gpu.flop_per_s[dtype] is None else dtype


def matmul_time(part: Matmul, on: Deployment) -> KernelTime:
    """Time of one GEMM; its activations are quantised elsewhere (`Elementwise`)."""
    dtype = product_dtype(on.gpu, part.weight_format)
    least = on.engine.hopper_tile_rows if on.gpu.sm == HOPPER else 1
    return gemm_time(
        on.gpu,
        rows=max(least, math.ceil(part.rows)),
        out_features=max(1, round(part.out_features)),
        in_features=part.in_features,
        dtype=dtype,
        weight_bytes_per_element=part.weight_format.bytes_per_element / _gemm_pace(part, dtype, on),
        activation_bytes_per_element=ACTIVATION_BYTES,
        quantised=dtype != "bf16",
        in_l2=False,
    )


def _gemm_pace(part: Matmul, dtype: str, on: Deployment) -> float:
    """Bandwidth that the engine's own GEMM reaches over that of the measured one."""
    share = on.engine.hopper_fp8_gemm_share
    if share is None or dtype != "fp8" or on.gpu.sm != HOPPER or part.rows <= HOPPER_SMALL_ROWS:
        return 1.0
    return share / constants_for(on.gpu).gemm["fp8"].memory_share


def expert_dtype(gpu: Gpu, weight_format: Format) -> str:
    """The dtype of the products of routed experts, as `moe_time` names it."""
    dtype = product_dtype(gpu, weight_format)
    return "fp8_block" if weight_format.name == FP8_BLOCKS.name and dtype == "fp8" else dtype


def cache_dtype(cache_format: Format) -> str:
    """The dtype whose kernel reads a cache: caches of 8 and 4 bits are read at the bandwidth of fp8."""
    return "bf16" if cache_format.bytes_per_element >= BF16.bytes_per_element else "fp8"


def experts_time(part: RoutedExperts, on: Deployment) -> KernelTime:
    """Time of the routed experts of one layer, with everything between the router and the weighted sum."""
    dtype = expert_dtype(on.gpu, part.weight_format)
    return moe_time(
        on.gpu,
        tokens=part.tokens,
        hidden_size=part.hidden_size,
        intermediate_size=part.intermediate_size,
        experts=part.experts,
        experts_per_token=part.experts_per_token,
        gated=part.gated,
        dtype=dtype,
        weight_bytes_per_element=part.weight_format.bytes_per_element,
        expert_parallel=part.expert_parallel,
        tensor_parallel=part.tensor_parallel,
        routing=ROUTING,
    )


def attention_time(part: Attention, on: Deployment) -> KernelTime:
    """Time of one layer's attention."""
    dtype = cache_dtype(part.cache_format)
    if part.latent:
        return mla_decode_time(
            on.gpu,
            sequences=part.sequences,
            q_heads=part.q_heads,
            kv_bytes=part.kv_bytes,
            operations=part.operations,
            dtype=dtype,
        )
    if part.decode:
        return decode_attention_time(
            on.gpu,
            sequences=part.sequences,
            kv_heads=part.kv_heads,
            kv_bytes=part.kv_bytes / _cache_pace(part, dtype, on),
            operations=part.operations,
            dtype=dtype,
            group=part.q_heads // part.kv_heads,
            in_l2=False,
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
        launch_s=whole.launch_s,
    )


def _cache_pace(part: Attention, dtype: str, on: Deployment) -> float:
    """Bandwidth at which the engine's own kernel reads the cache over that of the measured one."""
    share = on.engine.hopper_fp8_cache_share
    if share is None or dtype != "fp8" or on.gpu.sm != HOPPER:
        return 1.0
    kernel = GROUPED if part.q_heads > part.kv_heads else SINGLE
    return share / constants_for(on.gpu).decode_attention[kernel, dtype].memory_share


def streaming_time(part: IndexScores | StateUpdate, on: Deployment) -> KernelTime:
    """Time of a kernel that none was measured of: the larger of two roofs, and a launch.

    The roofs are reached as by GEMM: the same shares of the bandwidth and of the rate in bf16.
    """
    constants = constants_for(on.gpu).gemm["bf16"]
    memory_s = (part.kv_bytes + part.activation_bytes) / _streamed_bytes_per_s(on.gpu)
    compute_s = part.operations / (rate_of(on.gpu, "bf16") * constants.compute_share)
    return KernelTime(max(memory_s, compute_s) + SMALL_KERNEL_S, memory_s, compute_s, SMALL_KERNEL_S)
