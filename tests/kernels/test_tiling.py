"""The tilings that are chosen: splits fill idle multiprocessors and nothing more."""

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
