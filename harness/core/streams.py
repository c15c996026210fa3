"""Stdout and stderr of a command, also where they are closed, full, or a pipe that nobody reads."""

import contextlib
import io
import os
import sys
from typing import Any, TextIO


class StdoutError(OSError):
    """Stdout cannot be written."""


class _Stdout(io.FileIO):
    """Raises StdoutError, so that it is not mistaken for an error of another file."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise StdoutError(error.errno, error.strerror) from error


class _Stderr(io.FileIO):
    """Drops what cannot be written: messages must not end a command."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


def guard_streams() -> None:
    """Let stdout raise StdoutError and stderr nothing, in a process of its own.

    A descriptor that the caller has closed is opened first, because the next file that is opened would take
    its place and get what libraries print. Stdout is then one that cannot be written.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    if sys.stdout is sys.__stdout__:  # a test replaces it
        sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.__stderr__)


def _text(raw: io.FileIO, former: TextIO | None) -> io.TextIOWrapper:
    """A text stream like the former one, which Python sets to None where the descriptor is closed."""
    line_buffering = getattr(former, "line_buffering", True)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(former, "encoding", "utf-8"),
        errors=getattr(former, "errors", "backslashreplace"),
        line_buffering=line_buffering,
        write_through=getattr(former, "write_through", False),
    )


def discard_stdout() -> None:
    """Drop what is left in stdout's buffer, which Python writes at the end."""
    opened = os.open(os.devnull, os.O_WRONLY)
    os.dup2(opened, sys.stdout.fileno())
    os.close(opened)
