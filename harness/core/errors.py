"""Errors that end a command with one line, exit codes, and values shown in one line."""

import os
from decimal import Decimal
from pathlib import Path

FAILED, MISUSE, INTERRUPTED = 1, 2, 130
"""Exit codes: a check or the machine failed; a wrong argument; Ctrl-C."""


class UsageError(ValueError):
    """An argument that cannot be used: one line that names it, says what it was and what it may be."""


class FailureError(RuntimeError):
    """Something went wrong that no other argument would have helped against: one line."""


def one_line(error: BaseException, *, most: int = 300) -> str:
    """The kind of an error and what it says, if it says anything, in one line that a terminal can show."""
    try:
        said = printable(str(error))[:most].rstrip()
    except Exception:  # noqa: BLE001  (whatever its author made of it)
        said = ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def printable(text: str) -> str:
    """A text in one line, without what a terminal would take for a command."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def short_repr(value: object) -> str:
    """A value in one line of at most 80 characters, for a message; never all of a list or an object."""
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
