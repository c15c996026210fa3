"""A chart of the report as plotly draws it, and the style that all charts share.

The page sets the colours of text and grid, for a light and a dark theme. Solid lines are measured, dashed
lines the datasheet's, dotted lines published. plotly reads tags in text, so all text of a run is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon", "triangle-down")
PATTERNS = ("", "/", ".", "x", "-", "|")
DASHES = {"measured": "solid", "datasheet": "dash", "published": "dot"}


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


def drawn(figure: go.Figure, *, x: dict[str, Any], y: dict[str, Any], **facts: str) -> Chart:
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


def log_axis(title: str, ticks: Sequence[int] = ()) -> dict[str, Any]:
    """A logarithmic axis of plotly."""
    marks = {"tickvals": list(ticks), "ticktext": [str(tick) for tick in ticks]} if ticks else {}
    return {"type": "log", "title": {"text": title}, **marks}
