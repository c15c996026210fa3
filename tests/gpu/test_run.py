"""Measuring on a GPU: compiled kernels, CUDA events, CUDA graphs, and a small run."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from decodetax.harness.bench import runner, session
from decodetax.harness.bench.device import open_device
from decodetax.harness.bench.providers import PROVIDERS, Provider
from decodetax.harness.bench.runner import Bench, run_case
from decodetax.harness.bench.timer import Budget, measure
from decodetax.harness.core.cases import DecodeAttention, PrefillMatmul
from decodetax.harness.core.gpus import gpu_of_device
from decodetax.harness.core.inputs import Source
from decodetax.harness.core.language_model import LanguageModel
from decodetax.harness.core.records import Roof
from decodetax.kernels import interpreting

pytestmark = pytest.mark.gpu
BUDGET = Budget(time_limit_s=0.2, warm_up_s=0.2)
ROOF = Roof(flop_per_s=1e13, bandwidth_bytes_per_s=1e11)
SMALL = PrefillMatmul(phase="decode", part="o", rows=1, in_features=256, out_features=512, dtype="fp16")


@pytest.fixture(scope="module")
def device():
    return open_device("cuda")


@pytest.fixture
def bench(device):
    return Bench(device=device, source=Source(device.torch_device, 0), budget=BUDGET, roof=ROOF)


def test_kernels_are_compiled():
    assert not interpreting()


def test_device_description(device):
    assert device.kind == "cuda"
    assert 2**20 <= device.cache_bytes < device.memory_bytes
    assert 0 < device.free_bytes() <= device.memory_bytes
    assert device.name == torch.cuda.get_device_name(device.torch_device)


def test_event_times_are_within_device_limits(device):
    size = 4096
    a, b = (torch.randn(size, size, device=device.torch_device).half() for _ in range(2))
    timing = measure(device, [lambda: a @ b], BUDGET)
    flop_per_s = 2 * size**3 / min(timing.samples_s)
    peaks = gpu_of_device(device.name, device.memory_bytes)
    most = peaks.flop_per_s["fp16"] if peaks else 1e16
    assert 1e11 < flop_per_s < most
    assert timing.method == "cuda: each call"


def test_events_exclude_launch_time(device):
    [spin_s] = device.time_each([lambda: torch.cuda._sleep(20_000_000)])
    [longer_s] = device.time_each([lambda: torch.cuda._sleep(40_000_000)])
    assert 0.001 < spin_s < 0.2  # at 0.1 to 20 GHz
    assert longer_s == pytest.approx(2 * spin_s, rel=0.3)


def test_graph_replays_every_call_once(device):
    counts = torch.zeros(3, device=device.torch_device)
    calls = [lambda i=i: counts[i].add_(1) for i in range(3)]
    replay = device.capture(calls)
    counts.zero_()
    replay()
    replay()
    assert counts.tolist() == [2, 2, 2]


def test_short_calls_are_replayed_from_a_graph_and_verified_after(bench):
    rows = {row.provider: row for row in run_case(SMALL, bench)}
    for provider in ("torch", "triton"):
        row = rows[provider]
        assert row.status == "ok", row.reason
        assert "graph replay" in row.method
        assert row.relative_error <= row.tolerance
        assert all(0 < sample < 50e-6 for sample in row.samples_s)


def test_graph_that_writes_nothing_fails(bench, monkeypatch):
    calls = []

    def idle(inputs):
        calls.append(inputs)
        return PROVIDERS["prefill_matmul"][0].run(inputs) if len(calls) == 1 else inputs.out

    monkeypatch.setattr(runner, "PROVIDERS", {"prefill_matmul": [Provider(name="idle", run=idle)]})
    [row] = run_case(SMALL, bench)
    assert (row.status, row.relative_error) == ("failed", math.inf)


def test_out_of_memory_gives_a_skipped_row(bench, monkeypatch):
    def greedy(inputs):
        return torch.empty(2**50, device=inputs.x.device)

    plain = PROVIDERS["prefill_matmul"][0]
    providers = [Provider(name="greedy", run=greedy), plain]
    monkeypatch.setattr(runner, "PROVIDERS", {"prefill_matmul": providers})
    greedy_row, row = run_case(SMALL, bench)
    assert greedy_row.status == "skipped"
    assert greedy_row.reason.startswith("out of memory")
    assert row.status == "ok"


def test_copies_outside_l2_are_slower(device):
    case = DecodeAttention(contexts=(4096,) * 2, q_heads=8, kv_heads=8, head_dim=128, dtype="fp16")
    bench = Bench(device=device, source=Source(device.torch_device, 0), budget=BUDGET, roof=ROOF)
    [row] = [row for row in run_case(case, bench) if row.provider == "triton"]
    assert row.status == "ok", row.reason
    assert row.input_copies * case.work().bytes_total >= 2 * device.cache_bytes
    peaks = gpu_of_device(device.name, device.memory_bytes)
    if peaks:
        assert case.work().bytes_total / row.time_s.median < 1.05 * peaks.bandwidth_bytes_per_s


@pytest.fixture
def own_kernel(tmp_path, monkeypatch):
    """The example of docs/extending.md, as a module of the current folder."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(# my_kernel.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "my_kernel.py").write_text(example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield "my_kernel:my_product"
    sys.modules.pop("my_kernel", None)


def test_small_run(device, own_kernel):
    model = LanguageModel(
        name="small",
        source="the tests",
        hidden_size=512,
        layers=2,
        q_heads=8,
        kv_heads=2,
        head_dim=64,
        intermediate_size=1024,
        vocab_size=1000,
        tied_embeddings=True,
    )
    settings = session.Settings(
        model=model,
        batches=(1, 3),
        contexts=(100, 1000),
        prompt=None,
        prefill_tokens=1024,
        dtype="auto",
        usd_per_hour=1.0,
        row_limit_s=0.05,
        ceiling_limit_s=0.02,
        total_limit_s=120,
        providers=(own_kernel,),
        counters=True,
    )
    result = session.begin(settings, device)
    shares = []
    session.measure(result, settings, device, lambda done, _what: shares.append(done))
    assert [f"{row.case.id} {row.provider}: {row.reason}" for row in result.failures] == []
    triton = [row for row in result.rows if row.provider == "triton"]
    assert {row.case.operation for row in triton} == {"prefill_matmul", "decode_attention"}
    assert {row.status for row in triton} == {"ok"}
    assert result.interpreter_checks == []
    assert len(result.gaps) == 4
    assert all(gap.gap > 0 and gap.triton_gap > 0 for gap in result.gaps)
    assert shares == sorted(shares)
    assert {row.status for row in result.rows if row.provider == own_kernel} == {"ok"}
    for ceiling in result.ceilings:
        if ceiling.provenance == "measured" and ceiling.dtype in (None, result.dtype):
            assert set(ceiling.rounds) == set(range(session.ROUNDS))
    counted = [row for row in result.rows if row.counters is not None]
    assert counted or result.counters_reason
    for row in counted:
        assert row.counters["dram_bytes_read"] >= 0.9 * row.case.work().bytes_read, row.case.id
        assert row.counters["matrix_active_share"] <= 1
    assert (
        json.loads(json.dumps(result.to_json(), allow_nan=False))["environment"]["device"]["kind"] == "cuda"
    )
