"""Attention by FlashInfer (decode), FlashAttention and FlexAttention (decode and prefill).

They run on CUDA GPUs only, in 16 bits. If a library is missing or does not take a shape, its row says so.
"""

import functools
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core.cases import Case, DecodeAttention
from ..core.inputs import DecodeAttentionInputs, PrefillAttentionInputs
from .device import Device
from .unfused_attention import in_window

Bound = Callable[[], Tensor]
AnyInputs = TypeVar("AnyInputs", DecodeAttentionInputs, PrefillAttentionInputs)

WORKSPACE_BYTES = 128 * 2**20
"""FlashInfer's workspace for split-KV partials, of the size that its documentation gives."""

PAGE_TOKENS = 16
"""Tokens in a page of FlashInfer's cache, as in vLLM; fewer where 16 do not divide the capacity."""

MAX_SHAPES = 1000
"""Most shapes for which FlexAttention is compiled; rows of further shapes are unsupported."""

TENSOR_CORES_FROM_GROUP = 4
"""Query heads per KV head from which FlashInfer uses tensor cores, as SGLang chooses in 16 bits."""


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


def or_unsupported(bind: Callable[[AnyInputs], Bound]) -> Callable[[AnyInputs], Bound]:
    """Turn a library's error about a shape or a GPU into NotImplementedError: it is no wrong result."""

    def bound(inputs: AnyInputs) -> Bound:
        try:
            call = bind(inputs)
            call()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise NotImplementedError(reason or type(error).__name__) from error
        return call

    return bound


@or_unsupported
def flashinfer(inputs: DecodeAttentionInputs) -> Bound:
    """FlashInfer's paged decode, planned once for all copies of a case's inputs.

    Pages of 16 tokens let it split the KV cache of one sequence; they are views of the contiguous cache.
    """
    capacity = inputs.k_cache.shape[1]
    page_size = math.gcd(capacity, PAGE_TOKENS)
    wrapper = _planned(
        inputs.q.shape,
        inputs.k_cache.shape,
        inputs.contexts,
        page_size,
        inputs.q.dtype,
        inputs.q.device,
        window_left=_window_left(inputs),
        softcap=inputs.softcap,
    )
    caches = tuple(_pages(cache, page_size) for cache in (inputs.k_cache, inputs.v_cache))
    return lambda: wrapper.run(inputs.q, caches)


def _window_left(inputs: DecodeAttentionInputs | PrefillAttentionInputs) -> int:
    """Tokens before a query that it attends to, as libraries count a window; -1 for all."""
    return -1 if inputs.window is None else inputs.window - 1


def _pages(cache: Tensor, page_size: int) -> Tensor:
    """A cache [batch, capacity, kv_heads, head_dim] in overlapping pages [page, kv_heads, tokens, head_dim].

    A page starts every `page_size` tokens of the storage, which is [batch, kv_heads, capacity, head_dim].
    Page `p` of sequence `b` has number `b * kv_heads * capacity / page_size + p`.
    """
    batch, capacity, kv_heads, head_dim = cache.shape
    pages = ((batch - 1) * kv_heads + 1) * capacity // page_size
    shape = (pages, kv_heads, page_size, head_dim)
    return cache.as_strided(shape, (page_size * head_dim, capacity * head_dim, head_dim, 1))


@functools.lru_cache(maxsize=1)
def _planned(
    q_shape: tuple[int, ...],
    cache_shape: tuple[int, ...],
    contexts: tuple[int, ...],
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    window_left: int,
    softcap: float | None,
) -> Any:
    """FlashInfer's wrapper, planned for contexts in pages as `_pages` numbers them; one workspace for all."""
    library: Any = importlib.import_module("flashinfer")
    (_, q_heads, head_dim), (_, capacity, kv_heads, _) = q_shape, cache_shape
    tensor_cores = q_heads // kv_heads >= TENSOR_CORES_FROM_GROUP
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=tensor_cores)
    lengths = torch.tensor(contexts, dtype=torch.int32)
    counts = -(-lengths // page_size)
    ends = counts.cumsum(0, dtype=torch.int32)
    firsts = torch.arange(len(contexts), dtype=torch.int32) * (kv_heads * capacity // page_size)
    within = torch.arange(int(ends[-1]), dtype=torch.int32) - (ends - counts).repeat_interleave(counts)
    wrapper.plan(
        torch.nn.functional.pad(ends, (1, 0)).to(device),
        (firsts.repeat_interleave(counts) + within).to(device),
        (lengths - (counts - 1).clamp(0) * page_size).to(device),
        q_heads,
        kv_heads,
        head_dim,
        page_size,
        window_left=window_left,
        logits_soft_cap=softcap,
        q_data_type=dtype,
        kv_data_type=dtype,
    )
    return wrapper


@or_unsupported
def flash_attn(inputs: DecodeAttentionInputs) -> Bound:
    """FlashAttention's decode over a KV cache."""
    library: Any = importlib.import_module("flash_attn")

    def call() -> Tensor:
        found: Tensor = library.flash_attn_with_kvcache(
            inputs.q[:, None],
            inputs.k_cache,
            inputs.v_cache,
            cache_seqlens=inputs.context_lens,
            window_size=(_window_left(inputs), -1),
            softcap=inputs.softcap or 0.0,
        )
        return found[:, 0]

    return call


@or_unsupported
def flex_attention(inputs: DecodeAttentionInputs) -> Bound:
    """PyTorch's FlexAttention, compiled, with GQA."""
    compiled = _compiled_flex_attention()
    q, (k, v) = inputs.q[:, :, None], (cache.transpose(1, 2) for cache in in_window(inputs))
    return _compiled_for_shape(lambda: compiled(q, k, v, enable_gqa=True)[:, :, 0])


@or_unsupported
def prefill_flash_attn(inputs: PrefillAttentionInputs) -> Bound:
    """FlashAttention's causal attention of whole prompts."""
    library: Any = importlib.import_module("flash_attn")
    q, k, v = (tensor.transpose(1, 2) for tensor in (inputs.q, inputs.k, inputs.v))

    def call() -> Tensor:
        found: Tensor = library.flash_attn_func(
            q, k, v, causal=True, window_size=(_window_left(inputs), -1), softcap=inputs.softcap or 0.0
        )
        return found.transpose(1, 2)

    return call


@or_unsupported
def prefill_flex_attention(inputs: PrefillAttentionInputs) -> Bound:
    """PyTorch's FlexAttention, compiled, with GQA; blocks above the diagonal are left out."""
    compiled = _compiled_flex_attention()
    prompt = inputs.q.shape[2]
    mask = _causal_blocks(prompt, inputs.window or prompt, inputs.q.device)
    return _compiled_for_shape(
        lambda: compiled(inputs.q, inputs.k, inputs.v, block_mask=mask, enable_gqa=True)
    )


@functools.lru_cache(maxsize=1)
def _causal_blocks(tokens: int, window: int, device: torch.device) -> Any:
    """FlexAttention's causal mask by blocks, the same for all copies of a case's inputs."""
    module: Any = importlib.import_module("torch.nn.attention.flex_attention")
    return module.create_block_mask(
        lambda _batch, _head, query, key: (query >= key) & (query - key < window),
        None,
        None,
        tokens,
        tokens,
        device=str(device),
    )


def _compiled_for_shape(call: Bound) -> Bound:
    """The call, after a first one that compiles it for its shapes."""
    limits = dict.fromkeys(("cache_size_limit", "accumulated_cache_size_limit"), MAX_SHAPES)
    with torch._dynamo.config.patch(limits):  # noqa: SLF001  (by default no more than 8 shapes are compiled)
        call()
    return call


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    """FlexAttention, compiled for each shape; an error where PyTorch would run it eagerly."""
    module: Any = importlib.import_module("torch.nn.attention.flex_attention")
    compiled: Callable[..., Any] = torch.compile(module.flex_attention, dynamic=False, fullgraph=True)
    return compiled
