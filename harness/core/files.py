"""Files that the user names: reading them, whether they can be written, and writing them atomically."""

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UsageError, path_text

OPEN_FILES = ("/dev/stdin", "/dev/fd/")
"""Paths of what a shell has opened, as for `<(command)`; opening any other pipe could wait forever."""


FULL = {errno.ENOSPC, errno.EDQUOT}
"""Errors of a full disk and of a user's share of it."""


def read_user_text(path: Path, kind: str, *, max_mib: int) -> str:
    """Read UTF-8 text, with or without a byte order mark, from a regular file or an open pipe.

    Args:
        path: the file.
        kind: what the file should be, for the message, such as "price file".
        max_mib: largest size, in MiB, so that a huge file given by mistake is not read.

    Raises:
        UsageError: the file cannot be read, is larger, or is not UTF-8; one line that does not name the file.
    """
    try:
        if path.exists() and not (path.is_file() or str(path).startswith(OPEN_FILES)):
            raise UsageError("is not a regular file")
        with path.open("rb") as file:
            content = file.read(max_mib * 2**20 + 1)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or type(error).__name__}") from None
    if len(content) > max_mib * 2**20:
        raise UsageError(f"is too large for a {kind}: more than {max_mib} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"is not UTF-8: byte {error.start} cannot be decoded") from None


def read_user_json(path: Path, kind: str, *, max_mib: int) -> Any:
    """Read JSON from a regular file or an open pipe; the arguments are those of `read_user_text`.

    As in Python's `json`, NaN and infinities are read, and the last of several equal keys counts.

    Raises:
        UsageError: as `read_user_text`, or the file is not JSON; one line that does not name the file.
    """
    text = read_user_text(path, kind, max_mib=max_mib)
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UsageError(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeEncodeError:
        raise UsageError("is not JSON: holds half of a surrogate pair") from None
    except ValueError:  # Python refuses to read an integer of thousands of digits
        raise UsageError("holds a number of too many digits") from None
    except RecursionError:
        raise UsageError("is nested too deeply") from None
    return value


def file_problem(target: Path) -> str | None:
    """Why a file cannot be written, or None.

    Raises:
        OSError: its folder does not exist or cannot be written to.
    """
    if target.is_dir():
        return "is a folder"
    if target.exists() and not target.is_file():
        return "is not a regular file"
    if not target.is_symlink() and not target.parent.exists():
        return f"its folder {str(target.parent)!r} does not exist"
    if target.exists() and not os.access(target, os.W_OK):
        return "is write-protected"
    with tempfile.NamedTemporaryFile(dir=target.resolve().parent, prefix=".decodetax-"):
        return None


def folder_problem(folder: Path) -> str | None:
    """Why a folder, which need not exist yet, cannot be written to, or None.

    Raises:
        OSError: the nearest folder that exists cannot be written to.
    """
    nearest = folder.resolve()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        return "is not a folder" if nearest == folder.resolve() else f"{str(nearest)!r} is not a folder"
    with tempfile.NamedTemporaryFile(dir=nearest, prefix=".decodetax-"):
        return None


def write_text(target: Path, text: str) -> None:
    """Write text and a line end, as `write_bytes` does."""
    write_bytes(target, f"{text}\n".encode())


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file atomically: under a temporary name in the same folder, then renamed.

    Raises:
        OSError: the folder is full, gone or write-protected; an older file of that name stays.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".decodetax-", suffix=target.suffix)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.umask(mask := os.umask(0))  # the mask can only be read by setting another
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def require_writable(name: str, place: Path, problem_of: Callable[[Path], str | None] = file_problem) -> None:
    """Check that the place of the option `--name` can be written to.

    Args:
        name: the option.
        place: a file or folder that the user names.
        problem_of: `file_problem` or `folder_problem`.

    Raises:
        UsageError: it cannot.
    """
    try:
        problem = problem_of(place)
    except OSError as error:
        problem = None if error.errno in FULL else error.strerror  # there may be room when it is written
    except RuntimeError:  # before Python 3.13
        problem = "a loop of symbolic links"
    if problem is not None:
        raise UsageError(f"--{name}: {str(place)!r} cannot be written ({problem}); name another place")


def written(what: str, target: Path, content: bytes) -> str:
    """Write a complete file, through a symbolic link if it is one; returns the message.

    Raises:
        OSError: it cannot be written.
    """
    replaced = target.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target.resolve(), content)
    return f"{what} written to {path_text(target)}{', replacing the file there' if replaced else ''}."
