"""The CPU's facts, read from small trees of files as Linux shows them on several machines."""

import os
import resource

import pytest
from decodetax.harness.bench import cpu_facts
from decodetax.harness.bench.cpu_facts import (
    cpu_name,
    cpu_quota_cores,
    free_bytes,
    last_level_cache_bytes,
    memory_bytes,
)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


def arm(*parts, implementer="0x41"):
    lines = (f"CPU implementer\t: {implementer}\nCPU part\t: {part}\n\n" for part in parts)
    return {"proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 243.75\n" + "".join(lines)}


EC2 = {"sys/class/dmi/id/sys_vendor": "Amazon EC2\n"}
S390 = "vendor_id       : IBM/S390\nprocessor 0: version = FF, identification = 123, machine = 8561\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(
            {"proc/cpuinfo": "cpu family\t: 6\nmodel name\t: An x86 CPU @ 2 GHz\n" * 2},
            "An x86 CPU @ 2 GHz",
            id="x86",
        ),
        pytest.param({"proc/cpuinfo": "Model Name\t: Loongson-3A5000\n"}, "Loongson-3A5000", id="loongarch"),
        pytest.param(
            {"proc/cpuinfo": "cpu\t\t: POWER9, altivec supported\n"}, "POWER9, altivec supported", id="ppc"
        ),
        pytest.param({"proc/cpuinfo": "hart\t: 1\nuarch\t: sifive,u74-mc\n"}, "sifive,u74-mc", id="riscv"),
        pytest.param({"proc/cpuinfo": S390}, "IBM Z, machine type 8561", id="s390x"),
        pytest.param(arm("0xd0c", "0xd0c"), "Neoverse-N1", id="arm64"),
        pytest.param(arm("0xd46", "0xd4d", "0xd4e"), "Cortex-A510 + Cortex-A715 + Cortex-X3", id="hybrid"),
        pytest.param(
            {"proc/cpuinfo": "model name\t: ARMv8 Processor rev 1 (v8l)\n" + arm("0xd4f")["proc/cpuinfo"]},
            "Neoverse-V2",
            id="arm with a model name that says little",
        ),
        pytest.param(arm("0xd40") | EC2, "AWS Graviton3 (Neoverse-V1)", id="graviton"),
        pytest.param(arm("0xac3", implementer="0xc0") | EC2, "AmpereOne", id="no graviton"),
        pytest.param(
            arm("0x000", implementer="0x61") | {"proc/device-tree/model": "Apple Mac mini (M9)\0"},
            "Apple Mac mini (M9)",
            id="device tree",
        ),
        pytest.param(arm("0x000", implementer="0x61"), "Apple part 0x000", id="unknown part"),
        pytest.param(arm("0x123", implementer="0x99"), "0x99 part 0x123", id="unknown implementer"),
        pytest.param({"proc/cpuinfo": "model name\t:\n"}, "unknown CPU", id="empty name"),
        pytest.param({"proc/cpuinfo": "processor\t: 0\n"}, "unknown CPU", id="no name"),
        pytest.param({}, "unknown CPU", id="no /proc"),
    ],
)
def test_cpu_has_the_name_that_linux_gives_it(files, expected, tmp_path):
    assert cpu_name(write(tmp_path, files)) == expected


def cache_files(cpu, index, level, size, shared, kind="Unified"):
    folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    facts = {"level": level, "size": f"{size}\n", "shared_cpu_list": shared, "type": f"{kind}\n"}
    return {f"{folder}/{name}": text for name, text in facts.items()}


TWO_SOCKETS = {
    **cache_files(0, 0, "1", "48K", "0", "Data"),
    **cache_files(0, 2, "2", "2048K", "0"),
    **cache_files(0, 3, "3", "30720K", "0-1"),
    **cache_files(1, 3, "3", "30720K", "0-1"),
    **cache_files(2, 3, "3", "30720K", "2-3"),
    **cache_files(3, 2, "2", "2048K", "3"),
}
FIRST_LEVEL = cache_files(0, 0, "1", "64K", "0", "Data") | cache_files(0, 1, "1", "32K", "0", "Instruction")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(TWO_SOCKETS, 2 * 30720 * 1024, id="two sockets"),
        pytest.param(cache_files(0, 2, "2", "512K", "0-3"), 512 * 1024, id="second level is last"),
        pytest.param(FIRST_LEVEL, 64 * 1024, id="first level is last"),
        pytest.param(cache_files(0, 3, "3", "36M", "0-3"), 36 * 2**20, id="in MiB"),
        pytest.param({}, None, id="none is listed"),
        pytest.param(cache_files(0, 3, "3", "unknown", "0"), None, id="not a size"),
        pytest.param({"sys/devices/system/cpu/cpu0/cache/index3/level": "3"}, None, id="size missing"),
        pytest.param(
            {**cache_files(0, 3, "3", "64K", "0"), "sys/devices/system/cpu/cpufreq/size": "9K"},
            65536,
            id="other folders",
        ),
    ],
)
def test_last_level_cache_is_the_sum_of_all(files, expected, tmp_path):
    assert last_level_cache_bytes(write(tmp_path, files)) == expected


V2 = "36 25 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V1_CPU = "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


def group(path, *, mount="sys/fs/cgroup", **numbers):
    folder = f"{mount}/{path}".rstrip("/")
    return {f"{folder}/{name.replace('_', '.', 1)}": f"{number}\n" for name, number in numbers.items()}


def in_group(path, *trees, mounts=V2, line="0::{}"):
    files = {
        "proc/self/cgroup": f"1:name=systemd:/else\n{line.format(path)}\n",
        "proc/self/mountinfo": mounts,
    }
    for tree in trees:
        files |= tree
    return files


SLICE = group("a", memory_max=1000, memory_current=400)
LEAF = group("a/b", memory_max="max", memory_current=100)
IN_V1 = {"mounts": V1 + "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n", "line": "4:cpuset,memory:{}"}


def v1(path, limit, usage):
    folder = f"sys/fs/cgroup/memory/{path}".rstrip("/")
    return {f"{folder}/memory.limit_in_bytes": f"{limit}", f"{folder}/memory.usage_in_bytes": f"{usage}"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(in_group("/a/b", LEAF, SLICE), 600, id="limit of the group above"),
        pytest.param(
            in_group("/a/b", group("a/b", memory_max=300, memory_current=100), SLICE),
            200,
            id="limit of its own",
        ),
        pytest.param(
            in_group("/a/b", LEAF, SLICE, group("a/b", memory_high=150)), 50, id="throttled above memory.high"
        ),
        pytest.param(in_group("/a/b", LEAF), None, id="no limit"),
        pytest.param(in_group("/a/b", group("a/b", memory_max=1000)), None, id="usage missing"),
        pytest.param(in_group("/c", LEAF, SLICE), None, id="limit of another group"),
        pytest.param(
            in_group("/", group("", memory_max=700, memory_current=200)), 500, id="namespace of a container"
        ),
        pytest.param(
            in_group("/../other", group("", memory_max=700, memory_current=200)),
            500,
            id="outside the namespace",
        ),
        pytest.param(
            in_group(
                "/pods/x/y",
                group("y", mount="run/my groups", memory_max=90, memory_current=20),
                mounts="36 25 0:31 /pods/x /run/my\\040groups rw - cgroup2 none rw\n",
            ),
            70,
            id="a part is mounted elsewhere",
        ),
        pytest.param(
            in_group("/d/x", v1("d", 1000, 1), v1("d/x", 2**63 - 4096, 1), **IN_V1), 999, id="version 1"
        ),
        pytest.param(
            in_group(
                "/d/x",
                v1("", 2**63 - 4096, 1),
                {"sys/fs/cgroup/memory/memory.stat": "cache 9\nhierarchical_memory_limit 501\n"},
                mounts=V1.replace("0:32 / ", "0:32 /d/x "),
                line="4:memory:{}",
            ),
            500,
            id="version 1, limit above what is mounted",
        ),
        pytest.param(
            in_group("/d", v1("d", 800, 1), mounts=V2 + V1, line="0::/u\n4:memory:{}"),
            799,
            id="both versions",
        ),
        pytest.param(group("", memory_max=1000, memory_current=400), 600, id="no /proc"),
        pytest.param(v1("", 1000, 1), 999, id="no /proc, version 1"),
        pytest.param({}, None, id="no control groups"),
        pytest.param(
            {"proc/self/cgroup": "?\n", "proc/self/mountinfo": "?\n1 - cgroup2\n"}, None, id="nonsense"
        ),
    ],
)
def test_tightest_limit_of_the_groups_above_a_process_wins(files, expected, tmp_path):
    assert cpu_facts._free_in_cgroups(write(tmp_path, files)) == expected


def test_memory_that_only_caches_files_counts_as_free(tmp_path):
    stat = {"sys/fs/cgroup/a/memory.stat": "anon 200\nfile 700\ninactive_file 650\nactive_file 50\n"}
    files = in_group("/a", group("a", memory_max=1000, memory_current=900), stat)
    assert cpu_facts._free_in_cgroups(write(tmp_path, files)) == 750


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(in_group("/a", {"sys/fs/cgroup/a/cpu.max": "250000 100000\n"}), 2.5, id="version 2"),
        pytest.param(
            in_group(
                "/a/b",
                {"sys/fs/cgroup/a/cpu.max": "50000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n"},
            ),
            0.5,
            id="quota of the group above",
        ),
        pytest.param(in_group("/a", {"sys/fs/cgroup/a/cpu.max": "max 100000\n"}), None, id="none"),
        pytest.param(
            in_group(
                "/a",
                {
                    "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "150000\n",
                    "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "50000\n",
                },
                mounts=V1_CPU,
                line="3:cpu,cpuacct:{}",
            ),
            3.0,
            id="version 1",
        ),
        pytest.param(
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            None,
            id="version 1, none",
        ),
        pytest.param({}, None, id="no control groups"),
    ],
)
def test_cpu_quota_is_the_smallest_of_the_groups_above_a_process(files, expected, tmp_path):
    assert cpu_quota_cores(write(tmp_path, files)) == expected


def test_quota_bounds_the_threads_of_a_process(tmp_path):
    files = in_group("/a", {"sys/fs/cgroup/a/cpu.max": "50000 100000\n"})
    assert cpu_facts.threads_allowed(write(tmp_path / "quota", files)) == 1
    assert cpu_facts.threads_allowed(tmp_path / "none") == len(os.sched_getaffinity(0))


MEMINFO = {
    "proc/meminfo": "MemTotal:       100 kB\nMemFree: 1 kB\nMemAvailable:    40 kB\nHugePages_Total: 0\n"
}
OLD = {"proc/meminfo": "MemTotal: 100 kB\nMemFree: 20 kB\nCached: 30 kB\nShmem: 5 kB\n"}


@pytest.mark.parametrize(
    ("files", "total", "free"),
    [
        pytest.param(MEMINFO, 102_400, 40_960, id="of the machine"),
        pytest.param(MEMINFO | in_group("/a", SLICE), 102_400, 600, id="of a control group"),
        pytest.param(
            MEMINFO | in_group("/a", group("a", memory_max=9, memory_current=20)), 102_400, 0, id="none"
        ),
        pytest.param(OLD, 102_400, 46_080, id="before MemAvailable"),
    ],
)
def test_free_memory_is_the_least_of_all_limits(files, total, free, tmp_path):
    root = write(tmp_path, files)
    assert (memory_bytes(root), free_bytes(root)) == (total, free)


@pytest.mark.parametrize("files", [{}, {"proc/meminfo": "MemTotal: none\n"}], ids=["no /proc", "nonsense"])
def test_memory_is_known_without_meminfo(files, tmp_path):
    root = write(tmp_path, files)
    assert 0 < free_bytes(root) < memory_bytes(root)
    assert memory_bytes(root) == pytest.approx(memory_bytes(), rel=0.01)


def test_free_memory_is_below_ulimit(tmp_path):
    page = os.sysconf("SC_PAGE_SIZE")
    root = write(tmp_path, {"proc/self/statm": "1000 500 100 1 0 300 0\n"})
    limits = {resource.RLIMIT_AS: 1500 * page, resource.RLIMIT_DATA: 700 * page}

    def free(**changed):
        found = {**limits, **{getattr(resource, name): limit for name, limit in changed.items()}}
        return cpu_facts._free_below_ulimit(root, lambda what: (found[what], resource.RLIM_INFINITY))

    assert free() == 400 * page
    assert free(RLIMIT_DATA=resource.RLIM_INFINITY) == 500 * page
    assert free(RLIMIT_AS=resource.RLIM_INFINITY, RLIMIT_DATA=resource.RLIM_INFINITY) is None
