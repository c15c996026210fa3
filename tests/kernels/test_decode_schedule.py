"""On-device work scheduling: the assigned CTA reads each live key and value exactly once."""

import importlib

import pytest
import torch
from decode_checks import (
    TILINGS,
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
from kernel_inputs import NARROW_DTYPES, by_default, decode_inputs, live_range, poisoned

module = importlib.import_module("decodetax.kernels.decode_attention")
any_tiling = pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())

BLOCK_N = 16


def altered(monkeypatch, kernel, **changes):
    """Changes arguments of a kernel's launches, each by a function of the host function's value."""
    launched = getattr(module, kernel)

    class Altered:
        def __getitem__(self, grid):
            return lambda **named: launched[grid](
                **named | {name: change(named[name]) for name, change in changes.items()}
            )

    monkeypatch.setattr(module, kernel, Altered())


def tile_ranges(lengths, capacity, window=None):
    """First tile, and the tile after the last, of each sequence."""
    ranges = [live_range(length, capacity, window) for length in lengths]
    return [(begin // BLOCK_N, -(-end // BLOCK_N)) for begin, end in ranges]


def balanced_tiles(lengths, *, kv_heads, capacity, programs, min_tiles, item_cost_tiles, window=None):
    """The tiles (sequence, head, tile) of each CTA: equal chunks of a row of units.

    An item has item_cost_tiles units before its first tile.
    """
    row = []
    for sequence, (first, last) in enumerate(tile_ranges(lengths, capacity, window)):
        for head in range(kv_heads):
            row += [None] * item_cost_tiles + [(sequence, head, tile) for tile in range(first, last)]
    size = max(-(-len(row) // programs), min_tiles)
    chunks = [row[program * size :][:size] for program in range(programs)]
    return {at: {unit for unit in units if unit} for at, units in enumerate(chunks) if any(units)}


def split_tiles(lengths, *, kv_heads, capacity, num_splits, window=None):
    """The tiles of each CTA where each item is split by its own length."""
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
    """The tiles of a contiguous cache whose keys each CTA loaded."""
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
    """Loads, split-KV partials and stores of each CTA are those of a simple model."""
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
    # A partial is 16 numbers and their log-sum-exp; two more numbers direct the combine kernel.
    sizes = [len(touched) - 2 for touched in seen.by_program("stores", workspace).values()]
    assert set(sizes) <= ({0, 17} if tiling.num_splits else {0, 17, 34})
    assert set(seen.stores_of(workspace).values()) <= {1}
    expected_out, _ = reference.decode_attention(**inputs, window=window)
    assert decode_error(out, expected_out, inputs) <= 1


@pytest.mark.slow
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=4),
    kv_heads=st.integers(1, 2),
    programs=st.integers(1, 9),
    min_tiles=st.integers(1, 7),
    window=st.sampled_from([None, None, 1, 20, 33]),
    item_cost_tiles=st.integers(1, 3),
)
def test_balanced_ctas_take_equal_chunks(lengths, kv_heads, programs, min_tiles, window, item_cost_tiles):
    with pytest.MonkeyPatch.context() as patch:
        tiling = balanced(programs, min_tiles=min_tiles)
        check_schedule(
            patch, lengths, tiling, kv_heads=kv_heads, window=window, item_cost_tiles=item_cost_tiles
        )


@pytest.mark.parametrize("programs", by_default({3, 12}, [1, 2, 3, 7, 12, 30]))
def test_balanced_ctas_split_one_long_sequence(monkeypatch, programs):
    check_schedule(monkeypatch, [160], balanced(programs), capacity=160)


@pytest.mark.parametrize("batch", by_default({4, 9}, [3, 4, 5, 8, 9]))
@pytest.mark.parametrize("programs", [2, 5])
def test_balanced_ctas_read_lengths_in_blocks(monkeypatch, batch, programs):
    altered(monkeypatch, "_split_kv_kernel", LENGTHS_BLOCK=lambda _: 4)
    check_schedule(monkeypatch, [0, 33, 17, 0, 49, 0, 0, 1, 16][-batch:], balanced(programs))


@pytest.mark.slow
def test_balanced_ctas_with_more_sequences_than_a_block_of_lengths(monkeypatch):
    lengths = [0] * 129
    lengths[0], lengths[1], lengths[127], lengths[128] = 17, 16, 20, 33
    check_schedule(monkeypatch, lengths, balanced(5), capacity=33)


@pytest.mark.slow
@settings(max_examples=8)
@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=3),
    num_splits=st.integers(1, 7),
    window=st.sampled_from([None, 20]),
)
def test_kv_splits_follow_each_sequence_length(lengths, num_splits, window):
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
    ("layout", "tiling"),
    [(name, balanced(3)) for name in LAYOUTS]
    + [("window_in_pages", tiling) for tiling in (split(1), split(3), None)],
    ids=[*LAYOUTS, "whole", "split", "default"],
)
def test_every_live_key_and_value_is_loaded_exactly_once(monkeypatch, layout, tiling):
    layout = LAYOUTS[layout]
    inputs = decode_inputs(
        [37, 0, 16], q_heads=2, kv_heads=1, **{"head_dim": 16, "v_head_dim": 40, "capacity": 48, **layout}
    )
    with accesses(monkeypatch) as seen:
        decode_attention(**inputs, tiling=tiling, window=layout.get("window"))
    ranges = [
        live_range(length, 48, layout.get("window"), layout.get("query_tokens", 1)) for length in (37, 0, 16)
    ]
    for name in ("k_cache", "v_cache"):
        live = live_addresses(inputs[name], inputs, ranges)
        assert seen.loads_of(inputs[name]) == dict.fromkeys(live, 1)


@any_tiling
@pytest.mark.parametrize("window", [None, 4])
def test_only_live_block_table_entries_are_read(monkeypatch, tiling, window):
    inputs = decode_inputs([31, 0, 3], q_heads=1, kv_heads=1, head_dim=16, capacity=48, page_size=3)
    with accesses(monkeypatch) as seen:
        decode_attention(**inputs, tiling=tiling, window=window)
    table = inputs["block_table"]
    first = slice(0, 11) if window is None else slice(9, 11)
    assert seen.loads_of(table).keys() == addresses(table[0, first]) | addresses(table[2, :1])


@pytest.mark.parametrize(
    ("query_tokens", "ends"), [(4, [20]), (8, [14, 16, 18, 20])], ids=["as_many_rows_as_fit", "more"]
)
def test_one_pass_over_the_cache_up_to_16384_row_elements(query_tokens, ends):
    # Blocks of more rows have 128 each, and end with their own last query token.
    inputs = decode_inputs([20], q_heads=64, kv_heads=1, capacity=20, query_tokens=query_tokens)
    with count_traffic() as traffic:
        decode_attention(**inputs)
    tensors = traffic.launches[0].tensors
    for name in ("k_ptr", "v_ptr"):
        assert tensors[name].bytes_read_distinct == 20 * 64 * 2
        assert tensors[name].bytes_requested == sum(ends) * 64 * 2


@pytest.mark.slow
def test_traffic_is_within_5_percent_of_the_minimum():
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


def test_ctas_without_work_access_nothing_out_of_bounds():
    with count_traffic():
        decode_attention(**decode_inputs([5], capacity=16), tiling=balanced(8))


def without_last_partial(partial_counts):
    counts = partial_counts.view(-1, 2)[:, 1]
    counts[counts > 0] -= 1
    return partial_counts


COMBINE_FAULTS = {
    "skips_a_partial": {"partial_counts_ptr": without_last_partial},
    "reads_another_slot": {"NUM_SPLITS": lambda splits: 0 if splits else 1},
    "omits_v_scale": {"v_factor": lambda _: 1.0},
}


@pytest.mark.parametrize("fault", COMBINE_FAULTS.values(), ids=COMBINE_FAULTS.keys())
@pytest.mark.parametrize("tiling", [split(3), balanced(3)], ids=["split", "balanced"])
def test_fault_in_the_combine_kernel_is_found(monkeypatch, fault, tiling):
    inputs = decode_inputs([96, 50], q_heads=1, kv_heads=1, head_dim=16, capacity=96)
    altered(monkeypatch, "_combine_kernel", **fault)
    workspace = torch.zeros(decode_attention_workspace_bytes(**inputs, tiling=tiling), dtype=torch.uint8)
    output = decode_attention(**inputs, tiling=tiling, v_scale=1.1, workspace=workspace)
    assert decode_error(output, reference.decode_attention(**inputs, v_scale=1.1)[0], inputs) > 1


SPLIT_FAULTS = {
    "two_ctas_write_one_address": {"stride_out_batch": lambda _: 0},
    "reads_past_the_cache": {"capacity": lambda capacity: capacity + 20},
    "reads_another_page_size": {"stride_k_batch": lambda stride: 2 * stride},
}


@pytest.mark.parametrize("fault", SPLIT_FAULTS.values(), ids=SPLIT_FAULTS.keys())
def test_fault_of_a_stray_access_is_found(monkeypatch, fault):
    inputs = decode_inputs([60, 60], q_heads=1, kv_heads=1, head_dim=16, capacity=48)
    altered(monkeypatch, "_split_kv_kernel", **fault)
    with pytest.raises(SanitizerError), count_traffic():
        decode_attention(**inputs, tiling=split(1))


@pytest.mark.parametrize("tiling", [split(3), balanced(3)], ids=["split", "balanced"])
def test_fault_of_a_missing_tile_is_found(monkeypatch, tiling):
    altered(monkeypatch, "_split_kv_kernel", context_lens_ptr=lambda lengths: lengths - 16)
    with pytest.raises(AssertionError):
        check_schedule(monkeypatch, [80, 33], tiling)


def test_fault_of_a_missing_combine_is_found(monkeypatch):
    altered(monkeypatch, "_combine_kernel", partial_counts_ptr=torch.zeros_like)
    with pytest.raises(AssertionError):
        assert_right(decode_inputs([60], capacity=60), tiling=split(2))
