"""Scales per block of K: 1 x 128 of x by 128 x 128 of the weight, and other blocks, against the oracle."""

import dataclasses
import importlib
import math
import re

import pytest
import torch
from decodetax.harness.offline import count_traffic
from decodetax.kernels import prefill_matmul, reference
from decodetax.kernels.gpu_limits import H100_LIMITS
from decodetax.kernels.matmul_scale_shapes import block_size
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import NAN, by_default, dtype_name, normal
from matmul_checks import FLOAT8, TILINGS, assert_right, error, matmul_tiling, multiply, padded
from triton.runtime.interpreter import InterpreterBuilder

module = importlib.import_module("decodetax.kernels.prefill_matmul")
WIDE = matmul_tiling(block_n=128, block_k=128)
PARTS = matmul_tiling(block_k=128)  # several blocks of K per step
SCALED = {name: dataclasses.replace(each, block_k=64) for name, each in TILINGS.items()}


def uniform(*shape, seed=5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def narrow(rows, out_features, in_features, dtype=torch.float8_e4m3fn, batch=(), weight_dtype=None):
    """8-bit x and weight; int8 values have a standard deviation of 40."""
    operands = []
    for seed, (size, kind) in enumerate(((rows, dtype), (out_features, weight_dtype or dtype)), start=1):
        values = normal(*batch, size, in_features, dtype=torch.float32, seed=seed)
        if kind == torch.int8:
            values = (values * 40).round().clamp(-128, 127)
        operands.append(padded(values.to(kind)))
    return operands


def scales(rows, out_features, in_features, *, block_k=128, block_n=128, batch=()):
    """A scale per row of x and block of K, and per block of rows of the weight and block of K."""
    blocks = math.ceil(in_features / block_k)
    return {
        "x_scale": uniform(*batch, rows, blocks, seed=6),
        "weight_scale": uniform(*batch, math.ceil(out_features / block_n), blocks, seed=7),
    }


@pytest.mark.parametrize(
    "dtype",
    by_default({"float8_e4m3fn"}, [*FLOAT8, torch.int8], ids=["float8_e4m3fn", "float8_e5m2", "int8"]),
)
@pytest.mark.parametrize(
    "tiling",
    by_default({"split_columns", "split_descriptors"}, SCALED.values(), SCALED.keys()),
)
def test_every_tiling_scales_each_block_of_k(tiling, dtype):
    assert_right(*narrow(19, 40, 80, dtype), **scales(19, 40, 80, block_k=32, block_n=32), tiling=tiling)


@pytest.mark.parametrize("rows", by_default({17}, [1, 15, 16, 17]))
@pytest.mark.parametrize("out_features", by_default({129}, [1, 127, 128, 129, 257]))
@pytest.mark.parametrize("in_features", by_default({127, 257}, [127, 128, 129, 257]))
def test_sizes_that_128_does_not_divide(rows, out_features, in_features):
    options = scales(rows, out_features, in_features)
    assert_right(*narrow(rows, out_features, in_features), **options, tiling=WIDE)


@pytest.mark.parametrize("tiling", by_default({"parts"}, [None, PARTS], ids=["chosen", "parts"]))
@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [((19,), (3, 3)), ((), (70, 3)), ((19, 3), (70,)), ((19, 2), (5, 3)), ((19, 3), ()), ((19, 3), (70, 2))],
    ids=["rows_of_x", "rows_of_weight", "channels", "two_depths", "one_weight_scale", "deeper_weight"],
)
def test_blocks_of_one_operand_or_of_two_sizes(x_shape, weight_shape, tiling):
    options = {"x_scale": uniform(*x_shape), "weight_scale": uniform(*weight_shape, seed=6)}
    assert_right(*narrow(19, 70, 96), **options, tiling=tiling)


def test_int8_weights_with_scales_per_group_of_k():
    x, weight = narrow(19, 70, 96, torch.bfloat16, weight_dtype=torch.int8)
    assert_right(x, weight, weight_scale=uniform(70, 3))


def test_scales_of_any_strides_and_dtype():
    x, weight = narrow(19, 70, 96)
    given = scales(19, 70, 96, block_k=32, block_n=32)
    x_scale = torch.full(
        (3, 24), NAN
    )  # columns first, rows padded to 16 bytes: DeepGEMM and SGLang keep them so
    x_scale[:, :19] = given["x_scale"].T
    weight_scale = given["weight_scale"].T.contiguous().T
    options = {"x_scale": x_scale[:, :19].T, "weight_scale": weight_scale}
    plain = prefill_matmul(x, weight, **given)
    assert torch.equal(prefill_matmul(x, weight, **options), plain)
    assert_right(x, weight, **{name: each.to(torch.bfloat16) for name, each in given.items()})


@pytest.mark.parametrize("shared", [False, True])
def test_batches_have_scales_of_their_own(shared):
    x, weight = narrow(19, 70, 80, batch=(3,))
    options = scales(19, 70, 80, block_k=32, block_n=32, batch=(3,))
    weight = weight[:1].expand(3, 70, 80) if shared else weight
    assert_right(x, weight, **options)


def test_leading_dimensions_of_x():
    x, weight = narrow(6, 34, 80)
    options = scales(6, 34, 80, block_k=32, block_n=32)
    flat = prefill_matmul(x, weight, **options)
    options["x_scale"] = options["x_scale"].view(2, 3, 3)
    assert torch.equal(prefill_matmul(x.view(2, 3, 80), weight, **options).view(6, 34), flat)


@pytest.mark.parametrize("out_features", [128, 140], ids=["aligned", "straddling"])
@pytest.mark.parametrize("tiling", by_default({"descriptors", "whole"}, SCALED.values(), SCALED.keys()))
def test_gate_and_up_have_blocks_of_their_own(tiling, out_features):
    x, weight = narrow(19, out_features, 80)
    options = scales(19, out_features, 80, block_k=32, block_n=32)
    options["weight_scale"] = options["weight_scale"] / 80
    assert_right(x, weight, **options, activation="swiglu", tiling=tiling)


def test_gpus_without_float8_instructions(monkeypatch):
    limits = dataclasses.replace(H100_LIMITS, compute_capability=80)
    monkeypatch.setattr(module, "gpu_limits", lambda _device: limits)
    assert_right(*narrow(19, 70, 80), **scales(19, 70, 80, block_k=32, block_n=32))


@pytest.mark.parametrize("capability", by_default({100}, [89, 90, 100, 120]))
def test_chosen_tilings(capability, monkeypatch):
    limits = dataclasses.replace(H100_LIMITS, compute_capability=capability, shared_bytes_per_block=99 << 10)
    monkeypatch.setattr(module, "gpu_limits", lambda _device: limits)
    for rows in (5, 65):
        assert_right(*narrow(rows, 130, 129), **scales(rows, 130, 129))


@pytest.mark.parametrize(
    "tiling", [SCALED["split"], SCALED["split_descriptors"]], ids=["split", "descriptors"]
)
def test_results_are_bitwise_reproducible(tiling):
    x, weight = narrow(17, 34, 80)
    options = scales(17, 34, 80, block_k=32, block_n=32) | {"tiling": tiling}
    assert torch.equal(multiply(x, weight, **options), multiply(x, weight, **options))


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_nan_and_infinite_scales_reach_only_their_rows_and_columns(value):
    x, weight = narrow(19, 70, 80)
    options = scales(19, 70, 80, block_k=32, block_n=32)
    options["x_scale"][2, 1] = options["weight_scale"][1, 2] = value
    out = multiply(x, weight, **options, tiling=PARTS)
    dead = torch.zeros(19, 70, dtype=torch.bool)
    dead[2], dead[:, 32:64] = True, True
    assert not out[dead].isfinite().any()
    assert out[~dead].isfinite().all()


def test_float8_sums_are_promoted_for_each_block(monkeypatch):
    # Hopper's tensor cores keep 14 bits of a sum: all products of one block are ones, those of the next 2^-9.
    x = torch.ones(1, 256)
    x[:, 128:] = 2.0**-9
    options = {"x_scale": torch.ones(1, 2), "weight_scale": torch.ones(1, 2)}
    calls = []
    dot = InterpreterBuilder.create_dot

    def spy(self, a, b, d, *rest):
        calls.append((a.data.shape[1], bool(d.data.any())))
        return dot(self, a, b, d, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", spy)
    ones = torch.ones(1, 256).to(torch.float8_e4m3fn)
    out = prefill_matmul(x.to(torch.float8_e4m3fn), ones, **options, out_dtype=torch.float32)
    assert out.item() == 128 + 128 * 2.0**-9
    assert set(calls) == {(128, False)}


@pytest.mark.parametrize("fault", ["other_block", "other_row", "next_part"])
def test_faults_of_the_scales_are_found(fault):
    x, weight = narrow(5, 70, 96)
    options = scales(5, 70, 96, block_k=32, block_n=32)
    right = {name: each.clone() for name, each in options.items()}
    if fault == "other_block":
        options["weight_scale"] = options["weight_scale"].roll(1, 0)
    elif fault == "other_row":
        options["x_scale"] = options["x_scale"].roll(1, 0)
    else:
        options["x_scale"] = options["x_scale"].roll(1, 1)
    assert error(multiply(x, weight, **options, tiling=PARTS), x, weight, **right) > 1


@pytest.mark.parametrize(
    ("elements", "blocks", "size"),
    [(7168, 56, 128), (200, 2, 128), (129, 2, 128), (128, 1, 128), (100, 3, None), (70, 70, 1), (257, 9, 32)],
)
def test_block_sizes_are_powers_of_two(elements, blocks, size):
    assert block_size(elements, blocks) == size


@pytest.mark.slow
@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    pairs=st.integers(1, 40),
    in_features=st.integers(33, 140),
    block_k=st.sampled_from([32, 64, 128]),
    block_n=st.sampled_from([1, 16, 64, 128]),
    tiling=st.sampled_from([None, *SCALED.values()]),
    activation=st.sampled_from([None, "swiglu"]),
    dtype=st.sampled_from([*FLOAT8, torch.int8]),
)
def test_random_shapes_and_blocks(rows, pairs, in_features, block_k, block_n, tiling, activation, dtype):
    x, weight = narrow(rows, 2 * pairs, in_features, dtype)
    x, weight = (padded(each.float().abs().clamp(max=127).to(dtype)) for each in (x, weight))
    options = scales(rows, 2 * pairs, in_features, block_k=block_k, block_n=block_n)
    blocks = options["weight_scale"].shape
    if blocks[0] == 1 and blocks[1] == 2 * pairs:
        return  # one scale per row of the weight
    options["weight_scale"] = options["weight_scale"] / (in_features * (1600 if dtype == torch.int8 else 1))
    assert_right(x, weight, **options, activation=activation, tiling=tiling)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=dtype_name)
def test_oracle_computed_by_hand(dtype):
    x = torch.tensor([[1.0] * 32 + [2.0] * 32]).to(dtype)
    weight = torch.tensor([[1.0] * 64, [3.0] * 64]).to(dtype)
    options = {"x_scale": torch.tensor([[0.5, 4.0]]), "weight_scale": torch.tensor([[1.0, 2.0], [10.0, 0.0]])}
    # 32 x 0.5 + 64 x 8 = 528; 96 x 5 = 480.
    assert reference.prefill_matmul(x, weight, **options).tolist() == [[528.0, 480.0]]
    assert prefill_matmul(x, weight, **options, out_dtype=torch.float32).tolist() == [[528.0, 480.0]]


@pytest.mark.parametrize("rows", by_default({1, 64}, [1, 16, 33, 64]))
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=dtype_name)
def test_few_rows_request_each_weight_once(rows, dtype):
    x, weight = narrow(rows, 256, 256, dtype)
    options = scales(rows, 256, 256) if dtype != torch.int8 else {"x_scale": uniform(rows)}
    with count_traffic() as traffic:
        prefill_matmul(x, weight, **options)
    requested = {name: each.bytes_requested for name, each in traffic.launches[0].tensors.items()}
    assert requested["weight_ptr"] == 256 * 256
    if dtype != torch.int8:
        assert requested["x_block_ptr"] <= 4 * rows * 2 * math.ceil(256 / 32)
        assert requested["weight_block_ptr"] <= 4 * 2 * 256


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"x_scale": (19, 7)}, "x_scale has shape [19, 7]; its last dimension must divide 300 in_features"),
        ({"x_scale": (19, 10)}, None),
        ({"x_scale": (19, 20)}, "of at least 32"),
        ({"x_scale": (18, 3)}, "x_scale has shape [18, 3]"),
        ({"weight_scale": (2, 4)}, "weight_scale has shape [2, 4]; its last dimension must divide 300"),
        ({"weight_scale": (37, 3)}, "it must divide 70 rows of weight into blocks of a power of two"),
        ({"weight_scale": (3, 3, 3)}, "weight_scale has shape [3, 3, 3]"),
    ],
    ids=str,
)
def test_shapes_that_are_no_blocks_are_refused(options, named):
    x, weight = narrow(19, 70, 300)
    options = {name: torch.ones(shape) for name, shape in options.items()}
    if named is None:
        assert prefill_matmul(x, weight, **options).isfinite().all()
        return
    with pytest.raises(ValueError, match=re.escape(named)):
        prefill_matmul(x, weight, **options)


def test_wrong_operands_and_dtypes_of_block_scales_are_refused():
    x, weight = narrow(19, 70, 96)
    with pytest.raises(ValueError, match=r"x_scale is torch\.float64; it must be one of"):
        prefill_matmul(x, weight, x_scale=torch.ones(19, 3, dtype=torch.float64))
    wide = torch.ones(19, 96, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="blocks need a weight of 8 bits"):
        prefill_matmul(wide, wide, x_scale=torch.ones(19, 3))


def test_scales_of_features_that_could_be_blocks_are_refused():
    x, weight = narrow(5, 3, 96)
    ones = torch.ones(1, 3)
    assert prefill_matmul(x, weight, weight_scale=ones).shape == (5, 3)
    with pytest.raises(ValueError, match="one per feature or block of in_features"):
        prefill_matmul(x, weight, x_scale=torch.ones(5, 3), weight_scale=ones)
    assert_right(x, weight, x_scale=uniform(5, 3), weight_scale=uniform(1, 3).expand(3, 3))


def test_float8_weights_in_blocks_under_16_bit_x():
    x, weight = narrow(19, 70, 96, torch.bfloat16, weight_dtype=torch.float8_e4m3fn)
    assert_right(x, weight, weight_scale=uniform(3, 3))


def test_no_scale_past_the_last_block_is_read():
    x, weight = narrow(5, 34, 96)  # a step of 128 has a fourth part, past K
    with count_traffic():
        prefill_matmul(x, weight, **scales(5, 34, 96, block_k=32, block_n=32), tiling=PARTS)


@pytest.mark.parametrize(
    ("x_shape", "weight_shape"), [((0, 256), (128, 256)), ((0, 3, 256), (0, 128, 256))], ids=str
)
def test_no_rows_or_batches_take_their_scales(x_shape, weight_shape):
    x, weight = (torch.zeros(shape).to(torch.float8_e4m3fn) for shape in (x_shape, weight_shape))
    x_scale, weight_scale = torch.ones(*x_shape[:-1], 2), torch.ones(*weight_shape[:-2], 1, 2)
    out = prefill_matmul(x, weight, x_scale=x_scale, weight_scale=weight_scale)
    assert out.shape == (*x_shape[:-1], 128)
