"""Decode attention with ragged queries: any number of query tokens a sequence, packed or padded."""

import importlib
import itertools
import re
from pathlib import Path

import pytest
import torch
from decode_checks import (
    TILINGS,
    accesses,
    addresses,
    assert_right,
    attend,
    balanced,
    decode_error,
    live_addresses,
    split,
)
from decodetax.kernels import decode_attention, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import NAN, NOWHERE, by_default, decode_inputs, normal, poisoned

module = importlib.import_module("decodetax.kernels.decode_attention")
BOTH = ("packed", "padded")
either_form = pytest.mark.parametrize("form", BOTH)


def ragged_inputs(lengths, q_lens, form, *, q_heads=3, kv_heads=1, head_dim=16, window=None, **options):
    """Arguments of `decode_attention` for sequences with these numbers of query tokens.

    Keys and values that no query token attends to, and padded queries, are NaN.
    """
    inputs = decode_inputs(lengths, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, **options)
    capacity = inputs["k_cache"].shape[1]
    for name in ("k_cache", "v_cache"):
        for sequence, (length, queries) in enumerate(zip(lengths, q_lens, strict=True)):
            end = min(max(length, 0), capacity)
            begin = 0 if window is None else max(end - queries + 1 - window, 0)
            inputs[name][sequence, : begin if queries else end] = NAN
    dtype = inputs["q"].dtype
    queries = [normal(count, q_heads, head_dim, dtype=dtype, seed=at) for at, count in enumerate(q_lens)]
    if form == "packed":
        starts = [0, *itertools.accumulate(q_lens)]
        return inputs | {"q": torch.cat(queries), "cu_seqlens": torch.tensor(starts, dtype=torch.int32)}
    q = poisoned(len(lengths), max(1, *q_lens), q_heads, head_dim, dtype=dtype)
    for padded, live in zip(q, queries, strict=True):
        padded[: len(live)] = live
    return inputs | {"q": q, "q_lens": torch.tensor(q_lens, dtype=torch.int32)}


@either_form
@pytest.mark.parametrize("tiling", by_default({"whole", "balanced"}, TILINGS.values(), TILINGS.keys()))
def test_chunks_of_prompts_and_decode_steps_in_one_call(form, tiling):
    # With 3 heads of 16 rows: a decode step, no query token, a chunk after a prefix, a prompt from its start.
    inputs = ragged_inputs([40, 33, 50, 21], [1, 0, 17, 21], form, capacity=50)
    assert_right(inputs, tiling=tiling)


@pytest.mark.parametrize("group", by_default({1, 16}, [1, 2, 16, 20]))
@pytest.mark.parametrize("q_len", by_default({15, 16, 17}, [1, 15, 16, 17, 33]))
def test_row_blocks_of_16_rows(group, q_len):
    inputs = ragged_inputs([q_len + 9, 40], [q_len, 1], "packed", q_heads=group, capacity=48)
    assert_right(inputs, tiling=balanced(4))


@either_form
@pytest.mark.parametrize("tiling", [balanced(3), split(2)], ids=["balanced", "split"])
@pytest.mark.parametrize("window", by_default({5}, [1, 5, 16, 40]))
def test_window_softcap_and_sinks_with_ragged_queries(form, tiling, window):
    inputs = ragged_inputs([60, 4, 33], [9, 4, 0], form, q_heads=4, kv_heads=2, capacity=64, window=window)
    options = {"window": window, "softcap": 3.0, "sinks": torch.linspace(-1, 2, 4)}
    assert_right(inputs, tiling=tiling, **options)


@pytest.mark.parametrize("tokens", by_default({9, 33}, [9, 16, 17, 33]))
@pytest.mark.parametrize("lens", by_default({"within"}, [[50, 33], [5, 20]], ["within", "before_the_start"]))
def test_any_number_of_query_tokens(tokens, lens):
    inputs = decode_inputs(lens, q_heads=4, head_dim=16, capacity=50, query_tokens=tokens)
    assert_right(inputs, tiling=balanced(3))


def test_tokens_past_the_last_sequence_give_zero():
    inputs = ragged_inputs([20, 9], [3, 2], "packed", capacity=20)
    inputs["q"] = torch.cat([inputs["q"], poisoned(7, 3, 16, dtype=torch.bfloat16)])
    output, lse = attend(inputs, tiling=balanced(2))
    assert (output[5:] == 0).all()
    assert (lse[5:] == -torch.inf).all()
    assert_right(inputs, tiling=split(2))


def test_packed_queries_without_tokens_launch_nothing():
    inputs = ragged_inputs([20, 9], [0, 0], "packed", capacity=20)
    output, lse = decode_attention(**inputs, return_lse=True)
    assert output.shape == (0, 3, 16)
    assert lse.shape == (0, 3)


@pytest.mark.parametrize("page_size", [0, 16], ids=["contiguous", "paged"])
def test_int64_lengths_and_table(page_size):
    inputs = decode_inputs([37, 0], q_heads=4, capacity=48, page_size=page_size)
    expected = decode_attention(**inputs)
    wide = {name: inputs[name].long() for name in ("context_lens", "block_table") if name in inputs}
    if page_size:
        wide["block_table"][inputs["block_table"] == NOWHERE] = 2**62
    assert torch.equal(decode_attention(**inputs | wide), expected)
    wide["context_lens"][1] = -(2**40)
    assert torch.equal(decode_attention(**inputs | wide), expected)
    wide["context_lens"][:] = 2**32 + 1
    full = torch.full((2,), 48, dtype=torch.int32)
    for name in ("k_cache", "v_cache"):
        inputs[name] = inputs[name].nan_to_num()
    if not page_size:
        clamped = decode_attention(**inputs | wide)
        assert torch.equal(clamped, decode_attention(**inputs | {"context_lens": full}))


@either_form
def test_int64_query_lengths(form):
    inputs = ragged_inputs([40, 33, 50], [1, 0, 17], form, capacity=50)
    name = "cu_seqlens" if form == "packed" else "q_lens"
    output = decode_attention(**inputs)
    assert torch.equal(decode_attention(**inputs | {name: inputs[name].long()}), output)


def test_query_lengths_out_of_range_are_clamped():
    inputs = decode_inputs([20, 30, 9], q_heads=2, kv_heads=1, head_dim=16, capacity=30, query_tokens=5)
    clamped = inputs | {"q_lens": torch.tensor([5, 0, 2], dtype=torch.int32)}
    beyond = inputs | {"q_lens": torch.tensor([2**40, -(2**40), 2])}
    assert torch.equal(decode_attention(**beyond), decode_attention(**clamped))


@either_form
@pytest.mark.parametrize("tiling", by_default({"balanced"}, [balanced(5), split(3)], ["balanced", "split"]))
@pytest.mark.parametrize("window", [None, 9])
def test_each_row_block_loads_its_own_tokens_once(monkeypatch, form, tiling, window):
    lengths, q_lens = [40, 33, 50], [1, 0, 17]
    inputs = ragged_inputs(lengths, q_lens, form, q_heads=4, capacity=50)
    with accesses(monkeypatch) as seen:
        decode_attention(**inputs, tiling=tiling, window=window)
    wanted = {}
    for sequence, (length, queries) in enumerate(zip(lengths, q_lens, strict=True)):
        for first in range(0, queries, 4):  # 16 rows are 4 tokens
            end = length - queries + min(first + 4, queries)
            begin = 0 if window is None else max(length - queries + first + 1 - window, 0)
            ranges = [(begin, end) if at == sequence else (0, 0) for at in range(3)]
            for address in live_addresses(inputs["k_cache"], inputs, ranges):
                wanted[address] = wanted.get(address, 0) + 1
    assert seen.loads_of(inputs["k_cache"]) == wanted


@either_form
def test_each_output_is_stored_once(monkeypatch, form):
    inputs = ragged_inputs([40, 33, 50], [1, 0, 17], form, capacity=50)
    out = poisoned(*inputs["q"].shape, dtype=torch.bfloat16)
    with accesses(monkeypatch) as seen:
        decode_attention(**inputs, tiling=balanced(5), out=out)
    assert seen.stores_of(out) == dict.fromkeys(addresses(out), 1)


@pytest.mark.parametrize("block_g", by_default({64}, [16, 64]))
@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
@pytest.mark.parametrize("value", by_default({"nan"}, [NAN, torch.inf], ["nan", "inf"]))
def test_non_finite_live_cache_reaches_only_rows_that_attend_to_it(name, value, block_g):
    inputs = ragged_inputs([40, 33], [20, 1], "packed", q_heads=4, capacity=40, dtype=torch.float32)
    expected, expected_lse = reference.decode_attention(**inputs)
    inputs[name][0, 33, 0, 3] = value
    output, lse = attend(inputs, tiling=split(2, block_g=block_g))
    before = torch.ones(21, dtype=torch.bool)
    before[13:20] = False  # query tokens 33 to 39 of the first sequence attend to it
    assert decode_error(output[before], expected[before], inputs, expected_lse) <= 1
    torch.testing.assert_close(lse[before], expected_lse[before].float())
    # A score of -inf, of a query whose sign is another than that of an infinite key, leaves a row finite.
    spoiled, _ = reference.decode_attention(**inputs)
    assert torch.equal(output.isfinite(), spoiled.isfinite())
    assert not spoiled[~before][..., 3].isfinite().all()
    if name == "v_cache":
        assert output[~before][..., :3].isfinite().all()


@pytest.mark.parametrize("lse_base", ["e", 2])
@pytest.mark.parametrize("form", ["decode", "tokens", *BOTH])
def test_log_sum_exp_layouts_and_bases(form, lse_base):
    if form in BOTH:
        inputs = ragged_inputs([30, 9], [5, 2], form, capacity=30)
    else:
        inputs = decode_inputs(
            [30, 9], q_heads=3, kv_heads=1, head_dim=16, capacity=30,
            query_tokens=None if form == "decode" else 2,
        )  # fmt: skip
    _, natural = attend(inputs, tiling=split(2))
    for tiling in (split(1), split(2)):
        options = {"tiling": tiling, "return_lse": True, "lse_base": lse_base}
        _, lse = decode_attention(**inputs, **options)
        factor = 1.0 if lse_base == "e" else torch.log2(torch.tensor(torch.e))
        torch.testing.assert_close(lse, natural * factor)
        out = torch.empty_like(inputs["q"]), poisoned(*lse.transpose(-1, -2).shape, dtype=torch.float32)
        _, heads_first = decode_attention(**inputs, **options, lse_layout="heads-first", out=out)
        assert heads_first is out[1]
        assert torch.equal(heads_first.transpose(-1, -2), lse)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=4),
    q_lens=st.lists(st.sampled_from([0, 1, 2, 9, 15, 16, 17, 40]), min_size=4, max_size=4),
    form=st.sampled_from(BOTH),
    heads=st.tuples(st.integers(1, 2), st.sampled_from([1, 2, 3, 4, 7, 16])),
    window=st.sampled_from([None, None, 1, 7, 30]),
    tiling=st.builds(
        lambda chunks, min_tiles, block_g, block_n, whole: (
            split(chunks, block_g=block_g, block_n=block_n)
            if whole
            else balanced(3 * chunks, min_tiles=min_tiles, block_g=block_g, block_n=block_n)
        ),
        st.integers(1, 4), st.integers(1, 5), st.sampled_from([16, 32, 64]), st.sampled_from([16, 32]),
        st.booleans(),
    ),
)  # fmt: skip
def test_random_ragged_queries(lengths, q_lens, form, heads, window, tiling):
    kv_heads, group = heads
    inputs = ragged_inputs(
        lengths, q_lens[: len(lengths)], form, q_heads=kv_heads * group, kv_heads=kv_heads, capacity=50,
        window=window, dtype=torch.float32,
    )  # fmt: skip
    if inputs["q"].numel():
        assert_right(inputs, window=window, tiling=tiling)


@pytest.mark.parametrize(
    "fault",
    [{"query_tokens": lambda tokens: tokens - 1}, {"cu_seqlens_ptr": lambda starts: starts - 1}],
    ids=["one_token_less", "shifted"],
)
def test_fault_of_other_query_tokens_is_found(monkeypatch, fault):
    from test_decode_schedule import altered  # noqa: PLC0415

    inputs = ragged_inputs([40, 33], [4, 17], "packed", capacity=50, unused=0.0)
    altered(monkeypatch, "_split_kv_kernel", **fault)
    output = decode_attention(**inputs, tiling=split(1))
    expected, _ = reference.decode_attention(**inputs)
    assert not torch.allclose(output.double(), expected, atol=0.1)


PAGE = (Path(__file__).parents[2] / "docs" / "kernels" / "decode_attention.md").read_text(encoding="utf-8")
WINDOWS = re.findall(r"(?m)^\| ([\w ]+) \| `(\w+).* \| (\(W - 1, 0\)|W - 1|W) \| .* \| `(.+)` \|$", PAGE)


@pytest.mark.parametrize("window", [1, 7])
def test_windows_of_other_libraries_as_documented(window):
    assert len(WINDOWS) == 6
    for _library, argument, for_w, here in WINDOWS:
        value = eval(for_w, {"W": window})  # noqa: S307  (of our own page)
        names = {"left": value[0]} if isinstance(value, tuple) else {argument: value}
        assert eval(here, names) == window  # noqa: S307  (the same)
