"""Files that commands write: whether they can be written, and writing them atomically."""

import os
import tempfile
from pathlib import Path


def file_problem(target: Path) -> str | None:
    """Why a file cannot be written, or None.

    Raises:
        OSError: its folder is not there or cannot be written to.
    """
    if target.exists() and not target.is_file():
        return "is no regular file"
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
        return "is no folder" if nearest == folder.resolve() else f"{str(nearest)!r} is no folder"
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
