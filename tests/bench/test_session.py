"""Whole runs of a tiny model, and the choices that a run makes."""

import dataclasses
import gc
import json

import pytest
from decodetax.harness.bench import ceilings, device, rounds, runner, session
from decodetax.harness.bench.ceilings import datasheet_ceilings
from decodetax.harness.bench.rounds import Deadline
from decodetax.harness.bench.run_settings import Settings, check_memory, settings_of
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gpus import gpu_of_device
from decodetax.harness.core.records import SCHEMA_VERSION, Ceiling, InterpreterCheck
from fakes import FakeDevice
from small_cases import tiny_model

MODEL = tiny_model(vocab_size=40)
H100 = "NVIDIA H100 80GB HBM3"


def settings(**changes):
    options = {
        "model": MODEL,
        "batches": (1, 2),
        "contexts": (3, 5),
        "prompt": None,
        "prefill_tokens": 8,
        "dtype": "fp32",
        "usd_per_hour": None,
        "total_limit_s": 1e6,
        **changes,
    }
    return Settings(**options)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Ceilings of small matrices, and no interpreter: its checks have tests of their own."""
    monkeypatch.setattr(ceilings, "SQUARE_SIZES", {"cpu": (8,), "cuda": (8,)})
    monkeypatch.setattr(session, "check_in_interpreter", lambda *_args, **_options: iter(()))
    for module in (session, rounds):
        monkeypatch.setattr(module, "ROUNDS", 4)


def small_device(**options):
    return FakeDevice(**{"free_bytes": 2**21, **options})


def run(device=None, progress=lambda _done, _what: None, **changes):
    asked, device = settings(**changes), device or small_device()
    result = session.begin(asked, device)
    session.measure(result, asked, device, progress)
    return result


def as_json(result):
    """The run as it is written, which must be JSON in the strict sense."""
    return json.loads(json.dumps(result.to_json(), allow_nan=False))


def test_begin_measures_nothing():
    result = session.begin(settings(), small_device())
    assert (result.ceilings, result.rows, result.gaps, result.interpreter_checks) == ([], [], [], [])
    assert result.environment["device"]["name"] == "a device of the tests"


def test_run_has_ceilings_rows_and_gaps():
    result = run(usd_per_hour=3.6)
    assert [c.kind for c in result.ceilings] == ["read_bandwidth", "copy_bandwidth", *["matmul"] * 3]
    assert {row.status for row in result.rows} == {"ok", "unsupported"}
    assert [(gap.batch, gap.context, gap.prompt) for gap in result.gaps] == [
        (1, 3, 3),
        (1, 5, 5),
        (2, 3, 3),
        (2, 5, 5),
    ]
    assert {gap.usd_per_hour for gap in result.gaps} == {3.6}
    assert not result.interrupted
    assert not result.failures
    stored = as_json(result)
    assert stored["schema_version"] == SCHEMA_VERSION
    assert len(stored["rows"]) == len(result.rows)


def test_same_seed_gives_the_same_gate_errors():
    first, second = (run(batches=(1,), contexts=(3,), seed=5) for _ in range(2))
    assert [row.relative_error for row in first.rows] == [row.relative_error for row in second.rows]


def test_progress_grows_from_0_to_1():
    calls = []
    run(progress=lambda done, what: calls.append((done, what)), total_limit_s=5.0)
    shares = [done for done, _ in calls]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert all(what for _, what in calls)
    assert len(set(shares)) > 10


@pytest.mark.parametrize("interpreting", [True, False])
def test_kernels_are_checked_when_triton_interprets(monkeypatch, interpreting):
    check = InterpreterCheck(
        case=MODEL, provider="triton", status="failed", reason="no", relative_error=None, tolerance=None
    )
    monkeypatch.setattr(session, "interpreting", lambda: interpreting)
    monkeypatch.setattr(session, "check_in_interpreter", lambda *_args, **_options: iter([check]))
    result = run(batches=(1,), contexts=(3,))
    assert result.interpreter_checks == ([check] if interpreting else [])
    assert result.failures == ([check] if interpreting else [])


@pytest.mark.parametrize("rows_before", [0, 1, 7])
def test_interrupt_keeps_the_rows_and_marks_the_run(monkeypatch, rows_before):
    plain, left = session.run_case, iter(range(rows_before))

    def interrupted(case, bench, earlier):
        for row in plain(case, bench, earlier):
            if next(left, None) is None:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(session, "run_case", interrupted)
    result = run()
    assert result.interrupted
    assert len(result.rows) == rows_before
    assert len(result.ceilings) == 5
    assert result.gaps == []
    assert as_json(result)["interrupted"] is True


def test_broken_device_keeps_the_rows_and_the_reason(monkeypatch):
    first = session.run_case

    def breaking(case, bench, earlier):
        yield from first(case, bench, earlier)
        raise RuntimeError("an illegal memory\naccess was encountered")

    monkeypatch.setattr(session, "run_case", breaking)
    result = run()
    assert result.broken == "RuntimeError: an illegal memory access was encountered"
    assert result.rows
    assert not result.interrupted
    assert as_json(result)["broken"] == result.broken


@pytest.mark.parametrize(
    ("earlier", "measured", "kept"), [(None, 0.4, 0.4), (0.5, 0.4, 0.5), (0.3, None, 0.3), (None, None, None)]
)
def test_run_records_the_load_of_other_processes_and_warns(monkeypatch, earlier, measured, kept):
    monkeypatch.setattr(session, "other_load", lambda _before, _after: measured)
    asked, device = settings(batches=(1,), contexts=(3,)), small_device()
    result = session.begin(asked, device)
    result.other_load = earlier  # of the run that goes on
    session.measure(result, asked, device, lambda _done, _what: None)
    assert result.other_load == kept
    told = kept and f"the machine was disturbed: other processes used {kept:.0%} of the cores"
    assert (told in as_json(result)["warnings"]) == (kept is not None)


def test_gaps_have_intervals_from_the_rounds_of_the_run():
    [found] = run(batches=(1,), contexts=(3,)).gaps
    assert len(found.rounds) >= 3
    assert found.gap_interval.holds(found.gap)
    assert found.input_s_per_token_interval.holds(found.input_s_per_token)


def test_interrupt_after_the_first_batch_keeps_its_gaps(monkeypatch):
    # The LM heads come last, so that a gap needs them measured before.
    plain = session.run_case

    def interrupted(case, bench, earlier):
        if case.id.startswith("decode/lm_head/m2"):
            raise KeyboardInterrupt
        yield from plain(case, bench, earlier)

    monkeypatch.setattr(session, "run_case", interrupted)
    assert [gap.batch for gap in run().gaps] == [1, 1]


@pytest.mark.parametrize("dtype", ["auto", "fp32"])
def test_interrupt_during_the_ceilings_is_a_run_without_rows(monkeypatch, dtype):
    def interrupted(*_args, **_options):
        yield (
            "read bandwidth",
            Ceiling(kind="read_bandwidth", provenance="measured", bandwidth_bytes_per_s=1.0),
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "measure_ceilings", interrupted)
    result = run(dtype=dtype)
    assert result.interrupted
    assert (len(result.ceilings), result.rows, result.gaps) == (1, [], [])
    assert as_json(result)["rows"] == []


def rates(**flop_per_s):
    """Measured ceilings of these rates by dtype; a rate of None is an unsupported dtype."""
    return [
        Ceiling(
            kind="matmul",
            provenance="measured",
            dtype=dtype,
            flop_per_s=rate,
            reason="not supported" if rate is None else None,
        )
        for dtype, rate in flop_per_s.items()
    ]


@pytest.mark.parametrize(
    ("kind", "flop_per_s", "chosen"),
    [
        ("cpu", {"bf16": 2e11, "fp16": 1e9, "fp32": 1e11}, "bf16"),
        ("cpu", {"bf16": 1e10, "fp16": 9e11, "fp32": 1e11}, "fp32"),
        ("cpu", {"bf16": None, "fp16": 9e11, "fp32": 1e11}, "fp32"),
        ("cuda", {"bf16": 7e14, "fp16": 8e14, "fp32": 5e13}, "bf16"),
        ("cuda", {"bf16": None, "fp16": 6e13, "fp32": 8e12}, "fp16"),
        pytest.param("cuda", {"bf16": 2e12, "fp16": 6e13, "fp32": 8e12}, "fp16", id="cuda-bf16 emulated"),
    ],
)
def test_auto_dtype_is_chosen_from_measured_rates(monkeypatch, kind, flop_per_s, chosen):
    bandwidth = Ceiling(kind="read_bandwidth", provenance="measured", bandwidth_bytes_per_s=1e9)
    measured = [bandwidth, *rates(**flop_per_s)]
    monkeypatch.setattr(session, "measure_ceilings", lambda *_a, **_k: (("x", c) for c in measured))
    monkeypatch.setattr(session, "run_case", lambda _case, _bench, _earlier: iter(()))
    result = run(small_device(kind=kind), dtype="auto")
    assert result.dtype == chosen
    assert result.settings["dtype_asked"] == "auto"


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_given_dtype_is_used(dtype):
    result = run(dtype=dtype, batches=(1,), contexts=(3,))
    assert {row.case.dtype for row in result.rows} == {dtype}


GB = 10**9


@pytest.mark.parametrize(
    ("changes", "free_bytes", "message"),
    [
        pytest.param({"prefill_tokens": 10**7}, GB, "--prefill-tokens: 10000000 needs", id="prefill"),
        pytest.param({"contexts": (3, 10**8)}, GB, "--context: 100000000 needs", id="context"),
        pytest.param({"batches": (10**7, 10**8)}, GB, "--batch: 10000000 needs", id="batch"),
        pytest.param({"batches": (1, 10**7)}, GB, "--batch: 10000000 needs", id="one batch of several"),
        pytest.param({"prompt": 10**8}, GB, "--prompt: 100000000 needs", id="prompt"),
    ],
)
def test_rejects_sweep_that_cannot_fit_and_names_the_option(changes, free_bytes, message):
    with pytest.raises(UsageError) as caught:
        check_memory(settings(**changes), small_device(free_bytes=free_bytes))
    text = str(caught.value)
    assert text.startswith(message)
    assert text.endswith("GB are free on a device of the tests")
    assert "\n" not in text


@pytest.mark.parametrize("changes", [{}, {"batches": (1, 2)}, {"prompt": 9}, {"dtype": "auto"}], ids=str)
def test_accepts_sweep_whose_smallest_case_fits(changes):
    check_memory(settings(**changes), small_device(free_bytes=GB))


def test_case_that_does_not_fit_is_skipped():
    result = run(batches=(1, 10**5), contexts=(3,))
    by_batch = {row.case.id: row.status for row in result.rows if row.provider == "torch"}
    assert by_batch["decode/attention/b1-c3-q4-kv2-d16/fp32"] == "ok"
    assert by_batch["decode/attention/b100000-c3-q4-kv2-d16/fp32"] == "skipped"
    assert [gap.batch for gap in result.gaps] == [1]


def test_unknown_device_has_no_datasheet():
    assert datasheet_ceilings(None) == []
    assert gpu_of_device(FakeDevice.name) is None


def test_run_has_datasheet_and_measured_ceilings():
    found = datasheet_ceilings(gpu_of_device(H100))
    assert [(c.kind, c.dtype) for c in found] == [
        ("read_bandwidth", None),
        ("matmul", "bf16"),
        ("matmul", "fp16"),
    ]
    assert found[0].bandwidth_bytes_per_s == 3350e9
    assert {c.flop_per_s for c in found[1:]} == {989e12}
    assert {c.provenance for c in found} == {"datasheet"}
    for ceiling in found:
        assert ceiling.detail == "H100-SXM5-80GB, NVIDIA H100 datasheet; dense rates"
        assert (tuple(ceiling.samples_s), ceiling.work) == ((), None)


def test_datasheet_ceilings_carry_their_footnotes():
    peaks = gpu_of_device("H800-SXM")
    bandwidth, bf16, *_ = datasheet_ceilings(peaks)
    assert bandwidth.detail.endswith("(assumed as H100 SXM, unverified)")
    assert bf16.detail.endswith("(assumed as H100 SXM, unverified)")


@pytest.mark.parametrize(
    ("kind", "name", "asked", "expected"),
    [
        pytest.param(
            "cuda", H100, None, (2.95, "on demand, Nebius via SkyPilot v8 catalog (undated)"), id="default"
        ),
        pytest.param("cuda", H100, 7.0, (7.0, "--usd-per-hour"), id="asked"),
        pytest.param("cuda", H100, 0.0, (0.0, "--usd-per-hour"), id="asked to be free"),
        pytest.param("cuda", "Some GPU", None, (None, None), id="unknown GPU"),
        pytest.param("cpu", H100, None, (None, None), id="CPU"),
    ],
)
def test_price_is_given_or_the_cited_default(kind, name, asked, expected):
    device = small_device(kind=kind, memory_bytes=80 * 2**30)
    device.name = name
    found = session.begin(settings(usd_per_hour=asked), device).settings
    assert (found["usd_per_hour"], found["usd_per_hour_source"]) == expected


def test_begin_on_a_known_gpu_has_datasheet_ceilings():
    device = small_device(kind="cuda", memory_bytes=80 * 2**30)
    device.name = H100
    assert {c.provenance for c in session.begin(settings(), device).ceilings} == {"datasheet"}


def test_run_on_this_cpu(monkeypatch):
    processor = device.CpuDevice()
    processor.cache_bytes = 4096
    monkeypatch.setattr(processor, "release", lambda: None)  # collecting all garbage takes its time
    monkeypatch.setattr(processor, "free_bytes", lambda: 2**21)
    result = run(processor, dtype="auto", total_limit_s=2.0, batches=(1,), contexts=(3,))
    assert result.dtype in {"bf16", "fp32"}
    for row in result.rows:
        on_gpus = row.provider.startswith("triton") or row.provider in {
            "flashinfer",
            "flash-attn",
            "torch-flex",
        }
        assert (row.status == "ok") == (not on_gpus), row
        if row.status == "ok":
            assert len(row.samples_s) >= 3
            assert min(row.samples_s) > 0
            assert row.method == "cpu: each call"
    assert len(result.gaps) == 1


@pytest.mark.parametrize("factor", [1.05, float("nan")], ids=["scale", "NaN"])
def test_wrong_kernel_makes_failed_rows_and_no_gap(monkeypatch, factor):
    providers = dict(runner.PROVIDERS)
    faulty = [
        dataclasses.replace(p, run=lambda inputs, p=p: p.run(inputs) * factor)
        for p in providers["decode_attention"]
    ]
    monkeypatch.setattr(runner, "PROVIDERS", {**providers, "decode_attention": faulty})
    result = run(batches=(1,))
    failed = [row for row in result.rows if row.status == "failed"]
    assert {row.case.operation for row in failed} == {"decode_attention"}
    assert result.failures == failed
    assert result.gaps == []
    for row in as_json(result)["rows"]:
        without_figures = (row["samples_s"], row["time_s"], row["figures"]) == ([], None, None)
        assert without_figures == (row["status"] != "ok")


def test_run_gates_and_times_user_functions(monkeypatch, tmp_path):
    product = "def product(x, weight):\n    return x @ weight.t()\n"
    wrong = "def wrong(x, weight):\n    return 1.01 * (x @ weight.t())\n"
    (tmp_path / "run_under_test.py").write_text(product + wrong, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("run_under_test:product", "run_under_test:wrong")
    result = run(providers=names)
    statuses = {(row.case.operation, row.provider, row.status) for row in result.rows}
    assert ("prefill_matmul", names[0], "ok") in statuses
    assert ("prefill_matmul", names[1], "failed") in statuses
    assert settings_of(result).providers == names


def test_garbage_collector_is_frozen_during_a_run_only():
    frozen = []
    run(batches=(1,), contexts=(3,), progress=lambda *_: frozen.append(gc.get_freeze_count()))
    assert min(frozen) > 0
    assert gc.get_freeze_count() == 0


def test_whole_model_is_measured_after_the_rounds_unless_left_out():
    assert run().whole_model is None
    result = run(whole_model="measure")
    assert [f.status for f in result.whole_model.forwards] == ["ok"] * 3
    assert result.whole_model.elapsed_s >= 0
    assert as_json(result)["whole_model"]["layers"] == MODEL.layers


def test_whole_model_takes_its_share_of_the_time_limit(monkeypatch):
    limits = []
    monkeypatch.setattr(session, "measure_whole_model", lambda bench, *_: limits.append(bench.limit_s))
    deadlines = []
    monkeypatch.setattr(session, "Deadline", lambda limit_s: deadlines.append(limit_s) or Deadline(limit_s))
    run(whole_model="transformers", total_limit_s=1000.0)
    assert (limits, deadlines) == ([180.0], [820.0])


def test_a_continued_run_measures_a_whole_model_that_it_lacks():
    asked, device = settings(whole_model="measure"), small_device()
    result = session.begin(asked, device)
    session.measure(result, asked, device, lambda *_: None)
    rows, found = list(result.rows), result.whole_model
    session.measure(result, asked, device, lambda *_: None)
    assert result.whole_model is found
    result.whole_model = None
    session.measure(result, asked, device, lambda *_: None)
    assert [f.status for f in result.whole_model.forwards] == ["ok"] * 3
    assert result.rows == rows
