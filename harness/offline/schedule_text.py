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

PRODUCT_COLUMNS = {
    "rows": ("rows", "d"),
    "products": ("products", "d"),
    "90% or more": ("well_scheduled", "d"),
    "least efficiency": ("least_efficiency", ".3f"),
    "least SMs filled": ("least_filled", ".2f"),
    "most partial sums/weights": ("most_partial_share", ".2f"),
    "ops:DRAM byte/balance": ("operations_per_byte_over_balance", ".2f"),
    "DRAM/best order": ("most_dram_over_best", ".3f"),
}


def product_schedule_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a line for each row of `offline.matmul_suite.product_rows`."""
    cells = [
        (
            row["gpu"],
            *(
                "-" if row[name] is None else format(row[name], shown)
                for name, shown in PRODUCT_COLUMNS.values()
            ),
        )
        for row in rows
    ]
    title = "Schedule and tile order of products (modelled), bf16, the projections of four language models"
    return f"{title}\n{tabulate(cells, headers=('gpu', *PRODUCT_COLUMNS), disable_numparse=True)}"


def schedule_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a line for each row of `offline.decode_suite.suite_rows`."""
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
