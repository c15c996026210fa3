"""Prints, as JSON, errors and violations of executed float8 matmuls for sm_90."""

import json
import sys

import torch
import triton
import triton.language as tl
from decodetax.harness.core.gate import row_errors
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.ptx.launch import executed
from decodetax.kernels import MatmulTiling, prefill_matmul, reference

FORMS = {
    "descriptors": {},
    "pointers": {"tiling": MatmulTiling(
        block_m=128, block_n=128, block_k=256, group_m=1, num_splits=1, num_warps=8, num_stages=3
    )},
    "split": {"tiling": MatmulTiling(
        block_m=128, block_n=128, block_k=256, group_m=1, num_splits=2, num_warps=8, num_stages=3,
        variant="descriptors", programs=4,
    )},
}  # fmt: skip


@triton.jit
def imprecise_kernel(x_ptr, weight_ptr, out_ptr, SIZE: tl.constexpr, LIMIT: tl.constexpr):
    """[SIZE, 4 SIZE] by the transpose of [SIZE, 4 SIZE], SIZE of K at a time."""
    lanes = tl.arange(0, SIZE)
    offs = lanes[:, None] * (4 * SIZE) + lanes[None, :]
    acc = tl.zeros((SIZE, SIZE), tl.float32)
    for k in range(4):
        x, weight = tl.load(x_ptr + offs + k * SIZE), tl.load(weight_ptr + offs + k * SIZE)
        acc = tl.dot(x, tl.trans(weight), acc, max_num_imprecise_acc=LIMIT)
    tl.store(out_ptr + lanes[:, None] * SIZE + lanes[None, :], acc)


def float8(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)


def found(call):
    with executed(find_gpu("h100", with_limits=True), sm_count=2) as execution:
        result = call()
    return result, sorted({each.kind.value for each in execution.violations})


def main():
    x, weight = float8(70, 800), float8(130, 800)
    expected = reference.prefill_matmul(x, weight)
    rows = {}
    for name, options in FORMS.items():
        out, kinds = found(
            lambda options=options: prefill_matmul(x, weight, out_dtype=torch.float32, **options)
        )
        rows[name] = {"error": float(row_errors(out, expected).max()), "violations": kinds}
    x, weight, out = float8(128, 512), float8(128, 512), torch.empty(128, 128)
    for name, limit in (("imprecise", 128), ("in tensor cores", None)):
        _, kinds = found(lambda limit=limit: imprecise_kernel[(1,)](
            x, weight, out, SIZE=128, LIMIT=limit, num_warps=8, enable_fp_fusion=True
        ))  # fmt: skip
        rows[name] = {
            "error": float(row_errors(out, reference.prefill_matmul(x, weight)).max()),
            "violations": kinds,
        }
    sys.stdout.write(json.dumps(rows))


if __name__ == "__main__":
    main()
