"""Each command shown in README and docs runs as shown; only those that take minutes run a smaller case."""

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from decodetax.harness import cli
from decodetax.harness.bench import ceilings, device, runner, session
from decodetax.harness.bench.timer import Budget
from decodetax.harness.core import inputs, timed_model
from decodetax.harness.offline import variants
from decodetax.harness.offline.execution import cases
from hand_made import TINY, write_config
from rank_runs import rank_run

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("[RC][EO]*.md"), *ROOT.glob("docs/**/*.md")])
"""README and CONTRIBUTING, and all of docs."""
COMMAND = re.compile(r"(?m)^    (?:.* && )?(decodetax [^#\n]+?)(?:   .*)?$|`(decodetax [^`]+)`")
NEEDS_GPU = "tune"
SLOW = {"run", "inspect", "count", "execute", "doctor"}
"""Commands that measure, compile or interpret; each has a faster test of its own."""


def shown():
    """Every command line of the pages, once."""
    found = [line for page in PAGES for line in COMMAND.findall(page.read_text(encoding="utf-8"))]
    return sorted({" ".join((in_block or span).split()) for in_block, span in found})


def arguments_of(command):
    """What follows `decodetax`; what may be left out is there."""
    return command.replace("[", "").replace("]", "").replace(" ...", "").split()[1:]


def names_alone(command):
    """Whether a text in passing only names a command or an option, and leaves out what it needs."""
    name, *rest = arguments_of(command)
    try:
        cli.cli.commands[name].make_context(name, list(rest))
    except (click.MissingParameter, click.BadOptionUsage):
        return True
    except Exception:  # noqa: BLE001  (whatever it is, the command shall be run and show it)
        return False
    return False


def runnable():
    """The command lines that are complete, the slow ones marked."""
    return [
        pytest.param(command, marks=[pytest.mark.slow] if command.split()[1] in SLOW else [])
        for command in shown()
        if not names_alone(command) and not starts_ranks(command)
    ]


def starts_ranks(command):
    """Whether a run starts processes, which know no model of these tests; tests of ranks have such runs."""
    return command.split()[1] == "run" and "-parallel" in command


def block(page, mark):
    """A code block of a page, by a word of its first line."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return next(code for code in re.findall(r"```\w+\n(.*?)```", text, re.DOTALL) if mark in code)


def test_every_launch_shown_chooses_fp_fusion():
    """Triton 3.9 warns where a launch leaves it open, because the default changes in 3.10."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    calls = [node for code in blocks for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    launches = [call for call in calls if isinstance(call.func, ast.Subscript)]
    assert launches
    for launch in launches:
        assert "enable_fp_fusion" in {keyword.arg for keyword in launch.keywords}, ast.unparse(launch)


def invoke(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["decodetax", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def in_a_process(*words):
    """A command that compiles a kernel of the user's own, as this process interprets."""
    command = [sys.executable, "-m", "decodetax.harness", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that holds every file that the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_kernel", "my_gluon_kernel"):
        sys.modules.pop(name, None)
    for place in ("docs/runs", "DIR"):
        shutil.copytree(ROOT / "docs" / "runs", place)
    for name in ("RUN.json", "OTHER.json", "BEFORE.json", "AFTER.json", "before.json", "after.json"):
        shutil.copy(ROOT / "docs" / "runs" / "cpu-epyc-2-cores.json", name)
    Path("RANKS.json").write_text(json.dumps(rank_run().to_json()), encoding="utf-8")
    Path("path/to").mkdir(parents=True)
    write_config(tmp_path / "path" / "to")
    Path("my_kernel.py").write_text(block("docs/extending.md", "_product_kernel"), encoding="utf-8")
    Path("my_gluon_kernel.py").write_text(block("docs/extending.md", "gluon.jit"), encoding="utf-8")
    Path("ours.toml").write_text(block("docs/extending.md", "[[price]]"), encoding="utf-8")
    return tmp_path


class SmallCpu(device.CpuDevice):
    """This processor with a small cache, so that few copies of inputs fill it."""

    def __init__(self):
        super().__init__()
        self.cache_bytes = 4096

    def release(self):
        """Nothing: collecting garbage after every case takes longer than all else here."""


@pytest.fixture
def _small(monkeypatch):
    """Runs of a tiny model with one sample a round; few cases to compile."""
    monkeypatch.setattr(timed_model, "load_timed_model", lambda _name: TINY)
    budget = Budget(time_limit_s=1e-4, warm_up_s=1e-4, min_samples=1, enough_samples=1)
    monkeypatch.setattr(session, "round_budget", lambda _share_s, **_options: budget)
    monkeypatch.setattr(ceilings, "SQUARE_SIZES", {"cpu": (8,)})
    monkeypatch.setattr(runner, "MIN_BUFFER_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(device, "open_device", lambda _name: SmallCpu())
    monkeypatch.setattr(inputs, "BLOCK", 65_537)
    few = variants.default_cases()
    monkeypatch.setattr(variants, "default_cases", lambda: (few[0], few[-1]))
    executed = cases.default_cases()
    monkeypatch.setattr(cases, "default_cases", lambda: executed[-2:])
    monkeypatch.delenv("DECODETAX_FULL_MATRIX", raising=False)


def prepared(monkeypatch, command):
    """The arguments of a command; a run that it is to go on with is made first."""
    words = arguments_of(command)
    if "--resume" in words:
        assert invoke(monkeypatch, ["run", "--quick", "-o", "RUN.json"]) == 0
        whole = json.loads(Path("RUN.json").read_text(encoding="utf-8"))
        Path("RUN.json").write_text(json.dumps({**whole, "interrupted": True}), encoding="utf-8")
    return words


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("command", runnable())
def test_commands_of_the_pages_run(monkeypatch, capsys, folder, command):
    if "--provider" not in command:  # twins are run by tests of their own
        monkeypatch.setattr(session, "check_in_interpreter", lambda *_arguments, **_options: iter(()))
    words = prepared(monkeypatch, command)
    if words[0] in {"inspect", "execute"} and "--provider" in words:
        done = in_a_process(*words)
        assert (done.returncode, done.stderr.strip()) == (0, "")
        return
    code = invoke(monkeypatch, words)
    printed = capsys.readouterr()
    if words[0] == NEEDS_GPU:
        assert (code, printed.out) == (2, "")
        assert "CUDA" in printed.err
        return
    assert code == 0, printed.err
    assert printed.out
    for option, place in itertools.pairwise(words):
        if option in {"--html", "-o", "--csv", "--markdown", "--png"}:
            assert (folder / place).exists()


def test_every_command_is_shown_on_a_page():
    found = shown()
    assert "decodetax run" in found
    assert "decodetax price --model gpt-4o-2024-08-06 --input 500 --output 700" in found
    assert {command.split()[1] for command in found} == set(cli.cli.commands)


@pytest.mark.slow
def test_the_example_of_an_own_kernel_prints_what_the_page_says(monkeypatch, capsys, folder):
    assert folder
    assert invoke(monkeypatch, ["count", "--provider", "my_kernel:my_product"]) == 0
    assert capsys.readouterr().out == block("docs/extending.md", "my_kernel:my_product: prefill")


@pytest.mark.slow
@pytest.mark.parametrize(("in_features", "wait"), [("192", False), ("100", True)], ids=["wait", "alignment"])
def test_faults_planted_in_the_example_are_found_as_the_page_says(folder, in_features, wait):
    path = folder / "my_gluon_kernel.py"
    if not wait:
        path.write_text(path.read_text(encoding="utf-8").replace("        async_copy.wait_group(0)\n", ""))
    [command] = [line for line in shown() if "my_gluon_kernel" in line]
    done = in_a_process(*arguments_of(command.replace("192", in_features)))
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith(block("docs/extending.md", f"by_rows prefill/product/m3-k{in_features}-n70"))


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_kernels_run_as_they_are_called_on_the_page(page):
    draw = torch.Generator().manual_seed(0)

    def numbers(*shape, dtype=torch.float16):
        return torch.randn(shape, generator=draw).to(dtype)

    names = {
        "x": numbers(5, 32),
        "weight": numbers(24, 32),
        "gate_up": numbers(48, 32),
        "w_int8": torch.randint(-127, 128, (24, 32), generator=draw, dtype=torch.int8),
        "scale": numbers(24).abs().float(),
        "queries": numbers(2, 20, 4, 64),
        **{name: numbers(2, 20, 2, 64) for name in ("keys", "values")},
        "q": numbers(2, 4, 64),
        **{name: numbers(2, 40, 2, 64) for name in ("k_cache", "v_cache")},
        **{name: numbers(6, 16, 2, 64) for name in ("k_pages", "v_pages")},
        **{name: numbers(2, 40, 2, 64, dtype=torch.float8_e4m3fn) for name in ("k_fp8", "v_fp8")},
        "context_lens": torch.tensor([40, 17], dtype=torch.int32),
        "block_table": torch.tensor([[4, 0, 2], [1, 3, 5]], dtype=torch.int32),
        **{name: torch.tensor(0.5) for name in ("k_scale", "v_scale")},
        "sinks": numbers(4).float(),
    }
    exec(block(page, "import decode_attention"), names)  # noqa: S102  (the page's own lines)
    assert names["out"].isfinite().all()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="would run the tests of tests/gpu inside this one")
def test_gpu_tests_skip_without_a_gpu():
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b[0-9]+ skipped", done.stdout)
    assert " passed" not in done.stdout
