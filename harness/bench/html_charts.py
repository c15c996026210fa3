"""The interactive charts of a report, and the roofline among them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle

import plotly.graph_objects as go

from ..core.records import Run
from ..core.table import html_escaped
from ..core.units import number, seconds, si
from .chart_data import (
    COLOURS,
    GREY,
    Point,
    PriceRatio,
    RoofLine,
    gap_lines,
    points_and_roofs,
    shortened,
)
from .html_gap_charts import cost, gap_against_batch, gap_heat_map, time_of_output
from .plotly_figure import DASHES, SYMBOLS, Chart, drawn, log_axis
from .run_tables import provider_name, shape_text

KINDS = {
    "projection, prefill": (COLOURS[0], "square"),
    "projection, decode": (COLOURS[0], "circle"),
    "attention, prefill": (COLOURS[1], "diamond"),
    "attention, decode": (COLOURS[1], "triangle-up"),
    "whole layer, prefill": (COLOURS[2], "star"),
    "whole layer, decode": (COLOURS[2], "x"),
}
"""Colour and symbol of a series in a chart of one run: the colour shows the operation."""


def charts(runs: Mapping[str, Run], ratios: Sequence[PriceRatio]) -> list[Chart]:
    """The charts that these runs have data for."""
    lines = gap_lines(runs)
    priced = [line for line in lines if any(gap.usd_per_hour is not None for gap in line.gaps)]
    points, roofs = points_and_roofs(runs)
    found = [_roofline(runs, points, roofs)] if points or roofs else []
    if lines:
        found.append(gap_against_batch(lines, ratios))
    for at, (name, run) in enumerate(runs.items(), start=1):
        if run.gaps:
            of_run = f": {name}" if len(runs) > 1 else ""
            found += [gap_heat_map(run.gaps, at, of_run), time_of_output(run.gaps, at, of_run)]
    return [*found, cost(priced)] if priced else found


def _roofline(runs: Mapping[str, Run], points: Sequence[Point], roofs: Sequence[RoofLine]) -> Chart:
    """Every ok row by ops:bytes and FLOP/s under the roofs; a trace per run, or per kind of a single run."""
    several = len(runs) > 1
    figure = go.Figure()
    colours = dict(zip(runs, cycle(COLOURS), strict=False)) if several else {}
    for line in roofs:
        figure.add_scatter(
            x=line.operations_per_byte,
            y=line.flop_per_s,
            mode="lines",
            name=html_escaped(line.label),
            line={"dash": DASHES[line.provenance], "color": colours.get(line.run, GREY), "width": 2},
            hovertemplate="%{fullData.name}<extra></extra>",
        )
    looks = zip(cycle(COLOURS), cycle(SYMBOLS), strict=True) if several else KINDS.values()
    for series, (colour, symbol) in zip(runs if several else KINDS, looks, strict=False):
        if some := [point for point in points if point.series == series]:
            _add_points(figure, some, colour, symbol)
    has_datasheet = any(line.provenance == "datasheet" for line in roofs)
    return drawn(
        figure,
        x=log_axis("ops:bytes, operations per byte (modelled)") | {"dtick": 1},
        y=log_axis("FLOP/s (measured)") | {"exponentformat": "SI", "dtick": 1},
        id="roofline",
        title="Roofline: what each kernel reaches, and what the device allows",
        provenance="points (bars: 95% interval) and solid roofs measured; ops:bytes modelled"
        + ("; dashed roofs of the datasheet" if has_datasheet else ""),
        sentence=" ".join(_roofline_sentences(runs, points)),
        table="kernels",
    )


def _add_points(figure: go.Figure, points: Sequence[Point], colour: str, symbol: str) -> None:
    """Add points of one colour and symbol, with their 95% intervals and hover texts."""
    times = [point.row.time_s for point in points]
    rates = [point.figures["flop_per_s"] for point in points]
    figure.add_scatter(
        mode="markers",
        name=html_escaped(f"{shortened(points[0].series)} (measured)"),
        marker={"color": colour, "symbol": symbol, "size": 9, "line": {"color": GREY, "width": 1}},
        x=[point.figures["operations_per_byte"] for point in points],
        y=rates,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [rate * (t.median / t.low - 1) for rate, t in zip(rates, times, strict=True)],
            "arrayminus": [rate * (1 - t.median / t.high) for rate, t in zip(rates, times, strict=True)],
            "thickness": 1,
            "width": 2,
        },
        hoverinfo="text",
        hovertext=list(map(_hover, points)),
    )


def _hover(point: Point) -> str:
    time_s = point.row.time_s
    facts = {
        "run": point.run,
        "provider": provider_name(point.row),
        "shape": shape_text(point.row.case),
        "ops:bytes (modelled)": number(point.figures["operations_per_byte"], 3),
        "median (measured)": seconds(time_s.median),
        "95% interval": f"{seconds(time_s.low)} to {seconds(time_s.high)}",
        "FLOP/s (measured)": f"{si(point.figures['flop_per_s'])}FLOP/s",
    }
    lines = [f"{name}: {html_escaped(value)}" for name, value in facts.items()]
    return "<br>".join((f"<b>{html_escaped(point.row.case.id)}</b>", *lines))


def _roofline_sentences(runs: Mapping[str, Run], points: Sequence[Point]) -> Iterator[str]:
    for name, run in runs.items():
        of_run = f"{name}: " if len(runs) > 1 else ""
        some = [point.figures for point in points if point.run == name]
        ratios = [figures["operations_per_byte"] for figures in some]
        rates = [figures["flop_per_s"] for figures in some]
        if rates:
            yield (
                f"{of_run}{len(rates)} measured points from {number(min(ratios), 3)} to "
                f"{number(max(ratios), 3)} operations per byte and from {si(min(rates))}FLOP/s to "
                f"{si(max(rates))}FLOP/s."
            )
        for provenance, roof in (("measured", run.measured), ("datasheet", run.datasheet)):
            if roof.balance_operations_per_byte is not None:
                low = provenance == "measured" and run.rows_above_ceilings
                yield (
                    f"{of_run}The {provenance} roof turns from memory-bound to compute-bound at "
                    f"{number(roof.balance_operations_per_byte, 3)} operations per byte"
                    + ("; points above it show that it was measured too low." if low else ".")
                )
