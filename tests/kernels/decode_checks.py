"""Helpers of the decode attention tests: tilings, comparison with the oracle, recorded memory accesses."""

from contextlib import contextmanager

import numpy as np
import torch
from decodetax.harness.core.gate import attention_products, tolerance
from decodetax.kernels import (
    DecodeTiling,
    GpuLimits,
    decode_attention,
    decode_attention_workspace_bytes,
    reference,
)
from kernel_inputs import poisoned, worst_error
from triton.runtime.interpreter import interpreter_builder

A100_LIMITS = GpuLimits(
    compute_capability=80,
    sm_count=108,
    shared_bytes_per_block=163 * 1024,
    shared_bytes_per_sm=164 * 1024,
)


def split(num_splits=1, *, block_g=16, block_n=16):
    """A split-KV tiling: each sequence is split into `num_splits` chunks."""
    return DecodeTiling(block_g=block_g, block_n=block_n, num_splits=num_splits, num_warps=4, num_stages=2)


def balanced(programs, *, min_tiles=1, block_g=16, block_n=16):
    """A balanced tiling: `programs` CTAs take equal chunks of the whole batch."""
    return DecodeTiling(
        block_g=block_g, block_n=block_n, programs=programs, min_tiles=min_tiles, num_warps=4, num_stages=2
    )


TILINGS = {"whole": split(1), "split": split(3), "balanced": balanced(3)}
"""One of each kind: no partials, split-KV partials per sequence, chunks across sequences."""


def attend(inputs, *, tiling=None, **options):
    """Output and log-sum-exp, written over NaN, with the smallest workspace, full of NaN."""
    q = inputs["q"]
    out = poisoned(*q.shape[:-1], inputs["v_cache"].shape[-1], dtype=q.dtype)
    lse = poisoned(*q.shape[:-1], dtype=torch.float32)
    size = decode_attention_workspace_bytes(**inputs, tiling=tiling, **options)
    result = decode_attention(
        **inputs,
        tiling=tiling,
        **options,
        return_lse=True,
        out=(out, lse),
        workspace=poisoned(size // 4, dtype=torch.float32),
    )
    assert result[0] is out
    assert result[1] is lse
    return result


def assert_right(inputs, *, tiling=None, num_splits=None, **options):
    if num_splits is not None:
        options["num_splits"] = num_splits
    output, lse = attend(inputs, tiling=tiling, **options)
    options.pop("num_splits", None)
    expected, expected_lse = reference.decode_attention(**inputs, **options)
    assert decode_error(output, expected, inputs, expected_lse) <= 1
    # An absolute error of the logarithm is a relative one of the sum, which is never rounded to q's dtype.
    bound = tolerance(torch.float32, reduction=_products(inputs, expected_lse))
    torch.testing.assert_close(lse.double(), expected_lse, rtol=bound, atol=bound, equal_nan=True)


def decode_error(output, expected, inputs, expected_lse=None, *, roundings=2):
    """Worst row error in units of the tolerance; rounded twice: the probabilities and the output."""
    reduction = _products(inputs, expected_lse)
    return worst_error(output, expected, reduction=reduction, roundings=roundings)


def _products(inputs, lse=None):
    capacity = inputs["k_cache"].shape[1] * inputs.get("block_table", torch.empty(1, 1)).shape[1]
    return attention_products(
        capacity=capacity,
        head_dim=inputs["q"].shape[-1],
        expected_lse=torch.zeros(1) if lse is None else lse,
    )


class Accesses:
    """Addresses of each load and store of interpreted kernels, by CTA."""

    def __init__(self):
        self.loads, self.stores = [], []

    @staticmethod
    def _within(accesses, tensor):
        start = tensor.untyped_storage().data_ptr()
        stop = start + tensor.untyped_storage().nbytes()
        for program, addresses in accesses:
            inside = addresses[(addresses >= start) & (addresses < stop)]
            if inside.size:
                yield program, inside

    def loads_of(self, tensor):
        """Number of loads of each address of a tensor's memory."""
        return _counts(addresses for _, addresses in self._within(self.loads, tensor))

    def stores_of(self, tensor):
        """Number of stores to each address of a tensor's memory."""
        return _counts(addresses for _, addresses in self._within(self.stores, tensor))

    def by_program(self, kind, tensor):
        """Addresses of a tensor's memory that each CTA accessed."""
        result = {}
        for program, inside in self._within(getattr(self, kind), tensor):
            result.setdefault(program[0], set()).update(inside.tolist())
        return result


def _counts(addresses):
    values, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *addresses]), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@contextmanager
def accesses(monkeypatch):
    """Records the loads and stores of interpreted kernels."""
    seen = Accesses()
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store

    def lanes(ptrs, mask):
        return interpreter_builder.grid_idx, ptrs.data[mask.data.astype(bool)].astype(np.uint64)

    def watched_load(ptrs, mask, *rest, **named):
        seen.loads.append(lanes(ptrs, mask))
        return load(ptrs, mask, *rest, **named)

    def watched_store(ptrs, value, mask, *rest, **named):
        seen.stores.append(lanes(ptrs, mask))
        return store(ptrs, value, mask, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter_builder, "create_masked_load", watched_load)
        patch.setattr(interpreter_builder, "create_masked_store", watched_store)
        yield seen


def addresses(tensor):
    """Addresses of the elements of a tensor."""
    at = torch.zeros(tensor.shape, dtype=torch.int64)
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        at += (torch.arange(size) * stride).view(-1, *[1] * (tensor.dim() - dim - 1))
    return set((tensor.data_ptr() + tensor.element_size() * at).flatten().tolist())


def live_addresses(cache, inputs, ranges):
    """Addresses of the elements of the tokens [begin, end) of each sequence."""
    result = set()
    for sequence, (begin, end) in enumerate(ranges):
        for at in range(begin, end):
            result |= addresses(_token(cache, inputs, sequence, at))
    return result


def _token(cache, inputs, sequence, at):
    if "block_table" not in inputs:
        return cache[sequence, at]
    page_size = cache.shape[1]
    return cache[int(inputs["block_table"][sequence, at // page_size]), at % page_size]
