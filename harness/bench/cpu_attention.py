"""Decode attention on a CPU, in plain PyTorch.

It is bound by memory, as on a GPU, but no formulation reads at the full bandwidth: the queries of a GQA group
are few rows for a matrix product, which first packs its operands and waits for memory meanwhile. Several
formulations run, because the fastest depends on the CPU and the dtype.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.inputs import DecodeAttentionInputs

Bound = Callable[[], Tensor]


def key_pages(inputs: DecodeAttentionInputs) -> Bound:
    """Scores by `_page_scores`, values by a matrix product."""
    page_scores = _page_scores(inputs)
    v = inputs.v_cache.transpose(1, 2).flatten(0, 1)
    out = inputs.out.view(len(v), -1, inputs.out.shape[-1])

    def call() -> Tensor:
        torch.bmm(page_scores().softmax(-1), v, out=out)
        return inputs.out

    return call


def key_pages_value_rows(inputs: DecodeAttentionInputs) -> Bound:
    """Scores by `_page_scores`; values too as sums of weighted rows, the tokens, by `embedding_bag`."""
    page_scores = _page_scores(inputs)
    tokens = inputs.v_cache.transpose(1, 2).flatten(0, 2)
    capacity, kv_heads = inputs.v_cache.shape[1:3]
    group = inputs.q.shape[1] // kv_heads
    indices, offsets = _bags(len(inputs.q) * kv_heads, group, 1, capacity)

    def call() -> Tensor:
        weights = page_scores().softmax(-1).view(-1)
        return torch.embedding_bag(tokens, indices, offsets, False, 0, False, weights)[0].view_as(inputs.out)

    return call


def _page_scores(inputs: DecodeAttentionInputs) -> Bound:
    """Computes q @ k.T [pairs, group, tokens] as sums of weighted rows, by `embedding_bag`.

    Row d of a page holds element d of its tokens, so the scores of a query are the rows' sum with the query's
    elements as weights. A page is read from memory once for the group, no operand is packed, and FBGEMM's
    embedding kernels prefetch the rows.
    """
    batch, pages, page_tokens, kv_heads, head_dim = inputs.k_cache.shape
    rows = inputs.k_cache.permute(0, 3, 1, 4, 2).flatten(0, 3)  # [all, page_tokens]
    pairs = batch * kv_heads
    q = inputs.q.view(pairs, -1, 1, head_dim).expand(-1, -1, pages, -1)
    indices, offsets = _bags(pairs, q.shape[1], pages, head_dim)
    scale = head_dim**-0.5

    def call() -> Tensor:
        weights = (q * scale).reshape(-1)
        sums = torch.embedding_bag(rows, indices, offsets, False, 0, False, weights)[0]
        return sums.view(pairs, -1, pages * page_tokens)

    return call


@functools.lru_cache(maxsize=4)
def _bags(pairs: int, group: int, pages: int, rows: int) -> tuple[Tensor, Tensor]:
    """Row numbers of the bags [pairs, group, pages], and where each bag begins; both int32.

    A bag sums `rows` adjacent rows; the bags of a group sum the same ones. An engine has such numbers in its
    page table and uses them in every layer, so the copies of a case share them.
    """
    numbers = torch.arange(pairs * pages * rows, dtype=torch.int32).view(pairs, 1, pages, rows)
    indices = numbers.expand(-1, group, -1, -1).reshape(-1)
    return indices, torch.arange(0, len(indices), rows, dtype=torch.int32)
