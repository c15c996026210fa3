"""The kernels' machine code for every GPU generation, made where there is no GPU."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from decodetax.kernels import GpuLimits, choose_decode_tiling, choose_matmul_tiling

LIMITS = {
    capability: GpuLimits(
        compute_capability=capability,
        sm_count=sm_count,
        shared_bytes_per_block=(shared_kib - 1) * 1024,
        shared_bytes_per_sm=shared_kib * 1024,
    )
    for capability, sm_count, shared_kib in (
        (80, 108, 164),
        (86, 82, 100),
        (89, 142, 100),
        (90, 132, 228),
        (100, 148, 228),
        (120, 170, 100),
    )
}
MATRIX_INSTRUCTION = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}

CASES = {
    "large_matmul": ("matmul", {"rows": 8192, "out_features": 8192, "in_features": 4096}),
    "one_row_matmul": ("matmul", {"rows": 1, "out_features": 4096, "in_features": 4096}),
    "decode": ("decode", {"batch": 2, "q_heads": 32, "kv_heads": 8, "head_dim": 128, "capacity": 8192}),
    "decode_pages": (
        "decode",
        {"batch": 64, "q_heads": 32, "kv_heads": 8, "head_dim": 128, "capacity": 8192, "page_size": 16},
    ),
}


@pytest.fixture(scope="module")
def compiled(request):
    """Resources of every kernel that a case launches on a GPU."""
    capability = request.param
    cases = [
        {"name": name, "operation": operation, "limits": asdict(LIMITS[capability]), "shape": shape}
        for name, (operation, shape) in CASES.items()
    ]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_offline.py")],
        input=json.dumps(cases),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return capability, [json.loads(line) for line in done.stdout.splitlines()]


def count(kernel, *names):
    return sum(number for opcode, number in kernel["opcodes"].items() if opcode.startswith(names))


@pytest.mark.parametrize("compiled", LIMITS, indirect=True, ids=lambda capability: f"sm_{capability}")
def test_every_kernel_fits_and_uses_what_the_gpu_has(compiled):
    capability, kernels = compiled
    assert {kernel["case"] for kernel in kernels} == CASES.keys()
    for kernel in kernels:
        named = {name: kernel[name] for name in ("case", "kernel", "registers")}
        assert kernel["stack_bytes"] == 0, named
        assert count(kernel, "LDL", "STL") == 0, named
        assert kernel["shared_bytes"] <= LIMITS[capability].shared_bytes_per_block, named
        if kernel["kernel"] in ("_tile_kernel", "_split_kernel"):
            assert count(kernel, "HMMA", "HGMMA", "UTCHMMA") > 0, named
            assert any(opcode.startswith("LDGSTS") and ".128" in opcode for opcode in kernel["opcodes"]), (
                named
            )
    large = next(kernel for kernel in kernels if kernel["case"] == "large_matmul")
    assert count(large, MATRIX_INSTRUCTION[capability]) > 0


@pytest.mark.parametrize("limits", LIMITS.values(), ids=lambda limits: f"sm_{limits.compute_capability}")
@pytest.mark.parametrize("rows", [1, 16, 17, 33, 64, 65, 128, 4096])
def test_matmul_splits_only_to_fill_idle_multiprocessors(rows, limits):
    tiling = choose_matmul_tiling(
        rows=rows, out_features=4096, in_features=4096, element_bytes=2, aligned=True, limits=limits
    )
    tiles = -(-rows // tiling.block_m) * -(-4096 // tiling.block_n)
    assert tiling.num_splits == 1 or tiles * tiling.num_splits <= limits.sm_count
    assert tiling.num_stages >= 2


@pytest.mark.parametrize("batch", [1, 7, 12, 13, 64, 1000])
@pytest.mark.parametrize("capacity", [1, 100, 8192, 131072])
def test_decode_splits_only_while_the_heads_leave_programs_idle(batch, capacity):
    tiling = choose_decode_tiling(
        batch=batch,
        q_heads=32,
        kv_heads=8,
        head_dim=128,
        capacity=capacity,
        page_size=0,
        element_bytes=2,
        limits=LIMITS[90],
    )
    tokens = -(-capacity // tiling.num_splits)
    assert tiling.num_splits == 1 or tokens >= 4 * tiling.block_n
    if batch == 1 and capacity == 131072:
        assert 8 * tiling.num_splits >= LIMITS[90].sm_count
    if batch == 1000:
        assert tiling.num_splits == 1
