"""A process that torchrun started as one rank of several: which one it is, what it prints, how it ends."""

import contextlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

from .errors import UsageError

NOTES = "DECODETAX_NOTES_OF_RANK_0"
"""Variable that names a folder in which rank 0 leaves notes for the process that started the ranks."""

NOTES_PREFIX = "decodetax-ranks-of-"
"""Of that folder's name; the number of the process follows."""

MOST_DIGITS, MOST_PORT = 6, 65535
"""Of a number in torchrun's environment, and of its ports."""


def rank_and_size() -> tuple[int, int] | None:
    """Rank of this process and number of ranks, as torchrun's environment has them; None without ranks."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return (rank, size) if 0 <= rank < size and size > 1 else None


def require_environment() -> None:
    """Require that RANK and what else torchrun sets describe this process, one of `WORLD_SIZE` ranks.

    Raises:
        UsageError: a variable is missing, or is not what it should be.
    """
    found = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    found |= {name: os.environ.get(name, "1") for name in ("LOCAL_WORLD_SIZE", "MASTER_PORT")}
    for name, text in found.items():
        if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
            raise UsageError(f"{name}: {text!r} is not a whole number, as torchrun sets it")
    if not int(found["RANK"]) < int(found["WORLD_SIZE"]):
        raise UsageError(f"RANK: must be less than WORLD_SIZE, {found['WORLD_SIZE']}, was {found['RANK']}")
    if int(found["WORLD_SIZE"]) > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise UsageError(f"{name}: is not set beside RANK and WORLD_SIZE; torchrun sets it")
        if not 0 < int(found["MASTER_PORT"]) <= MOST_PORT:
            raise UsageError(f"MASTER_PORT: must be a port from 1 to {MOST_PORT}, was {found['MASTER_PORT']}")


def end_at_ctrl_c() -> None:
    """Let SIGINT end a rank without a traceback of each, until it has joined the others."""
    if rank_and_size() is not None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


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
    """Let torch's C++ parts print nothing, here and in children; call it before torch is imported.

    They raise what they print, and would print it at length, with their stack, once for each connection.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


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
        _remove_abandoned_notes()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _remove_abandoned_notes() -> None:
    """Remove the folder of notes if the process that made it, which it is named after, was killed."""
    folder = Path(os.environ.get(NOTES, ""))
    if (found := re.fullmatch(rf"{NOTES_PREFIX}(\d+)-\w+", folder.name)) and os.getppid() != int(found[1]):
        shutil.rmtree(folder, ignore_errors=True)
