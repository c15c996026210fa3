"""Why the figures of a run cannot be trusted, one line a reason.

`run` and `report` print these lines, and `compare` gives no verdict on a run whose machine was disturbed.
"""

import math
import statistics
from collections.abc import Iterable, Iterator

from ..core.errors import printable
from ..core.gap import Gap
from ..core.records import ABOVE_CEILING, Ceiling, Row, Run
from ..core.statistics import MIN_ROUNDS, outlier_count, spread, winsorised
from ..core.units import number

MAX_SPREAD = 0.25
"""Largest `spread` of the logarithms of a row's samples, at the median row of an undisturbed run. Other work
on the same cores at least doubles the time of a call: if it meets one call in 9, the spread is at least
log(2) sqrt(1/9 x 8/9) / 0.82 = 0.26 (0.82 is the deviation of a normal variable winsorised at a tenth of
either end). A run alone on 2 shared CPU cores had 0.1; a run beside two busy processes had 0.5, and one of
its rows was 60 times as slow."""

MAX_HALF_WIDTH = 0.2
"""Largest half-width of a gap's 95% interval, as a share of the gap."""

MAX_OTHER_LOAD = 0.1
"""Largest share of the cores that other processes use beside an undisturbed run: what an idle system does by
itself uses 1 to 3%. Work on a share of the cores delays every call that uses all of them."""

MAX_CEILING_RATIO = 2.0
"""Largest ratio of the slowest to the fastest round of a ceiling: shares of it are known to a factor of 2 at
best then. Where a machine shares its last-level cache with others, the bandwidth of an idle one changes by a
factor of 1.5."""


def warnings_of(run: Run) -> list[str]:
    """Why a run cannot be trusted, a line for each reason; safe to print."""
    return list(map(printable, _warnings(run)))


def _warnings(run: Run) -> Iterator[str]:
    for disturbance in disturbances(run):
        yield f"the machine was disturbed: {disturbance}"
    if wide := [gap for gap in run.gaps if _half_width(gap) > MAX_HALF_WIDTH]:
        worst = max(wide, key=_half_width)
        low, high = worst.gap_interval.bounds if worst.gap_interval else (worst.gap, worst.gap)
        yield (
            f"{len(wide)} of {len(run.gaps)} gaps are not known to within {MAX_HALF_WIDTH:.0%}: at batch "
            f"{worst.batch} and context {worst.context} the 95% interval is {number(low, 3)} to "
            f"{number(high, 3)}"
        )
    if above := run.rows_above_ceilings:
        share, worst_row = max(((run.share_of_ceiling(row) or 0.0, row) for row in above), key=lambda x: x[0])
        rows = "1 row is" if len(above) == 1 else f"{len(above)} rows are"
        yield (
            f"{rows} above {ABOVE_CEILING:.0%} of a measured ceiling, which was measured too low: "
            f"{worst_row.case.id} {worst_row.provider} reaches {share:.0%}"
        )
    if run.altered is not None:
        yield run.altered
    if run.late is not None:
        yield f"the run was cut short: {run.late}"


def _half_width(gap: Gap) -> float:
    return 0.0 if gap.gap_interval is None else gap.gap_interval.half_width


def disturbances(run: Run) -> Iterator[str]:
    """What shows that the machine did other work while the run was measured, or changed its speed."""
    scatter = sample_spread(run.rows)
    if scatter > MAX_SPREAD:
        yield f"samples scatter by {scatter:.0%}"
    if run.other_load is not None and run.other_load > MAX_OTHER_LOAD:
        yield f"other processes used {run.other_load:.0%} of the cores"
    for ceiling in run.ceilings:
        ratio = ceiling_ratio(ceiling)
        if ratio > MAX_CEILING_RATIO:
            name = " ".join(filter(None, (ceiling.dtype, ceiling.kind.replace("_", " "))))
            yield f"the {name} changed by a factor of {ratio:.1f} between rounds"


def sample_spread(rows: Iterable[Row]) -> float:
    """Spread of the logarithms of samples, at the median row; 0 if no row has enough samples."""
    spreads = [spread(list(map(math.log, row.samples_s))) for row in rows if len(row.samples_s) >= MIN_ROUNDS]
    return statistics.median(spreads) if spreads else 0.0


def ceiling_ratio(ceiling: Ceiling) -> float:
    """The slowest over the fastest round of a ceiling, by their fastest calls; 1 if timed in few rounds.

    As many outliers are left out as in a level of rounds.
    """
    fastest: dict[int, float] = {}
    for sample_s, round_number in zip(ceiling.samples_s, ceiling.rounds, strict=False):
        fastest[round_number] = min(sample_s, fastest.get(round_number, sample_s))
    if len(fastest) < MIN_ROUNDS:
        return 1.0
    kept = winsorised(list(fastest.values()), outlier_count(len(fastest)))
    return max(kept) / min(kept)
