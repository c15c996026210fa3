"""Who may import whom, read from the sources, imports inside functions and for types included.

cli -> reporting -> accounting
cli -> measuring -> accounting, kernels
cli -> inspecting -> accounting, kernels, and measuring's inputs
calibrate -> accounting, numpy
kernels -> torch, triton; accounting -> the standard library alone
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ACCOUNTING, KERNELS = "decodetax.harness.accounting", "decodetax.kernels"
MEASURING, REPORTING = "decodetax.harness.measuring", "decodetax.harness.reporting"
INSPECTING, CLI = "decodetax.harness.inspecting", "decodetax.harness.cli"
MAIN, CALIBRATE = "decodetax.harness.__main__", "decodetax.harness.calibrate"

# What each part may import beside itself and the standard library. numpy is what Triton's interpreter
# computes with; pynvml tells clocks; flashinfer, flash_attn and nsight run where they are installed.
MAY_IMPORT = {
    KERNELS: {"torch", "triton", "numpy"},
    ACCOUNTING: set(),
    REPORTING: {ACCOUNTING, "matplotlib", "plotly", "tabulate"},
    MEASURING: {ACCOUNTING, KERNELS, "torch", "numpy", "pynvml", "flashinfer", "flash_attn", "nsight"},
    INSPECTING: {ACCOUNTING, KERNELS, f"{MEASURING}.inputs", "torch", "triton", "numpy"},
    CLI: {ACCOUNTING, REPORTING, MEASURING, INSPECTING, "click", "rich"},
    MAIN: {CLI},
    CALIBRATE: {ACCOUNTING, "numpy"},
    "decodetax.harness": set(),  # its own __init__
}
ORACLES = f"{KERNELS}.reference"


def sources():
    """Every module's source by its path from the root."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in ("kernels", "harness")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def sources_with(path, planted):
    """Every module empty, but for the one of measuring that names the kernels, and a planted one."""
    named = {"harness/measuring/providers.py": "from ...kernels import reference"}
    return {**dict.fromkeys(sources(), ""), **named, path: planted}


def module_of(path):
    parts = ["decodetax", *path.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module, part):
    return module == part or module.startswith(f"{part}.")


def part_of(module):
    """The longest name of a part that holds a module."""
    return max((part for part in MAY_IMPORT if within(module, part)), key=len, default=None)


def imports_of(path, source, modules):
    """Full names of the modules that a source imports; of `from package import name`, the submodule."""
    package = module_of(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*stem, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                named = f"{base}.{alias.name}"
                yield named if named in modules else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield str(node.args[0].value)


def faults_in(files):
    """A line for every import that the rule does not allow."""
    modules = {module_of(path) for path in files}
    modules |= {module.rpartition(".")[0] for module in modules}
    naming_kernels = {MEASURING: [], INSPECTING: []}
    for path, source in files.items():
        module = module_of(path)
        part = part_of(module)
        if part is None or (part == "decodetax.harness" and module != part):
            yield f"{path}: belongs to no part"
            continue
        imported = set(imports_of(path, source, modules))
        if part in naming_kernels and any(within(name, KERNELS) for name in imported):
            naming_kernels[part].append(path)
        yield from (f"{path}: imports {name}" for name in sorted(imported) if not allowed(module, part, name))
    for part, paths in naming_kernels.items():
        if len(paths) > 1:
            yield f"{part}: more than one module names the kernels: {', '.join(sorted(paths))}"


def allowed(module, part, name):
    """Whether a module of a part may import this name."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return True
    if module == ORACLES:  # plain torch: what else the package has imports triton
        return within(name, "torch")
    return within(name, part) or any(within(name, other) for other in MAY_IMPORT[part])


def test_every_import_follows_the_rule():
    assert list(faults_in(sources())) == []


def test_the_rule_sees_every_part():
    parts = {part_of(module_of(path)) for path in sources()}
    assert {KERNELS, ACCOUNTING, REPORTING, MEASURING, CLI, MAIN} <= parts
    assert any(
        within(name, KERNELS)
        for path, source in sources().items()
        if path.startswith("harness/measuring/")
        for name in imports_of(path, source, {KERNELS})
    ), "measuring runs the kernels, so its import of them must be seen"


@pytest.mark.parametrize(
    ("path", "planted", "fault"),
    [
        ("harness/accounting/work.py", "import torch", "imports torch"),
        ("harness/accounting/work.py", "import numpy as np", "imports numpy"),
        (
            "harness/accounting/work.py",
            "from ..reporting import tables",
            "imports decodetax.harness.reporting",
        ),
        ("harness/accounting/work.py", "from ... import kernels", "imports decodetax.kernels"),
        ("harness/accounting/work.py", "def f():\n    import torch.nn", "imports torch.nn"),
        ("harness/accounting/work.py", "import importlib\nimportlib.import_module('torch')", "imports torch"),
        ("harness/accounting/work.py", "__import__('triton')", "imports triton"),
        ("harness/accounting/__init__.py", "from ..measuring import gate", "harness.measuring.gate"),
        (
            "harness/accounting/cases.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..cli import main",
            "imports decodetax.harness.cli",
        ),
        ("harness/reporting/tables.py", "from ..measuring.gate import judge", "harness.measuring.gate"),
        ("harness/reporting/tables.py", "import torch", "imports torch"),
        ("harness/reporting/tables.py", "from .. import measuring", "imports decodetax.harness.measuring"),
        ("harness/reporting/summary.py", "from .. import cli", "imports decodetax.harness.cli"),
        (
            "harness/measuring/gate.py",
            "from ..reporting import tables",
            "imports decodetax.harness.reporting",
        ),
        (
            "harness/measuring/gate.py",
            "from ...kernels import reference",
            "more than one module names the kernels",
        ),
        ("harness/measuring/gate.py", "import decodetax.kernels", "more than one module names the kernels"),
        ("harness/measuring/gate.py", "import triton", "imports triton"),
        ("harness/inspecting/traffic.py", "from ..measuring.timer import measure", "harness.measuring.timer"),
        ("kernels/tiling.py", "from ..harness.accounting import peaks", "harness.accounting.peaks"),
        ("kernels/checks.py", "import click", "imports click"),
        ("kernels/reference.py", "import triton.language as tl", "imports triton.language"),
        ("kernels/reference.py", "from . import prefill_matmul", "imports decodetax.kernels.prefill_matmul"),
        ("harness/cli.py", "from ..kernels import decode_attention", "imports decodetax.kernels"),
        ("harness/cli.py", "import torch", "imports torch"),
        ("harness/calibrate/fitting.py", "import scipy.optimize", "imports scipy.optimize"),
        ("harness/calibrate/fitting.py", "from ..measuring import gate", "harness.measuring.gate"),
        ("harness/helpers.py", "import json", "belongs to no part"),
    ],
)
def test_a_planted_import_is_found(path, planted, fault):
    [found] = faults_in(sources_with(path, planted))
    assert fault in found


@pytest.mark.parametrize(
    ("path", "planted"),
    [
        (
            "harness/inspecting/traffic.py",
            "from ..measuring.inputs import draw\nfrom ...kernels import tiling",
        ),
        ("harness/inspecting/traffic.py", "from ..measuring import inputs"),
        ("harness/accounting/work.py", "import decimal, collections.abc"),
        ("harness/reporting/tables.py", "from ..accounting import samples"),
        ("harness/measuring/gate.py", "from . import timer\nfrom ..accounting import work"),
        ("harness/calibrate/fitting.py", "import numpy as np\nfrom ..accounting import kernel_time"),
    ],
)
def test_an_allowed_import_is_no_fault(path, planted):
    assert list(faults_in(sources_with(path, planted))) == []


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("import decodetax.harness.cli", id="the command line"),
        pytest.param("import decodetax.harness.accounting.token_cost", id="accounting"),
        pytest.param("import decodetax.harness.reporting.tables", id="reporting"),
    ],
)
def test_loads_neither_torch_nor_triton(statement):
    code = f"{statement}\nimport sys\nprint(*sorted({{'torch', 'triton', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
