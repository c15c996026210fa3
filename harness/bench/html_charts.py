"""The interactive charts of a report, drawn by plotly: the roofline, the gap, its parts and dollars.

The page sets the colours of text and grid, for a light and a dark theme. Solid lines are measured, dashed
lines the datasheet's, dotted lines published. plotly reads tags in text, so all text of a run is escaped.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from ..core.gap import Gap
from ..core.records import Run
from ..core.table import html_escaped
from ..core.units import number, seconds, si
from .chart_data import (
    COLOURS,
    GAP_TICKS,
    GREY,
    OUTPUT_PARTS,
    GapLine,
    Point,
    PriceRatio,
    RoofLine,
    gap_lines,
    output_parts,
    points_and_roofs,
    shortened,
)
from .run_tables import provider_name, shape_text

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon", "triangle-down")
PATTERNS = ("", "/", ".", "x", "-", "|")
DASHES = {"measured": "solid", "datasheet": "dash", "published": "dot"}
KINDS = {
    "projection, prefill": (COLOURS[0], "square"),
    "projection, decode": (COLOURS[0], "circle"),
    "attention, prefill": (COLOURS[1], "diamond"),
    "attention, decode": (COLOURS[1], "triangle-up"),
    "whole layer, prefill": (COLOURS[2], "star"),
    "whole layer, decode": (COLOURS[2], "x"),
}
"""Colour and symbol of a series in a chart of one run: the colour shows the operation."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart of the page.

    Attributes:
        id: id of its HTML element; never text of a file.
        title: heading above the chart.
        provenance: origin of its figures, in words.
        sentence: description for readers who cannot see it.
        table: id of the table that holds its figures.
        figure: plotly's figure as JSON without characters of HTML tags.
    """

    id: str
    title: str
    provenance: str
    sentence: str
    table: str
    figure: str


def charts(runs: Mapping[str, Run], ratios: Sequence[PriceRatio]) -> list[Chart]:
    """The charts that these runs have data for."""
    lines = gap_lines(runs)
    priced = [line for line in lines if any(gap.usd_per_hour is not None for gap in line.gaps)]
    points, roofs = points_and_roofs(runs)
    found = [_roofline(runs, points, roofs)] if points or roofs else []
    if lines:
        found.append(_gap_against_batch(lines, ratios))
    for at, (name, run) in enumerate(runs.items(), start=1):
        if run.gaps:
            of_run = f": {name}" if len(runs) > 1 else ""
            found += [_gap_heat_map(run.gaps, at, of_run), _time_of_output(run.gaps, at, of_run)]
    return [*found, _cost(priced)] if priced else found


def _chart(figure: go.Figure, *, x: dict[str, Any], y: dict[str, Any], **facts: str) -> Chart:
    """A chart of this figure in the common style; `facts` are the other fields of Chart."""
    figure.update_layout(
        template=None,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 64, "r": 16, "t": 16, "b": 48},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "xanchor": "left"},
        hovermode="closest",
        xaxis={"automargin": True, "zeroline": False, **x},
        yaxis={"automargin": True, "zeroline": False, **y},
    )
    return Chart(figure=script_safe(figure.to_json()), **facts)


def script_safe(json_text: str) -> str:
    """JSON that is safe in a script element: without tags and line ends of JavaScript."""
    for character in "<>&\u2028\u2029":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return json_text


def _log_axis(title: str, ticks: Sequence[int] = ()) -> dict[str, Any]:
    marks = {"tickvals": list(ticks), "ticktext": [str(tick) for tick in ticks]} if ticks else {}
    return {"type": "log", "title": {"text": title}, **marks}


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
    return _chart(
        figure,
        x=_log_axis("ops:bytes, operations per byte (modelled)") | {"dtick": 1},
        y=_log_axis("FLOP/s (measured)") | {"exponentformat": "SI", "dtick": 1},
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
                yield (
                    f"{of_run}The {provenance} roof turns from memory-bound to compute-bound at "
                    f"{number(roof.balance_operations_per_byte, 3)} operations per byte."
                )


def _gap_against_batch(lines: Sequence[GapLine], ratios: Sequence[PriceRatio]) -> Chart:
    """The gap of each context against batch, price ratios as lines, and the break-even batches."""
    figure = go.Figure()
    batches = _batches(lines)
    for ratio in ratios:
        figure.add_scatter(
            x=[batches[0] / 1.15, batches[-1] * 1.15],
            y=[float(ratio.ratio)] * 2,
            mode="lines",
            showlegend=False,
            line={"dash": DASHES["published"], "color": GREY, "width": 1.5},
            hovertemplate=f"price ratio {ratio.ratio:f} (published)<extra></extra>",
        )
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=math.log10(float(ratio.ratio)), yanchor="bottom", yshift=1,
            text=f"{ratio.ratio:f} x: {html_escaped(ratio.models[0])}", showarrow=False, font={"size": 10},
        )  # fmt: skip
    _add_gap_lines(figure, lines, lambda gap: gap.gap, hover="gap %{y:.2f}")
    crossings = [
        (line, ratio, batch)
        for line in lines
        for ratio in ratios
        if (batch := line.break_even_batch(float(ratio.ratio))) is not None
    ]
    if crossings:
        figure.add_scatter(
            x=[batch for _, _, batch in crossings],
            y=[float(ratio.ratio) for _, ratio, _ in crossings],
            mode="markers",
            name="break-even batch (measured gap, published price)",
            marker={"symbol": "star-open", "size": 14, "color": GREY, "line": {"width": 2}},
            hoverinfo="text",
            hovertext=[
                f"<b>break-even at batch {number(batch, 3)}</b><br>{html_escaped(line.label)}"
                f"<br>price ratio {ratio.ratio:f}: {html_escaped(ratio.examples)}"
                for line, ratio, batch in crossings
            ],
        )
    sentences = [_gap_sentence(line) for line in lines]
    sentences += [
        f"{line.label}: it equals the price ratio {ratio.ratio:f} ({ratio.examples}) "
        f"at batch {number(batch, 3)}."
        for line, ratio, batch in crossings
    ]
    return _chart(
        figure,
        x=_log_axis("batch, sequences decoded together", batches),
        y=_log_axis("gap: output token over input token", GAP_TICKS),
        id="gap",
        title="Gap against batch, beside what APIs charge",
        provenance="solid lines measured; dotted lines published price ratios",
        sentence=" ".join(sentences),
        table="gaps",
    )


def _batches(lines: Sequence[GapLine]) -> list[int]:
    return sorted({batch for line in lines for batch in line.batches})


def _gap_sentence(line: GapLine) -> str:
    first, last = line.gaps[0], line.gaps[-1]
    to = "" if first is last else f" and {number(last.gap, 3)} at batch {last.batch}"
    return f"{line.label}: the gap is {number(first.gap, 3)} at batch {first.batch}{to}."


def _add_gap_lines(
    figure: go.Figure,
    lines: Sequence[GapLine],
    value: Callable[[Gap], float | None],
    *,
    hover: str,
    label: str = "",
    dash: str = "solid",
) -> None:
    """Add a line for each run and context; the colour shows the run or, with one run, the context."""
    runs = list(dict.fromkeys(line.run for line in lines))
    contexts = sorted({line.context for line in lines})
    for line in lines:
        colour = runs.index(line.run) if len(runs) > 1 else contexts.index(line.context)
        symbol = SYMBOLS[contexts.index(line.context) % len(SYMBOLS)]
        figure.add_scatter(
            x=line.batches,
            y=[value(gap) for gap in line.gaps],
            mode="lines+markers",
            name=html_escaped(f"{label}{line.label} (measured)"),
            line={"color": COLOURS[colour % len(COLOURS)], "width": 2, "dash": dash},
            marker={"size": 10, "symbol": symbol, "line": {"color": GREY, "width": 1}},
            hovertemplate=f"%{{fullData.name}}<br>batch %{{x}}: {hover}<extra></extra>",
        )


def _gap_heat_map(gaps: Sequence[Gap], at: int, of_run: str) -> Chart:
    """The gap of a run, over batch and context."""
    batches, contexts = sorted({gap.batch for gap in gaps}), sorted({gap.context for gap in gaps})
    found = {(gap.batch, gap.context): gap.gap for gap in gaps}
    values = [[found.get((batch, context)) for batch in batches] for context in contexts]
    figure = go.Figure(
        go.Heatmap(
            x=[str(batch) for batch in batches],
            y=[str(context) for context in contexts],
            z=values,
            text=[["none" if value is None else number(value, 3) for value in row] for row in values],
            texttemplate="%{text}",
            colorscale="Cividis",
            colorbar={"title": {"text": "gap"}, "thickness": 12},
            xgap=2,
            ygap=2,
            hovertemplate="batch %{x}, context %{y}: gap %{text}<extra></extra>",
        )
    )
    extremes = [max(gaps, key=lambda gap: gap.gap), min(gaps, key=lambda gap: gap.gap)]
    most, least = (f"{number(gap.gap, 3)} at batch {gap.batch} and context {gap.context}" for gap in extremes)
    return _chart(
        figure,
        x={"type": "category", "title": {"text": "batch"}},
        y={"type": "category", "title": {"text": "context, tokens"}},
        id=f"heat-{at}",
        title=f"Gap over batch and context{of_run}",
        provenance="measured",
        sentence=f"The largest gap is {most}; the smallest is {least}.",
        table="gaps",
    )


def _time_of_output(gaps: Sequence[Gap], at: int, of_run: str) -> Chart:
    """Stacked bars of an output token's time, by part."""
    ordered = sorted(gaps, key=lambda gap: (gap.context, gap.batch))
    axis = [[f"context {gap.context}" for gap in ordered], [f"batch {gap.batch}" for gap in ordered]]
    figure = go.Figure()
    for part, colour, pattern in zip(output_parts(gaps), cycle(COLOURS), cycle(PATTERNS), strict=False):
        spent = [(gap.output_parts_s.get(part, 0.0), gap.output_s_per_token) for gap in ordered]
        figure.add_bar(
            x=axis,
            y=[1e3 * part_s for part_s, _ in spent],
            name=html_escaped(shortened(OUTPUT_PARTS.get(part, part))),
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay", "size": 6}},
            customdata=[
                f"{seconds(part_s)}, {part_s / total_s:.0%} of the token" for part_s, total_s in spent
            ],
            hovertemplate="%{fullData.name}<br>%{x}: %{customdata}<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.25)
    return _chart(
        figure,
        x={"type": "multicategory"},
        y={"title": {"text": "ms per output token (measured)"}},
        id=f"parts-{at}",
        title=f"Where an output token's time goes{of_run}",
        provenance="measured",
        sentence=" ".join(map(_parts_sentence, ordered)),
        table="output_parts",
    )


def _parts_sentence(gap: Gap) -> str:
    shares = (
        f"{part_s / gap.output_s_per_token:.0%} {OUTPUT_PARTS.get(part, part)}"
        for part, part_s in gap.output_parts_s.items()
    )
    total = seconds(gap.output_s_per_token)
    return f"Batch {gap.batch}, context {gap.context}: {total}: {', '.join(shares)}."


def _cost(lines: Sequence[GapLine]) -> Chart:
    """Dollars per million input and output tokens against the batch; `lines` have prices."""
    figure = go.Figure()
    hover = "$%{y:.4g} per 1M tokens"
    _add_gap_lines(figure, lines, _output_usd, hover=hover, label="output, ")
    _add_gap_lines(figure, lines, _input_usd, hover=hover, label="input, ", dash="longdashdot")
    sentences = [
        f"{line.label}, batch {gap.batch}: ${number(usd_in)} of input, ${number(usd_out)} of output."
        for line in lines
        for gap in line.gaps
        if (usd_in := _input_usd(gap)) is not None and (usd_out := _output_usd(gap)) is not None
    ]
    return _chart(
        figure,
        x=_log_axis("batch, sequences decoded together", _batches(lines)),
        y=_log_axis("$ per 1M tokens") | {"tickprefix": "$"},
        id="cost",
        title="What a million tokens cost on this device",
        provenance="measured seconds at the price of the device, which is published or was given",
        sentence=" ".join(sentences),
        table="gaps",
    )


def _input_usd(gap: Gap) -> float | None:
    return gap.usd_per_mtok(gap.input_s_per_token)


def _output_usd(gap: Gap) -> float | None:
    return gap.usd_per_mtok(gap.output_s_per_token)
