"""Modelled times of decode attention and of causal prefill attention."""

from ..core.gpus import Gpu
from .kernel_constants import GROUPED, SINGLE, DecodeConstants, PrefillConstants, constants_for
from .kernel_time import (
    KernelTime,
    Quantity,
    ceil_div,
    l2_saving_s,
    multiplied_in,
    positive,
    rate_of,
    smooth_maximum,
)

_PREFILL_TILE = 128  # queries of a CTA of prefill attention, and keys of its step


def decode_attention_time(
    gpu: Gpu,
    *,
    sequences: int,
    kv_heads: int,
    kv_bytes: float,
    operations: float,
    dtype: str,
    group: int,
    in_l2: bool = True,
) -> KernelTime:
    """Models one layer's attention of one query token per sequence.

    Args:
        gpu: the GPU.
        sequences: number of sequences, of about equal lengths.
        kv_heads: number of KV heads.
        kv_bytes: bytes of the live keys and values of all sequences.
        operations: operations of all sequences and query heads.
        dtype: dtype of the cache, "bf16" or "fp8"; a GPU without fp8 multiplies in bf16.
        group: query heads per KV head (GQA group); calibrated up to 16.
        in_l2: whether the call before read the same cache, as measured calls do: the L2 then keeps a small
            one. In a forward other layers come between, and it does not.
    """
    sizes = positive(
        sequences=sequences, kv_heads=kv_heads, kv_bytes=kv_bytes, operations=operations, group=group
    )
    dtype = multiplied_in(gpu, dtype)
    constants = constants_for(gpu).decode_attention[GROUPED if group > 1 else SINGLE, dtype]
    return decode_attention_terms(gpu, constants, dtype=dtype, in_l2=in_l2, **sizes)


def prefill_attention_time(
    gpu: Gpu,
    *,
    sequences: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    prompt: int,
    dtype: str = "bf16",
) -> KernelTime:
    """Models one layer's causal attention of `sequences` prompts of `prompt` tokens each."""
    sizes = positive(
        sequences=sequences, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, prompt=prompt
    )
    dtype = multiplied_in(gpu, dtype)
    constants = constants_for(gpu).prefill_attention[dtype]
    return prefill_attention_terms(gpu, constants, dtype=dtype, **sizes)


def decode_attention_terms(
    gpu: Gpu,
    constants: DecodeConstants,
    *,
    sequences: Quantity,
    kv_heads: Quantity,
    kv_bytes: Quantity,
    operations: Quantity,
    dtype: str,
    group: Quantity,
    in_l2: bool = True,
) -> KernelTime:
    """Decode attention's formula; an item is a KV head of a sequence."""
    bandwidth, sm_count, items = gpu.bandwidth_bytes_per_s, gpu.sm_count, sequences * kv_heads
    memory_s = kv_bytes / (bandwidth * constants.memory_share)
    memory_s = memory_s - l2_saving_s(
        gpu,
        kv_bytes,
        constants.memory_share,
        l2_share=constants.l2_share,
        l2_sm_bytes_per_s=constants.l2_sm_bytes_per_s,
        in_l2=in_l2,
    )
    compute_s = operations / (rate_of(gpu, dtype) * constants.compute_share)
    items_s = items / sm_count * (constants.item_s + constants.item_row_s * group)
    overlapping = [memory_s, compute_s, items_s]
    if constants.unsplit_share is not None:
        overlapping.append(kv_bytes / items / (bandwidth / sm_count * constants.unsplit_share))
    ramp_s = constants.ramp_s * memory_s / (memory_s + constants.ramp_half_s)
    time_s = smooth_maximum(*overlapping) + ramp_s + constants.fixed_s
    return KernelTime(time_s, memory_s, compute_s, constants.fixed_s + ramp_s + items_s, constants.fixed_s)


def prefill_attention_terms(
    gpu: Gpu,
    constants: PrefillConstants,
    *,
    sequences: Quantity,
    q_heads: Quantity,
    kv_heads: Quantity,
    head_dim: Quantity,
    prompt: Quantity,
    dtype: str,
) -> KernelTime:
    """Prefill attention's formula: tiles of queries and keys; the longest tile bounds the time."""
    size = 1 if dtype == "fp8" else 2
    moved = 2 * size * sequences * prompt * head_dim * (q_heads + kv_heads)
    memory_s = moved / (gpu.bandwidth_bytes_per_s * constants.memory_share)
    rate = rate_of(gpu, dtype) * constants.compute_share
    tiles = ceil_div(prompt, _PREFILL_TILE)
    step = 4 * _PREFILL_TILE**2 * head_dim
    all_s = sequences * q_heads * tiles * (tiles + 1) / 2 * step / rate
    last_s = tiles * step / (rate / gpu.sm_count)
    programs_s = sequences * q_heads * tiles / gpu.sm_count * constants.tile_s
    fixed_s = constants.fixed_s
    time_s = memory_s + smooth_maximum(all_s + programs_s, last_s) + fixed_s
    return KernelTime(time_s, memory_s, smooth_maximum(all_s, last_s), fixed_s + programs_s, fixed_s)
