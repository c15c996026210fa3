"""Writes a file so that no half of it ever stands there."""

import os
import tempfile
from pathlib import Path


def write_whole(target: Path, text: str) -> None:
    """Write text and a line end, as `write_whole_bytes` does."""
    write_whole_bytes(target, f"{text}\n".encode())


def write_whole_bytes(target: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, and rename.

    Raises:
        OSError: the folder is full, gone or write-protected; what stood there stays.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".decodetax-", suffix=target.suffix)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.umask(mask := os.umask(0))  # the mask is told only by setting another
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
