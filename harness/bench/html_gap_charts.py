"""The interactive charts of the gap: against the batch, over batch and context, by part, and in dollars."""

import math
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from ..core.gap import Gap, Interval
from ..core.table import html_escaped
from ..core.units import number, seconds
from .chart_data import (
    COLOURS,
    GAP_TICKS,
    GREY,
    OUTPUT_PARTS,
    GapLine,
    PriceRatio,
    input_usd,
    output_parts,
    output_usd,
    shortened,
)
from .plotly_figure import DASHES, PATTERNS, SYMBOLS, Chart, drawn, log_axis
from .summary import interval_text


def gap_against_batch(lines: Sequence[GapLine], ratios: Sequence[PriceRatio]) -> Chart:
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
    _add_gap_lines(
        figure, lines, lambda gap: gap.gap, hover="gap %{y:.2f}", interval=lambda gap: gap.gap_interval
    )
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
    return drawn(
        figure,
        x=log_axis("batch, sequences decoded together", batches),
        y=log_axis("gap: output token over input token", GAP_TICKS),
        id="gap",
        title="Gap against batch, beside what APIs charge",
        provenance="solid lines measured (bars: 95% interval); dotted lines published price ratios",
        sentence=" ".join(sentences),
        table="gaps",
    )


def _batches(lines: Sequence[GapLine]) -> list[int]:
    return sorted({batch for line in lines for batch in line.batches})


def _gap_sentence(line: GapLine) -> str:
    first, last = line.gaps[0], line.gaps[-1]
    to = "" if first is last else f" and {_gap_text(last)} at batch {last.batch}"
    return f"{line.label}: the gap is {_gap_text(first)} at batch {first.batch}{to}."


def _gap_text(gap: Gap) -> str:
    return f"{number(gap.gap, 3)}{_interval_text(gap.gap_interval)}"


def _add_gap_lines(
    figure: go.Figure,
    lines: Sequence[GapLine],
    value: Callable[[Gap], float | None],
    *,
    hover: str,
    interval: Callable[[Gap], Interval | None],
    label: str = "",
    dash: str = "solid",
) -> None:
    """Add a line for each run and context; the colour shows the run or, with one run, the context.

    Bars show the 95% intervals that are known.
    """
    runs = list(dict.fromkeys(line.run for line in lines))
    contexts = sorted({line.context for line in lines})
    for line in lines:
        colour = runs.index(line.run) if len(runs) > 1 else contexts.index(line.context)
        symbol = SYMBOLS[contexts.index(line.context) % len(SYMBOLS)]
        figure.add_scatter(
            x=line.batches,
            y=[value(gap) for gap in line.gaps],
            error_y=error_bars([(value(gap), interval(gap)) for gap in line.gaps]),
            customdata=[_interval_text(interval(gap)) for gap in line.gaps],
            mode="lines+markers",
            name=html_escaped(f"{label}{line.label} (measured)"),
            line={"color": COLOURS[colour % len(COLOURS)], "width": 2, "dash": dash},
            marker={"size": 10, "symbol": symbol, "line": {"color": GREY, "width": 1}},
            hovertemplate=f"%{{fullData.name}}<br>batch %{{x}}: {hover}%{{customdata}}<extra></extra>",
        )


def error_bars(points: Sequence[tuple[float | None, Interval | None]]) -> dict[str, Any]:
    """Plotly's error bars of points with intervals; no bar where one is unknown."""
    known = [(value, bounds) if value is not None else (0.0, None) for value, bounds in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": [bounds.high - value if bounds else 0.0 for value, bounds in known],
        "arrayminus": [value - bounds.low if bounds else 0.0 for value, bounds in known],
        "thickness": 1.5,
        "width": 4,
    }


def _interval_text(interval: Interval | None) -> str:
    return "" if interval is None else f" (95% interval {interval_text(interval)})"


def gap_heat_map(gaps: Sequence[Gap], at: int, of_run: str) -> Chart:
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
    return drawn(
        figure,
        x={"type": "category", "title": {"text": "batch"}},
        y={"type": "category", "title": {"text": "context, tokens"}},
        id=f"heat-{at}",
        title=f"Gap over batch and context{of_run}",
        provenance="measured",
        sentence=f"The largest gap is {most}; the smallest is {least}.",
        table="gaps",
    )


def time_of_output(gaps: Sequence[Gap], at: int, of_run: str) -> Chart:
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
    return drawn(
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


def cost(lines: Sequence[GapLine]) -> Chart:
    """Dollars per million input and output tokens against the batch; `lines` have prices."""
    figure, one_device = go.Figure(), all(gap.ranks == 1 for line in lines for gap in line.gaps)
    hover = "$%{y:.4g} per 1M tokens"
    _add_gap_lines(
        figure, lines, output_usd, hover=hover, interval=lambda gap: gap.usd_intervals[1], label="output, "
    )
    _add_gap_lines(
        figure, lines, input_usd, hover=hover, interval=lambda gap: gap.usd_intervals[0], label="input, ",
        dash="longdashdot",
    )  # fmt: skip
    sentences = [
        f"{line.label}, batch {gap.batch}: ${number(usd_in)} of input, ${number(usd_out)} of output."
        for line in lines
        for gap in line.gaps
        if (usd_in := input_usd(gap)) is not None and (usd_out := output_usd(gap)) is not None
    ]
    return drawn(
        figure,
        x=log_axis("batch, sequences decoded together", _batches(lines)),
        y=log_axis("$ per 1M tokens") | {"tickprefix": "$"},
        id="cost",
        title=f"What a million tokens cost on {'this device' if one_device else 'these devices'}",
        provenance="measured seconds at the price of the device, which is published or was given",
        sentence=" ".join(sentences),
        table="gaps",
    )
