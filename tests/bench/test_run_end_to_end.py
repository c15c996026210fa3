"""`decodetax run` on a tiny model, from the command to its JSON, and with kernels broken on purpose."""

import contextlib
import fcntl
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from unittest import mock

import pytest
from hand_made import CONFIG, ceilings, decodetax, strict_json, write_config

BATCH, CONTEXTS, PREFILL_TOKENS = 3, (16, 40), 32
ARGUMENTS = (
    *("--device", "cpu", "--quick", "--model", "config.json", "-o", "out.json"),
    *("--batch", "3", "--context", "16,40", "--prefill-tokens", "32", "--whole-model", "measure"),
)
SMALLEST = (
    *("--device", "cpu", "--quick", "--model", "config.json", "-o", "out.json"),
    *("--batch", "3", "--context", "40", "--prefill-tokens", "32", "--dtype", "fp32"),
)
SESSION = "decodetax.harness.bench.session"


def environment():
    """A user's environment, without TRITON_INTERPRET, and with one thread, as other tests may run too."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, worker_id):
    """Folder of one complete run, made once however many processes share the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished-run"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done.json").exists():
            write_config(folder)
            start_s = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "decodetax.harness", "run", *ARGUMENTS],
                cwd=folder,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            outcome = {"code": done.returncode, "out": done.stdout, "err": done.stderr}
            outcome["elapsed_s"] = time.perf_counter() - start_s
            (folder / "done.json").write_text(json.dumps(outcome), encoding="utf-8")
    return folder


@pytest.fixture
def outcome(finished):
    return json.loads((finished / "done.json").read_text(encoding="utf-8"))


@pytest.fixture
def document(finished):
    return strict_json((finished / "out.json").read_text(encoding="utf-8"))


def test_run_succeeds_in_time(outcome):
    assert outcome["code"] == 0, outcome["err"]
    assert "Traceback" not in outcome["err"]
    assert outcome["elapsed_s"] < 60  # about 15 s alone; other tests may run too


def test_run_prints_machine_tables_and_sentences(outcome):
    text = outcome["out"]
    titles = [
        "CPU: ",
        "Software: ",
        "Model: ",
        "Ceilings",
        "Kernels that were timed (measured)",
        "Kernels that were not timed",
        "Triton kernels in the",
        "Gap: ",
    ]
    titles += [
        "This device balances at ",
        "An output token costs ",
        "At batch 3 and context 16",
        "Run written to",
    ]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    for name in ("python ", "torch ", "triton ", "commit "):
        assert name in text
    assert "$" not in text


def test_run_writes_only_its_json(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.json", "out.json", "lock", "done.json"}


def test_ceilings_are_measured_and_recompute(document):
    found = {(c["kind"], c["dtype"]): c for c in document["ceilings"]}
    kinds = [("read_bandwidth", None), ("copy_bandwidth", None)]
    assert set(found) == {*kinds, *(("matmul", dtype) for dtype in ("bf16", "fp16", "fp32"))}
    for (kind, _), ceiling in found.items():
        assert ceiling["provenance"] == "measured"
        if ceiling["reason"]:
            continue
        rate = ceiling["flop_per_s" if kind == "matmul" else "bandwidth_bytes_per_s"]
        assert rate == pytest.approx(sum(ceiling["work"].values()) / min(ceiling["samples_s"]))
    for kind in (*kinds, ("matmul", "fp32")):
        assert found[kind]["reason"] is None
        assert found[kind]["samples_s"]


def test_every_case_has_an_ok_row_by_torch(document):
    by_torch = {row["case"]: row["status"] for row in document["rows"] if row["provider"] == "torch"}
    assert set(by_torch.values()) == {"ok"}
    # Prefill: 4 projections, 2 prompts, 1 layer; decode: 4 projections, 2 contexts, 1 layer; 2 LM heads.
    assert len(by_torch) == 7 + 7 + 2
    assert {row["status"] for row in document["rows"]} == {"ok", "unsupported"}


def test_triton_is_unsupported_on_a_cpu_with_a_reason(document):
    reasons = {row["reason"] for row in document["rows"] if row["provider"] == "triton"}
    [reason] = reasons
    assert "GPU" in reason


def test_rows_recompute_from_samples_work_and_ceilings(document):
    dtype = document["settings"]["dtype"]
    [flop_per_s] = [c["flop_per_s"] for c in document["ceilings"] if c["dtype"] == dtype]
    [bandwidth] = [c["bandwidth_bytes_per_s"] for c in document["ceilings"] if c["kind"] == "read_bandwidth"]
    for row in document["rows"]:
        if row["status"] != "ok":
            assert (row["samples_s"], row["time_s"], row["figures"]) == ([], None, None)
            assert row["reason"]
            continue
        operations, work = row["work"]["operations"], row["work"]
        total = work["bytes_read"] + work["bytes_written"]
        median = statistics.median(row["samples_s"])
        assert len(row["samples_s"]) >= 3
        assert min(row["samples_s"]) > 0
        assert row["time_s"]["median"] == median
        assert row["time_s"]["low"] <= median <= row["time_s"]["high"]
        figures = row["figures"]
        assert figures["flop_per_s"] == pytest.approx(operations / median)
        assert figures["bandwidth_bytes_per_s"] == pytest.approx(total / median)
        assert figures["operations_per_byte"] == pytest.approx(operations / total)
        least_s = max(operations / flop_per_s, total / bandwidth)
        assert figures["share_of_measured_ceiling"] == pytest.approx(least_s / median)
        assert figures["share_of_datasheet_ceiling"] is None
        assert 0 <= row["relative_error"] <= row["tolerance"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_gap_recomputes_from_rows(document, context):
    """From the shapes in the JSON, without the product's code."""
    batch = BATCH
    [found] = [g for g in document["gaps"] if (g["batch"], g["context"]) == (batch, context)]
    ok = [row for row in document["rows"] if row["status"] == "ok"]

    def seconds(phase, part, *, provider=None, **shape):
        medians = [
            statistics.median(row["samples_s"])
            for row in ok
            if row["case"].startswith(f"{phase}/{part}/")
            and (provider is None or row["provider"] == provider)
            and all(row["shape"][name] == value for name, value in shape.items())
        ]
        return min(medians)

    def projections(phase, rows, provider=None):
        parts = ("qkv", "o", "gate_up", "down")
        return sum(seconds(phase, part, rows=rows, provider=provider) for part in parts) / rows

    layers, prompt = CONFIG["num_hidden_layers"], context
    prompts = {16: 2, 40: 1}[prompt]  # as fill a forward of 32 tokens, at least one
    contexts = [context] * batch
    input_s = layers * projections("prefill", PREFILL_TOKENS)
    input_s += layers * seconds("prefill", "attention", prompt=prompt) / (prompts * prompt)
    input_s += seconds("prefill", "lm_head", rows=1) / prompt
    output_s = layers * projections("decode", batch)
    output_s += layers * seconds("decode", "attention", contexts=contexts) / batch
    output_s += seconds("decode", "lm_head", rows=batch) / batch
    # The rest of one layer, at the shortest prompt and context, by the provider that runs layers.
    whole_s = seconds("prefill", "layer", provider="torch") / 32
    parts_s = projections("prefill", PREFILL_TOKENS, "torch")
    parts_s += seconds("prefill", "attention", prompt=16, provider="torch") / 32
    input_s += layers * max(0.0, whole_s - parts_s)
    assert found["prefill_layer_over_parts"] == pytest.approx(whole_s / parts_s)
    whole_s = seconds("decode", "layer", provider="torch", sequences=batch) / batch
    parts_s = projections("decode", batch, "torch")
    parts_s += seconds("decode", "attention", contexts=[16] * batch, provider="torch") / batch
    output_s += layers * max(0.0, whole_s - parts_s)
    assert found["decode_layer_over_parts"] == pytest.approx(whole_s / parts_s)
    assert found["input_s_per_token"] == pytest.approx(input_s)
    assert found["output_s_per_token"] == pytest.approx(output_s)
    assert found["gap"] == pytest.approx(output_s / input_s)
    assert found["prompt"] == prompt
    assert found["triton_gap"] is None


def test_whole_model_recomputes_from_samples_and_gaps(document, outcome):
    gap = next(gap for gap in document["gaps"] if gap["context"] == 16)
    prefill, step = document["whole_model"]["forwards"]
    places = [(f["phase"], f["sequences"], f["tokens"], f["status"]) for f in (prefill, step)]
    assert places == [("prefill", 2, 16, "ok"), ("decode", 3, 16, "ok")]
    for forward, tokens, per_token in ((prefill, 32, "input"), (step, 3, "output")):
        assert (forward["layers"], forward["limited_by"]) == (CONFIG["num_hidden_layers"], None)
        assert forward["tokens_per_s"] == pytest.approx(tokens / statistics.median(forward["samples_s"]))
        assert forward["composed_tokens_per_s"] == pytest.approx(gap[f"{per_token}_tokens_per_s"])
        ratio = forward["composed_tokens_per_s"] / forward["tokens_per_s"]
        assert forward["composed_over_measured"] == pytest.approx(ratio)
        assert forward["relative_error"] <= forward["tolerance"]
    assert "The whole model, measured" in outcome["out"]


def test_all_kernels_agree_in_the_interpreter(document):
    checks = document["interpreter_checks"]
    kernels = {"prefill_matmul", "prefill_attention", "decode_attention"}
    assert {check["operation"] for check in checks} == kernels
    assert {check["status"] for check in checks} == {"ok"}
    for check in checks:
        assert 0 <= check["relative_error"] <= check["tolerance"]


def test_environment_has_machine_versions_and_commit(document):
    device, versions = document["environment"]["device"], document["environment"]["versions"]
    assert device["kind"] == "cpu"
    assert device["name"]
    assert device["memory_bytes"] > 2**28
    assert {"python", "torch", "triton", "cuda"} <= set(versions)
    assert "commit" in document["environment"]


# Broken on purpose. Ceilings are canned and few copies drawn, so that each run takes a second or two.


@pytest.fixture
def quickly(tmp_path, monkeypatch):
    """A folder to run in, with what takes long and is not looked at made short."""
    import torch  # noqa: PLC0415  (the other tests here run in processes of their own)
    from decodetax.harness.bench.timer import Budget  # noqa: PLC0415  (imports torch)

    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def brief(_share_s, *, first):
        return Budget(time_limit_s=0.005, warm_up_s=0.002 if first else 0.0)

    few = [
        ("ceiling", ceiling)
        for ceiling in ceilings(bandwidth_bytes_per_s=1e10, flop_per_s=1e11, dtype="fp32")
    ]
    with (
        mock.patch(f"{SESSION}.measure_ceilings", return_value=iter(few)),
        mock.patch(f"{SESSION}.round_budget", brief),
        mock.patch("decodetax.harness.core.arena.MAX_COPIES", 2),
    ):
        yield tmp_path
    torch.set_num_threads(threads)


def failed_of(folder, entries):
    document = strict_json((folder / "out.json").read_text(encoding="utf-8"))
    return [entry for entry in document[entries] if entry["status"] == "failed"]


def one_wrong_row(out):
    out[-1] *= 1.5
    return out


def one_wrong_element(out):
    out.view(-1)[-1] += 1.0
    return out


# Of each kernel the fault that is hardest to see; test_interpreter_checks.py plants the others.
BROKEN_KERNELS = {
    "decode_attention": lambda right, q, k, v, lens, **given: right(
        q, k, v, (lens - 1).clamp(min=0), **given
    ),
    "prefill_matmul": lambda right, x, weight, **given: one_wrong_element(right(x, weight, **given)),
}


def test_broken_kernels_fail_the_run(quickly):
    from decodetax import kernels  # noqa: PLC0415  (imports torch)

    with contextlib.ExitStack() as stack:
        for operation, broken in BROKEN_KERNELS.items():
            kernel = functools.partial(broken, getattr(kernels, operation))
            stack.enter_context(mock.patch.object(kernels, operation, kernel))
        stack.enter_context(mock.patch(f"{SESSION}.run_case", return_value=iter(())))
        outcome = decodetax("run", *SMALLEST)
    assert outcome.code == 1, outcome.err
    assert "FAILED" in outcome.out
    failed = failed_of(quickly, "interpreter_checks")
    assert {check["operation"] for check in failed} == set(BROKEN_KERNELS)
    assert all(check["reason"] for check in failed)


BROKEN_PROVIDERS = {
    "prefill_matmul": one_wrong_row,
    "decode_attention": lambda out: out * 0.9,
    "prefill_attention": lambda out: out.roll(1, -1),
    "decoder_layer": lambda out: out * float("nan"),
}


def test_broken_providers_have_failed_rows_without_figures(quickly):
    from decodetax.harness.bench.providers import PROVIDERS  # noqa: PLC0415  (imports torch)

    def broken(operation, provider):
        return replace(provider, run=lambda inputs: BROKEN_PROVIDERS[operation](provider.run(inputs)))

    changed = {
        operation: (broken(operation, first), *others) for operation, (first, *others) in PROVIDERS.items()
    }
    with (
        mock.patch("decodetax.harness.bench.runner.PROVIDERS", changed),
        mock.patch(f"{SESSION}.check_in_interpreter", return_value=iter(())),
    ):
        outcome = decodetax("run", *SMALLEST)
    failed = failed_of(quickly, "rows")
    assert outcome.code == 1
    assert {(row["operation"], row["provider"]) for row in failed} == {(name, "torch") for name in PROVIDERS}
    for row in failed:
        assert (row["samples_s"], row["time_s"], row["figures"]) == ([], None, None)
        assert "wrong result" in row["reason"]
        assert f"FAILED: {row['case']} torch: wrong result" in outcome.out


LAUNCHER = """
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background parent may have it ignored
from decodetax.harness import cli
from decodetax.harness.bench import session

run_case, begun = session.run_case, []

def announced(case, bench, earlier):
    begun.append(case)
    if len(begun) == 3:
        print("third case", file=sys.stderr, flush=True)
    return run_case(case, bench, earlier)

session.run_case = announced
sys.argv = ["decodetax", "run", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.slow
def test_ctrl_c_ends_a_running_process_with_what_it_measured(tmp_path):
    write_config(tmp_path)
    (tmp_path / "out.json").write_text("an older run", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *ARGUMENTS],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watch = threading.Timer(60, process.kill)
    watch.start()
    try:
        for line in process.stderr:
            if "third case" in line:
                break
        assert (tmp_path / "out.json").read_text(encoding="utf-8") == "an older run"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        watch.cancel()
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in out
    document = strict_json((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert document["interrupted"] is True
    assert len(document["ceilings"]) == 5
    assert {row["case"].split("/")[1] for row in document["rows"]} >= {"qkv", "o"}
    assert "ok" in {row["status"] for row in document["rows"]}
    assert document["gaps"] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "out.json"]
