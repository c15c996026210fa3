"""The modelled time of kernels: its roofs, its growth, its constants, its arguments."""

import math

import pytest
from decodetax.harness.core.data_table import data_table
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gpus import find_gpu, gpu_table
from decodetax.harness.cost import kernel_time
from decodetax.harness.cost.kernel_time import (
    constants_for,
    decode_attention_time,
    gemm_time,
    prefill_attention_time,
)
from hypothesis import given
from hypothesis import strategies as st

GPUS = list(gpu_table())
A100, H100 = find_gpu("A100-SXM4-80GB"), find_gpu("H100-SXM5-80GB")

gpus = st.sampled_from(GPUS).map(find_gpu)
dtypes = st.sampled_from(["bf16", "fp8"])
sizes = st.integers(1, 1 << 16)
counts = st.integers(1, 512)
growths = st.one_of(st.tuples(st.just(1), st.integers(1, 64)), st.tuples(st.integers(2, 5), st.just(0)))


def gemm(gpu, rows, out_features, in_features, dtype="bf16"):
    return gemm_time(
        gpu,
        rows=rows,
        out_features=out_features,
        in_features=in_features,
        dtype=dtype,
        weight_bytes_per_element=1 if dtype == "fp8" else 2,
    )


def decode(gpu, sequences=32, kv_heads=8, context=4096, group=4, dtype="bf16", head_dim=128):
    tokens = sequences * context * kv_heads * head_dim
    return decode_attention_time(
        gpu,
        sequences=sequences,
        kv_heads=kv_heads,
        kv_bytes=2 * tokens * (1 if dtype == "fp8" else 2),
        operations=4 * tokens * group,
        dtype=dtype,
        group=group,
    )


def prefill(gpu, sequences=1, q_heads=32, kv_heads=8, head_dim=128, prompt=2048, dtype="bf16"):
    return prefill_attention_time(
        gpu,
        sequences=sequences,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        prompt=prompt,
        dtype=dtype,
    )


def roofs_s(gpu, dtype, operations, moved):
    rate = gpu.flop_per_s[dtype] or gpu.flop_per_s["bf16"] or gpu.flop_per_s["fp16"]
    return max(operations / rate, moved / gpu.bandwidth_bytes_per_s)


def grown(arguments, name, growth):
    """The arguments with one of them grown, by a few or by a factor."""
    factor, more = growth
    return {**arguments, name: arguments[name] * factor + more}


@given(gpus, dtypes, sizes, sizes, sizes, growths, st.sampled_from(["rows", "out_features", "in_features"]))
def test_gemm_stays_above_the_roofs_and_never_falls(
    gpu, dtype, rows, out_features, in_features, growth, name
):
    arguments = {"rows": rows, "out_features": out_features, "in_features": in_features}
    time = gemm(gpu, **arguments, dtype=dtype)
    size = 1 if dtype == "fp8" else 2
    moved = size * (out_features * in_features) + 2 * rows * (out_features + in_features)
    assert time.time_s >= roofs_s(gpu, dtype, 2 * rows * out_features * in_features, moved)
    assert gemm(gpu, **grown(arguments, name, growth), dtype=dtype).time_s >= time.time_s


@given(gpus, dtypes, counts, counts, sizes, st.integers(1, 128), growths, st.data())
def test_decode_attention_stays_above_the_roofs_and_never_falls(
    gpu, dtype, sequences, kv_heads, context, group, growth, data
):
    arguments = {"sequences": sequences, "kv_heads": kv_heads, "context": context}
    time = decode(gpu, **arguments, group=group, dtype=dtype)
    tokens = sequences * kv_heads * context * 128
    moved = 2 * tokens * (1 if dtype == "fp8" else 2)
    assert time.time_s >= roofs_s(gpu, dtype, 4 * tokens * group, moved)
    more = grown(arguments, data.draw(st.sampled_from(sorted(arguments))), growth)
    assert decode(gpu, **more, group=group, dtype=dtype).time_s >= time.time_s


@given(gpus, dtypes, counts, counts, st.integers(1, 16), sizes, growths, st.data())
def test_prefill_attention_stays_above_the_roofs_and_never_falls(
    gpu, dtype, sequences, kv_heads, group, prompt, growth, data
):
    arguments = {
        "sequences": sequences,
        "q_heads": kv_heads * group,
        "kv_heads": kv_heads,
        "head_dim": 128,
        "prompt": prompt,
    }
    time = prefill(gpu, **arguments, dtype=dtype)
    operations = 2 * sequences * kv_heads * group * prompt * (prompt + 1) * 128
    moved = 2 * sequences * prompt * 128 * kv_heads * (group + 1) * (1 if dtype == "fp8" else 2)
    assert time.time_s >= roofs_s(gpu, dtype, operations, moved)
    more = grown(arguments, data.draw(st.sampled_from(sorted(arguments))), growth)
    assert prefill(gpu, **more, dtype=dtype).time_s >= time.time_s


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("size", [1, 1 << 30])
def test_every_gpu_has_a_positive_finite_time_at_any_size(gpu, size):
    gpu = find_gpu(gpu)
    for dtype in ("bf16", "fp8"):
        for time in (
            gemm(gpu, size, size, size, dtype),
            decode(gpu, sequences=size, context=size, dtype=dtype),
            prefill(gpu, sequences=size, prompt=size, dtype=dtype),
        ):
            assert all(
                0 < value < math.inf for value in (time.time_s, time.memory_s, time.compute_s, time.fixed_s)
            )


def test_the_bound_is_the_largest_term():
    seen = set()
    for time in (gemm(H100, 1, 16384, 16384), gemm(H100, 8192, 8192, 8192), gemm(H100, 1, 64, 64)):
        terms = {"memory": time.memory_s, "compute": time.compute_s, "fixed": time.fixed_s}
        assert terms[time.bound] == max(terms.values())
        seen.add(time.bound)
    assert seen == {"memory", "compute", "fixed"}


def test_short_contexts_cost_time_per_sequence_and_head():
    short, long = decode(H100, sequences=2048, context=16), decode(H100, sequences=8, context=4096)
    assert short.bound == "fixed"
    assert short.memory_s == long.memory_s
    assert short.time_s > 5 * long.time_s


def test_fp8_activations_need_no_quantisation_pass():
    arguments = {"rows": 8192, "out_features": 1024, "in_features": 8192, "dtype": "fp8"}
    wide = gemm_time(H100, **arguments, weight_bytes_per_element=1, activation_bytes_per_element=2)
    narrow = gemm_time(H100, **arguments, weight_bytes_per_element=1, activation_bytes_per_element=1)
    written = 8192 * 1024 / H100.bandwidth_bytes_per_s
    gemm_constants = constants_for(H100).gemm
    passed = 3 * 8192 * 8192 / (H100.bandwidth_bytes_per_s * gemm_constants["fp8"].quantise_share)
    assert wide.memory_s - narrow.memory_s == pytest.approx(
        passed + written / gemm_constants["fp8"].memory_share
    )
    assert narrow.fixed_s == gemm_constants["bf16"].fixed_s < wide.fixed_s


@pytest.mark.parametrize("gpu", ["A100-SXM4-80GB", "T4"])
def test_a_gpu_without_fp8_multiplies_in_bf16(gpu):
    gpu = find_gpu(gpu)
    arguments = {"rows": 4096, "out_features": 4096, "in_features": 4096, "weight_bytes_per_element": 2}
    assert gemm_time(gpu, dtype="fp8", **arguments) == gemm_time(gpu, dtype="bf16", **arguments)


@pytest.mark.parametrize("gpu", GPUS)
def test_constants_are_calibrated_or_say_that_they_are_derived(gpu):
    gpu = find_gpu(gpu)
    constants = constants_for(gpu)
    if gpu.name in ("A100-SXM4-80GB", "H100-SXM5-80GB"):
        assert (constants.gpu, constants.basis) == (gpu.name, f"calibrated on {gpu.name}")
    else:
        assert constants.basis == "derived from the datasheet"
        assert constants.gpu == ("A100-SXM4-80GB" if gpu.flop_per_s["fp8"] is None else "H100-SXM5-80GB")
    assert constants.prefill_attention_gpu == "H100-SXM5-80GB"


def test_a_derived_gpu_scales_with_its_datasheet():
    h200 = find_gpu("H200-SXM-141GB")
    ratio = decode(H100, context=131072).memory_s / decode(h200, context=131072).memory_s
    assert ratio == pytest.approx(h200.bandwidth_bytes_per_s / H100.bandwidth_bytes_per_s)


def test_no_share_of_a_roof_exceeds_1():
    for row in data_table("kernel_constants.csv"):
        for column in ("memory_share", "compute_share", "quantise_share"):
            assert not row[column] or 0 < float(row[column]) <= 1
        assert row["source"]


def test_empty_cell_means_the_default_constant():
    cells = dict(data_table("kernel_constants.csv")[0])
    constants = kernel_time.constants_from("gemm", cells)
    assert constants.quantise_share is None
    assert constants.fixed_s == pytest.approx(float(cells["fixed_us"]) * 1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gemm(H100, 1, 1, 1, "fp4"), "dtype: 'fp4' is not one of bf16, fp8"),
        (lambda: decode(H100, dtype="int8"), "dtype: 'int8' is not one of bf16, fp8"),
        (lambda: prefill(H100, dtype="fp32"), "dtype: 'fp32' is not one of bf16, fp8"),
        (lambda: gemm(H100, 0, 1, 1), "rows: 0 is not positive and finite"),
        (lambda: gemm(H100, 1, math.inf, 1), "out_features: inf is not positive and finite"),
        (lambda: decode(H100, group=-1), "operations: -"),
        (lambda: decode(H100, context=0), "kv_bytes: 0 is not positive and finite"),
        (lambda: prefill(H100, prompt=0), "prompt: 0 is not positive and finite"),
    ],
)
def test_rejects_bad_arguments_by_name(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value).startswith(message)
