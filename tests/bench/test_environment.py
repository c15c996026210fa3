"""The environment that a run records: machine, software, commit."""

import json
import re
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch
from decodetax.harness.bench import environment
from decodetax.harness.bench.clocks import Clocks
from decodetax.harness.bench.device import CudaDevice
from decodetax.harness.bench.environment import describe
from fake_torch_cuda import FakeCuda
from fakes import FakeClocks, FakeDevice


def test_cpu_is_described():
    found = describe(FakeDevice(cache_bytes=7, memory_bytes=9))
    assert found.keys() == {"device", "versions", "system", "commit", "started"}
    device = found["device"]
    assert device["kind"] == "cpu"
    assert device["name"] == "a device of the tests"
    assert (device["last_level_cache_bytes"], device["memory_bytes"]) == (7, 9)
    assert device["cores"] >= 1
    assert device["threads"] == torch.get_num_threads()
    assert found["versions"].keys() == {"decodetax", "python", "torch", "triton", "cuda"}
    assert found["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"3\.\d+\.\d+\S*", found["versions"]["python"])
    assert datetime.fromisoformat(found["started"]).utcoffset().total_seconds() == 0


@pytest.mark.parametrize(
    ("quota", "cache", "facts"),
    [(None, 7, {}), (1.5, None, {"cpu_quota_cores": 1.5, "last_level_cache_assumed": True})],
    ids=["none", "quota and no cache listed"],
)
def test_cpu_quota_and_a_cache_that_is_assumed_are_recorded(monkeypatch, quota, cache, facts):
    monkeypatch.setattr(environment.cpu_facts, "cpu_quota_cores", lambda: quota)
    monkeypatch.setattr(environment.cpu_facts, "last_level_cache_bytes", lambda: cache)
    found = describe(FakeDevice())["device"]
    names = ("cpu_quota_cores", "last_level_cache_assumed")
    assert {name: found[name] for name in names if name in found} == facts


def test_gpu_is_described_with_its_clocks():
    device = CudaDevice(0, cuda=FakeCuda(), clocks=FakeClocks())
    assert describe(device)["device"] == {
        "kind": "cuda",
        "name": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 80 * 2**30,
        "last_level_cache_bytes": 50 * 2**20,
        "compute_capability": "9.0",
        "sm_count": 132,
        "driver": "1.2.3",
        "power_limit_w": 700.0,
    }


def test_gpu_without_readable_clocks_has_none():
    device = CudaDevice(0, cuda=FakeCuda(), clocks=Clocks())
    assert not {"driver", "power_limit_w"} & describe(device)["device"].keys()


def test_description_is_json_and_names_no_folder():
    text = json.dumps(describe(FakeDevice()))
    folders = {str(Path.home()), str(Path.cwd()), str(Path(environment.__file__).parent)} - {"/"}
    assert not [folder for folder in folders if folder in text]


def test_version_of_what_is_not_installed_is_none():
    assert environment._version("no-such-distribution-anywhere") is None


def test_commit_is_a_hex_id_or_none():
    commit = describe(FakeDevice())["commit"]
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}( with changes)?", commit)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param(["environment.py", COMMIT, ""], COMMIT, id="clean"),
        pytest.param(["environment.py", COMMIT, " M x"], f"{COMMIT} with changes", id="changed"),
        pytest.param([subprocess.CalledProcessError(1, "git")], None, id="not tracked"),
        pytest.param([FileNotFoundError("git")], None, id="no git"),
        pytest.param([subprocess.TimeoutExpired("git", 10)], None, id="git hangs"),
    ],
)
def test_commit_is_that_of_the_checkout(monkeypatch, answers, expected):
    turns = iter(answers)

    def run(arguments, **_options):
        answer = next(turns)
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(arguments, 0, stdout=f"{answer}\n")

    monkeypatch.setattr(environment.subprocess, "run", run)
    assert environment._commit() == expected
