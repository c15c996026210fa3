"""Errors that end a command with one line, exit codes, and values shown in one line."""

import os
from decimal import Decimal
from pathlib import Path

FAILED, MISUSE, INTERRUPTED = 1, 2, 130
"""Exit codes: a check or the machine failed; a wrong argument; Ctrl-C."""


class UsageError(ValueError):
    """An argument that cannot be used: one line that names it, says what it was and what it may be."""


class FailureError(RuntimeError):
    """A failure that no argument causes, such as a full disk: one line."""


def one_line(error: BaseException, *, most: int = 300) -> str:
    """An error's type and message in one printable line of about `most` characters."""
    try:
        message = printable(str(error))[:most].rstrip()
    except Exception:  # noqa: BLE001  (`__str__` of a user's exception may raise anything)
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def printable(text: str) -> str:
    """Text in one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def short_repr(value: object) -> str:
    """A value in one line of at most 80 characters, for a message; of a list or an object only the size."""
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**40:
        return "an integer of over 40 digits"
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}"


def path_text(path: Path | str) -> str:
    """A path as one line that can be printed; bytes of a name that are not UTF-8 become U+FFFD."""
    return printable(os.fsencode(path).decode("utf-8", "replace"))
