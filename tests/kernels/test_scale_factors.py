"""Scales and soft caps at the ends of float32: rejected in one line, or computed without infinity or NaN."""

import math

import pytest
import torch
from decode_checks import assert_right, attend
from decodetax.kernels import decode_attention, decode_attention_workspace_bytes, prefill_matmul
from decodetax.kernels.scale_factors import decode_factors, matmul_factors
from kernel_inputs import decode_inputs

LARGEST = torch.finfo(torch.float32).max
TINY = torch.finfo(torch.float32).tiny
SUBNORMAL = 1e-40
LIMIT = LARGEST / math.log2(math.e)
"""Times log2(e) it is the largest number of float32: 2.3586e38."""

BELOW, ABOVE = math.nextafter(LIMIT, 0), LIMIT * (1 + 1e-7)


def small(**options):
    """One sequence of 20 tokens, two heads of 16 elements."""
    return decode_inputs([20], capacity=20, q_heads=2, kv_heads=1, head_dim=16, **options)


def factors(**numbers):
    return decode_factors(**{"head_dim": 64, "scale": None, "softcap": None, "k_scale": None, "v_scale": None} | numbers)  # fmt: skip  # noqa: E501  (one call)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "numbers",
    [
        {"scale": BELOW},
        {"scale": 1e30, "k_scale": BELOW / 1e30},
        {"scale": BELOW, "softcap": BELOW},
        {"scale": BELOW, "softcap": 2.0},
        {"scale": BELOW, "softcap": SUBNORMAL * 1e40},
        {"scale": SUBNORMAL},
        {"scale": SUBNORMAL, "softcap": BELOW},
        {"scale": 1.0, "softcap": SUBNORMAL * 100},
        {"scale": 0.0, "softcap": SUBNORMAL},
        {"scale": 1e-30, "k_scale": 1e-30, "softcap": 1e30},
        {"v_scale": LARGEST},
    ],
    ids=str,
)
def test_factors_in_range_are_finite_in_float32(numbers, sign):
    found = factors(**numbers | ({"scale": sign * numbers["scale"]} if "scale" in numbers else {}))
    for value in (found.score, found.softcap_log2 or 0.0, found.value):
        assert math.isfinite(torch.tensor(value, dtype=torch.float32).item())


TOO_LARGE = {
    "scale": ({"scale": ABOVE}, "scale is 2.35865"),
    "negative scale": ({"scale": -ABOVE}, "scale is -2.35865"),
    "largest scale": ({"scale": LARGEST}, "scale is 3.4028"),
    "product": ({"scale": 1e30, "k_scale": -1e10}, r"scale times k_scale is -1e\+40; it must be from"),
    "softcap": ({"softcap": ABOVE}, "softcap is 2.35865"),
    "small softcap": ({"scale": 1.0, "softcap": 1e-39}, "softcap is 1e-39; with scale of 1.0 it must be at least 2.939e-39"),  # noqa: E501  (one message)
    "softcap under a large scale": ({"scale": 1e38, "softcap": 0.1}, "softcap is 0.1; with scale of 1e.38 it must be at least 0.29"),  # noqa: E501  (one message)
}  # fmt: skip


@pytest.mark.parametrize(("numbers", "message"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_factor_beyond_float32_is_rejected_with_its_range(numbers, message):
    inputs = decode_inputs([5], capacity=8)
    for call in (decode_attention, decode_attention_workspace_bytes):
        with pytest.raises(ValueError, match=f"^{message}"):
            call(**inputs, **numbers)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["scale", "softcap", "k_scale", "v_scale"])
def test_infinite_and_nan_scales_are_rejected(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value}; it must be finite in float32"):
        decode_attention(**decode_inputs([5], capacity=8), **{name: value})


@pytest.mark.parametrize("scale", [BELOW, -BELOW])
def test_largest_scale_of_scores_of_zero_gives_the_mean(scale):
    inputs = small()
    inputs["q"].zero_()
    assert_right(inputs, scale=scale)


@pytest.mark.parametrize(
    ("scale", "softcap"),
    [(SUBNORMAL, None), (-SUBNORMAL, 2.0), (SUBNORMAL, SUBNORMAL), (-SUBNORMAL, BELOW), (0.0, 1e-38)],
)
def test_smallest_scales_give_the_mean(scale, softcap):
    assert_right(small(), scale=scale, softcap=softcap)


@pytest.mark.parametrize("softcap", [3e-39, TINY, 1e-30])
def test_soft_cap_near_zero_leaves_equal_scores(softcap):
    assert_right(small(), scale=1.0, softcap=softcap)


@pytest.mark.parametrize("softcap", [1e30, 1e38, BELOW])
@pytest.mark.parametrize("scale", [0.5, 1e-5])
def test_soft_cap_beyond_all_scores_changes_nothing(scale, softcap):
    inputs = small(dtype=torch.float32)
    inputs["q"] *= 0.1 / scale
    output, _ = attend(inputs, scale=scale, softcap=softcap)
    torch.testing.assert_close(output, attend(inputs, scale=scale)[0], rtol=1e-5, atol=1e-6)
    assert_right(inputs, scale=scale, softcap=softcap)


def test_soft_cap_beyond_all_scores_keeps_small_scores_apart():
    found = factors(scale=1e-5, softcap=BELOW)
    assert (found.score, found.softcap_log2) == (pytest.approx(1e-5 * math.log2(math.e)), None)


def test_float8_bits_leave_less_room():
    limit = LIMIT / 256
    assert factors(scale=limit, cache_factor=256.0).score == pytest.approx(LARGEST)
    with pytest.raises(ValueError, match=r"^scale is 9.3\d*e\+35; it must be from -9.21"):
        factors(scale=9.3e35, cache_factor=256.0)
    with pytest.raises(ValueError, match=r"^v_scale is 2e\+36; it must be from -1.32922"):
        factors(v_scale=2e36, cache_factor=256.0)


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("x_scale", "weight_scale", "value"),
    [(1e-25, 1e-25, 1.6e-15), (1e-15, -1e-30, -1.6e-10), (1e-40, 1.0, 1.6e-5), (1e20, 1e-60, 1.6e-5)],
)
def test_number_scales_multiply_one_after_the_other(x_scale, weight_scale, value):
    x, weight = torch.full((1, 16), 1e30), torch.full((1, 16), 1e4)
    found = prefill_matmul(x, weight, x_scale=x_scale, weight_scale=weight_scale)
    assert found.item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("scales", [(1e30, 1e30), (-LARGEST, LARGEST), (1e30, torch.tensor(1e30))])
def test_large_number_scales_of_zero_give_zero(scales):
    x, weight = torch.zeros(1, 16), torch.ones(1, 16)
    assert prefill_matmul(x, weight, x_scale=scales[0], weight_scale=scales[1]).item() == 0.0


def test_product_in_range_stays_one_factor():
    assert matmul_factors(0.5, 3, operand_factor=256.0, device=CPU) == (384.0, None, None)
    assert matmul_factors(0.0, LARGEST, operand_factor=1.0, device=CPU) == (0.0, None, None)
    with pytest.raises(ValueError, match=r"^x_scale is 2e\+36; it must be from -1.32922"):
        matmul_factors(2e36, None, operand_factor=256.0, device=CPU)
