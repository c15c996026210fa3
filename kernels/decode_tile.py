"""Device functions of the decode attention kernels: the hot loop over KV tiles, and the epilogue.

K, V and page ids are loaded several iterations ahead (software pipelining with num_stages; cp.async). The hot
loop is short: it has no masks, its addresses differ by constants, it loads one page id per page, it folds the
score scale into the exponential's multiply-add, and it sums rows after the last tile.

This file is over 400 lines because the steps of one loop, inlined into it by the compiler, are read together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .float8 import from_float32, to_float16
from .interpreter import patch_interpreter

patch_interpreter()


@triton.jit  # type: ignore[untyped-decorator]
def _dot_operand(cache: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Cache elements in the dtype of the dot; 8-bit elements pass through float16 (see `to_float16`)."""
    if cache.dtype.primitive_bitwidth == 8:
        cache = to_float16(cache).to(dtype)
    return cache


@triton.jit  # type: ignore[untyped-decorator]
def _tanh(x: tl.tensor) -> tl.tensor:
    """Hyperbolic tangent: 1 - 2 / (1 + exp(2x)); a series near 0, where that difference cancels."""
    square = x * x
    near_0 = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.2, near_0, 1.0 - 2.0 / (1.0 + tl.exp2(x * 2.8853900817779268)))


@triton.jit  # type: ignore[untyped-decorator]
def _pages_of(
    table_ptr: tl.tensor,
    tile: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tuple:
    """Page id of each token, and the tile's start offset in its page; `_in_page` adds the per-token part."""
    if BLOCK_N % PAGE_SIZE == 0 or PAGE_SIZE % BLOCK_N == 0:
        # Each page id is loaded once. A tile inside one page starts at an offset in it.
        PAGES: tl.constexpr = BLOCK_N // PAGE_SIZE if BLOCK_N > PAGE_SIZE else 1
        IN_PAGE: tl.constexpr = BLOCK_N // PAGES
        starts = tile * BLOCK_N + tl.arange(0, PAGES) * IN_PAGE
        live = (starts + IN_PAGE > begin) & (starts < end)
        page_ids = _loaded(table_ptr + starts // PAGE_SIZE, live, MASKED)
        page_ids = tl.reshape(tl.broadcast_to(page_ids[:, None], (PAGES, IN_PAGE)), (BLOCK_N,))
        page_offs = tl.zeros((BLOCK_N,), tl.int64)
        if PAGES == 1:
            page_offs += tl.cast(tile, tl.int64) * BLOCK_N % PAGE_SIZE
    else:
        tokens = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        page_ids = _loaded(table_ptr + tokens // PAGE_SIZE, (tokens >= begin) & (tokens < end), MASKED)
        page_offs = (tokens % PAGE_SIZE).to(tl.int64)
    return page_ids.to(tl.int64), page_offs


@triton.jit  # type: ignore[untyped-decorator]
def _loaded(ptrs: tl.tensor, mask: tl.tensor, MASKED: tl.constexpr) -> tl.tensor:
    """The elements at the pointers; if MASKED, 0 where the mask is false."""
    return tl.load(ptrs, mask=mask, other=0.0) if MASKED else tl.load(ptrs)


@triton.jit  # type: ignore[untyped-decorator]
def _in_page(PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr) -> tl.tensor:
    """Per-token offset inside a page (or a contiguous cache), the same for all tiles: [BLOCK_N] int64."""
    offs_n = tl.arange(0, BLOCK_N).to(tl.int64)
    if PAGE_SIZE > 0 and PAGE_SIZE % BLOCK_N != 0:
        in_page = offs_n % PAGE_SIZE if BLOCK_N % PAGE_SIZE == 0 else offs_n * 0
    else:
        in_page = offs_n
    return in_page


@triton.jit  # type: ignore[untyped-decorator]
def _softmax(
    scores: tl.tensor,
    sums: tl.tensor,
    maximum: tl.tensor,
    factor: tl.tensor,
    softcap_log2: tl.tensor,
    attended: tl.tensor,
    HAS_SOFTCAP: tl.constexpr,
    SIGNED: tl.constexpr,
    LATE_SUM: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tuple:
    """One tile of the online softmax: probabilities, decay of earlier tiles, new sums and new maximum.

    A factor that is SIGNED may be below 0: `signed_query` has not changed the queries.
    """
    score_factor = factor
    if SIGNED:
        scores *= factor[:, None]
        score_factor = tl.full(factor.shape, 1.0, tl.float32)
    if HAS_SOFTCAP:
        scores = softcap_log2 * _tanh(scores * score_factor[:, None])
        score_factor = tl.full(factor.shape, 1.0, tl.float32)
    if MASKED:
        largest = tl.max(tl.where(attended, scores, float("-inf")), 1)
        # A row that attends to no token of the tile has maximum -inf; times a factor of 0 it is NaN.
        largest = tl.where(largest == float("-inf"), float("-inf"), largest * score_factor)
    else:
        largest = tl.max(scores, 1) * score_factor
    new_maximum = tl.maximum(maximum, largest)
    # If all scores so far are -inf, subtract 0: -inf minus -inf is NaN.
    offset = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    probabilities = tl.exp2(scores * score_factor[:, None] - offset[:, None])
    if MASKED:
        probabilities = tl.where(attended, probabilities, 0.0)
    decay = tl.exp2(maximum - offset)
    sums = sums * decay[:, None] + (probabilities if LATE_SUM else tl.sum(probabilities, 1)[:, None])
    return probabilities, decay, sums, new_maximum


@triton.jit  # type: ignore[untyped-decorator]
def tokens_and_heads(
    rows: tl.tensor, kv_head: tl.tensor, GROUP: tl.constexpr, QUERY_TOKENS: tl.constexpr
) -> tl.tuple:
    """Query token and query head of each row; of dead rows any."""
    if QUERY_TOKENS == 1:
        tokens, heads = rows * 0, kv_head * GROUP + rows
    else:
        tokens, heads = rows // GROUP, kv_head * GROUP + rows % GROUP
    return tokens, heads


@triton.jit  # type: ignore[untyped-decorator]
def attend(  # noqa: C901, PLR0912, PLR0915  (one loop, read from top to bottom)
    first_tile: tl.tensor,
    last_tile: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    acc: tl.tensor,
    total: tl.tensor,
    maximum: tl.tensor,
    q: tl.tensor,
    factor: tl.tensor,
    positions: tl.tensor,
    k_head: tl.tensor,
    v_head: tl.tensor,
    table_ptr: tl.tensor,
    window: tl.tensor,
    softcap_log2: tl.tensor,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    K_STRIDE_TOKEN: tl.constexpr,
    K_STRIDE_PAGE: tl.constexpr,
    V_STRIDE_TOKEN: tl.constexpr,
    V_STRIDE_PAGE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    q_rest: tl.tensor,
    rest_factor: tl.tensor,
    LATENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    k_token_scales: tl.tensor,
    v_token_scales: tl.tensor,
    K_SCALE_STRIDE_TOKEN: tl.constexpr,
    K_SCALE_STRIDE_PAGE: tl.constexpr,
    V_SCALE_STRIDE_TOKEN: tl.constexpr,
    V_SCALE_STRIDE_PAGE: tl.constexpr,
) -> tl.tuple:
    """Online softmax over KV tiles [first_tile, last_tile) of BLOCK_N tokens, from a running state.

    The state of one work item: `maximum` [BLOCK_G] is the largest score in base 2; the accumulator `acc`
    [BLOCK_G, BLOCK_V] and the sum of probabilities `total` [BLOCK_G] are relative to it. Scales per token
    multiply the columns of the scores, and of the probabilities before P V.

    Keys of more elements than BLOCK_D are a main part and a rest of BLOCK_R; scores of the rest are
    multiplied by `rest_factor`, if there is one. If LATENT, the values are the first elements of the keys:
    the tile of the main part, loaded once, is the operand of both products.
    """
    offs_d, offs_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    live_d = offs_d < HEAD_DIM
    # Of a latent tile all elements of the keys are loaded; the surplus of the accumulator is never stored.
    V_WIDTH: tl.constexpr = HEAD_DIM if LATENT else V_HEAD_DIM
    live_v = offs_v < V_WIDTH
    in_page = _in_page(PAGE_SIZE, BLOCK_N)
    k_ptrs = k_head + (in_page * K_STRIDE_TOKEN)[None, :] + offs_d[:, None]  # [BLOCK_D, BLOCK_N]
    v_ptrs = v_head + (in_page * V_STRIDE_TOKEN)[:, None] + offs_v[None, :]  # [BLOCK_N, BLOCK_V]
    if BLOCK_R > 0:
        offs_r = BLOCK_D + tl.arange(0, BLOCK_R)
        live_r = offs_r < HEAD_DIM
        r_ptrs = k_head + (in_page * K_STRIDE_TOKEN)[None, :] + offs_r[:, None]  # [BLOCK_R, BLOCK_N]
    # If warps share rows, sum rows after the last tile: a sum per tile would be a reduction across warps.
    LATE_SUM: tl.constexpr = BLOCK_G <= 32
    sums = tl.zeros((BLOCK_G, BLOCK_N if LATE_SUM else 1), tl.float32)
    first_maximum = maximum
    # P in float16 needs scales near 1: divide them by a power of two that follows the largest of them.
    SCALED_P: tl.constexpr = v_token_scales is not None and q.dtype == tl.float16
    v_power = tl.full((), 0.0, tl.float32)
    # Addresses of the operands of warp-group products would take many registers outside the loop.
    WIDE: tl.constexpr = LATENT and BLOCK_G >= 64
    for tile in tl.range(first_tile, last_tile, num_stages=NUM_STAGES, disable_licm=WIDE):
        tokens = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        live_n = (tokens >= begin) & (tokens < end)
        if PAGE_SIZE == 0:
            pages, page_offs = 0, 0
            # The minimum is 0. With it the compiler does not advance a pointer of its own for every load.
            index = tl.cast(tile ^ tl.minimum(end, 0) if LATENT and (MASKED or not WIDE) else tile, tl.int64)
            k_offs, v_offs = index * (BLOCK_N * K_STRIDE_TOKEN), index * (BLOCK_N * V_STRIDE_TOKEN)
            k_tile_ptrs, v_tile_ptrs = k_ptrs + k_offs, v_ptrs + v_offs
            if BLOCK_R > 0:
                r_tile_ptrs = r_ptrs + k_offs
        else:
            pages, page_offs = _pages_of(table_ptr, tile, begin, end, PAGE_SIZE, BLOCK_N, MASKED)
            k_offs = pages * K_STRIDE_PAGE + page_offs * K_STRIDE_TOKEN
            v_offs = pages * V_STRIDE_PAGE + page_offs * V_STRIDE_TOKEN
            k_tile_ptrs, v_tile_ptrs = k_ptrs + k_offs[None, :], v_ptrs + v_offs[:, None]
            if BLOCK_R > 0:
                r_tile_ptrs = r_ptrs + k_offs[None, :]
        # Unused cache may hold NaN, and 0 x NaN is NaN: tokens past the context must not be loaded at all.
        k_mask, v_mask = live_d[:, None] & live_n[None, :], live_n[:, None] & live_v[None, :]
        if LATENT:
            v = _loaded(v_tile_ptrs, v_mask if MASKED else live_v[None, :], MASKED or V_WIDTH < BLOCK_V)
            if v.dtype.primitive_bitwidth == 8:
                # A branch that is always taken: across it the compiler does not move the conversion to each
                # of the two products.
                values = tl.zeros((BLOCK_N, BLOCK_V), q.dtype)
                if tile < last_tile:
                    values = _dot_operand(v, q.dtype)
            else:
                values = v
            keys = tl.trans(values)
        else:
            k = _loaded(k_tile_ptrs, k_mask if MASKED else live_d[:, None], MASKED or HEAD_DIM < BLOCK_D)
            keys = _dot_operand(k, q.dtype)
        if BLOCK_R > 0:
            r_mask = live_r[:, None] & live_n[None, :] if MASKED else live_r[:, None]
            rest = _loaded(r_tile_ptrs, r_mask, MASKED or HEAD_DIM < BLOCK_D + BLOCK_R)
            scores = tl.dot(q_rest, _dot_operand(rest, q.dtype), input_precision=PRECISION)
            if rest_factor is not None:
                scores *= rest_factor
            scores = tl.dot(q, keys, scores, input_precision=PRECISION)
        else:
            scores = tl.dot(q, keys, input_precision=PRECISION)  # [BLOCK_G, BLOCK_N]
        if k_token_scales is not None:
            scales = _token_scales(
                k_token_scales, in_page, tile, pages, page_offs, live_n,
                K_SCALE_STRIDE_TOKEN, K_SCALE_STRIDE_PAGE, PAGE_SIZE, BLOCK_N, MASKED,
            )  # fmt: skip
            scores *= scales[None, :]
        attended = live_n[None, :]
        if MASKED and QUERY_TOKENS != 1:
            attended = attended & (tokens[None, :] <= positions[:, None])
            if HAS_WINDOW:
                attended = attended & (tokens[None, :] > positions[:, None] - window)
        if WIDE:
            # A branch that is always taken: it hides that the second product depends on the first. Otherwise
            # the compiler lets both warp groups compute all of the first, so that a row stays in one warp.
            probabilities, decay = scores, maximum
            if tile < last_tile:
                probabilities, decay, sums, maximum = _softmax(
                    scores, sums, maximum, factor, softcap_log2, attended,
                    HAS_SOFTCAP, True, LATE_SUM, MASKED,
                )  # fmt: skip
        else:
            probabilities, decay, sums, maximum = _softmax(
                scores, sums, maximum, factor, softcap_log2, attended, HAS_SOFTCAP, False, LATE_SUM, MASKED
            )
        if v_token_scales is not None:
            scales = _token_scales(
                v_token_scales, in_page, tile, pages, page_offs, live_n,
                V_SCALE_STRIDE_TOKEN, V_SCALE_STRIDE_PAGE, PAGE_SIZE, BLOCK_N, MASKED,
            )  # fmt: skip
            if SCALED_P:
                largest_power = tl.maximum(v_power, power_of_two(tl.max(tl.abs(scales), 0)))
                decay *= tl.where(v_power == 0.0, 1.0, v_power) / largest_power
                scales, v_power = scales / largest_power, largest_power
            probabilities *= scales[None, :]
        weights = probabilities.to(q.dtype)
        if not LATENT:
            v = _loaded(v_tile_ptrs, v_mask if MASKED else live_v[None, :], MASKED or V_WIDTH < BLOCK_V)
            values = _dot_operand(v, q.dtype)
        if MASKED and QUERY_TOKENS != 1:
            # A non-finite V of a token that a row does not attend to must not reach the row (0 x NaN is NaN).
            # So the dot gets 0 for it, and a second dot counts +inf (1), -inf (32) and NaN (1024) per row.
            # The counts do not overlap, because a tile has fewer than 32 tokens. More rows than 32 have no
            # registers for counts: such values, which are rare, are added to the rows that attend to them.
            if BLOCK_G <= 32:
                plus, minus = values == float("inf"), values == float("-inf")
                codes = (
                    tl.where(plus, 1.0, 0.0)
                    + tl.where(minus, 32.0, 0.0)
                    + tl.where(values != values, 1024.0, 0.0)  # noqa: PLR0124  (NaN)
                )
                values = tl.where(codes == 0.0, values, 0.0).to(q.dtype)
                counts = tl.dot(attended.to(q.dtype), codes.to(q.dtype), input_precision=PRECISION).to(
                    tl.int32
                )
            else:
                non_finite = values.to(tl.float32)
                finite = tl.abs(non_finite) < float("inf")
                non_finite = tl.where(finite, 0.0, non_finite)
                values = tl.where(finite, values, 0.0).to(q.dtype)
        acc = tl.dot(weights, values, acc * decay[:, None], input_precision=PRECISION)
        if MASKED and QUERY_TOKENS != 1:
            if BLOCK_G <= 32:
                infinities = tl.where(counts & 31 > 0, float("inf"), 0.0)
                acc += infinities + tl.where(counts & 992 > 0, float("-inf"), 0.0)
                acc += tl.where(counts >= 1024, float("nan"), 0.0)
            elif tl.max(tl.max(tl.where(finite, 0, 1), 1), 0) > 0:
                acc = _plus_attended(acc, non_finite, attended, BLOCK_N)
    if SCALED_P:
        acc *= tl.where(v_power == 0.0, 1.0, v_power)
    offset = tl.where(maximum == float("-inf"), 0.0, maximum)
    return acc, total * tl.exp2(first_maximum - offset) + tl.sum(sums, 1), maximum


@triton.jit  # type: ignore[untyped-decorator]
def _plus_attended(
    acc: tl.tensor, values: tl.tensor, attended: tl.tensor, BLOCK_N: tl.constexpr
) -> tl.tensor:
    """The accumulator plus the values of the tokens that each row attends to, token by token.

    A dot cannot add infinities: it multiplies those of other tokens by 0.
    """
    offs_n = tl.arange(0, BLOCK_N)
    for token in range(BLOCK_N):
        value = tl.sum(tl.where((offs_n == token)[:, None], values, 0.0), 0)
        attends = tl.max(tl.where((offs_n == token)[None, :] & attended, 1, 0), 1) > 0
        acc += tl.where(attends[:, None], value[None, :], 0.0)
    return acc


@triton.jit  # type: ignore[untyped-decorator]
def _token_scales(
    scales_ptr: tl.tensor,
    in_page: tl.tensor,
    tile: tl.tensor,
    pages: tl.tensor,
    page_offs: tl.tensor,
    live_n: tl.tensor,
    STRIDE_TOKEN: tl.constexpr,
    STRIDE_PAGE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Scale of each token of a tile, [BLOCK_N] float32; addresses as those of the cache in `attend`."""
    if PAGE_SIZE == 0:
        offs = in_page * STRIDE_TOKEN + tl.cast(tile, tl.int64) * (BLOCK_N * STRIDE_TOKEN)
    else:
        offs = in_page * STRIDE_TOKEN + (pages * STRIDE_PAGE + page_offs * STRIDE_TOKEN)
    return _loaded(scales_ptr + offs, live_n, MASKED).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def head_scales(
    scale_ptr: tl.tensor,
    sequence: tl.tensor,
    kv_head: tl.tensor,
    stride_batch: tl.tensor,
    stride_head: tl.tensor,
    PAGE_SIZE: tl.constexpr,
) -> tl.tensor:
    """Where the scales per token of a sequence (in pages: of the cache) and head begin."""
    scale_ptr += kv_head.to(tl.int64) * stride_head
    if PAGE_SIZE == 0:
        scale_ptr += sequence * stride_batch
    return scale_ptr


@triton.jit  # type: ignore[untyped-decorator]
def power_of_two(x: tl.tensor) -> tl.tensor:
    """The power of two at or below x >= 0, from 2^-96 to 2^127; 2^127 for infinity."""
    power = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.minimum(tl.maximum(power, 1.262177448353619e-29), 1.7014118346046923e38)


@triton.jit  # type: ignore[untyped-decorator]
def query_values(q: tl.tensor, cache_dtype: tl.constexpr) -> tl.tensor:
    """Queries as the dot takes them: 8-bit ones in the dtype of a float cache, else exactly in float16."""
    if q.dtype.primitive_bitwidth == 8:
        bits_factor: tl.constexpr = 256.0 if q.dtype == tl.uint8 else 1.0
        q = (to_float16(q) * bits_factor).to(tl.float16)
        if cache_dtype.primitive_bitwidth != 8:
            q = q.to(cache_dtype)
    return q


@triton.jit  # type: ignore[untyped-decorator]
def largest_of_rows(q: tl.tensor) -> tl.tensor:
    """Largest magnitude of each row, in float32."""
    return tl.max(tl.abs(q.to(tl.float32)), 1)


@triton.jit  # type: ignore[untyped-decorator]
def float16_powers(largest: tl.tensor) -> tl.tensor:
    """Powers of two that rows of bfloat16 are divided by before they become float16, from their largest.

    The largest element becomes 2^15 to 65280, so that float16 holds all from 2^-31 of it exactly.
    """
    return power_of_two(largest) * 3.0517578125e-05


@triton.jit  # type: ignore[untyped-decorator]
def signed_query(q: tl.tensor, signs: tl.tensor) -> tl.tensor:
    """Queries with the signs of scales: a maximum of scores times a factor >= 0 is that of the products."""
    return tl.where(signs < 0.0, -q, q)


@triton.jit  # type: ignore[untyped-decorator]
def normalized(acc: tl.tensor, maximum: tl.tensor, total: tl.tensor) -> tl.tuple:
    """Output and base-2 log-sum-exp of an online-softmax state: accumulator, base-2 maximum, sum."""
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    return out, tl.where(total == 0.0, float("-inf"), maximum + tl.log2(total))


@triton.jit  # type: ignore[untyped-decorator]
def _with_sink(out: tl.tensor, lse_log2: tl.tensor, sink_log2: tl.tensor) -> tl.tuple:
    """Output [rows, columns] and base-2 log-sum-exp [rows] with an attention sink, a logit of value 0."""
    largest = tl.maximum(lse_log2, sink_log2)
    offset = tl.where(largest == float("-inf"), 0.0, largest)
    kept = tl.exp2(lse_log2 - offset)
    total = kept + tl.exp2(sink_log2 - offset)
    weight = kept / tl.where(total == 0.0, 1.0, total)
    return out * weight[:, None], tl.where(total == 0.0, float("-inf"), offset + tl.log2(total))


@triton.jit  # type: ignore[untyped-decorator]
def store_output(
    out: tl.tensor,
    lse_log2: tl.tensor,
    rows: tl.tensor,
    live_rows: tl.tensor,
    sequence: tl.tensor,
    kv_head: tl.tensor,
    positions: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    sinks_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    v_factor: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_token: tl.tensor,
    stride_out_head: tl.tensor,
    stride_v_scale: tl.tensor,
    first_query: tl.tensor,
    stride_lse_batch: tl.tensor,
    stride_lse_token: tl.tensor,
    stride_lse_head: tl.tensor,
    lse_factor: tl.tensor,
    GROUP: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    stride_v_scale_batch: tl.tensor,
    out_scale_ptr: tl.tensor,
    batch: tl.tensor,
    QUERY_TOKENS: tl.constexpr,
) -> None:
    """Epilogue of an item: applies attention sinks and scales, stores output and log-sum-exp.

    The log-sum-exp is multiplied by `lse_factor`. `positions` [rows] are negative for query tokens that
    attend to no token. `first_query` is the place of the sequence's first one in packed queries, else 0.
    """
    tokens, heads = tokens_and_heads(rows, kv_head, GROUP, QUERY_TOKENS)
    tokens = (first_query + tokens).to(tl.int64)
    if sinks_ptr is not None:
        sinks = tl.load(sinks_ptr + heads, mask=live_rows, other=0.0).to(tl.float32) * 1.4426950408889634
        # A query token before the start of the sequence has output 0, with or without sinks.
        sinks = tl.where(positions >= 0, sinks, float("-inf"))
        out, lse_log2 = _with_sink(out, lse_log2, sinks)
    factor = v_factor
    if v_scale_ptr is not None:
        # Query tokens after those of the last sequence are an empty sequence.
        v_scale_offs = tl.minimum(sequence, batch - 1).to(tl.int64) * stride_v_scale_batch
        v_scale_offs += kv_head.to(tl.int64) * stride_v_scale
        factor = factor * tl.load(v_scale_ptr + v_scale_offs).to(tl.float32)
    if out_scale_ptr is not None:
        factor = factor / tl.load(out_scale_ptr).to(tl.float32)
    offs_v = tl.arange(0, out.shape[1])
    out_ptrs = (
        out_ptr
        + sequence.to(tl.int64) * stride_out_batch
        + tokens[:, None] * stride_out_token
        + heads.to(tl.int64)[:, None] * stride_out_head
        + offs_v[None, :]
    )
    live = live_rows[:, None] & (offs_v < V_HEAD_DIM)[None, :]
    tl.store(out_ptrs, from_float32(out * factor, out_ptr.dtype.element_ty), mask=live)
    if lse_ptr is not None:
        lse_ptrs = lse_ptr + sequence.to(tl.int64) * stride_lse_batch
        lse_ptrs += tokens * stride_lse_token + heads.to(tl.int64) * stride_lse_head
        tl.store(lse_ptrs, lse_log2 * lse_factor, mask=live_rows)
