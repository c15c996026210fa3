"""Modelled time of decode attention over a latent cache (MLA), whose heads share one latent a token.

`docs/accuracy.md` has the formula, its constants and their error.
"""

from dataclasses import dataclass

from ..core.gpus import Gpu
from .kernel_time import KernelTime, Quantity, multiplied_in, positive, rate_of, smooth_maximum
from .layer_constants import constants_of

KERNEL = "mla_decode"
LATENT_ELEMENTS = 576
"""Elements of a token's latent and its rotary key, 512 and 64 (DeepSeek-V2, arXiv 2405.04434)."""

VALUE_ELEMENTS = 512
"""Elements of a head's output, which is a mean of latents."""

_HEAD_BYTES = 2 * (LATENT_ELEMENTS + VALUE_ELEMENTS)  # query and output of a head, 16 bits an element


@dataclass(frozen=True, kw_only=True)
class MlaConstants:
    """Constants of MLA decode attention.

    Attributes:
        memory_share: share of the bandwidth at which long caches are read.
        compute_share: share of the rate reached.
        heads_share: share of the bandwidth at which queries are prepared (rotary embedding, a copy of each
            query, in fp8 its quantisation) and outputs are written; low, as they are moved more than once.
        sequence_s: an SM's time per sequence, independent of its context.
        ramp_s: time that a long read loses while not all SMs read at full rate.
        ramp_half_s: the reading time at which half of `ramp_s` is lost.
        fixed_s: time of an empty call: the kernels of the queries, of attention and of its combination.
    """

    memory_share: float
    compute_share: float
    heads_share: float
    sequence_s: float
    ramp_s: float
    ramp_half_s: float
    fixed_s: float


def mla_decode_time(
    gpu: Gpu, *, sequences: int, q_heads: int, kv_bytes: float, operations: float, dtype: str
) -> KernelTime:
    """Models one layer's attention of one query token per sequence to cached latents.

    The projections into and out of the latent are GEMMs of their own.

    Args:
        gpu: the GPU.
        sequences: number of sequences, of about equal lengths.
        q_heads: query heads on this GPU, all of which attend to the same latents.
        kv_bytes: bytes of the live latents of all sequences.
        operations: operations of all sequences and heads.
        dtype: dtype of the cache, "bf16" or "fp8"; a GPU without fp8 multiplies in bf16.

    Raises:
        UsageError: a size is not positive and finite, or the dtype is not one of these.
    """
    sizes = positive(sequences=sequences, q_heads=q_heads, kv_bytes=kv_bytes, operations=operations)
    dtype = multiplied_in(gpu, dtype)
    return mla_decode_terms(gpu, constants_of(MlaConstants, gpu, KERNEL, dtype), dtype=dtype, **sizes)


def mla_decode_terms(
    gpu: Gpu,
    constants: MlaConstants,
    *,
    sequences: Quantity,
    q_heads: Quantity,
    kv_bytes: Quantity,
    operations: Quantity,
    dtype: str,
) -> KernelTime:
    """The formula, for floats or arrays: reads and products overlap, queries and outputs come on top."""
    bandwidth = gpu.bandwidth_bytes_per_s
    cache_s = kv_bytes / (bandwidth * constants.memory_share)
    heads_s = _HEAD_BYTES * sequences * q_heads / (bandwidth * constants.heads_share)
    compute_s = operations / (rate_of(gpu, dtype) * constants.compute_share)
    sequences_s = sequences / gpu.sm_count * constants.sequence_s
    ramp_s = constants.ramp_s * cache_s / (cache_s + constants.ramp_half_s)
    time_s = smooth_maximum(cache_s, compute_s, sequences_s) + heads_s + ramp_s + constants.fixed_s
    return KernelTime(time_s, cache_s + heads_s, compute_s, constants.fixed_s + ramp_s + sequences_s)
