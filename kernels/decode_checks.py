"""Argument checks of `decode_attention`: every misuse raises a ValueError that names the argument."""

from __future__ import annotations

import math

import torch

from .checks import (
    CACHE_DTYPES,
    FLOAT8_DTYPES,
    FLOAT_DTYPES,
    MAX_CAPACITY,
    check_contiguous,
    check_count,
    check_device,
    check_dtype,
    check_flag,
    check_floating,
    check_head_dim,
    check_integers,
    check_last_contiguous,
    check_lse_base,
    check_nonempty,
    check_number,
    check_one_of,
    check_runnable,
    check_same,
    check_shape,
    check_sinks,
    check_tensor,
    check_workspace,
    check_writable,
)
from .decode_plan import takes_split_scale
from .decode_tiling import MAX_SPLITS, DecodeTiling

__all__ = ["check_decode_attention", "check_workspace", "default_decode_dtype", "lse_shape"]

_MAX_GROUP = 128
_MAX_HEAD_DIM = 576
_MAX_V_HEAD_DIM = 512
_MAX_ROWS = 1 << 30


def check_decode_attention(
    *,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    q_lens: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    scale: torch.Tensor | float | None = None,
    window: int | None = None,
    softcap: torch.Tensor | float | None = None,
    sinks: torch.Tensor | None = None,
    q_scale: torch.Tensor | float | None = None,
    k_scale: torch.Tensor | float | None = None,
    v_scale: torch.Tensor | float | None = None,
    out_scale: torch.Tensor | float | None = None,
    out_dtype: torch.dtype | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
    lse_layout: str = "tokens-first",
    lse_base: str | int = "e",
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    tiling: DecodeTiling | None = None,
) -> None:
    """Raise ValueError unless the arguments are as `decode_attention` documents them."""
    check_one_of("lse_layout", lse_layout, ("tokens-first", "heads-first"))
    check_lse_base(lse_base)
    check_flag("return_lse", return_lse)
    if tiling is not None and not isinstance(tiling, DecodeTiling):
        raise ValueError(f"tiling is a {type(tiling).__name__}; it must be a DecodeTiling")
    _check_queries(q, packed=cu_seqlens is not None)
    batch = _check_query_lengths(q, cu_seqlens, q_lens)
    _check_caches(q, k_cache, v_cache, batch, paged=block_table is not None)
    q_heads, kv_heads = q.shape[-2], k_cache.shape[2]
    if q_heads % kv_heads or q_heads // kv_heads > _MAX_GROUP:
        raise ValueError(
            f"q has {q_heads} heads; it must have 1 to {_MAX_GROUP} for each of the {kv_heads} in k_cache"
        )
    _check_row_count(q, q_heads // kv_heads)
    check_integers("context_lens", context_lens, "q", q)
    check_shape("context_lens", context_lens, (batch,), "[batch]")
    check_last_contiguous("context_lens", context_lens)
    capacity = k_cache.shape[1]
    if block_table is not None:
        check_integers("block_table", block_table, "q", q)
        check_shape("block_table", block_table, (batch, None), "[batch, max_pages]")
        check_nonempty("block_table", block_table, but_batch=batch)
        check_last_contiguous("block_table", block_table)
        capacity *= block_table.shape[1]
    if capacity > MAX_CAPACITY:
        name = "k_cache" if block_table is None else "block_table"
        raise ValueError(f"{name} gives a sequence {capacity} tokens; it may give at most {MAX_CAPACITY}")
    for name, number in (("scale", scale), ("softcap", softcap), ("out_scale", out_scale)):
        _check_decode_scale(name, number, {}, q)
    for name, number in (("softcap", softcap), ("out_scale", out_scale)):
        if isinstance(number, int | float) and number <= 0:
            raise ValueError(f"{name} is {number}; it must be positive")
    check_count("window", window)
    check_count("num_splits", num_splits, at_most=MAX_SPLITS)
    if sinks is not None:
        check_sinks(sinks, q)
    per_head = {"[kv_heads]": (kv_heads,), "[batch, kv_heads]": (batch, kv_heads)}
    of_q = {"[q_heads]": (q_heads,), **per_head, "that of q without head_dim": tuple(q.shape[:-1])}
    of_v = {**per_head, "that of the cache without head_dim": tuple(k_cache.shape[:3])}
    split = {"[2] of the elements of v_cache and of the rest": (2,)}
    of_k = {**of_v, **(split if takes_split_scale(k_cache, v_cache) else {})}
    for name, each, shapes in (
        ("q_scale", q_scale, of_q),
        ("k_scale", k_scale, of_k),
        ("v_scale", v_scale, of_v),
    ):
        _check_decode_scale(name, each, shapes, q)
    check_one_of("out_dtype", out_dtype, (None, *FLOAT_DTYPES, *FLOAT8_DTYPES))
    _check_decode_out(
        out, q, v_cache.shape[-1], return_lse=return_lse, lse_layout=lse_layout, out_dtype=out_dtype
    )


def default_decode_dtype(q: torch.Tensor, v_cache: torch.Tensor) -> torch.dtype:
    """The dtype of the output of `decode_attention` without `out_dtype` and `out`."""
    floats = [tensor.dtype for tensor in (q, v_cache) if tensor.dtype in FLOAT_DTYPES]
    return floats[0] if floats else torch.bfloat16


def _check_queries(q: torch.Tensor, *, packed: bool) -> None:
    check_tensor("q", q)
    if q.dtype not in (*FLOAT_DTYPES, *CACHE_DTYPES):
        kinds = ", ".join(map(str, (*FLOAT_DTYPES, *CACHE_DTYPES)))
        raise ValueError(f"q is {q.dtype}; it must be one of {kinds}")
    if packed and q.dim() != 3:
        raise ValueError(
            f"q has shape {list(q.shape)}; with cu_seqlens it must be [tokens, q_heads, head_dim]"
        )
    if q.dim() not in (3, 4):
        raise ValueError(
            f"q has shape {list(q.shape)}; it must be [batch, q_heads, head_dim] or "
            "[batch, query_tokens, q_heads, head_dim]"
        )
    if 0 in q.shape[1:]:
        raise ValueError(f"q has shape {list(q.shape)}; every size must be at least 1")
    check_runnable("q", q)
    check_last_contiguous("q", q)
    check_head_dim("q", q, _MAX_HEAD_DIM)


def _check_query_lengths(
    q: torch.Tensor, cu_seqlens: torch.Tensor | None, q_lens: torch.Tensor | None
) -> int:
    """Checks how many query tokens each sequence has; returns the number of sequences."""
    if cu_seqlens is not None:
        if q_lens is not None:
            raise ValueError("q_lens is given with cu_seqlens; only one of them may be")
        check_integers("cu_seqlens", cu_seqlens, "q", q)
        check_shape("cu_seqlens", cu_seqlens, (None,), "[batch + 1]")
        if cu_seqlens.shape[0] < 2:
            raise ValueError(
                f"cu_seqlens has shape {list(cu_seqlens.shape)}; it must be [batch + 1] with a batch of at "
                "least 1"
            )
        check_last_contiguous("cu_seqlens", cu_seqlens)
        return cu_seqlens.shape[0] - 1
    if q_lens is not None:
        if q.dim() != 4:
            raise ValueError(
                f"q has shape {list(q.shape)}; with q_lens it must be [batch, max_tokens, q_heads, head_dim]"
            )
        check_integers("q_lens", q_lens, "q", q)
        check_shape("q_lens", q_lens, (q.shape[0],), "[batch]")
        check_last_contiguous("q_lens", q_lens)
    return q.shape[0]


def _check_row_count(q: torch.Tensor, group: int) -> None:
    """Query rows of a key-value head are counted in 32 bits."""
    tokens = math.prod(q.shape[:-2])
    if tokens * group > _MAX_ROWS:
        raise ValueError(
            f"q has {tokens} query tokens; with groups of {group} it may have {_MAX_ROWS // group}"
        )


def _check_caches(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: int, *, paged: bool
) -> None:
    head_dim = q.shape[-1]
    if paged:
        layout, first = "[pages, page_size, kv_heads, head_dim] with head_dim of q", None
    else:
        layout, first = "[batch, capacity, kv_heads, head_dim] with batch and head_dim of q", batch
    check_tensor("k_cache", k_cache)
    check_tensor("v_cache", v_cache)
    check_shape("k_cache", k_cache, (first, None, None, head_dim), layout)
    check_shape("v_cache", v_cache, (*k_cache.shape[:3], None), "the shape of k_cache but for head_dim")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_nonempty(name, cache, but_batch=batch)
        check_device(name, cache, "q", q)
        check_last_contiguous(name, cache)
    check_head_dim("v_cache", v_cache, _MAX_V_HEAD_DIM)
    floats = (q.dtype,) if q.dtype in FLOAT_DTYPES else FLOAT_DTYPES
    if k_cache.dtype not in (*floats, *CACHE_DTYPES):
        kinds = ", ".join(map(str, (*floats, *CACHE_DTYPES)))
        raise ValueError(f"k_cache is {k_cache.dtype}; under q of {q.dtype} it must be one of {kinds}")
    check_same("v_cache", v_cache, "k_cache", k_cache)


def _check_decode_out(
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
    q: torch.Tensor,
    v_head_dim: int,
    *,
    return_lse: bool,
    lse_layout: str,
    out_dtype: torch.dtype | None,
) -> None:
    if isinstance(out, tuple):
        if not return_lse or len(out) != 2:
            raise ValueError("out is a tuple; it may be the pair of output and log-sum-exp with return_lse")
        out, lse = out
        check_tensor("out[1]", lse)
        meaning = "the shape of q without head_dim"
        if lse_layout == "heads-first":
            meaning += ", heads before tokens"
        check_shape("out[1]", lse, lse_shape(q, lse_layout), meaning)
        check_dtype("out[1]", lse, torch.float32)
        check_device("out[1]", lse, "q", q)
        check_contiguous("out[1]", lse)
    if out is not None:
        check_tensor("out", out)
        check_shape("out", out, (*q.shape[:-1], v_head_dim), "the shape of q with the head_dim of v_cache")
        allowed = (*FLOAT_DTYPES, *FLOAT8_DTYPES) if out_dtype is None else (out_dtype,)
        if out.dtype not in allowed:
            raise ValueError(f"out is {out.dtype}; it must be {' or '.join(map(str, allowed))}")
        check_device("out", out, "q", q)
        check_last_contiguous("out", out)
        check_writable("out", out)


def lse_shape(q: torch.Tensor, lse_layout: str) -> tuple[int, ...]:
    """Shape of the log-sum-exp of `decode_attention`."""
    *lead, tokens, heads = q.shape[:-1]
    return (*lead, heads, tokens) if lse_layout == "heads-first" else (*lead, tokens, heads)


def _check_decode_scale(
    name: str,
    scale: torch.Tensor | float | None,
    shapes: dict[str, tuple[int, ...]],
    q: torch.Tensor,
) -> None:
    """A number, or a tensor of one element or of one of the named shapes, on the device of `q`."""
    if not isinstance(scale, torch.Tensor):
        check_number(name, scale)
        return
    check_floating(name, scale)
    if tuple(scale.shape) not in {(), (1,), *shapes.values()}:
        *meanings, last = ("[]", "[1]", *shapes)
        sizes = ", ".join(str(list(shape)) for shape in shapes.values())
        raise ValueError(
            f"{name} has shape {list(scale.shape)}; it must be {', '.join(meanings)}{',' if shapes else ''} "
            f"or {last}{': ' + sizes if sizes else ''}"
        )
    check_device(name, scale, "q", q)
