"""The work of each CTA in plain Python, by hand and against launches recorded in the interpreter."""

import importlib
import itertools
import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decodetax.harness.offline.tile_order import decode_chunk_order, matmul_tile_order
from decodetax.kernels import decode_attention, prefill_matmul, prefill_matmul_workspace_bytes
from small_calls import decode_tiling, matmul_shape, matmul_tiling, span
from triton.runtime.interpreter import interpreter_builder

decode_kernels = importlib.import_module("decodetax.kernels.decode_attention")
matmul_kernels = importlib.import_module("decodetax.kernels.prefill_matmul")


class NoKernel:
    def __getitem__(self, grid):
        return lambda **_arguments: None


@contextmanager
def recorded(monkeypatch):
    """Unmasked addresses of every load and store, with the program that asks for them."""
    log = SimpleNamespace(loads=[], stores=[])
    builder = type(interpreter_builder)
    load, store = builder.create_masked_load, builder.create_masked_store

    def unmasked(ptrs, mask):
        return ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)]

    def masked_load(self, ptrs, mask, *rest, **options):
        log.loads.append((self.grid_idx[0], unmasked(ptrs, mask)))
        return load(self, ptrs, mask, *rest, **options)

    def masked_store(self, ptrs, value, mask, *rest, **options):
        log.stores.append((self.grid_idx[0], unmasked(ptrs, mask)))
        return store(self, ptrs, value, mask, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "create_masked_load", masked_load)
        patch.setattr(builder, "create_masked_store", masked_store)
        yield log


def touched(log, tensor, width=1):
    """Rows of `width` elements of a tensor that each program touched, as indices."""
    first, size = tensor.data_ptr(), tensor.element_size()
    found = {}
    for program, addresses in log:
        offsets = addresses.astype(np.int64) - first
        inside = offsets[(offsets >= 0) & (offsets < tensor.numel() * size)] // (size * width)
        if inside.size:
            found.setdefault(program, set()).update(inside.tolist())
    return found


def block(rows, columns, width):
    return {row * width + column for row in rows for column in columns}


@pytest.mark.parametrize("group_m", [3, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 8))])
@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (65, 49, 80), pytest.param((112, 33, 127), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("whole_tiles", "columns"), [(0, None), (3, 20)])
def test_matmul_ctas_compute_the_work_tiles_of_the_tile_order(
    sizes, num_splits, group_m, whole_tiles, columns, monkeypatch
):
    rows, out_features, in_features = sizes
    x, weight = torch.zeros(rows, in_features), torch.zeros(out_features, in_features)
    splits = {"num_splits": num_splits, "whole_tiles": whole_tiles, "columns": columns}
    tiling = matmul_tiling(16, 32, 16, group_m=group_m, **splits)
    out = torch.empty(rows, out_features)
    workspace = torch.empty(max(1, prefill_matmul_workspace_bytes(x, weight, tiling=tiling) // 4))
    monkeypatch.setattr(matmul_kernels, "_split_k_reduce_kernel", NoKernel())
    with recorded(monkeypatch) as log:
        prefill_matmul(x, weight, out=out, workspace=workspace, tiling=tiling)
    order = matmul_tile_order(matmul_shape(rows, out_features, in_features), tiling)

    read_x, read_weight, results, partials = {}, {}, {}, {}
    first_split = sum(tile.whole for tile in order)
    for program, tile in enumerate(order):
        m, n = span(tile.block_m, 16, rows), span(tile.block_n, tiling.block_columns, out_features)
        k = range(tile.first_k * 16, min(tile.last_k * 16, in_features))
        if k:
            read_x[program] = block(m, k, in_features)
            read_weight[program] = block(n, k, in_features)
        if tile.whole:
            results[program] = block(m, n, out_features)
        else:
            first = (program - first_split) * 16
            partials[program] = block(range(first, first + len(m)), range(len(n)), 32)
    assert touched(log.loads, x) == read_x
    assert touched(log.loads, weight) == read_weight
    assert touched(log.stores, out) == results
    assert touched(log.stores, workspace) == partials


def test_chunks_by_hand():
    # The cost of a sequence: 2 to start it, then its tiles, here of 16 tokens.
    # 40 tokens: 2 + 3; 0: 2; 16: 2 + 1; 100: 2 + 7. 19 in all, in chunks of 7.
    chunks = decode_chunk_order(
        context_lens=[40, 0, 16, 100],
        capacity=100,
        q_heads=1,
        kv_heads=1,
        tiling=decode_tiling(programs=3, block_n=16),
        item_cost_tiles=2,
    )
    assert [[(each.sequence, each.begin, each.end, each.whole) for each in own] for own in chunks] == [
        [(0, 0, 40, True), (1, 0, 0, True)],
        [(2, 0, 16, True), (3, 0, 32, False)],
        [(3, 32, 100, False)],
    ]


def test_chunk_that_ends_in_a_starting_cost_leaves_the_item_to_the_next():
    # 2 + 1 and 2 + 3: the first of two chunks of 4 ends one into the second item.
    chunks = decode_chunk_order(
        context_lens=[16, 48],
        capacity=100,
        q_heads=1,
        kv_heads=1,
        tiling=decode_tiling(programs=2, block_n=16),
        item_cost_tiles=2,
    )
    assert [[(each.sequence, each.end, each.whole) for each in own] for own in chunks] == [
        [(0, 16, True)],
        [(1, 48, True)],
    ]


CHUNKS = {
    "one split": ([0, 17, 90], 2, decode_tiling(1, block_n=16), {}),
    "four splits": ([0, 17, 90], 2, decode_tiling(4, block_n=16), {}),
    "splits of row blocks": ([33, 90], 20, decode_tiling(3, block_n=16), {}),
    "splits in a window": ([70, 10], 2, decode_tiling(2, block_n=16), {"window": 21}),
    "balanced": ([0, 17, 90, 80, 1], 2, decode_tiling(programs=7, block_n=16), {}),
    "more CTAs than tiles": ([0, 17, 1], 2, decode_tiling(programs=40, block_n=16), {}),
    "chunks of at least 6": ([80, 3, 64], 2, decode_tiling(programs=9, min_tiles=6, block_n=16), {}),
    "balanced row blocks": ([33, 0, 90], 20, decode_tiling(programs=5, block_n=16), {}),
    "balanced in a window": (
        [70, 10, 80],
        2,
        decode_tiling(programs=6, block_n=16),
        {"window": 21, "query_tokens": 3},
    ),
    "no live token": ([0, 0], 2, decode_tiling(programs=2, block_n=16), {}),
    "packed queries": ([70, 0, 50, 33], 20, decode_tiling(programs=6, block_n=16), {"q_lens": [1, 3, 0, 21]}),
    "packed queries in a window": (
        [70, 9, 50],
        2,
        decode_tiling(programs=7, block_n=16),
        {"window": 21, "q_lens": [40, 9, 1]},
    ),
    "splits of packed queries": ([70, 9, 50], 20, decode_tiling(2, block_n=16), {"q_lens": [9, 0, 3]}),
    "any query tokens": ([70, 9], 2, decode_tiling(programs=5, block_n=16), {"query_tokens": 37}),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_decode_ctas_read_their_chunks(name, monkeypatch):
    lengths, q_heads, tiling, options = CHUNKS[name]
    kv_heads, capacity = 2 if q_heads == 2 else 1, 80
    query_tokens, window, q_lens = (options.get(key) for key in ("query_tokens", "window", "q_lens"))
    query_tokens, group, ragged = query_tokens or 1, q_heads // kv_heads, {}
    q = torch.zeros(len(lengths), query_tokens, q_heads, 16, dtype=torch.float16)
    starts = [sequence * query_tokens for sequence in range(len(lengths) + 1)]
    if q_lens:
        starts = [0, *itertools.accumulate(q_lens)]
        ragged = {"cu_seqlens": torch.tensor(starts, dtype=torch.int32)}
        q = torch.zeros(sum(q_lens), q_heads, 16, dtype=torch.float16)
    caches = [torch.zeros(len(lengths), capacity, kv_heads, 16, dtype=torch.float16) for _ in range(2)]
    out = torch.empty_like(q)
    monkeypatch.setattr(decode_kernels, "_combine_kernel", NoKernel())
    with recorded(monkeypatch) as log:
        lens = torch.tensor(lengths, dtype=torch.int32)
        decode_attention(q, *caches, lens, **ragged, window=window, out=out, tiling=tiling)
    order = decode_chunk_order(
        context_lens=lengths,
        capacity=capacity,
        q_heads=q_heads,
        kv_heads=kv_heads,
        tiling=tiling,
        query_tokens=query_tokens,
        q_lens=q_lens,
        window=window,
    )
    grid = tiling.programs
    if tiling.num_splits:
        # Of packed queries the host knows the tokens alone: each sequence may leave a block that is not full.
        blocks = len(lengths) * math.ceil(group * query_tokens / 16)
        if q_lens:
            blocks = (group * sum(q_lens) + (len(lengths) + 1) * 15) // 16
        grid = kv_heads * blocks * tiling.num_splits
    assert len(order) == grid
    cache_rows, queries, results = {}, {}, {}
    for program, chunks in enumerate(order):
        for sequence, kv_head, row_block, begin, end, whole in chunks:
            rows = {
                (starts[sequence] + row // group) * q_heads + kv_head * group + row % group
                for row in span(row_block, 16, group * (starts[sequence + 1] - starts[sequence]))
            }
            read = {(sequence * capacity + token) * kv_heads + kv_head for token in range(begin, end)}
            cache_rows[program] = cache_rows.get(program, set()) | read
            queries[program] = queries.get(program, set()) | rows
            if whole:
                results[program] = results.get(program, set()) | rows
    cache_rows = {program: read for program, read in cache_rows.items() if read}
    assert touched(log.loads, caches[0], 16) == cache_rows
    assert touched(log.loads, caches[1], 16) == cache_rows
    assert touched(log.loads, q, 16) == queries
    assert touched(log.stores, out, 16) == results
