"""A textbook prefill attention with the structure of Triton's tutorial 06, compiled for comparison.

One CTA per row block and head, in launch order; an unmasked and a masked loop; host TMA descriptors, or
pointers. Run as a program, without TRITON_INTERPRET, it reads [gpu, head_dim, dtype] from standard input, and
prints one JSON line per compiled variant: of the tutorial and of `prefill_attention`.

Two figures per score: the instructions of the busiest warp times the warps, and the issue slots of all warps.
The latter count once what one elected warp issues for the others. With warp specialisation four loops share a
tile (softmax, rescaling, MMA and loads): slots are their sum, and no warp is the busiest of all.
"""

import itertools
import json
import re
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.compiler import compile_launches
from decodetax.harness.offline.hot_loop import find_hot_loops, working_loops
from decodetax.harness.offline.machine_code import disassemble
from decodetax.kernels import prefill_attention
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def textbook_inner(
    acc,
    total,
    largest,
    q,
    k_desc,
    v_desc,
    k_ptr,
    v_ptr,
    first_row,
    lo,
    hi,
    offs_m,
    factor,
    stride_token,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    HALVES: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):
    offs_n, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, q.shape[1])
    for first in tl.range(lo, hi, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
        start = tl.multiple_of(first, BLOCK_N)
        offs = (start + offs_n)[:, None] * stride_token + offs_d[None, :]
        k = tl.load(k_ptr + offs) if k_desc is None else k_desc.load([first_row + start, 0])
        scores = tl.dot(q, k.T)
        if MASKED:
            mask = offs_m[:, None] >= (start + offs_n[None, :])
            scores = scores * factor + tl.where(mask, 0, -1.0e6)
            new = tl.maximum(largest, tl.max(scores, 1))
            scores -= new[:, None]
        else:
            new = tl.maximum(largest, tl.max(scores, 1) * factor)
            scores = scores * factor - new[:, None]
        p = tl.math.exp2(scores)
        decay = tl.math.exp2(largest - new)
        sums = tl.sum(p, 1)
        if HALVES:
            left, right = acc.reshape([acc.shape[0], 2, acc.shape[1] // 2]).permute(0, 2, 1).split()
            left, right = left * decay[:, None], right * decay[:, None]
            acc = tl.join(left, right).permute(0, 2, 1).reshape([acc.shape[0], acc.shape[1]])
        else:
            acc = acc * decay[:, None]
        v = tl.load(v_ptr + offs) if v_desc is None else v_desc.load([first_row + start, 0])
        acc = tl.dot(p.to(v.dtype), v, acc)
        total = total * decay + sums
        largest = new
    return acc, total, largest


@triton.jit
def textbook_attention(
    q_desc,
    k_desc,
    v_desc,
    out_desc,
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    factor,
    tokens,
    stride_head,
    stride_token,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HALVES: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):
    block, head = tl.program_id(0), tl.program_id(1)
    row = block * BLOCK_M
    offs_m, offs_d = row + tl.arange(0, BLOCK_M), tl.arange(0, HEAD_DIM)
    base = head.to(tl.int64) * stride_head
    offs = base + offs_m[:, None] * stride_token + offs_d[None, :]
    q = tl.load(q_ptr + offs) if q_desc is None else q_desc.load([head * tokens + row, 0])
    acc = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32) + 1.0
    largest = tl.zeros((BLOCK_M,), tl.float32) - float("inf")
    for MASKED in tl.static_range(2):
        acc, total, largest = textbook_inner(
            acc, total, largest, q, k_desc, v_desc, k_ptr + base, v_ptr + base, head * tokens,
            row if MASKED else 0, row + BLOCK_M if MASKED else row, offs_m, factor, stride_token,
            BLOCK_N, MASKED, HALVES, WARP_SPECIALIZE,
        )  # fmt: skip
    tl.store(lse_ptr + head * tokens + offs_m, largest + tl.math.log2(total))
    out = (acc / total[:, None]).to(k_ptr.dtype.element_ty)
    if out_desc is None:
        tl.store(out_ptr + offs, out)
    else:
        out_desc.store([head * tokens + row, 0], out)


def call_textbook(head_dim, dtype, block_m, block_n, num_warps, num_stages, loads):
    """Launches the textbook kernel; `loads` is "pointers", "descriptors" or "specialized"."""
    heads, tokens = 32, 4096
    q, k, v, out = (torch.empty(heads, tokens, head_dim, dtype=dtype) for _ in range(4))
    descriptors = [None] * 4
    if loads != "pointers":
        rows = (block_m, block_n, block_n, block_m)
        descriptors = [
            TensorDescriptor.from_tensor(x.view(-1, head_dim), [size, head_dim])
            for x, size in zip((q, k, v, out), rows, strict=True)
        ]
    textbook_attention[(tokens // block_m, heads)](
        *descriptors,
        q,
        k,
        v,
        out,
        torch.empty(heads, tokens),
        0.1,
        tokens,
        *q.stride()[:2],
        HEAD_DIM=head_dim,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        HALVES=loads == "specialized" and block_m == head_dim == 128,
        WARP_SPECIALIZE=loads == "specialized",
        num_warps=num_warps,
        num_stages=num_stages,
        enable_fp_fusion=True,
    )


def configurations(capability, head_dim):
    """The tutorial's tile sizes (at most head_dim tokens), warps, stages and loads; the best of them."""
    loads = {10: ("descriptors", "specialized"), 9: ("descriptors",)}.get(capability // 10, ("pointers",))
    for block_m, block_n, warps, stages, kind in itertools.product((64, 128), (64, 128), (4, 8), (3,), loads):
        if block_n <= head_dim and (block_m * block_n >= 128 * 128 or warps == 4):
            yield block_m, block_n, warps, stages, kind


def partition_warps(ttgir, operation):
    """Warps of the one partition of the first specialised loop that has an operation of the TTGIR."""
    _, *partitions = re.split(r"\n *partition\d+\(", ttgir.split("ttg.warp_specialize(")[1])
    (found,) = [each for each in partitions if operation in each.partition("ttg.warp_return")[0]]
    return int(re.search(r"num_warps\((\d+)\)", found)[1])


def role(loop):
    """What a loop of a specialised kernel does for a tile."""
    if any(each.is_mma for each in loop.instructions):
        return "mma"
    if any(each.is_tma for each in loop.global_loads):
        return "load"
    exponentials = sum(each.name == "MUFU" for each in loop.instructions)
    return "softmax" if exponentials > 8 else "rescale"  # which needs one per row


def loops_of_tile(code, ttgir, num_warps):
    """(role, loop, warps) of each hot loop; the masked copy of a loop is longer."""
    if "ttg.warp_specialize(" not in ttgir:
        return [("all", find_hot_loops(code)[0], num_warps)]
    hot = {}
    for loop in working_loops(code):
        name = role(loop)
        hot[name] = min(hot.get(name, loop), loop, key=lambda each: each.count)
    assert hot.keys() == {"softmax", "rescale", "mma", "load"}
    warps = {"mma": "ttng.tc_gen5_mma", "load": "ttng.async_tma_copy_global_to_local"}
    warps = {name: partition_warps(ttgir, operation) for name, operation in warps.items()}
    # The default partition has the softmax, another one of as many warps the rescaling.
    warps |= {"softmax": num_warps, "rescale": partition_warps(ttgir, "ttng.tmem_store")}
    return [(name, loop, warps[name]) for name, loop in hot.items()]


def printed(name, call, gpu):
    """Prints one JSON line of the one kernel that a call compiles."""
    (launch,) = compile_launches(call, find_gpu(gpu, with_limits=True))
    tile = dict(launch.constants)
    result = {"kernel": name, "tiling": tile, "error": launch.error}
    if launch.kernel is not None:
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        asm = launch.kernel.asm
        code, usage = disassemble(asm["cubin"], launch.kernel.metadata.name, tools=tools)
        loops = loops_of_tile(code, asm["ttgir"], tile["num_warps"])
        scores = tile["block_m"] * tile["block_n"]
        slots = sum(loop.issue_slots(warps) for _, loop, warps in loops)
        result |= {
            "registers": usage.registers, "spill_bytes": usage.stack_bytes,
            "loops": {name: [loop.count, warps] for name, loop, warps in loops},
            "slots_per_score": slots / scores,
            "per_score": sum(loop.count * warps / scores for name, loop, warps in loops if name == "all"),
        }  # fmt: skip
    print(json.dumps(result, default=str), flush=True)  # noqa: T201  (its result)


def main():
    for gpu, head_dim, dtype in json.load(sys.stdin):
        kind = getattr(torch, dtype)
        q, k, v = (torch.empty(2, 4096, h, head_dim, dtype=kind) for h in (32, 8, 8))
        printed("prefill_attention", lambda q=q, k=k, v=v: prefill_attention(q, k, v), gpu)
        for tile in configurations(find_gpu(gpu).sm, head_dim):
            printed("textbook", lambda tile=tile: call_textbook(head_dim, kind, *tile), gpu)  # noqa: B023


if __name__ == "__main__":
    main()
