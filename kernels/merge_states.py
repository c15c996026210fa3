"""Merge of attention states, such as those of a shared prefix and of a sequence's own tokens.

With outputs o_p and natural log-sum-exps l_p of disjoint parts p of a context:
    lse = log(sum over p of exp(l_p))          o = sum over p of exp(l_p - lse) o_p
Operations: 2 head_dim per row and part. Bytes: each state read once and the result written once. DRAM
bandwidth is the bound. One launch merges any number of parts, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import merge_checks as checks
from .float8 import from_float32
from .gpu_limits import gpu_limits
from .interpreter import patch_interpreter
from .launch import allocate, cached_launches, launch

patch_interpreter()

States = torch.Tensor | Sequence[torch.Tensor]

_BLOCK_ELEMENTS = 4096


@triton.jit  # type: ignore[untyped-decorator]
def _part_lse(
    part: tl.tensor,
    lse_ptrs: tl.tensor,
    stride_lse_part: tl.tensor,
    mask_part: tl.tensor,
    mask_ptrs: tl.tensor,
    stride_mask_part: tl.tensor,
    live: tl.tensor,
) -> tl.tensor:
    """Log-sum-exps of a part; -inf where it is left out, or empty, of which FlashAttention 2 says +inf."""
    lse = tl.load(lse_ptrs + tl.cast(part, tl.int64) * stride_lse_part, mask=live, other=float("-inf"))
    lse = tl.where(lse == float("inf"), float("-inf"), lse)
    if mask_ptrs is not None:
        mask_ptrs += tl.cast(mask_part, tl.int64) * stride_mask_part
        lse = tl.where(tl.load(mask_ptrs, mask=live, other=0) != 0, lse, float("-inf"))
    return lse


@triton.jit  # type: ignore[untyped-decorator]
def _power(x: tl.tensor, BASE_2: tl.constexpr) -> tl.tensor:
    return tl.exp2(x) if BASE_2 else tl.exp(x)


@triton.jit  # type: ignore[untyped-decorator]
def _added(lse: tl.tensor, largest: tl.tensor, total: tl.tensor, BASE_2: tl.constexpr) -> tl.tensor:
    """The largest log-sum-exp so far, and the sum of the powers relative to it, with one more part."""
    new_largest = tl.maximum(largest, lse)
    # If all parts are empty, subtract 0: -inf minus -inf is NaN.
    offset = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    return new_largest, total * _power(largest - offset, BASE_2) + _power(lse - offset, BASE_2)


@triton.jit  # type: ignore[untyped-decorator]
def _weighted(o_ptrs: tl.tensor, weight: tl.tensor, live: tl.tensor) -> tl.tensor:
    """Outputs of a part times its weight. An empty part is not read: it may hold NaN, and 0 x NaN is NaN."""
    some = (weight != 0.0)[:, None]
    o = tl.load(o_ptrs, mask=live & some, other=0.0).to(tl.float32)  # [BLOCK_R, BLOCK_D]
    return tl.where(some, o * weight[:, None], 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _merge_states_kernel(
    o_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    o2_ptr: tl.tensor,
    lse2_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    out_ptr: tl.tensor,
    out_lse_ptr: tl.tensor,
    out_scale_ptr: tl.tensor,
    out_factor: tl.tensor,
    parts: tl.tensor,
    rows: tl.tensor,
    heads: tl.tensor,
    stride_o_part: tl.tensor,
    stride_o_token: tl.tensor,
    stride_o_head: tl.tensor,
    stride_o2_token: tl.tensor,
    stride_o2_head: tl.tensor,
    stride_out_token: tl.tensor,
    stride_out_head: tl.tensor,
    stride_lse_part: tl.tensor,
    stride_lse_token: tl.tensor,
    stride_lse_head: tl.tensor,
    stride_lse2_token: tl.tensor,
    stride_lse2_head: tl.tensor,
    stride_out_lse_token: tl.tensor,
    stride_out_lse_head: tl.tensor,
    stride_mask_part: tl.tensor,
    stride_mask_token: tl.tensor,
    stride_mask_head: tl.tensor,
    HEAD_DIM: tl.constexpr,
    STRIDE_UNIT: tl.constexpr,
    BASE_2: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Merges BLOCK_R rows.

    The host divides the strides of outputs by STRIDE_UNIT: the multiplication shows their alignment.
    """
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_d = tl.arange(0, BLOCK_D)
    live_r = offs_r < rows
    live = live_r[:, None] & (offs_d < HEAD_DIM)[None, :]
    token, head = offs_r // heads, offs_r % heads
    lse_ptrs = lse_ptr + token * stride_lse_token + head * stride_lse_head
    o_rows = (token * stride_o_token + head * stride_o_head) * STRIDE_UNIT
    o_ptrs = o_ptr + o_rows[:, None] + offs_d[None, :]
    mask_ptrs = None
    if mask_ptr is not None:
        mask_ptrs = mask_ptr + token * stride_mask_token + head * stride_mask_head
    if o2_ptr is not None:
        lse2_ptrs = lse2_ptr + token * stride_lse2_token + head * stride_lse2_head
        o2_rows = (token * stride_o2_token + head * stride_o2_head) * STRIDE_UNIT
        o2_ptrs = o2_ptr + o2_rows[:, None] + offs_d[None, :]

    largest = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    for part in range(parts):
        lse = _part_lse(part, lse_ptrs, stride_lse_part, part, mask_ptrs, stride_mask_part, live_r)
        largest, total = _added(lse, largest, total, BASE_2)
    if o2_ptr is not None:
        lse = _part_lse(0, lse2_ptrs, 0, parts, mask_ptrs, stride_mask_part, live_r)
        largest, total = _added(lse, largest, total, BASE_2)

    offset = tl.where(largest == float("-inf"), 0.0, largest)
    divisor = tl.where(total == 0.0, 1.0, total)
    acc = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for part in range(parts):
        lse = _part_lse(part, lse_ptrs, stride_lse_part, part, mask_ptrs, stride_mask_part, live_r)
        ptrs = o_ptrs + tl.cast(part, tl.int64) * stride_o_part * STRIDE_UNIT
        acc += _weighted(ptrs, _power(lse - offset, BASE_2) / divisor, live)
    if o2_ptr is not None:
        lse = _part_lse(0, lse2_ptrs, 0, parts, mask_ptrs, stride_mask_part, live_r)
        acc += _weighted(o2_ptrs, _power(lse - offset, BASE_2) / divisor, live)

    if out_scale_ptr is not None:
        acc = acc / tl.load(out_scale_ptr)
    acc = acc * out_factor
    out_rows = (token * stride_out_token + head * stride_out_head) * STRIDE_UNIT
    tl.store(
        out_ptr + out_rows[:, None] + offs_d[None, :], from_float32(acc, out_ptr.dtype.element_ty), mask=live
    )
    log = tl.log2(divisor) if BASE_2 else tl.log(divisor)
    tl.store(
        out_lse_ptr + token * stride_out_lse_token + head * stride_out_lse_head,
        tl.where(total == 0.0, float("-inf"), offset + log),
        mask=live_r,
    )


@cached_launches
def merge_states(
    o: States,
    lse: States,
    o2: torch.Tensor | None = None,
    lse2: torch.Tensor | None = None,
    *,
    mask: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: torch.Tensor | float | None = None,
    lse_layout: str = "tokens-first",
    lse_base: str | int = "e",
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over disjoint parts of a context, merged from the state of each part.

    Not differentiable. Results have the same bits every run. Any part may be empty in any row: log-sum-exp
    -inf (or +inf, as in FlashAttention 2), with any output, which is not read. Two parts are given as two
    pairs, any number of them stacked. States are read with their strides, except that head_dim without
    stride 1, or more dimensions than [tokens, heads] that cannot be viewed as these, are copied.

    Args:
        o: [..., head_dim], output of the first of two parts; or without `o2` [parts, ..., head_dim], or a
            sequence of [..., head_dim], which are stacked in a copy. bfloat16, float16 or float32. There may
            be 0 rows; there must be at least one part.
        lse: [...] float32, log-sum-exp of the logits of that part, as `decode_attention` returns it; or
            [parts, ...], or a sequence.
        o2: output of the other part; shape and dtype of `o`.
        lse2: log-sum-exp of the other part, like `lse`.
        mask: [parts, ...] bool, or of a shape that broadcasts to it: rows in which a part counts; elsewhere
            it is left out as if it were empty. None: all count.
        out_dtype: bfloat16, float16, float32, float8_e4m3fn or float8_e5m2, which saturate; None: that of
            `out` if it is given, else that of `o`.
        out_scale: the output is divided by it, so that it is the dequantisation scale of a float8 output: a
            positive number, or float32 [] or [1] on the device.
        lse_layout: "tokens-first", as described; or "heads-first": of outputs [tokens, heads, head_dim] the
            log-sum-exps, given and returned, are [heads, tokens] (of each part).
        lse_base: "e" for natural logarithms, or 2: of those given and returned.
        out: output tensor, stride 1 for head_dim, or a pair, the second for the log-sum-exp, float32; not
            overlapping the inputs. None allocates.

    Returns:
        Output [..., head_dim], `out_dtype`, and log-sum-exp [...], float32, over all parts; 0 and -inf where
        all are empty.

    Raises:
        ValueError: an argument has the wrong shape, strides, dtype or device; or tensors are on the CPU while
            Triton compiles its kernels.
    """
    checks.check_merge_states(
        o=o, lse=lse, o2=o2, lse2=lse2, mask=mask, out_dtype=out_dtype, out_scale=out_scale,
        lse_layout=lse_layout, lse_base=lse_base, out=out,
    )  # fmt: skip
    o, lse = (
        states if isinstance(states, torch.Tensor) else torch.stack(tuple(states)) for states in (o, lse)
    )
    result, result_lse = out if isinstance(out, tuple) else (out, None)
    shape = o.shape if o2 is not None else o.shape[1:]
    if result is None:
        result = allocate(shape, out_dtype or o.dtype, o.device)
    if result_lse is None:
        result_lse = allocate(lse.shape if o2 is not None else lse.shape[1:], torch.float32, o.device)
    if result.numel():
        stacked = (o[None], lse[None]) if o2 is not None else (o, lse)
        _launch(*stacked, o2, lse2, mask, result, result_lse, out_scale, lse_layout, lse_base)
    return result, result_lse


def _launch(
    o: torch.Tensor,
    lse: torch.Tensor,
    o2: torch.Tensor | None,
    lse2: torch.Tensor | None,
    mask: torch.Tensor | None,
    out: torch.Tensor,
    out_lse: torch.Tensor,
    out_scale: torch.Tensor | float | None,
    lse_layout: str,
    lse_base: str | int,
) -> None:
    """Launches the kernel on stacked states, and those of another part."""
    if lse_layout == "heads-first":
        lse, out_lse = lse.transpose(-1, -2), out_lse.transpose(-1, -2)
        lse2 = lse2 if lse2 is None else lse2.transpose(-1, -2)
    if mask is not None:
        parts = o.shape[0] + (o2 is not None)
        mask = _by_head(mask.view(torch.uint8).expand(parts, *out.shape[:-1]))
    o, lse = _by_head(o, last=1), _by_head(lse)
    o2, lse2 = (
        (None, None) if o2 is None or lse2 is None else (_by_head(o2[None], last=1), _by_head(lse2[None]))
    )
    rows_of_out, rows_of_lse = _by_head(out[None], last=1), _by_head(out_lse[None])
    if out.dtype == torch.float8_e4m3fn and gpu_limits(out.device).compute_capability < 89:
        rows_of_out = rows_of_out.view(torch.uint8)
    unit = 8 if all(stride % 8 == 0 for each in (o, o2, rows_of_out) for stride in _strides(each)) else 1
    head_dim = o.shape[-1]
    block_d = triton.next_power_of_2(head_dim)
    block_r = max(1, _BLOCK_ELEMENTS // block_d)
    rows = out.numel() // head_dim
    with torch.cuda.device_of(o):  # type: ignore[no-untyped-call]
        launch(
            _merge_states_kernel,
            (triton.cdiv(rows, block_r),),
            o_ptr=o,
            lse_ptr=lse,
            o2_ptr=o2,
            lse2_ptr=lse2,
            mask_ptr=mask,
            out_ptr=rows_of_out,
            out_lse_ptr=rows_of_lse,
            out_scale_ptr=out_scale if isinstance(out_scale, torch.Tensor) else None,
            out_factor=1.0 / out_scale if isinstance(out_scale, int | float) else 1.0,
            parts=o.shape[0],
            rows=rows,
            heads=o.shape[2],
            **_named_strides("o", o, unit, "part", "token", "head"),
            **_named_strides("o2", o2, unit, None, "token", "head"),
            **_named_strides("out", rows_of_out, unit, None, "token", "head"),
            **_named_strides("lse", lse, 1, "part", "token", "head"),
            **_named_strides("lse2", lse2, 1, None, "token", "head"),
            **_named_strides("out_lse", rows_of_lse, 1, None, "token", "head"),
            **_named_strides("mask", mask, 1, "part", "token", "head"),
            HEAD_DIM=head_dim,
            STRIDE_UNIT=unit,
            BASE_2=lse_base == 2,
            BLOCK_R=block_r,
            BLOCK_D=block_d,
            num_warps=4,
            maxnreg=128,  # more than it needs: without a limit the compiler may spill to use fewer
            enable_fp_fusion=True,
        )


def _by_head(tensor: torch.Tensor, last: int = 0) -> torch.Tensor:
    """[parts, ...] as [parts, tokens, heads] and `last` more dimensions, of stride 1; a copy if need be."""
    sizes = tensor.shape[1 : tensor.dim() - last]
    heads = sizes[-1] if sizes else 1
    tensor = tensor.reshape(
        tensor.shape[0], math.prod(sizes[:-1]), heads, *tensor.shape[tensor.dim() - last :]
    )
    return tensor.contiguous() if last and tensor.stride(-1) != 1 else tensor


def _strides(tensor: torch.Tensor | None) -> tuple[int, ...]:
    """Strides of parts, tokens and heads."""
    return () if tensor is None else tensor.stride()[:3]


def _named_strides(
    name: str, tensor: torch.Tensor | None, unit: int, *dimensions: str | None
) -> dict[str, int]:
    """Strides as the kernel names them, in units; 0 without a tensor."""
    strides = _strides(tensor) or (0, 0, 0)
    return {
        f"stride_{name}_{dimension}": stride // unit
        for dimension, stride in zip(dimensions, strides, strict=True)
        if dimension
    }
