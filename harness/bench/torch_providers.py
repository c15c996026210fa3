"""Providers in plain PyTorch. Several run, because the fastest one depends on the CPU."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..core.cases import Case, DecodeAttention, PrefillMatmul
from ..core.inputs import DecodeAttentionInputs, MatmulInputs, PrefillAttentionInputs, page_tokens
from .device import Device

FEW_ROWS = 64
"""Above this many rows both orders of a product are equally fast on a CPU."""

FEW_PAGE_TOKENS = 64
"""Pages of fewer tokens take longer for their overheads than for their reads."""

PARTS = 8
"""Parts of a weight that threads share in `matmul_batched`."""


def matmul(inputs: MatmulInputs) -> Tensor:
    """The product x @ weight.T."""
    return torch.matmul(inputs.x, inputs.weight.t(), out=inputs.out)


def matmul_weight_first(inputs: MatmulInputs) -> Tensor:
    """The product as (weight @ x.T).T."""
    return torch.matmul(inputs.weight, inputs.x.t()).t()


def matmul_batched(inputs: MatmulInputs) -> Tensor:
    """A batched matmul over parts of the weight: a library that cannot split one row can split a batch.

    With `decodetax run --quick --dtype fp32` on 2 cores, a product of one row is 1.6 times as fast.
    """
    parts = inputs.weight.view(PARTS, -1, inputs.weight.shape[1])
    out = torch.bmm(inputs.x.expand(PARTS, *inputs.x.shape), parts.transpose(1, 2))
    return out.transpose(0, 1).flatten(1)


def _grouped(inputs: DecodeAttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Views: q [batch, kv_heads, group, head_dim], caches [batch, kv_heads, capacity, head_dim]."""
    kv_heads = inputs.k_cache.shape[2]
    q = inputs.q.view(len(inputs.q), kv_heads, -1, inputs.q.shape[-1])
    return q, inputs.k_cache.transpose(1, 2), inputs.v_cache.transpose(1, 2)


def decode_attention(inputs: DecodeAttentionInputs) -> Tensor:
    """PyTorch's fused attention with the query heads of each GQA group as its rows."""
    return scaled_dot_product_attention(*_grouped(inputs)).flatten(1, 2)


def prefill_attention(inputs: PrefillAttentionInputs) -> Tensor:
    """PyTorch's fused causal attention."""
    return scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, is_causal=True, enable_gqa=True)


def ragged(case: Case, _device: Device) -> str | None:
    """Refuses contexts of unequal lengths."""
    if isinstance(case, DecodeAttention) and len(set(case.contexts)) > 1:
        return "takes contexts of one length"
    return None


def cpu_only(_case: Case, device: Device) -> str | None:
    """Refuses any device but a CPU."""
    return None if device.kind == "cpu" else "a formulation for CPUs"


def ragged_or_not_cpu(case: Case, device: Device) -> str | None:
    """Refuses contexts of unequal lengths, and any device but a CPU."""
    return ragged(case, device) or cpu_only(case, device)


def embeds_with_fbgemm() -> bool:
    """Whether PyTorch has FBGEMM, whose embedding kernels are vectorised and prefetch."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def pages_on_cpu(case: Case, device: Device) -> str | None:
    """Refuses contexts that split into small pages only, PyTorch without FBGEMM, and `ragged_or_not_cpu`."""
    if not embeds_with_fbgemm():
        return "PyTorch is built without FBGEMM"
    if isinstance(case, DecodeAttention) and page_tokens(case.capacity) < min(case.capacity, FEW_PAGE_TOKENS):
        return f"a formulation for contexts of a multiple of {FEW_PAGE_TOKENS} tokens"
    return ragged_or_not_cpu(case, device)


def few_rows_on_cpu(case: Case, device: Device) -> str | None:
    """Refuses many rows, and any device but a CPU."""
    if isinstance(case, PrefillMatmul) and case.rows > FEW_ROWS:
        return f"a formulation for at most {FEW_ROWS} rows"
    return cpu_only(case, device)


def batched_on_cpu(case: Case, device: Device) -> str | None:
    """Refuses weights that do not split into equal parts, many rows, and any device but a CPU."""
    if isinstance(case, PrefillMatmul) and case.out_features % PARTS:
        return f"a formulation for a multiple of {PARTS} columns"
    return few_rows_on_cpu(case, device)
