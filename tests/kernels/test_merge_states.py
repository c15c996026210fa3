"""The merge of attention states: of two parts, and of any number."""

import math

import pytest
import torch
from decode_checks import decode_error
from decodetax.kernels import decode_attention, merge_states, reference
from kernel_inputs import DTYPES, NAN, by_default, decode_inputs, dtype_name, normal, poisoned, worst_error
from triton.runtime.interpreter import GridExecutor


def states(*rows, head_dim, dtype, seed):
    """Output and log-sum-exp of one part of a context."""
    return normal(*rows, head_dim, dtype=dtype, seed=seed), normal(*rows, dtype=torch.float32, seed=seed + 1)


def stacked_states(parts, *rows, head_dim=16, dtype=torch.float32, seed=1):
    """Stacked outputs and log-sum-exps of parts; every 3rd log-sum-exp is -inf or +inf, its output NaN."""
    o, lse = states(parts, *rows, head_dim=head_dim, dtype=dtype, seed=seed)
    lse *= 5
    flat, outputs = lse.view(-1), o.view(-1, head_dim)
    flat[::6], flat[3::6] = -math.inf, math.inf
    outputs[::3] = NAN
    return o, lse


def assert_merged(*states, dtype=None, **options):
    output, merged = merge_states(*states, **options)
    in_oracle = {name: value for name, value in options.items() if name not in ("out", "out_dtype")}
    expected, expected_lse = reference.merge_states(*states, **in_oracle)
    assert output.dtype == dtype or states[0][0].dtype
    assert merged.dtype == torch.float32
    assert output.shape == expected.shape
    assert merged.shape == expected_lse.shape
    # A log-sum-exp of size s is rounded to within s roundoffs, and its exponential by as much.
    size = float(torch.where(expected_lse.isfinite(), expected_lse.abs(), 0.0).max())
    parts = 2 if len(states) == 4 else len(states[0])
    roundings = 1 + ("out_scale" in options)
    assert worst_error(output, expected, reduction=(parts + size) ** 2, roundings=roundings) <= 1
    torch.testing.assert_close(merged.double(), expected_lse, rtol=1e-6, atol=1e-6)
    return output, merged


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("head_dim", by_default({72, 5000}, [8, 72, 256, 5000]))
@pytest.mark.parametrize("rows", by_default({(17, 3)}, [(1,), (17, 3), (2, 3, 5)]))
def test_merged_shapes(rows, head_dim, dtype):
    assert_merged(
        *states(*rows, head_dim=head_dim, dtype=dtype, seed=1),
        *states(*rows, head_dim=head_dim, dtype=dtype, seed=5),
    )


def test_merge_of_one_row():
    assert_merged(
        *states(head_dim=16, dtype=torch.float32, seed=1), *states(head_dim=16, dtype=torch.float32, seed=5)
    )


@pytest.mark.parametrize("apart", [0.0, 30.0, 200.0, -1e4], ids=str)
def test_merge_of_distant_log_sum_exps(apart):
    o, lse = states(5, head_dim=16, dtype=torch.float32, seed=1)
    o2, lse2 = states(5, head_dim=16, dtype=torch.float32, seed=5)
    assert_merged(o, lse + apart, o2, lse2)
    assert_merged(o, lse + apart, o2, lse2 + apart)


@pytest.mark.parametrize("empty", ["first", "second"])
@pytest.mark.parametrize("content", [0.0, NAN, math.inf], ids=str)
def test_empty_part_is_ignored(empty, content):
    o, lse = states(5, head_dim=16, dtype=torch.bfloat16, seed=1)
    nothing = torch.full_like(o, content), torch.full_like(lse, -math.inf)
    pair = (*nothing, o, lse) if empty == "first" else (o, lse, *nothing)
    output, merged = merge_states(*pair)
    assert torch.equal(output, o)
    torch.testing.assert_close(merged, lse)


@pytest.mark.parametrize("content", [0.0, NAN], ids=str)
def test_merge_of_two_empty_parts(content):
    nothing = torch.full((5, 16), content), torch.full((5,), -math.inf)
    output, merged = merge_states(*nothing, *nothing)
    assert (output == 0).all()
    assert (merged == -math.inf).all()


def test_nan_stays_in_its_row():
    o, lse = states(5, head_dim=16, dtype=torch.float32, seed=1)
    o2, lse2 = states(5, head_dim=16, dtype=torch.float32, seed=5)
    o[1, 3], lse2[3] = NAN, NAN
    output, merged = merge_states(o, lse, o2, lse2)
    assert output[1, 3].isnan()
    assert output[3].isnan().all()
    assert output.isnan().sum() == 17
    assert merged.isnan().tolist() == [False, False, False, True, False]


def test_strided_states():
    o, lse = states(4, 6, head_dim=16, dtype=torch.bfloat16, seed=1)
    o2, lse2 = states(4, 6, head_dim=16, dtype=torch.bfloat16, seed=5)
    assert_merged(o.transpose(0, 1), lse.T, o2.transpose(0, 1), lse2.T)
    assert_merged(o[:, ::2, ::2], lse[:, ::2], o2[:, ::2, ::2], lse2[:, ::2])


@pytest.mark.parametrize("lengths", [[20, 0, 7], [0, 0, 0]], ids=str)
def test_shared_prefix_and_own_tokens_equal_full_context(lengths):
    # One prefix of 37 tokens for every sequence, held once; each sequence's own tokens follow it.
    shape = {"q_heads": 4, "head_dim": 16}
    prefix = decode_inputs([37], capacity=37, **shape)
    own = decode_inputs(lengths, capacity=20, **shape)
    whole = own | {"context_lens": own["context_lens"] + 37}
    shared = {"q": own["q"], "context_lens": torch.full_like(own["context_lens"], 37)}
    for name in ("k_cache", "v_cache"):
        shared[name] = prefix[name].expand(len(lengths), -1, -1, -1)
        whole[name] = torch.cat([shared[name], own[name]], 1)
    output, lse = merge_states(
        *decode_attention(**shared, return_lse=True), *decode_attention(**own, return_lse=True)
    )
    expected, expected_lse = reference.decode_attention(**whole)
    # The merge rounds once more than attention over the full context.
    assert decode_error(output, expected, whole, roundings=3) <= 1
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", by_default({torch.bfloat16}, DTYPES))
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 33])
def test_any_number_of_stacked_parts(parts, dtype):
    assert_merged(*stacked_states(parts, 17, 3, head_dim=72, dtype=dtype))


def test_stacked_parts_of_one_row():
    assert_merged(*stacked_states(5))


@pytest.mark.parametrize("rows", [31, 32, 33, 64])
def test_rows_at_the_size_of_a_block(rows):
    assert_merged(*stacked_states(3, rows, head_dim=128))


@pytest.mark.parametrize("kind", [list, tuple])
def test_parts_in_a_sequence(kind):
    o, lse = stacked_states(4, 5, 3)
    output, merged = merge_states(kind(o), kind(lse))
    expected = merge_states(o, lse)
    assert torch.equal(output, expected[0])
    assert torch.equal(merged, expected[1])


def test_two_parts_equal_their_stack():
    o, lse = stacked_states(2, 5, 3)
    for one, other in zip(merge_states(o[0], lse[0], o[1], lse[1]), merge_states(o, lse), strict=True):
        assert torch.equal(one, other)


def test_one_part_is_returned_as_it_is():
    o, lse = states(1, 5, head_dim=16, dtype=torch.bfloat16, seed=1)
    output, merged = merge_states(o, lse)
    assert torch.equal(output, o[0])
    assert torch.equal(merged, lse[0])


@pytest.mark.parametrize("empty", ["first", "second", "both"])
def test_infinite_log_sum_exp_is_an_empty_part(empty):
    o, lse = states(2, 5, head_dim=16, dtype=torch.bfloat16, seed=1)
    chosen = {"first": [0], "second": [1], "both": [0, 1]}[empty]
    lse[chosen], o[chosen] = math.inf, NAN
    output, merged = merge_states(o[0], lse[0], o[1], lse[1])
    if empty == "both":
        assert (output == 0).all()
        assert (merged == -math.inf).all()
    else:
        assert torch.equal(output, o[1 - chosen[0]])
        assert torch.equal(merged, lse[1 - chosen[0]])


MASKS = {
    "whole": (3, 5, 4),
    "of parts": (3, 1, 1),
    "of tokens": (3, 5, 1),
    "of heads": (4,),
    "of all": (1,),
}


@pytest.mark.parametrize("size", MASKS.values(), ids=MASKS.keys())
def test_masked_parts_are_left_out(size):
    o, lse = stacked_states(3, 5, 4)
    mask = torch.arange(math.prod(size)).view(size) % 3 != 1
    _, merged = assert_merged(o, lse, mask=mask)
    assert_merged(o[0], lse[0], o[1], lse[1], mask=mask[:2] if len(size) == 3 else mask)
    assert torch.equal(merged, merge_states(o, lse.masked_fill(~mask, -math.inf))[1])


def test_output_of_a_masked_part_is_not_read():
    o, lse = states(2, 5, head_dim=16, dtype=torch.float32, seed=1)
    o[1, 2], lse[1, 2] = NAN, NAN
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 2] = False
    output, merged = merge_states(o, lse, mask=mask)
    assert torch.equal(output[2], o[0, 2])
    assert not output.isnan().any()
    assert not merged.isnan().any()


@pytest.mark.parametrize("form", ["pair", "stack"])
def test_log_sum_exps_of_heads_first_and_base_2(form):
    o, lse = stacked_states(2, 5, 4)
    given = (o, lse) if form == "stack" else (o[0], lse[0], o[1], lse[1])
    expected, expected_lse = merge_states(*given)
    turned = tuple(
        each if number % 2 == 0 else each.transpose(-1, -2).contiguous() for number, each in enumerate(given)
    )
    output, merged = assert_merged(*turned, lse_layout="heads-first")
    assert torch.equal(output, expected)
    assert torch.equal(merged, expected_lse.T)
    in_base_2 = tuple(each if number % 2 == 0 else each / math.log(2.0) for number, each in enumerate(given))
    output, merged = assert_merged(*in_base_2, lse_base=2)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(merged * math.log(2.0), expected_lse)


def test_strided_parts_are_not_copied(monkeypatch):
    memory, lses = states(5, 3, 4, 2, head_dim=24, dtype=torch.bfloat16, seed=1)
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    # [tokens, parts, heads, head_dim], as FlashInfer has states, and every other head.
    assert_merged(memory[:, :, :, 0].transpose(0, 1), lses[..., 0].transpose(0, 1))
    assert_merged(memory[:, 0], lses[:, 0], memory[:, 1], lses[:, 1])


def test_head_dim_of_any_stride_is_copied():
    o, lse = states(3, 16, head_dim=5, dtype=torch.bfloat16, seed=1)
    assert_merged(o.transpose(1, 2), lse[:, :5].contiguous())


@pytest.mark.parametrize("pair", [False, True], ids=["output", "pair"])
def test_out_is_written_and_returned(pair):
    o, lse = stacked_states(3, 5, 4, dtype=torch.float16)
    room, rows = poisoned(5, 9, 24, dtype=torch.float32), poisoned(5, 9, dtype=torch.float32)
    out, out_lse = room[:, 2:6, 3:19], rows[:, 1:5]
    output, merged = merge_states(o, lse, out=(out, out_lse) if pair else out)
    expected, expected_lse = merge_states(o, lse, out_dtype=torch.float32)
    assert output is out
    assert torch.equal(output, expected)
    assert torch.equal(merged, expected_lse)
    assert (merged is out_lse) == pair
    assert room.isnan().sum() == 5 * 9 * 24 - out.numel()
    assert rows.isnan().sum() == 5 * 9 - (out_lse.numel() if pair else 0)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=dtype_name)
@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_float8_output_with_a_scale(dtype, kind):
    o, lse = states(3, 5, 4, head_dim=16, dtype=torch.bfloat16, seed=1)
    scale = 0.02 if kind == "number" else torch.tensor([0.02])
    assert_merged(o, lse, out_dtype=dtype, out_scale=scale, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=dtype_name)
def test_float8_output_saturates(dtype):
    o, lse = torch.tensor([[[1e6, -1e6, math.inf, NAN]]]), torch.zeros(1, 1)
    largest = torch.finfo(dtype).max
    output, _ = merge_states(o, lse, out_dtype=dtype)
    assert output.float()[0, :3].tolist() == [largest, -largest, largest]
    assert output.float()[0, 3].isnan()


@pytest.mark.parametrize("size", [(2, 0, 4, 16), (2, 3, 0, 16), (2, 0, 16)], ids=str)
def test_no_rows(size):
    o, lse = torch.empty(size), torch.empty(size[:-1])
    output, merged = merge_states(o, lse)
    assert output.shape == size[1:]
    assert merged.shape == size[1:-1]
    assert merge_states(o[0], lse[0], o[1], lse[1])[0].shape == size[1:]


def test_average_of_large_outputs_is_finite():
    o = torch.full((2, 3, 16), torch.finfo(torch.float32).max)
    output, _ = merge_states(o, torch.zeros(2, 3))
    assert torch.equal(output, o[0])


def test_merge_is_bitwise_reproducible():
    o, lse = stacked_states(9, 17, 3)
    first, second = (merge_states(o, lse) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_one_launch_for_any_number_of_parts(monkeypatch):
    launched = []
    monkeypatch.setattr(
        GridExecutor, "__call__", lambda executor, *_args, **_named: launched.append(executor)
    )
    merge_states(*stacked_states(33, 5, 4))
    assert len(launched) == 1


def test_fault_of_equal_weights_is_found():
    o, lse = states(5, head_dim=16, dtype=torch.bfloat16, seed=1)
    o2, lse2 = states(5, head_dim=16, dtype=torch.bfloat16, seed=5)
    output, _ = merge_states(o, torch.zeros_like(lse), o2, torch.zeros_like(lse))
    expected, _ = reference.merge_states(o, lse, o2, lse2)
    assert worst_error(output, expected, reduction=2, roundings=1) > 1
