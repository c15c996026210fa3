"""The command line: its help, its lists, and its messages about bad arguments."""

import errno
import functools
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from decodetax.harness.core import files
from decodetax.harness.core.gpus import datasheet_rows
from decodetax.harness.core.language_model import preset_table
from decodetax.harness.core.sweep import cases_of
from hand_made import (
    CPU,
    TINY,
    assert_misuse,
    ceilings,
    check,
    decodetax,
    failed_row,
    gap,
    ok_row,
    run_record,
    strict_json,
    sweep,
    write_config,
)

SESSION = "decodetax.harness.bench.session"
# Few, and far below any machine's memory.
SMALL = ("--device", "cpu", "--batch", "1", "--context", "16", "--prefill-tokens", "32", "--quick")


def command(*arguments, **options):
    """The installed command in a process of its own, without a GPU."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    arguments = [sys.executable, "-m", "decodetax.harness", *map(str, arguments)]
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run(arguments, check=False, **options)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in; what is in it must stay as it is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_measured():
    with mock.patch(f"{SESSION}.measure_ceilings", side_effect=AssertionError("it was measured")):
        yield


def contents(folder):
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


SIZES = "whole numbers from 1 to 2147483647"
BAD_ARGUMENTS = {
    "batch of 0": (["--batch", "0"], ["--batch", "'0'", SIZES]),
    "batch below 0": (["--batch", "-1"], ["--batch", "'-1'", SIZES]),
    "batch that is a word": (["--batch", "x"], ["--batch", "'x'", SIZES]),
    "batch of nothing": (["--batch", ""], ["--batch", "''", SIZES]),
    "batch with a hole": (["--batch", "1,,8"], ["--batch", "'1,,8'", SIZES]),
    "batch with a 0 among others": (["--batch", "1,0"], ["--batch", "'1,0'", SIZES]),
    "batch that is no whole number": (["--batch", "1.5"], ["--batch", "'1.5'", SIZES]),
    "batch past an int32": (["--batch", "2147483648"], ["--batch", SIZES]),
    "batch of a hundred digits": (["--batch", "9" * 100], ["--batch", SIZES]),
    "batch of ten thousand digits": (["--batch", "9" * 10_000], ["--batch", SIZES]),
    "batch of many zeros and too many digits": (["--batch", "0" * 19 + "1" + "0" * 15], ["--batch", SIZES]),
    "batch in Arabic digits": (["--batch", "٣"], ["--batch", SIZES]),
    "batch in superscript": (["--batch", "²"], ["--batch", SIZES]),
    "batch with an underscore": (["--batch", "1_000"], ["--batch", SIZES]),
    "batch over two lines": (["--batch", "1\n2"], ["--batch", SIZES]),
    "batch of too many sequences": (["--batch", "65537"], ["--batch: 65537 is over 65536"]),
    "context of 0": (["--context", "0"], ["--context", "'0'", SIZES]),
    "context past an int32": (["--context", "99999999999"], ["--context", SIZES]),
    "context beyond memory": (["--context", "2147483647"], ["--context", "2147483647", "GB"]),
    "second context beyond memory": (["--context", "16,2147483647"], ["--context", "2147483647", "GB"]),
    "prompt of 0": (["--prompt", "0"], ["--prompt", "'0'", "a whole number from 1 to 2147483647"]),
    "prompt that is a list": (["--prompt", "1,2"], ["--prompt", "'1,2'", "a whole number from 1"]),
    "prompt beyond memory": (["--prompt", "2147483647"], ["--prompt", "2147483647", "GB"]),
    "prefill tokens of 0": (["--prefill-tokens", "0"], ["--prefill-tokens", "'0'", "a whole number from 1"]),
    "prefill tokens beyond memory": (
        ["--prefill-tokens", "2147483647"],
        ["--prefill-tokens", "2147483647", "GB"],
    ),
    "price below 0": (["--usd-per-hour", "-1"], ["--usd-per-hour", "'-1'", "dollars above 0"]),
    "price of 0": (["--usd-per-hour", "0"], ["--usd-per-hour", "'0'", "dollars above 0"]),
    "price that is no number": (["--usd-per-hour", "nan"], ["--usd-per-hour", "'nan'", "dollars above 0"]),
    "price without end": (["--usd-per-hour", "inf"], ["--usd-per-hour", "'inf'", "dollars above 0"]),
    "price past a float": (["--usd-per-hour", "1e999"], ["--usd-per-hour", "dollars above 0"]),
    "price whose cost of a token is past a float": (["--usd-per-hour", "1e308"], ["--usd-per-hour"]),
    "price that is a word": (["--usd-per-hour", "free"], ["--usd-per-hour", "'free'", "dollars above 0"]),
    "price in Arabic digits": (["--usd-per-hour", "٣"], ["--usd-per-hour", "dollars above 0"]),
    "price with an underscore": (["--usd-per-hour", "1_0"], ["--usd-per-hour", "dollars above 0"]),
    "unknown dtype": (["--dtype", "fp8"], ["--dtype", "'fp8'", "auto, bf16, fp16, fp32"]),
    "dtype of nothing": (["--dtype", ""], ["--dtype", "auto, bf16, fp16, fp32"]),
    "unknown device": (["--device", "gpu"], ["--device", "'gpu'", "auto, cpu, cuda or cuda:INDEX"]),
    "device of nothing": (["--device", ""], ["--device", "auto, cpu, cuda or cuda:INDEX"]),
    "device index that is none": (["--device", "cuda:x"], ["--device", "'cuda:x'", "cuda:INDEX"]),
    "device index below 0": (["--device", "cuda:-1"], ["--device", "'cuda:-1'", "cuda:INDEX"]),
    "seed that is a word": (["--seed", "x"], ["--seed", "'x'", "whole number"]),
    "seed below 0": (["--seed", "-1"], ["--seed", "-1", "0"]),
    "seed past 64 bits": (["--seed", "9" * 20], ["--seed"]),
    "seed in Arabic digits": (["--seed", "٣"], ["--seed", "whole number"]),
    "unknown model": (["--model", "nope"], ["--model", "'nope'", "llama-3.2-1b", "config.json"]),
    "model of nothing": (["--model", ""], ["--model", "llama-3.2-1b", "config.json"]),
    "transformers of layers in parts": (
        ["--model", "mixtral-8x7b", "--whole-model", "transformers"],
        ["--whole-model", "mixtral-8x7b has experts"],
    ),
    "unknown option": (["--bath", "1"], ["--bath", "--batch"]),
    "unknown option over two lines": (["--bo\ngus"], ["--bo", "gus"]),
    "unexpected argument over two lines": (["ex\ntra"], ["ex", "tra"]),
    "unexpected argument": (["extra"], ["extra"]),
    "missing value": (["--batch"], ["--batch", "requires an argument"]),
    "flag with a value": (["--quick=1"], ["--quick"]),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
@pytest.mark.usefixtures("nothing_measured")
def test_rejects_bad_argument_in_one_line(folder, name):
    arguments, fragments = BAD_ARGUMENTS[name]
    config = write_config(folder)
    (folder / "kept.json").write_text("kept", encoding="utf-8")
    before = contents(folder)
    outcome = decodetax("run", *SMALL, "--model", config, "-o", "kept.json", *arguments)
    assert_misuse(outcome, *fragments)
    assert contents(folder) == before


CONFIGS = {
    "lacks a field": ({"hidden_size": None}, ["lacks hidden_size"]),
    "has a field of a wrong type": ({"vocab_size": "many"}, ["vocab_size", "integer", "'many'"]),
    "has a field of 0": ({"num_hidden_layers": 0}, ["num_hidden_layers", "integer from 1"]),
    "has experts and linear attention": (
        {
            "model_type": "qwen3_next",
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        },
        ["cannot be timed", "DeltaNet"],
    ),
    "has experts that its family has not": ({"num_local_experts": 8}, ["no experts (num_local_experts)"]),
    "has half a latent attention": (
        {"model_type": "deepseek_v3", "kv_lora_rank": 512},
        ["lacks qk_nope_head_dim"],
    ),
    "has too large a latent": (
        {
            "model_type": "deepseek_v3",
            "kv_lora_rank": 576,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 64,
            "v_head_dim": 64,
        },
        ["kv_lora_rank", "16 to 576, was 640"],
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("nothing_measured")
def test_rejects_config_that_cannot_be_modelled(folder, name):
    changes, fragments = CONFIGS[name]
    config = write_config(folder, **changes)
    before = contents(folder)
    assert_misuse(decodetax("run", *SMALL, "--model", config), "--model", "config.json", *fragments)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        pytest.param("{", "is not JSON", id="half"),
        pytest.param("", "is not JSON", id="empty"),
        pytest.param("[]", "must hold a JSON object", id="a list"),
        pytest.param("hidden_size: 64", "is not JSON", id="YAML"),
    ],
)
@pytest.mark.usefixtures("nothing_measured")
def test_rejects_a_config_that_is_not_a_json_object(folder, text, fragment):
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert_misuse(decodetax("run", *SMALL, "--model", "config.json"), "--model", "config.json", fragment)


@pytest.mark.usefixtures("nothing_measured")
def test_folder_without_a_config_is_named(folder):
    (folder / "weights").mkdir()
    assert_misuse(decodetax("run", *SMALL, "--model", "weights"), "--model", "'weights'", "config.json")


def make_fifo(path):
    os.mkfifo(path)


def make_folder(path):
    path.mkdir()


def make_nothing(path):
    del path


OUTPUTS = {
    "in a folder that is not there": ("no/where.json", make_nothing),
    "that is a folder": ("place", make_folder),
    "of nothing": ("", make_nothing),
    "below a file": ("config.json/run.json", make_nothing),
    "of too long a name": ("x" * 300, make_nothing),
    "that is a pipe": ("place", make_fifo),
    "that is a loop of links": ("place", lambda place: place.symlink_to(place)),
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.usefixtures("nothing_measured")
def test_rejects_unwritable_output_before_measuring(folder, name):
    output, make = OUTPUTS[name]
    config = write_config(folder)
    make(folder / "place") if output == "place" else make(folder)
    before = contents(folder)
    assert_misuse(decodetax("run", *SMALL, "--model", config, "-o", output), "--output")
    assert contents(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.usefixtures("nothing_measured")
def test_output_that_is_write_protected_is_kept(folder):
    config = write_config(folder)
    kept = folder / "kept.json"
    kept.write_text("kept", encoding="utf-8")
    kept.chmod(0o444)
    assert_misuse(decodetax("run", *SMALL, "--model", config, "-o", kept), "--output", "write-protected")
    assert kept.read_text(encoding="utf-8") == "kept"


@pytest.mark.usefixtures("nothing_measured")
def test_rejects_cuda_without_a_gpu(folder):
    import torch  # noqa: PLC0415  (heavy; most tests here do without)

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    config = write_config(folder)
    for device in ("cuda", "cuda:1"):
        assert_misuse(
            decodetax("run", *SMALL, "--model", config, "--device", device), "--device", device, "GPU"
        )
    assert list(folder.iterdir()) == [config]


@pytest.mark.parametrize(
    "batch",
    [pytest.param("2147483647", id="alone"), pytest.param("0000000000000002147483647", id="behind zeros")],
)
def test_rejects_batch_beyond_memory_without_allocating_it(folder, batch):
    # A list of so many contexts would itself take 16 GB, so the process may have 8.
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    arguments = [*SMALL, "--model", write_config(folder), "--batch", batch, "-o", "run.json"]
    done = command("run", *arguments, preexec_fn=limited, cwd=folder)
    assert done.returncode == 2, done.stderr[-500:]
    assert done.stderr.startswith("decodetax: --batch: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "run.json").exists()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        pytest.param(["rum"], ["'rum'", "run"], id="unknown command"),
        pytest.param(["--bogus"], ["--bogus"], id="unknown option"),
        pytest.param(["models", "extra"], ["extra"], id="argument of a list"),
        pytest.param(["report"], ["RUN"], id="missing argument"),
    ],
)
def test_rejects_bad_command_in_one_line(arguments, fragments):
    assert_misuse(decodetax(*arguments), *fragments)


def test_no_command_is_named_in_one_short_line():
    outcome = decodetax()
    assert_misuse(outcome, "run")
    assert "Usage:" not in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        "claims --gpu nope",
        "compare none.json none.json",
        "count --rows nope",
        "devices nope",
        "doctor nope",
        "inspect --gpu nope",
        "models nope",
        "predict --gpu nope",
        "price --model nope --input 1 --output 1",
        "prices --prices none.toml",
        "report none.json",
        "run --dtype nope",
        "tune --context nope",
    ],
)
def test_misuse_in_a_process_of_its_own_has_no_traceback(tmp_path, arguments):
    done = command(*arguments.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"decodetax: .*no[pn]e.*\n", done.stderr)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]], ids=["long", "short"])
def test_help_lists_the_commands(arguments):
    outcome = decodetax(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    for name in ("run", "models", "devices"):
        assert f"\n  {name} " in outcome.out


def test_module_runs_like_the_command(tmp_path):
    done = command("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  run " in done.stdout


@pytest.mark.parametrize(
    ("option", "texts"),
    [
        ("--device", ["auto", "cpu", "cuda:INDEX", "[default: auto]"]),
        ("--model", ["preset", "config.json", "llama-3.1-8b on a GPU", "llama-3.2-1b on a CPU"]),
        ("--batch", ["Sequences", "1,8,32"]),
        ("--context", ["Tokens", "1024,4096"]),
        ("--prompt", ["Tokens", "[default: the context]"]),
        ("--prefill-tokens", ["Tokens", "8192 on a GPU", "2048 on a CPU"]),
        ("--dtype", ["bf16", "fp16", "fp32", "[default: auto]"]),
        ("--usd-per-hour", ["$ per hour", "default"]),
        ("--quick", ["15 s"]),
        ("--seed", ["default: 0"]),
        ("--output", ["JSON", "results/"]),
        ("--json", ["stdout"]),
    ],
)
def test_help_of_run_names_units_and_defaults(option, texts):
    outcome = decodetax("run", "--help")
    assert outcome.code == 0
    entries = re.split(r"^  (?:-o, |-h, )?(--[a-z-]+)", outcome.out.split("Options:")[1], flags=re.MULTILINE)
    entry = " ".join(entries[entries.index(option) + 1].split())
    for text in texts:
        assert text in entry


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["models"], ["devices"], ["--version"]], ids=" ".join
)
def test_quick_answers_import_no_torch(arguments):
    code = (
        "import sys\n"
        "from decodetax.harness import cli\n"
        f"sys.argv = ['decodetax', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as done: assert not done.code\n"
        "print(*sorted({'torch', 'triton', 'numpy', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.split() == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_takes_under_a_third_of_a_second_of_processor(arguments, tmp_path):
    # Of processor time, and of the best of five, because others may use the machine.
    times_s = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command(*arguments, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times_s) < 0.3


@pytest.mark.parametrize(
    ("listing", "rows", "columns"),
    [
        ("models", preset_table(), ["model", "parameters (billion)", "hidden_size", "source"]),
        ("devices", datasheet_rows(), ["GPU", "memory GB/s", "bf16 TFLOP/s", "l2_mb", "source"]),
    ],
    ids=["models", "devices"],
)
def test_wide_listing_has_every_row_with_its_source(listing, rows, columns):
    outcome = decodetax(listing, "--wide")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert [column for column in columns if column not in lines[0]] == []
    for row, line in zip(rows, lines[2:], strict=True):
        assert line.startswith(next(iter(row.values())))
        assert row["source"] in line


@pytest.mark.parametrize(
    ("listing", "texts"),
    [
        ("models", ["llama-3.1-8b", "8.03", "yes"]),
        ("devices", ["RTX-5090", "989", "GB/s"]),
    ],
)
def test_listing_fits_80_columns(listing, texts):
    outcome = decodetax(listing)
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert [text for text in texts if text not in outcome.out] == []


def test_devices_json_has_every_gpu_in_base_units():
    document = strict_json(decodetax("devices", "--json").out)
    gpus = {gpu["name"]: gpu for gpu in document["devices"]}
    assert list(gpus) == [row["gpu"] for row in datasheet_rows()]
    h100 = gpus["H100-SXM5-80GB"]
    assert (h100["provenance"], h100["memory_bytes"]) == ("datasheet", 80 * 2**30)
    assert h100["bandwidth_bytes_per_s"] == 3.35e12
    assert h100["flop_per_s"]["fp8"] == 1979e12
    assert gpus["T4"]["flop_per_s"]["bf16"] is None
    assert all(gpu["source"] for gpu in gpus.values())


def test_models_json_has_every_preset():
    document = strict_json(decodetax("models", "--json").out)
    assert [model["model"] for model in document["models"]] == [row["model"] for row in preset_table()]


@pytest.mark.parametrize("listing", ["models", "devices"])
def test_closed_pipe_ends_without_a_traceback(listing):
    read, write = os.pipe()
    os.close(read)
    try:
        done = command(listing, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


FULL_DISK = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which is always full")
UNWRITABLE = {"> /dev/full": "No space left on device", ">&-": "Bad file descriptor"}


def in_shell(arguments, redirection, **options):
    """A command as a shell starts it, with a redirection of its output."""
    line = f'exec "$0" "$@" {redirection}'
    return subprocess.run(
        ["sh", "-c", line, sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )


@FULL_DISK
@pytest.mark.parametrize("redirection", UNWRITABLE)
@pytest.mark.parametrize("arguments", [["models"], ["--help"], ["prices", "--json"]], ids=" ".join)
def test_stdout_that_cannot_be_written_ends_in_one_line(arguments, redirection):
    done = in_shell(["-m", "decodetax.harness", *arguments], redirection)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"decodetax: stdout cannot be written: {UNWRITABLE[redirection]}\n"


@FULL_DISK
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&-"])
def test_stderr_that_cannot_be_written_changes_nothing_else(redirection):
    done = in_shell(["-m", "decodetax.harness", "models"], redirection)
    assert done.returncode == 0
    assert "llama-3.1-8b" in done.stdout
    done = in_shell(["-m", "decodetax.harness", "models", "--bogus"], redirection)
    assert (done.returncode, done.stdout) == (2, "")


# The rest of a run, with canned ceilings, rows and checks in place of measured ones.


@pytest.fixture
def canned():
    """Nothing is measured: ceilings, rows and checks come as these lists and functions say."""
    made = {
        "ceilings": [("read bandwidth", ceilings()[0]), ("bf16 matmul", ceilings()[1])],
        "run_case": lambda case, bench: iter([ok_row(case)]),  # noqa: ARG005  (called as run_case is)
        "checks": [check()],
    }

    def canned_ceilings(*_, **__):
        return iter(made["ceilings"])

    def canned_rows(case, bench, _earlier):
        return made["run_case"](case, bench)

    def canned_checks(*_, **__):
        return iter(made["checks"])

    with (
        mock.patch(f"{SESSION}.measure_ceilings", canned_ceilings),
        mock.patch(f"{SESSION}.run_case", canned_rows),
        mock.patch(f"{SESSION}.check_in_interpreter", canned_checks),
    ):
        yield made


def run_canned(folder, *arguments):
    return decodetax("run", *SMALL, "--dtype", "bf16", "--model", write_config(folder), *arguments)


@pytest.mark.usefixtures("canned")
def test_run_prints_its_tables_and_writes_its_json(folder):
    outcome = run_canned(folder, "-o", "run.json")
    assert outcome.code == 0
    titles = [
        "CPU: ",
        "Model: ",
        "Ceilings",
        "Kernels",
        "Triton kernels in the interpreter",
        "Gap",
        "Run written",
    ]
    places = [outcome.out.index(f"\n{title}" if title != "CPU: " else title) for title in titles]
    assert places == sorted(places)
    document = strict_json((folder / "run.json").read_text(encoding="utf-8"))
    assert (document["schema_version"], document["interrupted"]) == (1, False)
    assert len(document["rows"]) == 14
    assert len(document["gaps"]) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "run.json"]


def test_json_is_alone_on_stdout_and_equals_the_file_whatever_a_users_function_does(folder, canned):
    def wandering(case, _bench):
        sys.stdout.write("a word on standard output")
        os.chdir(folder.parent)
        yield ok_row(case)

    canned["run_case"] = wandering
    outcome = run_canned(folder, "--json", "-o", "run.json")
    assert outcome.code == 0
    written = (folder / "run.json").read_text(encoding="utf-8")
    assert strict_json(outcome.out) == strict_json(written)
    assert outcome.out.startswith("{")


@pytest.mark.usefixtures("canned")
def test_file_of_a_run_in_progress_is_refused_in_one_line_before_measuring(folder):
    from decodetax.harness.core.own_file import locked  # noqa: PLC0415  (as another run holds it)

    (folder / "run.json").write_text("so far", encoding="utf-8")
    (folder / "link.json").symlink_to("run.json")
    config = write_config(folder)
    before = contents(folder)
    with locked(folder / "run.json"):
        refused = [
            decodetax("run", *SMALL, "--model", config, "-o", "link.json"),
            decodetax("run", "--resume", "run.json", "-o", "other.json"),
        ]
    for outcome, fragment in zip(refused, ("--output", "--resume"), strict=True):
        assert_misuse(outcome, fragment, "another run (process", "is writing to")
    assert contents(folder) == before


def run_with_a_full_disk(folder, *arguments):
    """A canned run whose file cannot be written when it ends; it goes to folder/tmp."""
    from decodetax.harness.core import own_file  # noqa: PLC0415

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (folder / "tmp").mkdir()
    with mock.patch.object(own_file, "write_text", full), mock.patch("tempfile.tempdir", str(folder / "tmp")):
        return run_canned(folder, "-o", "run.json", *arguments)


@pytest.mark.usefixtures("canned")
def test_disk_that_is_full_when_the_run_begins_is_no_obstacle(folder):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        mock.patch("decodetax.harness.bench.run_command.file_problem", side_effect=full),
        mock.patch("decodetax.harness.bench.report_command.file_problem", side_effect=full),
    ):
        outcome = run_canned(folder, "-o", "run.json", "--markdown", "run.md")
    assert outcome.code == 0, outcome.err
    assert (folder / "run.md").exists()


@pytest.mark.usefixtures("canned")
def test_run_on_a_full_disk_prints_its_tables_and_names_the_file_that_it_went_to(folder):
    outcome = run_with_a_full_disk(folder, "--markdown", "run.md")
    [kept] = (folder / "tmp").iterdir()
    assert outcome.code == 1
    assert outcome.err == f"decodetax: run.json: No space left on device; the run was written to {kept}\n"
    assert "An output token costs" in outcome.out
    assert f"Run written to {kept} after" in outcome.out
    strict_json(kept.read_text(encoding="utf-8"))
    assert (folder / "run.md").exists()


@pytest.mark.usefixtures("canned")
def test_report_files_that_cannot_be_written_do_not_hinder_the_others(folder):
    write_bytes = files.write_bytes

    def full(target, content):
        if target.suffix == ".csv":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_bytes(target, content)

    with mock.patch.object(files, "write_bytes", full):
        outcome = run_canned(folder, "-o", "run.json", "--csv", "tables", "--html", "run.html")
    assert outcome.code == 1
    [line] = outcome.err.splitlines()
    assert re.search(r"\.csv: No space left on device; it was not written; nor were \d+ more files", line)
    assert (folder / "run.html").exists()
    strict_json((folder / "run.json").read_text(encoding="utf-8"))


CANNED_RUN = """
import sys
from unittest import mock
from hand_made import ceilings, check, ok_row

from decodetax.harness import cli
from decodetax.harness.bench import session

session.measure_ceilings = lambda *_, **__: iter([("read bandwidth", ceilings()[0])])
session.run_case = lambda case, *_: iter([ok_row(case)])
session.check_in_interpreter = lambda *_, **__: iter([check()])
sys.argv = ["decodetax", "run", *sys.argv[1:]]
cli.main()
"""


@FULL_DISK
@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "as_json"),
    [("> /dev/full", False), ("> /dev/full", True), (">&-", False), ("| true", False)],
    ids=["full disk", "full disk, JSON", "closed", "closed pipe"],
)
def test_run_is_written_though_stdout_cannot_be(folder, redirection, as_json):
    arguments = [*SMALL, "--dtype", "bf16", "--model", write_config(folder), "-o", "run.json"]
    line = f'"$0" "$@" {redirection}'
    if redirection == "| true":  # the shell's exit code is that of the last command
        line = f'{{ "$0" "$@"; echo "exit code $?" >&2; }} {redirection}'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, "-c", CANNED_RUN, *arguments, *["--json"] * as_json],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    assert 1 in {done.returncode, int(lines.pop().split()[-1]) if redirection == "| true" else None}
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("decodetax: stdout cannot be written: ")
    assert lines[0].endswith("written to run.json")
    strict_json((folder / "run.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("canned")
@pytest.mark.parametrize(("quota", "threads", "warned"), [(1.5, 3, True), (1.5, 2, False), (None, 3, False)])
def test_more_threads_than_a_cpu_quota_allows_are_reported(folder, quota, threads, warned):
    device = {**CPU, "threads": threads} | ({} if quota is None else {"cpu_quota_cores": quota})
    described = {"device": device, "versions": {}, "commit": None}
    with mock.patch(f"{SESSION}.describe", return_value=described):
        outcome = run_canned(folder, "-o", "run.json")
    assert outcome.code == 0
    assert ("torch uses 3 threads, but the control group's CPU quota is 1.5 cores" in outcome.err) == warned


@pytest.mark.usefixtures("canned")
def test_output_goes_to_a_dated_file_by_default(folder):
    assert run_canned(folder).code == 0
    [path] = (folder / "results").iterdir()
    assert path.name.startswith("run-20")
    assert path.suffix == ".json"
    strict_json(path.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("canned")
def test_older_run_is_replaced_completely(folder):
    (folder / "run.json").write_text("x" * 10_000_000, encoding="utf-8")
    assert run_canned(folder, "-o", "run.json").code == 0
    strict_json((folder / "run.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("canned")
def test_link_is_written_through(folder):
    (folder / "real").mkdir()
    (folder / "real" / "run.json").write_text("old", encoding="utf-8")
    (folder / "link.json").symlink_to(folder / "real" / "run.json")
    assert run_canned(folder, "-o", "link.json").code == 0
    assert (folder / "link.json").is_symlink()
    strict_json((folder / "real" / "run.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("canned")
def test_run_with_a_price_has_dollars(folder):
    outcome = run_canned(folder, "--usd-per-hour", "3.6", "-o", "run.json")
    assert "$ per 1M input" in outcome.out
    [found] = strict_json((folder / "run.json").read_text(encoding="utf-8"))["gaps"]
    assert found["input_usd_per_mtok"] == pytest.approx(found["input_s_per_token"] * 1000)


@pytest.mark.usefixtures("canned")
def test_run_without_a_price_has_no_dollars(folder):
    outcome = run_canned(folder, "-o", "run.json")
    assert "$" not in outcome.out
    [found] = strict_json((folder / "run.json").read_text(encoding="utf-8"))["gaps"]
    assert not [key for key in found if "usd" in key]


@pytest.mark.usefixtures("canned")
def test_sizes_are_sorted_without_duplicates(folder):
    run_canned(folder, "--batch", "3, 1,3", "--context", "40,16", "-o", "run.json")
    document = strict_json((folder / "run.json").read_text(encoding="utf-8"))
    assert [(found["batch"], found["context"]) for found in document["gaps"]] == [
        (1, 16),
        (1, 40),
        (3, 16),
        (3, 40),
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"relative_error": 0.5}, {"relative_error": float("inf")}, {"relative_error": float("nan")}],
    ids=["by half", "infinitely", "not a number"],
)
@pytest.mark.parametrize("where", ["a row", "a check"])
def test_wrong_result_exits_1_and_is_written(folder, canned, where, wrong):
    if where == "a row":
        canned["run_case"] = lambda case, bench: iter([failed_row(case, **wrong), ok_row(case, "other")])  # noqa: ARG005
    else:
        canned["checks"] = [check(status="failed", reason="wrong result: row 3", **wrong)]
    outcome = run_canned(folder, "-o", "run.json")
    assert outcome.code == 1
    assert "wrong result: row 3" in outcome.out
    assert "FAILED" in outcome.out
    document = strict_json((folder / "run.json").read_text(encoding="utf-8"))
    entries = document["rows" if where == "a row" else "interpreter_checks"]
    assert "failed" in {entry["status"] for entry in entries}


def interrupting(*before):
    yield from before
    raise KeyboardInterrupt


@pytest.mark.parametrize("begun", ["ceilings", "second ceiling", "cases", "checks"])
def test_ctrl_c_writes_what_was_measured(folder, canned, begun):
    if begun == "ceilings":
        canned["ceilings"] = interrupting()
    elif begun == "second ceiling":
        canned["ceilings"] = interrupting(canned["ceilings"][0])
    elif begun == "cases":
        third = iter([False, False, True])
        canned["run_case"] = lambda case, bench: interrupting() if next(third) else iter([ok_row(case)])  # noqa: ARG005
    else:
        canned["checks"] = interrupting()
    (folder / "run.json").write_text("old", encoding="utf-8")
    outcome = run_canned(folder, "-o", "run.json")
    assert outcome.code == 130
    assert "interrupted" in outcome.out
    document = strict_json((folder / "run.json").read_text(encoding="utf-8"))
    assert document["interrupted"] is True
    counts = {"ceilings": (0, 0), "second ceiling": (1, 0), "cases": (2, 2), "checks": (2, 0)}
    assert (len(document["ceilings"]), len(document["rows"])) == counts[begun]
    assert document["gaps"] == []


def test_interrupted_json_is_alone_on_stdout(folder, canned):
    canned["ceilings"] = interrupting()
    outcome = run_canned(folder, "--json", "-o", "run.json")
    assert outcome.code == 130
    assert strict_json(outcome.out)["interrupted"] is True


def test_wrong_result_before_ctrl_c_exits_130_with_the_failed_row(folder, canned):
    second = iter([False, True])
    canned["run_case"] = lambda case, bench: interrupting() if next(second) else iter([failed_row(case)])  # noqa: ARG005
    assert run_canned(folder, "-o", "run.json").code == 130
    [row] = strict_json((folder / "run.json").read_text(encoding="utf-8"))["rows"]
    assert row["status"] == "failed"


# A run read back.


def write_run(folder, **changes):
    run = run_record(
        **{
            "rows": [ok_row(case) for case in cases_of(TINY, sweep())],
            "ceilings": ceilings(),
            "gaps": [gap()],
            "interpreter_checks": [check()],
            **changes,
        }
    )
    path = folder / "run.json"
    path.write_text(json.dumps(run.to_json()), encoding="utf-8")
    return path


@pytest.mark.usefixtures("canned")
def test_report_repeats_what_the_run_printed(folder):
    printed = run_canned(folder, "--batch", "1,3", "-o", "run.json").out
    reported = decodetax("report", folder / "run.json")
    assert reported.code == 0
    tables, _, closing = printed.partition("\nRun written")
    assert closing
    assert reported.out.strip() == tables.strip()


def test_report_of_an_interrupted_run(folder):
    reported = decodetax("report", write_run(folder, rows=[], ceilings=[], gaps=[], interrupted=True))
    assert reported.code == 0
    assert CPU["name"] in reported.out
