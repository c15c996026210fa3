"""The error to expect of the page's figures: modelled beside measured serving runs."""

from ...core.data_table import data_table
from ...core.table import Column, Table, percent
from ..serving_accuracy import Errors, ServingCheck, errors_of, serving_checks

_COLUMNS = {
    "engine": Column("engine"),
    "gpu": Column("GPU"),
    "model": Column("model"),
    "rows": Column("runs"),
    "median": Column("median error", show=percent),
    "p90": Column("90th percentile", show=percent),
}


def _tested() -> list[ServingCheck]:
    """The committed runs that no constant was fitted to."""
    return [check for check in serving_checks(data_table("serving.csv")) if not check.fitted]


def _errors(checks: list[ServingCheck]) -> Errors:
    found = errors_of([ratio for check in checks if (ratio := check.tpot_ratio) is not None])
    if found is None:
        raise ValueError("no serving run is modelled")
    return found


def expected_error() -> tuple[str, Table]:
    """A sentence with the error over all runs, and a table by engine, GPU and model.

    The error is that of the time per output token at a concurrency, as a share of the measured time.
    """
    checks = _tested()
    found = _errors(checks)
    sentence = (
        f"Expected error: beside {found.rows} measured serving runs that no constant was fitted to, the "
        f"modelled time per output token is off by {found.median:.0%} at the median and "
        f"{found.p90:.0%} at the 90th percentile."
    )
    keys = dict.fromkeys(check.key for check in checks)
    rows = [
        dict(zip(("engine", "gpu", "model"), key, strict=True))
        | vars(_errors([check for check in checks if check.key == key]))
        for key in keys
    ]
    return sentence, Table.select("Error of the time per output token", _COLUMNS, rows)
