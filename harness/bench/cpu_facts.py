"""What Linux tells about the CPU and the limits of this process: names, caches, memory, control groups.

Each function reads files below a root folder and works without those that are missing, as in a chroot without
/proc, on an arm64 machine, or where /sys lists no caches.
"""

import math
import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

from ..core.data_table import data_table

ROOT = Path("/")

UNKNOWN_CPU = "unknown CPU"

ASSUMED_CACHE_BYTES = 32 * 2**20
"""Size of the last-level caches where /sys lists none."""

_NAME_KEYS = ("model name", "cpu model", "cpu", "uarch")
"""Keys of /proc/cpuinfo that hold a name: x86 and LoongArch, MIPS, POWER, RISC-V; in lower case."""

_IMPLEMENTERS = {"0x41": "Arm", "0x51": "Qualcomm", "0x61": "Apple", "0xc0": "Ampere"}

_GRAVITON = {"Cortex-A72": "", "Neoverse-N1": "2", "Neoverse-V1": "3", "Neoverse-V2": "4"}
"""Generations of AWS Graviton by their cores."""


def cpu_name(root: Path = ROOT) -> str:
    """The CPU's name: from /proc/cpuinfo, on Arm by its part numbers, else from the device tree.

    The cores of a hybrid CPU may have several names, which are joined with " + ".
    """
    cores: dict[str, list[str]] = {}
    for line in _text(root, "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if value.strip():
            cores.setdefault(key.strip().lower(), []).append(value.strip())
    parts = [*zip(cores.get("cpu implementer", ()), cores.get("cpu part", ()), strict=False)]
    names = [cores[key] for key in _NAME_KEYS if key in cores]
    if named := _arm_name(root, parts) or " + ".join(dict.fromkeys(next(iter(names), ()))):
        return named
    if cores.get("vendor_id") == ["IBM/S390"]:
        machine = re.search(r"machine = (\w+)", " ".join(cores.get("processor 0", ())))
        return f"IBM Z, machine type {machine[1]}" if machine else "IBM Z"
    for file in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if name := _text(root, file).strip("\0 \n"):
            return name
    unknown = (f"{_IMPLEMENTERS.get(maker, maker)} part {part}" for maker, part in parts)
    return next(unknown, UNKNOWN_CPU)


def _arm_name(root: Path, parts: list[tuple[str, str]]) -> str:
    """The names of Arm cores, given each core's implementer and part number; empty if unknown."""
    known = {(row["implementer"], row["part"]): row["name"] for row in data_table("arm_cpus.csv")}
    name = " + ".join(dict.fromkeys(known[part] for part in parts if part in known))
    on_aws = _text(root, "sys/class/dmi/id/sys_vendor").strip() == "Amazon EC2"
    return f"AWS Graviton{_GRAVITON[name]} ({name})" if on_aws and name in _GRAVITON else name


def last_level_cache_bytes(root: Path = ROOT) -> int | None:
    """Bytes of all last-level caches together; None if /sys does not list them."""
    caches: dict[tuple[int, str], int] = {}
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size, shared, kind = (
            _text(folder, name).strip() for name in ("level", "size", "shared_cpu_list", "type")
        )
        measure = re.fullmatch(r"(\d+)([KMG]?)", size)
        if level.isdecimal() and measure and kind != "Instruction":
            caches[int(level), shared] = int(measure[1]) * 1024 ** (" KMG".index(measure[2] or " "))
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last) or None


def memory_bytes(root: Path = ROOT) -> int:
    """Bytes of the machine's memory."""
    return _meminfo(root).get("MemTotal") or _pages("SC_PHYS_PAGES")


def free_bytes(root: Path = ROOT) -> int:
    """Bytes that this process can still use: of the machine, of its control groups and of `ulimit`."""
    limits = (_free_on_machine(root), _free_in_cgroups(root), _free_below_ulimit(root))
    return max(0, min(limit for limit in limits if limit is not None))


def _free_on_machine(root: Path) -> int:
    """Free memory, with the file cache that the kernel would give up."""
    found = _meminfo(root)
    if "MemAvailable" in found:
        return found["MemAvailable"]
    if "MemFree" in found:  # before Linux 3.14
        return found["MemFree"] + max(0, found.get("Cached", 0) - found.get("Shmem", 0))
    return _pages("SC_AVPHYS_PAGES")


def _meminfo(root: Path) -> dict[str, int]:
    """The lines of /proc/meminfo that are in kB, in bytes."""
    lines = re.findall(r"^(\w+): +(\d+) kB$", _text(root, "proc/meminfo"), re.MULTILINE)
    return {key: int(number) * 1024 for key, number in lines}


def _pages(name: str) -> int:
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")


def resident_bytes(root: Path = ROOT) -> int:
    """Bytes of memory that this process holds; the most that it ever held where /proc does not tell."""
    pages = _text(root, "proc/self/statm").split()[1:2]
    if pages and pages[0].isdecimal():
        return int(pages[0]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _free_below_ulimit(
    root: Path = ROOT, limit_of: Callable[[int], tuple[int, int]] = resource.getrlimit
) -> int | None:
    """Bytes left below `ulimit -v` and `ulimit -d`; None without such a limit."""
    pages = [int(word) for word in _text(root, "proc/self/statm").split() if word.isdecimal()]
    sizes = dict(enumerate(pages))  # the whole address space comes first, data and stack come sixth
    free = [
        limit - sizes.get(place, 0) * os.sysconf("SC_PAGE_SIZE")
        for limited, place in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5))
        if (limit := limit_of(limited)[0]) != resource.RLIM_INFINITY
    ]
    return min(free, default=None)


# Control groups. A limit of any group above a process holds for it too.


def _free_in_cgroups(root: Path = ROOT) -> int | None:
    """Bytes left under the tightest limit, file cache that can be evicted included; None without a limit."""
    free = []
    for group in _groups(root, "memory"):
        used = _number(group, "memory.current", "memory.usage_in_bytes")
        stat = dict(re.findall(r"^(\w+) (\d+)$", _text(group, "memory.stat"), re.MULTILINE))
        evictable = int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)
        limits = [_number(group, name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        if "hierarchical_memory_limit" in stat:  # version 1: of groups that a container cannot see, too
            limits.append(int(stat["hierarchical_memory_limit"]))
        if used is not None:
            free += [limit - used + evictable for limit in limits if limit is not None]
    return min(free, default=None)


def cpu_quota_cores(root: Path = ROOT) -> float | None:
    """CPU time that the control groups allow, in cores; None without a quota."""
    quotas = []
    for group in _groups(root, "cpu"):
        quota, _, period = _text(group, "cpu.max").strip().partition(" ")
        if not quota:
            quota, period = (_text(group, f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return min(filter(None, quotas), default=None)


def threads_allowed(root: Path = ROOT) -> int:
    """Threads that can run at once: the cores this process may use, or fewer under a CPU quota."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota_cores(root)
    return cores if quota is None else min(cores, math.ceil(quota))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's groups of a controller, from its own up to the topmost that is mounted."""
    own = _own_groups(root, controller)
    found = False
    for kind, mounted, point in _mounts(root, controller):
        path = own.get(kind)
        if path is not None and path.is_relative_to(mounted):
            below, found = path.relative_to(mounted), True
            yield from (point / part for part in (below, *below.parents))
    if not found:  # no /proc, or a group outside what is mounted: what is mounted may hold for it too
        yield root / "sys/fs/cgroup"
        yield root / "sys/fs/cgroup" / controller


def _own_groups(root: Path, controller: str) -> dict[str, Path]:
    """Paths of this process's group, by "cgroup2" and, where version 1 has the controller, "cgroup"."""
    found = {}
    for line in _text(root, "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found["cgroup2"] = Path(path)
        elif controller in controllers.split(","):
            found["cgroup"] = Path(path)
    # A process outside the root of its control group namespace has a path such as /../other.
    return {kind: path for kind, path in found.items() if ".." not in path.parts}


def _mounts(root: Path, controller: str) -> Iterator[tuple[str, Path, Path]]:
    """Mounted hierarchies with a controller: "cgroup2" or "cgroup", the group mounted, the mount point."""
    for line in _text(root, "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        fields, (kind, *options) = mount.split(" "), system.split(" ")
        of_controller = kind == "cgroup" and controller in options[-1].split(",")
        if len(fields) > 4 and (kind == "cgroup2" or of_controller):
            mounted, point = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), f) for f in fields[3:5])
            yield kind, Path(mounted), root / point.lstrip("/")


def _number(folder: Path, *names: str) -> int | None:
    """The whole number in the first of these files that holds one."""
    for name in names:
        text = _text(folder, name).strip()
        if text.isdecimal():
            return int(text)
    return None


def _text(folder: Path, name: str) -> str:
    """The text of a file; empty where there is none or it cannot be read."""
    try:
        return (folder / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
