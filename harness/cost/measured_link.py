"""The link between GPUs as a run of several ranks measured it, in the terms of the modelled all-reduce."""

from dataclasses import replace
from pathlib import Path

from ..core.collectives import CollectiveRow
from ..core.errors import UsageError
from ..core.records import Run
from ..core.run_file import read_run
from .all_reduce_time import all_reduce_time
from .deployment import Deployment


def with_measured_link(deployment: Deployment, run_file: Path) -> Deployment:
    """A deployment whose all-reduce takes as long as in a run, at its smallest and its largest message.

    The smallest gives the latency. The bandwidth of the link is the one with which the modelled all-reduce of
    the largest message takes the rest of its measured time.

    Raises:
        UsageError: the file is no run, or one whose link between the GPUs of a host was not measured.
    """
    smallest, largest = _measured(read_run(run_file), f"--link-from: {str(run_file)!r}")
    latency_s = smallest.time_s.median
    gpu, message = deployment.gpu, largest.case.message_bytes
    modelled = all_reduce_time(
        gpu, gpus=largest.case.ranks, reduced_bytes=message, how=deployment.engine.all_reduce
    )
    moved_s = largest.time_s.median - latency_s
    return replace(
        deployment,
        gpu=replace(gpu, link_bytes_per_s=gpu.link_bytes_per_s * modelled.memory_s / moved_s),
        all_reduce_latency_s=latency_s,
    )


def _measured(run: Run, named: str) -> tuple[CollectiveRow, CollectiveRow]:
    """The fastest all-reduces of the smallest and of the largest message of a run's link."""
    rows = [row for row in run.collectives if row.status == "ok" and row.case.phase == "link"]
    if not rows:
        raise UsageError(f"{named} has no measured link; it must be a run of several ranks")
    if len(hosts := {facts.get("host") for facts in run.environment["ranks"].values()}) > 1:
        raise UsageError(f"{named} is a run on {len(hosts)} hosts; it must be on one, whose link is modelled")
    ordered = sorted(rows, key=lambda row: (row.case.message_bytes, -row.time_s.median))
    largest = ordered[-1]
    least = ordered[0].case.message_bytes
    smallest = min(
        (row for row in rows if row.case.message_bytes == least), key=lambda row: row.time_s.median
    )
    if largest.time_s.median <= smallest.time_s.median:
        raise UsageError(
            f"{named} shows no bandwidth: its all-reduce of {largest.case.message_bytes} bytes took no "
            f"longer than that of {least}"
        )
    return smallest, largest
