"""The share of the cores that other processes use while a run is measured."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

BUSY_FIELDS = (0, 1, 2, 5, 6, 7)
"""Fields of a line of /proc/stat in which a core is busy: user, nice, system, irq, softirq, and steal, the
time that a hypervisor gave to other machines. Idle and iowait are not; guest time is part of user time
(proc_stat(5))."""


@dataclass(frozen=True, kw_only=True)
class LoadPoint:
    """What the cores and this process have done up to a point in time.

    Attributes:
        cores: number of cores that this process may use.
        time_s: wall-clock time.
        busy_s: seconds in which these cores were busy, summed over them; None without /proc/stat.
        own_s: seconds of processor time of this process and of the children it has waited for.
        runnable: mean number of runnable processes over the last minute; None if unknown.
    """

    cores: int
    time_s: float
    busy_s: float | None
    own_s: float
    runnable: float | None


def load_point(stat: Path = Path("/proc/stat")) -> LoadPoint:
    """The present point. `stat` is the file of the cores' times."""
    cores = _usable_cores()
    user_s, system_s, children_user_s, children_system_s, _ = os.times()
    return LoadPoint(
        cores=len(cores),
        time_s=time.monotonic(),
        busy_s=_busy_s(stat, cores),
        own_s=user_s + system_s + children_user_s + children_system_s,
        runnable=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def other_load(before: LoadPoint, after: LoadPoint) -> float | None:
    """Share of the cores, 0 to 1, that other processes used between two points; None if unknown.

    Where the cores' times are unknown, it is what the mean number of runnable processes exceeds this
    process's own use by, over the number of cores.
    """
    elapsed_s = after.time_s - before.time_s
    if elapsed_s <= 0:
        return None
    own_cores = (after.own_s - before.own_s) / elapsed_s
    if before.busy_s is not None and after.busy_s is not None:
        busy_cores = (after.busy_s - before.busy_s) / elapsed_s
    elif after.runnable is not None:
        busy_cores = after.runnable
    else:
        return None
    return min(1.0, max(0.0, (busy_cores - own_cores) / after.cores))


def _usable_cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _busy_s(stat: Path, cores: frozenset[int]) -> float | None:
    """Busy seconds of these cores, summed; None if the file lacks one of them."""
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
        by_core = {
            int(name.removeprefix("cpu")): [int(ticks) for ticks in fields]
            for name, *fields in map(str.split, lines)
            if name.startswith("cpu") and name != "cpu"
        }
        busy_ticks = sum(by_core[core][field] for core in cores for field in BUSY_FIELDS)
    except (OSError, ValueError, KeyError, IndexError):
        return None  # no /proc, or one of another form
    return busy_ticks / os.sysconf("SC_CLK_TCK")
