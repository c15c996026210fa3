"""Writes a run into its file: as measured so far, and complete at the end. No run is lost silently."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import UsageError, path_text
from ..core.files import write_text
from ..core.own_file import LockedError, OwnFile, free_name, locked
from ..core.records import Run


@contextlib.contextmanager
def locked_run(option: str, path: Path) -> Iterator[None]:
    """Hold the lock of a run's file.

    Raises:
        UsageError: another run holds it, even one that is stopped; one line that names the file.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(path))
        except LockedError as error:
            raise UsageError(
                f"{option}: another run ({error}) is writing to {str(path)!r}; name another file, or wait "
                "until that run has ended"
            ) from None
        yield


class RunWriter:
    """When called, writes the run as measured so far.

    Args:
        target: the file of the run. One that exists already stays until the end, and the run is saved in a
            partial file beside it, of a name that nothing has.
        resumed: the file of the run that is continued, or None; it is saved in place.
        locks: keeps the locks of these files; the caller holds that of `resumed`.

    Raises:
        UsageError: another run is writing to the target.
    """

    def __init__(self, target: Path, resumed: Path | None, locks: contextlib.ExitStack) -> None:
        in_place = resumed is not None and os.path.realpath(resumed) == os.path.realpath(target)
        if not in_place:
            locks.enter_context(locked_run("--output", target))
        self.named, self._target = target, OwnFile(target)
        self._so_far = self._target
        if target.exists() and not in_place:
            self._so_far = OwnFile(_locked_partial(target, locks))
        self._unsaved: str | None = None

    def __call__(self, run: Run) -> None:  # noqa: D102  (the class says it)
        try:
            self._so_far.write(_document(run))
        except OSError as error:  # a full disk does not end the run
            self._unsaved = error.strerror

    def finish(self, run: Run) -> tuple[str | None, str | None]:
        """Write the complete run.

        Returns:
            The file that holds the run, or None if nothing takes it; and in one line what went wrong.
        """
        try:
            self._target.write(_document(run))
        except OSError as error:
            return self._elsewhere(run, error.strerror or "cannot be written")
        if self._so_far is not self._target:
            self._so_far.remove()
        place = self._target.path
        if self._target.moved_from is not None:
            return path_text(place), (
                f"{path_text(self.named)} was changed by something else during the run and is left as it is; "
                f"the run was written to {path_text(place)}"
            )
        return path_text(self.named), None

    @property
    def so_far(self) -> Path:
        """The file that holds the run while it is measured."""
        return self.named if self._so_far is self._target else self._so_far.path

    @property
    def unsaved(self) -> str | None:
        """That the run could not be saved while it was measured, and why; None if it could."""
        if self._unsaved is None:
            return None
        return f"the run could not always be saved while it was measured: {self._unsaved}"

    def _elsewhere(self, run: Run, problem: str) -> tuple[str | None, str]:
        """Write the run to the first other folder that takes it."""
        for folder in _other_folders():
            place = free_name(folder / f"decodetax-{self.named.name}")
            try:
                write_text(place, _document(run))
            except OSError:
                continue
            return path_text(place), (
                f"{path_text(self.named)}: {problem}; the run was written to {path_text(place)}"
            )
        return None, (
            f"{path_text(self.named)}: {problem}, and no other folder takes the run either: it is not saved; "
            "--json prints a run on stdout"
        )


def _document(run: Run) -> str:
    return json.dumps(run.to_json(), indent=1, allow_nan=False)


def _other_folders() -> Iterator[Path]:
    """Folders that a run goes to if its own cannot be written."""
    with contextlib.suppress(OSError):  # no temporary folder can be written
        yield Path(tempfile.gettempdir())
    yield Path.cwd()
    with contextlib.suppress(RuntimeError):
        yield Path.home()


def _locked_partial(target: Path, locks: contextlib.ExitStack) -> Path:
    """A new file beside a target, locked: FILE.partial, or FILE.2.partial if a run was left in it, ..."""
    number, place = 1, target.with_name(f"{target.name}.partial")
    while True:
        if not os.path.lexists(place):
            with contextlib.suppress(LockedError):
                locks.enter_context(locked(place))
                return place
        number += 1
        place = target.with_name(f"{target.name}.{number}.partial")
