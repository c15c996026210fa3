"""Whether a file or a folder can be written to, found out before anything else is done."""

import os
import tempfile
from pathlib import Path


def file_problem(target: Path) -> str | None:
    """Why a file cannot be written, or None; an OSError says it too."""
    if target.exists() and not target.is_file():
        return "is no regular file"
    if target.exists() and not os.access(target, os.W_OK):
        return "is write-protected"
    with tempfile.NamedTemporaryFile(dir=target.resolve().parent, prefix=".decodetax-"):
        return None


def folder_problem(folder: Path) -> str | None:
    """Why a folder, which need not be there yet, cannot be written to, or None; an OSError says it too."""
    nearest = folder.resolve()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        return "is no folder" if nearest == folder.resolve() else f"{str(nearest)!r} is no folder"
    with tempfile.NamedTemporaryFile(dir=nearest, prefix=".decodetax-"):
        return None
