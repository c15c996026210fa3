"""What the simulated schedule suite found, as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

SUITE_COLUMNS = {
    "uniform": "uniform",
    "ragged": "ragged",
    "large capacity": "large_capacity",
    "worst": "worst",
    "longest SM/mean": "longest_sm_over_mean",
    "largest jump": "largest_jump",
}


def schedule_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a line for each row of `inspecting.decode_suite.suite_rows`."""
    cells = [
        (
            row["gpu"],
            row["programs_per_sm"],
            row["rule"],
            row["calls"],
            *(f"{row[name]:.3f}" for name in SUITE_COLUMNS.values()),
        )
        for row in rows
    ]
    headers = ("gpu", "programs/SM", "rule", "calls", *SUITE_COLUMNS)
    title = "Decode schedule (modelled): time over live bytes / bandwidth"
    return f"{title}\n{tabulate(cells, headers=headers, disable_numparse=True)}"
