"""Scales of decode attention: 8-bit queries and output, scales per token and head, scalars on the device."""

import importlib
import math

import pytest
import torch
from decode_checks import A100_LIMITS, assert_right, attend, balanced, decode_error, split
from decodetax.harness.core.gate import row_errors, tolerance
from decodetax.kernels import decode_attention, reference
from kernel_inputs import (
    INT8_UNIT,
    NAN,
    NARROW_DTYPES,
    by_default,
    decode_inputs,
    dtype_name,
    normal,
    poisoned,
)

module = importlib.import_module("decodetax.kernels.decode_attention")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
QUERIES = (E4M3, E5M2, torch.int8)
LARGEST = {E4M3: 448.0, E5M2: 57344.0}


@pytest.fixture(params=["instructions", "bits"])
def float8(request, monkeypatch):
    """GPUs with and without instructions for e4m3."""
    if request.param == "bits":
        monkeypatch.setattr(module, "gpu_limits", lambda _device: A100_LIMITS)


def quantized(inputs, dtype):
    """The inputs with queries in an 8-bit dtype, and their scale."""
    unit = INT8_UNIT if dtype == torch.int8 else 0.5
    codes = inputs["q"].float() / unit
    codes = codes.round().clamp(-127, 127) if dtype == torch.int8 else codes
    return inputs | {"q": codes.to(dtype)}, unit


def small(lengths=(18, 0, 16), **options):
    return decode_inputs(
        list(lengths), **{"q_heads": 6, "kv_heads": 2, "head_dim": 24, "capacity": 40} | options
    )


@pytest.mark.usefixtures("float8")
@pytest.mark.parametrize("dtype", QUERIES, ids=dtype_name)
@pytest.mark.parametrize(
    "cache_dtype",
    by_default(
        {E4M3, torch.bfloat16, torch.float32}, [*NARROW_DTYPES, torch.bfloat16, torch.float16, torch.float32]
    ),
)
def test_8_bit_queries(dtype, cache_dtype):
    inputs, unit = quantized(small(cache_dtype=cache_dtype, query_tokens=2), dtype)
    output = decode_attention(**inputs, tiling=balanced(2), q_scale=unit, k_scale=0.1, v_scale=0.1)
    assert output.dtype == (torch.bfloat16 if cache_dtype.itemsize == 1 else cache_dtype)
    expected, lse = reference.decode_attention(**inputs, q_scale=unit, k_scale=0.1, v_scale=0.1)
    assert decode_error(output, expected, inputs, lse) <= 1


@pytest.mark.usefixtures("float8")
@pytest.mark.parametrize("dtype", QUERIES, ids=dtype_name)
def test_every_code_of_an_8_bit_query_is_exact(dtype):
    # The key of sequence i selects element i of each head as score, which with one token is the log-sum-exp.
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).view(16, 16)
    values = (codes if dtype == torch.int8 else codes.float()).double()
    _, lse = decode_attention(
        codes.expand(16, 16, 16).contiguous(),
        torch.eye(16).view(16, 1, 1, 16),
        torch.ones(16, 1, 1, 16),
        torch.ones(16, dtype=torch.int32),
        scale=1.0,
        return_lse=True,
    )
    finite = values.isfinite().all(1)
    torch.testing.assert_close(lse.T[finite].double(), values[finite], rtol=1e-6, atol=0)
    # Infinity or NaN times the zeros of the key is NaN.
    assert lse.T[~finite].isnan().all()


@pytest.mark.usefixtures("float8")
def test_nan_query_reaches_only_its_own_head():
    inputs, unit = quantized(small((20,)), E4M3)
    inputs["q"].view(torch.uint8)[0, 4, 3] = 0x7F
    output = decode_attention(**inputs, q_scale=unit)
    assert output[0, 4].isnan().all()
    assert output[0, [0, 1, 2, 3, 5]].isfinite().all()


QUERY_SCALES = {
    "number": lambda: -0.7,
    "scalar": lambda: torch.tensor(0.7),
    "bf16": lambda: torch.tensor([0.75], dtype=torch.bfloat16),
    "q_heads": lambda: normal(6, dtype=torch.float32, seed=5),
    "kv_heads": lambda: normal(2, dtype=torch.float32, seed=5),
    "sequences_and_kv_heads": lambda: normal(3, 2, dtype=torch.float32, seed=5),
    "tokens_and_heads": lambda: normal(3, 2, 6, dtype=torch.float32, seed=5),
    "strided": lambda: normal(6, 2, 3, dtype=torch.float32, seed=5).permute(2, 1, 0),
}


@pytest.mark.parametrize("kind", QUERY_SCALES)
def test_query_scale_shapes(kind):
    assert_right(small(query_tokens=2), tiling=balanced(3), q_scale=QUERY_SCALES[kind]())


@pytest.mark.parametrize("page_size", [0, 5, 16], ids=["contiguous", "pages_5", "pages_16"])
@pytest.mark.parametrize("tiling", [split(2), balanced(3, block_n=32)], ids=["split", "balanced"])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [(torch.bfloat16, torch.int8), (torch.float16, E4M3), (torch.float32, E5M2), (torch.bfloat16, None)],
    ids=["bf16_int8", "fp16_e4m3", "fp32_e5m2", "bf16"],
)
def test_scales_per_token_and_head(page_size, tiling, dtype, cache_dtype):
    # Dead tokens have scales of NaN, which must not be read.
    inputs = small((33, 0, 1, 17), page_size=page_size, dtype=dtype, cache_dtype=cache_dtype, query_tokens=2)
    assert_right(
        inputs, tiling=tiling, **token_scales(inputs, INT8_UNIT if cache_dtype == torch.int8 else 1.0)
    )


def token_scales(inputs, size):
    """Scales per token and head; those of dead tokens are NaN."""
    shape = inputs["k_cache"].shape[:3]
    live = torch.zeros(shape, dtype=torch.bool)
    for sequence, length in enumerate(inputs["context_lens"].tolist()):
        for token in range(length):
            page, slot = sequence, token
            if "block_table" in inputs:
                page, slot = int(inputs["block_table"][sequence, token // shape[1]]), token % shape[1]
            live[page, slot] = True
    return {
        name: torch.where(live, size * (normal(*shape, dtype=torch.float32, seed=seed) + 0.5), NAN)
        for seed, name in enumerate(("k_scale", "v_scale"), start=8)
    }


@pytest.mark.parametrize("name", ["k_scale", "v_scale"])
def test_scales_per_token_lie_anywhere_in_memory(name):
    inputs = small((33, 16), cache_dtype=E4M3)
    shape = inputs["k_cache"].shape[:3]
    scales = normal(2, 2, 3 * shape[1], dtype=torch.float16, seed=9).transpose(1, 2)[:, ::3]
    assert scales.shape == shape
    assert_right(inputs, tiling=balanced(2), **{name: scales}, softcap=2.0)


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e9, 1e30], ids=str)
def test_value_scales_of_any_size_keep_small_probabilities(size):
    # P in float16 holds products with the scales because they are divided by their largest power of two.
    inputs = small((40, 17), cache_dtype=torch.int8, dtype=torch.bfloat16)
    scales = token_scales(inputs, size)["v_scale"] * torch.logspace(-3, 3, 40)[:, None]
    assert_right(inputs, tiling=balanced(3), v_scale=scales, scale=0.01)


@pytest.mark.parametrize("window", [None, 7])
def test_scales_per_sequence_and_head(window):
    inputs = small(cache_dtype=E4M3, window=window)
    k_scale, v_scale = (normal(3, 2, dtype=torch.float32, seed=seed) for seed in (8, 9))
    assert_right(inputs, tiling=balanced(3), window=window, k_scale=k_scale, v_scale=v_scale)


def scaled_output(inputs, out_dtype, out_scale, **options):
    """The output written over NaN, as float64, and the oracle's."""
    out = poisoned(*inputs["q"].shape[:-1], inputs["v_cache"].shape[-1], dtype=torch.float32).to(out_dtype)
    written = decode_attention(**inputs, out=out, out_scale=out_scale, **options)
    assert written is out
    expected, _ = reference.decode_attention(**inputs, out_scale=out_scale)
    return out.float().double(), expected


@pytest.mark.usefixtures("float8")
@pytest.mark.parametrize("out_dtype", [E4M3, E5M2, torch.float16, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("tiling", [split(1), split(3)], ids=["whole", "split"])
def test_output_dtypes(out_dtype, tiling):
    inputs = small()
    output, expected = scaled_output(inputs, out_dtype, 0.01, tiling=tiling)
    # Rounded as probabilities to bfloat16, and once to the dtype of the output.
    bound = tolerance(torch.bfloat16, reduction=40) + tolerance(out_dtype, reduction=40)
    assert float(row_errors(output, expected).max()) <= bound


@pytest.mark.usefixtures("float8")
@pytest.mark.parametrize("out_dtype", [E4M3, E5M2], ids=dtype_name)
def test_float8_output_saturates_and_keeps_nan(out_dtype):
    inputs = small((1,), head_dim=16)
    large = LARGEST[out_dtype]
    values = torch.tensor([large, large * 1.0625, 1e30, -1e30, math.inf, -math.inf, NAN, 0.0, -0.0])
    inputs["v_cache"][0, 0, :, :9] = values.bfloat16()
    output, _ = scaled_output(inputs, out_dtype, None)
    right = torch.tensor([large, large, large, -large, large, -large, NAN, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(output[0, 0, :9], right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("float8")
@pytest.mark.parametrize("out_dtype", [E4M3, E5M2], ids=dtype_name)
def test_float8_output_rounds_as_torch(out_dtype):
    # One token: the output is its value. Every code, the middle of each two, and one float32 beside it.
    codes = torch.arange(256, dtype=torch.uint8).view(out_dtype).float()
    codes = codes[codes.isfinite()].sort().values
    middles = (codes[1:] + codes[:-1]) / 2
    beside = torch.stack(
        [middles, middles.nextafter(torch.tensor(9e9)), middles.nextafter(torch.tensor(-9e9))]
    )
    values = torch.cat([codes, beside.flatten()])
    values = torch.nn.functional.pad(values, (0, -len(values) % 256)).view(-1, 1, 1, 256)
    batch = len(values)
    output = decode_attention(
        torch.ones(batch, 1, 16), torch.ones(batch, 1, 1, 16), values, torch.ones(batch, dtype=torch.int32),
        out_dtype=out_dtype,
    )  # fmt: skip
    assert torch.equal(output.view(torch.uint8) & 0x7F, values[:, 0].to(out_dtype).view(torch.uint8) & 0x7F)
    torch.testing.assert_close(output.float(), values[:, 0].to(out_dtype).float(), rtol=0, atol=0)


def test_output_dtype_is_that_of_out():
    inputs = small((20,))
    for dtype in (torch.float32, E4M3):
        wide = decode_attention(**inputs, out_dtype=dtype)
        out = torch.empty_like(wide)
        assert decode_attention(**inputs, out=out) is out
        assert torch.equal(out.view(torch.uint8), wide.view(torch.uint8))


NUMBERS = {"scale": -0.3, "softcap": 2.5, "q_scale": 0.75, "k_scale": 1.5, "v_scale": -0.5, "out_scale": 0.25}


@pytest.mark.parametrize("name", NUMBERS)
def test_scalar_on_the_device_is_as_the_number(name):
    inputs = small((33, 16), dtype=torch.float32)
    on_device = {name: torch.full(() if name != "scale" else (1,), NUMBERS[name])}
    numbers = attend(inputs, tiling=split(2), **NUMBERS)
    for actual, expected in zip(attend(inputs, tiling=split(2), **NUMBERS | on_device), numbers, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_all_scalars_on_the_device_change_between_launches():
    inputs = small((33, 16))
    scalars = {name: torch.tensor(number) for name, number in NUMBERS.items()}
    assert_right(inputs, tiling=balanced(3), **scalars)
    for scalar in scalars.values():
        scalar.mul_(1.25)
    assert_right(inputs, tiling=balanced(3), **scalars)


@pytest.mark.parametrize("size", [1, 1e30, 1e-30, 2.0**127], ids=str)
@pytest.mark.parametrize("cache_dtype", NARROW_DTYPES, ids=dtype_name)
def test_query_with_one_channel_a_million_times_larger(size, cache_dtype):
    inputs = small((33, 16), cache_dtype=cache_dtype)
    inputs["q"] = (inputs["q"].float() / 8e6 * size).bfloat16()
    inputs["q"][..., 5] = size
    # Where keys have 0 in that channel, the other channels alone decide.
    inputs["k_cache"].view(torch.uint8)[..., 5] = 0
    unit = INT8_UNIT if cache_dtype == torch.int8 else 1.0
    assert_right(inputs, scale=1e6 * unit / size if size < 1e38 else 1e6 * unit * 2.0**-127)


def test_key_scale_of_0_with_overflowing_products_gives_the_mean():
    inputs = small((33, 16), dtype=torch.float32)
    inputs["q"] *= 1e30
    inputs["k_cache"] *= 1e30
    for k_scale in (0.0, torch.zeros(()), torch.zeros(2), torch.zeros(2, 2)):
        assert_right(inputs, tiling=split(2), k_scale=k_scale)


def faults():
    """Arguments of the kernel and of the oracle that differ in one scale."""
    tokens = torch.linspace(0.5, 1.5, 80).view(2, 20, 2) * torch.tensor([1.0, 2.0])
    sequences = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    return {
        "k_scale_of_the_next_token": ({"k_scale": tokens.roll(1, 1)}, {"k_scale": tokens}),
        "v_scale_of_another_head": ({"v_scale": tokens.flip(2)}, {"v_scale": tokens}),
        "k_scale_of_another_sequence": ({"k_scale": sequences.flip(0)}, {"k_scale": sequences}),
        "v_scale_of_another_sequence": ({"v_scale": sequences.flip(0)}, {"v_scale": sequences}),
        "q_scale_of_another_head": (
            {"q_scale": torch.arange(1.0, 7.0).flip(0)},
            {"q_scale": torch.arange(1.0, 7.0)},
        ),
        "output_multiplied_by_its_scale": ({"out_scale": 0.5}, {"out_scale": 2.0}),
    }


@pytest.mark.parametrize(("actual", "right"), faults().values(), ids=faults().keys())
def test_fault_in_a_scale_is_found(actual, right):
    inputs = small((20, 17), capacity=20)
    output = decode_attention(**inputs, **actual)
    expected, lse = reference.decode_attention(**inputs, **right)
    assert decode_error(output, expected, inputs, lse) > 1


PACKED_SCALES = {
    "tokens_and_heads": lambda: normal(9, 4, dtype=torch.float32, seed=5),
    "sequences_and_kv_heads": lambda: normal(3, 2, dtype=torch.float32, seed=5),
}


@pytest.mark.parametrize("kind", PACKED_SCALES)
def test_scales_of_packed_queries(kind):
    # Two tokens after those of the last sequence belong to none, and no scale either.
    inputs = small((18, 3, 16), q_heads=4, cache_dtype=E4M3)
    inputs |= {"q": normal(9, 4, 24, dtype=torch.bfloat16, seed=1), "cu_seqlens": torch.tensor([0, 4, 4, 7])}
    k_scale, v_scale = (normal(3, 2, dtype=torch.float32, seed=seed) for seed in (8, 9))
    assert_right(inputs, tiling=balanced(3), q_scale=PACKED_SCALES[kind](), k_scale=k_scale, v_scale=v_scale)


@pytest.mark.parametrize("page_size", [0, 5], ids=["contiguous", "paged"])
def test_empty_batch_gives_an_empty_result(page_size):
    inputs = small((18,), page_size=page_size)
    for name in inputs if page_size == 0 else ("q", "context_lens", "block_table"):
        inputs[name] = inputs[name][:0]
    output, lse = decode_attention(**inputs, return_lse=True)
    assert output.shape == (0, 6, 24)
    assert lse.shape == (0, 6)


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [(torch.bfloat16, 3e-4, 2e-3), (torch.float16, 3e-5, 3e-4), (torch.float32, 0.0, 1e-6)],
    ids=dtype_name,
)
def test_error_of_probabilities_rounded_to_the_dtype_of_the_values(dtype, least, most):
    inputs = small((300,), q_heads=2, kv_heads=1, head_dim=64, capacity=300, dtype=dtype)
    output = decode_attention(**inputs, out_dtype=torch.float32)
    expected, _ = reference.decode_attention(**inputs)
    assert least <= float(row_errors(output, expected).max()) <= most
