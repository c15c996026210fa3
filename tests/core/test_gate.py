"""The gate's arithmetic: tolerances, row errors, verdicts."""

import math

import pytest
import torch
from decodetax.harness.core.gate import (
    attention_products,
    judge,
    lse_error,
    row_errors,
    sum_roundings,
    sum_tolerance,
    tolerance,
    unit_roundoff,
)
from hypothesis import given
from hypothesis import strategies as st

INF, NAN = math.inf, math.nan


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, 2**-8), (torch.float16, 2**-11), (torch.float32, 2**-24)],
    ids=["bf16", "fp16", "fp32"],
)
def test_unit_roundoff_is_half_the_distance_from_one_to_the_next_number(dtype, expected):
    assert unit_roundoff(dtype) == expected


@pytest.mark.parametrize(
    ("dtype", "reduction", "expected"),
    [
        pytest.param(torch.bfloat16, 1, 0.007812619, id="bf16, no sum"),
        pytest.param(torch.bfloat16, 4096, 0.007820129, id="bf16, long sum"),
        pytest.param(torch.float16, 4096, 0.000984192, id="fp16, long sum"),
        pytest.param(torch.float32, 1, 2.384186e-7, id="fp32, no sum"),
        pytest.param(torch.float32, 4096, 7.748604e-6, id="fp32, long sum"),
    ],
)
def test_tolerance_of_one_rounding(dtype, reduction, expected):
    assert tolerance(dtype, reduction=reduction) == pytest.approx(expected, rel=1e-6)


def test_tolerance_grows_with_roundings_and_with_the_reduction():
    few = tolerance(torch.bfloat16, reduction=64)
    assert tolerance(torch.bfloat16, reduction=64, roundings=3) > 1.5 * few
    assert tolerance(torch.float32, reduction=400) > 1.5 * tolerance(torch.float32, reduction=100)


@pytest.mark.parametrize(("ranks", "squares"), [(1, 0.0), (2, 1.0), (3, 5 / 3), (4, 9 / 4)])
def test_roundings_of_a_sum_over_ranks_add_up_by_their_squares(ranks, squares):
    assert sum_roundings(ranks) ** 2 == pytest.approx(squares)


@pytest.mark.parametrize("order", ["one after another", "pairs"])
@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_over_ranks_pass_unless_an_addend_is_missing(dtype, ranks, order):
    parts = list(normal(ranks, 200, 128).to(dtype))
    expected = torch.stack(parts).double().sum(0)
    missing = expected - parts[0].double()
    while len(parts) > 1:
        parts = [parts[0] + parts[1], *parts[2:]] if order[0] == "o" else [*parts[2:], parts[0] + parts[1]]
    bound = sum_tolerance(dtype, ranks)
    assert judge(parts[0], expected, bound=bound).passed
    assert not judge(missing, expected, bound=bound).passed
    assert 0.04 * bound < row_errors(parts[0], expected).max()


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        pytest.param([3.0, 4.0], [3.0, 4.0], 0.0, id="equal"),
        pytest.param([3.0, 5.0], [3.0, 4.0], 0.2, id="one element off"),
        pytest.param([-3.0, -4.0], [3.0, 4.0], 2.0, id="sign"),
        pytest.param([0.0, 0.0], [3.0, 4.0], 1.0, id="nothing written"),
        pytest.param([0.0, 0.0], [0.0, 0.0], 0.0, id="zero row met"),
        pytest.param([0.0, 1e-30], [0.0, 0.0], INF, id="zero row missed"),
        pytest.param([NAN, 4.0], [3.0, 4.0], INF, id="NaN for a number"),
        pytest.param([3.0, 4.0], [NAN, 4.0], INF, id="number for NaN"),
        pytest.param([INF, 4.0], [3.0, 4.0], INF, id="infinity for a number"),
        pytest.param([1e30, 4.0], [INF, 4.0], INF, id="large number for infinity"),
        pytest.param([NAN, 4.0], [NAN, 4.0], 0.0, id="same NaN"),
        pytest.param([NAN, 5.0], [NAN, 4.0], 0.25, id="same NaN, another element off"),
        pytest.param([INF, 4.0], [INF, 4.0], 0.0, id="same infinity"),
        pytest.param([-INF, 4.0], [-INF, 4.0], 0.0, id="same negative infinity"),
        pytest.param([-INF, 4.0], [INF, 4.0], INF, id="infinity of the other sign"),
        pytest.param([NAN, 4.0], [INF, 4.0], INF, id="NaN for infinity"),
        pytest.param([INF, 4.0], [NAN, 4.0], INF, id="infinity for NaN"),
        pytest.param([NAN, 4.0], [4.0, NAN], INF, id="NaN elsewhere"),
    ],
)
def test_error_of_a_row(actual, expected, error):
    [found] = row_errors(torch.tensor([actual]), torch.tensor([expected], dtype=torch.float64))
    assert float(found) == pytest.approx(error)


def test_all_dimensions_but_the_last_are_rows():
    expected = normal(2, 3, 5)
    actual = expected.clone()
    actual[1, 2] *= 1.5
    errors = row_errors(actual, expected)
    assert errors.shape == (6,)
    assert errors[5] == pytest.approx(0.5)
    assert (errors[:5] == 0).all()


@pytest.mark.parametrize("shape", [(5, 4), (4,), (1, 4, 5), (4, 1)], ids=str)
def test_rejects_different_shapes(shape):
    with pytest.raises(ValueError, match=r"^actual: has shape .*expected \(4, 5\)"):
        row_errors(torch.zeros(shape), torch.zeros(4, 5))


@given(row=st.integers(0, 299), column=st.integers(0, 9), fault=st.sampled_from(["scale", "NaN", "one"]))
def test_one_wrong_row_is_found_anywhere(row, column, fault):
    expected = normal(300, 10)
    actual = expected.float()
    match fault:
        case "scale":
            actual[row] *= 1.01
        case "NaN":
            actual[row, column] = NAN
        case "one":
            actual[row, column] += 1
    verdict = judge(actual, expected, bound=tolerance(torch.float32, reduction=10))
    assert not verdict.passed
    assert verdict.worst_row == row
    assert f"row {row}," in verdict.reason
    assert "\n" not in verdict.reason


def test_verdict_within_its_tolerance_has_no_reason():
    verdict = judge(torch.ones(3, 4), torch.ones(3, 4), bound=0.0)
    assert (verdict.passed, verdict.reason, verdict.relative_error) == (True, None, 0.0)


PRODUCTS = pytest.mark.parametrize("reduction", [1, 2, 63, 64, 1000, 8191])
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"]
)


def product(dtype, reduction):
    """Operands in `dtype` and their exact product."""
    x, weight = normal(70, reduction).to(dtype), normal(90, reduction, seed=1).to(dtype)
    return x, weight, x.double() @ weight.double().T


@PRODUCTS
@DTYPES
def test_correctly_rounded_product_passes(dtype, reduction):
    _, _, exact = product(dtype, reduction)
    assert judge(exact.to(dtype), exact, bound=tolerance(dtype, reduction=reduction)).passed


@PRODUCTS
@DTYPES
def test_product_accumulated_in_float32_passes(dtype, reduction):
    x, weight, exact = product(dtype, reduction)
    actual = (x.float() @ weight.float().T).to(dtype)
    assert judge(actual, exact, bound=tolerance(dtype, reduction=reduction)).passed


def _scaled(exact, x, weight):  # noqa: ARG001
    return exact * 1.01


def _another_row(exact, x, weight):  # noqa: ARG001
    return exact[[*range(40), 39, *range(41, 70)]]


def _quarter_skipped(exact, x, weight):  # noqa: ARG001
    kept = x.shape[1] * 3 // 4
    return x[:, :kept].double() @ weight[:, :kept].double().T


def _columns_swapped(exact, x, weight):  # noqa: ARG001
    return exact[:, [*range(50), 51, 50, *range(52, 90)]]


@pytest.mark.parametrize("fault", [_scaled, _another_row, _quarter_skipped, _columns_swapped])
@PRODUCTS
@DTYPES
def test_wrong_product_fails(dtype, reduction, fault):
    x, weight, exact = product(dtype, reduction)
    wrong = fault(exact, x, weight).to(dtype)
    assert not judge(wrong, exact, bound=tolerance(dtype, reduction=reduction)).passed


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_accumulating_in_the_storage_dtype_fails(storage):
    x, weight, exact = product(storage, 1000)
    total = torch.zeros(70, 90, dtype=storage)
    for k in range(1000):
        total += x[:, k, None] * weight[None, :, k]
    assert not judge(total, exact, bound=tolerance(storage, reduction=1000)).passed


def test_products_of_attention_grow_with_the_largest_score():
    # 100 tokens and 44 elements: sqrt(144) roundoffs; a score of 5 of 44 elements adds 5 sqrt(44).
    small = attention_products(capacity=100, head_dim=44, expected_lse=torch.tensor([0.0, -INF]))
    assert small == pytest.approx(144)
    large = attention_products(capacity=100, head_dim=44, expected_lse=torch.tensor([[-5.0], [3.0]]))
    assert large == pytest.approx((12 + 5 * math.sqrt(44)) ** 2)


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([2.0, -INF], [2.5, -INF], 0.5 / 3.5),
        ([2.5, -INF], [2.5, -3.0], INF),
        ([2.5, -3.0], [2.5, -INF], INF),
        ([2.5, NAN], [2.5, -3.0], INF),
        ([NAN], [-INF], INF),
    ],
    ids=["numbers", "lost", "not empty", "not a number", "empty but not a number"],
)
def test_error_of_a_log_sum_exp(actual, expected, error):
    assert lse_error(torch.tensor(actual), torch.tensor(expected, dtype=torch.float64)) == pytest.approx(
        error
    )


def test_log_sum_exps_of_unlike_shapes_are_rejected():
    with pytest.raises(ValueError, match="shape"):
        lse_error(torch.zeros(2), torch.zeros(1, 2))
