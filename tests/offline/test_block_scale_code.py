"""Int8 x int8 and block scales as compiled: promises by GPU, and the table of docs/kernels/prefill_matmul.md.

Run as a program, without TRITON_INTERPRET, it prints the issue slots of a warp-specialized K loop.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.hot_loop import basic_blocks, natural_loops
from decodetax.harness.offline.variants import default_cases
from decodetax.harness.offline.workers import inspect_cases

pytestmark = pytest.mark.slow

GPUS = ("a100", "h100", "b200", "rtx5090")
DOCS = Path(__file__).parents[2] / "docs" / "kernels" / "prefill_matmul.md"
CASES = [case for case in default_cases() if case.shape.get("blocks") or case.shape.get("int8_x")]
INTEGER = {"A100-SXM4-80GB": "IMMA", "H100-SXM5-80GB": "IGMMA", "B200": "UTCIMMA", "RTX-5090": "IMMA"}
FLOAT8 = {"A100-SXM4-80GB": "HMMA", "H100-SXM5-80GB": "QGMMA", "B200": "UTCQMMA", "RTX-5090": "QMMA"}


def cells(row):
    """A line of the docs' table."""
    tiling, limit = row.tiling, row.limit
    tile = f"{tiling['block_m']} x {tiling.get('columns', tiling['block_n'])} x {tiling['block_k']}"
    case = row.variant.partition(":")[0]
    return (
        f"| {case} | {row.gpu} | {tile}, {tiling['num_warps']} | {row.matrix_instruction} | "
        f"{row.loop_instructions} | {row.registers} | {limit.which} {limit.share_of_peak:.1%} |"
    )


def is_documented():
    import triton  # noqa: PLC0415  (the conftest decides first how it runs)

    return triton.__version__ == "3.9.0"


@pytest.mark.parametrize("gpu", GPUS)
def test_no_spills_and_tensor_cores_or_memory_as_the_limit(gpu):
    rows = inspect_cases([gpu], CASES, processes=1)
    assert [row.reason for row in rows if row.status != "ok"] == []
    assert {row.variant for row in rows if row.spill_bytes} == set()
    rows = [row for row in rows if not row.variant.endswith("split_k_reduce")]
    page = DOCS.read_text(encoding="utf-8")
    for row in rows:
        assert row.shared_bytes <= row.shared_limit_bytes
        assert row.asynchronous
        integer = row.dtype == "int8"
        older = integer and row.gpu == "B200" and not is_documented()  # Triton 3.6 has no int8 tcgen05
        if "rows_1024" in row.variant and not older:
            assert row.matrix_instruction == (INTEGER if integer else FLOAT8)[row.gpu]
        decodes_bits = not integer and row.gpu.startswith("A100")  # float8 without instructions for it
        wanted = {"matrix"} if "rows_1024" in row.variant else {"memory", "matrix"}
        assert decodes_bits or row.limit.which in wanted, (row.variant, row.limit)
        assert not is_documented() or cells(row) in page, cells(row)


def test_b200_has_issue_slots_for_the_additions_of_a_warp_specialized_loop():
    """Eight warps add products, one multiplies and one loads, beside the clocks of the tensor cores."""
    done = subprocess.run(
        [sys.executable, __file__],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    adds, multiplies, loads = map(int, done.stdout.split())
    gpu = find_gpu("b200")
    clocks = 128**3 / (gpu.flop_per_s["fp8"] / (2 * gpu.sm_count * gpu.limits.clock_hz))
    slots = (8 * adds + multiplies + loads) / 4
    assert slots < clocks
    if is_documented():
        page = re.sub(r"\s+", " ", DOCS.read_text(encoding="utf-8"))
        assert f"{adds} instructions of each of 8 warps, {multiplies} and {loads} of the others" in page
        assert f"{slots:.0f} clocks to issue, of {clocks:.0f} that the tensor cores take" in page


def main():
    """Instructions of the innermost loops that read tensor memory, multiply and load."""
    import torch  # noqa: PLC0415  (this process compiles)
    import triton  # noqa: PLC0415  (the same)
    from decodetax import kernels  # noqa: PLC0415  (the same)
    from decodetax.harness.offline.compiler import compile_launches  # noqa: PLC0415  (the same)
    from decodetax.harness.offline.machine_code import disassemble  # noqa: PLC0415  (the same)

    x, weight = (torch.empty((rows, 4096), dtype=torch.float8_e4m3fn) for rows in (1024, 8192))
    scales = {"x_scale": torch.empty((1024, 32)), "weight_scale": torch.empty((64, 32))}
    (launch,) = compile_launches(
        lambda: kernels.prefill_matmul(x, weight, **scales), find_gpu("b200", with_limits=True)
    )
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        kernel = launch.kernel
        code, _ = disassemble(
            kernel.asm["cubin"], kernel.metadata.name, tools=tools, keep=Path(folder) / "code"
        )
    blocks = basic_blocks(code)
    loops = natural_loops(blocks)
    sizes = []
    for name in ("LDTM", "UTCQMMA", "UTMALDG"):
        bodies = [loop.body for loop in loops if name in names(loop, blocks, code)]
        innermost = min(bodies, key=len)
        sizes.append(sum(blocks[block].end - blocks[block].start for block in innermost))
    sys.stdout.write(" ".join(map(str, sizes)))


def names(loop, blocks, code):
    return {
        code.instructions[at].name
        for block in loop.body
        for at in range(blocks[block].start, blocks[block].end)
    }


if __name__ == "__main__":
    main()
