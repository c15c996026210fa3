"""Imports in fresh processes: Triton only when needed, functions not hidden by modules, use_interpreter."""

import os
import subprocess
import sys

import pytest


def run(code, *, interpret=None):
    """Runs code in a fresh Python; interpret None leaves TRITON_INTERPRET unset."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret is not None:
        environment["TRITON_INTERPRET"] = interpret
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_package_and_oracles_do_not_import_triton():
    run("import decodetax.kernels.reference, sys; assert 'triton' not in sys.modules")
    run("import decodetax.kernels as k, sys; k.interpreting(); dir(k); assert 'triton' not in sys.modules")


IMPORTS = {
    "the_module_first": "import decodetax.kernels.NAME",
    "a_name_of_the_module_first": "from decodetax.kernels.NAME import NAME as first",
    "by_import_module": "import importlib; importlib.import_module('decodetax.kernels.NAME')",
    "another_module_first": "import decodetax.kernels.decode_tiling, decodetax.kernels.checks",
    "the_function_first": "from decodetax.kernels import NAME as first",
    "everything": "from decodetax.kernels import *",
}


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(code, id=name, marks=[] if name == "the_module_first" else pytest.mark.slow)
        for name, code in IMPORTS.items()
    ],
)
def test_function_is_not_hidden_by_its_module(before):
    after = (
        "from decodetax.kernels import NAME\n"
        "import decodetax.kernels, sys\n"
        "assert callable(NAME) and decodetax.kernels.NAME is NAME\n"
        "assert sys.modules['decodetax.kernels.NAME'].NAME is NAME"
    )
    names = ("decode_attention", "prefill_attention", "prefill_matmul", "merge_states", "gpu_limits")
    run("\n".join(part.replace("NAME", name) for part in (before, after) for name in names), interpret="1")


def test_use_interpreter_runs_kernels_on_the_cpu_and_every_exported_name_exists():
    run(
        "import torch, decodetax.kernels as k\n"
        "assert not k.interpreting()\n"
        "k.use_interpreter()\n"
        "assert k.interpreting()\n"
        "assert (k.prefill_matmul(torch.ones(2, 3), torch.ones(4, 3)) == 3).all()\n"
        "assert all(getattr(k, name) is not None for name in k.__all__)\n"
        "assert set(k.__all__) <= set(dir(k))\n"
        "try: k.prefill\n"
        "except AttributeError as error: assert 'prefill' in str(error)\n"
        "else: raise SystemExit('no error')"
    )


@pytest.mark.slow
def test_rejects_use_interpreter_after_triton_and_cpu_tensors_without_it():
    run(
        "import torch, triton, decodetax.kernels as k\n"
        "try: k.use_interpreter()\n"
        "except RuntimeError as error: assert 'triton was imported before use_interpreter()' in str(error)\n"
        "else: raise SystemExit('no error')\n"
        "try: k.prefill_matmul(torch.ones(2, 3), torch.ones(4, 3))\n"
        "except ValueError as error: assert 'TRITON_INTERPRET=1' in str(error)\n"
        "else: raise SystemExit('no error')\n"
        "import os; os.environ['TRITON_INTERPRET'] = '1'; assert not k.interpreting()"
    )


@pytest.mark.slow
def test_interpreting_follows_how_triton_was_imported():
    run(
        "import triton, os, decodetax.kernels as k\n"
        "del os.environ['TRITON_INTERPRET']; assert k.interpreting()",
        interpret="1",
    )


@pytest.mark.slow
def test_kernels_reject_late_environment_change():
    run(
        "import triton, os, decodetax.kernels as k; os.environ['TRITON_INTERPRET'] = '1'\n"
        "try: k.prefill_matmul\n"
        "except RuntimeError as error: assert 'TRITON_INTERPRET was set after' in str(error)\n"
        "else: raise SystemExit('no error')"
    )
