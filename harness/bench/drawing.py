"""What the interactive figures of a report have in common.

Colours of text and grid are the page's, which has a light and a dark one. Solid lines are measured, dashed
ones the datasheet's, dotted ones published. All text that came from a run is escaped, for plotly reads tags
in it.
"""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

# Okabe and Ito's colours, but for black and yellow, one of which is lost on either page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808080"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon", "triangle-down")
PATTERNS = ("", "/", ".", "x", "-", "|")
DASHES = {"measured": "solid", "datasheet": "dash", "published": "dot"}
NAME_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure of the page.

    Attributes:
        name: of its element; never from a file.
        provenance: of what it shows, in words.
        sentence: what it shows, for those who cannot see it.
        table: name of the table that holds its figures.
        figure: what plotly draws, as JSON in which no tag can stand.
    """

    name: str
    title: str
    provenance: str
    sentence: str
    table: str
    figure: str


def safe(text: object) -> str:
    """Text of a run for plotly: one line without tags."""
    return html.escape(" ".join(str(text).split()))


def safe_name(text: object) -> str:
    """The same, of at most NAME_CHARACTERS before escaping."""
    return safe(shortened(text))


def shortened(text: object) -> str:
    """One line of at most NAME_CHARACTERS."""
    line = " ".join(str(text).split())
    return line if len(line) <= NAME_CHARACTERS else f"{line[: NAME_CHARACTERS - 1]}…"


def drawn(figure: go.Figure, *, x: dict[str, Any], y: dict[str, Any], **facts: str) -> Drawing:
    """A figure with the looks that all have, and the facts of a Drawing."""
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
    return Drawing(figure=in_a_page(figure.to_json()), **facts)


def in_a_page(text: str) -> str:
    """JSON that may stand inside a script element: no tag, no end of one, no line end of JavaScript."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def cycle(some: Sequence[str]) -> Iterator[str]:
    """Looks, over and over."""
    while True:
        yield from some
