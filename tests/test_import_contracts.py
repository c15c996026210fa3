"""The import contracts of pyproject.toml find planted imports that break them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

ROOT = Path(__file__).resolve().parents[1]

# Imports that break each contract, in every direction that it forbids, by the module they are planted in.
PLANTED = {
    "harness.core.work": ["harness.bench.timer", "harness.offline.traffic", "harness.cost.forward"],
    "harness.core.cases": ["kernels", "torch", "plotly"],
    "harness.cost.forward": ["harness.bench.timer", "harness.offline.traffic", "kernels", "triton"],
    "harness.bench.timer": ["harness.offline.traffic", "triton", "harness.bench.runner"],
    "harness.offline.traffic": ["harness.cost.forward", "harness.bench.timer", "plotly"],
    "harness.cli": ["kernels", "triton"],
    "kernels.checks": ["harness.core.work", "click"],
    "kernels.reference": ["kernels.prefill_matmul"],
}


def lint(root):
    """Exit code and report of lint-imports on the packages under a folder."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def plant(root, module, imports):
    with (root / "decodetax" / f"{module.replace('.', '/')}.py").open("a", encoding="utf-8") as file:
        for name in imports:
            ours = name.startswith(("harness", "kernels"))
            file.write(f"\ndef _():\n    import {'decodetax.' if ours else ''}{name}\n")


@pytest.fixture
def copy(tmp_path):
    """The sources and the contracts in a folder of their own."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("harness", "kernels"):
        shutil.copytree(ROOT / package, tmp_path / "decodetax" / package)
    return tmp_path


def test_planted_imports_break_every_contract(copy):
    code, report = lint(copy)
    assert (code, " broken." in report) == (0, True), report
    for module, imports in PLANTED.items():
        plant(copy, module, imports)
    code, report = lint(copy)
    assert code == 1
    assert " 0 kept" in report, report
    for module, imports in PLANTED.items():
        for name in imports:
            if name != "harness.bench.runner":
                ours = name.startswith(("harness", "kernels"))
                assert f"decodetax.{module} -> {'decodetax.' if ours else ''}{name} (l." in report
    assert "- .timer -> .runner (1 import)" in report


def test_module_outside_the_layers_breaks_their_contract(copy):
    (copy / "decodetax" / "harness" / "helpers.py").touch()
    code, report = lint(copy)
    assert (code, "helpers" in report) == (1, True), report
