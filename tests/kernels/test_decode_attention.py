"""Decode attention against its oracle: shapes, memory layouts, context lengths, NaN and infinity."""

import math

import pytest
import torch
from decode_checks import TILINGS, assert_right, attend, balanced, decode_error, split
from decodetax.kernels import decode_attention, reference
from kernel_inputs import DTYPES, NAN, by_default, decode_inputs, dtype_name, normal, poisoned

any_tiling = pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
either_cache = pytest.mark.parametrize("page_size", [0, 3], ids=["contiguous", "paged"])


@pytest.mark.parametrize("head_dim", by_default({16, 72, 128, 192, 256}, range(16, 257, 8)))
def test_key_and_value_head_dims(head_dim):
    dtype = DTYPES[head_dim // 8 % 3]
    inputs = decode_inputs(
        [33], q_heads=2, kv_heads=1, head_dim=head_dim, v_head_dim=272 - head_dim, capacity=40, dtype=dtype
    )
    assert_right(inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_head_dim_128_in_each_dtype(dtype):
    assert_right(decode_inputs([65, 33], head_dim=128, capacity=65, dtype=dtype))


@pytest.mark.parametrize("group", by_default({1, 7, 17, 64}, [1, 2, 5, 6, 7, 12, 16, 17, 33, 64]))
def test_gqa_group_sizes(group):
    dtype = DTYPES[group % 3]
    assert_right(decode_inputs([33], q_heads=2 * group, kv_heads=2, head_dim=40, capacity=40, dtype=dtype))


@pytest.mark.parametrize("num_splits", by_default({1, 10}, [1, 2, 7, 10]))
def test_numbers_of_kv_splits(num_splits):
    # 100 tokens are 7 tiles of 16: 10 splits are more than there are tiles.
    assert_right(
        decode_inputs([1, 17, 97], q_heads=2, kv_heads=1, head_dim=16, capacity=100), tiling=split(num_splits)
    )


def test_num_splits_overrides_the_tiling():
    inputs = decode_inputs([60], capacity=60)
    assert_right(inputs, num_splits=2)
    expected = attend(inputs, tiling=split(2))
    for tiling in (split(1), balanced(3)):
        output, lse = attend(inputs, tiling=tiling, num_splits=2)
        assert torch.equal(output, expected[0])
        assert torch.equal(lse, expected[1])


@pytest.mark.parametrize(
    "programs_and_min_tiles", by_default({(1, 1), (5, 2)}, [(1, 1), (2, 1), (3, 4), (5, 2), (11, 1)])
)
def test_numbers_of_balanced_ctas(programs_and_min_tiles):
    programs, min_tiles = programs_and_min_tiles
    inputs = decode_inputs([1, 0, 15, 97], q_heads=2, kv_heads=1, head_dim=16, capacity=100)
    assert_right(inputs, tiling=balanced(programs, min_tiles=min_tiles))


@pytest.mark.parametrize("block_n", by_default({16, 64}, [16, 32, 64]))
def test_lengths_around_a_tile(block_n):
    lengths = [1, 15, 16, 17, 31, 32, 33, 63, 64, 65]
    inputs = decode_inputs(lengths, q_heads=3, kv_heads=1, head_dim=16, capacity=65)
    assert_right(inputs, tiling=balanced(2, block_n=block_n))


@pytest.mark.parametrize("page_size", by_default({1, 16, 24, 128}, [1, 2, 3, 8, 16, 24, 64, 100, 128]))
def test_page_sizes_of_a_paged_kv_cache(page_size):
    lengths = [0, page_size, page_size + 1, 100]
    inputs = decode_inputs(
        lengths, q_heads=3, kv_heads=1, head_dim=24, capacity=100, page_size=page_size,
        dtype=DTYPES[page_size % 3],
    )  # fmt: skip
    assert_right(inputs, tiling=balanced(3, block_n=32))


@pytest.mark.parametrize("heads_first", by_default({True}, [False, True]))
@pytest.mark.parametrize("page_size", [0, 5, 16], ids=["contiguous", "pages_of_5", "pages_of_16"])
def test_tokens_or_heads_first_in_memory(heads_first, page_size):
    inputs = decode_inputs([50, 7], head_dim=40, heads_first=heads_first, capacity=50, page_size=page_size)
    assert_right(inputs, tiling=balanced(3))


@either_cache
@pytest.mark.parametrize("odd", by_default({0, 7}, [0, 8, 7]))
def test_interleaved_keys_and_values_with_gaps(odd, page_size):
    inputs = decode_inputs([37, 20], head_dim=24, v_head_dim=40, capacity=39, page_size=page_size)
    keys, values = inputs["k_cache"], inputs["v_cache"]
    together = poisoned(*keys.shape[:3], 24 + 40 + odd, dtype=keys.dtype)
    together[..., :24], together[..., 24:64] = keys, values
    inputs |= {"k_cache": together[..., :24], "v_cache": together[..., 24:64]}
    assert_right(inputs, tiling=balanced(3))


@either_cache
def test_keys_and_values_with_different_layouts(page_size):
    inputs = decode_inputs([37, 20], capacity=39, page_size=page_size)
    inputs["v_cache"] = inputs["v_cache"].transpose(1, 2).contiguous().transpose(1, 2)
    # Every other page or sequence of a larger allocation.
    inputs["k_cache"] = torch.stack(
        [inputs["k_cache"], poisoned(*inputs["k_cache"].shape, dtype=torch.bfloat16)], 1
    )[:, 0]
    assert_right(inputs, tiling=balanced(3))


def test_strided_query_output_and_block_table():
    inputs = decode_inputs([30, 30], capacity=32, page_size=8, query_tokens=2)
    wide = normal(8, 2, 2, 3 * 64, dtype=torch.bfloat16, seed=1)
    inputs["q"] = wide.permute(1, 2, 0, 3)[..., 64:128]
    inputs["block_table"] = torch.nn.functional.pad(inputs["block_table"], (0, 3), value=-1)[:, :4]
    out = poisoned(8, 2, 2, 3 * 64, dtype=torch.bfloat16).permute(1, 2, 0, 3)
    decode_attention(**inputs, out=out[..., 64:128])
    assert decode_error(out[..., 64:128], reference.decode_attention(**inputs)[0], inputs) <= 1
    assert out[..., :64].isnan().all()
    assert out[..., 128:].isnan().all()


@any_tiling
@either_cache
def test_empty_sequence_gives_zero_and_lse_minus_infinity(tiling, page_size):
    inputs = decode_inputs([0, -5, 20], capacity=40, page_size=page_size)
    output, lse = attend(inputs, tiling=tiling)
    assert (output[:2] == 0).all()
    assert (lse[:2] == -math.inf).all()
    assert output[2].isfinite().all()


@any_tiling
def test_batch_of_only_empty_sequences(tiling):
    output, lse = attend(decode_inputs([0, 0], capacity=40), tiling=tiling)
    assert (output == 0).all()
    assert (lse == -math.inf).all()


@pytest.mark.parametrize("page_size", [0, 16], ids=["contiguous", "paged"])
def test_length_is_clamped_to_capacity(page_size):
    inputs = decode_inputs([48, 49, 2**31 - 1, -(2**31)], capacity=48, page_size=page_size)
    assert_right(inputs, tiling=balanced(3))


@pytest.mark.parametrize("scale", by_default({0.0, -0.5, 30.0}, [0.0, 0.25, -0.5, 30.0, 1]))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=dtype_name)
def test_scale_multiplies_the_scores(scale, dtype):
    # 30 gives scores of hundreds, whose exponentials are in range only relative to the largest.
    assert_right(decode_inputs([40], capacity=40, dtype=dtype), scale=scale, tiling=split(2))


def test_result_without_out_or_lse_is_one_tensor():
    inputs = decode_inputs([20], capacity=20, v_head_dim=24, query_tokens=2)
    output = decode_attention(**inputs)
    assert output.shape == (1, 2, 8, 24)
    assert output.dtype == inputs["q"].dtype


@pytest.mark.parametrize("unused", by_default({"nan"}, [NAN, -math.inf], ["nan", "-inf"]))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e5m2], ids=dtype_name)
@either_cache
def test_unused_cache_is_never_read(unused, dtype, page_size):
    inputs = decode_inputs(
        [17, 0, 33], q_heads=2, kv_heads=1, head_dim=16, capacity=39, page_size=page_size,
        dtype=torch.float16 if dtype == torch.float8_e5m2 else dtype, cache_dtype=dtype, unused=unused,
    )  # fmt: skip
    assert_right(inputs, tiling=balanced(2))


@any_tiling
def test_nan_key_affects_only_its_gqa_group(tiling):
    inputs = decode_inputs([40], capacity=40)
    inputs["k_cache"][0, 17, 1, 3] = NAN
    output, lse = attend(inputs, tiling=tiling)
    assert output[0, 4:].isnan().all()
    assert lse[0, 4:].isnan().all()
    assert output[0, :4].isfinite().all()


@any_tiling
@pytest.mark.parametrize("token", by_default({"last_token"}, [17, 39], ["whole_tile", "last_token"]))
def test_nan_value_affects_only_its_element(tiling, token):
    inputs = decode_inputs([40], capacity=40)
    inputs["v_cache"][0, token, 1, 3] = NAN
    output, _ = attend(inputs, tiling=tiling)
    assert output[0, 4:, 3].isnan().all()
    output[0, 4:, 3] = 0
    assert output.isfinite().all()


@any_tiling
@pytest.mark.parametrize("token", by_default({"last_token"}, [17, 39], ["whole_tile", "last_token"]))
def test_infinite_value_gives_infinite_element(tiling, token):
    inputs = decode_inputs([40], capacity=40, dtype=torch.float32)
    inputs["v_cache"][0, token, 1, 3] = -math.inf
    assert_right(inputs, tiling=tiling)


@any_tiling
def test_nan_query_affects_only_its_head(tiling):
    inputs = decode_inputs([40], capacity=40)
    inputs["q"][0, 5, 60] = NAN
    output, lse = attend(inputs, tiling=tiling)
    assert output[0, 5].isnan().all()
    assert lse[0, 5].isnan()
    assert output[0, [0, 1, 2, 3, 4, 6, 7]].isfinite().all()


@pytest.mark.parametrize("masked", [slice(0, 20), slice(0, 40)], ids=["first_tokens", "all_tokens"])
def test_scores_of_minus_infinity_have_weight_zero(masked):
    inputs = decode_inputs([40], capacity=40)
    inputs["q"].abs_()
    inputs["k_cache"][0, masked] = -math.inf
    assert_right(inputs, tiling=split(3))


def far_apart(shape, strides):
    """Two tensors in one allocation past 2^31 elements, of which only the touched pages take memory."""
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    storage = torch.empty(last + 2**20, dtype=torch.bfloat16)
    views = [storage.as_strided(shape, strides, offset) for offset in (0, 2**19)]
    for seed, view in enumerate(views):
        view.copy_(normal(*shape, dtype=torch.bfloat16, seed=seed))
    return views


@pytest.mark.usefixtures("overflow_raises")
@pytest.mark.parametrize("page_size", [5, 16, 32])
def test_page_offset_over_32_bits(page_size):
    k_cache, v_cache = far_apart((2, page_size, 1, 16), (2**31 + 16, 16, 16, 1))
    inputs = {
        "q": normal(1, 4, 16, dtype=torch.bfloat16, seed=2),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "context_lens": torch.tensor([2 * page_size], dtype=torch.int32),
        "block_table": torch.tensor([[1, 0]], dtype=torch.int32),
    }
    assert_right(inputs, tiling=split(2))


@pytest.mark.usefixtures("overflow_raises")
@pytest.mark.parametrize("far", ["batch", "token", "head"])
def test_contiguous_cache_offset_over_32_bits(far):
    shape = (2, 2, 2, 16)
    strides = {
        "batch": (2**31 + 64, 32, 16, 1),
        "token": (32, 2**31 + 64, 16, 1),
        "head": (64, 16, 2**31 + 64, 1),
    }
    k_cache, v_cache = far_apart(shape, strides[far])
    inputs = {
        "q": normal(2, 4, 16, dtype=torch.bfloat16, seed=2),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "context_lens": torch.tensor([2, 1], dtype=torch.int32),
    }
    assert_right(inputs, tiling=split(1))


@pytest.mark.usefixtures("overflow_raises")
@pytest.mark.parametrize("tiling", [split(7), balanced(3)], ids=["split", "balanced"])
@pytest.mark.parametrize("window", [None, 20])
def test_long_cache_does_not_overflow_token_positions(tiling, window):
    inputs = decode_inputs([10], capacity=10)
    for name in ("k_cache", "v_cache"):
        inputs[name] = inputs[name][:, :1].expand(1, 2**30, 2, 64)
    output = decode_attention(**inputs, tiling=tiling, window=window)
    torch.testing.assert_close(output[0, :4], inputs["v_cache"][0, 0, :1].expand(4, 64))


def test_fault_of_a_missing_token_is_found():
    inputs = decode_inputs([100], capacity=100)
    output = decode_attention(**inputs | {"context_lens": inputs["context_lens"] - 1})
    assert decode_error(output, reference.decode_attention(**inputs)[0], inputs) > 1
