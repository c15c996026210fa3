"""The kernels counted at random shapes: the work, the tiling's traffic and the padded products."""

from dataclasses import replace

import pytest
import torch
from decodetax.harness.core.cases import DecodeAttention, PrefillMatmul
from decodetax.harness.core.inputs import Source, draw
from decodetax.harness.core.work import ELEMENT_BYTES
from decodetax.harness.offline import count_traffic, counted
from decodetax.harness.offline.counted import count_case, default_tiling, tiling_operations, tiling_traffic
from decodetax.kernels import DecodeTiling, MatmulTiling, decode_attention, prefill_matmul
from hypothesis import given, settings
from hypothesis import strategies as st

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
    return DecodeAttention(
        contexts=tuple(draw_from(st.lists(st.integers(0, 50), min_size=1, max_size=3))),
        q_heads=kv_heads * draw_from(st.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=8 * draw_from(st.integers(2, 6)),
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


def holds(case, tiling):
    """Every promise about one case at once."""
    result = count_case(case, tiling=tiling, source=SOURCE)
    work = case.work()
    assert {name: tensor.distinct for name, tensor in result.tensors.items() if tensor.work} == {
        name: size for name, size in {**work.read_terms, **work.written_terms}.items() if size
    }
    for tensor in result.tensors.values():
        assert tensor.requested == tensor.modelled_requested
        assert tensor.written == tensor.modelled_written
    modelled = tiling_traffic(case, tiling)
    assert modelled.read.keys() | modelled.written.keys() == result.tensors.keys()
    assert sum(result.operations.values()) == result.modelled_operations
    if work.operations:
        assert set(result.operations) == {f"{case.dtype} x {case.dtype}"}
        assert result.useful_share == work.operations / result.modelled_operations <= 1
    assert result.bytes_ratio == result.operations_ratio == 1
    assert result.bytes_distinct >= work.bytes_total


@settings(max_examples=110)
@given(case=matmuls, tiling=matmul_tilings)
def test_a_matmul_moves_what_its_tiling_says_and_touches_what_it_needs(case, tiling):
    holds(case, tiling)


@settings(max_examples=110)
@given(case=attentions(), tiling=decode_tilings)
def test_an_attention_moves_what_its_tiling_says_and_touches_what_it_needs(case, tiling):
    holds(case, tiling)


def test_the_terms_of_a_matmul_in_splits_by_hand():
    traffic = tiling_traffic(MATMUL, MATMUL_TILING)
    partial = 2 * 20 * 50 * 4
    assert traffic.read == {"x": 20 * 40 * 2 * 2, "weight": 50 * 40 * 2 * 2, "partial": partial}
    assert traffic.written == {"out": 20 * 50 * 2, "partial": partial}
    assert tiling_operations(MATMUL, MATMUL_TILING) == 2 * (2 * 16) * (2 * 32) * (3 * 16)


def test_the_terms_of_an_attention_in_splits_by_hand():
    traffic = tiling_traffic(DECODE, DECODE_TILING)
    # 3 query heads a group in blocks of 2; contexts of 0, 1 and 3 tiles give 1, 1 and 2 parts, the last cut.
    programs, cache, cut_rows = 3 * 2 * 2 * 2, 45 * 2 * 24 * 2 * 2, 2 * 6
    partial = {"partial": cut_rows * 24 * 4, "partial_lse": cut_rows * 4}
    assert traffic.read == {
        "q": 4 * 6 * 24 * 2,
        "k_cache": cache,
        "v_cache": cache,
        # Each program finds its share, reads the length again in each part, and merging does for each row.
        "context_lens": (programs + 4 * 2 * 2 + 6) * 4,
        "parts": programs * 8 * 2,
        **partial,
    }
    assert traffic.written == {"out": 3 * 6 * 24 * 2, "parts": programs * 8, **partial}
    assert tiling_operations(DECODE, DECODE_TILING) == 4 * (1 + 3) * 2 * 2 * 2 * 16 * 32


def test_the_terms_of_an_attention_in_equal_shares_by_hand():
    traffic = tiling_traffic(DECODE, replace(DECODE_TILING, num_splits=0, programs=4, min_tiles=1))
    # 4 items a sequence, of 1, 2 and 4 units with that of the beginning: 28, in 4 shares of 7. The second
    # ends after a tile of the third sequence's first item, of 2 rows; the others are whole, so 13 parts.
    cache, lengths, partial = (
        45 * 2 * 24 * 2 * 2,
        3 * 4,
        {"partial": 2 * 2 * 24 * 4, "partial_lse": 2 * 2 * 4},
    )
    assert traffic.read == {
        "q": (3 * 6 + 2) * 24 * 2,
        "k_cache": cache,
        "v_cache": cache,
        "context_lens": 4 * (2 * lengths + 8) + (13 + 2) * 4,
        "parts": 4 * 8 * 2,
        **partial,
    }
    assert traffic.written == {"out": 3 * 6 * 24 * 2, "parts": 4 * 8, **partial}


def test_figures_of_a_count_by_hand():
    result = count_case(MATMUL, tiling=MATMUL_TILING, source=SOURCE)
    useful, padded, partial = 2 * 20 * 40 * 50, 2 * 32 * 64 * 48, 2 * 20 * 50 * 4
    requested, written = 3200 + 8000 + partial, 2000 + partial
    assert result.operations == {"bf16 x bf16": padded}
    assert result.useful_share == useful / padded
    assert (result.bytes_requested, result.bytes_written) == (requested, written)
    assert result.modelled_bytes == requested + written
    assert result.bytes_distinct == 1600 + 4000 + 2000 + partial
    assert result.operations_per_requested_byte == useful / (requested + written)
    assert result.operations_per_distinct_byte == useful / result.bytes_distinct
    assert [launch.kernel for launch in result.launches] == ["_tile_kernel", "_reduce_kernel"]
    assert result.tensors["x"].sectors == 1600 // 32


def test_an_attention_over_nothing_has_no_operations():
    result = count_case(replace(DECODE, contexts=(0, 0)), tiling=DECODE_TILING, source=SOURCE)
    assert result.operations == {}
    assert result.modelled_operations == 0
    assert (result.useful_share, result.operations_ratio, result.operations_per_requested_byte) == (1, 1, 0)


@pytest.mark.parametrize(
    "case",
    [
        MATMUL,
        replace(MATMUL, rows=3, in_features=300),
        replace(MATMUL, in_features=256, out_features=100),
        replace(MATMUL, dtype="fp32"),
        DECODE,
        replace(DECODE, contexts=(0, 400, 70), head_dim=64),
    ],
    ids=lambda case: case.id,
)
def test_the_default_is_what_the_host_function_chooses(case):
    result = count_case(case, source=SOURCE)
    assert result.tiling == default_tiling(case)
    inputs = draw(case, SOURCE)
    with count_traffic() as traffic:
        if isinstance(case, PrefillMatmul):
            prefill_matmul(inputs.x, inputs.weight)
        else:
            decode_attention(inputs.q, inputs.k_cache, inputs.v_cache, inputs.context_lens)
    assert traffic.launches == list(result.launches)


def test_counts_are_those_of_the_kernel_that_runs(monkeypatch):
    """A tiling other than the one modelled shows in the ratio."""
    monkeypatch.setattr(
        counted.kernels,
        "prefill_matmul",
        lambda *args, tiling: prefill_matmul(*args, tiling=replace(tiling, block_n=16)),
    )
    result = count_case(MATMUL, tiling=MATMUL_TILING, source=SOURCE)
    assert result.tensors["x"].requested == 2 * result.tensors["x"].modelled_requested
    assert result.bytes_ratio > 1


@pytest.mark.parametrize("formula", [tiling_traffic, tiling_operations])
@pytest.mark.parametrize(("case", "tiling"), [(MATMUL, DECODE_TILING), (DECODE, MATMUL_TILING)])
def test_a_tiling_of_another_operation_is_refused(formula, case, tiling):
    with pytest.raises(ValueError, match=f"tiling is a {type(tiling).__name__}"):
        formula(case, tiling)


def test_the_seed_draws_the_inputs(monkeypatch):
    seeds = []

    def source(device, seed):
        seeds.append((device.type, seed))
        return SOURCE

    monkeypatch.setattr(counted, "Source", source)
    count_case(MATMUL, tiling=MATMUL_TILING, seed=3)
    assert seeds == [("cpu", 3)]


def test_the_script_prints_what_counting_costs(monkeypatch, capsys):
    import bench_counting  # noqa: PLC0415  (it has Triton interpret, as tests for a GPU must not)

    monkeypatch.setattr(bench_counting, "ROUNDS", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    bench_counting.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["prefill_matmul", "decode_attention", "vector"]
    assert all("  ratio " in line for line in lines)
