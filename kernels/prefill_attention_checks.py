"""Argument checks of `prefill_attention`: every misuse raises a ValueError that names the argument."""

from __future__ import annotations

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
    check_head_dim,
    check_integers,
    check_last_contiguous,
    check_nonempty,
    check_number,
    check_runnable,
    check_same,
    check_scale,
    check_shape,
    check_sinks,
    check_tensor,
    check_workspace,
    check_writable,
    default_out_dtype,
)
from .prefill_attention_tiling import PrefillAttentionTiling

_MAX_HEAD_DIM = 256

__all__ = ["check_prefill_attention", "check_workspace", "default_out_dtype"]


def check_prefill_attention(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    context_lens: torch.Tensor | None = None,
    k_cache: torch.Tensor | None = None,
    v_cache: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    q_scale: torch.Tensor | float | None = None,
    k_scale: torch.Tensor | float | None = None,
    v_scale: torch.Tensor | float | None = None,
    return_lse: bool = False,
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    tiling: PrefillAttentionTiling | None = None,
) -> None:
    """Raise ValueError unless the arguments are as `prefill_attention` documents them."""
    if tiling is not None and not isinstance(tiling, PrefillAttentionTiling):
        raise ValueError(f"tiling is a {type(tiling).__name__}; it must be a PrefillAttentionTiling")
    check_flag("causal", causal)
    check_flag("return_lse", return_lse)
    _check_operands(q, k, v, packed=cu_seqlens is not None)
    kv_heads = k.shape[-2]
    batch = q.shape[0]
    if cu_seqlens is not None:
        _check_integers("cu_seqlens", cu_seqlens, q)
        check_shape("cu_seqlens", cu_seqlens, (None,), "[batch + 1]")
        if len(cu_seqlens) < 2:
            raise ValueError(f"cu_seqlens has {len(cu_seqlens)} elements; it must have at least 2")
        batch = len(cu_seqlens) - 1
        if lengths is not None:
            raise ValueError("lengths is given with cu_seqlens; only one of them may be")
    if lengths is not None:
        _check_integers("lengths", lengths, q)
        check_shape("lengths", lengths, (batch,), "[batch]")
    _check_prefix(q, k, v, batch, context_lens, k_cache, v_cache, block_table)
    for name, number in (("scale", scale), ("softcap", softcap)):
        check_number(name, number)
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap is {softcap}; it must be positive")
    check_count("window", window)
    if sinks is not None:
        check_sinks(sinks, q)
    check_scale("q_scale", q_scale, set(), "", ("q", q))
    for name, head_scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        check_scale(name, head_scale, {(kv_heads,)}, f" or [kv_heads]: [{kv_heads}]", ("q", q))
    _check_out(out, q, v.shape[-1], return_lse=return_lse)


def _check_operands(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, packed: bool) -> None:
    check_tensor("q", q)
    if q.dtype not in (*FLOAT_DTYPES, *FLOAT8_DTYPES):
        kinds = ", ".join(map(str, (*FLOAT_DTYPES, *FLOAT8_DTYPES)))
        raise ValueError(f"q is {q.dtype}; it must be one of {kinds}")
    layout = "[tokens, q_heads, head_dim]" if packed else "[batch, tokens, q_heads, head_dim]"
    if q.dim() != (3 if packed else 4):
        raise ValueError(
            f"q has shape {list(q.shape)}; {'with' if packed else 'without'} cu_seqlens it must be {layout}"
        )
    leading: tuple[int | None, ...] = tuple(q.shape[:-2])
    meaning = f"{layout.replace('q_heads', 'kv_heads')}, the sizes of q but for the heads"
    check_shape("k", k, (*leading, None, q.shape[-1]), meaning)
    check_shape("v", v, (*leading, k.shape[-2], None), "the shape of k but for head_dim")
    for name, each in (("q", q), ("k", k), ("v", v)):
        check_nonempty(name, each)
        check_last_contiguous(name, each)
        check_head_dim(name, each, _MAX_HEAD_DIM)
    check_runnable("q", q)
    check_same("k", k, "q", q)
    check_same("v", v, "q", q)
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(f"q has {q.shape[-2]} heads; it must have a multiple of the {k.shape[-2]} of k")
    if q.shape[-3] > MAX_CAPACITY:
        raise ValueError(f"q has {q.shape[-3]} tokens; it may have at most {MAX_CAPACITY}")


def _check_prefix(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: int,
    context_lens: torch.Tensor | None,
    k_cache: torch.Tensor | None,
    v_cache: torch.Tensor | None,
    block_table: torch.Tensor | None,
) -> None:
    given = {"context_lens": context_lens, "k_cache": k_cache, "v_cache": v_cache}
    missing = [name for name, value in given.items() if value is None]
    if missing and (block_table is not None or len(missing) < len(given)):
        there = next(
            name for name, value in {**given, "block_table": block_table}.items() if value is not None
        )
        raise ValueError(f"{missing[0]} is None; with {there} it must be given")
    if context_lens is None or k_cache is None or v_cache is None:
        return
    _check_integers("context_lens", context_lens, q)
    check_shape("context_lens", context_lens, (batch,), "[batch]")
    first = batch if block_table is None else None
    layout = (
        "[batch, capacity, kv_heads, head_dim]"
        if block_table is None
        else "[pages, page_size, kv_heads, head_dim]"
    )
    check_shape("k_cache", k_cache, (first, None, *k.shape[-2:]), f"{layout} with heads and head_dim of k")
    check_shape(
        "v_cache", v_cache, (*k_cache.shape[:3], v.shape[-1]), "the shape of k_cache with head_dim of v"
    )
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_nonempty(name, cache)
        check_device(name, cache, "q", q)
        check_last_contiguous(name, cache)
    allowed = {q.dtype} if q.dtype in FLOAT8_DTYPES else {q.dtype, *CACHE_DTYPES}
    if k_cache.dtype not in allowed:
        kinds = " or ".join(sorted(map(str, allowed)))
        raise ValueError(f"k_cache is {k_cache.dtype}; with q of {q.dtype} it must be {kinds}")
    check_same("v_cache", v_cache, "k_cache", k_cache)
    capacity = k_cache.shape[1]
    if block_table is not None:
        _check_integers("block_table", block_table, q)
        check_shape("block_table", block_table, (batch, None), "[batch, max_pages]")
        check_nonempty("block_table", block_table)
        capacity *= block_table.shape[1]
    if capacity > MAX_CAPACITY:
        name = "k_cache" if block_table is None else "block_table"
        raise ValueError(f"{name} gives a sequence {capacity} tokens; it may give at most {MAX_CAPACITY}")


def _check_integers(name: str, tensor: torch.Tensor, q: torch.Tensor) -> None:
    check_integers(name, tensor, "q", q)
    if tensor.dim():
        check_last_contiguous(name, tensor)


def _check_out(
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
    q: torch.Tensor,
    v_head_dim: int,
    *,
    return_lse: bool,
) -> None:
    if isinstance(out, tuple):
        if not return_lse or len(out) != 2:
            raise ValueError("out is a tuple; it may be the pair of output and log-sum-exp with return_lse")
        out, lse = out
        check_tensor("out[1]", lse)
        check_shape("out[1]", lse, tuple(q.shape[:-1]), "the shape of q without head_dim")
        check_dtype("out[1]", lse, torch.float32)
        check_device("out[1]", lse, "q", q)
        check_contiguous("out[1]", lse)
    if out is None:
        return
    check_shape("out", out, (*q.shape[:-1], v_head_dim), "the shape of q with the head_dim of v")
    allowed = FLOAT_DTYPES if q.dtype in FLOAT8_DTYPES else (q.dtype,)
    if out.dtype not in allowed:
        kinds = " or ".join(map(str, allowed))
        raise ValueError(f"out is {out.dtype}; with q of {q.dtype} it must be {kinds}")
    check_device("out", out, "q", q)
    check_last_contiguous("out", out)
    check_writable("out", out)
