"""Files that one process writes over a while: locks between processes, and changes by others noticed."""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import printable
from .files import write_text

RETRY_S = 0.02
"""Seconds between two tries for a lock that is waited for."""


class LockedError(Exception):
    """Another process has locked a file; the message names it and the process."""


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file among the processes that ask for it.

    The lock is one of a lock file beside it, because a file that is replaced has no lasting lock of its own.
    It ends with its process, so a lock file that is left behind locks nothing. Where a lock file cannot be
    made or locked, as on some network file systems, nothing is locked.

    Args:
        path: the file, which need not exist; a symbolic link locks what it points to.
        wait_s: seconds to wait for another process.

    Raises:
        LockedError: another process holds the lock.
    """
    target = Path(os.path.realpath(path))
    lock_file = target.with_name(f".{target.name}.decodetax-lock")
    try:
        handle = _locked_handle(lock_file, time.monotonic() + wait_s)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):  # the disk may be full
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            lock_file.unlink()
        os.close(handle)


def _locked_handle(lock_file: Path, end_s: float) -> int:
    """A descriptor of the lock file that holds its lock.

    Raises:
        LockedError: another process holds it until the end.
        OSError: the file cannot be made or locked.
    """
    while True:
        handle = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(lock_file)):  # noqa: PTH116  (beside fstat)
                return handle
        except BlockingIOError:
            if time.monotonic() >= end_s:
                holder = printable(os.pread(handle, 40, 0).decode("ascii", "replace"))
                os.close(handle)
                raise LockedError(holder or "another process") from None
            time.sleep(RETRY_S)
        except FileNotFoundError:
            pass  # the process that held it ended meanwhile and removed it
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


class OwnFile:
    """A file that is written again and again, unless something else wrote it meanwhile.

    What something else wrote is kept: from then on, a file of another name beside it is written.

    Args:
        path: the file, which need not exist; a symbolic link is written through.

    Attributes:
        path: the file that is written.
        moved_from: the file that something else wrote, or None.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.moved_from: Path | None = None
        self._digest = _digest(self.path)
        self._state = _state(self.path)

    @property
    def changed(self) -> bool:
        """Whether something else wrote the file; no, if it removed it or wrote the same."""
        state = _state(self.path)
        return state not in (None, self._state) and _digest(self.path) != self._digest

    def write(self, text: str) -> None:
        """Write text and a line end, atomically.

        Raises:
            OSError: the folder is full, gone or write-protected; what the file held stays.
        """
        if self.changed:
            place = free_name(self.path)
            write_text(place, text)
            self.moved_from, self.path = self.path, place
        else:
            write_text(self.path, text)
        self._digest, self._state = hashlib.sha256(f"{text}\n".encode()).digest(), _state(self.path)

    def remove(self) -> None:
        """Remove the file, unless something else wrote it."""
        if not self.changed:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _digest(path: Path) -> bytes | None:
    """A digest of a regular file; None if there is none or it cannot be read."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def free_name(path: Path) -> Path:
    """A name beside a path that no file has: with the process's number and, if need be, another."""
    number, place = 1, path.with_name(f"{path.stem}-{os.getpid()}{path.suffix}")
    while os.path.lexists(place):
        number += 1
        place = path.with_name(f"{path.stem}-{os.getpid()}-{number}{path.suffix}")
    return place
