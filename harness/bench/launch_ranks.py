"""Starts the ranks of a run with torchrun's own engine, in this process, and words what it reports."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..core.errors import INTERRUPTED, FailureError, path_text
from ..core.progress import clear_progress
from ..core.rank_process import NOTES, NOTES_PREFIX
from ..core.worker_processes import safe_environment

JOIN_LIMIT_S = 60
"""Seconds for the agent to set up its store."""


def launch(arguments: Sequence[str], *, ranks: int) -> int:
    """Run this program's command line in several ranks on this machine.

    They share its cores evenly, unless OMP_NUM_THREADS is set.

    Args:
        arguments: of the command line, after the program's name.
        ranks: number of ranks.

    Returns:
        The exit code of rank 0.

    Raises:
        FailureError: rank 0 ended without a word, as one that is killed does, or all ended before they met.
    """
    with tempfile.TemporaryDirectory(prefix=f"{NOTES_PREFIX}{os.getpid()}-") as folder:
        os.environ.update(safe_environment())
        os.environ[NOTES] = folder
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
        command = [sys.executable, "-m", "decodetax.harness", *arguments]
        ended = _run(command, ranks, Path(folder))
        code = _note(folder, "exit_code")
        if code is not None:
            return int(code)
        if ended is None:
            return INTERRUPTED
        clear_progress()
        raise FailureError(_words(*ended, _note(folder, "run_file")))


def _run(command: Sequence[str], ranks: int, folder: Path) -> tuple[int, int] | None:
    """Start the ranks and wait for them.

    Returns:
        The rank that ended first and its exit code, negative if a signal ended it; None if a signal ended
        the wait.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        run_id=f"decodetax-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        rdzv_configs={"timeout": JOIN_LIMIT_S},
        local_addr="localhost",
        max_restarts=0,
    )
    logging.disable(logging.CRITICAL)
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        return _first({rank: failure.exitcode for rank, failure in error.failures.items()})
    except SignalException:
        return None
    finally:
        logging.disable(logging.NOTSET)
    return 0, 0


def _first(codes: Mapping[int, int]) -> tuple[int, int]:
    """The rank that ended first and its exit code; the others the engine then ends by SIGTERM."""
    return min(codes.items(), key=lambda each: (each[1] == -signal.SIGTERM, each[0]))


def _words(rank: int, ended: int, run_file: str | None) -> str:
    """Why the ranks ended without a word of rank 0, and what is left."""
    how = f"ended with exit code {ended}"
    if ended < 0:
        how = f"was killed by {signal.Signals(-ended).name}"
    if run_file is None or not Path(run_file).exists():
        return f"rank {rank} {how} before anything was measured"
    place = path_text(run_file)
    return f"rank {rank} {how}; what was measured before is in {place}, and --resume {place} goes on"


def _note(folder: str, name: str) -> str | None:
    with contextlib.suppress(OSError):
        return (Path(folder) / name).read_text(encoding="utf-8", errors="surrogateescape")
    return None
