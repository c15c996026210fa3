"""Device functions of the prefill attention kernel: its loads, and the loop over KV tiles.

The hot loop has no masks, folds the score scale into the exponential's multiply-add, and loads whole tiles:
with the TMA, or through pointers whose strides are compile-time constants. Its careful form counts values
that are not finite as 0; `not_finite_values` adds them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .decode_tile import _in_page, _pages_of, _tanh
from .float8 import to_float16
from .interpreter import patch_interpreter

patch_interpreter()


@triton.jit  # type: ignore[untyped-decorator]
def _operand(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Keys or values in the dtype of the dot; 8-bit elements pass through float16 (see `to_float16`)."""
    if x.dtype != dtype:
        x = to_float16(x).to(dtype)
    return x


@triton.jit  # type: ignore[untyped-decorator]
def load_queries(
    q_ptrs: tl.tensor,
    live_rows: tl.tensor,
    first_column: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """BLOCK columns of a row block of queries, 0 past head_dim.

    Nothing else may be done to them: the operand of a warp-group MMA then comes from shared memory.
    """
    columns = first_column + tl.arange(0, BLOCK)
    mask = live_rows[:, None]
    if first_column + BLOCK > HEAD_DIM:
        mask = mask & (columns < HEAD_DIM)[None, :]
    return _operand(tl.load(q_ptrs + columns[None, :], mask=mask, other=0.0), DTYPE)


@triton.jit  # type: ignore[untyped-decorator]
def _load_tile(
    desc: tl.tensor,
    ptrs: tl.tensor,
    offs: tl.tensor,
    first_row: tl.tensor,
    first_column: tl.tensor,
    live_n: tl.tensor,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """A tile of keys or values [tokens, BLOCK]: columns from COLUMN on of WIDTH, 0 past them.

    With a descriptor the TMA loads it. Otherwise `ptrs` [tokens] plus `offs` [tokens] point at the first
    element of each token, and dead tokens are 0 if MASKED.
    """
    if desc is not None:
        tile = desc.load([first_row, first_column + COLUMN])
    else:
        columns = COLUMN + tl.arange(0, BLOCK)
        tile_ptrs = (ptrs[:, None] + columns[None, :]) + offs
        live = (columns < WIDTH)[None, :]
        if MASKED:
            tile = tl.load(tile_ptrs, mask=live_n[:, None] & live, other=0.0)
        elif COLUMN + BLOCK > WIDTH:
            tile = tl.load(tile_ptrs, mask=live, other=0.0)
        else:
            tile = tl.load(tile_ptrs)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def _rescaled(acc: tl.tensor, decay: tl.tensor, HALVES: tl.constexpr) -> tl.tensor:
    """The accumulator times `decay` [rows]; in halves of its columns, which takes fewer registers."""
    if HALVES:
        ROWS: tl.constexpr = acc.shape[0]
        COLUMNS: tl.constexpr = acc.shape[1]
        halves = tl.permute(tl.reshape(acc, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        halves = tl.join(left * decay[:, None], right * decay[:, None])
        acc = tl.reshape(tl.permute(halves, (0, 2, 1)), (ROWS, COLUMNS))
    else:
        acc = acc * decay[:, None]
    return acc


@triton.jit  # type: ignore[untyped-decorator]
def _attended(
    tokens: tl.tensor,
    end: tl.tensor,
    positions: tl.tensor,
    window: tl.tensor,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
) -> tl.tensor:
    """Which tokens each row attends to: [rows, tokens]."""
    attended = (tokens < end)[None, :]
    if CAUSAL:
        attended = attended & (tokens[None, :] <= positions[:, None])
    if HAS_WINDOW:
        attended = attended & (tokens[None, :] > positions[:, None] - window)
    return attended


@triton.jit  # type: ignore[untyped-decorator]
def initial_state(BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, SUMS: tl.constexpr) -> tl.tuple:
    """The state of `attend` before the first tile.

    The largest score starts at the lowest finite number: -inf minus -inf is NaN. No finite score lies below.
    """
    lowest = tl.full((BLOCK_M,), -3.4028234663852886e38, tl.float32)
    return tl.zeros((BLOCK_M, BLOCK_V), tl.float32), tl.zeros((BLOCK_M, SUMS), tl.float32), lowest


@triton.jit  # type: ignore[untyped-decorator]
def _part_bounds(
    row: tl.tensor,
    last_row: tl.tensor,
    shift: tl.tensor,
    length: tl.tensor,
    window: tl.tensor,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
) -> tl.tuple:
    """Tokens [begin, end) of a part that some row attends to, and those that every row attends to."""
    begin = tl.zeros_like(length)
    end = length
    unmasked_begin = begin
    unmasked_end = length
    if CAUSAL:
        end = tl.minimum(length, last_row + shift)
        unmasked_end = tl.minimum(length, row + shift + 1)
    if HAS_WINDOW:
        begin = tl.minimum(tl.maximum(row + shift - window + 1, 0), end)
        unmasked_begin = tl.maximum(last_row + shift - window, 0)
    return begin, end, unmasked_begin, unmasked_end


@triton.jit  # type: ignore[untyped-decorator]
def attend_part(
    state: tl.tuple,
    queries: tl.tuple,
    source: tl.tuple,
    row: tl.tensor,
    last_row: tl.tensor,
    shift: tl.tensor,
    length: tl.tensor,
    window: tl.tensor,
    softcap_log2: tl.tensor,
    LAYOUT: tl.constexpr,
    OPTIONS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAREFUL: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
) -> tl.tuple:
    """Attends to one part of the keys, the prefix or the new tokens: to tokens [0, length) of it.

    Rows are the new tokens [row, last_row). Token i is at position i + shift of this part. See `attend` for
    the other arguments.
    """
    HAS_WINDOW: tl.constexpr = OPTIONS[1]
    BLOCK_M: tl.constexpr = queries[0].shape[0]
    begin, end, unmasked_begin, unmasked_end = _part_bounds(
        row, last_row, shift, length, window, OPTIONS[0], HAS_WINDOW
    )
    bounds = begin, end, row + shift + tl.arange(0, BLOCK_M)
    first_tile = begin // BLOCK_N
    last_tile = tl.cdiv(end, BLOCK_N)
    if CAREFUL:
        state = attend(
            first_tile, last_tile, state, queries, source, bounds, window, softcap_log2,
            LAYOUT, OPTIONS, HAS_SOFTCAP, BLOCK_N, True, True, NUM_STAGES, False,
        )  # fmt: skip
    else:
        hot_begin = tl.minimum(tl.maximum(tl.cdiv(unmasked_begin, BLOCK_N), first_tile), last_tile)
        hot_end = tl.minimum(tl.maximum(unmasked_end // BLOCK_N, hot_begin), last_tile)
        if HAS_WINDOW:
            state = attend(
                first_tile, hot_begin, state, queries, source, bounds, window, softcap_log2,
                LAYOUT, OPTIONS, HAS_SOFTCAP, BLOCK_N, True, False, NUM_STAGES, False,
            )  # fmt: skip
        state = attend(
            hot_begin, hot_end, state, queries, source, bounds, window, softcap_log2,
            LAYOUT, OPTIONS, HAS_SOFTCAP, BLOCK_N, False, False, NUM_STAGES, WARP_SPECIALIZE,
        )  # fmt: skip
        state = attend(
            hot_end, last_tile, state, queries, source, bounds, window, softcap_log2,
            LAYOUT, OPTIONS, HAS_SOFTCAP, BLOCK_N, True, False, NUM_STAGES, False,
        )  # fmt: skip
    return state


@triton.jit  # type: ignore[untyped-decorator]
def attend(  # noqa: PLR0915  (one loop, read from top to bottom)
    first_tile: tl.tensor,
    last_tile: tl.tensor,
    state: tl.tuple,
    queries: tl.tuple,
    source: tl.tuple,
    bounds: tl.tuple,
    window: tl.tensor,
    softcap_log2: tl.tensor,
    LAYOUT: tl.constexpr,
    OPTIONS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    CAREFUL: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
) -> tl.tuple:
    """Online softmax over KV tiles [first_tile, last_tile) of BLOCK_N tokens, from a running state.

    Args:
        first_tile: the first tile.
        last_tile: the tile after the last.
        state: of a row block: accumulator [BLOCK_M, BLOCK_V], sums of probabilities [BLOCK_M, lanes], and
            largest score in base 2 [BLOCK_M]. The first two are relative to the third, and 2^P_LOG2 times as
            large: float8 has few values below 2^-6.
        queries: the first BLOCK_D columns [BLOCK_M, BLOCK_D], the other columns (the same tensor if there
            are none), and the factor of their scores.
        source: of this part's keys and values: TMA descriptors of keys, of their other columns and of values,
            or None; the row and column of token 0 in them, of keys and of values; pointers to token 0; and
            the pages of the sequence.
        bounds: first and last token to load if MASKED, and the position of each row in this part.
        window: sliding window, in tokens.
        softcap_log2: soft cap of the scores, in base 2.
        LAYOUT: head_dim of keys and values, page size (0 for none), and strides of keys and values: tokens,
            pages, tokens, pages.
        OPTIONS: whether attention is causal, and has a window; P_LOG2; whether to add each product to the
            accumulator outside of the tensor cores (PROMOTED); whether the factor may be negative; whether
            masked tiles rescale the accumulator in halves; and whether values are at the rows and columns of
            their keys (SAME_TILES).
        HAS_SOFTCAP: whether scores have a soft cap.
        BLOCK_N: tokens of a tile.
        MASKED: whether some rows do not attend to all tokens.
        CAREFUL: whether values that are not finite count as 0; `not_finite_values` adds them.
        NUM_STAGES: stages of the software pipeline.
        WARP_SPECIALIZE: whether the loads have a warp of their own.

    Returns:
        The state.
    """
    acc, total, maximum = state
    q, q_rest, factor = queries
    k_desc, k_rest_desc, v_desc, k_row, k_column, v_row, v_column, k_head, v_head, table_ptr = source
    begin, end, positions = bounds
    HEAD_DIM: tl.constexpr = LAYOUT[0]
    V_HEAD_DIM: tl.constexpr = LAYOUT[1]
    PAGE_SIZE: tl.constexpr = LAYOUT[2]
    K_STRIDE_TOKEN: tl.constexpr = LAYOUT[3]
    K_STRIDE_PAGE: tl.constexpr = LAYOUT[4]
    V_STRIDE_TOKEN: tl.constexpr = LAYOUT[5]
    V_STRIDE_PAGE: tl.constexpr = LAYOUT[6]
    P_LOG2: tl.constexpr = OPTIONS[2]
    PROMOTED: tl.constexpr = OPTIONS[3]
    SIGNED: tl.constexpr = OPTIONS[4]
    HALVES: tl.constexpr = OPTIONS[5]
    SAME_TILES: tl.constexpr = OPTIONS[6]
    BLOCK_M: tl.constexpr = q.shape[0]
    BLOCK_D: tl.constexpr = q.shape[1]
    SUMS: tl.constexpr = total.shape[1]
    k_ptrs = k_head
    v_ptrs = v_head
    if k_desc is None:
        in_page = _in_page(PAGE_SIZE, BLOCK_N)
        k_ptrs = k_head + in_page * K_STRIDE_TOKEN  # [BLOCK_N]
        v_ptrs = v_head + in_page * V_STRIDE_TOKEN
    # With SAME_TILES the loop counts rows of the descriptors instead of tokens: fewer uniform registers.
    first_row = k_row if SAME_TILES else 0
    for at in tl.range(
        first_row + first_tile * BLOCK_N,
        first_row + last_tile * BLOCK_N,
        BLOCK_N,
        num_stages=NUM_STAGES,
        warp_specialize=WARP_SPECIALIZE,
    ):
        start = at - first_row
        tile = start // BLOCK_N
        tokens = start + tl.arange(0, BLOCK_N)
        live_n = (tokens >= begin) & (tokens < end)
        if PAGE_SIZE == 0:
            k_offs = tl.cast(start, tl.int64) * K_STRIDE_TOKEN
            v_offs = tl.cast(start, tl.int64) * V_STRIDE_TOKEN
        else:
            pages, page_offs = _pages_of(table_ptr, tile, begin, end, PAGE_SIZE, BLOCK_N, MASKED)
            k_offs = (pages * K_STRIDE_PAGE + page_offs * K_STRIDE_TOKEN)[:, None]
            v_offs = (pages * V_STRIDE_PAGE + page_offs * V_STRIDE_TOKEN)[:, None]
        tile_row = (k_row - first_row) + at
        k = _load_tile(
            k_desc, k_ptrs, k_offs, tile_row, k_column, live_n, 0, HEAD_DIM, BLOCK_D, MASKED
        )  # [BLOCK_N, BLOCK_D]
        scores = tl.dot(q, tl.trans(_operand(k, q.dtype)), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        if HEAD_DIM > BLOCK_D:
            BLOCK_R: tl.constexpr = q_rest.shape[1]
            k_rest = _load_tile(
                k_rest_desc, k_ptrs, k_offs, tile_row, k_column, live_n, BLOCK_D, HEAD_DIM, BLOCK_R, MASKED
            )  # [BLOCK_N, BLOCK_R]
            k_rest = tl.trans(_operand(k_rest, q.dtype))
            scores = tl.dot(q_rest, k_rest, scores, input_precision="ieee")
        # With a factor >= 0 the maximum of scaled scores is the scaled maximum: scale in the exponential's
        # multiply-add. The -inf of a masked score times a factor of 0 is NaN.
        score_factor = factor
        if HAS_SOFTCAP or MASKED or SIGNED:
            scores = scores * factor
            score_factor = tl.full((), 1.0, tl.float32)
        if HAS_SOFTCAP:
            scores = softcap_log2 * _tanh(scores)
        if MASKED:
            attended = _attended(tokens, end, positions, window, OPTIONS[0], OPTIONS[1])
            scores = tl.where(attended, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * score_factor)
        probabilities = tl.exp2(scores * score_factor - (new_maximum - P_LOG2)[:, None])
        decay = tl.exp2(maximum - new_maximum)
        # The lanes that share a row keep sums of their own: a sum per tile would exchange them.
        sums = tl.sum(tl.reshape(probabilities, (BLOCK_M, BLOCK_N // SUMS, SUMS)), 1)
        total = total * decay[:, None] + sums
        maximum = new_maximum
        v = _load_tile(
            v_desc, v_ptrs, v_offs, (v_row - first_row) + at, v_column, live_n,
            0, V_HEAD_DIM, acc.shape[1], MASKED,
        )  # fmt: skip
        values = _operand(v, q.dtype)  # [BLOCK_N, BLOCK_V]
        if CAREFUL:
            wide = values.to(tl.float32)
            values = tl.where(tl.abs(wide) < float("inf"), wide, 0.0).to(q.dtype)
            acc = tl.dot(probabilities.to(q.dtype), values, acc * decay[:, None], input_precision="ieee")
        elif PROMOTED:
            product = tl.dot(probabilities.to(q.dtype), values, input_precision="ieee")
            acc = acc * decay[:, None] + product
        else:
            acc = _rescaled(acc, decay, HALVES and MASKED)
            acc = tl.dot(probabilities.to(q.dtype), values, acc, input_precision="ieee")
    return acc, total, maximum


@triton.jit  # type: ignore[untyped-decorator]
def not_finite_values(
    result: tl.tensor,
    source: tl.tuple,
    row: tl.tensor,
    last_row: tl.tensor,
    shift: tl.tensor,
    length: tl.tensor,
    window: tl.tensor,
    first_column: tl.tensor,
    LAYOUT: tl.constexpr,
    OPTIONS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """`result` [rows, columns] plus one part's values that are not finite, in the rows that attend to them.

    The columns are those of the values from `first_column` on. See `attend_part` for the other arguments.
    """
    V_HEAD_DIM: tl.constexpr = LAYOUT[1]
    PAGE_SIZE: tl.constexpr = LAYOUT[2]
    begin, end, _, _ = _part_bounds(row, last_row, shift, length, window, OPTIONS[0], OPTIONS[1])
    positions = row + shift + tl.arange(0, result.shape[0])
    columns = first_column + tl.arange(0, result.shape[1])
    v_ptrs = source[8] + _in_page(PAGE_SIZE, BLOCK_N) * LAYOUT[5]
    for tile in range(begin // BLOCK_N, tl.cdiv(end, BLOCK_N)):
        tokens = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        live = (tokens >= begin) & (tokens < end)
        if PAGE_SIZE == 0:
            v_offs = tl.zeros((BLOCK_N,), tl.int64) + tl.cast(tile, tl.int64) * (BLOCK_N * LAYOUT[5])
        else:
            pages, page_offs = _pages_of(source[9], tile, begin, end, PAGE_SIZE, BLOCK_N, True)
            v_offs = pages * LAYOUT[6] + page_offs * LAYOUT[5]
        v = tl.load(
            (v_ptrs + v_offs)[:, None] + columns[None, :],
            mask=live[:, None] & (columns < V_HEAD_DIM)[None, :],
            other=0.0,
        )
        values = _operand(v, tl.float32)
        finite = tl.abs(values) < float("inf")
        if tl.min(tl.min(finite.to(tl.int32), 1), 0) == 0:
            for at in range(BLOCK_N):
                token = tile * BLOCK_N + at
                here = (tl.arange(0, BLOCK_N) == at)[:, None]
                value = tl.sum(tl.where(here & (finite == 0), values, 0.0), 0)  # [columns]
                attended = _attended(
                    token + tl.arange(0, 1), end, positions, window, OPTIONS[0], OPTIONS[1]
                )  # [rows, 1]
                result += tl.where(attended, value[None, :], 0.0)
    return result
