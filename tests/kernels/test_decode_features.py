"""Features of decode attention: 8-bit caches, scales, sliding window, softcap, sinks, query tokens."""

import importlib
import itertools
import math

import pytest
import torch
from decode_checks import A100_LIMITS, TILINGS, assert_right, attend, balanced, decode_error, split
from decodetax.kernels import decode_attention, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import (
    DTYPES,
    INT8_UNIT,
    NAN,
    NARROW_DTYPES,
    by_default,
    decode_inputs,
    dtype_name,
    normal,
)

module = importlib.import_module("decodetax.kernels.decode_attention")
any_tiling = pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
either_cache = pytest.mark.parametrize("page_size", [0, 5], ids=["contiguous", "paged"])


@pytest.fixture(params=["float8_e4m3fn", "float8_e4m3fn_from_bits", "float8_e5m2", "int8"])
def cache_dtype(request, monkeypatch):
    """Each 8-bit dtype; e4m3 also as on GPUs without instructions for it."""
    name = request.param.removesuffix("_from_bits")
    if name != request.param:
        monkeypatch.setattr(module, "gpu_limits", lambda _device: A100_LIMITS)
    return getattr(torch, name)


def scales(cache_dtype):
    """Scales that give values of an 8-bit cache a size of 1."""
    unit = INT8_UNIT if cache_dtype == torch.int8 else 1.0
    return {"k_scale": unit, "v_scale": unit}


@pytest.mark.parametrize("dtype", by_default({torch.bfloat16}, DTYPES))
@either_cache
def test_8_bit_caches(cache_dtype, dtype, page_size):
    inputs = decode_inputs(
        [33, 0, 16], q_heads=3, kv_heads=1, head_dim=24, capacity=40, page_size=page_size,
        dtype=dtype, cache_dtype=cache_dtype,
    )  # fmt: skip
    assert_right(inputs, tiling=balanced(2), **scales(cache_dtype))


def all_codes(cache_dtype):
    """All 256 codes: in the cache dtype, and as float64."""
    codes = torch.arange(256, dtype=torch.uint8).view(cache_dtype)
    return codes, (codes if cache_dtype == torch.int8 else codes.float()).double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=dtype_name)
def test_every_code_of_an_8_bit_value_is_exact(cache_dtype, dtype):
    codes, values = all_codes(cache_dtype)
    output, _ = attend(
        {
            "q": normal(1, 1, 16, dtype=dtype, seed=1),
            "k_cache": torch.ones(1, 1, 1, 16).to(cache_dtype),
            "v_cache": codes.view(1, 1, 1, 256),
            "context_lens": torch.ones(1, dtype=torch.int32),
        }
    )
    torch.testing.assert_close(output[0, 0].double(), values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", by_default({torch.bfloat16}, [torch.bfloat16, torch.float32]))
def test_every_code_of_an_8_bit_key(cache_dtype, dtype):
    # Each query selects one element of the key as its score; with one token that is the log-sum-exp.
    codes, values = all_codes(cache_dtype)
    finite = values.isfinite()
    key = torch.where(finite, torch.arange(256), 0).to(torch.uint8).view(cache_dtype)
    _, lse = attend(
        {
            "q": torch.eye(256, dtype=dtype).view(1, 256, 256),
            "k_cache": key.expand(1, 1, 4, 256).contiguous(),
            "v_cache": torch.ones(1, 1, 4, 16).to(cache_dtype),
            "context_lens": torch.ones(1, dtype=torch.int32),
        },
        scale=1.0,
    )
    assert codes.dtype == cache_dtype
    torch.testing.assert_close(lse[0].double(), values.where(finite, 0.0), rtol=1e-6, atol=0)


NAN_CODES = {torch.float8_e4m3fn: [0x7F, 0xFF], torch.float8_e5m2: [0x7D, 0xFF], torch.int8: []}


@pytest.mark.parametrize("token", [3, 19], ids=["whole_tile", "last_token"])
def test_nan_code_of_an_8_bit_cache_reaches_the_output(cache_dtype, token):
    for code in NAN_CODES[cache_dtype]:
        inputs = decode_inputs([20], q_heads=4, capacity=20, head_dim=16, cache_dtype=cache_dtype)
        inputs["v_cache"].view(torch.uint8)[0, token, 0, 3] = code
        inputs["k_cache"].view(torch.uint8)[0, token, 1, 3] = code
        output, _ = attend(inputs, tiling=split(1))
        assert output[0, :2, 3].isnan().all()
        assert output[0, :2, :3].isfinite().all()
        assert output[0, 2:].isnan().all()


@pytest.mark.parametrize("size", by_default({1e30}, [3e4, 1e30, 1e-30]))
def test_8_bit_caches_with_large_and_small_bfloat16_queries(cache_dtype, size):
    inputs = decode_inputs([20], q_heads=4, head_dim=24, capacity=20, cache_dtype=cache_dtype)
    inputs["q"] = inputs["q"] * size
    inputs["q"][0, 1] = 0
    assert_right(inputs, scale=0.2 / size, **scales(cache_dtype))


SCALE_SHAPES = {
    "number": lambda values: float(values[0]),
    "scalar": lambda values: values[0],
    "one": lambda values: values[:1],
    "heads": lambda values: values,
    "strided": lambda values: torch.stack([values, torch.full_like(values, NAN)], 1)[:, 0],
}


@pytest.mark.parametrize(
    "shape", by_default({"number", "heads", "strided"}, SCALE_SHAPES.values(), SCALE_SHAPES.keys())
)
@pytest.mark.parametrize("name", ["k_scale", "v_scale"])
def test_k_scale_and_v_scale_shapes(name, shape):
    inputs = decode_inputs([20], q_heads=4, head_dim=16, capacity=20, cache_dtype=torch.float8_e5m2)
    assert_right(inputs, tiling=split(2), **{name: shape(torch.tensor([-0.75, 1.25]))})


def test_scales_of_zero():
    inputs = decode_inputs([20], q_heads=4, head_dim=16, capacity=20, cache_dtype=torch.float8_e5m2)
    scale = torch.tensor([0.0, 1.0])
    assert_right(inputs, tiling=split(2), k_scale=scale)
    assert_right(inputs, tiling=split(2), v_scale=scale)


def test_scales_with_cache_of_the_dtype_of_q():
    inputs = decode_inputs([20], q_heads=4, head_dim=16, capacity=20, dtype=torch.float32)
    assert_right(inputs, k_scale=torch.tensor([2.0, -1.0]), v_scale=3, scale=-0.1, softcap=2.0)


@pytest.mark.parametrize("window", by_default({1, 17}, [1, 15, 16, 17, 2**40]))
@pytest.mark.parametrize("query_tokens", [None, 3])
@either_cache
def test_tokens_outside_the_sliding_window_are_not_read(window, query_tokens, page_size):
    # Tokens before the window are NaN, and page ids before it are out of range.
    inputs = decode_inputs(
        [1, 37, 50], q_heads=3, kv_heads=1, head_dim=16, capacity=50, page_size=page_size,
        window=window, query_tokens=query_tokens,
    )  # fmt: skip
    assert_right(inputs, window=window, tiling=balanced(2))


@any_tiling
@pytest.mark.parametrize("block_n", by_default({16}, [16, 64]))
def test_sliding_window_in_a_long_context(tiling, block_n):
    inputs = decode_inputs([150, 131], q_heads=2, kv_heads=1, head_dim=16, capacity=150, window=70)
    tiling = split(tiling.num_splits, block_n=block_n) if tiling.num_splits else balanced(3, block_n=block_n)
    assert_right(inputs, window=70, tiling=tiling)


@pytest.mark.parametrize("softcap", by_default({0.25, 50.0}, [0.25, 5, 50.0]))
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_softcap(softcap, dtype):
    # Scores reach 30: some caps bind; for others exponentials would overflow in a ratio.
    inputs = decode_inputs([37], q_heads=4, capacity=40, dtype=dtype)
    assert_right(inputs, softcap=softcap, scale=1.5, tiling=split(2))


def test_softcap_of_infinite_scores():
    inputs = decode_inputs([37], q_heads=4, capacity=40, dtype=torch.float32)
    inputs["q"].abs_()
    inputs["k_cache"][0, 3], inputs["k_cache"][0, 36] = math.inf, -math.inf
    assert_right(inputs, softcap=3.0, tiling=split(2))


@pytest.mark.parametrize("softcap", [1e4, 1e8], ids=str)
def test_softcap_far_above_the_scores_changes_nothing(softcap):
    inputs = decode_inputs([20], q_heads=4, head_dim=16, capacity=20)
    output, _ = attend(inputs, softcap=softcap)
    assert decode_error(output, reference.decode_attention(**inputs)[0], inputs) <= 1


@any_tiling
@pytest.mark.parametrize("dtype", by_default({torch.bfloat16}, DTYPES))
def test_attention_sinks(tiling, dtype):
    inputs = decode_inputs([50, 7], q_heads=4, head_dim=16, capacity=50)
    assert_right(inputs, sinks=torch.tensor([-20.0, 0.0, 2.5, 60.0], dtype=dtype), tiling=tiling)


@pytest.mark.parametrize("tiling", by_default({"balanced"}, TILINGS.values(), TILINGS.keys()))
def test_attention_sinks_leave_empty_sequences_empty(tiling):
    inputs = decode_inputs([0, 1, 40], q_heads=4, head_dim=16, capacity=40, query_tokens=2)
    output, lse = attend(inputs, sinks=torch.ones(4), tiling=tiling)
    for sequence, token in ((0, 0), (0, 1), (1, 0)):
        assert (output[sequence, token] == 0).all()
        assert (lse[sequence, token] == -math.inf).all()
    assert lse[1, 1].isfinite().all()
    assert_right(inputs, sinks=torch.ones(4), tiling=tiling)


def test_attention_sink_of_minus_infinity_changes_nothing():
    inputs = decode_inputs([20], q_heads=4, head_dim=16, capacity=20)
    expected = attend(inputs)
    for actual, wanted in zip(attend(inputs, sinks=torch.full((4,), -math.inf)), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("query_tokens", by_default({1, 3, 8}, [1, 2, 3, 5, 8]))
def test_several_query_tokens_are_causal(query_tokens):
    inputs = decode_inputs(
        [0, 1, 3, 8, 37], q_heads=3, kv_heads=1, head_dim=16, capacity=40, query_tokens=query_tokens
    )
    assert_right(inputs, tiling=balanced(2))


def test_query_token_dimension_of_one_changes_nothing():
    inputs = decode_inputs([20, 7], capacity=20)
    expected = decode_attention(**inputs)
    output = decode_attention(**inputs | {"q": inputs["q"][:, None]})
    assert torch.equal(output[:, 0], expected)


@pytest.mark.parametrize(
    ("tiling", "page_size"),
    [(split(1), 5), (split(2), 0), (balanced(2), 5)],
    ids=["whole", "split", "balanced"],
)
def test_query_tokens_with_window_softcap_and_sinks(tiling, page_size):
    inputs = decode_inputs(
        [50, 2, 17], q_heads=5, kv_heads=1, head_dim=16, capacity=50, query_tokens=4, page_size=page_size
    )
    assert_right(inputs, tiling=tiling, window=20, softcap=10.0, sinks=normal(5, dtype=torch.float32, seed=7))


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
@pytest.mark.parametrize("value", [NAN, math.inf], ids=str)
@pytest.mark.parametrize("length", by_default({18}, [16, 18, 33]))
def test_non_finite_last_token_does_not_reach_earlier_query_tokens(name, value, length):
    inputs = decode_inputs(
        [length], q_heads=2, kv_heads=1, head_dim=16, capacity=40, query_tokens=3, dtype=torch.float32
    )
    inputs[name][0, length - 1] = value
    output, lse = attend(inputs, tiling=split(2))
    expected, expected_lse = reference.decode_attention(**inputs)
    assert decode_error(output[:, :2], expected[:, :2], inputs, expected_lse) <= 1
    torch.testing.assert_close(lse[:, :2].double(), expected_lse[:, :2])
    assert not output[:, 2].isfinite().any()


@pytest.mark.parametrize("token", [0, 31, 32], ids=["whole_tile", "seen_by_all", "seen_by_one"])
def test_infinite_value_with_several_query_tokens(token):
    inputs = decode_inputs(
        [33], q_heads=2, kv_heads=1, head_dim=16, capacity=40, query_tokens=2, dtype=torch.float32
    )
    inputs["v_cache"][0, token, 0, 3] = math.inf
    assert_right(inputs, tiling=split(1))


@pytest.mark.parametrize(("length", "window"), [(10, None), (60, 20)], ids=["short", "window"])
def test_infinite_value_in_the_first_tile_of_a_row(length, window):
    inputs = decode_inputs(
        [length],
        q_heads=2,
        kv_heads=1,
        head_dim=16,
        capacity=64,
        query_tokens=2,
        window=window,
        dtype=torch.float32,
    )
    inputs["v_cache"][0, length - 7, 0, 3] = -math.inf
    assert_right(inputs, tiling=split(1), window=window)


@pytest.mark.parametrize(
    "tiling",
    by_default(
        {"split", "balanced_in_two"},
        [split(1), split(2), balanced(3), balanced(3, block_g=32)],
        ["whole", "split", "balanced", "balanced_in_two"],
    ),
)
def test_more_rows_than_one_cta_holds(tiling):
    # 35 rows: the last block is not full.
    inputs = decode_inputs([33, 17], q_heads=7, kv_heads=1, head_dim=16, capacity=40, query_tokens=5)
    assert_right(inputs, tiling=tiling)


@pytest.mark.slow
def test_most_rows_with_the_largest_head_dim():
    inputs = decode_inputs([40], q_heads=64, kv_heads=1, head_dim=256, capacity=40, query_tokens=8)
    assert_right(inputs)


def faults():
    """Arguments of the kernel and of the oracle that differ in one feature."""
    query_tokens = {"query_tokens": 3}
    later = {"context_lens": torch.tensor([39], dtype=torch.int32)}
    k_scale, v_scale = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.1])
    return {
        "window_too_wide": ({}, {"window": 6}, {"window": 5}),
        "window_too_narrow": ({}, {"window": 39}, {"window": 40}),
        "causal_off_by_one": (query_tokens, later, {}),
        "softcap_left_out": ({}, {}, {"softcap": 3.0}),
        "sink_of_another_head": (
            {},
            {"sinks": torch.tensor([1.0, 2.0, 3.0, 4.0])},
            {"sinks": torch.tensor([2.0, 1.0, 3.0, 4.0])},
        ),
        "k_scale_of_another_head": ({}, {"k_scale": k_scale.flip(0)}, {"k_scale": k_scale}),
        "v_scale_of_another_head": ({}, {"v_scale": v_scale.flip(0)}, {"v_scale": v_scale}),
    }


@pytest.mark.parametrize(("shape", "actual", "right"), faults().values(), ids=faults().keys())
def test_fault_in_a_feature_is_found(shape, actual, right):
    inputs = decode_inputs([40], q_heads=4, head_dim=16, capacity=40, **shape)
    output = decode_attention(**inputs | actual)
    expected, expected_lse = reference.decode_attention(**inputs | right)
    assert decode_error(output, expected, inputs, expected_lse) > 1


CACHES = [(dtype, cache) for dtype, cache in itertools.product(DTYPES, [None, *NARROW_DTYPES])]


@pytest.mark.slow
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=2),
    heads=st.tuples(st.integers(1, 2), st.integers(1, 9)),
    query_tokens=st.sampled_from([None, 1, 2, 5]),
    head_dims=st.tuples(*[st.sampled_from([16, 24, 40, 64])] * 2),
    page_size=st.sampled_from([0, 1, 5, 16, 64]),
    heads_first=st.booleans(),
    dtypes=st.sampled_from(CACHES),
    tiling=st.sampled_from([split(1), split(2), balanced(1), balanced(3), balanced(2, block_n=32)]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "window": st.integers(1, 80),
            "softcap": st.sampled_from([1.0, 30.0]),
            "scale": st.sampled_from([0.0, -0.2, 0.5]),
            "sinks": st.just(torch.linspace(-3, 3, 18)),
        },
    ),
)
def test_random_shapes_and_options(
    lengths, heads, query_tokens, head_dims, page_size, heads_first, dtypes, tiling, options
):
    kv_heads, group = heads
    inputs = decode_inputs(
        lengths,
        q_heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dims[0],
        v_head_dim=head_dims[1],
        query_tokens=query_tokens,
        capacity=50,
        dtype=dtypes[0],
        cache_dtype=dtypes[1],
        heads_first=heads_first,
        page_size=page_size,
        window=options.get("window"),
    )
    if "sinks" in options:
        options = options | {"sinks": options["sinks"][: kv_heads * group]}
    assert_right(inputs, tiling=tiling, **scales(dtypes[1]), **options)
