"""Inputs of the kernel tests: unused memory is NaN, and unused page ids are out of range."""

import pytest
import torch
from decodetax.harness.core.gate import row_errors, tolerance

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NARROW_DTYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]
NAN = float("nan")
NOWHERE = 2**31 - 1
INT8_UNIT = 1 / 40
"""Scale of int8 caches, with which their values have a standard deviation of 1."""


def dtype_name(value):
    """A readable test id for a dtype; None lets pytest choose for anything else."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def by_default(names, values, ids=None):
    """Parameters of which those named, by value or id, run by default; the others are marked slow."""
    return [
        pytest.param(
            value, id=dtype_name(value) or str(name), marks=[] if name in names else pytest.mark.slow
        )
        for value, name in zip(values, ids or values, strict=True)
    ]


def normal(*shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poisoned(*shape, dtype):
    return torch.full(shape, NAN, dtype=dtype)


def decode_inputs(
    lengths,
    *,
    q_heads=8,
    kv_heads=2,
    head_dim=64,
    v_head_dim=None,
    query_tokens=None,
    capacity=130,
    dtype=torch.bfloat16,
    cache_dtype=None,
    heads_first=False,
    page_size=0,
    window=None,
    unused=NAN,
):
    """Arguments of `decode_attention` for sequences of these lengths; page_size 0 is a contiguous cache.

    Tokens past the lengths, and before the sliding window, are `unused`; int8 has -128 for NaN.
    """
    batch = len(lengths)
    drawn, capacity = capacity, -(-capacity // (page_size or 1)) * (page_size or 1)
    tokens = () if query_tokens is None else (query_tokens,)
    inputs = {
        "q": normal(batch, *tokens, q_heads, head_dim, dtype=dtype, seed=1),
        "context_lens": torch.tensor(lengths, dtype=torch.int32),
    }
    ranges = [live_range(length, capacity, window, query_tokens or 1) for length in lengths]
    if page_size:
        inputs["block_table"] = scattered_pages(ranges, capacity // page_size, page_size)
    for seed, (name, width) in enumerate(
        {"k_cache": head_dim, "v_cache": v_head_dim or head_dim}.items(), start=2
    ):
        cache = torch.full((batch, capacity, kv_heads, width), unused)
        cache[:, :drawn] = normal(batch, drawn, kv_heads, width, dtype=torch.float32, seed=seed)
        live = torch.zeros(batch, capacity, dtype=torch.bool)
        for sequence, (begin, end) in enumerate(ranges):
            live[sequence, begin:end] = True
        cache[~live] = unused
        if page_size:
            cache = in_pages(cache, inputs["block_table"], page_size, unused)
        inputs[name] = laid_out(narrowed(cache, cache_dtype or dtype), heads_first=heads_first)
    return inputs


def live_range(length, capacity, window=None, query_tokens=1):
    """Tokens [begin, end) that at least one query token attends to."""
    end = min(max(length, 0), capacity)
    return (0 if window is None else max(end - window - query_tokens + 1, 0)), end


def scattered_pages(ranges, max_pages, page_size):
    """A block table in random order; one page in three is unused."""
    used = [range(begin // page_size, -(-end // page_size) if end else 0) for begin, end in ranges]
    pages = max(1, sum(map(len, used)) * 3 // 2)
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(4)).tolist()
    table = torch.full((len(ranges), max_pages), NOWHERE, dtype=torch.int32)
    for sequence, pages_used in enumerate(used):
        for at in pages_used:
            table[sequence, at] = order.pop()
    return table


def in_pages(cache, table, page_size, unused):
    """The cache as a paged KV cache."""
    live = table != NOWHERE
    pages = max(1, int(live.sum()) * 3 // 2)
    result = torch.full((pages, page_size, *cache.shape[2:]), unused)
    result[table[live].long()] = cache.view(*table.shape, page_size, *cache.shape[2:])[live]
    return result


def narrowed(cache, dtype):
    if dtype == torch.int8:
        return (cache / INT8_UNIT).round().clamp(-128, 127).nan_to_num(-128).to(dtype)
    return cache.to(dtype)


def laid_out(cache, *, heads_first):
    """The cache with tokens or heads first in memory, within a sequence or page."""
    return cache.transpose(1, 2).contiguous().transpose(1, 2) if heads_first else cache


def worst_error(actual, expected, *, reduction, roundings):
    """Worst relative row error, in units of the tolerance of the dtype of `actual`."""
    bound = tolerance(actual.dtype, reduction=reduction, roundings=roundings)
    return float(row_errors(actual, expected).max()) / bound
