"""A process that torchrun started as one rank of several: which one it is, what it prints, how it ends."""

import contextlib
import os
import sys
from pathlib import Path
from typing import NoReturn

NOTES = "DECODETAX_NOTES_OF_RANK_0"
"""Variable that names a folder in which rank 0 leaves notes for the process that started the ranks."""


def rank_and_size() -> tuple[int, int] | None:
    """Rank of this process and number of ranks, as torchrun's environment has them; None without ranks."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return (rank, size) if 0 <= rank < size and size > 1 else None


def silence_other_ranks() -> None:
    """Drop what this process prints, unless it is rank 0: all ranks would say the same."""
    found = rank_and_size()
    if found is None or found[0] == 0:
        return
    opened = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(opened, descriptor)
    os.close(opened)


def quiet_torch() -> None:
    """Let torch's C++ parts print errors alone, here and in children; call it before torch is imported.

    Of hosts without a name, for one, it would warn on stderr once for each connection.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def leave_note(name: str, text: str) -> None:
    """Leave a note for the process that started the ranks, if it asked for any."""
    if folder := os.environ.get(NOTES):
        with contextlib.suppress(OSError):
            (Path(folder) / name).write_text(text, encoding="utf-8", errors="surrogateescape")


def end_process(code: int) -> NoReturn:
    """End this process. A rank ends at once: threads of a broken process group could keep it."""
    found = rank_and_size()
    if found is None:
        sys.exit(code)
    if found[0] == 0:
        leave_note("exit_code", str(code))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
