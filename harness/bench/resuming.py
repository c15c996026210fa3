"""Keeps a run on disk while it goes on, and goes on with one that stopped."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import options
from ..core.errors import UsageError
from ..core.files import write_text

if TYPE_CHECKING:
    from ..core.records import Run
    from .session import Settings

SAVE_EVERY_S = 1.0
HEEDED = {"device", "output", "resume", "as_json", "html", "markdown", "csv", "png"}
"""Options that go with --resume; all others are those of the run."""


def partial_of(target: Path) -> Path:
    """Where a run is kept until it ends, if an older file has its name."""
    return target.with_name(f"{target.name}.partial")


class Keeper:
    """Writes a run as far as it has come, when called and no more often than each second."""

    def __init__(self, target: Path, run: "Run") -> None:
        self._target, self._run = target.resolve(), run
        self._saved_s = -SAVE_EVERY_S

    def __call__(self) -> None:  # noqa: D102  (the class says it)
        now_s = time.monotonic()
        if now_s - self._saved_s < SAVE_EVERY_S:
            return
        try:
            write_text(self._target, json.dumps(self._run.to_json(), indent=1, allow_nan=False))
        except OSError:
            return  # a full disk ends no run; what cannot be written at the end is told of
        self._saved_s = time.monotonic()


def read_begun(run_file: Path) -> "tuple[Run, Settings]":
    """A run that stopped, and what it was asked for; options that are the run's own are refused.

    Raises:
        UsageError: there is nothing to go on with, or an option that would change the run.
    """
    for name, option in options.given().items():
        if name not in HEEDED:
            raise UsageError(f"{option}: is that of the run; it goes with no --resume")
    from msgspec import ValidationError

    from ..core.run_file import fault_of, read_run
    from .session import settings_of

    run = read_run(run_file)
    if not run.interrupted and run.broken is None:
        raise UsageError(f"--resume: {str(run_file)!r} is a complete run; nothing of it is left to measure")
    try:
        return run, settings_of(run)
    except ValidationError as error:
        raise UsageError(f"{str(run_file)!r}: is not a valid run: {fault_of(error, 'settings')}") from error
