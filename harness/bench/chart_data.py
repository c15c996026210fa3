"""What the charts of a report show, as plain numbers: points, roofs, gap lines and price ratios."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby
from typing import Any

from ..core.errors import printable
from ..core.gap import Gap
from ..core.records import Roof, Row, Run
from ..core.units import number, si
from ..cost.break_even import measured_batch
from ..cost.prices import TokenPrice

LABEL_CHARACTERS = 60
RATIOS_SHOWN = 5
EXAMPLES_SHOWN = 2
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette without black and yellow, which a dark or a light page would hide."""
GREY = "#808080"
GAP_TICKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
OPERATIONS = {
    "prefill_matmul": "projection",
    "decode_attention": "attention",
    "prefill_attention": "attention",
    "decoder_layer": "whole layer",
}
OUTPUT_PARTS = {
    "projections": "weights: projections",
    "experts": "weights: experts",
    "lm_head": "weights: LM head",
    "attention": "KV cache: attention",
    "window_attention": "KV cache: sliding-window attention",
    "latent_attention": "KV cache: latent attention (MLA)",
    "communication": "communication: collectives",
    "rest": "rest: norms, activation, launches",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """An ok row on the roofline, with its `Row.figures`.

    Attributes:
        series: its operation and phase; with several runs, its run.
    """

    run: str
    series: str
    row: Row
    figures: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RoofLine:
    """A roofline over the chart's range of ops:bytes; `label` gives its bandwidth and FLOP/s."""

    run: str
    provenance: str
    label: str
    operations_per_byte: tuple[float, ...]
    flop_per_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class GapLine:
    """The gaps of a run at one context, in order of batch.

    Attributes:
        label: the context; with several runs, the run's name and the context.
    """

    run: str
    label: str
    context: int
    gaps: tuple[Gap, ...]

    @property
    def batches(self) -> tuple[int, ...]:
        """Their batches."""
        return tuple(gap.batch for gap in self.gaps)

    def break_even_batch(self, ratio: float) -> float | None:
        """The batch at which this line falls to a price ratio; None where it does not cross it."""
        return None if self.gaps[0].gap <= ratio else measured_batch(self.gaps, ratio)


@dataclass(frozen=True, kw_only=True)
class PriceRatio:
    """A published price of an output token over that of an input token, and the models with that ratio."""

    ratio: Decimal
    models: tuple[str, ...]

    @property
    def examples(self) -> str:
        """The first models by name."""
        more = len(self.models) - EXAMPLES_SHOWN
        return ", ".join(self.models[:EXAMPLES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def price_ratios(prices: Mapping[str, TokenPrice]) -> tuple[PriceRatio, ...]:
    """The RATIOS_SHOWN most common integer ratios above 1 of a price list, in rising order."""
    models: dict[Decimal, list[str]] = {}
    for price in prices.values():
        ratio = price.output_over_input
        if ratio is not None and ratio > 1 and ratio == ratio.to_integral_value():
            models.setdefault(ratio, []).append(price.model)
    shown = sorted(models, key=lambda ratio: len(models[ratio]), reverse=True)[:RATIOS_SHOWN]
    return tuple(PriceRatio(ratio=ratio, models=tuple(models[ratio])) for ratio in sorted(shown))


def points_and_roofs(runs: Mapping[str, Run]) -> tuple[list[Point], list[RoofLine]]:
    """A point for every ok row, and the known roofs, drawn a factor of 2 beyond the ops:bytes shown."""
    several = len(runs) > 1
    points, roofs = [], []
    for name, run in runs.items():
        roofs += [(name, "measured", run.measured), (name, "datasheet", run.datasheet)]
        for row in run.rows:
            series = name if several else f"{OPERATIONS[row.case.operation]}, {row.case.phase}"
            if figures := row.figures(run.measured, run.datasheet):
                points.append(Point(run=name, series=series, row=row, figures=figures))
    marks = [point.figures["operations_per_byte"] for point in points]
    marks += [balance for _, _, roof in roofs if (balance := roof.balance_operations_per_byte)]
    least, most = (min(marks) / 2, max(marks) * 2) if marks else (0.1, 1000.0)
    lines = []
    for name, provenance, roof in roofs:
        if line := _roof_line(name, provenance, roof, least, most):
            lines.append(replace(line, label=f"{shortened(name)}: {line.label}") if several else line)
    return points, lines


def _roof_line(name: str, provenance: str, roof: Roof, least: float, most: float) -> RoofLine | None:
    """None if both sides are unknown; with one side known, the line has that side alone."""
    flops, bandwidth = roof.flop_per_s or math.inf, roof.bandwidth_bytes_per_s or math.inf
    sides = [f"{number(bandwidth / 1e9)} GB/s"] if bandwidth < math.inf else []
    sides += [f"{si(flops)}FLOP/s"] if flops < math.inf else []
    balance = roof.balance_operations_per_byte or least
    at = tuple(sorted({least, most} | ({balance} if least < balance < most else set())))
    if not sides:
        return None
    return RoofLine(
        run=name,
        provenance=provenance,
        label=f"{provenance} roof: {', '.join(sides)}",
        operations_per_byte=at,
        flop_per_s=tuple(min(ratio * bandwidth, flops) for ratio in at),
    )


def gap_lines(runs: Mapping[str, Run]) -> list[GapLine]:
    """A line for each context of each run that has gaps."""
    lines = []
    for name, run in runs.items():
        of_run = f"{shortened(name)}, " if len(runs) > 1 else ""
        ordered = sorted(run.gaps, key=lambda gap: (gap.context, gap.batch))
        for context, gaps in groupby(ordered, key=lambda gap: gap.context):
            label = f"{of_run}context {context}"
            lines.append(GapLine(run=name, label=label, context=context, gaps=tuple(gaps)))
    return lines


def shortened(text: str) -> str:
    """Text as one line of at most LABEL_CHARACTERS."""
    line = printable(text)
    return line if len(line) <= LABEL_CHARACTERS else f"{line[: LABEL_CHARACTERS - 1]}…"


def input_usd(gap: Gap) -> float | None:
    """US dollars of a million input tokens; None without a price."""
    return gap.usd_per_mtok(gap.input_s_per_token)


def output_usd(gap: Gap) -> float | None:
    """US dollars of a million output tokens; None without a price."""
    return gap.usd_per_mtok(gap.output_s_per_token)


def output_parts(gaps: Sequence[Gap]) -> tuple[str, ...]:
    """The parts of the gaps' output time, those of OUTPUT_PARTS first."""
    found = dict.fromkeys(part for gap in gaps for part in gap.output_parts_s)
    return (*(part for part in OUTPUT_PARTS if part in found), *(p for p in found if p not in OUTPUT_PARTS))
