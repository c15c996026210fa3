"""Textbook kernels, whose loops are counted by hand, and faults that rows must show.

Run as a program, without TRITON_INTERPRET, it compiles them and prints a JSON line per launch.
"""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from decodetax.harness.offline.compiled_rows import CompiledRow
from decodetax.harness.offline.headroom import IterationWork

pytestmark = pytest.mark.slow


@triton.jit
def tutorial_matmul(
    a_ptr,
    b_ptr,
    c_ptr,
    M,
    N,
    K,
    stride_am,
    stride_bk,
    stride_cm,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Triton's tutorial 03."""
    pid = tl.program_id(0)
    num_pid_m = tl.cdiv(M, BLOCK_M)
    num_pid_n = tl.cdiv(N, BLOCK_N)
    group_id = pid // (GROUP_M * num_pid_n)
    first_pid_m = group_id * GROUP_M
    group_size_m = min(num_pid_m - first_pid_m, GROUP_M)
    pid_m = first_pid_m + ((pid % (GROUP_M * num_pid_n)) % group_size_m)
    pid_n = (pid % (GROUP_M * num_pid_n)) // group_size_m
    tl.assume(pid_m >= 0)
    tl.assume(pid_n >= 0)
    tl.assume(stride_am > 0)
    tl.assume(stride_bk > 0)
    offs_m = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M)) % M
    offs_n = (pid_n * BLOCK_N + tl.arange(0, BLOCK_N)) % N
    offs_k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + (offs_m[:, None] * stride_am + offs_k[None, :])
    b_ptrs = b_ptr + (offs_k[:, None] * stride_bk + offs_n[None, :])
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(tl.cdiv(K, BLOCK_K)):
        a = tl.load(a_ptrs, mask=offs_k[None, :] < K - k * BLOCK_K, other=0.0)
        b = tl.load(b_ptrs, mask=offs_k[:, None] < K - k * BLOCK_K, other=0.0)
        acc = tl.dot(a, b, acc)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K * stride_bk
    offs_cm = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_cn = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (offs_cm[:, None] < M) & (offs_cn[None, :] < N)
    tl.store(c_ptr + stride_cm * offs_cm[:, None] + offs_cn[None, :], acc.to(tl.float16), mask=mask)


@triton.jit
def textbook_decode(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lens_ptr,
    scale,
    stride_batch,
    stride_token,
    stride_head,
    kv_heads,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Online softmax, one program per sequence and key-value head, the group padded to 16 rows."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lens_ptr + sequence)
    g, d, t = tl.arange(0, 16), tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK_N)
    rows = (sequence * kv_heads + head) * GROUP * HEAD_DIM + g[:, None] * HEAD_DIM + d[None, :]
    q = tl.load(q_ptr + rows, mask=g[:, None] < GROUP, other=0.0)
    largest = tl.full((16,), float("-inf"), tl.float32)
    total = tl.zeros((16,), tl.float32)
    acc = tl.zeros((16, HEAD_DIM), tl.float32)
    k_ptrs = k_ptr + sequence * stride_batch + head * stride_head + t[None, :] * stride_token + d[:, None]
    v_ptrs = v_ptr + sequence * stride_batch + head * stride_head + t[:, None] * stride_token + d[None, :]
    for start in range(0, length, BLOCK_N):
        live = start + t < length
        k = tl.load(k_ptrs + start * stride_token, mask=live[None, :], other=0.0)
        scores = tl.where(live[None, :], tl.dot(q, k) * scale, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        decay, p = tl.exp2(largest - new), tl.exp2(scores - new[:, None])
        total = total * decay + tl.sum(p, 1)
        v = tl.load(v_ptrs + start * stride_token, mask=live[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None])
        largest = new
    out = acc / total[:, None]
    tl.store(out_ptr + rows, out.to(out_ptr.dtype.element_ty), mask=g[:, None] < GROUP)


@triton.jit
def misuse(out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK), 0.0)  # a range that is no power of two does not compile


def bf16(*shape):
    return torch.empty(shape, dtype=torch.bfloat16)


def call_matmul(block_m=128, block_n=256, block_k=64, num_warps=8, num_stages=3, **options):
    a, b, c = bf16(8192, 4096), bf16(4096, 8192), bf16(8192, 8192)
    strides = (a.stride(0), b.stride(0), c.stride(0))
    tutorial_matmul[(1,)](
        a,
        b,
        c,
        8192,
        8192,
        4096,
        *strides,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        GROUP_M=8,
        num_warps=num_warps,
        num_stages=num_stages,
        enable_fp_fusion=True,
        **options,
    )


def call_decode(block_n=64, num_stages=3):
    q, cache = bf16(4, 32, 128), bf16(4, 8192, 8, 128)
    lens = torch.empty(4, dtype=torch.int32)
    textbook_decode[(4, 8)](
        q,
        cache,
        cache,
        torch.empty_like(q),
        lens,
        0.1,
        *cache.stride()[:3],
        8,
        GROUP=4,
        HEAD_DIM=128,
        BLOCK_N=block_n,
        num_warps=4,
        num_stages=num_stages,
        enable_fp_fusion=True,
    )


CALLS = {
    "matmul": call_matmul,
    "matmul_few_registers": functools.partial(call_matmul, 64, 64, 32, num_warps=4, maxnreg=32),
    "matmul_many_stages": functools.partial(call_matmul, 64, 64, 64, num_warps=4, num_stages=12),
    "decode": call_decode,
    "decode_one_stage": functools.partial(call_decode, num_stages=1),
    "decode_two_stages": functools.partial(call_decode, num_stages=2),
    "misuse": lambda: misuse[(1,)](torch.empty(64), BLOCK=48, enable_fp_fusion=True),
}


def useful(function, constants):
    """Work of a matmul iteration: of its tiles, the bytes read from memory once for all tiles."""
    if function != "tutorial_matmul":
        return None
    tile_bytes = (constants["block_m"] + constants["block_n"]) * constants["block_k"] * 2.0
    tiles = 8192 // constants["block_m"] * (8192 // constants["block_n"])
    distinct_bytes = 2.0 * 2 * 8192 * constants["block_k"] / tiles
    flop = 2.0 * constants["block_m"] * constants["block_n"] * constants["block_k"]
    return IterationWork(
        useful_bytes=distinct_bytes, streamed_bytes=tile_bytes, flop=flop, tile_bytes=tile_bytes, dtype="bf16"
    )


def compiled(jobs):
    """A row for each (call, GPU)."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(jobs),
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [CompiledRow.from_json(json.loads(line)) for line in done.stdout.splitlines()]


def test_loop_of_the_tutorial_matmul_by_hand():
    a100, h100, b200 = compiled([["matmul", gpu] for gpu in ("a100", "h100", "b200")])
    # 128 x 256 x 64 over 16 x 8 x 16 and 8 warps; 64 x 256 x 16 and 2 groups of warps; 128 x 256 x 16.
    assert a100.loop_instructions_by_class["matrix"] == 128
    assert h100.loop_instructions_by_class["matrix"] == 4
    assert b200.loop_instructions_by_class["matrix"] == 4
    assert [row.matrix_instruction for row in (a100, h100, b200)] == ["HMMA", "HGMMA", "UTCHMMA"]
    for row in (a100, h100, b200):
        # Both tiles by 256 threads, 16 bytes each.
        assert row.bytes_per_iteration == (128 * 64 + 64 * 256) * 2
        assert row.loop_instructions_by_class["load_global"] >= 12
        assert (row.load_bytes, row.asynchronous, row.spill_bytes) == (16, True, 0)
        assert row.limit.which == "matrix"
        assert row.limit.share_of_peak > 0.9
    if triton.__version__ == "3.9.0":
        # From the label that the branch goes back to, on B200 less the wait out of line.
        assert [row.loop_instructions for row in (a100, h100, b200)] == [282, 130, 138]


def test_loop_of_a_textbook_decode_by_hand():
    (row,) = compiled([["decode", "a100"]])
    by_class = row.loop_instructions_by_class
    # Scores and output are 16 x 64 x 128 multiply-adds each, 2048 a product, by four warps.
    assert by_class["matrix"] == 2 * 16 * 64 * 128 / 2048 / 4
    # A tile of keys and one of values, 64 x 128 elements, 16 bytes by each of 128 threads.
    assert by_class["load_global"] == 2 * 64 * 128 * 2 / 16 / 128
    assert row.bytes_per_iteration == 2 * 64 * 128 * 2
    # Every warp's lanes hold 16 x 64 scores between them, by 128 threads, and two rows' decay.
    assert by_class["mufu"] == 16 * 64 / 128 + 2
    # Two tiles are issued ahead, one is left by the wait.
    needed = 2039e9 / 108 * 800e-9
    assert row.latency_headroom == pytest.approx(row.programs_per_sm * 2 * 32768 / needed)
    assert row.latency_headroom_at_wait == pytest.approx(row.programs_per_sm * 32768 / needed)
    slots = row.loop_instructions * 4
    assert row.issue_headroom == pytest.approx(32768 / slots * 108 * 4 * 1.41e9 / 2039e9)
    assert row.issue_headroom == pytest.approx(8.0, rel=0.05)


def test_too_few_pipeline_stages_lower_the_latency_headroom():
    one, two = compiled([["decode_one_stage", "h100"], ["decode_two_stages", "h100"]])
    assert one.asynchronous is False
    assert one.latency_headroom_at_wait == 0
    assert two.asynchronous is True
    assert two.latency_headroom_at_wait < two.latency_headroom / 2 + 1e-9


def test_spills_shared_memory_overflow_and_compile_errors_are_rows():
    spilling, too_large, failing = compiled(
        [["matmul_few_registers", "a100"], ["matmul_many_stages", "a100"], ["misuse", "a100"]]
    )
    assert (spilling.status, spilling.spill_bytes > 0) == ("ok", True)
    assert too_large.status == "unsupported"
    assert too_large.shared_bytes > too_large.shared_limit_bytes == 163 * 1024
    assert str(too_large.shared_bytes) in too_large.reason
    assert too_large.limit is None
    assert failing.status == "failed"
    assert failing.kernel == "misuse"
    assert "power of 2" in failing.reason


if __name__ == "__main__":
    from decodetax.harness.offline.compiler import inspect_launch

    for call, gpu in json.load(sys.stdin):
        for row in inspect_launch(CALLS[call], gpu, useful=useful):
            print(json.dumps(row.to_json()))  # noqa: T201  (its result)
