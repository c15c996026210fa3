"""The roofline, the gap and the dollars of a fleet as PNG files for slides.

matplotlib draws them, because plotly's own export needs a browser, which not every machine has.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..core.records import Run
from .chart_data import (
    COLOURS,
    GAP_TICKS,
    GREY,
    PriceRatio,
    gap_lines,
    points_and_roofs,
    shortened,
)
from .fleet import Series, mark

MARKERS = ("o", "s", "D", "^", "P", "X", "*", "h", "v")
DASHES = {"measured": "-", "datasheet": "--", "published": ":"}
LEGEND_ROWS, SMALL_LEGEND_ROWS = 12, 24
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 9.6, 5.4, 200


def png_charts(runs: Mapping[str, Run], ratios: Sequence[PriceRatio]) -> dict[str, bytes | None]:
    """PNG files by name, 1920 x 1080; None for a chart without data."""
    return {"roofline.png": _png(_roofline(runs)), "gap.png": _png(_gap(runs, ratios))}


def fleet_png(all_series: Sequence[Series]) -> bytes | None:
    """Dollars per million output tokens against tokens/s per user; None without a series."""
    if not all_series:
        return None
    figure, axes = _axes()
    for at, series in enumerate(all_series):
        for number, points in enumerate(series.contexts):
            axes.plot(
                [point.tokens_per_s for point in points], [point.usd_per_mtok for point in points],
                color=COLOURS[at % len(COLOURS)], marker=MARKERS[mark(at) % len(MARKERS)], linewidth=1,
                label="_" if number else _label(series.label), markeredgecolor=GREY, markeredgewidth=0.5,
            )  # fmt: skip
    axes.set_xlabel("tokens/s per user (measured)")
    axes.set_ylabel(r"\$ per 1M output tokens (measured, at the price of the device)")
    _legend(axes)
    return _png(figure)


def _png(figure: Figure | None) -> bytes | None:
    if figure is None:
        return None
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(text: str) -> str:
    """Text that matplotlib neither reads as a formula nor leaves out of a legend."""
    line = shortened(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def _legend(axes: Axes) -> None:
    """A legend that leaves room for the chart; of more rows than fit, the last says how many are left out."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > SMALL_LEGEND_ROWS:
        more = len(labels) - SMALL_LEGEND_ROWS + 1
        handles = [*handles[: SMALL_LEGEND_ROWS - 1], Line2D([], [], linestyle="none")]
        labels = [*labels[: SMALL_LEGEND_ROWS - 1], f"and {more} more"]
    axes.legend(handles, labels, fontsize=8 if len(labels) <= LEGEND_ROWS else 6, frameon=False)


def _roofline(runs: Mapping[str, Run]) -> Figure | None:
    points, roofs = points_and_roofs(runs)
    if not roofs and not points:
        return None
    several = len(runs) > 1
    figure, axes = _axes()
    colours = dict(zip(runs, cycle(COLOURS), strict=False))
    for line in roofs:
        axes.plot(
            line.operations_per_byte, line.flop_per_s, DASHES[line.provenance],
            color=colours[line.run] if several else GREY, label=_label(line.label), zorder=1,
        )  # fmt: skip
    all_series = dict.fromkeys(point.series for point in points)
    for series, colour, marker in zip(all_series, cycle(COLOURS), cycle(MARKERS), strict=False):
        some = [point.figures for point in points if point.series == series]
        axes.scatter(
            [figures["operations_per_byte"] for figures in some], [figures["flop_per_s"] for figures in some],
            s=36, color=colours.get(series, colour), marker=marker, edgecolors=GREY, linewidths=0.5,
            label=_label(f"{series} (measured)"), zorder=2,
        )  # fmt: skip
    axes.set_xlabel("ops:bytes, operations per byte (modelled)")
    axes.set_ylabel("FLOP/s (measured)")
    _legend(axes)
    return figure


def _gap(runs: Mapping[str, Run], ratios: Sequence[PriceRatio]) -> Figure | None:
    lines = gap_lines(runs)
    if not lines:
        return None
    figure, axes = _axes()
    batches = sorted({batch for line in lines for batch in line.batches})
    for ratio in ratios:
        axes.axhline(float(ratio.ratio), linestyle=DASHES["published"], color=GREY, linewidth=1, zorder=1)
        axes.annotate(
            _label(f"{ratio.ratio:f} x: {ratio.models[0]} (published)"), (0.01, float(ratio.ratio)),
            xycoords=("axes fraction", "data"), va="bottom", fontsize=7, color=GREY,
        )  # fmt: skip
    for line, colour, marker in zip(lines, cycle(COLOURS), cycle(MARKERS), strict=False):
        below_and_above = [
            (gap.gap - gap.gap_interval.low, gap.gap_interval.high - gap.gap) if gap.gap_interval else (0, 0)
            for gap in line.gaps
        ]
        axes.errorbar(
            line.batches, [gap.gap for gap in line.gaps], list(zip(*below_and_above, strict=True)),
            linestyle="-", color=colour, marker=marker, capsize=3, elinewidth=1,
            label=_label(f"{line.label} (measured; bars: 95% interval)"), zorder=2,
        )  # fmt: skip
        for ratio in ratios:
            batch = line.break_even_batch(float(ratio.ratio))
            if batch is not None:
                axes.scatter(
                    [batch], [float(ratio.ratio)], marker="*", s=90, facecolors="white", edgecolors=colour,
                    zorder=3,
                )  # fmt: skip
    axes.set_xticks(batches, [str(batch) for batch in batches])
    low, high = axes.get_ylim()
    ticks = [tick for tick in GAP_TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("batch, sequences decoded together (stars: break-even batch)")
    axes.set_ylabel("gap: output token over input token")
    _legend(axes)
    return figure
