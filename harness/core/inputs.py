"""Inputs of a case, drawn from a seed. Random data: GPUs compute faster on zeros than on real weights."""

import dataclasses
import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Literal

import torch
from torch import Tensor

from .cases import AttentionCase, Case, DecodeAttention, DecoderLayer, PrefillAttention, PrefillMatmul

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

BLOCK = 4_194_319
"""Random numbers drawn; larger tensors repeat them. A prime, so that matrix rows differ."""


class Source:
    """Draws standard normal tensors quickly: copies one block of numbers from a random offset.

    Args:
        device: device of the tensors.
        seed: seed of the numbers and offsets.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self._device = device
        self._offsets = torch.Generator().manual_seed(seed)
        self._numbers = torch.empty(BLOCK).normal_(generator=self._offsets)
        self._patterns: dict[torch.dtype, Tensor] = {}

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of standard normal numbers."""
        out = torch.empty(shape, dtype=dtype, device=self._device)
        flat, filled, pattern = out.view(-1), 0, self._pattern(dtype)
        start = int(torch.randint(BLOCK, (), generator=self._offsets))
        while filled < flat.numel():
            piece = pattern[start : start + flat.numel() - filled]
            flat[filled : filled + piece.numel()] = piece
            filled, start = filled + piece.numel(), 0
        return out

    def writable(self, tensor: Tensor) -> Tensor:
        """The tensor, which this source drew and which a case may write to."""
        return tensor

    def _pattern(self, dtype: torch.dtype) -> Tensor:
        """The block of numbers in a dtype, on the device."""
        if dtype not in self._patterns:
            self._patterns[dtype] = self._numbers.to(self._device, dtype)
        return self._patterns[dtype]


class BlankSource(Source):
    """Uninitialised tensors, for their shapes and strides; they take no memory until they are written."""

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:  # noqa: D102
        return torch.empty(shape, dtype=dtype, device=self._device)


@dataclass(frozen=True, kw_only=True)
class MatmulInputs:
    """x [rows, in_features], weight [out_features, in_features], out [rows, out_features].

    Of a batch each has one dimension more, the first.
    """

    x: Tensor
    weight: Tensor
    out: Tensor


CacheLayout = Literal["heads-first", "v-transposed", "k-pages"]
"""Order of a KV cache in memory, which its engine chooses:

- heads-first: keys and values [batch, kv_heads, tokens, head_dim];
- v-transposed: keys as before, values [batch, kv_heads, head_dim, tokens];
- k-pages: keys [batch, kv_heads, pages, head_dim, page_tokens], values [batch, kv_heads, tokens, head_dim].
"""

MAX_PAGE_TOKENS = 256
"""Most tokens of a page of keys: the scores of a GQA group read a page from memory once, and then from the
first-level cache (32 KiB of bf16 at head_dim 64)."""


@dataclass(frozen=True, kw_only=True)
class DecodeAttentionInputs:
    """q [batch, q_heads, head_dim], caches [batch, capacity, kv_heads, head_dim], context_lens [batch].

    The caches are views of memory in the order that `layout` names. Keys in pages are
    [batch, pages, page_tokens, kv_heads, head_dim]. `contexts` holds the lengths on the host for providers
    that need them. Values and `out` have elements of their own number, the case's v_head_dim; those of a
    latent cache are a view of the first elements of `k_cache`. `sinks` are [q_heads]; `window`, `softcap` and
    `sinks` are None where the attention has none.
    """

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    context_lens: Tensor
    contexts: tuple[int, ...]
    out: Tensor
    layout: CacheLayout = "heads-first"
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PrefillAttentionInputs:
    """q, out [sequences, q_heads, prompt, head_dim], k and v [sequences, kv_heads, prompt, head_dim].

    Values and `out` have elements of their own number, the case's v_head_dim. `sinks` are [q_heads];
    `window`, `softcap` and `sinks` are None where the attention has none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderLayerInputs:
    """hidden [sequences, query_tokens, hidden_size], caches [sequences, kv_heads, tokens, head_dim], weights.

    Weights by projection [out_features, in_features]; norms [2, hidden_size]; rotary cos and sin
    [query_tokens, head_dim].
    """

    case: DecoderLayer
    hidden: Tensor
    k_cache: Tensor
    v_cache: Tensor
    weights: dict[str, Tensor]
    norms: Tensor
    cos: Tensor
    sin: Tensor


Inputs = MatmulInputs | DecodeAttentionInputs | PrefillAttentionInputs | DecoderLayerInputs


@singledispatch
def draw(case: Case, source: Source) -> Inputs:  # noqa: ARG001
    """The inputs of a case on the source's device; outputs are poisoned with NaN."""
    raise TypeError(f"case: no inputs are known for a {type(case).__name__}")


@draw.register
def _(case: PrefillMatmul, source: Source) -> Inputs:
    dtype = DTYPES[case.dtype]
    batch = () if case.batch == 1 else (case.batch,)
    x = source.normal(*batch, case.rows, case.in_features, dtype=dtype)
    weight = source.normal(*batch, case.out_features, case.in_features, dtype=dtype)
    return MatmulInputs(x=x, weight=weight, out=x.new_full((*batch, case.rows, case.out_features), math.nan))


@draw.register
def _(case: DecodeAttention, source: Source) -> Inputs:
    dtype = DTYPES[case.dtype]
    q = source.normal(case.batch, case.q_heads, case.head_dim, dtype=dtype)
    memory = [
        source.normal(case.batch, case.kv_heads, case.capacity, width, dtype=dtype)
        for width in ((case.head_dim,) if case.latent else (case.head_dim, case.value_dim))
    ]
    for cache in memory:
        if min(case.contexts) < case.capacity:
            source.writable(cache)
        for sequence, context in enumerate(case.contexts):
            cache[sequence, :, context:] = math.nan
    k_cache, v_cache = memory[0].transpose(1, 2), memory[-1].transpose(1, 2)[..., : case.value_dim]
    return DecodeAttentionInputs(
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        context_lens=torch.tensor(case.contexts, dtype=torch.int32, device=q.device),
        contexts=case.contexts,
        out=q.new_full((case.batch, case.q_heads, case.value_dim), math.nan),
        **_options(case, source, tokens=case.capacity),
    )


@draw.register
def _(case: PrefillAttention, source: Source) -> Inputs:
    dtype = DTYPES[case.dtype]
    q, k, v = (
        source.normal(case.sequences, heads, case.prompt, width, dtype=dtype)
        for heads, width in (
            (case.q_heads, case.head_dim),
            (case.kv_heads, case.head_dim),
            (case.kv_heads, case.value_dim),
        )
    )
    out = q.new_full((case.sequences, case.q_heads, case.prompt, case.value_dim), math.nan)
    return PrefillAttentionInputs(q=q, k=k, v=v, out=out, **_options(case, source, tokens=case.prompt))


def _options(case: AttentionCase, source: Source, *, tokens: int) -> dict[str, Any]:
    """Window, softcap and sinks of an attention to up to so many tokens, by the field names of its inputs.

    A sink weighs about as much as all tokens together: one that is left out then shows in the output.
    """
    sinks = None
    if case.sinks:
        attended = min(tokens, case.window or tokens)
        sinks = source.normal(case.q_heads, dtype=DTYPES[case.dtype]) + math.log(attended)
    return {"window": case.window, "softcap": case.softcap, "sinks": sinks}


@draw.register
def _(case: DecoderLayer, source: Source) -> Inputs:
    dtype, model = DTYPES[case.dtype], case.model
    hidden = source.normal(case.sequences, case.query_tokens, model.hidden_size, dtype=dtype)
    cache = (case.sequences, model.kv_heads, case.tokens, model.head_dim)
    positions = torch.arange(case.tokens - case.query_tokens, case.tokens, device=hidden.device)
    frequencies = 10000.0 ** (-torch.arange(0, 1, 2 / model.head_dim, device=hidden.device))
    angles = positions[:, None] * frequencies.repeat(2)
    return DecoderLayerInputs(
        case=case,
        hidden=hidden,
        k_cache=source.writable(source.normal(*cache, dtype=dtype)),
        v_cache=source.writable(source.normal(*cache, dtype=dtype)),
        weights={
            p.name: source.normal(p.out_features, p.in_features, dtype=dtype) for p in model.projections
        },
        # Unit normal weights make the sums of hidden_size products sqrt(hidden_size) times as large.
        norms=(1 + 0.1 * source.normal(2, model.hidden_size, dtype=dtype)) * model.hidden_size**-0.5,
        cos=angles.cos().to(dtype),
        sin=angles.sin().to(dtype),
    )


def page_tokens(capacity: int) -> int:
    """Tokens of a page of keys: as many as fill whole pages of at most MAX_PAGE_TOKENS tokens."""
    return capacity if capacity <= MAX_PAGE_TOKENS else math.gcd(capacity, MAX_PAGE_TOKENS)


def in_layout(inputs: Inputs, layout: CacheLayout) -> Inputs:
    """Inputs whose caches take the same memory as another layout: other keys and values, nothing copied.

    Args:
        inputs: inputs of any case, a decode attention heads-first; those of other cases have no cache to
            lay out and are returned as they are.
        layout: the layout. One other than heads-first needs contexts of one length.

    Raises:
        ValueError: contexts of unequal lengths: dead cache would be read as live; or values that are a part
            of the keys, which have no memory of their own.
    """
    if not isinstance(inputs, DecodeAttentionInputs) or layout == inputs.layout:
        return inputs
    if len(set(inputs.contexts)) > 1:
        raise ValueError(f"contexts: must be of one length with layout {layout}, not {inputs.contexts}")
    if inputs.v_cache.data_ptr() == inputs.k_cache.data_ptr():
        raise ValueError(f"v_cache: must not be a view of k_cache with layout {layout}")
    batch, capacity, kv_heads, head_dim = inputs.k_cache.shape
    k_memory, v_memory = (cache.transpose(1, 2) for cache in (inputs.k_cache, inputs.v_cache))
    if layout == "v-transposed":
        values = v_memory.reshape(batch, kv_heads, -1, capacity)
        return dataclasses.replace(inputs, v_cache=values.permute(0, 3, 1, 2), layout=layout)
    keys = k_memory.reshape(batch, kv_heads, -1, head_dim, page_tokens(capacity))
    return dataclasses.replace(inputs, k_cache=keys.permute(0, 2, 4, 1, 3), layout=layout)


def poison(inputs: Inputs) -> None:
    """Fill the output with NaN, if the inputs hold one."""
    if not isinstance(inputs, DecoderLayerInputs):
        inputs.out.fill_(math.nan)
