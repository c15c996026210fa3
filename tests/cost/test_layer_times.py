"""Modelled times of MoE layers, MLA decode attention and collectives: roofs, growth, routing, arguments."""

import math
from pathlib import Path

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gpus import find_gpu, gpu_table
from decodetax.harness.cost.all_reduce_time import HOW, all_reduce_time, all_to_all_time, node_of
from decodetax.harness.cost.expert_routing import ROW_TILES, expert_loads
from decodetax.harness.cost.layer_constants import basis_of
from decodetax.harness.cost.mla_time import mla_decode_time
from decodetax.harness.cost.moe_time import DTYPES, moe_time
from hypothesis import given
from hypothesis import strategies as st

GPUS = list(gpu_table())
H100, A100, B200 = find_gpu("H100-SXM5-80GB"), find_gpu("A100-SXM4-80GB"), find_gpu("B200")
ROUTINGS = ("balanced", "uniform", "power_law_1", "power_law_1.01", "power_law_1.2")

gpus = st.sampled_from(GPUS).map(find_gpu)
tokens = st.integers(1, 1 << 20)


def moe(gpu, tokens=64, dtype="bf16", weight_bytes=None, routing="balanced", experts=256, **more):
    arguments = {"hidden_size": 4096, "intermediate_size": 2048, "experts_per_token": 8, "gated": True} | more
    return moe_time(
        gpu,
        tokens=tokens,
        experts=experts,
        dtype=dtype,
        weight_bytes_per_element=weight_bytes or {"bf16": 2.0, "fp4": 0.5625}.get(dtype, 1.0),
        routing=routing,
        **arguments,
    )


def mla(gpu, sequences=64, q_heads=128, context=4096, dtype="bf16"):
    pairs = sequences * context
    return mla_decode_time(
        gpu,
        sequences=sequences,
        q_heads=q_heads,
        kv_bytes=pairs * 576 * (1 if dtype == "fp8" else 2),
        operations=2 * pairs * q_heads * 1088,
        dtype=dtype,
    )


def rate(gpu, dtype):
    dtype = "fp8" if dtype == "fp8_block" else dtype
    return gpu.flop_per_s[dtype] or gpu.flop_per_s["bf16"] or gpu.flop_per_s["fp16"]


@given(gpus, st.sampled_from(DTYPES), tokens, st.sampled_from(ROUTINGS), st.sampled_from([1, 2, 8, 64]))
def test_moe_stays_above_the_roofs(gpu, dtype, tokens, routing, expert_parallel):
    time = moe(gpu, tokens, dtype, routing=routing, expert_parallel=expert_parallel)
    loads = expert_loads(float(tokens), 256, 8, expert_parallel, routing)
    weights = 3 * 4096 * 2048
    read_s = loads.distinct * weights * {"bf16": 2, "fp4": 0.5625}.get(dtype, 1) / gpu.bandwidth_bytes_per_s
    assert time.time_s >= max(read_s, 2 * loads.rows * weights / rate(gpu, dtype))
    assert 0 < time.fixed_s < time.time_s < math.inf


@given(
    gpus, st.sampled_from(DTYPES), tokens, st.integers(1, 1 << 20), st.sampled_from(["balanced", "uniform"])
)
def test_moe_never_falls_with_more_tokens(gpu, dtype, tokens, more, routing):
    assert (
        moe(gpu, tokens + more, dtype, routing=routing).time_s
        >= moe(gpu, tokens, dtype, routing=routing).time_s
    )


@given(tokens, st.sampled_from([1.0, 1.01, 1.2, 2.0]), st.sampled_from([1, 2, 4, 8]))
def test_twice_the_tokens_of_a_power_law_take_no_less_time(tokens, exponent, expert_parallel):
    routing = f"power_law_{exponent}"
    few = moe(H100, tokens, routing=routing, expert_parallel=expert_parallel)
    assert moe(H100, 2 * tokens, routing=routing, expert_parallel=expert_parallel).time_s >= few.time_s


@given(
    tokens, st.integers(1, 512), st.integers(1, 16), st.sampled_from([1, 2, 8, 64]), st.sampled_from(ROUTINGS)
)
def test_loads_of_experts_are_consistent(tokens, experts, experts_per_token, expert_parallel, routing):
    experts_per_token = min(experts, experts_per_token)
    loads = expert_loads(float(tokens), experts, experts_per_token, expert_parallel, routing)
    assert 0 < loads.distinct <= math.ceil(experts / expert_parallel)
    assert loads.rows >= loads.distinct * (1 - 1e-9)
    copies = tokens * experts_per_token
    assert loads.rows <= max(copies, loads.distinct) * (1 + 1e-9) + 1
    assert loads.rows >= min(copies / expert_parallel, copies) * (1 - 1e-9) - 1
    for tile in ROW_TILES:
        assert loads.row_tiles[tile] * tile >= loads.rows * (1 - 1e-9)
        assert loads.row_tiles[tile] >= loads.distinct * (1 - 1e-9)


def test_balanced_routing_gives_each_expert_as_many_tokens():
    loads = expert_loads(64.0, 128, 8, 4, "balanced")
    assert (loads.distinct, loads.rows) == (32.0, 128.0)  # 64 x 8 copies over 4 GPUs of 32 experts
    assert loads.row_tiles[16] == 32.0
    assert expert_loads(1.0, 128, 8, 1, "balanced").distinct == 8.0


def test_uniform_routing_leaves_some_experts_without_tokens():
    loads = expert_loads(16.0, 128, 8, 1, "uniform")
    assert loads.distinct == pytest.approx(128 * (1 - (120 / 128) ** 16))
    assert loads.rows == pytest.approx(128)


def test_power_law_is_skewed_and_loads_one_gpu_more():
    even, skewed = (expert_loads(4096.0, 128, 8, 8, each) for each in ("balanced", "power_law_1.2"))
    assert skewed.rows > 1.5 * even.rows
    one = expert_loads(4096.0, 128, 8, 1, "power_law_1.2")
    assert one.rows == 4096 * 8
    assert expert_loads(64.0, 128, 8, 1, "power_law_1.2").distinct < 128


def test_narrow_weights_of_bf16_products_are_dequantised():
    wide, narrow = moe(H100, 4096, "bf16"), moe(H100, 4096, "bf16", weight_bytes=0.53125)
    assert narrow.compute_s > wide.compute_s
    assert moe(H100, 16, "bf16", weight_bytes=0.53125).memory_s < moe(H100, 16, "bf16").memory_s
    assert moe(A100, 16, "fp8") == moe(A100, 16, "bf16", weight_bytes=1.0)


@given(
    gpus, st.sampled_from(["bf16", "fp8"]), st.integers(1, 4096), st.integers(1, 128), st.integers(1, 1 << 20)
)
def test_mla_stays_above_the_roofs_and_never_falls(gpu, dtype, sequences, q_heads, context):
    time = mla(gpu, sequences, q_heads, context, dtype)
    pairs = sequences * context
    read_s = pairs * 576 * (1 if dtype == "fp8" else 2) / gpu.bandwidth_bytes_per_s
    assert time.time_s >= max(read_s, 2 * pairs * q_heads * 1088 / rate(gpu, dtype))
    for more in (
        (sequences + 1, q_heads, context),
        (sequences, q_heads + 1, context),
        (sequences, q_heads, context + 1),
    ):
        assert mla(gpu, *more, dtype).time_s >= time.time_s


def test_mla_of_few_heads_is_bound_by_memory_and_of_many_nearly_by_compute():
    few, many = mla(H100, q_heads=16, context=65536), mla(H100, q_heads=128, context=65536)
    assert few.memory_s > 4 * few.compute_s
    assert many.compute_s > 0.9 * few.memory_s


@given(gpus, st.integers(2, 1024), st.floats(1, 1e12), st.sampled_from(list(HOW)))
def test_all_reduce_takes_longer_than_its_link_allows_and_never_falls(gpu, count, reduced_bytes, how):
    time = all_reduce_time(gpu, gpus=count, reduced_bytes=reduced_bytes, how=how)
    # The least that any GPU receives: where the switch reduces, the message once.
    assert time.time_s >= reduced_bytes / gpu.link_bytes_per_s * (1 if count > 2 else 1 - 1e-9)
    assert 0 < time.fixed_s <= time.time_s < math.inf
    assert all_reduce_time(gpu, gpus=count, reduced_bytes=2 * reduced_bytes, how=how).time_s >= time.time_s


@pytest.mark.parametrize("gpu", GPUS)
def test_one_gpu_needs_no_communication(gpu):
    assert all_reduce_time(find_gpu(gpu), gpus=1, reduced_bytes=1e6).time_s == 0
    assert all_to_all_time(find_gpu(gpu), gpus=1, sent_bytes=1e6).time_s == 0


def test_small_all_reduce_in_a_graph_takes_3_to_6_us():
    for how in ("vllm_graph", "trtllm"):
        for count in (2, 4, 8):
            assert 2.5e-6 < all_reduce_time(H100, gpus=count, reduced_bytes=16384, how=how).time_s < 6.5e-6
    assert all_reduce_time(H100, gpus=8, reduced_bytes=16384, how="vllm_eager").time_s > 15e-6


def test_pcie_gpus_reduce_by_nccl_when_more_than_two():
    l40s = find_gpu("L40S")
    direct, ring = (
        all_reduce_time(l40s, gpus=4, reduced_bytes=1024, how=each) for each in ("vllm_graph", "nccl")
    )
    assert direct == ring
    assert all_reduce_time(l40s, gpus=2, reduced_bytes=1024).time_s < direct.time_s / 2


def test_an_nvlink_domain_of_72_gpus_needs_no_network():
    gb200 = find_gpu("GB200")
    assert (node_of(gb200).gpus, node_of(H100).gpus) == (72, 8)
    large = {"reduced_bytes": 64e6}
    assert all_reduce_time(gb200, gpus=16, **large).time_s < all_reduce_time(B200, gpus=16, **large).time_s
    within, across = (all_to_all_time(H100, gpus=each, sent_bytes=64e6) for each in (8, 16))
    assert across.time_s > 2 * within.time_s


def test_basis_names_the_measured_gpu_and_the_error_to_expect():
    own = basis_of(H100, "moe", "fp8_block")
    assert own.measured
    assert own.gpu == H100.name
    assert 0 < own.median_error < own.p90_error < 0.5
    assert basis_of(B200, "moe", "fp8").gpu == H100.name
    assert not basis_of(B200, "moe", "fp8").measured
    assert basis_of(B200, "moe", "fp8").p90_error is None
    other = basis_of(
        find_gpu("H200-SXM-141GB"), "all_reduce", "vllm_graph", fitted=("direct_all_reduce", "vllm")
    )
    assert (other.gpu, other.measured) == (H100.name, False)
    assert (
        other.p90_error
        > basis_of(H100, "all_reduce", "vllm_graph", fitted=("direct_all_reduce", "vllm")).p90_error
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moe(H100, 0), "tokens: 0 is not positive and finite"),
        (lambda: moe(H100, expert_parallel=0), "expert_parallel: 0 is not positive and finite"),
        (lambda: moe(H100, dtype="int3"), "dtype: 'int3' is not one of bf16, fp8, fp8_block, fp4"),
        (
            lambda: moe(H100, routing="zipf"),
            "routing: 'zipf' is not one of balanced, uniform, power_law_<exponent>",
        ),
        (lambda: mla(H100, q_heads=0), "q_heads: 0 is not positive and finite"),
        (lambda: mla(H100, dtype="int3"), "dtype: 'int3' is not one of"),
        (lambda: all_reduce_time(H100, gpus=0, reduced_bytes=1), "gpus: 0 is not positive and finite"),
        (lambda: all_reduce_time(H100, gpus=2, reduced_bytes=math.nan), "reduced_bytes: nan is not positive"),
        (
            lambda: all_reduce_time(H100, gpus=2, reduced_bytes=1, how="mpi"),
            "how: 'mpi' is not one of vllm_graph",
        ),
        (lambda: all_to_all_time(H100, gpus=2, sent_bytes=0), "sent_bytes: 0 is not positive and finite"),
    ],
)
def test_rejects_an_invalid_argument_by_its_name(call, message):
    with pytest.raises(UsageError) as error:
        call()
    assert message in str(error.value)


PUBLISHED_US = {64: (186, 353), 128: (192, 369), 256: (194, 360)}  # DeepEP v1, README: dispatch and combine
PUBLISHED_BYTES = (
    128 * 8 * 7168 * (1 + 4 / 128),
    128 * 8 * 7168 * 2,
)  # 128 tokens, 8 experts: fp8 with scales, bf16


def test_all_to_all_is_near_what_deepep_publishes_and_the_page_says_so():
    h800, lines = find_gpu("H800-SXM"), []
    for count, published_us in PUBLISHED_US.items():
        times_us = [
            all_to_all_time(h800, gpus=count, sent_bytes=size).time_s * 1e6 for size in PUBLISHED_BYTES
        ]
        assert times_us == [pytest.approx(value, rel=0.15) for value in published_us]
        cells = [f"{time_us:.0f} / {value}" for time_us, value in zip(times_us, published_us, strict=True)]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    page = (Path(__file__).resolve().parents[2] / "docs" / "accuracy.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page
    within = 153e9  # of the link's 200 GB/s: dispatch within a node
    assert 1e9 / all_to_all_time(h800, gpus=8, sent_bytes=1e9).memory_s == pytest.approx(within, rel=0.05)


def test_every_node_has_a_source():
    for gpu in ("H100-SXM5-80GB", "B200", "GB200"):
        assert "datasheet" in node_of(find_gpu(gpu)).source
    assert node_of(find_gpu("L40S")).source == ""
