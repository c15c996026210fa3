"""Why the figures of a run cannot be trusted, one line a reason."""

import math
import statistics
from collections.abc import Iterable

from ..core.records import Row
from ..core.statistics import MIN_ROUNDS, spread

MAX_SPREAD = 0.25
"""Largest `spread` of the logarithms of a row's samples, at the median row of an undisturbed run. Other work
on the same cores at least doubles the time of a call: if it meets one call in 9, the spread is at least
log(2) sqrt(1/9 x 8/9) / 0.82 = 0.26 (0.82 is the deviation of a normal variable winsorised at a tenth of
either end). A run alone on 2 shared CPU cores had 0.1; a run beside two busy processes had 0.5, and one of
its rows was 60 times as slow."""


def sample_spread(rows: Iterable[Row]) -> float:
    """Spread of the logarithms of samples, at the median row; 0 if no row has enough samples."""
    spreads = [spread(list(map(math.log, row.samples_s))) for row in rows if len(row.samples_s) >= MIN_ROUNDS]
    return statistics.median(spreads) if spreads else 0.0
