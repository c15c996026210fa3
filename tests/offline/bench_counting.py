"""Prints what counting costs: time of counted over plain interpreted launches, promised to stay below 1.5.

Run it as a script: `python tests/offline/bench_counting.py`. Both run alternately, and the least
processor time of each counts, so that a busy machine disturbs both alike.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import sys
import time

import torch
import triton
import triton.language as tl
from decodetax.harness.offline import count_traffic
from decodetax.kernels import MatmulTiling, decode_attention, prefill_matmul

PROMISED_RATIO = 1.5
ROUNDS = 7


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = offsets < n
    total = tl.load(x_ptr + offsets, mask=live) + tl.load(y_ptr + offsets, mask=live)
    tl.store(out_ptr + offsets, total, mask=live)


def launches():
    """Something to run, by name."""
    x, weight = torch.randn(256, 512).bfloat16(), torch.randn(512, 512).bfloat16()
    tiling = MatmulTiling(
        block_m=64, block_n=64, block_k=64, group_m=8, num_splits=1, num_warps=4, num_stages=3
    )
    q, cache = torch.randn(2, 8, 64).bfloat16(), torch.randn(2, 1000, 2, 64).bfloat16()
    lengths = torch.tensor([1000, 1000], dtype=torch.int32)
    a, b, out = torch.randn(3, 200_000)
    return {
        "prefill_matmul 256x512x512": lambda: prefill_matmul(x, weight, tiling=tiling),
        "decode_attention b2 c1000": lambda: decode_attention(q, cache, cache, lengths),
        "vector add 200000": lambda: add_kernel[(triton.cdiv(a.numel(), 1024),)](
            a, b, out, a.numel(), BLOCK=1024
        ),
    }


def counted(run):
    with count_traffic():
        run()


def processor_s(run, *args):
    start = time.process_time()
    run(*args)
    return time.process_time() - start


def cost(run, rounds):
    """Best times of plain and counted runs, in seconds."""
    plain, count = [], []
    for _ in range(rounds):
        plain.append(processor_s(run))
        count.append(processor_s(counted, run))
    return min(plain), min(count)


def main():
    torch.set_num_threads(1)
    for name, run in launches().items():
        plain, count = cost(run, rounds=ROUNDS)
        verdict = "ok" if count < PROMISED_RATIO * plain else "TOO SLOW"
        line = (
            f"{name:28s} plain {plain:6.3f} s  counted {count:6.3f} s  ratio {count / plain:.2f}  {verdict}"
        )
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
