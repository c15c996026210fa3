import os
import subprocess
import sys

import pytest


def run(code, *, interpret=None):
    """Standard output of a fresh Python; interpret None leaves TRITON_INTERPRET unset."""
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
    return done.stdout


def test_the_package_and_the_oracles_import_no_triton():
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


@pytest.mark.parametrize("before", IMPORTS.values(), ids=IMPORTS.keys())
def test_the_host_functions_have_their_names_after(before):
    after = (
        "from decodetax.kernels import NAME\n"
        "import decodetax.kernels, sys\n"
        "assert callable(NAME) and decodetax.kernels.NAME is NAME\n"
        "assert sys.modules['decodetax.kernels.NAME'].NAME is NAME"
    )
    names = ("decode_attention", "prefill_matmul")
    run("\n".join(part.replace("NAME", name) for part in (before, after) for name in names), interpret="1")


def test_an_unknown_name_is_an_attribute_error():
    run(
        "import decodetax.kernels as k\n"
        "try: k.prefill\n"
        "except AttributeError as error: assert 'prefill' in str(error)\n"
        "else: raise SystemExit('no error')"
    )


def test_every_exported_name_is_there():
    run(
        "import decodetax.kernels as k\n"
        "assert all(getattr(k, name) is not None for name in k.__all__)\n"
        "assert set(k.__all__) <= set(dir(k))"
    )


def test_use_interpreter_before_triton_runs_kernels_on_the_cpu():
    run(
        "import torch, decodetax.kernels as k\n"
        "assert not k.interpreting()\n"
        "k.use_interpreter()\n"
        "assert k.interpreting()\n"
        "assert (k.prefill_matmul(torch.ones(2, 3), torch.ones(4, 3)) == 3).all()"
    )


def test_use_interpreter_after_compiled_triton_is_refused():
    run(
        "import triton, decodetax.kernels as k\n"
        "try: k.use_interpreter()\n"
        "except RuntimeError as error: assert 'triton was imported before use_interpreter()' in str(error)\n"
        "else: raise SystemExit('no error')"
    )


def test_interpreting_follows_how_triton_was_imported():
    code = "import triton, os, decodetax.kernels as k\n"
    run(code + "os.environ['TRITON_INTERPRET'] = '1'; assert not k.interpreting()")
    run(code + "del os.environ['TRITON_INTERPRET']; assert k.interpreting()", interpret="1")


def test_kernels_refuse_to_load_half_interpreted():
    run(
        "import triton, os, decodetax.kernels as k; os.environ['TRITON_INTERPRET'] = '1'\n"
        "try: k.prefill_matmul\n"
        "except RuntimeError as error: assert 'TRITON_INTERPRET was set after' in str(error)\n"
        "else: raise SystemExit('no error')"
    )


def test_compiled_kernels_name_the_interpreter_to_cpu_tensors():
    run(
        "import torch, decodetax.kernels as k\n"
        "try: k.prefill_matmul(torch.ones(2, 3), torch.ones(4, 3))\n"
        "except ValueError as error: assert 'TRITON_INTERPRET=1' in str(error)\n"
        "else: raise SystemExit('no error')"
    )
