"""The interactive chart of a fleet: dollars of output tokens against the tokens per second of one user."""

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from ..core.table import html_escaped
from ..core.units import number
from .chart_data import COLOURS, GREY
from .fleet import Point, Series, mark, user_interval
from .html_gap_charts import error_bars
from .plotly_figure import SYMBOLS, Chart, drawn, log_axis

NO_BAR = (None, None)


def fleet_chart(all_series: Sequence[Series]) -> Chart:
    """A point for each gap with a price; lines join the batches of a context."""
    figure = go.Figure()
    for at, series in enumerate(all_series):
        points: list[Point | None] = []
        for same in series.contexts:
            points += [*same, None]  # no line from one context to the next
        figure.add_scatter(
            x=[point and point.tokens_per_s for point in points],
            y=[point and point.usd_per_mtok for point in points],
            error_x=error_bars([(p.tokens_per_s, user_interval(p.gap)) if p else NO_BAR for p in points]),
            error_y=error_bars([(p.usd_per_mtok, p.gap.usd_intervals[1]) if p else NO_BAR for p in points]),
            mode="lines+markers",
            name=html_escaped(series.label),
            line={"color": COLOURS[at % len(COLOURS)], "width": 1.5},
            marker={
                "size": 10,
                "symbol": SYMBOLS[mark(at) % len(SYMBOLS)],
                "line": {"color": GREY, "width": 1},
            },
            hoverinfo="text",
            hovertext=["" if point is None else _hover(series, point) for point in points],
        )
    return drawn(
        figure,
        x=log_axis("tokens/s per user (measured)"),
        y=log_axis("$ per 1M output tokens") | {"tickprefix": "$"},
        id="fleet-usd",
        title="Dollars of output tokens against the speed of one user",
        provenance="measured seconds (bars: 95% interval) at the price of each device, which is published or "
        "was given",
        sentence=" ".join(map(_sentence, all_series)),
        table="fleet",
    )


def _hover(series: Series, point: Point) -> str:
    return "<br>".join((f"<b>{html_escaped(series.label)}</b>", *_facts(point)))


def _facts(point: Point) -> Iterator[str]:
    yield f"batch {point.gap.batch}, context {point.gap.context}"
    yield f"{number(point.tokens_per_s)} tokens/s per user (measured)"
    yield f"${number(point.usd_per_mtok)} per 1M output tokens"


def _sentence(series: Series) -> str:
    points = (point for same in series.contexts for point in same)
    return f"{series.label}: {'; '.join(', '.join(_facts(point)) for point in points)}."
