"""Providers in plain PyTorch. Several run, because the fastest one depends on the CPU."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..core.cases import Case, DecodeAttention, PrefillMatmul, attention_options
from ..core.inputs import DecodeAttentionInputs, MatmulInputs, PrefillAttentionInputs, page_tokens
from . import unfused_attention
from .device import Device

FEW_ROWS = 64
"""Above this many rows both orders of a product are equally fast on a CPU."""

FEW_PAGE_TOKENS = 64
"""Pages of fewer tokens take longer for their overheads than for their reads."""

PARTS = 8
"""Parts of a weight that threads share in `matmul_batched`."""


def matmul(inputs: MatmulInputs) -> Tensor:
    """The product x @ weight.T."""
    return torch.matmul(inputs.x, inputs.weight.mT, out=inputs.out)


def matmul_weight_first(inputs: MatmulInputs) -> Tensor:
    """The product as (weight @ x.T).T."""
    return torch.matmul(inputs.weight, inputs.x.mT).mT


def matmul_batched(inputs: MatmulInputs) -> Tensor:
    """A batched matmul over parts of the weight: a library that cannot split one row can split a batch.

    With `decodetax run --quick --dtype fp32` on 2 cores, a product of one row is 1.6 times as fast.
    """
    parts = inputs.weight.view(PARTS, -1, inputs.weight.shape[1])
    out = torch.bmm(inputs.x.expand(PARTS, *inputs.x.shape), parts.transpose(1, 2))
    return out.transpose(0, 1).flatten(1)


FUSED = ("a sliding window",)
"""Options of a decode attention that PyTorch's fused attention takes: of one query, a window is a slice."""

UNFUSED = (*FUSED, "a softcap", "attention sinks", "values of another size than keys", "a latent cache (MLA)")
"""All options of attention, which `unfused_attention` takes."""


def decode_attention(inputs: DecodeAttentionInputs) -> Tensor:
    """PyTorch's fused attention with the query heads of each GQA group as its rows; unfused with options."""
    if not _is_plain(inputs, inputs.v_cache):
        return unfused_attention.decode(inputs)
    k, v = (cache.transpose(1, 2) for cache in unfused_attention.in_window(inputs))
    q = inputs.q.view(*k.shape[:2], -1, inputs.q.shape[-1])
    return scaled_dot_product_attention(q, k, v).flatten(1, 2)


def prefill_attention(inputs: PrefillAttentionInputs) -> Tensor:
    """PyTorch's fused causal attention; unfused in blocks with a window within the prompt or options."""
    within = inputs.window is not None and inputs.window < inputs.q.shape[2]
    if within or not _is_plain(inputs, inputs.v):
        return unfused_attention.prefill(inputs)
    return scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, is_causal=True, enable_gqa=True)


def _is_plain(inputs: DecodeAttentionInputs | PrefillAttentionInputs, values: Tensor) -> bool:
    """Whether PyTorch's fused attention computes it."""
    return inputs.softcap is None and inputs.sinks is None and values.shape[-1] == inputs.q.shape[-1]


def ragged(case: Case, _device: Device) -> str | None:
    """Refuses contexts of unequal lengths."""
    if isinstance(case, DecodeAttention) and len(set(case.contexts)) > 1:
        return "takes contexts of one length"
    return None


def fused_alone(case: Case, device: Device) -> str | None:
    """Refuses what PyTorch's fused attention does not take, and `ragged_or_not_cpu`."""
    if any(option not in FUSED for option in attention_options(case)):
        return "as torch, whose attention is not fused with such options"
    return ragged_or_not_cpu(case, device)


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
    if isinstance(case, PrefillMatmul) and case.batch > 1:
        return "a formulation for one product"
    if isinstance(case, PrefillMatmul) and case.out_features % PARTS:
        return f"a formulation for a multiple of {PARTS} columns"
    return few_rows_on_cpu(case, device)
