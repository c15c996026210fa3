"""The gate of collectives: what each rank puts in, and what it must get.

Every rank draws what all of them put in, and judges its own output.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..core.collectives import Collective
from ..core.gate import Verdict, judge, sampled, sum_tolerance
from ..core.inputs import DTYPES

DRAWN = 2**22
"""Elements that are drawn and judged at a time: a float64 copy of a large message may not fit into memory."""

BLOCKS = 2**9
"""Seeds of each rank, one for each block that is drawn; PyTorch's CPU generator has seeds of 32 bits."""

ROW, CHECKED_ROWS = 128, 2**12
"""Elements of a row of the gate: few, so that few wrong ones are found. And how many rows of each block are
checked: all of up to 1 MiB in 16 bits, an eighth of a full one; 4 KiB of wrong numbers are always found."""

SHORT_ROW = 16
"""Fewest elements of a row: a sum over ranks of fewer may be close to 0, and its rounding errors are not."""


def bound_of(case: Collective) -> float:
    """Largest relative error of a row of a result; 0 where data only moves."""
    if case.kind in ("all_reduce", "reduce_scatter"):
        return sum_tolerance(DTYPES[case.dtype], case.ranks)
    return 0.0


def verdict_of(case: Collective, rank: int, outputs: Sequence[Tensor]) -> Verdict:
    """The worst row of what a rank got in each of several calls.

    Args:
        case: the collective.
        rank: number of the rank in its group.
        outputs: [output_elements] each.
    """
    bound = bound_of(case)
    worst = Verdict(relative_error=0.0, tolerance=bound, worst_row=0)
    for first, size, addends in expected_blocks(case, rank, outputs[0].device):
        count = -(-size // ROW)
        rows = sampled(count, -(-count // CHECKED_ROWS), outputs[0].device)
        total = functools.reduce(torch.add, (_rows(x)[rows].double() for x in addends))
        expected = _filled(total, case.ranks)
        for output in outputs:
            actual = _filled(_rows(output[first : first + size])[rows], case.ranks)
            found = judge(actual, expected, bound=bound)
            if found.relative_error > worst.relative_error:
                worst = replace(found, worst_row=first // ROW + int(rows[found.worst_row]))
    return worst


def drawn(case: Collective, rank: int, device: torch.device, first: int, last: int) -> Tensor:
    """Elements first .. last - 1 of what a rank puts in: standard normal numbers, the same on every rank.

    Returns:
        [last - first] in the dtype of the case.
    """
    pieces = []
    for block in range(first // DRAWN, -(-last // DRAWN)):
        start = block * DRAWN
        size = min(DRAWN, case.input_elements - start)
        generator = torch.Generator(device).manual_seed(rank * BLOCKS + block)
        numbers = torch.randn(size, generator=generator, device=device).to(DTYPES[case.dtype])
        pieces.append(numbers[max(0, first - start) : last - start])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def expected_blocks(
    case: Collective, rank: int, device: torch.device
) -> Iterator[tuple[int, int, Iterator[Tensor]]]:
    """What a rank must get, by blocks: first element, number of elements, and what adds up to them.

    The addends are [elements] in the dtype of the case, of which data that only moves has one.
    """
    part, everyone = case.elements // case.ranks, range(case.ranks)
    adds_up = case.kind in ("all_reduce", "reduce_scatter")
    offset = rank * part if case.kind in ("reduce_scatter", "all_to_all") else 0
    length = case.output_elements if adds_up else part
    for place, senders in enumerate([everyone] if adds_up else [range(r, r + 1) for r in everyone]):
        for first in range(0, length, DRAWN):
            size, begin = min(DRAWN, length - first), offset + first
            addends = (drawn(case, sender, device, begin, begin + size) for sender in senders)
            yield place * part + first, size, addends


def _rows(x: Tensor) -> Tensor:
    """Elements [n] as rows [m, ROW] of the gate; the last row ends with the last element."""
    if len(x) <= ROW:
        return x[None]
    full = x[: len(x) // ROW * ROW].view(-1, ROW)
    return full if len(x) % ROW == 0 else torch.cat([full, x[None, -ROW:]])


def _filled(rows: Tensor, ranks: int) -> Tensor:
    """Rows of at least `SHORT_ROW` elements: those that lack are the root mean square of a sum over ranks."""
    return functional.pad(rows, (0, max(0, SHORT_ROW - rows.shape[-1])), value=math.sqrt(ranks))
