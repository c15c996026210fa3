"""Saves a run while it is measured, and reads an unfinished run so that it can continue."""

import json
import time
from pathlib import Path

from msgspec import ValidationError

from ..core import options
from ..core.errors import UsageError
from ..core.files import write_text
from ..core.records import Run
from ..core.run_file import fault_of, read_run
from .session import Settings, settings_of

SAVE_EVERY_S = 1.0
WITH_RESUME = {"device", "output", "resume", "as_json", "wide", "html", "markdown", "csv", "png"}
"""Options that may be given with --resume; all others are fixed by the run."""


def partial_of(target: Path) -> Path:
    """The file in which a run is saved until it ends, if `target` exists already."""
    return target.with_name(f"{target.name}.partial")


class RunSaver:
    """When called, writes the run as measured so far, at most once per second."""

    def __init__(self, target: Path, run: Run) -> None:
        self._target, self._run = target.resolve(), run
        self._saved_s = -SAVE_EVERY_S

    def __call__(self) -> None:  # noqa: D102  (the class says it)
        now_s = time.monotonic()
        if now_s - self._saved_s < SAVE_EVERY_S:
            return
        try:
            write_text(self._target, json.dumps(self._run.to_json(), indent=1, allow_nan=False))
        except OSError:
            return  # a full disk does not end the run; writing at the end reports it
        self._saved_s = time.monotonic()


def read_unfinished(run_file: Path) -> tuple[Run, Settings]:
    """An unfinished run and its settings.

    Raises:
        UsageError: the run is complete or invalid, or an option would change its settings.
    """
    for name, option in options.given().items():
        if name not in WITH_RESUME:
            raise UsageError(f"{option}: is fixed by the run; leave it out with --resume")
    run = read_run(run_file)
    if not run.interrupted and run.broken is None:
        raise UsageError(f"--resume: {str(run_file)!r} is a complete run; nothing is left to measure")
    try:
        return run, settings_of(run)
    except ValidationError as error:
        raise UsageError(f"{str(run_file)!r}: is not a valid run: {fault_of(error, 'settings')}") from error
