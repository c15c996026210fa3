"""The roofline and the gap as PNG files for slides.

matplotlib draws them, because plotly's own export needs a browser, which not every machine has.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..core.records import Run
from .chart_data import COLOURS, GAP_TICKS, GREY, PriceRatio, gap_lines, points_and_roofs, shortened

MARKERS = ("o", "s", "D", "^", "P", "X", "*", "h", "v")
DASHES = {"measured": "-", "datasheet": "--", "published": ":"}
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 9.6, 5.4, 200


def png_charts(runs: Mapping[str, Run], ratios: Sequence[PriceRatio]) -> dict[str, bytes | None]:
    """PNG files by name, 1920 x 1080; None for a chart without data."""
    return {"roofline.png": _png(_roofline(runs)), "gap.png": _png(_gap(runs, ratios))}


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
    axes.legend(fontsize=8, frameon=False)
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
    axes.legend(fontsize=8, frameon=False)
    return figure
