import numpy as np
import pytest
import torch
from decodetax.kernels import rounding

# Every float16 as float32: all binades and ties of float8. For bfloat16, both halves of float32 matter.
FLOAT16 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
PATTERNS = np.random.default_rng(0).integers(0, 2**32, 2**18, dtype=np.uint32)
TIES = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000
FLOAT32 = np.concatenate([PATTERNS, TIES, TIES - 1, TIES + 1]).view(np.float32)


@pytest.mark.parametrize(
    "encode", [rounding.bf16_codes, rounding.BF16.encode], ids=["on_the_bits", "by_the_formula"]
)
def test_bfloat16_rounds_like_torch(encode):
    values = FLOAT32[~np.isnan(FLOAT32)]
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(encode(values), expected)


@pytest.mark.parametrize("encode", [rounding.bf16_codes, rounding.BF16.encode])
def test_bfloat16_of_nan_is_nan(encode):
    codes = encode(FLOAT32[np.isnan(FLOAT32)])
    assert (codes == 0x7FFF).all()
    assert np.isnan(rounding.bf16_values(codes)).all()


def test_bfloat16_values_are_exact():
    codes = np.arange(2**16, dtype=np.uint16)
    expected = torch.from_numpy(codes.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(rounding.bf16_values(codes), expected)


FLOAT8 = pytest.mark.parametrize(
    ("form", "values", "dtype"),
    [
        (rounding.E4M3, rounding.E4M3_VALUES, torch.float8_e4m3fn),
        (rounding.E5M2, rounding.E5M2_VALUES, torch.float8_e5m2),
    ],
    ids=["e4m3", "e5m2"],
)


@FLOAT8
def test_float8_values_are_exact(form, values, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(values, codes.view(dtype).float().numpy())
    finite = np.isfinite(values)
    np.testing.assert_array_equal(form.encode(values[finite]), codes.numpy()[finite])


@FLOAT8
def test_float8_rounds_like_torch_and_saturates(form, values, dtype):
    largest = torch.finfo(dtype).max
    numbers = FLOAT16[~np.isnan(FLOAT16)]
    within = torch.from_numpy(np.clip(numbers, -largest, largest))
    np.testing.assert_array_equal(form.encode(numbers), within.to(dtype).view(torch.uint8).numpy())
    assert (form.encode(np.float32([np.nan, -np.nan])) == 0x7F).all()
    np.testing.assert_array_equal(values[form.encode(np.float32([np.inf, -np.inf]))], [largest, -largest])


@FLOAT8
def test_rounding_toward_zero_never_grows(form, values, dtype):
    largest = torch.finfo(dtype).max
    numbers = np.clip(FLOAT16[np.isfinite(FLOAT16)], -largest, largest)
    truncated = values[form.encode(numbers, toward_zero=True)]
    assert (np.abs(truncated) <= np.abs(numbers)).all()
    assert (np.abs(truncated) <= np.abs(values[form.encode(numbers)])).all()
    assert np.abs(truncated).max() == largest
