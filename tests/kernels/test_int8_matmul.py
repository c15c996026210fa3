"""Int8 x int8: sums in int32 are exact, and scales are applied to them in float32."""

import dataclasses
import importlib

import pytest
import torch
from decodetax.kernels import prefill_matmul
from decodetax.kernels.gpu_limits import H100_LIMITS
from kernel_inputs import DTYPES, by_default, dtype_name
from matmul_checks import TILINGS, assert_right, multiply, padded, result_dtype
from test_block_scales import uniform

module = importlib.import_module("decodetax.kernels.prefill_matmul")


def integers(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return padded(torch.randint(-128, 128, shape, generator=generator).to(torch.int8))


def int32_result(x, weight, **options):
    result = prefill_matmul(x, weight, **options, out_dtype=torch.int32)
    assert result.dtype == torch.int32
    return result


@pytest.mark.parametrize(
    "tiling",
    by_default(
        {"last_tiles_split", "columns", "weight_first", "descriptors"}, TILINGS.values(), TILINGS.keys()
    ),
)
def test_int32_sums_are_exact(tiling):
    x, weight = integers(33, 40, seed=1), integers(45, 40, seed=2)
    assert torch.equal(int32_result(x, weight, tiling=tiling), x.int() @ weight.int().T)


def test_sums_that_float32_does_not_hold_are_exact():
    x = torch.full((3, 2049), 127, dtype=torch.int8)  # 127 x 127 x 2049 is over 2^24, and odd
    weight = x.clone()
    weight[1, 0] = 126
    deep = [dataclasses.replace(TILINGS[name], block_k=512) for name in ("whole", "split")]
    for tiling in deep:
        found = int32_result(x, weight, tiling=tiling)
        assert found[0].tolist() == [127 * 127 * 2049, 127 * 127 * 2049 - 127, 127 * 127 * 2049]
    least = torch.full((1, 2048), -128, dtype=torch.int8)
    assert int32_result(least, least, tiling=deep[1]).item() == 2**25


@pytest.mark.parametrize("rows", by_default({1, 17}, [1, 15, 16, 17, 64, 65]))
@pytest.mark.parametrize(
    "out_dtype", by_default({"bfloat16"}, DTYPES, ids=["bfloat16", "float16", "float32"])
)
def test_scales_per_row_and_per_channel(rows, out_dtype):
    x, weight = integers(rows, 70, seed=1), integers(45, 70, seed=2)
    options = {"x_scale": uniform(rows) / 1000, "weight_scale": uniform(45, seed=6) / 100}
    assert_right(x, weight, **options, bias=uniform(45, seed=7), out_dtype=out_dtype)


@pytest.mark.parametrize("tiling", by_default({"split_slices"}, TILINGS.values(), TILINGS.keys()))
@pytest.mark.parametrize("activation", by_default({"swiglu"}, ["silu", "gelu", "swiglu"]))
def test_fused_epilogue(tiling, activation):
    x, weight = integers(19, 70, seed=1), integers(46, 70, seed=2)
    options = {"x_scale": uniform(19) / 100, "weight_scale": uniform(46, seed=6) / 1000}
    assert_right(x, weight, **options, activation=activation, tiling=tiling)


def test_batched_weights():
    x, weight = integers(3, 19, 70, seed=1), integers(3, 34, 70, seed=2)
    assert torch.equal(int32_result(x, weight), x.int() @ weight.int().transpose(1, 2))
    assert_right(x, weight, x_scale=uniform(3, 19) / 100, weight_scale=uniform(3, 34, seed=6) / 100)


@pytest.mark.parametrize("capability", by_default({80}, [80, 89, 90, 100, 120]))
def test_chosen_tilings(capability, monkeypatch):
    limits = dataclasses.replace(H100_LIMITS, compute_capability=capability, shared_bytes_per_block=99 << 10)
    monkeypatch.setattr(module, "gpu_limits", lambda _device: limits)
    for rows in (5, 65):
        x, weight = integers(rows, 256, seed=1), integers(130, 256, seed=2)
        assert torch.equal(int32_result(x, weight), x.int() @ weight.int().T)


@pytest.mark.parametrize(
    "layout", [lambda each: each[:, 1:], lambda each: each.T.contiguous().T], ids=["odd", "transposed"]
)
def test_operands_without_16_byte_loads(layout):
    x, weight = layout(integers(19, 71, seed=1)), layout(integers(45, 71, seed=2))
    assert torch.equal(int32_result(x, weight), x.int() @ weight.int().T)


def test_without_out_dtype_the_result_is_bf16():
    x, weight = integers(3, 16, seed=1), integers(4, 16, seed=2)
    assert prefill_matmul(x, weight).dtype == result_dtype(x) == torch.bfloat16


def test_workspace_of_split_k_holds_int32():
    x, weight = integers(19, 70, seed=1), integers(45, 70, seed=2)
    assert torch.equal(
        multiply(x, weight, tiling=TILINGS["split"], out_dtype=torch.float32),
        (x.int() @ weight.int().T).float(),
    )


@pytest.mark.parametrize("lost", [0, 69], ids=dtype_name)
def test_fault_of_a_missing_product_is_found(lost):
    x, weight = integers(5, 70, seed=1), integers(4, 70, seed=2)
    wrong = x.clone()
    wrong[:, lost] = 0
    assert not torch.equal(int32_result(wrong, weight), x.int() @ weight.int().T)


@pytest.mark.parametrize("name", ["bias", "activation", "x_scale", "weight_scale"])
def test_int32_results_take_no_epilogue(name):
    x, weight = integers(3, 16, seed=1), integers(4, 16, seed=2)
    value = {"bias": torch.ones(4), "activation": "silu"}.get(name, 2.0)
    with pytest.raises(ValueError, match=f"{name} is given; it must be None where out_dtype is torch.int32"):
        prefill_matmul(x, weight, **{name: value}, out_dtype=torch.int32)


def test_int32_results_need_int8_operands():
    x = torch.ones(3, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"out_dtype is torch\.int32; under x of torch\.bfloat16"):
        prefill_matmul(x, x, out_dtype=torch.int32)


def test_sums_that_int32_does_not_hold_are_refused():
    x = torch.zeros(1, 2**17, dtype=torch.int8)
    with pytest.raises(ValueError, match="x has 131072 in_features; in int8 it must have at most 131071"):
        prefill_matmul(x, x)
