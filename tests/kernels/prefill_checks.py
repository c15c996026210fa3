"""Helpers of the prefill attention tests: inputs whose dead memory is NaN, and comparison with the oracle."""

import torch
from decodetax.harness.core.gate import attention_products, tolerance
from decodetax.kernels import (
    PrefillAttentionTiling,
    prefill_attention,
    prefill_attention_workspace_bytes,
    reference,
)
from kernel_inputs import NAN, NOWHERE, narrowed, normal, poisoned, worst_error

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def tiles(variant="pointers", *, block_m=32, block_n=16, programs=3):
    """A small tiling of three CTAs."""
    return PrefillAttentionTiling(
        block_m=block_m, block_n=block_n, programs=programs, num_warps=4, num_stages=2, variant=variant
    )


def prompts(
    *leading, q_heads=2, kv_heads=1, head_dim=16, v_head_dim=None, dtype=torch.bfloat16, heads_first=False
):
    """q, k and v [*leading, heads, head_dim]."""
    result = {}
    for seed, (name, heads, width) in enumerate(
        (("q", q_heads, head_dim), ("k", kv_heads, head_dim), ("v", kv_heads, v_head_dim or head_dim)), 1
    ):
        x = normal(*leading, heads, width, dtype=torch.float32, seed=seed)
        x = narrowed(x, dtype)
        result[name] = x.transpose(-3, -2).contiguous().transpose(-3, -2) if heads_first else x
    return result


def prefix(
    context_lens, *, kv_heads=1, head_dim=16, v_head_dim=None, capacity=48, page_size=0, dtype=torch.bfloat16
):
    """Caches with a prefix for each sequence, and NaN elsewhere; paged if page_size is not 0."""
    batch, capacity = len(context_lens), -(-capacity // (page_size or 1)) * (page_size or 1)
    result = {"context_lens": torch.tensor(context_lens, dtype=torch.int32)}
    caches = {}
    for seed, (name, width) in enumerate({"k_cache": head_dim, "v_cache": v_head_dim or head_dim}.items(), 5):
        cache = normal(batch, capacity, kv_heads, width, dtype=torch.float32, seed=seed)
        for sequence, context in enumerate(context_lens):
            cache[sequence, max(context, 0) :] = NAN
        caches[name] = narrowed(cache, dtype)
    if not page_size:
        return result | caches
    used = [(s, p) for s, context in enumerate(context_lens) for p in range(-(-max(context, 0) // page_size))]
    order = torch.randperm(len(used) + 2, generator=torch.Generator().manual_seed(7)).tolist()
    table = torch.full((batch, capacity // page_size), NOWHERE, dtype=torch.int32)
    for name, cache in caches.items():
        pages = narrowed(torch.full((len(used) + 2, page_size, *cache.shape[2:]), NAN), dtype)
        for (sequence, page), at in zip(used, order, strict=False):
            table[sequence, page] = at
            pages[at] = cache[sequence, page * page_size : (page + 1) * page_size]
        caches[name] = pages
    return result | caches | {"block_table": table}


def attend(inputs, *, tiling=None, **options):
    """Output and log-sum-exp, written over NaN, with the smallest workspace, full of ones."""
    q = inputs["q"]
    dtype = torch.bfloat16 if q.dtype in FLOAT8 else q.dtype
    out = poisoned(*q.shape[:-1], inputs["v"].shape[-1], dtype=dtype)
    lse = poisoned(*q.shape[:-1], dtype=torch.float32)
    size = prefill_attention_workspace_bytes(**inputs, tiling=tiling, **options)
    result = prefill_attention(
        **inputs,
        tiling=tiling,
        **options,
        return_lse=True,
        out=(out, lse),
        workspace=torch.ones(size, dtype=torch.uint8),
    )
    assert result[0] is out
    assert result[1] is lse
    return result


def assert_right(inputs, *, tiling=None, **options):
    output, lse = attend(inputs, tiling=tiling, **options)
    expected, expected_lse = reference.prefill_attention(**inputs, **options)
    keys = inputs["k"].shape[-3] + (48 if "k_cache" in inputs else 0)
    reduction = attention_products(capacity=keys, head_dim=inputs["q"].shape[-1], expected_lse=expected_lse)
    if inputs["q"].dtype in FLOAT8:
        # Probabilities are rounded to e4m3, three bits of mantissa.
        bound = tolerance(torch.float8_e4m3fn, reduction=reduction)
        error = worst_error(output.float(), expected, reduction=reduction, roundings=1)
        error *= tolerance(torch.float32, reduction=reduction) / bound
    else:
        # Rounded twice: the probabilities and the output.
        error = worst_error(output, expected, reduction=reduction, roundings=2)
    assert error <= 1
    bound = tolerance(torch.float32, reduction=reduction)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=bound, atol=bound, equal_nan=True)
