import dataclasses
import importlib
import math

import pytest
import torch
from decodetax.kernels import DecodeTiling, decode_attention, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import DTYPES, NAN, decode_error, decode_inputs, dtype_name, normal, poisoned
from triton.runtime.interpreter import interpreter_builder

module = importlib.import_module("decodetax.kernels.decode_attention")


def tiling(num_splits=1, *, block_g=16, block_n=16):
    return DecodeTiling(block_g=block_g, block_n=block_n, num_splits=num_splits, num_warps=4, num_stages=2)


def assert_right(inputs, **options):
    out = poisoned(*inputs["q"].shape, dtype=inputs["q"].dtype)
    scale = options.get("scale")
    output, lse = decode_attention(**inputs, out=out, return_lse=True, **options)
    expected, expected_lse = reference.decode_attention(**inputs, scale=scale)
    assert output is out
    assert lse.dtype == torch.float32
    assert decode_error(output, expected, inputs) <= 1
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("head_dim", [16, 40, 64, 72, 80, 96, 128, 256])
def test_any_head_dim_agrees_with_the_oracle(head_dim, dtype):
    assert_right(decode_inputs([65, 33], head_dim=head_dim, capacity=65, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("group", [1, 4, 5, 6, 7, 8, 12, 64])
def test_any_group_of_query_heads_agrees_with_the_oracle(group, dtype):
    assert_right(decode_inputs([33], q_heads=2 * group, kv_heads=2, capacity=40, dtype=dtype))


@pytest.mark.parametrize("num_splits", [1, 2, 7, 10])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 97, 100])
def test_any_number_of_splits_agrees_with_the_oracle(num_splits, length):
    # 100 tokens are 7 tiles of 16: 10 splits are more than there are tiles.
    assert_right(decode_inputs([length, 100], capacity=100), tiling=tiling(num_splits))


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_pages_agree_with_the_oracle(dtype, page_size, num_splits):
    inputs = decode_inputs(
        [0, 1, page_size, page_size + 1, 48], capacity=48, dtype=dtype, page_size=page_size
    )
    assert_right(inputs, tiling=tiling(num_splits))


@pytest.mark.parametrize("heads_first", [False, True], ids=["tokens_first", "heads_first"])
@pytest.mark.parametrize("num_splits", [1, 3])
def test_either_order_of_tokens_and_heads_in_memory(heads_first, num_splits):
    assert_right(decode_inputs([50, 7], heads_first=heads_first, capacity=50), tiling=tiling(num_splits))


@pytest.mark.parametrize("num_splits", [1, 3])
def test_empty_sequence_gives_zero_and_minus_infinity(num_splits):
    inputs = decode_inputs([0, -5, 20], capacity=40)
    output, lse = decode_attention(**inputs, return_lse=True, tiling=tiling(num_splits))
    assert (output[:2] == 0).all()
    assert (lse[:2] == -math.inf).all()
    assert output[2].isfinite().all()


@pytest.mark.parametrize("page_size", [0, 16], ids=["contiguous", "paged"])
def test_length_over_capacity_is_clamped(page_size):
    assert_right(decode_inputs([48, 49, 2**31 - 1], capacity=48, page_size=page_size), tiling=tiling(2))


@pytest.mark.parametrize("scale", [0.0, 0.25, -0.5, 30.0])
def test_scale_multiplies_the_scores(scale):
    # 30 gives scores of hundreds, whose exponentials are in range only relative to the largest.
    assert_right(decode_inputs([40], capacity=40), scale=scale, tiling=tiling(2))


def test_result_without_out_or_lse_is_a_tensor_like_q():
    inputs = decode_inputs([20], capacity=20)
    output = decode_attention(**inputs)
    assert output.shape == inputs["q"].shape
    assert output.dtype == inputs["q"].dtype


def test_strided_query_and_output():
    inputs = decode_inputs([30, 30], capacity=30)
    inputs["q"] = normal(8, 2, 3 * 64, dtype=torch.bfloat16, seed=1).transpose(0, 1)[..., 64:128]
    out = poisoned(8, 2, 3 * 64, dtype=torch.bfloat16).transpose(0, 1)[..., 64:128]
    decode_attention(**inputs, out=out)
    assert decode_error(out, reference.decode_attention(**inputs)[0], inputs) <= 1


@pytest.mark.parametrize("num_splits", [1, 3])
def test_not_a_number_in_a_live_key_reaches_its_group_alone(num_splits):
    inputs = decode_inputs([40], capacity=40)
    inputs["k_cache"][0, 17, 1, 3] = NAN
    output = decode_attention(**inputs, tiling=tiling(num_splits))
    assert output[0, 4:].isnan().all()
    assert output[0, :4].isfinite().all()


@pytest.mark.parametrize("num_splits", [1, 3])
def test_not_a_number_in_a_live_value_reaches_its_element_alone(num_splits):
    inputs = decode_inputs([40], capacity=40)
    inputs["v_cache"][0, 17, 1, 3] = NAN
    output = decode_attention(**inputs, tiling=tiling(num_splits))
    assert output[0, 4:, 3].isnan().all()
    output[0, 4:, 3] = 0
    assert output.isfinite().all()


@pytest.mark.parametrize("num_splits", [1, 3])
def test_not_a_number_in_a_query_reaches_its_head_alone(num_splits):
    inputs = decode_inputs([40], capacity=40)
    inputs["q"][0, 5, 60] = NAN
    output, lse = decode_attention(**inputs, return_lse=True, tiling=tiling(num_splits))
    assert output[0, 5].isnan().all()
    assert lse[0, 5].isnan()
    assert output[0, [0, 1, 2, 3, 4, 6, 7]].isfinite().all()


@pytest.mark.parametrize("masked", [slice(0, 20), slice(0, 40)], ids=["first_tokens", "all_tokens"])
def test_scores_of_minus_infinity_weigh_nothing(masked):
    inputs = decode_inputs([40], capacity=40)
    inputs["q"].abs_()
    inputs["k_cache"][0, masked] = -math.inf
    assert_right(inputs, tiling=tiling(3))


@pytest.mark.parametrize("page_size", [0, 3], ids=["contiguous", "paged"])
def test_a_sequence_does_not_feel_the_others(page_size):
    inputs = decode_inputs([0, 37, 50], capacity=50, page_size=page_size)
    before = decode_attention(**inputs, tiling=tiling(3))[1]
    inputs["q"][[0, 2]] = NAN
    inputs["context_lens"][2] = 11
    if not page_size:
        inputs["k_cache"][[0, 2]] = math.inf
        inputs["v_cache"][[0, 2]] = NAN
    assert torch.equal(decode_attention(**inputs, tiling=tiling(3))[1], before)


@pytest.mark.parametrize("num_splits", [1, 3])
def test_the_same_bits_every_run(num_splits):
    inputs = decode_inputs([100, 37], capacity=100)
    first = decode_attention(**inputs, return_lse=True, tiling=tiling(num_splits))
    second = decode_attention(**inputs, return_lse=True, tiling=tiling(num_splits))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.fixture
def overflow_raises(monkeypatch):
    """32-bit arithmetic that overflows fails instead of wrapping."""
    monkeypatch.setattr(
        interpreter_builder, "options", dataclasses.replace(interpreter_builder.options, debug=True)
    )


def far_apart(shape, strides):
    """Two tensors in one allocation past 2^31 elements, of which only the touched pages take memory."""
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    storage = torch.empty(last + 2**20, dtype=torch.bfloat16)
    views = [storage.as_strided(shape, strides, offset) for offset in (0, 2**19)]
    for seed, view in enumerate(views):
        view.copy_(normal(*shape, dtype=torch.bfloat16, seed=seed))
    return views


@pytest.mark.usefixtures("overflow_raises")
def test_page_number_times_stride_passes_32_bits():
    k_cache, v_cache = far_apart((2, 16, 1, 16), (2**31 + 16, 16, 16, 1))
    inputs = {
        "q": normal(1, 4, 16, dtype=torch.bfloat16, seed=2),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "context_lens": torch.tensor([32], dtype=torch.int32),
        "block_table": torch.tensor([[1, 0]], dtype=torch.int32),
    }
    assert_right(inputs, tiling=tiling(2))


@pytest.mark.usefixtures("overflow_raises")
@pytest.mark.parametrize("far", ["batch", "token", "head"])
def test_offset_in_a_contiguous_cache_passes_32_bits(far):
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
    assert_right(inputs, tiling=tiling(1))


@pytest.mark.usefixtures("overflow_raises")
def test_a_long_cache_overflows_no_token_position():
    inputs = decode_inputs([10], capacity=10)
    for name in ("k_cache", "v_cache"):
        inputs[name] = inputs[name][:, :1].expand(1, 2**30, 2, 64)
    output = decode_attention(**inputs, tiling=tiling(7))
    torch.testing.assert_close(output[0, :4], inputs["v_cache"][0, 0, :1].expand(4, 64))


def loaded_addresses(monkeypatch, call):
    """How often each address was loaded, while `call` ran in the interpreter."""
    counts = {}
    load = interpreter_builder.create_masked_load

    def counting(ptrs, mask, *rest, **named):
        for address in ptrs.data[mask.data.astype(bool)].tolist():
            counts[address] = counts.get(address, 0) + 1
        return load(ptrs, mask, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter_builder, "create_masked_load", counting)
        call()
    return counts


def addresses(tensor):
    start, size = tensor.data_ptr(), tensor.element_size()
    return {
        start + size * sum(at * stride for at, stride in zip(index, tensor.stride(), strict=True))
        for index in torch.cartesian_prod(*map(torch.arange, tensor.shape)).view(-1, tensor.dim()).tolist()
    }


@pytest.mark.parametrize("num_splits", [1, 3])
def test_each_live_key_and_value_is_loaded_once_and_no_other(monkeypatch, num_splits):
    inputs = decode_inputs([37, 0, 16], head_dim=40, capacity=48)
    counts = loaded_addresses(monkeypatch, lambda: decode_attention(**inputs, tiling=tiling(num_splits)))
    for name in ("k_cache", "v_cache"):
        live = addresses(inputs[name][0, :37]) | addresses(inputs[name][2, :16])
        assert {at: counts[at] for at in addresses(inputs[name]) if at in counts} == dict.fromkeys(live, 1)


def test_no_page_number_past_the_live_pages_is_read(monkeypatch):
    inputs = decode_inputs([7, 0, 3], capacity=48, page_size=3)
    counts = loaded_addresses(monkeypatch, lambda: decode_attention(**inputs, tiling=tiling(3)))
    table = inputs["block_table"]
    assert counts.keys() & addresses(table) == addresses(table[0, :3]) | addresses(table[2, :1])


def test_a_merge_that_skips_a_split_would_be_noticed(monkeypatch):
    inputs = decode_inputs([96], capacity=96)
    merge = module._merge_kernel

    class SkipsLastSplit:
        def __getitem__(self, grid):
            shorter = inputs["context_lens"] - 32
            return lambda **named: merge[grid](**named | {"context_lens_ptr": shorter, "NUM_SPLITS": 3})

    monkeypatch.setattr(module, "_merge_kernel", SkipsLastSplit())
    # Three splits of two tiles: the merge of a context two tiles shorter still strides by three splits.
    output = decode_attention(**inputs, tiling=tiling(3))
    assert decode_error(output, reference.decode_attention(**inputs)[0], inputs) > 1


def test_one_token_too_few_would_be_noticed():
    inputs = decode_inputs([100], capacity=100)
    output = decode_attention(**inputs | {"context_lens": inputs["context_lens"] - 1})
    assert decode_error(output, reference.decode_attention(**inputs)[0], inputs) > 1


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    head_dim=st.sampled_from([16, 24, 40, 64, 120]),
    page_size=st.sampled_from([0, 1, 5, 16, 64]),
    num_splits=st.integers(1, 6),
    block_n=st.sampled_from([16, 32]),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape_agrees_with_the_oracle(
    lengths, kv_heads, group, head_dim, page_size, num_splits, block_n, dtype
):
    inputs = decode_inputs(
        lengths,
        q_heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        capacity=70,
        dtype=dtype,
        page_size=page_size,
    )
    assert_right(inputs, tiling=tiling(num_splits, block_n=block_n))
