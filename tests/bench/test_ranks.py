"""Ranks over torch.distributed: their devices, their messages, and which one is to blame for an end."""

import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from decodetax.harness.bench import run_on_ranks
from decodetax.harness.bench.device import CpuDevice, CudaDevice
from decodetax.harness.bench.rank_watch import Report, open_store
from decodetax.harness.bench.ranks import Peer, RankLostError, Ranks, device_of_rank, require_same_facts
from decodetax.harness.core.errors import FAILED, FailureError, UsageError
from fake_torch_cuda import FakeCuda
from rank_processes import on_ranks


@pytest.mark.parametrize("argument", ["auto", "cuda"])
def test_each_rank_has_the_gpu_of_its_number_on_the_machine(monkeypatch, argument):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    device = device_of_rank(argument, cuda=FakeCuda(count=4))
    assert isinstance(device, CudaDevice)
    assert device.torch_device.index == 3


@pytest.mark.parametrize(("argument", "gpus"), [("cpu", 4), ("auto", 0)])
def test_ranks_on_a_cpu_share_its_memory(monkeypatch, argument, gpus):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("decodetax.harness.bench.cpu_facts.free_bytes", lambda: 1000)
    device = device_of_rank(argument, cuda=FakeCuda(count=gpus))
    assert isinstance(device, CpuDevice)
    assert device.free_bytes() == 250


@pytest.mark.parametrize(
    ("argument", "gpus", "message"),
    [
        ("auto", 2, "--device: 4 ranks on this machine need as many GPUs, torch finds 2 here; cpu works"),
        ("cuda", 0, "--device: 'cuda' needs a CUDA GPU and torch finds none here; cpu works"),
        ("tpu", 4, "--device: 'tpu' is not auto, cpu, cuda or cuda:INDEX"),
    ],
)
def test_ranks_without_a_gpu_each_are_misuse(monkeypatch, argument, gpus, message):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UsageError) as caught:
        device_of_rank(argument, cuda=FakeCuda(count=gpus))
    assert str(caught.value) == message


def test_store_that_cannot_be_reached_is_one_line(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
        for name, text in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, text)
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(FailureError) as caught:
            open_store("run", 0.2)
    words = f"the ranks did not meet at MASTER_ADDR and MASTER_PORT, 127.0.0.1:{port}, within 0.2 s"
    assert str(caught.value) == words


def facts(**changes):
    return {"kind": "cuda", "device": "H100", "torch": "2.9", "triton": "3.5", "sm_clock_hz": 1e9, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "A100"}, "has device 'A100', rank 0 on a has 'H100'"),
        ({"kind": "cpu"}, "has kind 'cpu', rank 0 on a has 'cuda'"),
        ({"torch": "2.8"}, "has torch '2.8', rank 0 on a has '2.9'"),
        ({"triton": None}, "has triton None, rank 0 on a has '3.5'"),
    ],
)
def test_ranks_with_another_device_or_other_versions_are_misuse(changes, words):
    with pytest.raises(UsageError) as caught:
        require_same_facts([Peer("a", 1, facts()), Peer("a", 2, facts()), Peer("b", 3, facts(**changes))])
    assert str(caught.value) == f"rank 2 on b {words}; all ranks need the same"


def test_ranks_may_differ_in_what_does_not_matter():
    require_same_facts([Peer("a", 1, facts()), Peer("b", 2, facts(sm_clock_hz=2e9))])


class FakeWatch:
    """Knows the reports of the other ranks."""

    def __init__(self, reports, *, terminated_s=None, orphaned=False):
        self._reports, self.terminated_s, self.orphaned = reports, terminated_s, orphaned

    def reports(self, _size, _gone):
        return self._reports

    def disarm(self):
        """Nothing: no signal arrives here."""


def rank_0(reports, *, hosts=("here", "here", "there"), pids=(1, 1, 1), **watch):
    ranks = object.__new__(Ranks)
    ranks.rank, ranks.size = 0, len(hosts)
    ranks.peers = [Peer(host, pid, {}) for host, pid in zip(hosts, pids, strict=True)]
    ranks.watch, ranks._reports, ranks._loss = FakeWatch(reports, **watch), None, None
    return ranks


ENDED = {1: Report("ended", "7"), 2: Report("ended", "7")}


@pytest.mark.parametrize(
    ("reports", "watch", "expected"),
    [
        (ENDED, {}, None),
        ({**ENDED, 2: Report("failed", "ValueError: no")}, {}, "rank 2 on there failed: ValueError: no"),
        ({1: ENDED[1]}, {}, "rank 2 on there no longer answers"),
        ({1: Report("terminated", "3.0 SIGTERM"), 2: ENDED[2]}, {}, "rank 1 on here was ended by SIGTERM"),
        (
            {1: Report("terminated", "3.0 SIGTERM"), 2: ENDED[2]},
            {"terminated_s": 3.4},
            "rank 1 on here was ended by SIGTERM",
        ),
        (
            {1: Report("terminated", "3.0 SIGTERM"), 2: Report("terminated", "9.0 SIGHUP")},
            {"terminated_s": 3.01},
            None,
        ),
        ({}, {"orphaned": True}, "the process that started the ranks ended"),
        (
            {1: Report("left", "5 another rank hung"), 2: ENDED[2]},
            {},
            "rank 1 on here left, as another rank hung",
        ),
        ({1: Report("left", "5 another rank hung")}, {}, "rank 2 on there no longer answers"),
    ],
    ids=[
        *("all ended", "failed", "silent", "SIGTERM", "SIGTERM before", "SIGTERM to all", "orphaned"),
        *("left", "left after a silent one"),
    ],
)
def test_rank_to_blame_is_told_from_the_reports(reports, watch, expected):
    lost = rank_0(reports, **watch).loss()
    assert (lost and str(lost)) == expected


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (signal.SIGKILL, "died (process {} was killed or crashed)"),
        (signal.SIGSTOP, "was stopped (process {})"),
    ],
)
def test_silent_rank_on_this_host_is_looked_at_and_ended(stop, words):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        process.send_signal(stop)
        time.sleep(0.1)
        lost = rank_0({2: ENDED[2]}, pids=(1, process.pid, 1)).loss()
        assert str(lost) == f"rank 1 on here {words.format(process.pid)}"
        assert process.wait(5) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_rank_whose_peer_is_lost_reports_so_before_it_ends_and_is_not_blamed(monkeypatch):
    said = []
    monkeypatch.setattr(Ranks, "open", lambda *_args, **_options: SimpleNamespace(leave=said.append))

    def lose_a_peer(_ranks):
        raise RankLostError(0, "here", "was lost")

    monkeypatch.setattr(run_on_ranks, "follow", lose_a_peer)
    assert run_on_ranks.follow_rank_0("cpu", 1.0) == FAILED
    assert [str(error) for error in said] == ["rank 0 on here was lost"]


@pytest.mark.parametrize("kind", ["ended", "left"])
def test_rank_that_hangs_is_the_one_with_the_fewest_messages(kind):
    lost = rank_0({1: Report(kind, "7 why"), 2: Report("ended", "6")}).lost_error("did not answer")
    assert isinstance(lost, RankLostError)
    assert isinstance(lost, FailureError)
    assert (lost.rank, lost.host, lost.reason) == (2, "there", "did not answer")


def exchange(ranks):
    large = [ranks.rank] * 10_000
    ranks.barrier()
    sent = ranks.broadcast({"rank": ranks.rank, "large": large})
    return sent["rank"], ranks.gather(ranks.rank), ranks.gather_everywhere(large)[1][-1], len(ranks.peers)


@pytest.mark.slow
def test_messages_reach_all_ranks():
    assert on_ranks(3, exchange) == [(0, [0, 1, 2], 1, 3), (0, None, 1, 3), (0, None, 1, 3)]


@pytest.mark.parametrize(("over", "kind"), [(False, "left"), (True, "ended")])
def test_rank_whose_message_fails_left_unless_the_run_is_over(over, kind):
    said = []
    ranks = rank_0({})
    ranks.rank, ranks._messages = 1, 5
    ranks.watch.over, ranks.watch.report = lambda: over, lambda *words: said.append(words)
    ranks.leave(ranks.lost_error("closed its connection"))
    assert said == [(kind, "5 another rank closed its connection")]
