"""One attention call as a peer's test suite makes it: inputs, our call, and a plain float64 reference.

A peer's mask that `decode_attention` has no argument for is written as its documentation says: query tokens
that all attend to the whole context are rows of a larger GQA group; query tokens with masks of their own are
sequences of one token, each with a table of the tokens (pages of one) that it attends to.
"""

import math
from dataclasses import dataclass

import torch
from decodetax.harness.core.gate import attention_products, lse_error, row_errors, tolerance
from decodetax.kernels import decode_attention

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
INT8_UNIT = 1 / 40
MAX_GROUP = 128
LEAST_ROW = 16
"""The tolerance is of a row's norm. Smaller rows may cancel to about 0: heads are compared together."""
OF_CACHE = ("k_scale", "v_scale")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One call.

    Attributes:
        queries: query tokens of each sequence.
        contexts: tokens of each sequence, those of the queries included.
        heads: query heads and KV heads.
        head_dim: elements of a query and a key; `v_head_dim` of a value, None for the same.
        dtype: of the queries; `cache_dtype` of the cache, None for the same.
        page_size: None is a contiguous cache.
        layout: "NHD", "HND" (heads before tokens in memory), or "padded" (rows longer than what they hold).
        first_position: of the first query token; None means that query tokens are the last ones.
        left: tokens before its own that a query token attends to; None means all.
        right: the same after its own; None with `causal` means 0, else all.
        chunk: query tokens attend within chunks of the context of this size.
        leftpad: tokens at the start of each sequence that no query token attends to.
        q_scale: a number, or a tensor: "scalar", "one", "heads", "sequences", "tokens"; so are the others.
        sinks: dtype of the attention sinks; None without. Their size is `sink_size`; below 0 all are -inf.
        latent: whether values are the first elements of keys.
        splits: num_splits.
        query_size: standard deviation of the queries.
        lse_base: of the log-sum-exp, "e" or 2.
    """

    queries: tuple[int, ...]
    contexts: tuple[int, ...]
    heads: tuple[int, int]
    head_dim: int
    v_head_dim: int | None = None
    dtype: torch.dtype = torch.bfloat16
    cache_dtype: torch.dtype | None = None
    out_dtype: torch.dtype | None = None
    page_size: int | None = None
    layout: str = "NHD"
    causal: bool = True
    first_position: int | None = None
    left: int | None = None
    right: int | None = None
    chunk: int | None = None
    leftpad: int = 0
    scale: float | str | None = None
    softcap: float | None = None
    sinks: torch.dtype | None = None
    sink_size: float = 1.0
    q_scale: float | str | None = None
    k_scale: float | str | None = None
    v_scale: float | str | None = None
    out_scale: float | str | None = None
    latent: bool = False
    splits: int | None = None
    query_size: float = 1.0
    lse_base: str | int = "e"


def check(case: Attention) -> str:
    """Empty if our output and log-sum-exp agree with the reference, else how they do not.

    Raises:
        ValueError: `decode_attention` refuses the call.
    """
    inputs = _Inputs(case)
    output, lse = _called(case, inputs)
    expected, expected_lse = _reference(case, inputs)
    if not len(expected):
        return "" if output.shape[0] == 0 else f"{output.shape[0]} rows of an empty call"
    products = attention_products(
        capacity=max(case.contexts), head_dim=case.head_dim, expected_lse=expected_lse
    )
    cache = case.cache_dtype or case.dtype
    floats = [dtype for dtype in (case.dtype, cache) if dtype in FLOATS]
    rounded = (*floats, torch.float16)[0]
    bound = tolerance(rounded, reduction=products) + tolerance(output.dtype, reduction=0)
    if expected.shape[-1] < LEAST_ROW:
        output, expected = output.flatten(1), expected.flatten(1)
    info = torch.finfo(output.dtype)
    subnormal = info.smallest_normal * info.eps
    close = (output.float() - expected).abs().amax(-1) <= subnormal  # a row of subnormals has few bits
    errors = row_errors(output.float(), expected).view(close.shape)
    error = float(torch.where(close, 0.0, errors).max())
    if not error <= bound:
        return f"error {error:.3g}, at most {bound:.3g} allowed"
    error, bound = lse_error(lse, expected_lse), tolerance(torch.float32, reduction=products)
    return "" if error <= bound else f"log-sum-exp error {error:.3g}, at most {bound:.3g} allowed"


class _Inputs:
    """Tensors of a case: queries of each sequence, caches, and where the tokens of a sequence lie in them."""

    def __init__(self, case: Attention) -> None:
        self.numbers = torch.Generator().manual_seed(len(repr(case)) + sum(case.contexts))
        q_heads, kv_heads = case.heads
        self.batch, self.group = len(case.contexts), q_heads // kv_heads
        cache_dtype = case.cache_dtype or case.dtype
        self.q = [
            self._values((tokens, q_heads, case.head_dim), case.dtype, case.query_size)
            for tokens in case.queries
        ]
        capacity = max((*case.contexts, 1)) + 7
        page = case.page_size or capacity
        pages = -(-capacity // page)
        order = torch.randperm(self.batch * pages + 1, generator=self.numbers)[: self.batch * pages]
        self.table = order.view(self.batch, pages)
        if case.page_size is None:
            self.table = torch.arange(self.batch)[:, None]
        rows = (int(self.batch * pages + 1) if case.page_size else self.batch, page)
        self.page = page
        unit = INT8_UNIT if cache_dtype == torch.int8 else 0.1
        self.scales = {
            name: self._scale(getattr(case, name), rows, kv_heads, unit if name in OF_CACHE else 0.1)
            for name in ("q_scale", "k_scale", "v_scale", "out_scale", "scale")
        }
        width = case.v_head_dim or case.head_dim
        live = torch.zeros(rows, dtype=torch.bool)
        for sequence, context in enumerate(case.contexts):
            live.view(-1)[self.slots(sequence, context)] = True
        self.k = self._cache((*rows, kv_heads, case.head_dim), cache_dtype, live, case.layout)
        self.v = self._cache((*rows, kv_heads, width), cache_dtype, live, case.layout)
        if case.latent:
            self.v = self.k[..., :width]
        self.sinks = None
        if case.sinks is not None:
            sinks = torch.randn(q_heads, generator=self.numbers) * case.sink_size
            self.sinks = (torch.full_like(sinks, -math.inf) if case.sink_size < 0 else sinks).to(case.sinks)

    def slots(self, sequence: int, context: int) -> torch.Tensor:
        """Where the tokens of a sequence lie in the cache, counted in tokens."""
        tokens = torch.arange(context)
        return self.table[sequence, tokens // self.page] * self.page + tokens % self.page

    def _values(self, shape: tuple[int, ...], dtype: torch.dtype, size: float = 1.0) -> torch.Tensor:
        values = torch.randn(shape, generator=self.numbers) * size
        return (
            (values / INT8_UNIT).round().clamp(-127, 127).to(dtype)
            if dtype == torch.int8
            else values.to(dtype)
        )

    def _cache(
        self, shape: tuple[int, ...], dtype: torch.dtype, live: torch.Tensor, layout: str
    ) -> torch.Tensor:
        cache = self._values(shape, dtype)
        dead = (
            torch.full((), math.nan).to(dtype) if dtype.is_floating_point else torch.tensor(-128, dtype=dtype)
        )
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
        cache.view(bits)[~live] = dead.view(bits)
        if layout == "HND":
            return cache.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "padded":
            wide = torch.empty((*shape[:-1], shape[-1] + 8), dtype=dtype)
            wide[..., : shape[-1]] = cache
            return wide[..., : shape[-1]]
        return cache

    def _scale(
        self, kind: float | str | None, rows: tuple[int, int], kv_heads: int, unit: float
    ) -> torch.Tensor | float | None:
        if not isinstance(kind, str):
            return kind
        shape = {"scalar": (), "one": (1,), "heads": (kv_heads,), "sequences": (self.batch, kv_heads)}
        size = shape.get(kind, (*rows, kv_heads))
        return unit * (0.5 + torch.rand(size, generator=self.numbers))


def _positions(case: Attention, sequence: int) -> range:
    queries, context = case.queries[sequence], case.contexts[sequence]
    first = context - queries if case.first_position is None else case.first_position
    return range(first, first + queries)


def _attended(case: Attention, sequence: int, position: int) -> range:
    """Tokens that the query token at a position attends to."""
    begin, end = case.leftpad, case.contexts[sequence]
    right = 0 if case.causal else case.right
    if right is not None:
        end = min(end, position + right + 1)
    if case.left is not None:
        begin = max(begin, position - case.left)
    if case.chunk is not None:
        begin = max(begin, position // case.chunk * case.chunk)
    return range(begin, max(begin, end))


def _called(case: Attention, inputs: _Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [query tokens, q_heads, v_head_dim] and natural log-sum-exp of our call."""
    equal = len(set(case.queries)) <= 1
    single = equal and case.queries[:1] in ((), (1,))
    last = case.first_position is None and case.chunk is None and not case.leftpad
    if last and (case.causal or single) and (case.right in (None, 0) or single):
        output, lse = _direct(case, inputs, equal=equal)
    elif last and not case.causal and case.left is None and case.right is None and equal:
        output, lse = _as_heads(case, inputs)
    else:
        output, lse = _as_sequences(case, inputs)
    return output, lse * (math.log(2.0) if case.lse_base == 2 else 1.0)


def _options(case: Attention, inputs: _Inputs) -> dict:
    return {
        **inputs.scales,
        "softcap": case.softcap,
        "out_dtype": case.out_dtype,
        "num_splits": case.splits,
        "lse_base": case.lse_base,
        "return_lse": True,
    }


def _direct(case: Attention, inputs: _Inputs, *, equal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As `decode_attention` takes it: query tokens are the last ones, with a causal window or without."""
    lens = torch.tensor(case.contexts, dtype=torch.int64)
    options = _options(case, inputs) | {
        "window": None if case.left is None else case.left + 1,
        "sinks": inputs.sinks,
        "block_table": inputs.table if case.page_size else None,
    }
    if equal:
        q = (
            torch.stack(inputs.q)
            if inputs.q
            else torch.empty(0, 1, case.heads[0], case.head_dim, dtype=case.dtype)
        )
        output, lse = decode_attention(q, inputs.k, inputs.v, lens, **options)
        return output.flatten(0, 1), lse.flatten(0, 1)
    starts = torch.tensor([0, *case.queries]).cumsum(0)
    return decode_attention(torch.cat(inputs.q), inputs.k, inputs.v, lens, cu_seqlens=starts, **options)


def _as_heads(case: Attention, inputs: _Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Query tokens as heads of a GQA group, as many as it holds."""
    kv_heads, group = case.heads[1], inputs.group
    tokens = case.queries[0]
    step = max(1, min(tokens, MAX_GROUP // group))
    q = torch.stack(inputs.q)
    parts = []
    for first in range(0, tokens, step):
        part = q[:, first : first + step]
        live = part.shape[1]
        rows = part.view(inputs.batch, live, kv_heads, group, -1).transpose(1, 2).flatten(1, 3)
        sinks = inputs.sinks
        if sinks is not None:
            sinks = sinks.view(kv_heads, 1, group).expand(-1, live, -1).flatten()
        output, lse = decode_attention(
            rows, inputs.k, inputs.v, torch.tensor(case.contexts), sinks=sinks,
            block_table=inputs.table if case.page_size else None, **_options(case, inputs),
        )  # fmt: skip
        shape = (inputs.batch, kv_heads, live, group)
        parts.append(
            (
                output.view(*shape, -1).transpose(1, 2).flatten(2, 3),
                lse.view(shape).transpose(1, 2).flatten(2, 3),
            )
        )
    output, lse = (torch.cat(each, 1) for each in zip(*parts, strict=True))
    return output.flatten(0, 1), lse.flatten(0, 1)


def _as_sequences(case: Attention, inputs: _Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Each query token as a sequence with a table of the tokens that it attends to, in pages of one."""
    slots = [
        inputs.slots(sequence, case.contexts[sequence])[list(_attended(case, sequence, position))]
        for sequence in range(inputs.batch)
        for position in _positions(case, sequence)
    ]
    lens = torch.tensor([len(each) for each in slots])
    table = torch.nn.utils.rnn.pad_sequence(slots, batch_first=True, padding_value=2**31 - 1)
    table = table if table.shape[1] else torch.zeros(len(slots), 1, dtype=torch.int64)
    k, v = (cache.flatten(0, 1)[:, None] for cache in (inputs.k, inputs.v))
    return decode_attention(
        torch.cat(inputs.q), k, v, lens, block_table=table, sinks=inputs.sinks, **_options(case, inputs)
    )


def _reference(case: Attention, inputs: _Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and natural log-sum-exp in float64, one sequence and query token at a time."""
    outputs, lses = [], []
    scales = {name: 1.0 if scale is None else scale for name, scale in inputs.scales.items()}
    scale = 1 / math.sqrt(case.head_dim) if inputs.scales["scale"] is None else float(scales["scale"])
    sinks = torch.empty(case.heads[0], 0) if inputs.sinks is None else inputs.sinks.double()[:, None]
    for sequence, q in enumerate(inputs.q):
        slots = inputs.slots(sequence, case.contexts[sequence])
        keys, values = (
            _wide(cache.reshape(-1, *cache.shape[2:])[slots]) * _of_tokens(scales[name], sequence, slots)
            for name, cache in (("k_scale", inputs.k), ("v_scale", inputs.v))
        )
        keys, values = (each.repeat_interleave(inputs.group, 1) for each in (keys, values))
        for token, position in zip(q, _positions(case, sequence), strict=True):
            attended = _attended(case, sequence, position)
            at = slice(attended.start, attended.stop)
            queries = _wide(token) * float(scales["q_scale"]) * scale
            scores = torch.einsum("hd,lhd->hl", queries, keys[at])
            if case.softcap is not None:
                scores = case.softcap * torch.tanh(scores / case.softcap)
            live = len(attended) > 0
            logits = torch.cat([scores, sinks if live else sinks[:, :0]], 1)
            lse = torch.logsumexp(logits, 1) if live else torch.full((len(token),), -math.inf).double()
            weights = torch.exp(scores - torch.where(lse.isfinite(), lse, 0.0)[:, None])
            outputs.append(torch.einsum("hl,lhd->hd", weights, values[at]) / float(scales["out_scale"]))
            lses.append(lse)
    if not outputs:
        return torch.empty(0, 1), torch.empty(0, 1)
    return torch.stack(outputs), torch.stack(lses)


def _of_tokens(scale: torch.Tensor | float, sequence: int, slots: torch.Tensor) -> torch.Tensor | float:
    """A scale of a cache for the tokens of a sequence: a number or [tokens or 1, kv_heads, 1]."""
    if not isinstance(scale, torch.Tensor) or scale.numel() == 1:
        return float(scale)
    if scale.dim() == 3:
        return scale.reshape(-1, scale.shape[-1])[slots].double()[..., None]
    return (scale[sequence] if scale.dim() == 2 else scale).double()[None, :, None]


def _wide(x: torch.Tensor) -> torch.Tensor:
    return (x.float() if x.element_size() == 1 else x).double()
