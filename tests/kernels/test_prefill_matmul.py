import dataclasses
import importlib

import pytest
import torch
from decodetax.kernels import MatmulTiling, prefill_matmul, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import DTYPES, dtype_name, normal, poisoned, worst_error
from triton.runtime.interpreter import interpreter_builder

module = importlib.import_module("decodetax.kernels.prefill_matmul")


def tiling(num_splits=1, *, block_m=16, block_n=32, block_k=16, group_m=3):
    return MatmulTiling(
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        group_m=group_m,
        num_splits=num_splits,
        num_warps=4,
        num_stages=2,
    )


def operands(rows, out_features, in_features, dtype=torch.bfloat16):
    return normal(rows, in_features, dtype=dtype, seed=1), normal(
        out_features, in_features, dtype=dtype, seed=2
    )


def positive_operands(*shape):
    """Sums without cancellation: the error of a row of one column has no other to be measured against."""
    return [tensor.abs() for tensor in operands(*shape)]


def error(output, x, weight, bias=None):
    expected = reference.prefill_matmul(x, weight, bias=bias)
    return worst_error(output, expected, reduction=x.shape[-1], roundings=1)


def assert_right(x, weight, bias=None, **options):
    out = poisoned(*x.shape[:-1], weight.shape[0], dtype=x.dtype)
    assert prefill_matmul(x, weight, bias=bias, out=out, **options) is out
    assert error(out, x, weight, bias) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 63, 65, 127, 129])
def test_any_number_of_rows_agrees_with_the_oracle(rows, dtype):
    assert_right(*operands(rows, 65, 96, dtype))


@pytest.mark.parametrize("out_features", [1, 31, 32, 33])
@pytest.mark.parametrize("in_features", [1, 15, 16, 17, 49])
@pytest.mark.parametrize("num_splits", [1, 2, 7])
def test_any_features_and_splits_agree_with_the_oracle(out_features, in_features, num_splits):
    # 49 features are 4 steps of 16: 7 splits are more than there are steps.
    assert_right(*positive_operands(17, out_features, in_features), tiling=tiling(num_splits))


@pytest.mark.parametrize("group_m", [1, 2, 3, 8])
def test_every_tile_is_computed_in_any_group_order(group_m):
    assert_right(*operands(16 * 5 + 1, 32 * 3 + 1, 16), tiling=tiling(group_m=group_m))


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("bias_dtype", [torch.float16, torch.float32], ids=dtype_name)
def test_bias_is_added_before_the_one_rounding(bias_dtype, num_splits):
    x, weight = operands(5, 33, 48, torch.float16)
    bias = normal(33, dtype=bias_dtype, seed=3)
    assert_right(x, weight, bias, tiling=tiling(num_splits))
    # 2048 + 1 + 1: rounded after each addition float16 would stay at 2048.
    ones = torch.ones(1, 1, dtype=torch.float16)
    rounded_once = prefill_matmul(2048 * ones, ones, bias=torch.tensor([2.0], dtype=bias_dtype))
    assert rounded_once.item() == 2050


def test_leading_dimensions_are_rows():
    x, weight = normal(2, 3, 5, 24, dtype=torch.bfloat16, seed=1), normal(9, 24, dtype=torch.bfloat16, seed=2)
    assert_right(x, weight)
    assert_right(x[0, 0, 0], weight)
    # A transposed pair of leading dimensions has no one stride between rows.
    assert_right(x.transpose(0, 1), weight)


@pytest.mark.parametrize("num_splits", [1, 2])
def test_operands_and_result_keep_their_strides(num_splits):
    x = normal(48, 17, dtype=torch.bfloat16, seed=1).T
    weight = normal(33, 3 * 48, dtype=torch.bfloat16, seed=2)[:, ::3]
    bias = normal(33, 2, dtype=torch.bfloat16, seed=3)[:, 0]
    out = poisoned(33, 2 * 17, dtype=torch.bfloat16)
    result = prefill_matmul(x, weight, bias=bias, out=out[:, :17].T, tiling=tiling(num_splits))
    assert error(result, x, weight, bias) <= 1
    assert out[:, 17:].isnan().all()


def test_no_element_outside_the_operands_is_read():
    x, weight = poisoned(19, 64, dtype=torch.bfloat16), poisoned(35, 64, dtype=torch.bfloat16)
    x[:17, :49], weight[:33, :49] = operands(17, 33, 49)
    assert_right(x[:17, :49], weight[:33, :49], tiling=tiling(2))


@pytest.mark.parametrize("num_splits", [1, 3])
def test_the_same_bits_every_run(num_splits):
    x, weight = operands(17, 33, 100)
    first = prefill_matmul(x, weight, tiling=tiling(num_splits))
    assert torch.equal(first, prefill_matmul(x, weight, tiling=tiling(num_splits)))


def test_not_a_number_and_infinity_reach_their_rows_and_columns_alone():
    x, weight = operands(5, 6, 40)
    x[2, 7], weight[3, 0] = float("nan"), float("inf")
    result = prefill_matmul(x, weight)
    assert result[2].isnan().all()
    assert not result[[0, 1, 3, 4], 3].isfinite().any()
    assert result[[0, 1, 3, 4]][:, [0, 1, 2, 4, 5]].isfinite().all()


@pytest.mark.parametrize("num_splits", [1, 2])
def test_offset_passes_32_bits(monkeypatch, num_splits):
    debug = dataclasses.replace(interpreter_builder.options, debug=True)
    monkeypatch.setattr(interpreter_builder, "options", debug)  # a 32-bit overflow raises
    far = 2**31 + 16
    storage = torch.empty(far + 2**16, dtype=torch.bfloat16)  # of which only the touched pages take memory
    x = storage.as_strided((2, 32), (far, 1), 0)
    weight = storage.as_strided((32, 2), (1, far), 2**12).T
    out = storage.as_strided((2, 2), (far, 1), 2**13)
    for tensor, values in zip((x, weight), operands(2, 2, 32), strict=True):
        tensor.copy_(values)
    out.fill_(float("nan"))
    assert_right(x, weight, tiling=tiling(num_splits))
    prefill_matmul(x, weight, out=out, tiling=tiling(num_splits))
    assert error(out, x, weight) <= 1
    # K itself may be strided past 2^31.
    assert_right(x.T[:2], weight.T[:2], tiling=tiling(num_splits))


def test_a_reduction_that_skips_a_split_would_be_noticed(monkeypatch):
    x, weight = operands(3, 5, 64)
    reduce = module._split_k_reduce_kernel

    class SkipsLastSplit:
        def __getitem__(self, grid):
            return lambda **named: reduce[grid](**named | {"NUM_SPLITS": named["NUM_SPLITS"] - 1})

    monkeypatch.setattr(module, "_split_k_reduce_kernel", SkipsLastSplit())
    assert error(prefill_matmul(x, weight, tiling=tiling(4)), x, weight) > 1


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_one_missing_product_would_be_noticed(dtype):
    x, weight = operands(3, 5, 100, dtype)
    assert error(prefill_matmul(x[:, :-1], weight[:, :-1]), x, weight) > 1


@settings(max_examples=25)
@given(
    rows=st.integers(1, 70),
    out_features=st.integers(1, 70),
    in_features=st.integers(1, 70),
    transposed=st.booleans(),
    num_splits=st.integers(1, 5),
    group_m=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape_agrees_with_the_oracle(
    rows, out_features, in_features, transposed, num_splits, group_m, dtype
):
    x, weight = positive_operands(rows, out_features, in_features, dtype)
    if transposed:
        x, weight = x.T.contiguous().T, weight.T.contiguous().T
    assert_right(x, weight, tiling=tiling(num_splits, group_m=group_m))
