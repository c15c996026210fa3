"""`--provider` of `decodetax count` and `decodetax inspect`: a user's own Triton kernel."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from decodetax.harness.cli import cli
from decodetax.harness.core.errors import UsageError
from decodetax.harness.offline import kernel_traffic

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
    for name in ("my_kernel", "my_others"):
        sys.modules.pop(name, None)
    return tmp_path


def count(*arguments):
    return CliRunner().invoke(cli, ["count", *arguments, "--json"], standalone_mode=False)


def rows_of(result):
    assert result.exception is None
    return json.loads(result.stdout)["rows"]


def test_an_own_kernel_is_counted_by_its_parameters():
    result = count("--provider", "my_kernel:my_product", *SIZES)
    [row] = rows_of(result)
    assert (result.return_value, row["status"], row["kernel"]) == (0, "counted", "my_kernel:my_product")
    [launch] = row["launches"]
    assert (launch["kernel"], launch["grid"], launch["programs"]) == ("_product_kernel", [3, 4, 1], 12)
    element = 4
    x, weight, out = (launch["tensors"][name] for name in ("x_ptr", "weight_ptr", "out_ptr"))
    assert x["bytes_requested"] == 4 * 130 * 72 * element  # once for each of 4 tiles of columns
    assert weight["bytes_requested"] == 3 * 200 * 72 * element
    assert (x["bytes_distinct"], weight["bytes_distinct"]) == (130 * 72 * element, 200 * 72 * element)
    assert out["bytes_written"] == 130 * 200 * element
    moved = x["bytes_requested"] + weight["bytes_requested"] + out["bytes_written"]
    needed = (130 * 72 + 200 * 72 + 130 * 200) * element
    assert row["modelled_work_bytes"] == needed
    assert row["bytes_counted_over_work"] == pytest.approx(moved / needed)
    assert row["operations"] == {"fp32 x fp32": 2 * (3 * 64) * (4 * 64) * (3 * 32)}  # tiles, padding included
    assert row["modelled_work_operations"] == 2 * 130 * 200 * 72


def test_own_kernels_stand_beside_ours_where_asked_for():
    both = count("--provider", "my_kernel:my_product", "--kernel", "prefill_matmul", *SIZES)
    assert [row["kernel"] for row in rows_of(both)] == ["prefill_matmul", "my_kernel:my_product"]


def test_counts_are_shown_as_text():
    result = CliRunner().invoke(cli, ["count", "--provider", "my_kernel:my_product", *SIZES])
    assert result.exit_code == 0
    assert re.search(r"_product_kernel +12 +x_ptr +149760 +0 +37440 ", result.stdout)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("doubled", "relative error"),
        ("one_column_wrong", "relative error"),
        ("spoiling", "relative error"),
        (
            "wider",
            "TypeError: gave float64 of shape (130, 200) on cpu, not float32 of shape (130, 200) on cpu",
        ),
        ("breaking", "OSError: no luck"),
        ("careless", "memory fault: x_ptr: program (0, 0, 0) reads byte offset 37440 "),
        ("hiding", "memory fault: x_ptr: program (0, 0, 0) reads byte offset 37440 "),
        ("by_torch", "no Triton kernel of it writes anything"),
        ("nothing_in_it", "no Triton kernel of it writes anything"),
        ("leaving", "RuntimeError: raised SystemExit: 0"),
        ("mute", "Mute"),
        ("bare", "AssertionError"),
    ],
)
def test_wrong_results_are_failed_rows_without_figures(function, reason):
    result = count("--provider", f"my_others:{function}", *SIZES)
    [row] = rows_of(result)
    assert (result.return_value, row["status"]) == (1, "failed")
    assert reason in row["reason"]
    assert not [name for name in row if "bytes" in name or "operations" in name]
    shown = CliRunner().invoke(cli, ["count", "--provider", f"my_others:{function}", *SIZES])
    assert reason in shown.stdout


@pytest.mark.parametrize("function", ["tuned_product", "benched_product", "hooked_product"])
def test_an_autotuned_kernel_is_counted_by_its_first_configuration(function):
    [row] = rows_of(count("--provider", f"my_others:{function}", *SIZES))
    assert [launch["grid"] for launch in row["launches"]] == [[5, 7, 1]]
    assert row["status"] == "counted"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(
            (
                "--provider",
                "my_kernel:my_product",
                "--rows",
                "5000000",
                *("--in-features", "1", "--out-features", "1"),
            ),
            "--rows: 5e+06 results are over 4.19e+06, too many to interpret",
            id="too many programs",
        ),
        pytest.param(
            ("--provider", "my_others:later"),
            "--provider: my_others:later is asynchronous; it must give its result when it is called",
            id="asynchronous",
        ),
        pytest.param(
            ("--provider", "my_kernel:my_product", "--rows", "100000"),
            "--rows: 5.24e+10 operations are over 3e+09, too many to interpret",
            id="too large",
        ),
        pytest.param(
            ("--provider", "my_kernel:none"), "--provider: my_kernel has no function 'none'", id="unknown"
        ),
    ],
)
def test_what_cannot_be_counted_is_named(arguments, words):
    error = count(*arguments).exception
    assert isinstance(error, UsageError)
    assert words in str(error)


def test_what_a_function_prints_is_no_part_of_the_json():
    result = count("--provider", "my_others:talking", *SIZES)
    assert rows_of(result)[0]["status"] == "counted"
    assert "a word on standard output" in result.stderr


def test_a_later_provider_that_is_not_there_is_told_of_before_any_is_counted(monkeypatch):
    monkeypatch.setattr(kernel_traffic, "count_row", lambda *_a, **_k: pytest.fail("it was counted"))
    result = count(
        "--kernel", "prefill_matmul", "--provider", "my_others:breaking", "--provider", "nowhere:f"
    )
    assert "'nowhere' cannot be imported" in str(result.exception)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("def f(:", "SyntaxError: invalid syntax (my_bad.py, line 1)"),
        ("raise ValueError('\\x1b[31m red')", "ValueError: [31m red"),
    ],
    ids=["leaves", "syntax", "control characters"],
)
def test_a_module_that_cannot_be_imported_is_told_in_one_line(folder, text, words):
    (folder / "my_bad.py").write_text(text, encoding="utf-8")
    sys.modules.pop("my_bad", None)
    error = count("--provider", "my_bad:f").exception
    assert isinstance(error, UsageError)
    assert str(error) == f"--provider: 'my_bad' cannot be imported ({words})"


def inspect(*arguments, interpret="1"):
    """In a process of its own: one that interprets compiles nothing."""
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    command = [sys.executable, "-m", "decodetax.harness", "inspect", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_own_kernel_is_compiled_for_gpus_that_are_not_there():
    done = inspect("--gpu", "a100", "h100", "--provider", "my_kernel:my_product", "--dtype", "bf16", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["rows"]
    shapes = ["rows_8192", "rows_64", "rows_1"]
    assert [(row["gpu"], row["variant"]) for row in rows] == [
        (gpu, f"{shape}:_product_kernel") for gpu in ("A100-SXM4-80GB", "H100-SXM5-80GB") for shape in shapes
    ]
    for row in rows:
        assert (row["kernel"], row["dtype"], row["status"]) == ("my_kernel:my_product", "bf16", "ok")
        assert row["tiling"]["block_m"] == 64
        assert row["registers"] > 0
    assert {row["matrix_instruction"] for row in rows if row["gpu"].startswith("A100")} == {"HMMA"}


def test_each_configuration_of_an_autotuned_kernel_is_compiled():
    done = inspect(
        "--gpu", "sm_80", "--provider", "my_others:tuned_product", "--dtype", "fp16", "--json", interpret="0"
    )
    rows = json.loads(done.stdout)["rows"]
    assert [row["tiling"]["block_m"] for row in rows] == [32, 64] * 3
    assert rows[1]["variant"].startswith("rows_8192:_product_kernel(block_m 64, block_n 64, block_k 32")
    hooked = inspect("--gpu", "sm_80", "--provider", "my_others:hooked_product", "--dtype", "fp16", "--json")
    assert [row["status"] for row in json.loads(hooked.stdout)["rows"]] == ["ok"] * 3


def test_a_module_that_has_triton_interpret_is_told_in_one_line(folder):
    text = 'import os\nos.environ["TRITON_INTERPRET"] = "1"\n' + EXAMPLE
    (folder / "my_interpreted.py").write_text(text, encoding="utf-8")
    done = inspect("--gpu", "h100", "--provider", "my_interpreted:my_product")
    assert (done.returncode, done.stdout) == (2, "")
    assert "my_interpreted:my_product sets TRITON_INTERPRET before it imports Triton" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_functions_that_cannot_be_compiled_are_failed_rows():
    providers = [
        word for name in ("breaking", "idle", "attention") for word in ("--provider", f"my_others:{name}")
    ]
    done = inspect("--gpu", "h100", *providers, "--dtype", "bf16", "--json")
    assert done.returncode == 1
    reasons = [(row["kernel"], row["status"], row["reason"]) for row in json.loads(done.stdout)["rows"]]
    assert reasons == [
        *[("my_others:breaking", "failed", "OSError: no luck")] * 3,
        *[("my_others:idle", "failed", "launches no Triton kernel")] * 3,
        ("my_others:attention", "failed", "launches no Triton kernel"),
    ]


def test_dtype_that_does_not_go_with_a_provider_is_named():
    done = inspect("--gpu", "h100", "--provider", "my_kernel:my_product", "--dtype", "e4m3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--dtype: 'e4m3' does not go with --provider; all, bf16, fp16, fp32 do" in done.stderr
    assert len(done.stderr.splitlines()) == 1
