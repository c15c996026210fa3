"""Runs `decodetax run` as a process of its own and measures it from outside."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click


@dataclass(frozen=True, kw_only=True)
class TimedProcess:
    """What a process needed, from its start to its end.

    Attributes:
        wall_s: seconds of wall-clock time, start of Python and imports included.
        peak_bytes: largest resident memory.
        minor_faults: page faults without input or output.
    """

    wall_s: float
    peak_bytes: int
    minor_faults: int


def timed_run(options: Sequence[str], target: Path) -> TimedProcess:
    """Run `decodetax run` with these options; its file appears at `target` once the run is complete.

    Raises:
        ClickException: the command failed; with the end of what it printed.
    """
    unfinished = target.with_name(f"unfinished-{target.name}")
    unfinished.unlink(missing_ok=True)
    command = [sys.executable, "-m", "decodetax.harness", "run", *options, "-o", str(unfinished)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        start_s = time.perf_counter()
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.perf_counter() - start_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            last = "\n".join(printed.read().splitlines()[-5:])
            raise click.ClickException(f"{' '.join(command)} ended with {process.returncode}:\n{last}")
    unfinished.rename(target)
    return TimedProcess(wall_s=wall_s, peak_bytes=usage.ru_maxrss * 1024, minor_faults=usage.ru_minflt)
