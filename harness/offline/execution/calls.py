"""The call that a case stands for: inputs drawn from a seed, what is dead in them, and the oracle's result.

Dead cache is NaN (-1 in int8). Pages that hold no live token have an id out of range.

This file is over 400 lines because the calls of all kernels share how inputs are drawn and results judged.
"""

import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .... import kernels
from ....kernels import reference
from ....kernels.matmul_operands import GATED_ACTIVATIONS
from ...core.gate import Gate, attention_products, gate_of, judge, lse_error, tolerance
from ...core.inputs import DTYPES, DecodeAttentionInputs, Source, draw
from ...core.options import user_code
from ...core.user_function import load_user_function
from .cases import Case, KernelCase, UserCase
from .decode_cases import DecodeCase, MergeCase
from .layouts import laid_out
from .matmul_cases import MatmulCase
from .prefill_cases import PrefillCase

_DTYPES = {**DTYPES, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "int8": torch.int8}
_INDEX_DTYPES = {"int32": torch.int32, "int64": torch.int64}
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
_INT8_SCALE = 0.01

Judge = Callable[[Any], "Figures"]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How a result compares with the float64 oracle; see `gate.row_errors` and `gate.lse_error`.

    Attributes:
        relative_error: of the worst row.
        tolerance: the largest relative error of a row that rounding explains.
        lse_error: of the worst log-sum-exp; None where the call returns none.
        lse_tolerance: the largest such error that rounding explains.
        reason: why the result is wrong; None where it is right.
    """

    relative_error: float
    tolerance: float
    lse_error: float | None = None
    lse_tolerance: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that is ready to run.

    Attributes:
        run: calls the host function and returns its result.
        judge: compares the result with the oracle's, which was computed before the call.
        dead: tensors, and which of their elements (of their leading dimensions) no kernel may read.
    """

    run: Callable[[], Any]
    judge: Judge
    dead: Sequence[tuple[Tensor, Tensor]] = field(default=())


def call_of(case: Case, seed: int) -> Call:
    """The call of a case, with inputs drawn from a seed.

    Raises:
        UsageError: there is no such user's function.
    """
    match case:
        case DecodeCase():
            return _decode_call(case, _Draw(case, seed))
        case PrefillCase():
            return _prefill_call(case, _Draw(case, seed))
        case MatmulCase():
            return _matmul_call(case, _Draw(case, seed))
        case MergeCase():
            return _merge_call(case, _Draw(case, seed))
        case UserCase():
            return _user_call(case, seed)


class _Draw:
    """Draws tensors that depend on the case and the seed alone."""

    def __init__(self, case: KernelCase, seed: int) -> None:
        name = f"{case.kernel} {case.name} {case.dtype} {seed}"
        self.numbers = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def normal(self, *shape: int, dtype: str, size: float = 1.0) -> Tensor:
        """Standard normal numbers times `size`; int8 is uniform from -127 to 127."""
        if dtype == "int8":
            return torch.randint(-127, 128, shape, generator=self.numbers, dtype=torch.int8)
        return (torch.randn(shape, generator=self.numbers) * size).to(_DTYPES[dtype])

    def scale(self, kind: str | None, size: float, *shape: int) -> Tensor | float | None:
        """A scale of about `size`, of the kind that a case names."""
        if kind is None or kind == "number":
            return None if kind is None else size
        shape = () if kind == "one" else shape
        return size * (0.5 + torch.rand(shape, generator=self.numbers))


def _decode_call(case: DecodeCase, draw_: _Draw) -> Call:
    batch = len(case.lengths)
    longest = max(1, *case.lengths)
    table, lead = None, (batch, case.capacity or longest + 40)
    if case.page_size:
        pages_each = math.ceil((case.capacity or longest + 5) / case.page_size)
        pages = batch * pages_each + 3
        order = torch.randperm(pages, generator=draw_.numbers)[: batch * pages_each]
        table = order.view(batch, pages_each)
        lead = (pages, case.page_size)
    capacity = lead[1] * (1 if table is None else table.shape[1])
    q_dtype = case.query_dtype or ("bf16" if case.dtype in ("e4m3", "e5m2", "int8") else case.dtype)
    q_heads = case.kv_heads * case.group
    leading, query_lengths = _query_lengths(case)
    q = draw_.normal(*leading, q_heads, case.head_dim, dtype=q_dtype, size=case.query_size)
    k_cache, v_cache = (
        laid_out(draw_.normal(*lead, case.kv_heads, width, dtype=case.dtype), case.cache_layout)
        for width in (case.head_dim, case.v_head_dim or case.head_dim)
    )
    if case.latent:
        v_cache = k_cache[..., : v_cache.shape[-1]]
    _set_special(case, q, k_cache, v_cache, table)
    dead = _dead_tokens(case, lead, capacity, table)
    for cache in (k_cache, v_cache):
        cache.view(_BITS[cache.element_size()])[dead] = -1
    context_lens = torch.tensor(case.lengths, dtype=_INDEX_DTYPES[case.index_dtype])
    forbidden = [] if case.cache_layout.startswith("huge") else [(k_cache, dead), (v_cache, dead)]
    if case.latent:
        del forbidden[1:]  # what lies between values is the rest of the keys
    if table is not None:
        unused = torch.arange(table.shape[1]) * case.page_size >= context_lens.clamp(min=0)[:, None]
        table = table.to(context_lens.dtype).masked_fill(unused, torch.iinfo(context_lens.dtype).max)
        table = _block_table(table, case.table_stride)
        forbidden.append((table, unused))
    options: dict[str, Any] = {
        "block_table": table,
        "scale": case.scale,
        "window": case.window,
        "softcap": case.softcap,
        "sinks": draw_.normal(q_heads, dtype=case.sinks, size=2.0) if case.sinks else None,
        **_decode_scales(case, draw_, k_cache, dead),
    }
    dead_queries = _dead_queries(case, leading)
    q.view(_BITS[q.element_size()])[dead_queries] = -1
    q = laid_out(q, case.query_layout)
    forbidden.append((q, dead_queries))
    q = q[:, 0] if case.query_tokens is None and case.q_lens is None else q
    options |= query_lengths
    expected, expected_lse = reference.decode_attention(q, k_cache, v_cache, context_lens, **options)
    products = attention_products(capacity=capacity, head_dim=case.head_dim, expected_lse=expected_lse)
    # Rounded twice: the probabilities to the dtype of the product (float16 if all is 8-bit), and the output.
    floats = [each.dtype for each in (q, k_cache) if each.element_size() > 1]
    out_dtype = _DTYPES[case.out_dtype] if case.out_dtype else (*floats, torch.bfloat16)[0]
    bound = tolerance((*floats, torch.float16)[0], reduction=products) + tolerance(out_dtype, reduction=0)
    return Call(
        run=partial(
            kernels.decode_attention,
            *(q, k_cache, v_cache, context_lens),
            **options,
            out_dtype=_DTYPES[case.out_dtype] if case.out_dtype else None,
            num_splits=case.num_splits,
            return_lse=case.return_lse,
            lse_layout=case.lse_layout,
            lse_base=case.lse_base,
        ),
        judge=partial(_judge_decode, case, expected, expected_lse, bound, products),
        dead=forbidden,
    )


def _decode_scales(case: DecodeCase, draw_: _Draw, cache: Tensor, dead: Tensor) -> dict[str, Any]:
    """The scales of a case; those per token are NaN where no query token attends."""
    size = _INT8_SCALE if case.dtype == "int8" else 0.7
    shapes = {"sequence": (len(case.lengths), case.kv_heads), "token": tuple(cache.shape[:3]), "split": (2,)}
    scales = {
        name: draw_.scale(kind, size, *shapes.get(kind or "", (case.kv_heads,)))
        for name, kind in (("k_scale", case.k_scale), ("v_scale", case.v_scale))
    }
    for name, kind in (("k_scale", case.k_scale), ("v_scale", case.v_scale)):
        each = scales[name]
        if kind == "token" and isinstance(each, Tensor):
            each[dead] = math.nan
    query_size = _INT8_SCALE if case.query_dtype == "int8" else 0.7
    return {
        **scales,
        "q_scale": draw_.scale(case.q_scale, query_size, case.kv_heads * case.group),
        "out_scale": draw_.scale(case.out_scale, 0.05),
    }


def _query_lengths(case: DecodeCase) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Leading dimensions of the queries, and the argument that says whose they are."""
    dtype = _INDEX_DTYPES[case.index_dtype]
    batch = len(case.lengths)
    if case.q_lens is None:
        return (batch, case.query_tokens or 1), {}
    if case.query_tokens is not None:
        return (batch, case.query_tokens), {"q_lens": torch.tensor(case.q_lens, dtype=dtype)}
    starts = [0, *itertools.accumulate(case.q_lens)]
    return (starts[-1] + case.unused_tokens,), {"cu_seqlens": torch.tensor(starts, dtype=dtype)}


def _dead_queries(case: DecodeCase, leading: tuple[int, ...]) -> Tensor:
    """Which query tokens belong to no sequence: of the leading dimensions of the queries."""
    dead = torch.zeros(leading, dtype=torch.bool)
    if case.q_lens is not None and case.query_tokens is not None:
        return torch.arange(case.query_tokens) >= torch.tensor(case.q_lens)[:, None]
    dead[leading[0] - case.unused_tokens :] = True
    return dead


def _judge_decode(
    case: DecodeCase, expected: Tensor, expected_lse: Tensor, bound: float, products: float, result: Any
) -> Figures:
    """`_judge_states` of a result whose log-sum-exp has the layout and the base of the case."""
    if isinstance(result, tuple):
        output, lse = result
        lse = lse.transpose(-1, -2) if case.lse_layout == "heads-first" else lse
        result = output, lse * math.log(2.0) if case.lse_base == 2 else lse
    return _judge_states(expected, expected_lse, bound, products, result)


def _set_special(case: DecodeCase, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None) -> None:
    """Writes the special values of a case into its inputs."""
    if case.infinite_keys:
        q[..., 0] = q[..., 0].abs() + 0.1
        k[:, : case.infinite_keys, :, 0] = -math.inf
    for sequence, token, value in case.special_values:
        page, slot = sequence, token
        if table is not None:
            page, slot = int(table[sequence, token // case.page_size]), token % case.page_size
        # Other heads and columns stay finite, so that their errors are compared.
        v[page, slot, 0, :3] = torch.tensor(float(value)).to(v.dtype)


def _dead_tokens(case: DecodeCase, lead: tuple[int, ...], capacity: int, table: Tensor | None) -> Tensor:
    """Which cache slots no query token attends to: [batch, capacity] or [pages, page_size]."""
    dead = torch.ones(lead, dtype=torch.bool)
    for sequence, length in enumerate(case.lengths):
        end = min(max(length, 0), capacity)
        tokens = (case.query_tokens or 1) if case.q_lens is None else case.q_lens[sequence]
        begin = max(end - case.window - tokens + 1, 0) if case.window else 0
        begin = begin if tokens else end
        if table is None:
            dead[sequence, begin:end] = False
        else:
            live = torch.arange(begin, end)
            dead[table[sequence, live // case.page_size].long(), live % case.page_size] = False
    return dead


def _block_table(table: Tensor, stride: int | None) -> Tensor:
    """The block table with its rows `stride` entries apart."""
    if stride is None:
        return table
    wide = torch.full((len(table), stride), -5, dtype=table.dtype)
    wide[:, : table.shape[1]] = table
    return wide[:, : table.shape[1]]


def _judge_states(
    expected: Tensor, expected_lse: Tensor, bound: float, products: float, result: Any
) -> Figures:
    """Figures of an output [..., head_dim], or of an output and its log-sum-exp [...]."""
    output, lse = result if isinstance(result, tuple) else (result, None)
    verdict = judge(output, expected, bound=bound)
    reason = verdict.reason
    if lse is None:
        return Figures(relative_error=verdict.relative_error, tolerance=bound, reason=reason)
    error, lse_bound = lse_error(lse, expected_lse), tolerance(torch.float32, reduction=products)
    if not error <= lse_bound:
        reason = reason or f"wrong log-sum-exp: error {error:.3g}, at most {lse_bound:.3g} allowed"
    return Figures(
        relative_error=verdict.relative_error,
        tolerance=bound,
        lse_error=error,
        lse_tolerance=lse_bound,
        reason=reason,
    )


def _prefill_call(case: PrefillCase, draw_: _Draw) -> Call:
    batch, longest = len(case.lengths), max(case.lengths)
    head_dims = case.head_dim, case.v_head_dim or case.head_dim
    lead = (batch, longest) if case.padded else (sum(case.lengths),)
    heads = (case.kv_heads * case.group, case.kv_heads, case.kv_heads)
    q, k, v = (
        draw_.normal(*lead, count, width, dtype=case.dtype)
        for count, width in zip(heads, (case.head_dim, *head_dims), strict=True)
    )
    for sequence, token, value in case.special_values:
        v[sequence, token, 0, :3] = torch.tensor(float(value)).to(v.dtype)
    options: dict[str, Any] = {
        "causal": case.causal,
        "window": case.window,
        "softcap": case.softcap,
        "sinks": draw_.normal(heads[0], dtype=case.sinks, size=2.0) if case.sinks else None,
        "q_scale": draw_.scale(case.q_scale, 0.7),
        "k_scale": draw_.scale(case.k_scale, _cache_scale(case), case.kv_heads),
        "v_scale": draw_.scale(case.v_scale, _cache_scale(case), case.kv_heads),
    }
    if not case.padded:
        bounds = [sum(case.lengths[:end]) for end in range(batch + 1)]
        options["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32)
    elif len(set(case.lengths)) > 1:
        options["lengths"] = torch.tensor(case.lengths)
        dead_tokens = torch.arange(longest) >= options["lengths"][:, None]
        for each in (q, k, v):
            each.view(_BITS[each.element_size()])[dead_tokens] = -1
    dead: list[tuple[Tensor, Tensor]] = []
    if case.prefix:
        prefix = DecodeCase(case.name, lengths=case.prefix, page_size=case.page_size)
        table, cache_lead = None, (batch, max(case.prefix) + 40)
        if case.page_size:
            pages_each = math.ceil((max(case.prefix) + 5) / case.page_size)
            table = torch.randperm(batch * pages_each + 3, generator=draw_.numbers)[: batch * pages_each]
            table = table.view(batch, pages_each).to(torch.int32)
            cache_lead = (batch * pages_each + 3, case.page_size)
        capacity = cache_lead[1] * (1 if table is None else table.shape[1])
        dead_slots = _dead_tokens(prefix, cache_lead, capacity, table)
        for name, width in zip(("k_cache", "v_cache"), head_dims, strict=True):
            cache = draw_.normal(*cache_lead, case.kv_heads, width, dtype=case.cache_dtype or case.dtype)
            cache.view(_BITS[cache.element_size()])[dead_slots] = -1
            options[name] = cache
            dead.append((cache, dead_slots))
        options["context_lens"] = torch.tensor(case.prefix, dtype=torch.int32)
        if table is not None:
            unused = torch.arange(table.shape[1]) * case.page_size >= options["context_lens"][:, None]
            options["block_table"] = table.masked_fill(unused, torch.iinfo(table.dtype).max)
    if case.heads_first:
        q, k, v = (each.transpose(-3, -2).contiguous().transpose(-3, -2) for each in (q, k, v))
    expected, expected_lse = reference.prefill_attention(q, k, v, **options)
    keys = longest + max(case.prefix, default=0)
    products = attention_products(capacity=keys, head_dim=case.head_dim, expected_lse=expected_lse)
    # Rounded twice: the probabilities, to e4m3 if the inputs are float8, and the output.
    out_dtype = torch.bfloat16 if q.element_size() == 1 else q.dtype
    p_dtype = torch.float8_e4m3fn if q.element_size() == 1 else q.dtype
    bound = tolerance(p_dtype, reduction=products) + tolerance(out_dtype, reduction=0)
    return Call(
        run=partial(kernels.prefill_attention, q, k, v, **options, return_lse=True),
        judge=partial(_judge_states, expected, expected_lse, bound, products),
        dead=dead,
    )


def _cache_scale(case: PrefillCase) -> float:
    return _INT8_SCALE if case.cache_dtype == "int8" else 0.7


def _matmul_call(case: MatmulCase, draw_: _Draw) -> Call:
    rows, features, depth = case.shape
    batch = (case.batch,) if case.batch else ()
    x_dtype = case.x_dtype or ("bf16" if case.dtype == "int8" else case.dtype)
    out_dtype = _DTYPES[case.out_dtype or _default_out(x_dtype, case.dtype)]
    x = laid_out(draw_.normal(*batch, rows, depth, dtype=x_dtype), case.x_layout)
    if case.transposed_weight:
        weight = draw_.normal(*batch, depth, features, dtype=case.dtype).transpose(-1, -2)
    else:
        weight = laid_out(draw_.normal(*batch, features, depth, dtype=case.dtype), case.weight_layout)
    options: dict[str, Any] = {
        "bias": draw_.normal(*batch, features, dtype=case.bias) if case.bias else None,
        "activation": case.activation,
        "x_scale": draw_.scale(case.x_scale, 0.5, *batch, rows),
        "weight_scale": draw_.scale(
            case.weight_scale, 0.02 if case.dtype == "int8" else 2.0, *batch, features
        ),
        "gate_up": case.gate_up,
        "residual": None,
    }
    if case.blocks:
        blocks_k, blocks_n = math.ceil(depth / case.blocks), math.ceil(features / case.blocks)
        # Blocks of K first in memory, as DeepGEMM keeps the scales of x.
        options["x_scale"] = 0.1 + draw_.normal(*batch, blocks_k, rows, dtype="fp32", size=0.02).mT
        options["weight_scale"] = draw_.scale("each", 0.1, *batch, blocks_n, blocks_k)
    for name in ("x_scale", "weight_scale"):
        if isinstance(options[name], Tensor):
            options[name] = options[name].to(_DTYPES[case.scale_dtype])
    columns = features // (1 if case.activation not in GATED_ACTIVATIONS else 2)
    if case.residual:
        options["residual"] = draw_.normal(*batch, rows, columns, dtype=case.residual)
    if case.clamped:
        options |= {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}
    if case.gate_up == "pair":
        weight, options["gate_up"] = _halves(weight), "halves"
        for name in ("bias", "weight_scale"):
            options[name] = _halves(options[name])
    out = None
    if case.out_layout:
        out = laid_out(torch.full((*batch, rows, columns), math.nan, dtype=out_dtype), case.out_layout)
    expected = reference.prefill_matmul(x, weight, **options)
    steps = ("bias", "activation", "x_scale", "weight_scale", "residual")
    bound = _matmul_tolerance(case, out_dtype, sum(options[name] is not None for name in steps))
    return Call(
        run=partial(
            kernels.prefill_matmul,
            *(x, weight),
            **options,
            out_dtype=_DTYPES[case.out_dtype] if case.out_dtype else None,
            precision=case.precision,
            tiling=case.tiling,
            out=out,
        ),
        judge=partial(_judge_output, expected, bound),
    )


def _default_out(x_dtype: str, weight_dtype: str) -> str:
    """The wider of two dtypes of operands, bf16 if both have 8 bits."""
    wide = [each for each in (x_dtype, weight_dtype) if each in DTYPES]
    return max(wide, key=lambda name: DTYPES[name].itemsize, default="bf16")


def _halves(values: Any) -> Any:
    """A pair of tensors of their own, of the first and the last half of the rows."""
    if not isinstance(values, Tensor) or values.numel() == 1:
        return values
    first, second = values.chunk(2, dim=-2 if values.dim() > 1 else -1)
    return first.clone(), second.clone()


def _matmul_tolerance(case: MatmulCase, out_dtype: torch.dtype, epilogue_steps: int) -> float:
    """The largest relative error of a row of the result.

    A gated activation multiplies two sums, whose errors add; `tolerance` takes the square root of the
    products, so it gets four times as many. The epilogue computes in float32: for a float32 result each of
    its steps (two scales, bias, activation) is one more rounding. tf32 rounds both operands, to as many bits
    as float16.
    """
    reduction = case.shape[2] * (4 if case.activation in GATED_ACTIVATIONS else 1)
    if case.precision == "tf32":
        return tolerance(torch.float16, reduction=reduction, roundings=2)
    roundings = 1 + (epilogue_steps if out_dtype == torch.float32 else 0)
    if case.precision == "tf32x3":
        # 22 bits of each operand, and no product of the remainders: three errors of 2^-22 at most.
        roundings += 12
    return tolerance(out_dtype, reduction=reduction, roundings=roundings)


def _judge_output(expected: Tensor, bound: float, output: Any) -> Figures:
    verdict = judge(output, expected, bound=bound)
    return Figures(relative_error=verdict.relative_error, tolerance=bound, reason=verdict.reason)


def _merge_call(case: MergeCase, draw_: _Draw) -> Call:
    outputs = [draw_.normal(*case.shape, dtype=case.dtype) for _ in range(case.parts)]
    lses = [draw_.normal(*case.shape[:-1], dtype="fp32", size=4.0) for _ in range(case.parts)]
    if case.empty:
        lses[0].view(-1)[0] = lses[-1].view(-1)[1] = math.inf
        for lse in lses:
            lse.view(-1)[2] = -math.inf
    options: dict[str, Any] = {}
    if case.mask:  # of parts and tokens
        mask = torch.arange(case.parts * case.shape[0]).view(case.parts, case.shape[0]) % 4 != 1
        options["mask"] = mask.view(*mask.shape, *(1 for _ in case.shape[1:-1]))
    if case.heads_first:
        lses = [lse.T.contiguous() for lse in lses]
        options["lse_layout"] = "heads-first"
    if case.out_dtype:
        options["out_scale"] = torch.tensor([0.02])
    if case.parts == 2:
        states: tuple[Tensor, ...] = (outputs[0], lses[0], outputs[1], lses[1])
    else:
        states = (torch.stack(outputs), torch.stack(lses))
    expected, expected_lse = reference.merge_states(*states, **options)
    for output, lse in zip(states[::2], states[1::2], strict=True):
        empty = lse.isinf()
        empty = empty.transpose(-1, -2) if case.heads_first else empty
        output[empty] = math.nan  # the output of an empty part is ignored, whatever it is
    out_dtype = _DTYPES[case.out_dtype or case.dtype]
    products = attention_products(capacity=case.parts, head_dim=1, expected_lse=expected_lse)
    bound = tolerance(out_dtype, reduction=products, roundings=1 + bool(case.out_dtype))
    return Call(
        run=partial(kernels.merge_states, *states, **options, out_dtype=out_dtype),
        judge=partial(_judge_states, expected, expected_lse, bound, products),
    )


def _user_call(case: UserCase, seed: int) -> Call:
    with user_code():
        function = load_user_function(case.kernel)
    inputs = draw(case.sizes, Source(torch.device("cpu"), seed))
    gate = gate_of(case.sizes, inputs, reference, all_columns=True)  # the function may overwrite its inputs
    dead = []
    if isinstance(inputs, DecodeAttentionInputs):
        unused = torch.arange(inputs.k_cache.shape[1]) >= inputs.context_lens[:, None]
        dead = [(inputs.k_cache, unused), (inputs.v_cache, unused)]

    def run() -> Tensor:
        with user_code():
            return function(inputs)

    return Call(run=run, judge=partial(_judge_gate, gate), dead=dead)


def _judge_gate(gate: Gate, output: Any) -> Figures:
    verdict = gate.judge(output)
    return Figures(relative_error=verdict.relative_error, tolerance=gate.bound, reason=verdict.reason)
