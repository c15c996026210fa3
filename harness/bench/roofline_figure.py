"""The interactive roofline."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ..core.records import Run
from ..core.units import seconds, si
from .drawing import COLOURS, DASHES, GREY, SYMBOLS, Drawing, cycle, drawn, safe, safe_name
from .series import Point, under_roofs

# A kind's colour is its operation's, its symbol says the phase too.
KINDS = {
    "projection, prefill": (COLOURS[0], "square"),
    "projection, decode": (COLOURS[0], "circle"),
    "attention, prefill": (COLOURS[1], "diamond"),
    "attention, decode": (COLOURS[1], "triangle-up"),
    "whole layer, prefill": (COLOURS[2], "star"),
    "whole layer, decode": (COLOURS[2], "x"),
}


def roofline(runs: Mapping[str, Run]) -> Drawing | None:
    """Every ok row by ops:bytes and FLOP/s, under the roofs; a trace a run, or of one run a trace a kind."""
    shown, roofs = under_roofs(runs)
    if not roofs and not any(shown.values()):
        return None
    several = len(runs) > 1
    figure = go.Figure()
    colours = dict(zip(runs, cycle(COLOURS), strict=False))
    for line in roofs:
        figure.add_scatter(
            x=line.operations_per_byte,
            y=line.flop_per_s,
            mode="lines",
            name=f"{safe_name(line.run)}: {line.label}" if several else line.label,
            line={
                "dash": DASHES[line.provenance],
                "color": colours[line.run] if several else GREY,
                "width": 2,
            },
            hovertemplate="%{fullData.name}<extra></extra>",
        )
    for trace, some in _traces(shown, several=several):
        figure.add_scatter(**trace, **_point_data(some, several=several))
    return drawn(
        figure,
        x={"type": "log", "title": {"text": "ops:bytes, operations per byte (modelled)"}, "dtick": 1},
        y={"type": "log", "title": {"text": "FLOP/s (measured)"}, "exponentformat": "SI", "dtick": 1},
        name="roofline",
        title="Roofline: what each kernel reaches, and what the device allows",
        provenance="points (bars: 95% interval) and solid roofs measured; ops:bytes modelled"
        + (
            "; dashed roofs of the datasheet" if any(line.provenance == "datasheet" for line in roofs) else ""
        ),
        sentence=" ".join(_roofline_sentences(runs, shown)),
        table="kernels",
    )


def _roofline_sentences(runs: Mapping[str, Run], shown: Mapping[str, Sequence[Point]]) -> Iterator[str]:
    for name, run in runs.items():
        of = f"{name}: " if len(runs) > 1 else ""
        some = shown[name]
        if some:
            ratios = [point.operations_per_byte for point in some]
            rates = [point.flop_per_s for point in some]
            yield (
                f"{of}{len(some)} measured points from {min(ratios):.3g} to {max(ratios):.3g} operations per "
                f"byte and from {si(min(rates))}FLOP/s to {si(max(rates))}FLOP/s."
            )
        for provenance, roof in (("measured", run.measured), ("datasheet", run.datasheet)):
            if roof.balance_operations_per_byte is not None:
                yield (
                    f"{of}The {provenance} roof turns from memory to arithmetic at "
                    f"{roof.balance_operations_per_byte:.3g} operations per byte."
                )


def _traces(
    shown: Mapping[str, Sequence[Point]], *, several: bool
) -> Iterator[tuple[dict[str, Any], list[Point]]]:
    """How each group of points looks, and the points."""
    if several:
        for (name, some), colour, symbol in zip(shown.items(), cycle(COLOURS), cycle(SYMBOLS), strict=False):
            yield _look(f"{safe_name(name)} (measured)", colour, symbol), list(some)
        return
    kinds: dict[str, list[Point]] = {}
    for point in (point for some in shown.values() for point in some):
        kinds.setdefault(point.kind, []).append(point)
    for kind in sorted(kinds, key=lambda kind: list(KINDS).index(kind) if kind in KINDS else len(KINDS)):
        colour, symbol = KINDS.get(kind, (COLOURS[3], "hexagon"))
        yield _look(f"{safe_name(kind)} (measured)", colour, symbol), kinds[kind]


def _look(name: str, colour: str, symbol: str) -> dict[str, Any]:
    return {
        "mode": "markers",
        "name": name,
        "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"color": GREY, "width": 1}},
    }


def _point_data(some: Sequence[Point], *, several: bool) -> dict[str, Any]:
    lines = [
        *(["run"] if several else []),
        "provider", "shape", "ops:bytes (modelled)", "median (measured)", "95% interval", "FLOP/s (measured)",
    ]  # fmt: skip
    template = "<b>%{customdata[0]}</b>"
    template += "".join(f"<br>{line}: %{{customdata[{at}]}}" for at, line in enumerate(lines, start=1))
    return {
        "x": [point.operations_per_byte for point in some],
        "y": [point.flop_per_s for point in some],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [point.operations / point.time_s.low - point.flop_per_s for point in some],
            "arrayminus": [point.flop_per_s - point.operations / point.time_s.high for point in some],
            "thickness": 1,
            "width": 2,
        },
        "customdata": [
            [
                safe(point.case),
                *([safe(point.run)] if several else []),
                safe(point.provider),
                safe(point.shape),
                f"{point.operations_per_byte:.3g}",
                seconds(point.time_s.median),
                f"{seconds(point.time_s.low)} to {seconds(point.time_s.high)}",
                f"{si(point.flop_per_s)}FLOP/s",
            ]
            for point in some
        ],
        "hovertemplate": f"{template}<extra></extra>",
    }
