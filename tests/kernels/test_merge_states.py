"""The merge of two attention states."""

import math

import pytest
import torch
from decode_checks import decode_error
from decodetax.kernels import decode_attention, merge_states, reference
from kernel_inputs import DTYPES, NAN, by_default, decode_inputs, dtype_name, normal, worst_error


def states(*rows, head_dim, dtype, seed):
    """Output and log-sum-exp of one part of a context."""
    return normal(*rows, head_dim, dtype=dtype, seed=seed), normal(*rows, dtype=torch.float32, seed=seed + 1)


def assert_merged(o, lse, o2, lse2):
    output, merged = merge_states(o, lse, o2, lse2)
    expected, expected_lse = reference.merge_states(o, lse, o2, lse2)
    assert output.dtype == o.dtype
    assert merged.dtype == torch.float32
    assert output.shape == o.shape
    # A log-sum-exp of size s is rounded to within s roundoffs, and its exponential by as much.
    size = float(torch.where(expected_lse.isfinite(), expected_lse.abs(), 0.0).max())
    assert worst_error(output, expected, reduction=(2 + size) ** 2, roundings=1) <= 1
    torch.testing.assert_close(merged.double(), expected_lse, rtol=1e-6, atol=1e-6)


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


def test_fault_of_equal_weights_is_found():
    o, lse = states(5, head_dim=16, dtype=torch.bfloat16, seed=1)
    o2, lse2 = states(5, head_dim=16, dtype=torch.bfloat16, seed=5)
    output, _ = merge_states(o, torch.zeros_like(lse), o2, torch.zeros_like(lse))
    expected, _ = reference.merge_states(o, lse, o2, lse2)
    assert worst_error(output, expected, reduction=2, roundings=1) > 1
