"""Counted traffic of the kernels against the tiling's formulas and the case's minimum."""

from dataclasses import replace

import pytest
import torch
from decodetax.harness.core.cases import DecodeAttention, PrefillMatmul
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.core.inputs import Source, draw
from decodetax.harness.core.work import ELEMENT_BYTES
from decodetax.harness.offline import count_traffic, kernel_traffic
from decodetax.harness.offline.kernel_traffic import count_case, count_row
from decodetax.harness.offline.tiling_traffic import chosen_tiling, tiling_traffic
from decodetax.kernels import DecodeTiling, MatmulTiling, decode_attention, prefill_matmul
from decodetax.kernels.gpu_limits import H100_LIMITS
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

SOURCE = Source(torch.device("cpu"), seed=1)

MATMUL = PrefillMatmul(phase="prefill", part="x", rows=20, in_features=40, out_features=50, dtype="bf16")
MATMUL_TILING = MatmulTiling(
    block_m=16, block_n=32, block_k=16, group_m=2, num_splits=2, num_warps=4, num_stages=2
)
DECODE = DecodeAttention(contexts=(0, 5, 40), q_heads=6, kv_heads=2, head_dim=24, dtype="bf16")
DECODE_TILING = DecodeTiling(block_g=2, block_n=16, num_splits=2, num_warps=4, num_stages=2)

dtypes = st.sampled_from(sorted(ELEMENT_BYTES))

matmuls = st.builds(
    PrefillMatmul,
    phase=st.sampled_from(["prefill", "decode"]),
    part=st.just("random"),
    rows=st.integers(1, 33),
    in_features=st.integers(1, 50),
    out_features=st.integers(1, 50),
    dtype=dtypes,
)
matmul_tilings = st.builds(
    MatmulTiling,
    block_m=st.sampled_from([8, 16, 32]),
    block_n=st.sampled_from([16, 32]),
    block_k=st.sampled_from([16, 32]),
    group_m=st.integers(1, 3),
    num_splits=st.integers(1, 4),
    num_warps=st.just(4),
    num_stages=st.just(2),
)


@st.composite
def attentions(draw_from):
    kv_heads = draw_from(st.integers(1, 2))
    head_dim = 8 * draw_from(st.integers(2, 6))
    latent = draw_from(st.booleans())
    return DecodeAttention(
        contexts=tuple(draw_from(st.lists(st.integers(0, 50), min_size=1, max_size=3))),
        q_heads=kv_heads * draw_from(st.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=8 * draw_from(st.integers(2, head_dim // 8 if latent else 6)),
        latent=latent,
        dtype=draw_from(dtypes),
    )


decode_tilings = st.builds(
    DecodeTiling,
    block_g=st.sampled_from([1, 2, 4, 16]),
    block_n=st.sampled_from([16, 32]),
    num_splits=st.integers(0, 3),
    programs=st.integers(1, 7),
    min_tiles=st.integers(1, 4),
    num_warps=st.just(4),
    num_stages=st.just(2),
)


CASES = {
    "prefill_matmul": st.tuples(matmuls, matmul_tilings),
    "decode_attention": st.tuples(attentions(), decode_tilings),
}


@pytest.mark.parametrize("max_examples", [8, pytest.param(110, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", CASES)
def test_counts_equal_the_tiling_formulas_and_the_minimum_of_the_case(kernel, max_examples):
    @settings(max_examples=max_examples)
    @given(CASES[kernel])
    def check(case_and_tiling):
        case, tiling = case_and_tiling
        counted = count_case(case, tiling, SOURCE)
        work, figures, tensors = case.work(), counted.figures(), counted.tensors
        minimum = {name: size for name, size in {**work.read_terms, **work.written_terms}.items() if size}
        assert {
            name: each.bytes_distinct for name, each in tensors.items() if each.modelled_work_bytes
        } == minimum
        for tensor in tensors.values():
            assert tensor.bytes_requested == tensor.modelled_bytes_requested
            assert tensor.bytes_written == tensor.modelled_bytes_written
        assert counted.modelled.read.keys() | counted.modelled.written.keys() == tensors.keys()
        assert sum(counted.operations.values()) == counted.modelled.operations
        if work.operations:
            assert set(counted.operations) == {f"{case.dtype} x {case.dtype}"}
            assert figures["useful_share_of_operations"] == work.operations / counted.modelled.operations <= 1
        assert figures["bytes_counted_over_modelled"] == figures["operations_counted_over_modelled"] == 1
        assert figures["bytes_distinct"] >= work.bytes_total

    check()


def test_split_k_matmul_by_hand():
    traffic = tiling_traffic(MATMUL, MATMUL_TILING)
    partial = 2 * 20 * 50 * 4
    assert traffic.read == {"x": 20 * 40 * 2 * 2, "weight": 50 * 40 * 2 * 2, "partial": partial}
    assert traffic.written == {"out": 20 * 50 * 2, "partial": partial}
    assert traffic.operations == 2 * (2 * 16) * (2 * 32) * (3 * 16)


def test_a_latent_is_requested_once_by_each_block_of_rows():
    case = DecodeAttention(
        contexts=(40,), q_heads=20, kv_heads=1, head_dim=48, v_head_dim=32, latent=True, dtype="bf16"
    )
    traffic = tiling_traffic(case, replace(DECODE_TILING, block_g=16, num_splits=1))
    assert traffic.read["latent_cache"] == 2 * (40 * 48 * 2)
    assert not {"k_cache", "v_cache"} & set(traffic.read)
    assert traffic.written == {"out": 20 * 32 * 2}
    assert traffic.operations == 2 * 48 * (2 * 16) * (32 + 16 + 32)  # scores in two parts, values


def test_split_kv_attention_by_hand():
    traffic = tiling_traffic(DECODE, DECODE_TILING)
    # 3 query heads per group in blocks of 2; 0, 1 and 3 tiles give 1, 1 and 2 chunks, the last split.
    programs, cache, split_rows = 3 * 2 * 2 * 2, 45 * 2 * 24 * 2 * 2, 2 * 6
    partial = {"partial": split_rows * 24 * 4, "partial_lse": split_rows * 4}
    assert traffic.read == {
        "q": 4 * 6 * 24 * 2,
        "k_cache": cache,
        "v_cache": cache,
        # Each program reads the length to find its chunk, and once per chunk; combining reads it per row.
        "context_lens": (programs + 4 * 2 * 2 + 6) * 4,
        "partial_counts": programs * 8 * 2,
        **partial,
    }
    assert traffic.written == {"out": 3 * 6 * 24 * 2, "partial_counts": programs * 8, **partial}
    assert traffic.operations == 4 * (1 + 3) * 2 * 2 * 2 * 16 * 32


def test_attention_in_equal_chunks_by_hand():
    tiling = replace(DECODE_TILING, num_splits=0, programs=4, min_tiles=1)
    traffic = tiling_traffic(DECODE, tiling)
    # 4 items per sequence, of 1, 2 and 4 units with that of the start: 28, in 4 chunks of 7. The second ends
    # after a tile of the third sequence's first item, of 2 rows; the others are not split, so 13 chunks.
    cache, lengths = 45 * 2 * 24 * 2 * 2, 3 * 4
    partial = {"partial": 2 * 2 * 24 * 4, "partial_lse": 2 * 2 * 4}
    assert traffic.read == {
        "q": (3 * 6 + 2) * 24 * 2,
        "k_cache": cache,
        "v_cache": cache,
        "context_lens": 4 * (2 * lengths + 8) + (13 + 2) * 4,
        "partial_counts": 4 * 8 * 2,
        **partial,
    }
    assert traffic.written == {"out": 3 * 6 * 24 * 2, "partial_counts": 4 * 8, **partial}
    # Both kernels write rows of the output.
    assert count_case(DECODE, tiling, SOURCE).tensors["out"].bytes_distinct == 3 * 6 * 24 * 2


def test_figures_of_a_counted_matmul_by_hand():
    counted = count_case(MATMUL, MATMUL_TILING, SOURCE)
    useful, padded, partial = 2 * 20 * 40 * 50, 2 * 32 * 64 * 48, 2 * 20 * 50 * 4
    requested, written, distinct = 3200 + 8000 + partial, 2000 + partial, 1600 + 4000 + 2000 + partial
    assert counted.operations == {"bf16 x bf16": padded}
    assert counted.figures() == {
        "bytes_requested": requested,
        "bytes_distinct": distinct,
        "bytes_written": written,
        "bytes_counted_over_modelled": 1,
        "operations_counted_over_modelled": 1,
        "useful_share_of_operations": useful / padded,
        "operations_per_requested_byte": useful / (requested + written),
        "operations_per_distinct_byte": useful / distinct,
    }
    assert [launch.kernel for launch in counted.launches] == ["_matmul_kernel", "_split_k_reduce_kernel"]
    assert counted.tensors["x"].sectors == 1600 // 32


def test_attention_over_empty_contexts_has_no_operations():
    counted = count_case(structs.replace(DECODE, contexts=(0, 0)), tiling=DECODE_TILING, source=SOURCE)
    assert (counted.operations, counted.modelled.operations) == ({}, 0)
    figures = counted.figures()
    assert figures["useful_share_of_operations"] == figures["operations_counted_over_modelled"] == 1
    assert figures["operations_per_requested_byte"] == 0


@pytest.mark.parametrize(
    "case",
    [
        MATMUL,
        structs.replace(MATMUL, rows=3, in_features=300),
        structs.replace(MATMUL, in_features=256, out_features=100),
        structs.replace(MATMUL, dtype="fp32"),
        DECODE,
        structs.replace(DECODE, contexts=(0, 400, 70), head_dim=64),
    ],
    ids=lambda case: case.id,
)
def test_default_tiling_is_the_host_functions_choice(case):
    counted = count_case(case, chosen_tiling(case, H100_LIMITS), SOURCE)
    inputs = draw(case, SOURCE)
    with count_traffic() as traffic:
        if isinstance(case, PrefillMatmul):
            prefill_matmul(inputs.x, inputs.weight)
        else:
            decode_attention(inputs.q, inputs.k_cache, inputs.v_cache, inputs.context_lens)
    assert traffic.launches == list(counted.launches)


def test_a_kernel_that_ignores_its_tiling_shows_in_the_ratio(monkeypatch):
    monkeypatch.setattr(
        kernel_traffic.kernels,
        "prefill_matmul",
        lambda *args, tiling: prefill_matmul(*args, tiling=replace(tiling, block_n=16, block_k=32)),
    )
    counted = count_case(MATMUL, MATMUL_TILING, SOURCE)
    assert counted.tensors["x"].bytes_requested == 2 * counted.tensors["x"].modelled_bytes_requested
    figures = counted.figures()
    assert figures["bytes_counted_over_modelled"] > 1
    assert figures["operations_counted_over_modelled"] == 64 / 48


@pytest.mark.parametrize("call", [tiling_traffic, lambda case, tiling: count_case(case, tiling, SOURCE)])
@pytest.mark.parametrize(("case", "tiling"), [(MATMUL, DECODE_TILING), (DECODE, MATMUL_TILING)])
def test_rejects_a_tiling_of_the_other_operation(call, case, tiling):
    with pytest.raises(ValueError, match=f"tiling is a {type(tiling).__name__}"):
        call(case, tiling)


def test_the_seed_draws_the_inputs(monkeypatch):
    seeds = []

    def source(device, seed):
        seeds.append((device.type, seed))
        return SOURCE

    monkeypatch.setattr(kernel_traffic, "Source", source)
    count_row(MATMUL, find_gpu("h100", with_limits=True), programs_per_sm=1, seed=3)
    assert seeds == [("cpu", 3)]


@pytest.mark.slow
def test_bench_counting_prints_a_ratio_per_kernel(monkeypatch, capsys):
    import bench_counting  # noqa: PLC0415  (it sets Triton to interpret, as tests for a GPU must not)

    monkeypatch.setattr(bench_counting, "ROUNDS", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    bench_counting.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["prefill_matmul", "decode_attention", "vector"]
    assert all("  ratio " in line for line in lines)
