"""The correctness gate: no provider is timed before its output agrees with the float64 oracle.

Tolerances are derived here and nowhere else. The error of an output row is
||actual - expected|| / ||expected|| in the Euclidean norm; the worst row decides. The oracles are passed in
(`kernels.reference`), so this module imports no kernels.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .cases import AttentionCase, Case, DecodeAttention, PrefillAttention, PrefillMatmul
from .inputs import DTYPES, DecodeAttentionInputs, Inputs, MatmulInputs, PrefillAttentionInputs

SAFETY = 2.0
"""Each term below is a typical size (root mean square); the worst of thousands of rows is within twice it."""

COLUMN_STEP = 128
"""One column in every 128 of a product is checked, so in every row a wrong tile of that width is found."""

ALL_PAIRS_ELEMENTS = 2**21
"""Elements of a key cache up to which every (sequence, KV head) pair is checked."""

SAMPLED_TOKENS = 33
"""Query tokens checked in each sequence of a long prompt, the first and the last among them."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to nearest in a floating-point dtype: half its epsilon."""
    return float(torch.finfo(dtype).eps) / 2


def tolerance(dtype: torch.dtype, *, reduction: float, roundings: float = 1) -> float:
    """Bound on the relative L2 error of an output row.

    Two sources: each of `roundings` passes through the storage dtype moves every element by at most its unit
    roundoff u, hence the row's norm by at most u; and accumulating `reduction` products in float32 adds
    rounding errors whose sum grows like a random walk, sqrt(reduction) float32 roundoffs (Higham and Mary,
    SIAM J. Sci. Comput. 41, 2019). `SAFETY` times their sum is allowed.

    Args:
        dtype: the storage dtype of inputs and output.
        reduction: products summed into an output element.
        roundings: times that a value is rounded to `dtype` between input and output.
    """
    accumulation = math.sqrt(reduction) * unit_roundoff(torch.float32)
    return SAFETY * (roundings * unit_roundoff(dtype) + accumulation)


def sum_roundings(ranks: int) -> float:
    """Roundings of a sum over ranks, in any order, of rows of independent numbers of the same size.

    Each of the ranks - 1 additions may round to the storage dtype. A partial sum of k addends has a norm of
    sqrt(k / ranks) of the sum's, and so has its rounding error; the errors are independent, so that their
    squares add up: sum over k = 2 .. ranks of k / ranks = (ranks + 1) / 2 - 1 / ranks.
    """
    return math.sqrt((ranks + 1) / 2 - 1 / ranks)


def sum_tolerance(dtype: torch.dtype, ranks: int) -> float:
    """Bound on the relative L2 error of a row of a sum over ranks.

    An addend that is missing, an error of 1 / sqrt(ranks), is beyond it up to 180 ranks in bf16.
    """
    return tolerance(dtype, reduction=ranks, roundings=sum_roundings(ranks))


def attention_products(*, capacity: int, head_dim: int, expected_lse: Tensor) -> float:
    """Number of products whose rounding error in float32 equals that of an output element of attention.

    An absolute error of a score is a relative error of its exponential. A score of size s is a sum of
    head_dim terms and partial sums of at most that size, so its error is sqrt(head_dim) s roundoffs. The
    largest score of a row counts, and the log-sum-exp bounds it. `tolerance` takes the square root of the
    number of products as roundoffs.

    Args:
        capacity: tokens that a sequence has room for.
        head_dim: elements of a query.
        expected_lse: log-sum-exp of the logits, of any shape; those that are not finite do not count.
    """
    largest = float(torch.where(expected_lse.isfinite(), expected_lse.abs(), 0.0).max())
    return (math.sqrt(capacity + head_dim) + math.sqrt(head_dim) * largest) ** 2


def lse_error(actual: Tensor, expected: Tensor) -> float:
    """Largest |actual - expected| / (1 + |expected|) of log-sum-exps; infinite unless all -inf agree.

    An absolute error of the logarithm is a relative one of the sum, which is never rounded to the dtype of
    the queries.

    Raises:
        ValueError: shapes that differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"actual: has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    a = actual.detach().double()
    error = (a - expected).abs() / (1.0 + expected.abs())
    return float(torch.where(a == expected, 0.0, error).nan_to_num(nan=math.inf, posinf=math.inf).max())


def row_errors(actual: Tensor, expected: Tensor) -> Tensor:
    """Relative L2 error of each row (the last dimension), as float64 [rows].

    The error is infinite if a non-finite element of one tensor is not the same in the other, or if the
    expected row is all zeros and the actual one is not. Non-finite elements that agree count as correct.

    Raises:
        ValueError: shapes that differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"actual: has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    width = expected.shape[-1]
    a, e = actual.detach().reshape(-1, width).double(), expected.detach().reshape(-1, width).double()
    finite = e.isfinite()
    agrees = torch.where(finite, a.isfinite(), (a == e) | (a.isnan() & e.isnan())).all(dim=-1)
    a, e = a.where(finite & a.isfinite(), 0.0), e.where(finite, 0.0)
    distance, norm = (a - e).norm(dim=-1), e.norm(dim=-1)
    error = torch.where(distance == 0, 0.0, distance / norm)
    return error.where(agrees, torch.inf)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate's result: the worst row, its error, and the tolerance."""

    relative_error: float
    tolerance: float
    worst_row: int

    @property
    def passed(self) -> bool:
        """Whether the worst row lies within the tolerance."""
        return self.relative_error <= self.tolerance

    @property
    def reason(self) -> str | None:
        """Why it did not pass; None if it passed."""
        if self.passed:
            return None
        return (
            f"wrong result: relative error {self.relative_error:.3g} in row {self.worst_row}, "
            f"at most {self.tolerance:.3g} allowed"
        )


def judge(actual: Tensor, expected: Tensor, *, bound: float) -> Verdict:
    """Compare `actual` with `expected` (same shape, any float dtypes); `bound` limits each row's error."""
    errors = row_errors(actual, expected)
    worst = int(errors.argmax())
    return Verdict(relative_error=float(errors[worst]), tolerance=bound, worst_row=worst)


class Oracles(Protocol):
    """The float64 oracles of the operations; the module `kernels.reference` is one."""

    prefill_matmul: Callable[..., Tensor]
    decode_attention: Callable[..., tuple[Tensor, Tensor]]
    prefill_attention: Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The expected output of a case at the sampled positions.

    Attributes:
        select: function that takes the sampled positions from an output; rows along the last dimension.
        expected: the float64 oracle's output at those positions.
        bound: largest relative error of a row.
    """

    select: Callable[[Tensor], Tensor]
    expected: Tensor
    bound: float

    def judge(self, output: Tensor) -> Verdict:
        """Compare an output with the oracle."""
        return judge(self.select(output), self.expected, bound=self.bound)


def gate_of(case: Case, inputs: Inputs, oracles: Oracles, *, all_columns: bool = False) -> Gate:
    """The gate of a matmul or an attention on these inputs.

    Args:
        case: a PrefillMatmul, DecodeAttention or PrefillAttention.
        inputs: the inputs of that case.
        oracles: compute the expected output in float64.
        all_columns: whether to check every column of a product and every pair of a decode attention;
            affordable for small ones only.

    Raises:
        TypeError: the inputs belong to another case.
    """
    dtype = DTYPES[case.dtype]
    match case, inputs:
        case PrefillMatmul(), MatmulInputs():
            columns = sampled(case.out_features, 1 if all_columns else COLUMN_STEP, inputs.x.device)
            return Gate(
                select=lambda out: out[..., columns],
                expected=oracles.prefill_matmul(inputs.x, inputs.weight[..., columns, :]),
                bound=tolerance(dtype, reduction=case.in_features),
            )
        case DecodeAttention(), DecodeAttentionInputs():
            return _decode_attention_gate(case, inputs, oracles, all_pairs=all_columns)
        case PrefillAttention(), PrefillAttentionInputs():
            tokens = sampled_tokens(case.prompt, inputs.q.device)
            q, k, v = (each.transpose(1, 2) for each in (inputs.q, inputs.k, inputs.v))
            expected, _ = oracles.prefill_attention(
                q, k, v, rows=tokens, sinks=inputs.sinks, **_options(case)
            )
            return Gate(
                select=lambda out: out[:, :, tokens],
                expected=expected.transpose(1, 2),
                bound=tolerance(dtype, reduction=case.prompt, roundings=3),
            )
    raise TypeError(f"inputs: {type(inputs).__name__} are not those of a {type(case).__name__}")


def _decode_attention_gate(
    case: DecodeAttention, inputs: DecodeAttentionInputs, oracles: Oracles, *, all_pairs: bool
) -> Gate:
    """The gate of a decode attention at its sampled pairs, each as a sequence of one KV head."""
    sequences, heads = sampled_pairs(case, inputs.q.device, all_pairs=all_pairs)

    def select(out: Tensor) -> Tensor:
        return out.reshape(case.batch, case.kv_heads, -1, out.shape[-1])[sequences, heads]

    # [pairs, capacity, 1, head_dim]; keys in pages have one dimension more.
    k_cache, v_cache = (
        torch.movedim(cache, -2, 1)[sequences, heads].reshape(len(heads), case.capacity, 1, width)
        for cache, width in ((inputs.k_cache, case.head_dim), (inputs.v_cache, case.value_dim))
    )
    q, context_lens = select(inputs.q), inputs.context_lens[sequences]
    expected = torch.empty(*q.shape[:-1], case.value_dim, dtype=torch.float64, device=q.device)
    # Sinks differ by head: without them one call computes all pairs.
    for pairs, sinks in _by_sinks(inputs.sinks, heads, case.kv_heads):
        expected[pairs], _ = oracles.decode_attention(
            q[pairs], k_cache[pairs], v_cache[pairs], context_lens[pairs], sinks=sinks, **_options(case)
        )
    # Scores and probabilities may be rounded to the storage dtype; the output is.
    bound = tolerance(DTYPES[case.dtype], reduction=case.capacity, roundings=3)
    return Gate(select=select, expected=expected, bound=bound)


def _by_sinks(sinks: Tensor | None, heads: Tensor, kv_heads: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Pairs of one KV head each, int64 [pairs], and the sinks of its query heads; all pairs without sinks."""
    if sinks is None:
        yield torch.arange(len(heads), device=heads.device), None
        return
    for head, group in enumerate(sinks.view(kv_heads, -1)):
        yield (heads == head).nonzero()[:, 0], group


def _options(case: AttentionCase) -> dict[str, Any]:
    """Options of an oracle, without those that the case does not have."""
    options = {"window": case.window, "softcap": case.softcap}
    return {name: value for name, value in options.items() if value is not None}


def sampled_pairs(
    case: DecodeAttention, device: torch.device, *, all_pairs: bool = False
) -> tuple[Tensor, Tensor]:
    """Sequences and KV heads, int64 [pairs] each, whose query heads are checked.

    All of them with `all_pairs`, and up to `ALL_PAIRS_ELEMENTS` cached keys x elements. Of a larger case one
    KV head of every sequence and one sequence of every KV head, at random from a fixed seed, and the four
    corners. A wrong sequence, KV head or query head is then always found, and so is a wrong range of
    2 kv_heads - 1 neighbouring pairs, such as the share of a thread or a CTA. Other n wrong pairs are missed
    with a probability of (1 - 1 / m)^n, where m is the smaller of batch and kv_heads; but all pairs run the
    same code, and small cases are checked whole.
    """
    batch, kv_heads = case.batch, case.kv_heads
    if all_pairs or batch * kv_heads * case.capacity * case.head_dim <= ALL_PAIRS_ELEMENTS:
        pairs = list(itertools.product(range(batch), range(kv_heads)))
    else:
        generator = torch.Generator().manual_seed(batch)
        # Permutations of the smaller of the two, one after another, beside one of the larger.
        every_sequence, every_head = (
            torch.cat([torch.randperm(size, generator=generator) for _ in range(batch * kv_heads // size)])
            for size in (batch, kv_heads)
        )
        count = max(batch, kv_heads)
        spread = zip(every_sequence[:count].tolist(), every_head[:count].tolist(), strict=True)
        corners = itertools.product((0, batch - 1), (0, kv_heads - 1))
        pairs = sorted({*spread, *corners})
    sequences, heads = torch.tensor(pairs, device=device).unbind(1)
    return sequences, heads


def sampled_tokens(count: int, device: torch.device) -> Tensor:
    """Positions of the query tokens to check among `count`."""
    return sampled(count, -(-count // SAMPLED_TOKENS), device)


def sampled(size: int, step: int, device: torch.device) -> Tensor:
    """One index in every `step` of 0 .. size - 1, ascending, with the first and the last.

    The indices are drawn from a fixed seed, so that a fault with a regular stride cannot fall between them.
    The last 16 are always included, because tiles fail at ragged tails.
    """
    if size <= 64:
        return torch.arange(size, device=device)
    edges = torch.arange(0, size, step)
    jitter = torch.randint(step, edges.shape, generator=torch.Generator().manual_seed(size))
    spread = (edges + jitter).clamp(max=size - 1).tolist()
    return torch.tensor(sorted({*spread, 0, *range(size - 16, size)}), device=device)
