"""`decodetax tune` from the command line, and `decodetax run` with its tilings, on a fake GPU."""

import json
import os
import subprocess
import sys
import types
from unittest import mock

import click
import pytest
import torch
from decodetax.harness.bench import run_command
from decodetax.harness.bench.compile_ahead import CompileAhead
from decodetax.harness.bench.tiling_cache import open_cache
from decodetax.harness.bench.tilings import TUNABLE
from decodetax.harness.bench.tune_command import HEADS, _cases, tune_command
from decodetax.harness.bench.tuning import NOT_TRIED, Duel, Trial, Tuned, tilings_of
from decodetax.harness.core.cases import DecodeAttention, PrefillAttention
from decodetax.harness.core.statistics import summarise
from decodetax.kernels import gpu_limits
from hand_made import GPU, assert_misuse, decodetax, ok_row, run_record, strict_json, write_config

TUNING = "decodetax.harness.bench.tuning"
TUNE = ("tune", "--kernel", "decode_attention", "--batch", "1,3", "--context", "100")
VERSIONS = {"decodetax": "0.1.0", "triton": "3.9.0", "cuda": "12.8"}
DEVICE = types.SimpleNamespace(name=GPU["name"], kind="cuda", torch_device=torch.device("cpu"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in; the cache is in another below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DECODETAX_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def at_a_gpu(folder):
    """A GPU is at hand, and the search finds what `found` makes of each case."""
    del folder
    made = {"found": winning}

    def search(cases, _device, *, time_limit_s, progress, ahead):
        made["time_limit_s"], made["cases"], made["ahead"] = time_limit_s, cases, ahead
        for case in cases:
            progress(0.5, case.id)
            yield made["found"](case)

    class Compilers(CompileAhead):
        closed = 0

        def close(self):
            self.closed += 1
            super().close()

    environment = {"device": GPU, "versions": VERSIONS, "started": "2030-01-01T00:00:00+00:00"}
    with (
        mock.patch(f"{TUNING}.open_gpu", return_value=DEVICE),
        mock.patch(f"{TUNING}.tune", search),
        mock.patch("decodetax.harness.bench.compile_ahead.CompileAhead", Compilers),
        mock.patch("decodetax.harness.bench.environment.describe", return_value=environment),
    ):
        yield made


def found(case, *, challenger_s=1e-3, status="ok", reason=None, duel=True):
    default, other, rejected, late = tunable_of(case).candidates(
        case, default_of(case), gpu_limits(DEVICE.torch_device)
    )[:4]
    trials = [
        Trial(tiling=default, status=status, reason=reason, samples_s=[2e-3] * 5),
        Trial(tiling=other, status="ok", reason=None, samples_s=[challenger_s] * 5),
        Trial(tiling=rejected, status="failed", reason="wrong result: row 3"),
        Trial(tiling=late),
    ]
    return Tuned(
        case=case,
        key=tunable_of(case).key(case),
        status=status,
        reason=reason,
        trials=trials,
        duel=Duel(challenger=other, default_s=[2e-3] * 9, challenger_s=[challenger_s] * 9) if duel else None,
    )


def default_of(case):
    return tunable_of(case).default(case, gpu_limits(DEVICE.torch_device))


def tunable_of(case):
    return TUNABLE[case.operation]


def winning(case):
    return found(case)


def losing(case):
    return found(case, challenger_s=1.99e-3)


def failing(case):
    return found(case, status="failed", reason="wrong result: row 0", duel=False)


def cache_of(folder):
    return open_cache(GPU["name"], VERSIONS["triton"], folder / "cache")


def assert_one_line(outcome, code, *fragments):
    assert (outcome.code, outcome.out) == (code, "")
    assert len(outcome.err.splitlines()) == 1, outcome.err
    for fragment in fragments:
        assert fragment in outcome.err


def without_gpu(*arguments, **environment):
    """The command in a process of its own, without a GPU."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    arguments = [sys.executable, "-m", "decodetax.harness", *arguments]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("interpret", ["0", "1"], ids=["compiled", "interpreted"])
def test_missing_gpu_is_reported_in_one_line_with_an_alternative(folder, interpret):
    done = without_gpu(*TUNE, TRITON_INTERPRET=interpret)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "needs a CUDA GPU" in done.stderr
    assert "`decodetax inspect" in done.stderr
    assert list(folder.iterdir()) == []


def test_interpreter_beside_a_gpu_is_named(folder):
    device = types.SimpleNamespace(kind="cuda", compute_capability="9.0")
    with (
        mock.patch(f"{TUNING}.open_device", return_value=device),
        mock.patch("decodetax.harness.bench.providers.interpreting", return_value=True),
    ):
        assert_one_line(decodetax(*TUNE), 2, "TRITON_INTERPRET is set", "decodetax inspect")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        pytest.param(["--batch", "0"], ["--batch", "'0'"], id="batch of 0"),
        pytest.param(["--batch", "65537"], ["--batch", "65537", "65536"], id="too many sequences"),
        pytest.param(["--context", "x"], ["--context", "'x'"], id="context that is a word"),
        pytest.param(
            ["--q-heads", "7"], ["--q-heads", "multiple of kv_heads", "7"], id="heads that do not divide"
        ),
        pytest.param(["--kv-heads", "3"], ["--q-heads", "kv_heads, 3"], id="KV heads that do not divide"),
        pytest.param(
            ["--q-heads", "258", "--kv-heads", "2"], ["--q-heads", "128 times"], id="too large a group"
        ),
        pytest.param(["--head-dim", "12"], ["--head-dim", "multiple of 8", "12"], id="head of 12"),
        pytest.param(["--dtype", "auto"], ["--dtype", "'auto'", "bf16, fp16, fp32"], id="dtype"),
        pytest.param(["--model", "nope"], ["--model", "'nope'"], id="unknown model"),
        pytest.param(["--time-limit", "0"], ["--time-limit", "'0'", "seconds"], id="no time"),
        pytest.param(["--time-limit", "1.5"], ["--time-limit", "'1.5'"], id="half a second"),
        pytest.param(
            ["--kernel", "softmax"], ["--kernel", "'softmax'", "decode_attention"], id="unknown kernel"
        ),
    ],
)
@pytest.mark.usefixtures("at_a_gpu")
def test_bad_argument_is_named_in_one_line(folder, arguments, fragments):
    assert_one_line(decodetax(*TUNE, *arguments), 2, *fragments)
    assert list(folder.iterdir()) == []


def test_no_kernel_is_named_in_one_line():
    assert_one_line(decodetax("tune"), 2, "--kernel")


def test_help_names_units_and_defaults():
    outcome = decodetax("tune", "--help")
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    for part in ("[default: 300]", "[default: 1,8,32]", "[default: 1024,4096]", "DECODETAX_CACHE", "SECONDS"):
        assert part in text


def test_winners_are_printed_cached_and_found_by_run(folder, at_a_gpu):
    outcome = decodetax(*TUNE, "--time-limit", "77")
    assert outcome.code == 0, outcome.err
    assert at_a_gpu["time_limit_s"] == 77
    assert [case.contexts for case in at_a_gpu["cases"]] == [(100,), (100, 100, 100)]
    assert outcome.out.count("won: ") == 2
    assert "2.00 times as fast" in outcome.out
    assert "50.0% of the default's time (50.0% to 50.0%, won 9 of 9 rounds)" in outcome.out
    assert "wrong result: row 3" in outcome.out
    assert f"1 tiling {NOT_TRIED}" in outcome.out
    assert outcome.out.count("tried 3 of 4 tilings") == 2
    total = tilings_of(at_a_gpu["cases"], DEVICE)
    processes = at_a_gpu["ahead"].processes
    assert f"decode_attention: tried 6 of {total:,} tilings of 2 cases; compiled in {processes} process" in outcome.out  # fmt: skip  # noqa: E501  (one line of the output)
    assert f"2 of 2 cases have a tiling better than the default; `decodetax run` takes them from {cache_of(folder).path}" in outcome.out  # fmt: skip  # noqa: E501  (one line of the output)
    run = run_record(device=GPU)
    run.environment["versions"]["triton"] = VERSIONS["triton"]
    tiling_of = run_command._tuned_tilings(run, DEVICE)
    for case in at_a_gpu["cases"]:
        assert tiling_of(case) == winning(case).winner
        assert tiling_of(case) != default_of(case)


def test_default_that_is_kept_is_printed_and_its_entry_removed(folder, at_a_gpu):
    decodetax(*TUNE)
    assert len(cache_of(folder).read()) == 2
    at_a_gpu["found"] = losing
    outcome = decodetax(*TUNE)
    assert outcome.code == 0
    assert outcome.out.count("the default stays: ") == 2
    assert "not better by more than the noise" in outcome.out
    assert "0 of 2 cases" in outcome.out
    assert cache_of(folder).read() == {}


def test_tuning_again_merges(folder, at_a_gpu):
    decodetax(*TUNE)
    assert decodetax(*TUNE, "--context", "200").code == 0
    assert len(cache_of(folder).read()) == 4
    assert {case.capacity for case in at_a_gpu["cases"]} == {200}


@pytest.mark.usefixtures("at_a_gpu")
def test_cache_option_names_the_folder(folder):
    assert decodetax(*TUNE, "--cache", folder / "mine" / "deep").code == 0
    assert [path.name for path in folder.iterdir()] == ["mine"]
    assert len(open_cache(GPU["name"], VERSIONS["triton"], folder / "mine" / "deep").read()) == 2


def test_heads_come_from_the_model_and_the_options(folder, at_a_gpu):
    config = write_config(folder)
    assert decodetax(*TUNE, "--model", config, "--dtype", "fp16", "--q-heads", "8").code == 0
    assert set(at_a_gpu["cases"]) == {
        DecodeAttention(contexts=(100,) * batch, q_heads=8, kv_heads=2, head_dim=16, dtype="fp16")
        for batch in (1, 3)
    }


def test_tuned_matmuls_are_those_that_run_times(folder, at_a_gpu):
    config = write_config(folder)
    product = ("tune", "--kernel", "prefill_matmul", "--model", config, "--batch", "1,3")
    outcome = decodetax(*product)
    assert outcome.code == 0, outcome.err
    cases = at_a_gpu["cases"]
    assert {case.operation for case in cases} == {"prefill_matmul"}
    assert {1, 3} < {case.rows for case in cases}
    assert len({tuple(tunable_of(case).key(case).items()) for case in cases}) == len(cases)
    assert outcome.out.count("won: ") == len(cases)
    kept = cache_of(folder).read().values()
    assert {entry["kernel"] for entry in kept} == {"prefill_matmul"}
    run = run_record(device=GPU)
    run.environment["versions"]["triton"] = VERSIONS["triton"]
    tiling_of = run_command._tuned_tilings(run, DEVICE)
    for case in cases:
        assert tiling_of(case) == winning(case).winner


@pytest.mark.parametrize("option", ["--context", "--q-heads", "--kv-heads", "--head-dim"])
@pytest.mark.usefixtures("at_a_gpu")
def test_rejects_attention_options_for_matmuls(option):
    outcome = decodetax("tune", "--kernel", "prefill_matmul", option, "8")
    assert_one_line(outcome, 2, option, "attention only", "prefill_matmul")


def test_each_kind_of_attention_of_a_model_is_tuned():
    asked = {"batch": (2,), "context": (5000,), "dtype": "bf16", **dict.fromkeys(HEADS)}
    with click.Context(tune_command):
        sliding, full = _cases("decode_attention", {**asked, "model": "gemma-2-9b"})
        [latent] = _cases("decode_attention", {**asked, "model": "deepseek-v3"})
    assert (sliding.window, full.window) == (4096, None)
    assert (latent.latent, latent.head_dim, latent.v_head_dim) == (True, 576, 512)


def test_heads_of_a_model_in_parts_are_its_own():
    arguments = ("--kernel", "decode_attention", "--model", "gemma-2-9b", "--q-heads", "8")
    assert_misuse(decodetax("tune", *arguments), "--q-heads", "gemma-2-9b")


def test_tuned_prompts_are_those_that_run_times(folder, at_a_gpu):
    config = write_config(folder)
    prompts = ("tune", "--kernel", "prefill_attention", "--model", config, "--context", "100,5000")
    outcome = decodetax(*prompts)
    assert outcome.code == 0, outcome.err
    assert set(at_a_gpu["cases"]) == {
        PrefillAttention(sequences=count, prompt=prompt, q_heads=4, kv_heads=2, head_dim=16, dtype="bf16")
        for count, prompt in ((81, 100), (1, 5000))
    }
    assert {entry["kernel"] for entry in cache_of(folder).read().values()} == {"prefill_attention"}
    assert_one_line(decodetax(*prompts, "--batch", "3"), 2, "--batch", "prompts")


def test_json_is_alone_on_stdout_with_every_sample(folder, at_a_gpu):
    outcome = decodetax(*TUNE, "--json")
    document = strict_json(outcome.out)
    assert (document["schema_version"], document["interrupted"]) == (1, False)
    assert document["cache"] == str(cache_of(folder).path)
    assert document["tried"] == {"tilings": 6, "of": tilings_of(at_a_gpu["cases"], DEVICE)}
    assert document["compile_processes"] == at_a_gpu["ahead"].processes >= 1
    first = document["cases"][0]
    assert first["tried"] == {"tilings": 3, "of": 4}
    assert first["provenance"] == "measured"
    assert first["duel"]["won"] is True
    assert first["trials"][0]["samples_s"] == [2e-3] * 5
    assert first["trials"][1]["time_s"]["median"] == summarise([1e-3]).median


def test_default_that_fails_exits_1_and_leaves_the_cache(folder, at_a_gpu):
    decodetax(*TUNE)
    before = cache_of(folder).path.read_bytes()
    at_a_gpu["found"] = failing
    outcome = decodetax(*TUNE)
    assert outcome.code == 1
    assert "FAILED: the default: wrong result: row 0" in outcome.out
    assert cache_of(folder).path.read_bytes() == before


def test_ctrl_c_keeps_what_was_found(folder, at_a_gpu):
    def interrupted(case):
        if case.batch > 1:
            raise KeyboardInterrupt
        return winning(case)

    at_a_gpu["found"] = interrupted
    outcome = decodetax(*TUNE)
    assert outcome.code == 130
    assert "Interrupted" in outcome.out
    assert "decode_attention: tried 3 of " in outcome.out
    assert at_a_gpu["ahead"].closed == 1
    assert len(cache_of(folder).read()) == 1


@pytest.mark.parametrize(
    ("problem", "skipped", "line"),
    [
        ("its process ended with 1", [], "compiled one after another, because a compiling process failed: its process ended with 1"),  # noqa: E501  (one line of the output)
        (None, ["MemoryError", "MemoryError"], "but 2 as they were tried (MemoryError)"),
    ],
    ids=["no process", "no memory"],
)  # fmt: skip
@pytest.mark.usefixtures("folder")
def test_compilers_that_failed_are_reported(at_a_gpu, problem, skipped, line):
    def found_by(case):
        at_a_gpu["ahead"].problem, at_a_gpu["ahead"].skipped = problem, skipped
        return winning(case)

    at_a_gpu["found"] = found_by
    assert line in decodetax(*TUNE).out
    assert strict_json(decodetax(*TUNE, "--json").out)["compile_processes"] == (
        0 if problem else at_a_gpu["ahead"].processes
    )


def test_full_disk_loses_no_output(folder, at_a_gpu):
    def remove(case):
        (folder / "cache").rmdir()
        return winning(case)

    at_a_gpu["found"] = remove
    outcome = decodetax(*TUNE)
    assert outcome.code == 1
    assert "won: " in outcome.out
    assert "decodetax: tiling cache: " in outcome.err
    assert "cannot be written" in outcome.err


BROKEN = {"half": "{", "newer": json.dumps({"schema_version": 2})}


@pytest.mark.parametrize("name", BROKEN)
def test_invalid_cache_is_named_before_the_search(folder, at_a_gpu, name):
    path = cache_of(folder).path
    path.parent.mkdir()
    path.write_text(BROKEN[name], encoding="utf-8")
    assert_one_line(decodetax(*TUNE), 2, str(path), "move it away")
    assert "cases" not in at_a_gpu
    assert path.read_text(encoding="utf-8") == BROKEN[name]


def test_unwritable_folder_is_named_before_the_search(folder, at_a_gpu):
    (folder / "file").write_text("", encoding="utf-8")
    assert_one_line(decodetax(*TUNE, "--cache", folder / "file" / "below"), 2, "cannot be")
    assert "cases" not in at_a_gpu


@pytest.mark.parametrize("name", BROKEN)
def test_run_reports_an_invalid_cache_in_one_line_and_continues(folder, name, capsys):
    path = cache_of(folder).path
    path.parent.mkdir()
    path.write_text(BROKEN[name], encoding="utf-8")
    run = run_record(device=GPU)
    run.environment["versions"]["triton"] = VERSIONS["triton"]
    tiling_of = run_command._tuned_tilings(run, DEVICE)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"decodetax: tiling cache: '{path}' ")
    assert line.endswith("; no tuned tiling is used")
    assert tiling_of(DecodeAttention(contexts=(5,), q_heads=4, kv_heads=2, head_dim=16, dtype="bf16")) is None
    assert path.read_text(encoding="utf-8") == BROKEN[name]


def test_run_on_a_cpu_does_not_read_the_cache(folder, capsys):
    path = cache_of(folder).path
    path.parent.mkdir()
    path.write_text("{", encoding="utf-8")
    cpu = types.SimpleNamespace(kind="cpu", name=GPU["name"], torch_device=torch.device("cpu"))
    assert run_command._tuned_tilings(run_record(), cpu)(None) is None
    assert capsys.readouterr().err == ""


def test_report_marks_the_rows_of_a_tuned_tiling(folder):
    case = DecodeAttention(contexts=(5,), q_heads=4, kv_heads=2, head_dim=16, dtype="bf16")
    rows = [ok_row(case), ok_row(case, "triton", tiling={"block_n": 64})]
    document = run_record(rows=rows).to_json()
    assert [row["tiling"] for row in document["rows"]] == [None, {"block_n": 64}]
    for row in document["rows"][:1]:
        del row["tiling"]  # as in files of before
    (folder / "run.json").write_text(json.dumps(document), encoding="utf-8")
    outcome = decodetax("report", "run.json")
    assert outcome.code == 0, outcome.err
    assert "triton, tuned" in outcome.out
    assert outcome.out.count("tuned") == 1
