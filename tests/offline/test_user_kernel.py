"""`--provider` of `decodetax count` and `decodetax inspect`: a user's own Triton kernel."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from decodetax.harness.offline import kernel_traffic
from hand_made import assert_misuse, decodetax, strict_json

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
EXAMPLE = re.findall(r"```python\n(# my_kernel.py\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
OTHERS = """
import sys

import torch
import triton
import triton.language as tl
from my_kernel import _product_kernel, my_product


@triton.jit
def _careless_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets))


configs = [triton.Config({"BLOCK_M": size, "BLOCK_N": size, "BLOCK_K": 32}) for size in (32, 64)]
tuned = triton.autotune(configs=configs, key=["depth"])(_product_kernel)


def doubled(x, weight):
    return 2 * my_product(x, weight)


def breaking(x, weight):
    raise OSError("no luck")


def careless(x, weight):
    out = x.new_empty((len(x), len(weight)))
    _careless_kernel[(1,)](x, out, x.numel(), BLOCK=triton.next_power_of_2(x.numel()))
    return out


def by_torch(x, weight):
    return x @ weight.t()


def hiding(x, weight):
    try:
        careless(x, weight)
    except Exception:
        pass
    return my_product(x, weight)


def one_column_wrong(x, weight):
    out = my_product(x, weight)
    out[:, 3] += 7
    return out


def spoiling(x, weight):
    x.zero_()
    return my_product(x, weight)


def wider(x, weight):
    return my_product(x, weight).double()


def nothing_in_it(x, weight):
    _product_kernel[(0, 1)](x, weight, x, 1, 1, 1, BLOCK_M=16, BLOCK_N=16, BLOCK_K=16)
    return x @ weight.t()


def leaving(x, weight):
    sys.exit(0)


class Mute(Exception):
    def __str__(self):
        raise ValueError


def mute(x, weight):
    raise Mute


def bare(x, weight):
    assert x is None


def talking(x, weight):
    print("a word on standard output")
    return my_product(x, weight)


async def later(x, weight):
    return x


def timed_by(kernel_call, quantiles):
    kernel_call()
    return [1.0, 1.0, 1.0]


hooked_configs = [
    triton.Config(
        {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32},
        pre_hook=lambda named: named["out_ptr"].resize_(named["rows"], named["columns"]),
    )
]
hooked = triton.autotune(configs=hooked_configs, key=["depth"])(_product_kernel)
benched = triton.autotune(configs=configs, key=["depth"], do_bench=timed_by)(_product_kernel)


def _by(kernel, x, weight):
    (rows, depth), columns = x.shape, len(weight)
    out = x.new_empty((rows, columns))
    grid = lambda meta: (triton.cdiv(rows, meta["BLOCK_M"]), triton.cdiv(columns, meta["BLOCK_N"]))
    kernel[grid](x, weight, out, rows, columns, depth)
    return out


def tuned_product(x, weight):
    return _by(tuned, x, weight)


def benched_product(x, weight):
    return _by(benched, x, weight)


def hooked_product(x, weight):
    (rows, depth), columns = x.shape, len(weight)
    out = x.new_empty(0)
    hooked[(triton.cdiv(rows, 32), triton.cdiv(columns, 32))](x, weight, out, rows, columns, depth)
    assert out.shape == (rows, columns)
    return out


def idle(x, weight):
    return x.new_empty((len(x), len(weight)))


def attention(q, k_cache, v_cache, context_lens):
    return q
"""
SIZES = ("--rows", "130", "--in-features", "72", "--out-features", "200", "--dtype", "fp32")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_kernel.py").write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "my_others.py").write_text(OTHERS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_kernel", "my_others", "my_bad"):
        sys.modules.pop(name, None)
    return tmp_path


def count(function, *arguments):
    """Exit code, the rows, and standard error."""
    outcome = decodetax("count", "--provider", function, *arguments, *SIZES, "--json")
    return outcome.code, strict_json(outcome.out)["rows"], outcome.err


def test_counts_each_parameter_of_a_user_kernel():
    code, [row], _ = count("my_kernel:my_product")
    assert (code, row["status"], row["kernel"]) == (0, "counted", "my_kernel:my_product")
    [launch] = row["launches"]
    assert (launch["kernel"], launch["grid"], launch["programs"]) == ("_product_kernel", [3, 4, 1], 12)
    element = 4
    x, weight, out = (launch["tensors"][name] for name in ("x_ptr", "weight_ptr", "out_ptr"))
    assert x["bytes_requested"] == 4 * 130 * 72 * element  # once for each of 4 columns of tiles
    assert weight["bytes_requested"] == 3 * 200 * 72 * element
    assert (x["bytes_distinct"], weight["bytes_distinct"]) == (130 * 72 * element, 200 * 72 * element)
    assert out["bytes_written"] == 130 * 200 * element
    moved = x["bytes_requested"] + weight["bytes_requested"] + out["bytes_written"]
    minimum = (130 * 72 + 200 * 72 + 130 * 200) * element
    assert row["modelled_work_bytes"] == minimum
    assert row["bytes_counted_over_work"] == pytest.approx(moved / minimum)
    assert row["operations"] == {"fp32 x fp32": 2 * (3 * 64) * (4 * 64) * (3 * 32)}  # tiles, padding included
    assert row["modelled_work_operations"] == 2 * 130 * 200 * 72


def test_counts_our_kernel_too_if_asked():
    _, rows, _ = count("my_kernel:my_product", "--kernel", "prefill_matmul")
    assert [row["kernel"] for row in rows] == ["prefill_matmul", "my_kernel:my_product"]


def test_shows_counts_as_text():
    outcome = decodetax("count", "--provider", "my_kernel:my_product", *SIZES)
    assert outcome.code == 0
    assert re.search(r"_product_kernel +12 +x_ptr +149,760 +0 +37,440\n", outcome.out)
    assert max(map(len, outcome.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("doubled", "relative error"),
        ("one_column_wrong", "relative error"),
        ("spoiling", "relative error"),
        (
            "wider",
            "TypeError: returned float64 of shape (130, 200) on cpu, not float32 of shape (130, 200) on cpu",
        ),
        ("breaking", "OSError: no luck"),
        ("careless", "memory fault: x_ptr: program (0, 0, 0) reads byte offset 37440 "),
        ("hiding", "memory fault: x_ptr: program (0, 0, 0) reads byte offset 37440 "),
        ("by_torch", "its Triton kernels write nothing"),
        ("nothing_in_it", "its Triton kernels write nothing"),
        ("leaving", "RuntimeError: raised SystemExit: 0"),
        ("mute", "Mute"),
        ("bare", "AssertionError"),
    ],
)
def test_a_wrong_function_is_a_failed_row_without_figures(function, reason):
    code, [row], _ = count(f"my_others:{function}")
    assert (code, row["status"]) == (1, "failed")
    assert reason in row["reason"]
    assert not [name for name in row if "bytes" in name or "operations" in name]


def test_shows_the_reason_of_a_failed_row():
    outcome = decodetax("count", "--provider", "my_others:breaking", *SIZES)
    assert (outcome.code, outcome.out.splitlines()[1]) == (1, "failed: OSError: no luck")


@pytest.mark.parametrize("function", ["tuned_product", "benched_product", "hooked_product"])
def test_an_autotuned_kernel_is_counted_in_its_first_configuration(function):
    _, [row], _ = count(f"my_others:{function}")
    assert [launch["grid"] for launch in row["launches"]] == [[5, 7, 1]]
    assert row["status"] == "counted"


def test_output_of_a_function_goes_to_stderr():
    _, [row], err = count("my_others:talking")
    assert row["status"] == "counted"
    assert "a word on standard output" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ("my_kernel:my_product", "--rows", 5000000, "--in-features", 1, "--out-features", 1),
            "--rows: 5e+06 results are over 4.19e+06, too many to interpret",
            id="too many programs",
        ),
        pytest.param(
            ("my_kernel:my_product", "--rows", 100000),
            "--rows: 5.24e+10 operations are over 3e+09, too many to interpret",
            id="too large",
        ),
        pytest.param(
            ("my_others:later",),
            "--provider: my_others:later is asynchronous; it must give its result when it is called",
            id="asynchronous",
        ),
        pytest.param(
            ("my_kernel:none",), "--provider: my_kernel has no function 'none'", id="no such function"
        ),
        pytest.param(
            ("my_others:breaking", "--kernel", "prefill_matmul", "--provider", "nowhere:f"),
            "--provider: 'nowhere' cannot be imported",
            id="a later provider",
        ),
    ],
)
def test_rejects_what_cannot_be_counted_before_counting(monkeypatch, arguments, message):
    monkeypatch.setattr(kernel_traffic, "count_row", lambda *_a, **_k: pytest.fail("it was counted"))
    assert_misuse(decodetax("count", "--provider", *arguments), message)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("def f(:", "SyntaxError: invalid syntax (my_bad.py, line 1)"),
        ("raise ValueError('\\x1b[31m red')", "ValueError: [31m red"),
    ],
    ids=["leaves", "syntax", "control characters"],
)
def test_rejects_a_module_that_cannot_be_imported(folder, text, words):
    (folder / "my_bad.py").write_text(text, encoding="utf-8")
    outcome = decodetax("count", "--provider", "my_bad:f")
    assert_misuse(outcome)
    assert outcome.err == f"decodetax: --provider: 'my_bad' cannot be imported ({words})\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "e4m3"), "--dtype: with --provider it must be all, bf16, fp16, fp32, not 'e4m3'"),
        ((), "my_kernel:my_product sets TRITON_INTERPRET before it imports Triton"),  # as this process does
    ],
    ids=["dtype", "interpreter"],
)
def test_rejects_what_cannot_be_compiled(monkeypatch, arguments, message):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the command removes it
    assert_misuse(
        decodetax("inspect", "--gpu", "h100", "--provider", "my_kernel:my_product", *arguments), message
    )


def inspect(*arguments, interpret="1"):
    """Exit code and rows of a process of its own: a process that interprets cannot compile."""
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    command = [sys.executable, "-m", "decodetax.harness", "inspect", *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, strict_json(done.stdout)["rows"]


@pytest.mark.slow
def test_compiles_a_user_kernel_for_each_gpu_and_shape():
    functions = ("my_kernel:my_product", "my_others:breaking", "my_others:idle", "my_others:attention")
    providers = [word for function in functions for word in ("--provider", function)]
    code, rows = inspect("--gpu", "a100", "h100", *providers, "--dtype", "bf16")
    assert code == 1
    shapes, gpus = ["rows_8192", "rows_64", "rows_1"], ("A100-SXM4-80GB", "H100-SXM5-80GB")
    compiled = [row for row in rows if row["kernel"] == "my_kernel:my_product"]
    assert [(row["gpu"], row["variant"]) for row in compiled] == [
        (gpu, f"{shape}:_product_kernel") for gpu in gpus for shape in shapes
    ]
    for row in compiled:
        assert (row["dtype"], row["status"], row["tiling"]["block_m"]) == ("bf16", "ok", 64)
        assert row["registers"] > 0
    assert {row["matrix_instruction"] for row in compiled if row["gpu"].startswith("A100")} == {"HMMA"}
    assert [(row["kernel"], row["status"], row["reason"]) for row in rows[len(compiled) :]] == [
        *[("my_others:breaking", "failed", "OSError: no luck")] * 6,
        *[("my_others:idle", "failed", "launches no Triton kernel")] * 6,
        *[("my_others:attention", "failed", "launches no Triton kernel")] * 2,
    ]


@pytest.mark.slow
def test_compiles_each_configuration_of_an_autotuned_kernel():
    providers = ("--provider", "my_others:tuned_product", "--provider", "my_others:hooked_product")
    _, rows = inspect("--gpu", "sm_80", *providers, "--dtype", "fp16", interpret="0")
    tuned = [row for row in rows if row["kernel"] == "my_others:tuned_product"]
    assert [row["tiling"]["block_m"] for row in tuned] == [32, 64] * 3
    assert tuned[1]["variant"].startswith("rows_8192:_product_kernel(block_m 64, block_n 64, block_k 32")
    assert [row["status"] for row in rows[len(tuned) :]] == ["ok"] * 3
