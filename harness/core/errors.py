"""Errors that end a command with one line, exit codes, and values shown in one line."""

import os
import re
from decimal import Decimal
from pathlib import Path

from msgspec import ValidationError

FAILED, MISUSE, INTERRUPTED = 1, 2, 130
"""Exit codes: a check or the machine failed; a wrong argument; Ctrl-C."""


class UsageError(ValueError):
    """An argument that cannot be used: one line that names it, says what it was and what it may be."""


class FailureError(RuntimeError):
    """A failure that no argument causes, such as a full disk: one line."""


class ProviderError(RuntimeError):
    """What a provider did that it must not do; the message is the reason of its row."""


_SCHEMA_TYPES = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "an integer",
    "object": "an object",
    "str": "text",
}


def schema_fault(error: ValidationError, *renamed: tuple[str, str]) -> str:
    """Where a document differs from a schema and how, in words.

    Args:
        error: of msgspec.
        renamed: parts of the place, and what the document has in their stead.
    """
    why, _, where = str(error).partition(" - at `$")
    if bound := re.fullmatch(r"Expected `(\w+)` ([<>])= (\S+)", why):
        finite = "a finite number, " if bound[1] == "float" else ""
        why = f"must be {finite}at {'most' if bound[2] == '<' else 'least'} {bound[3].removesuffix('.0')}"
    elif types := re.fullmatch(r"Expected `([\w |]+)`(?:, got `(\w+)`| of length >= (\d+))", why):
        expected = " or ".join(_SCHEMA_TYPES.get(name, name) for name in types[1].split(" | "))
        got = f", was {_SCHEMA_TYPES.get(types[2], types[2])}" if types[2] else f" of at least {types[3]}"
        why = f"must be {expected}{got}"
    elif field := re.fullmatch(r"Object (missing required|contains unknown) field `(.*)`", why):
        why = f"lacks {field[2]}" if field[1].startswith("missing") else f"has an unknown field {field[2]!r}"
    for part, written in (("`", ""), ("[...]", ""), *renamed):
        where = where.replace(part, written)
    return f"{where.removeprefix('.')}: {why}" if where else why


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
