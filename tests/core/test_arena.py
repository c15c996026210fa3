"""The arena of inputs: views at moving offsets, put back where written, enough copies for cold caches."""

import itertools

import pytest
import torch
from decodetax.harness.core import arena as module
from decodetax.harness.core.arena import (
    ALIGNMENT_BYTES,
    Arena,
    arena_bytes,
    copies_needed,
    input_bytes,
    memory_bytes,
)
from decodetax.harness.core.cases import DecodeAttention
from decodetax.harness.core.inputs import DTYPES, draw
from decodetax.harness.core.records import Roof
from small_cases import CPU, decode_case, layer_case, matmul_case
from test_inputs import CASES, tensors_of

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
NO_ROOF = Roof(flop_per_s=None, bandwidth_bytes_per_s=None)
KIB = 2**10
OWN = {"out", "context_lens", "cos", "sin", "norms"}
"""Tensors of inputs that do not lie in the arena."""


def arena(size_bytes=256 * KIB, seed=0):
    return Arena(CPU, seed, size_bytes=size_bytes)


def span(tensor):
    """First and last byte of a dense tensor."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes


def spans(inputs):
    return [span(tensor) for name, tensor in tensors_of(inputs).items() if name not in OWN]


def overlap(one, other):
    return one[0] < other[1] and other[0] < one[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_hold_normal_numbers_at_aligned_moving_offsets(dtype):
    block = arena()
    start = block.block(DTYPES[dtype]).data_ptr()
    places = []
    for _ in range(5):
        drawn = block.normal(3, 1001, dtype=DTYPES[dtype])
        assert drawn.is_contiguous()
        assert drawn.float().std() == pytest.approx(1.0, rel=0.05)
        places.append(drawn.data_ptr() - start)
    assert places == sorted(set(places))
    assert all(place % ALIGNMENT_BYTES == 0 for place in places)


def test_drawing_wraps_around_and_reads_the_same_numbers_there():
    block = arena(4 * KIB)
    first = block.normal(500, dtype=torch.float32)
    again = [block.normal(500, dtype=torch.float32) for _ in range(2)][-1]
    assert again.data_ptr() == first.data_ptr()


def test_seed_decides_the_numbers():
    first, again, other = (arena(seed=seed).normal(50, dtype=torch.bfloat16) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_than_the_arena_is_out_of_memory():
    with pytest.raises(MemoryError, match="inputs of 8192 bytes in an arena of 4096"):
        arena(4 * KIB).normal(2048, dtype=torch.float32)


def test_words_are_finite_whatever_the_dtype():
    for dtype in DTYPES.values():
        block = arena()
        block.block(dtype)
        assert block.words().isfinite().all()


@each_case
def test_tensors_of_one_call_never_overlap(case):
    block = arena(2 * input_bytes(case))
    for _ in range(7):
        for one, other in itertools.combinations(spans(block.copies_of(case, 1)[0]), 2):
            assert not overlap(one, other)
        block.normal(77, dtype=torch.float32)


@each_case
@pytest.mark.parametrize("count", [1, 3, 9])
def test_copies_lie_side_by_side_at_other_offsets(case, count):
    size = input_bytes(case)
    copies = arena(count * size + 5 * ALIGNMENT_BYTES).copies_of(case, count)
    assert len(copies) == count
    places = list(itertools.chain.from_iterable(map(spans, copies)))
    for one, other in itertools.combinations(places, 2):
        assert not overlap(one, other)


@each_case
def test_arena_smaller_than_all_copies_holds_as_many_as_fit(case):
    assert len(arena(int(2.9 * input_bytes(case))).copies_of(case, 5)) == 2


@each_case
def test_case_lies_at_the_same_place_each_time_and_other_cases_elsewhere(case):
    block, other = arena(8 * input_bytes(case) + 64 * KIB), matmul_case(2, 3, 5, dtype=case.dtype)
    first, next_to_it = block.copies_of(case, 2), block.copies_of(other, 1)
    again = block.copies_of(case, 2)
    assert [spans(copy) for copy in first] == [spans(copy) for copy in again]
    assert not any(overlap(a, b) for a in spans(first[0]) for b in spans(next_to_it[0]))
    assert spans(block.copies_of(other, 1)[0]) == spans(next_to_it[0])


@each_case
def test_input_bytes_are_those_that_a_copy_takes(case):
    block = arena(2**20)
    block.block(DTYPES[case.dtype])
    draw(case, block)
    assert block.offset_bytes == input_bytes(case)


def test_what_a_case_writes_is_put_back():
    contexts = (0, 1, 7, 5)
    ragged = DecodeAttention(contexts=contexts, q_heads=4, kv_heads=2, head_dim=16, dtype="bf16")
    block = arena()
    before = block.block(torch.bfloat16).clone()
    [drawn] = block.copies_of(ragged, 1)
    assert drawn.k_cache[0].isnan().all()
    assert not block.intact()
    block.restore()
    assert block.intact()
    assert torch.equal(block.block(torch.bfloat16), before)


def test_new_keys_of_a_layer_are_put_back():
    block = arena()
    [drawn] = block.copies_of(layer_case("decode"), 1)
    drawn.k_cache[:, :, -1] = 7.0
    block.restore()
    assert block.intact()


@pytest.mark.parametrize("dtype", DTYPES)
def test_altered_numbers_are_noticed_and_refilled(dtype):
    block = arena(64 * KIB)
    numbers = block.block(DTYPES[dtype])
    assert block.intact()
    for at in (0, len(numbers) // 2, -1):
        numbers[at] += 1
        assert not block.intact()
        block.refill()
        assert block.intact()


def test_another_dtype_fills_the_block_anew():
    block = arena()
    block.block(torch.float32)
    assert block.normal(300, dtype=torch.bfloat16).float().std() == pytest.approx(1.0, rel=0.15)
    assert block.intact()


@pytest.mark.parametrize(
    "cache_share",
    [
        pytest.param(0.05, id="tiny cache"),
        pytest.param(1 / 2.2, id="a copy of 2.2 caches"),
        pytest.param(1.5, id="a copy that the cache holds"),
        pytest.param(40, id="a small copy"),
    ],
)
@each_case
def test_copies_hold_the_cache_five_times_and_no_copy_more(case, cache_share):
    cache_bytes, size = int(case.work().bytes_total * cache_share), case.work().bytes_total
    count = copies_needed(case, NO_ROOF, cache_bytes=cache_bytes)
    assert count * size >= 5 * cache_bytes
    assert (count - 1) * size < 5 * cache_bytes


def test_case_too_small_for_the_cache_has_the_most_copies():
    assert copies_needed(matmul_case(1, 1, 1), NO_ROOF, cache_bytes=2**40) == module.MAX_COPIES >= 100


@pytest.mark.parametrize(("margin", "count"), [(0.99, 5), (1.01, 2)], ids=["memory counts", "compute-bound"])
def test_compute_bound_case_needs_two_copies(margin, count):
    case = matmul_case(64, 64, 64)
    work = case.work()
    flop_per_s = work.operations / (10 * margin * work.bytes_total)
    roof = Roof(flop_per_s=flop_per_s, bandwidth_bytes_per_s=1.0)
    assert copies_needed(case, roof, cache_bytes=work.bytes_total) == count


@pytest.mark.parametrize("caches", [0.1, 0.5, 1.0, 3.0])
@each_case
def test_arena_holds_the_copies_that_cold_caches_need(case, caches):
    cache_bytes = int(caches * input_bytes(case))
    size = arena_bytes([case], cache_bytes=cache_bytes, free_bytes=2**40, least_bytes=0)
    assert size >= max(5 * cache_bytes, input_bytes(case))
    copies = size // input_bytes(case)
    assert copies * input_bytes(case) >= 4 * cache_bytes


@pytest.mark.parametrize(
    ("cache_bytes", "free_bytes", "least_bytes", "expected"),
    [
        pytest.param(KIB, 2**40, 2**20, 2**20, id="least"),
        pytest.param(2**20, 2**40, 0, 5 * 2**20, id="caches"),
        pytest.param(2**20, 2**23, 0, 2**20, id="an eighth of the free memory"),
    ],
)
def test_arena_fits_in_an_eighth_of_the_free_memory(cache_bytes, free_bytes, least_bytes, expected):
    case = decode_case()
    size = arena_bytes([case], cache_bytes=cache_bytes, free_bytes=free_bytes, least_bytes=least_bytes)
    assert expected <= size <= expected + input_bytes(case)


def test_arena_leaves_out_cases_that_do_not_fit_in_memory():
    small, large = matmul_case(3, 5, 7), matmul_case(1000, 1000, 1000)
    options = {"cache_bytes": 0, "free_bytes": memory_bytes(small) + 1, "least_bytes": 0}
    assert arena_bytes([small, large], **options) < input_bytes(large)


@each_case
def test_memory_estimate_covers_inputs_and_outputs(case):
    held = sum(tensor.nbytes for tensor in tensors_of(arena().copies_of(case, 1)[0]).values())
    assert held <= memory_bytes(case) + ALIGNMENT_BYTES
