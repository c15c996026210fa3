"""Loading a user's own function, and calling it on inputs."""

import colorsys
import sys

import pytest
import torch
from decodetax.harness.core.cases import DecodeAttention, PrefillAttention, PrefillMatmul
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gate import gate_of
from decodetax.harness.core.inputs import Source, draw
from decodetax.harness.core.user_function import load_user_function, load_user_functions
from decodetax.kernels import reference

MATMUL = PrefillMatmul(phase="prefill", part="product", rows=5, in_features=30, out_features=70, dtype="fp32")
PROMPTS = PrefillAttention(sequences=2, prompt=7, q_heads=4, kv_heads=2, head_dim=8, dtype="fp32")
ATTENTION = DecodeAttention(contexts=(9, 9), q_heads=4, kv_heads=2, head_dim=8, dtype="fp32")

MODULE = """
import torch

def product(x, weight, out=None):
    return torch.matmul(x, weight.t(), out=out)

def plain(x, weight):
    return x @ weight.t()

def written(x, weight, *, out, **options):
    torch.matmul(x, weight.t(), out=out)

def wrong(x, weight):
    return 1.01 * (x @ weight.t())

def short(x, weight):
    return (x @ weight.t())[:-1]

def nothing(x, weight):
    pass

def wide(x, weight):
    return (x @ weight.t()).double()

def leaving(x, weight):
    raise SystemExit(3)

def attention(q, k_cache, v_cache, context_lens):
    batch, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    found = torch.nn.functional.scaled_dot_product_attention(
        q.view(batch, kv_heads, heads // kv_heads, dim), k_cache.transpose(1, 2), v_cache.transpose(1, 2)
    )
    return found.flatten(1, 2)

def prompts(q, k, v):
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return found.transpose(1, 2)

def prompts_to(q, k, v, out):
    out.copy_(prompts(q, k, v))

def other(a, b):
    return a

def demanding(x, weight, block):
    return x

number = 3
"""


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    """A module `mine_under_test` in the current folder."""
    (tmp_path / "mine_under_test.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "broken_under_test.py").write_text("raise OSError('no\\nluck')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("mine_under_test", "broken_under_test"):
        sys.modules.pop(name, None)


def mine(name):
    return f"mine_under_test:{name}"


def inputs_of(case):
    return draw(case, Source(torch.device("cpu"), 0))


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("product", MATMUL),
        ("plain", MATMUL),
        ("written", MATMUL),
        ("attention", ATTENTION),
        ("prompts", PROMPTS),
        ("prompts_to", PROMPTS),
    ],
)
def test_functions_of_each_operation_pass_the_gate(name, case):
    function = load_user_function(mine(name))
    assert (function.operation, function.name) == (case.operation, mine(name))
    inputs = inputs_of(case)
    assert gate_of(case, inputs, reference).judge(function(inputs)).passed


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "short",
            TypeError,
            r"returned float32 of shape \(4, 70\) on cpu, not float32 of shape \(5, 70\) on cpu",
        ),
        ("wide", TypeError, r"returned float64 of shape \(5, 70\) on cpu, not float32"),
        ("nothing", TypeError, "returned a NoneType, not float32"),
        ("leaving", RuntimeError, "raised SystemExit: 3"),
    ],
)
def test_rejects_a_result_of_another_type_or_shape_and_an_exit(name, error, message):
    with pytest.raises(error, match=message):
        load_user_function(mine(name))(inputs_of(MATMUL))


WRAPPERS = {
    "imported by name": "from kernels_under_test import product",
    "called through its module": "import kernels_under_test\n\n"
    "def product(x, weight):\n    return kernels_under_test.product(x, weight)",
    "of this package": "from decodetax.kernels import prefill_matmul\n\n"
    "def product(x, weight):\n    return prefill_matmul(x, weight)",
    "in the module itself": "import triton\n\n@triton.jit\ndef kernel(x_ptr):\n    pass\n\n"
    "def product(x, weight):\n    return x",
    "none": "import torch\nimport triton\n\ndef product(x, weight):\n    return x @ weight.t()",
}


@pytest.mark.parametrize("how", WRAPPERS)
def test_finds_triton_kernels_wherever_they_come_from(tmp_path, how):
    kernels = f"{WRAPPERS['in the module itself']}\n"
    (tmp_path / "kernels_under_test.py").write_text(kernels, encoding="utf-8")
    (tmp_path / "wrapper_under_test.py").write_text(WRAPPERS[how], encoding="utf-8")
    try:
        assert load_user_function("wrapper_under_test:product").uses_triton == (how != "none")
    finally:
        for name in ("wrapper_under_test", "kernels_under_test"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mine_under_test", "'mine_under_test' is not module:function"),
        (":product", "is not module:function"),
        ("mine_under_test:", "is not module:function"),
        (mine("absent"), "mine_under_test has no function 'absent'"),
        (mine("number"), "has no function 'number'"),
        ("no_such_module:f", "'no_such_module' cannot be imported (ModuleNotFoundError"),
        ("broken_under_test:f", "cannot be imported (OSError: no luck)"),
        (mine("other"), "takes (a, b); its parameters must begin with x, weight or q, k_cache, v_cache"),
        (mine("demanding"), "block needs a default"),
    ],
)
def test_rejects_an_unsuitable_function_in_one_line(text, problem):
    with pytest.raises(UsageError) as caught:
        load_user_functions([text])
    message = str(caught.value)
    assert message.startswith("--provider: ")
    assert "\n" not in message
    assert problem in message


@pytest.fixture
def at_own_folder(tmp_path, monkeypatch):
    """The current folder is the user's; modules imported meanwhile are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


FUNCTION = "def product(x, weight):\n    return x @ weight.t()\n"


def test_files_beside_the_module_do_not_take_the_place_of_the_standard_library(at_own_folder):
    (at_own_folder / "mine.py").write_text(f"import this_is_beside, colorsys\n{FUNCTION}", encoding="utf-8")
    (at_own_folder / "this_is_beside.py").write_text("", encoding="utf-8")
    (at_own_folder / "colorsys.py").write_text("open('RAN', 'w')", encoding="utf-8")
    sys.modules.pop("colorsys", None)
    assert load_user_function("mine:product").operation == "prefill_matmul"
    assert not (at_own_folder / "RAN").exists()


@pytest.mark.parametrize("name", ["antigravity", "small_cases"])
def test_module_of_the_current_folder_is_found_before_others_of_its_name(at_own_folder, name, monkeypatch):
    monkeypatch.delitem(sys.modules, name, raising=False)
    (at_own_folder / f"{name}.py").write_text(FUNCTION, encoding="utf-8")
    function = load_user_function(f"{name}:product")
    assert function.module.__file__ == str(at_own_folder / f"{name}.py")
    monkeypatch.delitem(sys.modules, name)


def test_package_of_the_current_folder_is_found(at_own_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "colorsys", colorsys)  # what was loaded comes back
    (at_own_folder / "colorsys").mkdir()
    (at_own_folder / "colorsys" / "__init__.py").write_text("", encoding="utf-8")
    (at_own_folder / "colorsys" / "inner.py").write_text(
        f"from . import beside\n{FUNCTION}", encoding="utf-8"
    )
    (at_own_folder / "colorsys" / "beside.py").write_text("", encoding="utf-8")
    sys.modules.pop("colorsys", None)
    assert load_user_function("colorsys.inner:product").module.__name__ == "colorsys.inner"


def test_module_that_fails_can_be_loaded_again(at_own_folder):
    (at_own_folder / "mine_again.py").write_text("raise SystemExit('no')", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(UsageError, match="'mine_again' cannot be imported"):
            load_user_function("mine_again:product")
