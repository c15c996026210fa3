"""Prints, as JSON, what the executed warp-specialised matmul for B200 gives."""

import json
import sys

import torch
from decodetax.harness.core.gate import row_errors
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.ptx.launch import executed
from decodetax.kernels import MatmulTiling, prefill_matmul, reference

TILING = MatmulTiling(
    block_m=128,
    block_n=64,
    block_k=64,
    group_m=8,
    num_splits=1,
    num_warps=4,
    num_stages=3,
    variant="warp_specialized",
    programs=2,
)


def main():
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(rows, 320, generator=generator).bfloat16() for rows in (200, 136))
    with executed(find_gpu("b200", with_limits=True), sm_count=4) as execution:
        out = prefill_matmul(x, weight, tiling=TILING)
    launch = execution.launches[0]
    row = {
        "error": float(row_errors(out, reference.prefill_matmul(x, weight)).max()),
        "violations": [str(each) for each in execution.violations],
        "specialised": "brx.idx" in launch.compiled.asm["ptx"],
        "warps": launch.counters.warps,
        "hot_loop": {
            "warps": launch.counters.hot_loop.warps,
            "tensor_core": launch.counters.hot_loop.instructions["tensor_core"],
        },
    }
    json.dump(row, sys.stdout)


if __name__ == "__main__":
    main()
