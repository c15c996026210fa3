"""The modelled time of kernels: its roofs, its growth, its constants, its arguments."""

import math

import pytest
from decodetax.harness.core.data_table import data_table
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gpus import find_gpu, gpu_table
from decodetax.harness.cost.attention_time import decode_attention_time, prefill_attention_time
from decodetax.harness.cost.gemm_time import gemm_time
from decodetax.harness.cost.kernel_constants import constants_for, constants_from
from hypothesis import given
from hypothesis import strategies as st

GPUS = list(gpu_table())
A100, H100, B200 = (find_gpu(name) for name in ("A100-SXM4-80GB", "H100-SXM5-80GB", "B200"))

gpus = st.sampled_from(GPUS).map(find_gpu)
dtypes = st.sampled_from(["bf16", "fp8", "fp4"])
attention_dtypes = st.sampled_from(["bf16", "fp8"])
sizes = st.integers(1, 1 << 16)
counts = st.integers(1, 512)
growths = st.one_of(st.tuples(st.just(1), st.integers(1, 64)), st.tuples(st.integers(2, 5), st.just(0)))


WEIGHT_BYTES = {"bf16": 2, "fp8": 1, "fp4": 0.5}


def gemm(gpu, rows, out_features, in_features, dtype="bf16", in_l2=False):
    return gemm_time(
        gpu,
        rows=rows,
        out_features=out_features,
        in_features=in_features,
        dtype=dtype,
        weight_bytes_per_element=WEIGHT_BYTES.get(dtype, 2),
        in_l2=in_l2,
    )


def decode(gpu, sequences=32, kv_heads=8, context=4096, group=4, dtype="bf16", head_dim=128, in_l2=False):
    tokens = sequences * context * kv_heads * head_dim
    return decode_attention_time(
        gpu,
        sequences=sequences,
        kv_heads=kv_heads,
        kv_bytes=2 * tokens * (1 if dtype == "fp8" else 2),
        operations=4 * tokens * group,
        dtype=dtype,
        group=group,
        in_l2=in_l2,
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
    moved = WEIGHT_BYTES[dtype] * out_features * in_features + 2 * rows * (out_features + in_features)
    assert time.time_s >= roofs_s(gpu, dtype, 2 * rows * out_features * in_features, moved)
    assert gemm(gpu, **grown(arguments, name, growth), dtype=dtype).time_s >= time.time_s


@given(gpus, attention_dtypes, counts, counts, sizes, st.integers(1, 128), growths, st.data())
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


@given(gpus, attention_dtypes, counts, counts, st.integers(1, 16), sizes, growths, st.data())
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


def test_quantised_activations_need_no_pass():
    arguments = {"rows": 8192, "out_features": 1024, "in_features": 8192, "weight_bytes_per_element": 1}
    wide = gemm_time(H100, **arguments, dtype="fp8")
    narrow = gemm_time(H100, **arguments, dtype="fp8", quantised=True)
    constants = constants_for(H100).gemm
    passed = 3 * 8192 * 8192 / (H100.bandwidth_bytes_per_s * constants["fp8"].quantise_share)
    assert wide.memory_s - narrow.memory_s == pytest.approx(passed)
    assert narrow.fixed_s == constants["bf16"].fixed_s < wide.fixed_s
    assert narrow.time_s < wide.time_s


def test_fp4_has_the_shares_of_fp8_at_its_own_rate():
    sizes = {"rows": 1 << 14, "out_features": 1 << 14, "in_features": 1 << 14}
    wide, narrow = gemm(B200, **sizes, dtype="fp8"), gemm(B200, **sizes, dtype="fp4")
    assert wide.compute_s / narrow.compute_s == pytest.approx(B200.flop_per_s["fp4"] / B200.flop_per_s["fp8"])
    assert gemm(H100, **sizes, dtype="fp4").compute_s == gemm(H100, **sizes).compute_s


@pytest.mark.parametrize("kernel", ["gemm", "decode"])
def test_what_fits_in_l2_is_read_faster_than_from_memory_and_never_slower(kernel):
    l40s = find_gpu("L40S")
    times = []
    for size in range(9, 19):
        sizes = {"rows": 1, "out_features": 1 << size, "in_features": 1024} if kernel == "gemm" else {}
        call = gemm if kernel == "gemm" else decode
        sizes = sizes or {"sequences": 8, "context": 1 << size - 4}
        warm, cold = call(l40s, **sizes, in_l2=True), call(l40s, **sizes, in_l2=False)
        assert warm.time_s <= cold.time_s
        times.append((warm.time_s, cold.time_s))
    assert times[3][0] < 0.8 * times[3][1]
    assert times[-1][0] == pytest.approx(times[-1][1], rel=1e-6)
    assert times == sorted(times)


def test_the_cost_of_an_empty_call_is_the_launch():
    for time in (gemm(H100, 1, 64, 64, "fp8"), decode(H100), prefill(H100)):
        assert 0 < time.launch_s <= time.fixed_s
    assert gemm(H100, 1, 64, 64).launch_s == constants_for(H100).gemm["bf16"].fixed_s


@pytest.mark.parametrize("gpu", ["A100-SXM4-80GB", "T4"])
def test_a_gpu_without_fp8_multiplies_in_bf16(gpu):
    gpu = find_gpu(gpu)
    arguments = {"rows": 4096, "out_features": 4096, "in_features": 4096, "weight_bytes_per_element": 2}
    assert gemm_time(gpu, dtype="fp8", **arguments) == gemm_time(gpu, dtype="bf16", **arguments)


MEASURED = ["A100-SXM4-80GB", "H100-SXM5-80GB", "B200", "L40S"]
BASES = {
    "V100-SXM2-32GB": "A100-SXM4-80GB",
    "RTX-3090": "A100-SXM4-80GB",
    "RTX-4090": "L40S",
    "RTX-5090": "L40S",
    "H20": "H100-SXM5-80GB",
    "H200-SXM-141GB": "H100-SXM5-80GB",
    "GB200": "B200",
    "B300": "B200",
}


@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_names_its_basis_and_the_error_to_expect(gpu):
    found = find_gpu(gpu)
    constants = constants_for(found)
    for dtype in constants.gemm:
        for kernel in ("gemm", "decode_attention", "prefill_attention"):
            basis = constants.basis[kernel, dtype]
            assert basis.measured == (basis.gpu == gpu and basis.dtype == dtype)
            assert 0 < basis.median_error <= basis.p90_error
    own = [basis for basis in constants.basis.values() if basis.measured]
    assert bool(own) == (gpu in MEASURED)
    assert all(
        basis.gpu == gpu for (kernel, _), basis in constants.basis.items() if kernel != "prefill_attention"
    ) == (gpu in MEASURED)


@pytest.mark.parametrize(("gpu", "basis"), BASES.items())
def test_a_gpu_without_measurements_takes_those_of_the_nearest_architecture(gpu, basis):
    constants = constants_for(find_gpu(gpu))
    own = constants_for(find_gpu(basis))
    assert constants.basis["gemm", "bf16"].gpu == basis
    assert constants.gemm["bf16"].compute_share == own.gemm["bf16"].compute_share
    assert constants.basis["gemm", "bf16"].median_error > own.basis["gemm", "bf16"].median_error


def test_a_dtype_without_measurements_says_so():
    basis = constants_for(B200).basis["gemm", "fp4"]
    assert (basis.gpu, basis.dtype, basis.measured) == ("B200", "fp8", False)
    fp8 = constants_for(B200).basis["gemm", "fp8"]
    assert basis.median_error > fp8.median_error
    prefill = constants_for(H100).basis["prefill_attention", "fp8"]
    assert (prefill.gpu, prefill.dtype, prefill.measured) == ("H100-SXM5-80GB", "bf16", False)


@pytest.mark.parametrize("gpu", GPUS)
def test_no_gpu_but_the_measured_one_keeps_more_than_its_l2(gpu):
    constants = constants_for(find_gpu(gpu))
    shares = [each.l2_share or 0 for each in (*constants.gemm.values(), *constants.decode_attention.values())]
    assert gpu == "L40S" or max(shares) <= 1


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
    constants = constants_from("gemm", cells)
    assert constants.quantise_share is None
    assert constants.fixed_s == pytest.approx(float(cells["fixed_us"]) * 1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gemm(H100, 1, 1, 1, "fp6"), "dtype: 'fp6' is not one of bf16, fp8, fp4"),
        (lambda: decode(H100, dtype="int8"), "dtype: 'int8' is not one of bf16, fp8, fp4"),
        (lambda: prefill(H100, dtype="fp32"), "dtype: 'fp32' is not one of bf16, fp8, fp4"),
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
