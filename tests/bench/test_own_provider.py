"""A user's own function as a provider: what it may be, and that it is gated and timed like ours."""

import sys

import pytest
from decodetax.harness.bench import ceilings, own_provider, session
from decodetax.harness.bench.own_provider import own_provider as provider_of
from decodetax.harness.bench.own_provider import own_providers
from decodetax.harness.bench.providers import gate_of
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.inputs import draw
from fakes import FakeDevice, decode_case, matmul_case, source
from test_session import run, settings

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


@pytest.mark.parametrize("name", ["product", "plain", "written", "attention"])
def test_functions_of_either_operation_pass_the_gate(name):
    operation, provider = provider_of(mine(name))
    case = decode_case() if name == "attention" else matmul_case()
    assert (operation, provider.name) == (case.operation, mine(name))
    inputs = draw(case, source())
    assert gate_of(case, inputs).judge(provider.run(inputs)).passed
    assert provider.refuses(case, FakeDevice()) is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("short", r"float32 of shape \(4, 70\) on cpu"),
        ("wide", r"float64 of shape \(5, 70\) on cpu"),
        ("nothing", "a NoneType"),
    ],
)
def test_a_result_of_another_kind_is_told(name, found):
    with pytest.raises(TypeError, match=rf"gave {found}, not float32 of shape \(5, 70\) on cpu"):
        provider_of(mine(name))[1].run(draw(matmul_case(), source()))


def test_a_function_that_would_end_the_process_only_raises():
    with pytest.raises(RuntimeError, match="raised SystemExit: 3"):
        provider_of(mine("leaving"))[1].run(draw(matmul_case(), source()))


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
def test_a_triton_kernel_is_never_timed_interpreted_wherever_it_comes_from(tmp_path, how):
    kernels = f"{WRAPPERS['in the module itself']}\n"
    (tmp_path / "kernels_under_test.py").write_text(kernels, encoding="utf-8")
    (tmp_path / "wrapper_under_test.py").write_text(WRAPPERS[how], encoding="utf-8")
    try:
        refused = provider_of("wrapper_under_test:product")[1].refuses(matmul_case(), FakeDevice())
    finally:
        for name in ("wrapper_under_test", "kernels_under_test"):
            sys.modules.pop(name, None)
    assert refused == (None if how == "none" else "the interpreter is not timed; see the interpreter checks")


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
def test_what_is_no_provider_is_one_clear_line(text, problem):
    with pytest.raises(UsageError) as caught:
        own_providers([text])
    message = str(caught.value)
    assert message.startswith("--provider: ")
    assert "\n" not in message
    assert problem in message


def test_functions_are_sorted_by_operation_each_once():
    found = own_providers([mine("attention"), mine("plain"), mine("plain"), mine("product")])
    names = {operation: [p.name for p in providers] for operation, providers in found.items()}
    assert names == {
        "decode_attention": [mine("attention")],
        "prefill_matmul": [mine("plain"), mine("product")],
    }


def test_a_run_gates_and_times_them_beside_ours(monkeypatch):
    monkeypatch.setattr(ceilings, "SQUARE_SIZES", {"cpu": (8,), "cuda": (8,)})
    monkeypatch.setattr(session, "check_twins", lambda *_args, **_options: iter(()))
    result = run(providers=(mine("product"), mine("wrong"), mine("attention")))
    statuses = {(row.case.operation, row.provider, row.status) for row in result.rows}
    assert ("prefill_matmul", mine("product"), "ok") in statuses
    assert ("prefill_matmul", mine("wrong"), "failed") in statuses
    assert ("decode_attention", mine("attention"), "ok") in statuses
    assert (
        session.settings_of(result).providers
        == settings(providers=(mine("product"), mine("wrong"), mine("attention"))).providers
    )


def test_a_triton_kernel_is_checked_in_the_interpreter_and_never_timed_there(monkeypatch):
    _, provider = provider_of(mine("plain"))
    monkeypatch.setattr(own_provider, "interpreting", lambda: True)
    assert provider.refuses(matmul_case(), FakeDevice()) is None
    monkeypatch.setattr(own_provider, "has_triton_kernel", lambda _module: True)
    assert "the interpreter is not timed" in provider.refuses(matmul_case(), FakeDevice())


def test_modules_with_kernels_of_triton_are_told_apart():
    from decodetax.kernels import merge_states  # noqa: PLC0415  (loads the kernels' module)

    assert own_provider.has_triton_kernel(sys.modules[merge_states.__module__])
    provider_of(mine("plain"))
    assert not own_provider.has_triton_kernel(sys.modules["mine_under_test"])
