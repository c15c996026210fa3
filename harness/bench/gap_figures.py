"""The interactive figures of the gap: against batch, as a heat map, by its parts and in dollars."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from ..core.records import Gap
from ..core.units import seconds
from .drawing import (
    COLOURS,
    DASHES,
    GREY,
    PATTERNS,
    SYMBOLS,
    Drawing,
    cycle,
    drawn,
    safe,
    safe_name,
    shortened,
)
from .series import GAP_TICKS, OUTPUT_PARTS, GapLine, PriceRatio, output_parts


def gap_against_batch(lines: Sequence[GapLine], ratios: Sequence[PriceRatio], *, several: bool) -> Drawing:
    """The gap of each context, price ratios across it, and where they meet."""
    figure = go.Figure()
    batches = sorted({batch for line in lines for batch in line.batches})
    ends = [batches[0] / 1.15, batches[-1] * 1.15]
    for ratio in ratios:
        figure.add_scatter(
            x=ends,
            y=[float(ratio.ratio)] * 2,
            mode="lines",
            showlegend=False,
            line={"dash": DASHES["published"], "color": GREY, "width": 1.5},
            hovertemplate=f"price ratio {ratio.ratio:f} (published)<extra></extra>",
        )
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=math.log10(float(ratio.ratio)), yanchor="bottom", yshift=1,
            text=f"{ratio.ratio:f} x: {safe(ratio.models[0])}", showarrow=False, font={"size": 10},
        )  # fmt: skip
    _add_lines(figure, lines, several=several, value=lambda gap: gap.gap, what="gap %{y:.2f}")
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
            customdata=[
                [f"{batch:.3g}", safe(_line_name(line, several=several)), safe(ratio.examples)]
                for line, ratio, batch in crossings
            ],
            hovertemplate="<b>break-even at batch %{customdata[0]}</b><br>%{customdata[1]}"
            "<br>price ratio %{y}: %{customdata[2]}<extra></extra>",
        )
    return drawn(
        figure,
        x={"type": "log", "title": {"text": "batch, sequences decoded together"}, **_ticks(batches)},
        y={"type": "log", "title": {"text": "gap: output token over input token"},
           **_ticks(GAP_TICKS)},
        name="gap",
        title="Gap against batch, beside what APIs charge",
        provenance="solid lines measured; dotted lines published price ratios",
        sentence=" ".join([*_gap_sentences(lines, several=several), *_meetings(crossings, several=several)]),
        table="gaps",
    )  # fmt: skip


def _ticks(values: Sequence[int]) -> dict[str, Any]:
    return {"tickvals": list(values), "ticktext": [str(value) for value in values]}


def _line_name(line: GapLine, *, several: bool) -> str:
    context = f"context {line.context}"
    return f"{shortened(line.run)}, {context}" if several else context


def _add_lines(
    figure: go.Figure,
    lines: Sequence[GapLine],
    *,
    several: bool,
    value: Callable[[Gap], float | None],
    what: str,
    label: str = "",
    dash: str = "solid",
) -> None:
    """A line of measured figures a run and context, its colour the run's, or of one run the context's."""
    runs = list(dict.fromkeys(line.run for line in lines))
    contexts = sorted({line.context for line in lines})
    for line in lines:
        colour = runs.index(line.run) if several else contexts.index(line.context)
        symbol = SYMBOLS[contexts.index(line.context) % len(SYMBOLS)]
        figure.add_scatter(
            x=line.batches,
            y=[value(gap) for gap in line.gaps],
            mode="lines+markers",
            name=safe(f"{label}{_line_name(line, several=several)} (measured)"),
            line={"color": COLOURS[colour % len(COLOURS)], "width": 2, "dash": dash},
            marker={"size": 10, "symbol": symbol, "line": {"color": GREY, "width": 1}},
            hovertemplate=f"%{{fullData.name}}<br>batch %{{x}}: {what}<extra></extra>",
        )


def _gap_sentences(lines: Sequence[GapLine], *, several: bool) -> Iterator[str]:
    for line in lines:
        first, last = line.gaps[0], line.gaps[-1]
        to = "" if first is last else f" and {last.gap:.3g} at batch {last.batch}"
        yield f"{_line_name(line, several=several)}: the gap is {first.gap:.3g} at batch {first.batch}{to}."


def _meetings(crossings: Sequence[tuple[GapLine, PriceRatio, float]], *, several: bool) -> Iterator[str]:
    for line, ratio, batch in crossings:
        where = _line_name(line, several=several)
        yield f"{where}: it equals the price ratio {ratio.ratio:f} ({ratio.examples}) at batch {batch:.3g}."


def gap_heat_map(gaps: Sequence[Gap], number: int, of_run: str) -> Drawing:
    """The gap of a run, over batch and context."""
    batches, contexts = sorted({gap.batch for gap in gaps}), sorted({gap.context for gap in gaps})
    found = {(gap.batch, gap.context): gap.gap for gap in gaps}
    values = [[found.get((batch, context)) for batch in batches] for context in contexts]
    figure = go.Figure(
        go.Heatmap(
            x=[str(batch) for batch in batches],
            y=[str(context) for context in contexts],
            z=values,
            text=[["none" if value is None else f"{value:.3g}" for value in row] for row in values],
            texttemplate="%{text}",
            colorscale="Cividis",
            colorbar={"title": {"text": "gap"}, "thickness": 12},
            xgap=2,
            ygap=2,
            hovertemplate="batch %{x}, context %{y}: gap %{text}<extra></extra>",
        )
    )
    extremes = [max(gaps, key=lambda gap: gap.gap), min(gaps, key=lambda gap: gap.gap)]
    most, least = (f"{gap.gap:.3g} at batch {gap.batch} and context {gap.context}" for gap in extremes)
    return drawn(
        figure,
        x={"type": "category", "title": {"text": "batch"}},
        y={"type": "category", "title": {"text": "context, tokens"}},
        name=f"heat-{number}",
        title=f"Gap over batch and context{of_run}",
        provenance="measured",
        sentence=f"The largest gap is {most}; the smallest is {least}.",
        table="gaps",
    )


def time_of_output(gaps: Sequence[Gap], number: int, of_run: str) -> Drawing:
    """Bars of an output token's time, stacked by what it goes to."""
    ordered = sorted(gaps, key=lambda gap: (gap.context, gap.batch))
    axis = [[f"context {gap.context}" for gap in ordered], [f"batch {gap.batch}" for gap in ordered]]
    figure = go.Figure()
    for part, colour, pattern in zip(output_parts(gaps), cycle(COLOURS), cycle(PATTERNS), strict=False):
        spent = [gap.output_parts_s.get(part, 0.0) for gap in ordered]
        figure.add_bar(
            x=axis,
            y=[1e3 * part_s for part_s in spent],
            name=safe_name(OUTPUT_PARTS.get(part, part)),
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay", "size": 6}},
            customdata=[
                [seconds(part_s), f"{part_s / gap.output_s_per_token:.0%}"]
                for part_s, gap in zip(spent, ordered, strict=True)
            ],
            hovertemplate="%{fullData.name}<br>%{x}: %{customdata[0]}, %{customdata[1]} of the token"
            "<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.25)
    return drawn(
        figure,
        x={"type": "multicategory"},
        y={"title": {"text": "ms per output token (measured)"}},
        name=f"parts-{number}",
        title=f"Where an output token's time goes{of_run}",
        provenance="measured",
        sentence=" ".join(_part_sentences(ordered)),
        table="output_parts",
    )


def _part_sentences(gaps: Sequence[Gap]) -> Iterator[str]:
    for gap in gaps:
        shares = (
            f"{part_s / gap.output_s_per_token:.0%} {OUTPUT_PARTS.get(part, part)}"
            for part, part_s in gap.output_parts_s.items()
        )
        yield (
            f"Batch {gap.batch}, context {gap.context}: {seconds(gap.output_s_per_token)}, "
            f"of it {', '.join(shares)}."
        )


def cost(lines: Sequence[GapLine], *, several: bool) -> Drawing:
    """Dollars of a million input and output tokens, against the batch."""
    figure = go.Figure()
    priced = [line for line in lines if any(gap.usd_per_hour is not None for gap in line.gaps)]
    _add_lines(
        figure,
        priced,
        several=several,
        value=lambda gap: gap.usd_per_mtok(gap.output_s_per_token),
        what="$%{y:.4g} per 1M tokens",
        label="output, ",
    )
    _add_lines(
        figure,
        priced,
        several=several,
        value=lambda gap: gap.usd_per_mtok(gap.input_s_per_token),
        what="$%{y:.4g} per 1M tokens",
        label="input, ",
        dash="longdashdot",
    )
    batches = sorted({batch for line in priced for batch in line.batches})
    return drawn(
        figure,
        x={"type": "log", "title": {"text": "batch, sequences decoded together"}, **_ticks(batches)},
        y={"type": "log", "title": {"text": "$ per 1M tokens"}, "tickprefix": "$"},
        name="cost",
        title="What a million tokens cost on this device",
        provenance="measured seconds at the price of the device, which is published or was given",
        sentence=" ".join(_cost_sentences(priced, several=several)),
        table="gaps",
    )


def _cost_sentences(lines: Sequence[GapLine], *, several: bool) -> Iterator[str]:
    for line in lines:
        for gap in line.gaps:
            per_input, per_output = map(gap.usd_per_mtok, (gap.input_s_per_token, gap.output_s_per_token))
            if per_input is not None and per_output is not None:
                where = _line_name(line, several=several)
                yield f"{where}, batch {gap.batch}: ${per_input:.4g} of input, ${per_output:.4g} of output."
