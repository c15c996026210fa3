"""Writes a file so that no half of it ever stands there."""

import os
import tempfile
from pathlib import Path


def write_whole(target: Path, text: str) -> None:
    """Write text and a line end under a temporary name in the same folder, and rename.

    Raises:
        OSError: the folder is full, gone or write-protected; what stood there stays.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".decodetax-", suffix=".json")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.umask(mask := os.umask(0))  # the mask is told only by setting another
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
