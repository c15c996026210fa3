"""Rows: gated before they are timed, verified after, and whatever goes wrong becomes a reason."""

import dataclasses
import errno
import gc
import math
import re
import subprocess
import weakref

import pytest
import torch
from decodetax import kernels
from decodetax.harness.bench import runner
from decodetax.harness.bench.providers import Provider
from decodetax.harness.bench.tilings import Tunable
from decodetax.harness.bench.timer import Budget
from decodetax.harness.core.arena import Arena
from decodetax.harness.core.records import Roof
from fakes import BRIEF, FakeClocks, FakeDevice, bench
from small_cases import decode_case, layer_case, matmul_case, prompt_case

CASE = matmul_case()


def right(inputs):
    return torch.matmul(inputs.x, inputs.weight.t(), out=inputs.out)


def wrong(inputs):
    return right(inputs).mul_(1.01)


def with_providers(monkeypatch, *runs, **refusals):
    """Only these providers, named after their functions."""
    providers = [Provider(name=run.__name__, run=run) for run in runs]
    providers += [
        Provider(name=name, run=right, refuses=lambda _case, _device, reason=reason: reason)
        for name, reason in refusals.items()
    ]
    monkeypatch.setattr(runner, "PROVIDERS", {CASE.operation: providers})


def rows_of(monkeypatch, *runs, device=None, case=CASE, budget=BRIEF, **refusals):
    with_providers(monkeypatch, *runs, **refusals)
    return list(runner.run_case(case, bench(device or FakeDevice(), budget=budget)))


@pytest.mark.parametrize("graphs", [False, True], ids=["calls", "graph"])
def test_right_provider_is_timed(monkeypatch, graphs):
    seconds = 10e-6 if graphs else 1e-3
    device = FakeDevice(kind="cuda", graphs=graphs, seconds_of=lambda _call: seconds)
    [row] = rows_of(monkeypatch, right, device=device)
    assert (row.status, row.reason, row.provider) == ("ok", None, "right")
    assert row.samples_s == pytest.approx([seconds] * len(row.samples_s))
    assert row.relative_error <= row.tolerance
    assert row.input_copies == 2
    assert ("graph" in row.method) == graphs


@pytest.mark.parametrize(
    "case",
    [CASE, decode_case(), prompt_case(), layer_case("prefill"), layer_case("decode")],
    ids=lambda case: f"{case.phase} {case.part}",
)
def test_real_providers_give_ok_or_unsupported_rows(case):
    rows = list(runner.run_case(case, bench(FakeDevice())))
    found = {row.provider: row.status for row in rows}
    assert found["torch"] == "ok"
    assert found.get("triton", "unsupported") == "unsupported"
    assert set(found.values()) <= {"ok", "unsupported"}


def best_of(monkeypatch, seconds, *, wrong_ones=(), refusing=(), tuned=False, raising=()):
    """Rows of variants that take these seconds, and of the provider that stands for the best of them."""
    made = {}

    def provider(name):
        def run(inputs):
            made["called"] = name
            if name in raising:
                raise RuntimeError("no registers left")
            return (wrong if name in wrong_ones else right)(inputs)

        refuses = lambda _case, _device: "not on this GPU" if name in refusing else None  # noqa: E731
        return Provider(name=name, run=run, refuses=refuses, variant=name)

    def cut(inputs, _tiling):
        made["called"] = "tuned"
        return right(inputs)

    default = kernels.MatmulTiling(
        block_m=16, block_n=16, block_k=16, group_m=1, num_splits=1, num_warps=4, num_stages=2
    )
    tunable = Tunable(key=None, default=None, candidates=None, run=cut, tiling=kernels.MatmulTiling)
    last = Provider(name="best", run=wrong, best_of=tuple(seconds), tunable=tunable)
    providers = {CASE.operation: [*map(provider, seconds), last]}
    monkeypatch.setattr(runner, "PROVIDERS", providers)
    device = FakeDevice(seconds_of=lambda _call: {**seconds, "tuned": 9.0}[made["called"]])
    of_case = {"tiling_of": lambda _case: default} if tuned else {}
    return list(runner.run_case(CASE, dataclasses.replace(bench(device), **of_case)))


def test_alias_is_the_fastest_correct_variant_with_its_own_samples(monkeypatch):
    *variants, best = best_of(monkeypatch, {"a": 3e-3, "b": 1e-3, "c": 2e-3}, wrong_ones=("b",))
    assert [row.status for row in variants] == ["ok", "failed", "ok"]
    assert [row.variant for row in variants] == ["a", "b", "c"]
    assert (best.provider, best.status, best.variant, best.tiling) == ("best", "ok", "c", None)
    assert best.time_s.median == pytest.approx(2e-3)
    assert best.samples_s is not variants[2].samples_s


def test_alias_ignores_variants_that_do_not_run(monkeypatch):
    *_, best = best_of(monkeypatch, {"a": 3e-3, "b": 1e-3}, refusing=("b",))
    assert (best.status, best.variant) == ("ok", "a")


def test_alias_without_a_correct_variant_gives_the_reason(monkeypatch):
    *_, best = best_of(monkeypatch, {"a": 3e-3, "b": 1e-3}, refusing=("a",), raising=("b",))
    assert (best.status, best.variant) == ("failed", None)
    assert best.reason == "none of its variants passed; b: RuntimeError: no registers left"
    *_, best = best_of(monkeypatch, {"a": 3e-3}, wrong_ones=("a",))
    assert best.status == "failed"
    assert best.reason.startswith("none of its variants passed; a: wrong result")


def test_alias_keeps_its_variant_in_later_rounds(monkeypatch):
    seconds = {"a": 3e-3, "b": 1e-3}
    earlier = {row.provider: row for row in best_of(monkeypatch, seconds)}
    *_, best = runner.run_case(CASE, dataclasses.replace(bench(FakeDevice()), round=1), earlier)
    assert (best.provider, best.variant, best.rounds) == ("best", "b", (1,) * len(best.samples_s))


def test_tuned_tiling_takes_precedence_over_the_best_variant(monkeypatch):
    *_, best = best_of(monkeypatch, {"a": 3e-3, "b": 1e-3}, tuned=True)
    assert (best.status, best.variant) == ("ok", "pointers")
    assert best.tiling["block_m"] == 16
    assert best.time_s.median == pytest.approx(9.0)


def test_wrong_provider_is_never_timed(monkeypatch):
    log = []

    def counted(inputs):
        log.append("call")
        return wrong(inputs)

    [row, other] = rows_of(monkeypatch, counted, right)
    assert log == ["call"]
    assert (row.status, tuple(row.samples_s), row.method) == ("failed", (), None)
    assert row.reason.startswith("wrong result: relative error 0.01")
    assert row.relative_error == pytest.approx(0.01, rel=0.01)
    assert other.status == "ok"


def later(first, then):
    """A provider that changes after its first call."""
    calls = []

    def changing(inputs):
        calls.append(inputs)
        return (first if len(calls) == 1 else then)(inputs)

    return changing


def stale(inputs):
    return inputs.out


def truncated(inputs):
    return right(inputs)[:-1]


@pytest.mark.parametrize("then", [wrong, stale], ids=lambda run: run.__name__)
@pytest.mark.parametrize("seconds", [10e-6, 1e-3, 10.0], ids=["graph", "calls", "long calls"])
def test_provider_that_becomes_wrong_during_timing_fails(monkeypatch, then, seconds):
    device = FakeDevice(kind="cuda", graphs=True, seconds_of=lambda _call: seconds)
    [row] = rows_of(monkeypatch, later(right, then), device=device)
    assert (row.status, tuple(row.samples_s)) == ("failed", ())
    assert row.reason.startswith("wrong result")


def test_output_that_no_sample_writes_is_found_stale(monkeypatch):
    device = FakeDevice()
    sampling = []
    plain = runner._poison_outputs
    monkeypatch.setattr(runner, "_poison_outputs", lambda calls: (plain(calls), sampling.append(True)))

    def idle(inputs):
        return inputs.out if sampling else right(inputs)

    [row] = rows_of(monkeypatch, idle, device=device, budget=Budget(time_limit_s=0.01, warm_up_s=0.005))
    assert sampling
    assert row.status == "failed"
    assert "relative error inf in row 0" in row.reason


def test_graph_that_computes_nothing_is_found(monkeypatch):
    device = FakeDevice(kind="cuda", graphs=True, seconds_of=lambda _call: 10e-6)

    def empty_graph(_calls):
        def replay():
            pass

        return replay

    monkeypatch.setattr(device, "capture", empty_graph)
    [row] = rows_of(monkeypatch, right, device=device)
    assert (row.status, row.relative_error) == ("failed", math.inf)


def test_outputs_are_poisoned_before_the_first_call(monkeypatch):
    [row] = rows_of(monkeypatch, stale)
    assert (row.status, row.relative_error) == ("failed", math.inf)


def test_output_of_one_provider_does_not_help_the_next(monkeypatch):
    calls = []

    def idle(inputs):
        calls.append(inputs)
        return inputs.out

    first, second = rows_of(monkeypatch, right, idle)
    assert (first.status, second.status) == ("ok", "failed")
    assert len(calls) == 1  # it did not pass the gate before it was timed


def test_first_call_on_a_gpu_is_no_estimate_of_later_ones(monkeypatch):
    seconds = iter([10.0])
    device = FakeDevice(kind="cuda", graphs=True, seconds_of=lambda _call: next(seconds, 10e-6))
    [row] = rows_of(monkeypatch, right, device=device)
    assert "graph" in row.method


def raising(error):
    def broken(_inputs):
        raise error

    return broken


class UnprintableError(Exception):
    def __str__(self):
        raise ValueError


ERRORS = [
    (UnprintableError(), "failed", "UnprintableError"),
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        "skipped",
        "out of memory: CUDA out of memory. Tried",
    ),
    (MemoryError(), "skipped", "out of memory: MemoryError"),
    (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 7 bytes"),
        "skipped",
        "out of memory: DefaultCPUAllocator: can't allocate memory: 7 bytes",
    ),
    (NotImplementedError("no such op"), "unsupported", "no such op"),
    (NotImplementedError(), "unsupported", "NotImplementedError"),
    (
        RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'"),
        "unsupported",
        "\"addmm_impl_cpu_\" not implemented for 'Half'",
    ),
    (
        subprocess.CalledProcessError(1, ["ptxas", "-v"]),
        "failed",
        "CalledProcessError: Command '['ptxas', '-v']' returned non-zero exit status 1.",
    ),
    (ValueError("x has\n  two lines"), "failed", "ValueError: x has two lines"),
    (RuntimeError(), "failed", "RuntimeError"),
    (RuntimeError("word " * 500), "failed", "RuntimeError: " + "word " * 59 + "word"),
    (AssertionError("no"), "failed", "AssertionError: no"),
]


@pytest.mark.parametrize(
    ("error", "status", "reason"), ERRORS, ids=[f"{type(e).__name__}-{s}-{len(r)}" for e, s, r in ERRORS]
)
@pytest.mark.parametrize("when", ["at the gate", "while timed"])
def test_error_becomes_a_status_and_a_reason_and_the_run_goes_on(monkeypatch, error, status, reason, when):
    broken = raising(error) if when == "at the gate" else later(right, raising(error))
    [row, other] = rows_of(monkeypatch, broken, right)
    assert (row.status, row.reason, tuple(row.samples_s)) == (status, reason, ())
    assert other.status == "ok"


LAUNCHER_ERRORS = [
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable or set triton.knobs"),
    subprocess.CalledProcessError(1, ["/usr/bin/gcc", "cuda_utils.c", "-O3", "-shared", "-fPIC"]),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "no-such-cc"),
    AssertionError("libcuda.so cannot found!\nPlease make sure GPU is set up"),
]


@pytest.mark.parametrize("error", LAUNCHER_ERRORS, ids=lambda error: type(error).__name__)
def test_row_without_a_launcher_is_unsupported_and_says_why(monkeypatch, error):
    monkeypatch.setenv("CC", "no-such-cc")
    [row] = rows_of(monkeypatch, raising(error))
    assert row.status == "unsupported"
    assert row.reason.startswith("Triton cannot compile its C launcher: ")
    assert "no-such-cc" in row.reason
    assert "No such file" in row.reason


def test_output_of_another_shape_fails(monkeypatch):
    [row] = rows_of(monkeypatch, truncated)
    assert row.status == "failed"
    assert "shape" in row.reason


def test_refused_case_is_unsupported_and_draws_no_inputs(monkeypatch):
    monkeypatch.setattr(Arena, "copies_of", raising(AssertionError("inputs were drawn")))
    rows = rows_of(monkeypatch, fast="needs a GPU", faster="needs two")
    assert [(row.status, row.reason) for row in rows] == [
        ("unsupported", "needs a GPU"),
        ("unsupported", "needs two"),
    ]


@pytest.mark.parametrize(
    ("roof", "free_bytes", "status", "reason"),
    [
        pytest.param(
            Roof(flop_per_s=1e12, bandwidth_bytes_per_s=1e12),
            -(2**23),
            "skipped",
            r"needs 0\.0 GB of memory, -?0\.0 GB are free",
            id="too large",
        ),
        pytest.param(
            Roof(flop_per_s=100, bandwidth_bytes_per_s=1e12),
            2**30,
            "skipped",
            r"one call would take 231 s or more, over {limit} s",
            id="too slow",
        ),
        pytest.param(
            Roof(flop_per_s=1e12, bandwidth_bytes_per_s=100),
            2**30,
            "skipped",
            r"one call would take 113 s or more, over {limit} s",
            id="too many bytes",
        ),
        pytest.param(
            Roof(flop_per_s=None, bandwidth_bytes_per_s=1e12),
            2**30,
            "unsupported",
            r"no fp32 matmul runs on this device",
            id="dtype",
        ),
    ],
)
def test_case_that_cannot_run_is_skipped_or_unsupported(monkeypatch, roof, free_bytes, status, reason):
    with_providers(monkeypatch, raising(AssertionError("it was run")), other="refused")
    device = FakeDevice(free_bytes=free_bytes)
    of_device = dataclasses.replace(bench(device, roof=roof), longest_call_s=20.0)
    row, refused = runner.run_case(CASE, of_device)
    assert row.status == status
    assert re.fullmatch(reason.format(limit="20"), row.reason)
    assert (refused.status, refused.reason) == ("unsupported", "refused")


def test_case_without_a_known_bandwidth_is_run(monkeypatch):
    with_providers(monkeypatch, right)
    roof = Roof(flop_per_s=1e12, bandwidth_bytes_per_s=None)
    [row] = runner.run_case(CASE, bench(FakeDevice(), roof=roof))
    assert row.status == "ok"


@pytest.mark.parametrize(("error", "status"), [(MemoryError(), "skipped"), (RuntimeError("odd"), "failed")])
@pytest.mark.parametrize(("owner", "step"), [(Arena, "copies_of"), (runner, "gate_of")], ids=str)
def test_inputs_that_cannot_be_made_block_every_provider(monkeypatch, owner, step, error, status):
    monkeypatch.setattr(owner, step, lambda *_args, **_options: raising(error)(None))
    rows = rows_of(monkeypatch, right, right)
    assert [row.status for row in rows] == [status, status]


def test_inputs_that_did_not_fit_are_released(monkeypatch):
    held = []

    def half_made(*_args, **_options):
        partial = torch.zeros(5)
        held.append(weakref.ref(partial))
        raise MemoryError

    monkeypatch.setattr(Arena, "copies_of", half_made)
    device = FakeDevice()
    alive = []
    monkeypatch.setattr(device, "release", lambda: alive.append(held[0]() is not None))
    gc.collect()
    rows = rows_of(monkeypatch, right, device=device)
    assert [row.status for row in rows] == ["skipped"]
    assert alive == [False]


def test_memory_is_kept_from_case_to_case(monkeypatch):
    device = FakeDevice()
    rows_of(monkeypatch, right, wrong, device=device)
    assert device.released == 0


def test_oracle_of_a_case_is_computed_once(monkeypatch):
    computed, plain = [], runner.gate_of
    monkeypatch.setattr(runner, "gate_of", lambda *given: computed.append(given) or plain(*given))
    with_providers(monkeypatch, right)
    of_device = bench(FakeDevice())
    [row] = runner.run_case(CASE, of_device)
    [later] = runner.run_case(CASE, dataclasses.replace(of_device, round=1), {row.provider: row})
    assert (row.status, later.status) == ("ok", "ok")
    assert len(computed) == 1


def test_what_a_case_wrote_is_put_back(monkeypatch):
    def writes(inputs):
        of_device.arena.writable(inputs.weight).zero_()
        return right(inputs)

    with_providers(monkeypatch, writes)
    of_device = bench(FakeDevice())
    list(runner.run_case(CASE, of_device))
    assert of_device.arena.intact()


def test_row_keeps_clocks_and_throttle_reasons(monkeypatch):
    device = FakeDevice(clocks=FakeClocks(1.5e9, 1.2e9, throttle_reasons=("power cap",)))
    [row] = rows_of(monkeypatch, right, device=device)
    assert (row.clock_before_hz, row.clock_after_hz) == (1.5e9, 1.2e9)
    assert list(row.throttle_reasons) == ["power cap"]
    assert row.status == "ok"


@pytest.mark.parametrize("first_s", [45e-6, 55e-6])
def test_later_round_is_timed_by_the_method_of_the_first(monkeypatch, first_s):
    seconds = [first_s]
    with_providers(monkeypatch, right)
    device = FakeDevice(kind="cuda", graphs=True, seconds_of=lambda _call: seconds[0])
    of_device = bench(device, budget=Budget(time_limit_s=0.002, warm_up_s=0.001))
    [row] = runner.run_case(CASE, of_device)
    seconds[0] = 100e-6 - first_s
    [later] = runner.run_case(CASE, dataclasses.replace(of_device, round=1), {row.provider: row})
    assert ("graph" in row.method) == (first_s < 50e-6)
    assert later.method == row.method


def test_every_copy_is_used_in_turn(monkeypatch):
    seen = []

    def watched(inputs):
        seen.append(id(inputs))
        return right(inputs)

    device = FakeDevice(cache_bytes=30_000)
    [row] = rows_of(monkeypatch, watched, device=device, budget=Budget(time_limit_s=1.0, warm_up_s=0.0))
    assert row.input_copies > 5
    assert len(set(seen)) == row.input_copies
    assert len(row.samples_s) >= row.input_copies


def test_interrupt_passes_through(monkeypatch):
    with_providers(monkeypatch, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        list(runner.run_case(CASE, bench(FakeDevice())))
