"""Measuring on a GPU: compiled kernels, CUDA events, CUDA graphs, and a small run."""

import json
import math
import re
import statistics
import sys
import time
from pathlib import Path

import pytest
import torch
from decodetax.harness.bench import runner, session
from decodetax.harness.bench.device import open_device
from decodetax.harness.bench.providers import PROVIDERS, Provider
from decodetax.harness.bench.run_settings import Settings
from decodetax.harness.bench.runner import Bench, run_case
from decodetax.harness.bench.tilings import TUNABLE, run_decode_attention
from decodetax.harness.bench.timer import Budget, measure
from decodetax.harness.core.arena import Arena, copies_needed
from decodetax.harness.core.cases import DecodeAttention, PrefillAttention, PrefillMatmul
from decodetax.harness.core.inputs import Source, draw
from decodetax.harness.core.records import Roof
from decodetax.harness.core.timed_model import TimedModel
from decodetax.kernels import interpreting
from msgspec import structs

pytestmark = pytest.mark.gpu
BUDGET = Budget(time_limit_s=0.2, warm_up_s=0.2)
ROOF = Roof(flop_per_s=1e13, bandwidth_bytes_per_s=1e11)
SMALL = PrefillMatmul(phase="decode", part="o", rows=1, in_features=256, out_features=512, dtype="fp16")


@pytest.fixture(scope="module")
def device():
    """The GPU, after a second of work: an idle one first raises its clocks."""
    opened = open_device("cuda")
    a = torch.randn(4096, 4096, device=opened.torch_device).half()
    end_s = time.perf_counter() + 1
    while time.perf_counter() < end_s:
        opened.time_each([lambda: a @ a])
    return opened


@pytest.fixture
def bench(device):
    return Bench(
        device=device, arena=Arena(device.torch_device, 0, size_bytes=2**30), budget=BUDGET, roof=ROOF
    )


def test_kernels_are_compiled():
    assert not interpreting()


def test_device_description(device):
    assert device.kind == "cuda"
    assert 2**20 <= device.cache_bytes < device.memory_bytes
    assert 0 < device.free_bytes() <= device.memory_bytes
    assert device.name == torch.cuda.get_device_name(device.torch_device)


def test_events_time_what_the_gpu_computes(device):
    """Compared with the wall clock around the same calls, so that no clock rate matters."""
    a = torch.randn(4096, 4096, device=device.torch_device).half()

    def products():
        for _ in range(100):
            a @ a

    device.time_each([products])
    start_s = time.perf_counter()
    [gpu_s] = device.time_each([products])
    wall_s = time.perf_counter() - start_s
    assert 0.5 * wall_s < gpu_s < wall_s


def test_events_exclude_the_time_to_enqueue(device):
    counts = torch.zeros(1, device=device.torch_device)

    def slow():
        time.sleep(5e-3)
        counts.add_(1)

    device.time_each([slow])  # loads the kernel
    device.size_head_start(slow)
    samples_s = device.time_each([slow] * 9)
    assert counts.item() == 11
    assert 0 < statistics.median(samples_s) < 2e-3


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
        assert all(sample > 0 for sample in row.samples_s)


WAITS = {
    "item": lambda out: out.sum().item(),
    "synchronize": lambda _out: torch.cuda.synchronize(),
    "stream": lambda _out: torch.cuda.current_stream().synchronize(),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_provider_that_waits_is_timed_without_a_graph_and_the_next_case_with_one(bench, monkeypatch, wait):
    plain = PROVIDERS["prefill_matmul"][0]

    def waiting(inputs):
        out = plain.run(inputs)
        wait(out)
        return out

    monkeypatch.setattr(runner, "PROVIDERS", {"prefill_matmul": [Provider(name="waiting", run=waiting)]})
    [row] = run_case(SMALL, bench)
    assert (row.status, row.reason, row.method) == ("ok", None, "cuda: each call")
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    monkeypatch.setattr(runner, "PROVIDERS", {"prefill_matmul": [plain]})
    [row] = run_case(structs.replace(SMALL, rows=2), bench)
    assert (row.status, row.reason) == ("ok", None)
    assert "graph replay" in row.method


def test_graph_that_writes_nothing_fails(bench, monkeypatch):
    calls = []

    def idle(inputs):
        calls.append(inputs)
        return PROVIDERS["prefill_matmul"][0].run(inputs) if len(calls) == 1 else inputs.out

    monkeypatch.setattr(runner, "PROVIDERS", {"prefill_matmul": [Provider(name="idle", run=idle)]})
    [row] = run_case(SMALL, bench)
    assert (row.status, row.relative_error) == ("failed", math.inf)


class Streams:
    """Providers whose work is not all in the stream that is timed."""

    def __init__(self):
        self.side = torch.cuda.Stream()

    def left(self, inputs):
        """In a stream of its own, which waits for nothing and for which nothing waits."""
        with torch.cuda.stream(self.side):
            return PROVIDERS["prefill_matmul"][0].run(inputs)

    def half_left(self, inputs):
        """After the timed stream, which does not wait for the end."""
        self.side.wait_stream(torch.cuda.current_stream())
        return self.left(inputs)

    def more(self, inputs):
        """The result in time, and something else afterwards."""
        out = PROVIDERS["prefill_matmul"][0].run(inputs)
        with torch.cuda.stream(self.side):
            torch.cuda._sleep(10_000_000)
        return out

    def changed(self, inputs):
        """The stream stays current."""
        torch.cuda.set_stream(self.side)
        return PROVIDERS["prefill_matmul"][0].run(inputs)

    def joined(self, inputs):
        """In a stream of its own, for which the timed one waits."""
        out = self.half_left(inputs)
        torch.cuda.current_stream().wait_stream(self.side)
        return out


LARGE = PrefillMatmul(phase="prefill", part="o", rows=2048, in_features=4096, out_features=4096, dtype="fp16")


@pytest.mark.parametrize("case", [SMALL, LARGE], ids=lambda case: f"m{case.rows}")
@pytest.mark.parametrize("name", ["left", "half_left", "more", "changed", "joined"])
def test_work_in_another_stream_is_found(bench, monkeypatch, name, case):
    plain, stream = PROVIDERS["prefill_matmul"][0], torch.cuda.current_stream()
    run = getattr(Streams(), name)
    monkeypatch.setattr(runner, "PROVIDERS", {"prefill_matmul": [Provider(name=name, run=run), plain]})
    row, innocent = run_case(case, bench)
    assert (row.status == "ok") == (name == "joined"), row.reason
    if name == "changed":
        assert "changed the current stream" in row.reason
    assert (innocent.status, innocent.reason) == ("ok", None)
    assert torch.cuda.current_stream() == stream


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


@pytest.fixture
def rotated(device):
    """Attention over inputs of 2.2 times the L2, and its time over so many copies in turn."""
    context = int(2.2 * device.cache_bytes / (2 * 8 * 128 * 2))  # K and V, heads, elements, bytes of each
    case = DecodeAttention(contexts=(context,), q_heads=8, kv_heads=8, head_dim=128, dtype="fp16")
    source = Source(device.torch_device, 0)
    copies = [draw(case, source) for _ in range(6)]
    calls = [lambda inputs=inputs: run_decode_attention(inputs) for inputs in copies]

    def time_s(count):
        return statistics.median(device.time_each(calls[:count] * (30 // count)))

    assert copies_needed(case, ROOF, cache_bytes=device.cache_bytes) == 3
    device.time_each(calls)
    return time_s


def test_three_copies_of_twice_the_l2_are_as_cold_as_six(rotated):
    ratios = [rotated(3) / rotated(6) for _ in range(15)]
    assert statistics.median(ratios) == pytest.approx(1, abs=0.04)


def test_one_copy_of_twice_the_l2_is_no_colder_than_three(rotated):
    ratios = [rotated(1) / rotated(3) for _ in range(15)]
    assert statistics.median(ratios) < 1.03


def test_attention_over_cold_copies_is_no_faster_than_memory(device, bench):
    case = DecodeAttention(contexts=(4096,) * 2, q_heads=8, kv_heads=8, head_dim=128, dtype="fp16")
    [row] = [row for row in run_case(case, bench) if row.provider == "triton"]
    assert row.status == "ok", row.reason
    assert row.input_copies * case.work().bytes_total >= 5 * device.cache_bytes
    buffer = torch.ones(2**28, device=device.torch_device)
    read_s = min(measure(device, [buffer.amax], BUDGET).samples_s)
    # Half of the L2 and more is faster than memory by far more than 20%.
    assert case.work().bytes_total / row.time_s.median < 1.2 * buffer.nbytes / read_s


HEADS = {"q_heads": 8, "kv_heads": 2, "head_dim": 64, "dtype": "fp16"}
LATENT = {"q_heads": 16, "kv_heads": 1, "head_dim": 576, "v_head_dim": 512, "latent": True, "dtype": "fp16"}
KINDS = {
    "decode in a window with a softcap": DecodeAttention(
        contexts=(1000,) * 3, window=300, softcap=50.0, **HEADS
    ),
    "decode with sinks": DecodeAttention(contexts=(1000, 7), sinks=True, **HEADS),
    "decode over latents": DecodeAttention(contexts=(1000,) * 3, **LATENT),
    "prefill in a window with sinks": PrefillAttention(
        sequences=2, prompt=700, window=128, sinks=True, **HEADS
    ),
    "prefill of MLA": PrefillAttention(
        sequences=1, prompt=700, q_heads=4, kv_heads=4, head_dim=192, v_head_dim=128, dtype="fp16"
    ),
    "absorbed products": PrefillMatmul(
        phase="decode", part="o", batch=16, rows=3, in_features=128, out_features=512, dtype="fp16"
    ),
}


@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
def test_case_of_a_model_in_parts_passes_by_torch_and_triton(bench, case):
    rows = {row.provider: row for row in run_case(case, bench)}
    assert [f"{name}: {row.reason}" for name, row in rows.items() if row.status == "failed"] == []
    assert rows["triton"].status == "ok", rows["triton"].reason
    if len(set(getattr(case, "contexts", (1,)))) == 1:
        assert rows["torch"].status == "ok", rows["torch"].reason


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
    model = TimedModel(
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
    settings = Settings(
        model=model,
        batches=(1, 3),
        contexts=(100, 1000),
        prompt=None,
        prefill_tokens=1024,
        dtype="auto",
        usd_per_hour=1.0,
        total_limit_s=60,
        providers=(own_kernel,),
        counters=True,
    )
    result = session.begin(settings, device)
    shares = []
    session.measure(result, settings, device, lambda done, _what: shares.append(done))
    assert [f"{row.case.id} {row.provider}: {row.reason}" for row in result.failures] == []
    triton = [row for row in result.rows if row.provider == "triton"]
    assert {row.case.operation for row in triton} == set(TUNABLE)
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
