"""Decode attention by FlashInfer, FlashAttention and FlexAttention.

They run on CUDA GPUs only, in 16 bits. If a library is missing or does not take a shape, its row says so.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.cases import Case, DecodeAttention
from ..core.inputs import DecodeAttentionInputs
from .device import Device

Bound = Callable[[], Tensor]

WORKSPACE_BYTES = 128 * 2**20
"""FlashInfer's workspace for split-KV partials, of the size that its documentation gives."""


def installed(library: str) -> bool:
    """Whether a library can be imported."""
    return library in sys.modules or importlib.util.find_spec(library) is not None


def refuses_without(library: str, *, ragged: bool = True) -> Callable[[Case, Device], str | None]:
    """A refusal of other devices, of fp32, of a missing library and, unless `ragged`, of unequal contexts."""
    name = "FlexAttention" if library == "torch" else library

    def refuses(case: Case, device: Device) -> str | None:
        if device.kind != "cuda":
            return f"{name} needs a CUDA GPU"
        if not installed(library):
            return f"{name} is not installed"
        if case.dtype == "fp32":
            return f"{name} takes bf16 and fp16"
        if not ragged and isinstance(case, DecodeAttention) and len(set(case.contexts)) > 1:
            return "takes contexts of one length"
        return None

    return refuses


def or_unsupported(
    bind: Callable[[DecodeAttentionInputs], Bound],
) -> Callable[[DecodeAttentionInputs], Bound]:
    """Turn a library's error about a shape or a GPU into NotImplementedError: it is no wrong result."""

    def bound(inputs: DecodeAttentionInputs) -> Bound:
        try:
            call = bind(inputs)
            call()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise NotImplementedError(" ".join(str(error).split())[:200] or type(error).__name__) from error
        return call

    return bound


@or_unsupported
def flashinfer(inputs: DecodeAttentionInputs) -> Bound:
    """FlashInfer's paged decode, planned once; the cache of each sequence is one page."""
    library: Any = importlib.import_module("flashinfer")
    batch, capacity, kv_heads, head_dim = inputs.k_cache.shape
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(_workspace(inputs.q.device), "HND")
    pages = torch.arange(batch + 1, dtype=torch.int32, device=inputs.q.device)
    wrapper.plan(
        pages,
        pages[:-1],
        inputs.context_lens,
        inputs.q.shape[1],
        kv_heads,
        head_dim,
        capacity,
        q_data_type=inputs.q.dtype,
        kv_data_type=inputs.k_cache.dtype,
    )
    cache = (inputs.k_cache.transpose(1, 2), inputs.v_cache.transpose(1, 2))
    return lambda: wrapper.run(inputs.q, cache)


@functools.cache
def _workspace(device: torch.device) -> Tensor:
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


@or_unsupported
def flash_attn(inputs: DecodeAttentionInputs) -> Bound:
    """FlashAttention's decode over a KV cache."""
    library: Any = importlib.import_module("flash_attn")

    def call() -> Tensor:
        found: Tensor = library.flash_attn_with_kvcache(
            inputs.q[:, None], inputs.k_cache, inputs.v_cache, cache_seqlens=inputs.context_lens
        )
        return found[:, 0]

    return call


@or_unsupported
def flex_attention(inputs: DecodeAttentionInputs) -> Bound:
    """PyTorch's FlexAttention, compiled, with GQA."""
    compiled = _compiled_flex_attention()
    q, k, v = inputs.q[:, :, None], inputs.k_cache.transpose(1, 2), inputs.v_cache.transpose(1, 2)

    def call() -> Tensor:
        found: Tensor = compiled(q, k, v, enable_gqa=True)
        return found[:, :, 0]

    return call


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    module: Any = importlib.import_module("torch.nn.attention.flex_attention")
    compiled: Callable[..., Any] = torch.compile(module.flex_attention, dynamic=False)
    return compiled
