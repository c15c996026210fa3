"""The share of the cores that other processes use, by hand and beside a busy process."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from unittest import mock

import pytest
from decodetax.harness.bench.load import LoadPoint, load_point, other_load

STAT = """cpu  999 999 999 999 999 999 999 999 999 999
cpu0 100 20 30 5000 700 4 5 6 1 1
cpu1 1000 200 300 9999 7000 40 50 60 1 1
cpu2 7 7 7 7 7 7 7 7 7 7
intr 5 5
ctxt 77
"""
START = LoadPoint(cores=2, time_s=100.0, busy_s=50.0, own_s=10.0, runnable=0.5)


@pytest.mark.parametrize(
    ("busy_s", "own_s", "share"),
    [
        pytest.param(70.0, 30.0, 0.0, id="alone"),
        pytest.param(66.0, 20.0, 0.3, id="16 busy seconds of 20, 10 its own"),
        pytest.param(70.0, 10.0, 1.0, id="idle beside others"),
        pytest.param(60.0, 21.0, 0.0, id="ticks are coarser than its own times"),
        pytest.param(90.0, 10.0, 1.0, id="never above 1"),
    ],
)
def test_share_by_hand(busy_s, own_s, share):
    # 10 s of 2 cores are 20 s.
    after = replace(START, time_s=110.0, busy_s=busy_s, own_s=own_s)
    assert other_load(START, after) == pytest.approx(share)


def test_without_times_of_the_cores_it_follows_from_the_runnable_processes():
    before, after = (replace(START, busy_s=None, time_s=time_s) for time_s in (0.0, 10.0))
    after = replace(after, own_s=START.own_s + 15, runnable=2.5)
    assert other_load(before, after) == pytest.approx(0.5)  # 2.5 - 1.5 of 2 cores
    assert other_load(before, replace(after, runnable=None)) is None


def test_no_time_has_no_share():
    assert other_load(START, START) is None


@pytest.fixture
def stat(tmp_path):
    """Writes a file like /proc/stat for a process that may use cores 0 and 1."""
    with mock.patch.object(os, "sched_getaffinity", return_value={0, 1}):
        yield lambda text: tmp_path.joinpath("stat").write_text(text, encoding="ascii") and tmp_path / "stat"


def test_busy_time_is_that_of_the_usable_cores_without_idle_and_guest_time(stat):
    # User, nice, system, irq, softirq and steal: 165 and 1650 ticks.
    assert load_point(stat(STAT)).busy_s == 1815 / os.sysconf("SC_CLK_TCK")
    assert load_point(stat(STAT)).cores == 2


@pytest.mark.parametrize(
    "text", ["", "cpu0 1 2 3\n", STAT.replace("cpu1", "cpu9"), "cpu0 a b c d e f g h\ncpu1 1 1 1 1 1 1 1 1"]
)
def test_cores_without_times_are_unknown(stat, text):
    assert load_point(stat(text or "\n")).busy_s is None


def test_without_proc_the_time_is_unknown(tmp_path):
    assert load_point(tmp_path / "none").busy_s is None


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the machine has no /proc/stat")  # noqa: PTH110
def test_a_busy_process_is_seen():
    before = load_point()
    command = [sys.executable, "-c", "import time\nend = time.time() + 1\nwhile time.time() < end: pass"]
    with subprocess.Popen(command) as busy:
        time.sleep(0.8)
        after = load_point()
        busy.wait()
    share = other_load(before, after)
    assert share is not None
    assert share > 0.25 / after.cores  # of one core, as far as others leave it
