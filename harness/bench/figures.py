"""Which interactive figures a report has."""

from collections.abc import Mapping, Sequence

from ..core.records import Run
from .drawing import Drawing
from .gap_figures import cost, gap_against_batch, gap_heat_map, time_of_output
from .roofline_figure import roofline
from .series import PriceRatio, gap_lines


def drawings(runs: Mapping[str, Run], ratios: Sequence[PriceRatio]) -> tuple[Drawing, ...]:
    """The figures that these runs have something for."""
    found = [roofline(runs)]
    lines = [line for name, run in runs.items() for line in gap_lines(name, run)]
    if lines:
        found.append(gap_against_batch(lines, ratios, several=len(runs) > 1))
    for number, (name, run) in enumerate(runs.items(), start=1):
        if run.gaps:
            of_run = f": {name}" if len(runs) > 1 else ""
            found += [gap_heat_map(run.gaps, number, of_run), time_of_output(run.gaps, number, of_run)]
    if any(gap.usd_per_hour is not None for line in lines for gap in line.gaps):
        found.append(cost(lines, several=len(runs) > 1))
    return tuple(drawing for drawing in found if drawing is not None)
