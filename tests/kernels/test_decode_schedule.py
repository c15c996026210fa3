"""Which program reads what: every live key and value once, by the program that its share falls to."""

import importlib

import pytest
import torch
from decode_checks import (
    CUTS,
    accesses,
    addresses,
    assert_right,
    balanced,
    decode_error,
    live_addresses,
    split,
)
from decodetax.harness.offline import SanitizerError, count_traffic
from decodetax.kernels import decode_attention, decode_attention_workspace_bytes, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import NARROW_DTYPES, decode_inputs, live_range, poisoned

module = importlib.import_module("decodetax.kernels.decode_attention")
any_cut = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())

BLOCK_N = 16


def altered(monkeypatch, kernel, **changes):
    """Launches of a kernel get other arguments: each a function of the one that the host function gave."""
    launched = getattr(module, kernel)

    class Altered:
        def __getitem__(self, grid):
            return lambda **named: launched[grid](
                **named | {name: change(named[name]) for name, change in changes.items()}
            )

    monkeypatch.setattr(module, kernel, Altered())


def tile_ranges(lengths, capacity, window=None):
    """First tile and the tile after the last, of each sequence."""
    ranges = [live_range(length, capacity, window) for length in lengths]
    return [(begin // BLOCK_N, -(-end // BLOCK_N)) for begin, end in ranges]


def balanced_tiles(lengths, *, kv_heads, capacity, programs, min_tiles, item_cost_tiles, window=None):
    """The tiles (sequence, head, tile) of each program: equal shares of one row of units.

    An item counts item_cost_tiles units before its first tile.
    """
    row = []
    for sequence, (first, last) in enumerate(tile_ranges(lengths, capacity, window)):
        for head in range(kv_heads):
            row += [None] * item_cost_tiles + [(sequence, head, tile) for tile in range(first, last)]
    share = max(-(-len(row) // programs), min_tiles)
    shares = [row[program * share :][:share] for program in range(programs)]
    return {at: {unit for unit in units if unit} for at, units in enumerate(shares) if any(units)}


def split_tiles(lengths, *, kv_heads, capacity, num_splits, window=None):
    """The same of a program a share of each item."""
    result = {}
    for sequence, (first, last) in enumerate(tile_ranges(lengths, capacity, window)):
        size = max(1, -(-(last - first) // num_splits))
        for head in range(kv_heads):
            for at in range(num_splits):
                tiles = range(first, last)[at * size :][:size]
                if tiles:
                    program = (sequence * kv_heads + head) * num_splits + at
                    result[program] = {(sequence, head, tile) for tile in tiles}
    return result


def tiles_read(seen, keys):
    """The tiles of a contiguous cache that each program loaded keys of."""
    where = {}
    _, capacity, kv_heads, _ = keys.shape
    for sequence in range(len(keys)):
        for token in range(capacity):
            for head in range(kv_heads):
                at = keys[sequence, token, head].data_ptr()
                where[at] = (sequence, head, token // BLOCK_N)
    return {
        program: {where[at] for at in touched if at in where}
        for program, touched in seen.by_program("loads", keys).items()
    }


def check_schedule(
    monkeypatch, lengths, tiling, *, kv_heads=1, capacity=80, window=None, item_cost_tiles=None
):
    """Who reads, who leaves partial results and who finishes, as a plain model has it."""
    item_cost_tiles = item_cost_tiles or module.ITEM_COST_TILES
    altered(monkeypatch, "_split_kv_kernel", ITEM_COST_TILES=lambda _: item_cost_tiles)
    inputs = decode_inputs(
        lengths, q_heads=kv_heads, kv_heads=kv_heads, head_dim=16, capacity=capacity, window=window
    )
    options = {"tiling": tiling, "window": window}
    size = decode_attention_workspace_bytes(**inputs, **options)
    out, workspace = (
        poisoned(*inputs["q"].shape, dtype=torch.bfloat16),
        poisoned(size // 4, dtype=torch.float32),
    )
    with accesses(monkeypatch) as seen:
        decode_attention(**inputs, **options, out=out, workspace=workspace)
    shape = {"kv_heads": kv_heads, "capacity": capacity, "window": window}
    if tiling.num_splits:
        expected = split_tiles(lengths, num_splits=tiling.num_splits, **shape)
    else:
        programs = {
            "programs": tiling.programs,
            "min_tiles": tiling.min_tiles,
            "item_cost_tiles": item_cost_tiles,
        }
        expected = balanced_tiles(lengths, **programs, **shape)
    assert tiles_read(seen, inputs["k_cache"]) == expected
    ranges = [live_range(length, capacity, window) for length in lengths]
    for name in ("k_cache", "v_cache"):
        live = live_addresses(inputs[name], inputs, ranges)
        assert seen.loads_of(inputs[name]) == dict.fromkeys(live, 1)
    assert seen.stores_of(out) == dict.fromkeys(addresses(out), 1)
    # A part is 16 numbers and their log-sum-exp; two numbers say what the merge is to do.
    parts = [len(touched) - 2 for touched in seen.by_program("stores", workspace).values()]
    assert set(parts) <= {0, 17, 34} if not tiling.num_splits else set(parts) <= {0, 17}
    assert set(seen.stores_of(workspace).values()) <= {1}
    expected_out, _ = reference.decode_attention(**inputs, window=window)
    assert decode_error(out, expected_out, inputs) <= 1


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=4),
    kv_heads=st.integers(1, 2),
    programs=st.integers(1, 9),
    min_tiles=st.integers(1, 7),
    window=st.sampled_from([None, None, 1, 20, 33]),
    item_cost_tiles=st.integers(1, 3),
)
def test_balanced_programs_take_equal_shares_of_all_tiles(
    lengths, kv_heads, programs, min_tiles, window, item_cost_tiles
):
    with pytest.MonkeyPatch.context() as patch:
        tiling = balanced(programs, min_tiles=min_tiles)
        check_schedule(
            patch, lengths, tiling, kv_heads=kv_heads, window=window, item_cost_tiles=item_cost_tiles
        )


@pytest.mark.parametrize("programs", [1, 2, 3, 7, 12, 30])
def test_balanced_programs_share_one_long_sequence(monkeypatch, programs):
    check_schedule(monkeypatch, [160], balanced(programs), capacity=160)


@pytest.mark.parametrize("batch", [3, 4, 5, 8, 9])
@pytest.mark.parametrize("programs", [2, 5])
def test_balanced_programs_read_lengths_a_block_at_a_time(monkeypatch, batch, programs):
    altered(monkeypatch, "_split_kv_kernel", LENGTHS_BLOCK=lambda _: 4)
    check_schedule(monkeypatch, [0, 33, 17, 0, 49, 0, 0, 1, 16][-batch:], balanced(programs))


def test_balanced_programs_share_more_sequences_than_a_block_of_lengths(monkeypatch):
    lengths = [0] * 129
    lengths[0], lengths[1], lengths[127], lengths[128] = 17, 16, 20, 33
    check_schedule(monkeypatch, lengths, balanced(5), capacity=33)


@settings(max_examples=8)
@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=3),
    num_splits=st.integers(1, 7),
    window=st.sampled_from([None, 20]),
)
def test_splits_share_each_sequence_by_its_own_length(lengths, num_splits, window):
    with pytest.MonkeyPatch.context() as patch:
        check_schedule(patch, lengths, split(num_splits), window=window)


LAYOUTS = {
    "contiguous": {},
    "heads_first": {"heads_first": True, "head_dim": 24},
    "pages_of_3": {"page_size": 3},
    "pages_of_16": {"page_size": 16},
    "window": {"window": 20},
    "window_in_pages": {"window": 20, "page_size": 5},
    "query_tokens": {"query_tokens": 3, "window": 9},
    **{str(dtype).removeprefix("torch."): {"cache_dtype": dtype} for dtype in NARROW_DTYPES},
}


@pytest.mark.parametrize(
    ("layout", "cut"),
    [(name, balanced(3)) for name in LAYOUTS]
    + [("window_in_pages", cut) for cut in (split(1), split(3), None)],
    ids=[*LAYOUTS, "whole", "split", "default"],
)
def test_each_live_key_and_value_is_loaded_once_and_no_other(monkeypatch, layout, cut):
    layout = LAYOUTS[layout]
    inputs = decode_inputs(
        [37, 0, 16], q_heads=2, kv_heads=1, **{"head_dim": 16, "v_head_dim": 40, "capacity": 48, **layout}
    )
    with accesses(monkeypatch) as seen:
        decode_attention(**inputs, tiling=cut, window=layout.get("window"))
    ranges = [
        live_range(length, 48, layout.get("window"), layout.get("query_tokens", 1)) for length in (37, 0, 16)
    ]
    for name in ("k_cache", "v_cache"):
        live = live_addresses(inputs[name], inputs, ranges)
        assert seen.loads_of(inputs[name]) == dict.fromkeys(live, 1)


@any_cut
@pytest.mark.parametrize("window", [None, 4])
def test_no_page_number_but_those_of_live_pages_is_read(monkeypatch, cut, window):
    inputs = decode_inputs([31, 0, 3], q_heads=1, kv_heads=1, head_dim=16, capacity=48, page_size=3)
    with accesses(monkeypatch) as seen:
        decode_attention(**inputs, tiling=cut, window=window)
    table = inputs["block_table"]
    first = slice(0, 11) if window is None else slice(9, 11)
    assert seen.loads_of(table).keys() == addresses(table[0, first]) | addresses(table[2, :1])


@pytest.mark.parametrize(
    ("query_tokens", "passes"), [(4, 1), (8, 2)], ids=["as_many_rows_as_fit", "twice_as_many"]
)
def test_rows_of_up_to_16384_elements_share_one_pass_over_the_cache(query_tokens, passes):
    inputs = decode_inputs([20], q_heads=64, kv_heads=1, capacity=20, query_tokens=query_tokens)
    with count_traffic() as traffic:
        decode_attention(**inputs)
    tensors = traffic.launches[0].tensors
    for name in ("k_ptr", "v_ptr"):
        assert tensors[name].bytes_read_distinct == 20 * 64 * 2
        assert tensors[name].bytes_requested == passes * 20 * 64 * 2


def test_the_bytes_of_a_batch_are_within_a_twentieth_of_the_least():
    lengths = [1000, 37]
    inputs = decode_inputs(lengths, q_heads=32, kv_heads=8, head_dim=128, capacity=1000)
    with count_traffic() as traffic:
        output = decode_attention(**inputs)
    cache = sum(lengths) * 2 * 8 * 128 * 2
    split_launch = traffic.launches[0].tensors
    assert split_launch["k_ptr"].bytes_requested + split_launch["v_ptr"].bytes_requested == cache
    least = cache + inputs["q"].nbytes + output.nbytes + inputs["context_lens"].nbytes
    assert traffic.bytes_requested + traffic.bytes_written <= 1.05 * least
    assert decode_error(output, reference.decode_attention(**inputs)[0], inputs) <= 1


def without_last_part(parts):
    counts = parts.view(-1, 2)[:, 1]
    counts[counts > 0] -= 1
    return parts


MERGE_FAULTS = {
    "skips_a_part": {"parts_ptr": without_last_part},
    "takes_a_slot_for_another": {"NUM_SPLITS": lambda splits: 0 if splits else 1},
    "forgets_the_scale_of_the_values": {"v_factor": lambda _: 1.0},
}


@pytest.mark.parametrize("fault", MERGE_FAULTS.values(), ids=MERGE_FAULTS.keys())
@pytest.mark.parametrize("cut", [split(3), balanced(3)], ids=["split", "balanced"])
def test_a_merge_gone_wrong_would_be_noticed(monkeypatch, fault, cut):
    inputs = decode_inputs([96, 50], q_heads=1, kv_heads=1, head_dim=16, capacity=96)
    altered(monkeypatch, "_combine_kernel", **fault)
    workspace = torch.zeros(decode_attention_workspace_bytes(**inputs, tiling=cut), dtype=torch.uint8)
    output = decode_attention(**inputs, tiling=cut, v_scale=1.1, workspace=workspace)
    assert decode_error(output, reference.decode_attention(**inputs, v_scale=1.1)[0], inputs) > 1


SPLIT_FAULTS = {
    "two_programs_write_one_place": {"stride_out_batch": lambda _: 0},
    "reads_past_the_cache": {"capacity": lambda capacity: capacity + 20},
    "reads_another_page_size": {"stride_k_batch": lambda stride: 2 * stride},
}


@pytest.mark.parametrize("fault", SPLIT_FAULTS.values(), ids=SPLIT_FAULTS.keys())
def test_a_stray_access_would_be_noticed(monkeypatch, fault):
    inputs = decode_inputs([60, 60], q_heads=1, kv_heads=1, head_dim=16, capacity=48)
    altered(monkeypatch, "_split_kv_kernel", **fault)
    with pytest.raises(SanitizerError), count_traffic():
        decode_attention(**inputs, tiling=split(1))


@pytest.mark.parametrize("cut", [split(3), balanced(3)], ids=["split", "balanced"])
def test_a_schedule_that_leaves_out_a_tile_would_be_noticed(monkeypatch, cut):
    altered(monkeypatch, "_split_kv_kernel", context_lens_ptr=lambda lengths: lengths - 16)
    with pytest.raises(AssertionError):
        check_schedule(monkeypatch, [80, 33], cut)


def test_a_merge_that_never_runs_would_be_noticed(monkeypatch):
    altered(monkeypatch, "_combine_kernel", parts_ptr=torch.zeros_like)
    with pytest.raises(AssertionError):
        assert_right(decode_inputs([60], capacity=60), tiling=split(2))
