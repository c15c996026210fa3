"""Inputs of the kernels' tests: unused memory is NaN, and unused page numbers lead nowhere."""

import torch
from decodetax.harness.measuring.gate import row_errors, tolerance

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NAN = float("nan")


def dtype_name(value):
    """A readable test id for a dtype; None lets pytest choose for anything else."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def normal(*shape, dtype, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poisoned(*shape, dtype):
    return torch.full(shape, NAN, dtype=dtype)


def decode_inputs(
    lengths,
    *,
    q_heads=8,
    kv_heads=2,
    head_dim=64,
    capacity=130,
    dtype=torch.bfloat16,
    heads_first=False,
    page_size=0,
):
    """Arguments of `decode_attention` for sequences of these lengths; page_size 0 is a contiguous cache."""
    batch = len(lengths)
    live = [min(max(length, 0), capacity) for length in lengths]
    inputs = {
        "q": normal(batch, q_heads, head_dim, dtype=dtype, seed=1),
        "context_lens": torch.tensor(lengths, dtype=torch.int32),
    }
    for seed, name in enumerate(("k_cache", "v_cache"), start=2):
        shape = (
            (batch, kv_heads, capacity, head_dim) if heads_first else (batch, capacity, kv_heads, head_dim)
        )
        cache = normal(*shape, dtype=dtype, seed=seed)
        inputs[name] = cache.transpose(1, 2) if heads_first else cache
        for sequence, length in enumerate(live):
            inputs[name][sequence, length:] = NAN
    if page_size:
        inputs |= paged(inputs, live, page_size)
    return inputs


def paged(inputs, live, page_size):
    """The same live cache scattered over pages in no order; one page in three belongs to nobody."""
    batch, capacity = inputs["k_cache"].shape[:2]
    used = [-(-length // page_size) for length in live]
    max_pages = -(-capacity // page_size)
    pages = max(1, sum(used) * 3 // 2)
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(4)).tolist()
    table = torch.full((batch, max_pages), 2**31 - 1, dtype=torch.int32)
    for sequence in range(batch):
        for at in range(used[sequence]):
            table[sequence, at] = order.pop()
    result = {"block_table": table}
    for name in ("k_cache", "v_cache"):
        cache = poisoned(pages, page_size, *inputs[name].shape[2:], dtype=inputs[name].dtype)
        for sequence, length in enumerate(live):
            for token in range(length):
                page = table[sequence, token // page_size]
                cache[page, token % page_size] = inputs[name][sequence, token]
        result[name] = cache
    return result


def worst_error(actual, expected, *, reduction, roundings):
    """The worst row's relative error, in units of what the dtype of `actual` allows."""
    bound = tolerance(actual.dtype, reduction=reduction, roundings=roundings)
    return float(row_errors(actual, expected).max()) / bound


def decode_error(output, expected, inputs):
    """Rounded twice: the probabilities before they meet the values, and the output."""
    reduction = inputs["k_cache"].shape[1] * inputs.get("block_table", torch.empty(1, 1)).shape[1]
    return worst_error(output, expected, reduction=reduction + output.shape[-1], roundings=2)
