"""The modelled L2 traffic of tile orders, against hand counts and a plain simulation."""

import dataclasses
import time

import pytest
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.cache_model import LruCache, matmul_traffic
from decodetax.harness.offline.tile_order import matmul_tile_order
from hypothesis import given
from hypothesis import strategies as st
from matmul_suite import group_m_traffic
from small_calls import matmul_shape as shape
from small_calls import matmul_tiling as tiling
from small_calls import span

H100 = find_gpu("h100")


def gpu(sm_count, l2_bytes=0):
    return dataclasses.replace(H100, sm_count=sm_count, l2_bytes=l2_bytes)


def test_cache_evicts_the_least_recently_used_entry():
    cache = LruCache(30)
    for key in (1, 2, 3, 1, 4, 1, 2):  # 4 evicts 2, and 2 then evicts 3
        cache.read(key, 10)
    assert cache.read_bytes == 50
    cache.read(1, 10)
    assert cache.read_bytes == 50
    cache.read(3, 10)
    assert cache.read_bytes == 60


def test_written_entry_is_read_from_the_cache_and_written_back_once():
    cache = LruCache(20)
    cache.write(1, 10)
    cache.read(1, 10)
    assert (cache.read_bytes, cache.written_bytes) == (0, 0)
    cache.read(2, 20)
    assert (cache.read_bytes, cache.written_bytes) == (20, 10)
    cache.write(3, 5)
    cache.flush()
    cache.flush()
    assert cache.written_bytes == 15


def test_entry_larger_than_the_cache_is_not_kept():
    cache = LruCache(10)
    cache.read(1, 11)
    cache.read(1, 11)
    cache.write(2, 11)
    assert (cache.read_bytes, cache.written_bytes) == (22, 11)


# Two by two tiles of 16 x 16, two steps of 16: an x or weight panel and an output tile have 16 rows of 32
# bytes each, 512 bytes; one program at a time goes (0, 0), (1, 0), (0, 1), (1, 1).
@pytest.mark.parametrize(
    ("l2_bytes", "panels_read"),
    [
        # x0 w0, x1 w0, x0 w1, x1 w1, two steps each: every read misses.
        (0, 16),
        # The panels of a step and the previous tile fit; the panels of the previous tile do not.
        (3 * 512, 16),
        # Between two uses of w0 lie x0, the tile and x1: w0's first step is read again 4 entries later.
        (6 * 512, 12),
        # x0 comes back after w0, x1, two tiles and w1.
        (16 * 512, 8),
    ],
)
def test_two_by_two_tiles_read_what_the_hand_count_says(l2_bytes, panels_read):
    traffic = matmul_traffic(
        shape(32, 32, 32), tiling(16, 16, 16), gpu=gpu(1, l2_bytes=l2_bytes), programs_per_sm=1
    )
    assert traffic.dram_read_bytes == panels_read * 512
    assert traffic.dram_written_bytes == 4 * 512
    assert traffic.requested_bytes == traffic.l2_bytes == 20 * 512
    assert traffic.distinct_bytes == 12 * 512


def test_ctas_that_run_together_share_a_panel():
    # All four tiles at one time: each step's two x and two weight panels are read once, though only they fit.
    traffic = matmul_traffic(
        shape(32, 32, 32), tiling(16, 16, 16), gpu=gpu(2, l2_bytes=4 * 512), programs_per_sm=2
    )
    assert traffic.dram_read_bytes == 8 * 512


def test_rows_of_partial_sectors_cost_more_at_l2_than_requested():
    # Rows of 3 x 2 bytes, at bytes 0, 6, 12, 18, 24 and 30: the last of six crosses into a second sector.
    traffic = matmul_traffic(
        shape(6, 1, 3), tiling(16, 16, 16), gpu=gpu(1, l2_bytes=2**20), programs_per_sm=1
    )
    assert traffic.requested_bytes == 36 + 6 + 12
    assert traffic.l2_bytes == 7 * 32 + 32 + 6 * 32
    assert traffic.dram_bytes == traffic.l2_bytes


def test_partial_sums_are_written_read_and_reduced():
    # One tile, two splits of one step each. Partial tiles have 16 rows of 64 bytes, the result of 32.
    traffic = matmul_traffic(
        shape(16, 16, 32),
        tiling(16, 16, 16, num_splits=2),
        gpu=gpu(2, l2_bytes=2**20),
        programs_per_sm=1,
    )
    inputs, partials, result = 4 * 512, 2 * 1024, 512
    assert traffic.requested_bytes == inputs + 2 * partials + result
    assert traffic.dram_read_bytes == inputs
    assert traffic.dram_written_bytes == partials + result
    assert traffic.distinct_bytes == inputs + partials + result


SMALL = st.integers(1, 150)
CALLS = st.builds(
    lambda rows, out_features, in_features, group_m, splits, sms, element_bytes: (
        shape(rows, out_features, in_features, element_bytes=element_bytes),
        tiling(16, 32, 16, group_m=group_m, num_splits=splits),
        sms,
    ),
    *(
        SMALL,
        SMALL,
        SMALL,
        st.integers(1, 5),
        st.integers(1, 4),
        st.integers(1, 9),
        st.sampled_from([1, 2, 4]),
    ),
)


@given(CALLS)
def test_cache_that_holds_all_moves_each_byte_once(call):
    product, cut, sms = call
    traffic = matmul_traffic(product, cut, gpu=gpu(sms, l2_bytes=2**40), programs_per_sm=1)
    assert traffic.dram_bytes == traffic.distinct_bytes


@given(CALLS)
def test_no_cache_moves_each_byte_as_often_as_requested(call):
    product, cut, sms = call
    traffic = matmul_traffic(product, cut, gpu=gpu(sms, l2_bytes=0), programs_per_sm=1)
    assert traffic.dram_bytes == traffic.l2_bytes


@given(CALLS, st.lists(st.integers(0, 60_000), min_size=2, max_size=5))
def test_larger_cache_never_moves_more(call, sizes):
    product, cut, sms = call
    reads = [
        matmul_traffic(product, cut, gpu=gpu(sms, l2_bytes=size), programs_per_sm=1) for size in sorted(sizes)
    ]
    dram = [traffic.dram_bytes for traffic in reads]
    assert dram == sorted(dram, reverse=True)
    assert reads[0].distinct_bytes <= dram[-1] <= dram[0] <= reads[0].l2_bytes


@given(CALLS, st.integers(0, 60_000))
def test_model_agrees_with_a_plain_simulation(call, l2_bytes):
    product, cut, sms = call
    traffic = matmul_traffic(product, cut, gpu=gpu(sms, l2_bytes), programs_per_sm=2)
    assert (traffic.dram_read_bytes, traffic.dram_written_bytes) == plain_simulation(
        product, cut, 2 * sms, l2_bytes
    )


def plain_simulation(product, cut, slots, capacity):
    """Access after access on a list of what the cache holds, oldest first; bytes read and written."""
    held, dirty, read, written = {}, set(), 0, 0
    for name, size, write in plain_accesses(product, cut, slots):
        read += 0 if write or name in held else size
        held.pop(name, None)
        held[name] = size
        dirty |= {name} if write else set()
        while sum(held.values()) > capacity:
            oldest = next(iter(held))
            evicted = held.pop(oldest)
            written += evicted if oldest in dirty else 0
            dirty.discard(oldest)
    return read, written + sum(held[name] for name in dirty)


def plain_accesses(product, cut, slots):
    """What every slot asks for, a step at a time: name, bytes in whole sectors, whether written."""
    m, n, k, size = product.rows, product.out_features, product.in_features, product.x_bytes
    order = matmul_tile_order(product, cut)
    splits = cut.num_splits

    def result(tile, name, element_bytes):
        rows, columns = span(tile.block_m, 16, m), span(tile.block_n, 32, n)
        return (name, tile.block_m, tile.block_n), sectors(rows, columns, n, element_bytes), True

    def partial(tile):
        name, partial_bytes, write = result(tile, "partial", 4)
        return (*name, tile.split), partial_bytes, write

    queue = list(order)
    running = [[tile, tile.first_k] for tile in queue[:slots]]
    del queue[:slots]
    while running:
        if all(at < tile.last_k for tile, at in running):
            for slot in running:
                tile, at = slot
                columns = span(at, 16, k)
                yield ("x", tile.block_m, at), sectors(span(tile.block_m, 16, m), columns, k, size), False
                yield ("w", tile.block_n, at), sectors(span(tile.block_n, 32, n), columns, k, size), False
                slot[1] += 1
        ended = [slot for slot in running if slot[1] == slot[0].last_k]
        yield from (partial(tile) if splits > 1 else result(tile, "out", size) for tile, _ in ended)
        for slot in ended:
            if queue:
                tile = queue.pop(0)
                slot[:] = [tile, tile.first_k]
            else:
                running.remove(slot)
    for tile in sorted(tile for tile in order if splits > 1):
        yield *partial(tile)[:2], False
        if tile.split == splits - 1:
            yield result(tile, "out", size)


def sectors(rows, columns, width, size):
    first, last = columns.start * size, columns.stop * size - 1
    return 32 * sum(
        (row * width * size + last) // 32 - (row * width * size + first) // 32 + 1 for row in rows
    )


def test_whole_matmul_takes_seconds_and_its_levels_are_ordered():
    start = time.process_time()
    traffic = matmul_traffic(shape(4096, 28672, 4096), tiling(128, 256, 64), gpu=H100, programs_per_sm=1)
    assert time.process_time() - start < 5
    # 32 x 112 tiles of 64 steps request (128 + 256) x 64 x 2 bytes each; the result has 4096 x 28672 x 2.
    assert traffic.requested_bytes == 32 * 112 * 64 * 384 * 128 + 4096 * 28672 * 2
    assert traffic.l2_bytes == traffic.requested_bytes
    assert traffic.distinct_bytes < traffic.dram_bytes < traffic.l2_bytes
    assert traffic.requested_ops_per_byte == pytest.approx(83.59, abs=0.01)
    assert traffic.l2_ops_per_byte < traffic.dram_ops_per_byte
    # Far past H100's balance point of 989e12 / 3.35e12 operations per byte, in its own tile order.
    assert traffic.dram_ops_per_byte > 1.5 * 989 / 3.35


def test_search_tries_a_group_near_the_best_of_all():
    product, cut = shape(4096, 8192, 1024), tiling(128, 128, 64)
    on = {"gpu": gpu(108, l2_bytes=10 * 2**20), "programs_per_sm": 1}
    tried, every = (
        {group_m: traffic.dram_bytes for group_m, traffic in found.items()}
        for found in (
            group_m_traffic(product, cut, **on),
            group_m_traffic(product, cut, **on, candidates=range(1, 33)),
        )
    )
    assert min(tried.values()) <= 1.05 * min(every.values())
    assert every[1] > 2 * min(every.values())


def test_rejects_an_occupancy_of_0():
    with pytest.raises(ValueError, match="programs_per_sm is 0; it must be at least 1"):
        matmul_traffic(shape(16, 16, 16), tiling(16, 16, 16), gpu=gpu(1), programs_per_sm=0)
