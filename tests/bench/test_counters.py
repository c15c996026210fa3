"""Hardware counters through nsight-python, faked, without a GPU."""

import dataclasses
import functools
import json
import sys

import pytest
from decodetax.harness.bench import ceilings, counters, session
from decodetax.harness.bench.counters import OPERATIONS, provider_of, read_counters
from decodetax.harness.bench.providers import user_providers
from decodetax.harness.bench.run_settings import settings_of
from decodetax.harness.core.records import Row
from decodetax.harness.core.run_file import run_of
from decodetax.kernels import MatmulTiling
from fakes import FakeDevice
from small_cases import matmul_case
from test_session import as_json, run

FAKE_NSIGHT = """
import contextlib
import os

from nsight import exceptions

ACTION = os.environ["FAKE_NSIGHT"]
# What each of two launches of a call is counted to have done.
VALUES = {
    "dram__bytes_read.sum": (1000.0, 24.0),
    "dram__bytes_write.sum": (64.0, 8.0),
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed": (75.0, 1.0),
}
annotated = []


class VerbosityLevel:
    SILENT = 0


@contextlib.contextmanager
def annotate(name):
    annotated.append(name)
    yield


class Result:
    def __init__(self, frame):
        self.frame = frame

    def to_dataframe(self):
        return self.frame


class analyze:
    @staticmethod
    def kernel(*, configs, runs, metrics, combine_kernel_metrics, verbosity, thermal_mode, output_prefix):
        assert (configs, runs, verbosity, thermal_mode) == ([(0,)], 1, 0, "off")
        assert os.path.isdir(output_prefix) and output_prefix.endswith(os.sep)

        def decorated(function):
            def profiled():
                if ACTION == "no permission":
                    raise exceptions.ProfilerException("The user does not have permission: ERR_NVGPUCTRPERM")
                if ACTION == "crash":
                    os._exit(3)
                annotated.clear()
                function(0)
                assert annotated == ["call"]
                print("what a profiler says on standard output is no answer")
                assert combine_kernel_metrics.__code__.co_argcount == 2
                values = [combine_kernel_metrics(*VALUES[metric]) for metric in metrics]
                return Result({"Metric": list(metrics), "AvgValue": values})

            return profiled

        return decorated
"""
EXCEPTIONS = """
class ProfilerException(Exception):
    pass


class NCUNotAvailableError(Exception):
    pass
"""


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(ceilings, "SQUARE_SIZES", {"cpu": (8,)})
    monkeypatch.setattr(session, "check_in_interpreter", lambda *_args, **_options: iter(()))


@pytest.fixture
def fake_nsight(tmp_path, monkeypatch):
    """A package `nsight` that this process and its children find; the action is set by calling it."""
    (tmp_path / "nsight").mkdir()
    (tmp_path / "nsight" / "__init__.py").write_text(FAKE_NSIGHT, encoding="utf-8")
    (tmp_path / "nsight" / "exceptions.py").write_text(EXCEPTIONS, encoding="utf-8")
    (tmp_path / "own_of_counters.py").write_text("def product(x, weight):\n    return x @ weight.t()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda action: monkeypatch.setenv("FAKE_NSIGHT", action)


def read(result, **options):
    calls = []
    reason = read_counters(result, FakeDevice(kind="cuda", **options), lambda *call: calls.append(call))
    return reason, calls


def test_files_of_the_current_folder_are_not_run_in_place_of_modules(fake_nsight, tmp_path, monkeypatch):
    fake_nsight("count")
    result = small_run()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("queue", "json", "torch", "decodetax"):
        (tmp_path / "here" / f"{name}.py").write_text("open('RAN', 'w'); raise SystemExit", encoding="utf-8")
    assert read(result)[0] is None
    assert not (tmp_path / "here" / "RAN").exists()


def small_run(**changes):
    return run(batches=(1,), contexts=(3,), **changes)


def counted_rows(result):
    return [row for row in result.rows if row.status == "ok" and row.case.operation in OPERATIONS]


def test_rows_get_the_counters_of_all_launches_of_a_call(fake_nsight):
    fake_nsight("count")
    result = small_run(providers=("own_of_counters:product",))
    reason, calls = read(result)
    assert reason is None
    rows = counted_rows(result)
    assert "own_of_counters:product" in {row.provider for row in rows}
    assert {row.case.operation for row in rows} == set(OPERATIONS)
    for row in rows:
        assert row.counters == {
            "dram_bytes_read": 1024.0,  # of two launches, together
            "dram_bytes_written": 72.0,
            "matrix_active_share": 0.75,  # of the busier one
        }
    assert [row for row in result.rows if row not in rows and row.counters] == []
    assert [share for share, _ in calls] == [pytest.approx((at + 1) / len(rows)) for at in range(len(rows))]
    assert [row.counters for row in run_of(as_json(result)).rows] == [row.counters for row in result.rows]


def test_crashed_profiler_gives_one_reason(fake_nsight):
    fake_nsight("crash")
    result = small_run()
    reason, _ = read(result)
    assert "the profiler ended with 3" in reason
    assert "\n" not in reason
    assert not [row for row in result.rows if row.counters]


def test_refused_permission_ends_the_job(fake_nsight, tmp_path):
    fake_nsight("no permission")
    result = small_run()
    rows = [place for place, row in enumerate(result.rows) if row in counted_rows(result)]
    job = {"device": "cpu", "rows": rows, "run": result.to_json()}
    [answer] = counters._counted(job, functools.partial(counters._profile, str(tmp_path)))
    assert "ERR_NVGPUCTRPERM" in answer["reason"]
    assert "Nsight Compute 2026.2.1 or newer" in answer["reason"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "nsight"]:
        del sys.modules[name]


def test_missing_gpu_or_package_is_the_reason(monkeypatch):
    result = small_run()
    cpu = FakeDevice(kind="cpu")
    assert "CUDA GPU" in read_counters(result, cpu, lambda *_: None)
    monkeypatch.setattr(counters, "installed", lambda _name: False)
    reason, _ = read(result)
    assert "pip install nsight-python" in reason
    assert "Nsight Compute 2026.2.1 or newer" in reason


def test_run_reads_counters_only_if_asked(monkeypatch):
    monkeypatch.setattr(session, "read_counters", lambda *_args: "not here")
    assert small_run().counters_reason is None
    asked = small_run(counters=True)
    assert asked.counters_reason == "not here"
    assert run_of(as_json(asked)).counters_reason == "not here"
    assert settings_of(asked).counters


def test_row_is_profiled_with_its_variant_and_tiling(tmp_path, monkeypatch):
    case = matmul_case()
    row = Row(case=case, provider="triton", status="failed", reason="-", variant="descriptors")
    assert provider_of(row, {}).name == "triton-descriptors"
    sizes = {"block_m": 16, "block_n": 64, "block_k": 64, "group_m": 8, "num_splits": 1}
    tiling = dataclasses.asdict(MatmulTiling(**sizes, num_warps=4, num_stages=3))
    cut = provider_of(dataclasses.replace(row, tiling=json.loads(json.dumps(tiling))), {})
    assert (cut.name, cut.tiling) == ("triton", tiling)
    (tmp_path / "own_elsewhere.py").write_text("def product(x, weight):\n    return x @ weight.t()\n")
    monkeypatch.chdir(tmp_path)
    own = user_providers(("own_elsewhere:product",))
    mine = dataclasses.replace(row, provider="own_elsewhere:product")
    assert provider_of(mine, own) is own["prefill_matmul"][0]
