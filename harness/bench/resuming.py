"""Reads an unfinished run so that it can continue."""

from pathlib import Path

from msgspec import ValidationError

from ..core import options
from ..core.errors import UsageError
from ..core.rank_process import rank_and_size
from ..core.records import Run
from ..core.run_file import fault_of, read_run
from .device import Device
from .environment import describe
from .run_settings import Settings, settings_of

WITH_RESUME = {
    *("device", "output", "resume", "as_json", "wide", "html", "markdown", "csv", "png"),
    "collective_timeout",
}
"""Options that may be given with --resume; all others are fixed by the run."""


def read_unfinished(run_file: Path) -> tuple[Run, Settings]:
    """An unfinished run and its settings.

    Raises:
        UsageError: the run is complete or invalid, or an option would change its settings.
    """
    for name, option in options.given().items():
        if name not in WITH_RESUME:
            raise UsageError(f"{option}: is fixed by the run; leave it out with --resume")
    run = read_run(run_file)
    if not run.interrupted and run.broken is None and run.late is None:
        raise UsageError(f"--resume: {str(run_file)!r} is a complete run; nothing is left to measure")
    try:
        return run, settings_of(run)
    except ValidationError as error:
        raise UsageError(f"{str(run_file)!r}: is not a valid run: {fault_of(error, 'settings')}") from error


def require_as_many_ranks(run: Run) -> None:
    """Make sure that a run continues with the ranks that it began with.

    Raises:
        UsageError: there are more or fewer.
    """
    begun, here = run.parallelism.gpus, (rank_and_size() or (0, 1))[1]
    if begun != here:
        ranks = "1 rank" if begun == 1 else f"{begun} ranks"
        raise UsageError(f"--resume: the run was begun with {ranks}, here there are {here}; start {begun}")


def require_same_machine(run: Run, device: Device) -> None:
    """Make sure that a run continues on the device and with the versions that it began with.

    Raises:
        UsageError: the device or a version differs.
    """
    here = describe(device)
    for part in ("device", "versions"):
        before, now = run.environment[part], here[part]
        for name in (
            "kind",
            "name",
            "cores",
            "cpu_quota_cores",
            "capability",
            "decodetax",
            "torch",
            "triton",
            "cuda",
        ):
            if name in before and before[name] != now.get(name):
                raise UsageError(
                    f"--resume: the run was begun with {name} {before[name]!r}, here it is "
                    f"{now.get(name)!r}; begin a new one"
                )
