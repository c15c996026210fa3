"""Chosen tilings: split-K fills idle SMs, and the CTAs of decode attention are one wave."""

import dataclasses

import pytest
from decodetax.kernels import GpuLimits, MatmulProblem, choose_decode_tiling, choose_matmul_tiling
from decodetax.kernels.matmul_tiling import matmul_tilings
from hypothesis import given
from hypothesis import strategies as st

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
any_gpu = pytest.mark.parametrize(
    "limits", LIMITS.values(), ids=lambda limits: f"sm_{limits.compute_capability}"
)


WEIGHTS = [(4096, 4096), (4096, 6144), (14336, 4096), (8192, 10240), (5120, 51200)]


@any_gpu
@pytest.mark.parametrize("rows", [1, 16, 17, 64])
def test_few_rows_get_one_tile_row_that_fills_the_gpu(rows, limits):
    for in_features, out_features in WEIGHTS:
        shape = {"rows": rows, "out_features": out_features, "in_features": in_features}
        problem = MatmulProblem.contiguous(**shape, x_bytes=2, weight_bytes=2)
        tiling = choose_matmul_tiling(problem, limits)
        assert tiling.block_m >= rows
        assert tiling.variant == "pointers"
        assert -(-out_features // tiling.block_columns) * tiling.num_splits >= 0.9 * limits.sm_count


@any_gpu
def test_tma_is_chosen_where_operands_allow_it_and_it_pays(limits):
    shape = {"rows": 4096, "out_features": 4096, "in_features": 4096}
    problem = MatmulProblem.contiguous(**shape, x_bytes=2, weight_bytes=2)
    assert choose_matmul_tiling(dataclasses.replace(problem, tma=False), limits).variant == "pointers"
    chosen = "descriptors" if limits.compute_capability in {90, 100} else "pointers"
    assert choose_matmul_tiling(problem, limits).variant == chosen
    assert choose_matmul_tiling(problem, limits, "descriptors").variant == "descriptors"
    specialised = choose_matmul_tiling(problem, limits, "warp_specialized")
    assert (specialised.variant, specialised.num_splits) == ("warp_specialized", 1)


@any_gpu
@given(
    rows=st.integers(1, 20000),
    out_features=st.integers(1, 60000),
    in_features=st.integers(1, 30000),
    sizes=st.sampled_from([(2, 2), (2, 1), (1, 1), (4, 4)]),
    aligned=st.booleans(),
    tf32=st.booleans(),
    batch=st.integers(1, 5),
)
def test_chosen_matmul_tiling_is_among_the_candidates(limits, sizes, **product):
    x_bytes, weight_bytes = sizes
    problem = MatmulProblem(x_bytes=x_bytes, weight_bytes=weight_bytes, **product)
    tiling = choose_matmul_tiling(problem, limits)
    assert tiling in matmul_tilings(problem, limits)
    assert tiling.num_stages >= 2
    tiles = product["batch"] * -(-product["rows"] // tiling.block_m)
    tiles *= -(-product["out_features"] // tiling.block_columns)
    # The split-K tail is less than a wave; with few rows all tiles are split.
    assert tiling.num_splits == 1 or product["rows"] <= 64 or tiles - tiling.whole_tiles < tiling.programs


LLAMA = {"q_heads": 32, "kv_heads": 8, "head_dim": 128, "page_size": 0, "element_bytes": 2}


@any_gpu
@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
@pytest.mark.parametrize("capacity", [1, 100, 8192, 131072])
def test_decode_ctas_fill_one_wave(batch, capacity, limits):
    tiling = choose_decode_tiling(batch=batch, capacity=capacity, limits=limits, **LLAMA)
    tiles = 8 * batch * -(-capacity // tiling.block_n)
    assert tiling.num_splits == 0
    assert 1 <= tiling.programs <= 8 * limits.sm_count
    assert tiling.programs >= min(limits.sm_count, tiles // tiling.min_tiles)


@any_gpu
def test_only_the_decode_cta_count_depends_on_batch_and_capacity(limits):
    chosen = {
        dataclasses.replace(
            choose_decode_tiling(batch=batch, capacity=capacity, limits=limits, **LLAMA), programs=1
        )
        for batch in (1, 7, 1000)
        for capacity in (1, 100, 131072)
    }
    assert len(chosen) == 1


@any_gpu
@pytest.mark.parametrize("element_bytes", [1, 2, 4])
@pytest.mark.parametrize("page_size", [0, 16])
def test_decode_tiling_holds_up_to_16384_row_elements(limits, element_bytes, page_size):
    for group in (1, 5, 16, 64):
        for query_tokens in (1, 3, 8):
            for head_dims in ((16, 16), (72, 128), (128, 72), (256, 256), (256, 16)):
                tiling = choose_decode_tiling(
                    batch=3,
                    q_heads=2 * group,
                    kv_heads=2,
                    head_dim=head_dims[0],
                    v_head_dim=head_dims[1],
                    query_tokens=query_tokens,
                    capacity=1000,
                    page_size=page_size,
                    element_bytes=element_bytes,
                    limits=limits,
                )
                rows = group * query_tokens
                assert tiling.block_n >= 16
                assert tiling.num_stages >= 2
                if element_bytes == 4 and limits.shared_bytes_per_block < 160 * 1024:
                    assert (
                        tiling.block_g * max(head_dims) <= 16384
                    )  # float32 queries may not fit beside tiles
                elif rows * max(head_dims) <= 16384:
                    assert tiling.block_g >= rows
                else:
                    assert tiling.block_g < rows
