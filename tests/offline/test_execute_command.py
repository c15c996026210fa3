"""`decodetax execute`: the cases, the rows, the text, and faults planted in kernels."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from compiled_program import output_of
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.execution import cases, rows
from decodetax.harness.offline.execution.rows import ExecutedRow
from hand_made import assert_misuse, decodetax, strict_json

FIGURES = {
    "instructions": {"mma": 700.0, "other": 70.0},
    "sectors": {"q_ptr": {"requested": 40.0, "written": 0.0}, "out_ptr": {"requested": 0.0, "written": 3.0}},
    "bank_conflicts": 9.0,
}
ROW = ExecutedRow(
    kernel="decode_attention",
    case="ragged",
    gpu="A100-SXM4-80GB",
    dtype="bf16",
    status="ok",
    sm_count=3,
    relative_error=0.0024,
    tolerance=0.0156,
    launches=(
        {"kernel": "_split_kv_kernel", "grid": [6], "ctas": 6, "counters": FIGURES},
        {"kernel": "_combine_kernel", "grid": [6, 4], "ctas": 24, "counters": FIGURES},
    ),
    compile_s=1.0,
    execute_s=2.0,
)
VIOLATION = {
    "kind": "shared race",
    "kernel": "_split_kv_kernel",
    "detail": "written by warp 1",
    "tensor": "",
    "shared_address": 4096,
    "cta": [3, 0, 0],
    "warp": 2,
    "ptx_line": 812,
    "ptx": "ld.shared.b32 %r1, [%r2]",
    "source": "decode_tile.py:120",
    "count": 12,
}


def rows_by_hand(monkeypatch, *answers):
    """The command with these rows as its answer."""
    monkeypatch.setattr(rows, "execute_cases", lambda *_args, **_named: answers)
    return lambda *arguments: decodetax("execute", "--gpu", "a100", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "fp64"], "--dtype: 'fp64' is not one of all, bf16"),
        (["--kernel", "merge_states", "--dtype", "int8"], "--dtype: no case of merge_states has int8"),
        (["--kernel", "decode_attention", "--rows", 5], "--rows: no prefill_matmul is executed"),
        (["--context", 70_000], "--context: 560,000 KV tokens are too many to execute; at most 65,536"),
        (
            ["--rows", 3, "--in-features", 9999, "--out-features", 9999],
            "--rows: 3,199,360,032 operations are too many",
        ),
        (["--q-heads", 3], "--q-heads: 3 is not 1 to 128 times --kv-heads 8"),
        (["--provider", "no_such_module:f"], "--provider: 'no_such_module' cannot be imported"),
        (["h10"], "--gpu: 'h10' is not a known GPU"),
    ],
    ids=["dtype", "no case", "no such kernel", "context", "operations", "heads", "provider", "gpu"],
)
def test_rejects(monkeypatch, arguments, message):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # --provider unsets it: later tests have it again
    assert_misuse(decodetax("execute", "--gpu", "a100", *arguments), message)


def test_executes_each_case_for_each_gpu(monkeypatch):
    monkeypatch.delenv("DECODETAX_FULL_MATRIX", raising=False)
    outcome = decodetax("execute", "--gpu", "a100", "h100", "--kernel", "merge_states", "--json")
    assert (outcome.code, outcome.err.strip()) == (0, "")
    found = strict_json(outcome.out)["rows"]
    assert [(row["gpu"], row["case"], row["dtype"]) for row in found] == [
        (gpu, *case)
        for gpu in ("A100-SXM4-80GB", "H100-SXM5-80GB")
        for case in (
            ("rows_15", "bf16"),
            ("rows_7_d72", "fp16"),
            ("parts_5_mask_heads_first_out_e4m3", "bf16"),
        )
    ]
    for row in found:
        assert (row["status"], row["reason"], row["violations"], row["provenance"]) == (
            "ok",
            None,
            [],
            "executed",
        )
        assert 0 < row["relative_error"] < row["tolerance"]
        assert 0 < row["lse_error"] < row["lse_tolerance"]
        [launch] = row["launches"]
        assert (launch["kernel"], launch["ctas"], launch["num_warps"]) == ("_merge_states_kernel", 1, 4)


def test_text_has_80_columns_and_says_what_failed_where(monkeypatch):
    skipped = replace(
        ROW, status="skipped", reason="TMA descriptors need compute capability 9.0", launches=()
    )
    others = [VIOLATION | {"source": f"decode_tile.py:{line}"} for line in range(200, 206)]
    violations = (VIOLATION, VIOLATION | {"ptx_line": 813}, *others)
    execute = rows_by_hand(
        monkeypatch,
        ROW,
        replace(ROW, dtype="fp16", status="failed", reason="shared race", violations=violations),
        skipped,
        replace(skipped, dtype="int8"),
    )
    outcome = execute()
    assert outcome.code == 1
    lines = outcome.out.splitlines()
    assert lines[0] == "decode_attention on A100-SXM4-80GB"
    assert "ragged  bf16     3  6 + 24  0.0024      0.016           0  ok" in lines
    assert "ragged  fp16     3  6 + 24  0.0024      0.016          96  failed" in lines
    assert max(map(len, lines)) <= 80
    text = " ".join(outcome.out.split())
    assert "failed: A100-SXM4-80GB decode_attention ragged fp16: shared race" in text
    assert "shared race, 12 times: shared address 4096, written by warp 1; _split_kv_kernel" in text
    assert "at decode_tile.py:120, CTA (3, 0, 0), warp 2; PTX line 812: ld.shared.b32 %r1, [%r2]; and" in text
    assert "and at 1 more PTX lines" in text
    assert "and 2 more; --json has them all" in text
    assert (
        "skipped: A100-SXM4-80GB, cases: 2, TMA descriptors need compute capability 9.0: ragged bf16" in text
    )
    assert text.endswith("cases: 1 ok, 1 failed, 2 skipped; 60 CTAs executed in random order; 96 violations")
    wide = execute("--wide").out
    assert "split_kv 6, combine 6x4" in wide
    assert " ".join(wide.splitlines()[5].split()).endswith("1,540 86 18 0 0 ok")


def test_what_is_not_supported_is_listed_and_no_failure(monkeypatch):
    reason = "UnsupportedPtxError: PTX line 9: tcgen05.mma"
    outcome = rows_by_hand(monkeypatch, ROW, replace(ROW, status="unsupported", reason=reason, launches=()))()
    assert outcome.code == 0
    assert f"unsupported: A100-SXM4-80GB, cases: 1, {reason}: ragged bf16" in " ".join(outcome.out.split())


def test_a_case_whose_process_ends_is_a_failed_row(monkeypatch):
    monkeypatch.setattr(rows, "_WORKER", "decodetax.harness.no_such_module")
    [row] = rows.execute_cases([find_gpu("a100")], cases.default_cases()[:1])
    assert (row.status, row.case) == ("failed", "contiguous")
    assert "no_such_module" in row.reason


def test_a_case_that_does_not_end_is_a_failed_row(monkeypatch):
    monkeypatch.setattr(rows, "_CASE_LIMIT_S", 0.1)
    [row] = rows.execute_cases([find_gpu("a100")], cases.default_cases()[:1])
    assert (row.status, row.reason) == ("failed", "timed out after 0 s")


def test_cases_have_names_of_their_own_and_pass_through_json():
    listed = cases.full_cases()
    assert not [
        name for name, times in Counter((c.kernel, c.name, c.dtype) for c in listed).items() if times > 1
    ]
    assert set(cases.default_cases()) < set(listed)
    assert [cases.from_json(json.loads(json.dumps(cases.to_json(case)))) for case in listed] == list(listed)


@pytest.mark.parametrize(("sm", "matmuls"), [(80, 78), (86, 78), (89, 78), (90, 107), (100, 110), (120, 107)])
def test_number_of_cases_of_each_target(sm, matmuls):
    def counted(listed):
        return Counter(case.kernel for case in listed if cases.skip_reason(case, sm) is None)

    assert counted(cases.full_cases()) == {
        "decode_attention": 114,
        "prefill_attention": 16,
        "prefill_matmul": matmuls,
        "merge_states": 7,
    }
    least = counted(cases.default_cases())
    assert min(least["decode_attention"], least["prefill_matmul"]) >= 20


def test_the_docs_have_the_numbers_of_cases():
    def counted(listed, sm):
        return Counter(case.kernel for case in listed if cases.skip_reason(case, sm) is None)

    full, tma = counted(cases.full_cases(), 80), counted(cases.full_cases(), 90)
    docs = Path(__file__).parents[2] / "docs"
    assert (
        f"executes {full['decode_attention']} decode attentions, {full['prefill_attention']} prefill "
        f"attentions, {full['merge_states']} merges, and {full['prefill_matmul']} (A100, RTX 3090, L40S) or "
        f"{tma['prefill_matmul']} (H100, RTX 5090) matmuls on each GPU"
    ) in (docs / "evidence.md").read_text(encoding="utf-8")
    least, tma = counted(cases.default_cases(), 80), counted(cases.default_cases(), 90)
    assert (
        f"among {least['decode_attention']} decode attentions, {least['prefill_attention']} prefill "
        f"attentions, {least['prefill_matmul']} matmuls ({tma['prefill_matmul']} where there are TMA "
        f"descriptors) and {least['merge_states']} merges"
    ) in (docs / "commands.md").read_text(encoding="utf-8")


PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"```python\n(# my_kernel.py\n.*?)```", PAGE, re.DOTALL)[0]
FUNCTIONS = """
import triton
import triton.language as tl
from my_kernel import _product_kernel, my_product


@triton.jit
def _add_kernel(x_ptr, out_ptr, size, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, mask=offsets < LIMIT), mask=offsets < size)


configs = [triton.Config({"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32}, num_warps=w) for w in (2, 4)]
_tuned_kernel = triton.autotune(configs=configs, key=["depth"])(_product_kernel)


def right(x, weight, out=None):
    print("a word on standard output")
    return my_product(x, weight, out)


def tuned(x, weight):
    out = x.new_empty((len(x), len(weight)))
    grid = lambda sizes: (triton.cdiv(len(x), sizes["BLOCK_M"]), triton.cdiv(len(weight), sizes["BLOCK_N"]))
    _tuned_kernel[grid](x, weight, out, len(x), len(weight), x.shape[1])
    return out


def doubled(x, weight):
    return 2 * right(x, weight)


def outside(x, weight):
    out = x.new_empty((len(x), len(weight)))
    _add_kernel[(1,)](x, out, out.numel(), LIMIT=2 * x.numel(), BLOCK=triton.next_power_of_2(2 * x.numel()))
    return right(x, weight)


def dead_cache(q, k_cache, v_cache, context_lens):
    out = q.new_empty(q.shape)
    _add_kernel[(1,)](k_cache, out, out.numel(), LIMIT=1 << 30, BLOCK=triton.next_power_of_2(k_cache.numel()))
    return out


def by_torch(x, weight):
    return x @ weight.t()


def breaking(x, weight):
    raise OSError("no luck")
"""
MATMUL_SIZES = ("--rows", "3", "--in-features", "72", "--out-features", "5", "--dtype", "fp32")
DECODE_SIZES = (
    "--context",
    "7,2",
    "--q-heads",
    "2",
    "--kv-heads",
    "1",
    "--head-dim",
    "16",
    "--dtype",
    "fp16",
)


@pytest.fixture
def execute(tmp_path):
    """Executes functions of a module of the user's in a process of its own, as this one interprets."""
    (tmp_path / "my_kernel.py").write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "my_functions.py").write_text(FUNCTIONS, encoding="utf-8")

    def run(functions, *arguments):
        providers = [word for name in functions for word in ("--provider", f"my_functions:{name}")]
        command = [
            sys.executable,
            "-m",
            "decodetax.harness",
            "execute",
            "--gpu",
            "a100",
            *providers,
            *arguments,
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, strict_json(done.stdout)["rows"], done.stderr

    return run


@pytest.mark.slow
def test_executes_functions_of_the_user(execute):
    reasons = {
        "right": None,
        "tuned": None,
        "doubled": "wrong result: relative error 1 in row",
        "outside": "global access outside every tensor",
        "by_torch": "launches no Triton kernel",
        "breaking": "OSError: no luck",
    }
    code, found, err = execute(reasons, *MATMUL_SIZES, "--json")
    assert code == 1
    assert "a word on standard output" in err
    for row, (function, reason) in zip(found, reasons.items(), strict=True):
        assert row["kernel"] == f"my_functions:{function}"
        assert row["status"] == ("failed" if reason else "ok")
        assert row["reason"] == reason or row["reason"].startswith(reason)
    by_name = {row["kernel"].partition(":")[2]: row for row in found}
    assert [launch["num_warps"] for launch in by_name["tuned"]["launches"]] == [2]  # the first configuration
    [outside] = by_name["outside"]["violations"]
    assert (outside["kernel"], outside["cta"]) == ("_add_kernel", [0, 0, 0])
    assert outside["source"].startswith("my_functions.py:13")


@pytest.mark.slow
def test_a_user_kernel_may_not_read_dead_cache(execute):
    code, [row], _ = execute(["dead_cache"], *DECODE_SIZES, "--json")
    assert code == 1
    assert {(each["kind"], each["tensor"]) for each in row["violations"]} >= {
        ("read of dead global memory", "x_ptr")
    }


@pytest.mark.slow
def test_executes_a_function_on_small_cases_where_no_sizes_are_given(execute):
    code, found, _ = execute(["right"], "--dtype", "fp16", "--json")
    assert code == 0
    assert [row["case"] for row in found] == [f"prefill/product/m{rows}-k320-n192" for rows in (130, 16, 1)]


FAULTS = r"""
import re

from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.execution.cases import default_cases
from decodetax.harness.offline.execution.rows import execute_case

case = next(case for case in default_cases() if case.name == "rows_1")
for old, new in (("^", ""), (r"cp\.async\.wait_group\s+\d+;", ""), ("mul.f32", "add.f32")):
    row = execute_case(case, find_gpu("a100"), edit=lambda _kernel, ptx: re.sub(old, new, ptx, count=1))
    print(row.status, row.reason)
"""


@pytest.mark.slow
def test_faults_planted_in_a_kernel_of_this_package_fail_its_row():
    clean, no_wait, wrong = output_of("-c", FAULTS).splitlines()
    assert clean == "ok None"
    assert no_wait.startswith("failed read of an asynchronous copy in flight")
    assert wrong.startswith("failed wrong result: relative error")
