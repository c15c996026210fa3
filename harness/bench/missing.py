"""What a run does not have, in sentences, so that a report says it in place of a figure."""

from collections.abc import Iterator

from ..core.records import Run
from ..core.tables import missing_gaps


def missing_from(run: Run) -> Iterator[str]:
    """A sentence for each thing that a whole run would have."""
    if run.interrupted:
        yield f"The run was interrupted after {run.elapsed_s:.0f} s: this is what was measured until then."
    if run.broken is not None:
        yield f"The run broke off: {run.broken}."
    if run.failures:
        count = len(run.failures)
        yield f"{count} {'result was' if count == 1 else 'results were'} wrong: those rows have no figures."
    if run.counters_reason is not None:
        yield f"Hardware counters were not read of every row: {run.counters_reason}."
    yield from _no_roofs(run)
    if not any(row.status == "ok" for row in run.rows):
        yield "No kernel was timed with a correct result, so the roofline has no points."
    if not run.gaps:
        yield "No gap could be computed: it needs a correct time of every part, in prefill and in decode."
    else:
        yield from (f"There is {line}." for line in missing_gaps(run))
        if all(gap.usd_per_hour is None for gap in run.gaps):
            yield (
                "No price of this device is known, so there are no dollars per token; "
                "decodetax run --usd-per-hour gives them."
            )


def _no_roofs(run: Run) -> Iterator[str]:
    for provenance, roof in (("measured", run.measured), ("datasheet", run.datasheet)):
        lacks = [
            name
            for name, rate in (
                ("read bandwidth", roof.bandwidth_bytes_per_s),
                (f"{run.dtype} matmul", roof.flop_per_s),
            )
            if rate is None
        ]
        if len(lacks) == 2 and provenance == "datasheet":
            yield "No datasheet of this device is known, so there is no datasheet roof."
        elif lacks:
            yield f"The {provenance} roof lacks its {' and its '.join(lacks)}."
