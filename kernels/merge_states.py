"""Merge of two attention states, such as those of a shared prefix and of a sequence's own tokens.

With outputs o and natural log-sum-exps l of two disjoint parts of a context:
    lse = log(exp(l1) + exp(l2))          o = exp(l1 - lse) o1 + exp(l2 - lse) o2
Operations: 3 head_dim per row. Bytes: each state read once and the result written once. DRAM bandwidth is the
bound.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import checks
from .interpreter import patch_interpreter
from .launch import allocate, cached_launches, launch

patch_interpreter()

_BLOCK_ELEMENTS = 4096


@triton.jit  # type: ignore[untyped-decorator]
def _merge_states_kernel(
    o_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    o2_ptr: tl.tensor,
    lse2_ptr: tl.tensor,
    out_ptr: tl.tensor,
    out_lse_ptr: tl.tensor,
    rows: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Merges BLOCK_R rows."""
    offs_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_d = tl.arange(0, BLOCK_D)
    live_r = offs_r < rows
    live = live_r[:, None] & (offs_d < HEAD_DIM)[None, :]
    offs = offs_r[:, None] * HEAD_DIM + offs_d[None, :]
    lse = tl.load(lse_ptr + offs_r, mask=live_r, other=float("-inf"))
    lse2 = tl.load(lse2_ptr + offs_r, mask=live_r, other=float("-inf"))
    largest = tl.maximum(lse, lse2)
    # If both parts are empty, subtract 0: -inf minus -inf is NaN.
    offset = tl.where(largest == float("-inf"), 0.0, largest)
    weight, weight2 = tl.exp(lse - offset), tl.exp(lse2 - offset)
    total = weight + weight2
    some = tl.where(total == 0.0, 1.0, total)
    o = tl.load(o_ptr + offs, mask=live, other=0.0).to(tl.float32)  # [BLOCK_R, BLOCK_D]
    o2 = tl.load(o2_ptr + offs, mask=live, other=0.0).to(tl.float32)
    # The output of an empty part is ignored, even if it is NaN: 0 x NaN is NaN.
    o = tl.where((weight == 0.0)[:, None], 0.0, o * (weight / some)[:, None])
    o2 = tl.where((weight2 == 0.0)[:, None], 0.0, o2 * (weight2 / some)[:, None])
    tl.store(out_ptr + offs, (o + o2).to(out_ptr.dtype.element_ty), mask=live)
    tl.store(out_lse_ptr + offs_r, tl.where(total == 0.0, float("-inf"), offset + tl.log(total)), mask=live_r)


@cached_launches
def merge_states(
    o: torch.Tensor, lse: torch.Tensor, o2: torch.Tensor, lse2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two disjoint parts of a context, merged from the states of each.

    Not differentiable. Either part, or both, may be empty: log-sum-exp -inf, with any output.

    Args:
        o: [..., head_dim], output of one part; bfloat16, float16 or float32.
        lse: [...] float32, natural log-sum-exp of its logits, as `decode_attention` returns it.
        o2: output of the other part; shape and dtype of `o`.
        lse2: log-sum-exp of the other part, like `lse`.

    Returns:
        Output [..., head_dim], dtype of `o`, and log-sum-exp [...], float32, over both parts; 0 and
        -inf where both are empty.

    Raises:
        ValueError: an argument has the wrong shape, dtype or device; or tensors are on the CPU while
            Triton compiles its kernels.
    """
    checks.check_merge_states(o, lse, o2, lse2)
    head_dim = o.shape[-1]
    rows = o.numel() // head_dim
    out = allocate(o.shape, o.dtype, o.device)
    out_lse = allocate(lse.shape, torch.float32, o.device)
    block_d = triton.next_power_of_2(head_dim)
    block_r = max(1, _BLOCK_ELEMENTS // block_d)
    with torch.cuda.device_of(o):  # type: ignore[no-untyped-call]
        launch(
            _merge_states_kernel,
            (triton.cdiv(rows, block_r),),
            o_ptr=o.contiguous(),
            lse_ptr=lse.contiguous(),
            o2_ptr=o2.contiguous(),
            lse2_ptr=lse2.contiguous(),
            out_ptr=out,
            out_lse_ptr=out_lse,
            rows=rows,
            HEAD_DIM=head_dim,
            BLOCK_R=block_r,
            BLOCK_D=block_d,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out, out_lse
