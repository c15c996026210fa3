"""A run with dishonest providers of the user's own, from their module to rows and the end of the command."""

import os
import subprocess
import sys

import pytest
import torch
from decodetax.harness.bench import ceilings, session
from decodetax.harness.bench.trust import warnings_of
from fakes import FakeDevice
from hand_made import strict_json, write_config
from test_session import run

MODULE = '''
import atexit, sys, torch

kept = {}

def replay(x, weight):
    key = (x.data_ptr(), weight.data_ptr(), x.shape, weight.shape)
    if key not in kept:
        kept[key] = x @ weight.t()
    return kept[key].clone()

class Late(torch.Tensor):
    """Computed when it is looked at: the timed call does nothing."""

    @staticmethod
    def __new__(cls, x, w):
        self = torch.Tensor._make_wrapper_subclass(cls, (x.shape[0], w.shape[0]), dtype=x.dtype)
        self.x, self.w = x, w
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("fill_", "copy_"):
            return args[0]
        value = lambda t: t.x @ t.w.t() if isinstance(t, Late) else t
        return func(*torch.utils._pytree.tree_map(value, args), **(kwargs or {}))

def late(x, weight):
    return Late(x, weight)

def wrecks(x, weight):
    out = x @ weight.t()
    weight.zero_()
    return out

def innocent(x, weight):
    return x @ weight.t()

def more_threads(x, weight):
    torch.set_num_threads(3)
    return x @ weight.t()

atexit.register(lambda: print("threads at the end:", torch.get_num_threads(), file=sys.stderr))
'''
REASONS = {
    "more_threads": "changed the number of threads from 1 to 3",
    "late": "returned a Late, a subclass of Tensor",
    "replay": "returned an earlier result after its inputs had changed in place",
    "wrecks": "altered its weight",
}
NAMES = [f"dishonest_under_test:{name}" for name in (*REASONS, "innocent")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the module."""
    (tmp_path / "dishonest_under_test.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("dishonest_under_test", None)


def reasons_by_name(rows):
    """Status and reason of each row of the module's functions, by function."""
    found = {}
    for row in rows:
        module, _, name = row.provider.partition(":")
        if module == "dishonest_under_test":
            found.setdefault(name, []).append((row.status, row.reason))
    return found


@pytest.mark.usefixtures("folder")
def test_each_provider_is_named_has_no_figures_and_spoils_no_other(monkeypatch):
    monkeypatch.setattr(ceilings, "SQUARE_SIZES", {"cpu": (8,), "cuda": (8,)})
    monkeypatch.setattr(session, "check_in_interpreter", lambda *_args, **_options: iter(()))
    result = run(FakeDevice(free_bytes=2**21), batches=(2,), contexts=(3,), providers=NAMES)
    found = reasons_by_name(result.rows)
    assert set(found) == {*REASONS, "innocent"}
    assert set(found.pop("innocent")) == {("ok", None)}
    for name, rows in found.items():
        for status, reason in rows:
            assert status == "failed", (name, reason)
            assert REASONS[name] in reason
    assert {row.status for row in result.rows if row.provider == "torch"} == {"ok"}
    assert {row.provider for row in result.rows if row.samples_s} & set(NAMES) == {NAMES[-1]}
    assert torch.get_num_threads() == 1
    assert len(result.gaps) == 1


STRAY = """
def stray(x, weight):
    whole = weight.as_strided((weight.untyped_storage().nbytes() // weight.itemsize,), (1,), 0)
    whole[0] = 7
    return x @ weight.t()
"""


def test_write_outside_the_inputs_is_said_and_its_provider_is_found_in_the_next_round(folder, monkeypatch):
    monkeypatch.setattr(ceilings, "SQUARE_SIZES", {"cpu": (8,), "cuda": (8,)})
    monkeypatch.setattr(session, "check_in_interpreter", lambda *_args, **_options: iter(()))
    (folder / "dishonest_under_test.py").write_text(MODULE + STRAY, encoding="utf-8")
    names = ["dishonest_under_test:innocent", "dishonest_under_test:stray"]
    result = run(FakeDevice(free_bytes=2**21), batches=(2,), contexts=(3,), providers=names)
    assert result.altered == "a provider altered memory outside its inputs in round 1"
    assert result.altered in warnings_of(result)
    found = reasons_by_name(result.rows)
    assert set(found["stray"]) >= {("failed", "altered memory outside its inputs")}
    assert {status for status, _ in found["stray"]} == {"failed"}
    assert set(found["innocent"]) == {("ok", None)}
    assert {row.status for row in result.rows if row.provider == "torch"} == {"ok"}


@pytest.mark.slow
def test_command_names_each_and_ends_with_the_threads_that_it_began_with(folder):
    write_config(folder)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "decodetax.harness", "run", "--quick", "--model", "config.json"),
            *("--batch", "1", "--context", "16", "--prefill-tokens", "64", "--dtype", "fp32"),
            *("--device", "cpu", "-o", "out.json"),
            *(argument for name in NAMES for argument in ("--provider", name)),
        ],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "threads at the end: 1" in done.stderr
    rows = strict_json((folder / "out.json").read_text(encoding="utf-8"))["rows"]
    found = {}
    for row in rows:
        if row["provider"] in NAMES:
            found.setdefault(row["provider"], set()).add(row["status"])
            assert (row["time_s"] is None) == (row["status"] != "ok")
    assert found == {name: {"ok" if name == NAMES[-1] else "failed"} for name in NAMES}
    for name, reason in REASONS.items():
        assert any(name in line and reason in line for line in done.stdout.splitlines()), reason
