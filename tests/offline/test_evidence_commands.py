"""`decodetax count` and `decodetax inspect` from the command line."""

import json
import sys

import pytest
from click.testing import CliRunner
from decodetax.harness import cli
from decodetax.harness.offline import workers
from decodetax.harness.offline.compiled_rows import LaunchName, failed_row

INSPECT_KEYS = {
    *("kernel", "variant", "gpu", "dtype", "tiling", "status", "reason", "registers", "spill_bytes"),
    *("shared_bytes", "programs_per_sm", "matrix_instruction", "load_bytes", "asynchronous"),
    *("loop_instructions", "issue_headroom", "latency_headroom", "latency_headroom_at_wait"),
    *("schedule_efficiency", "limit", "provenance"),
}


def decodetax(*arguments):
    result = CliRunner().invoke(cli.cli, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def as_json(*arguments):
    return json.loads(decodetax(*arguments, "--json").stdout)["rows"]


def misuse(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["decodetax", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    outcome = capsys.readouterr()
    assert (ended.value.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    return outcome.err


def test_decode_attention_is_counted_beside_what_is_modelled():
    [row] = as_json(
        "count", "--kernel", "decode_attention", "--context", "300,0,37", "--q-heads", "8", "--kv-heads", "2"
    )
    cache = (300 + 37) * 2 * 128 * 2  # live tokens, KV heads, elements of a head, bytes of bf16
    assert row["status"] == "counted"
    for name in ("k_cache", "v_cache"):
        tensor = row["tensors"][name]
        assert tensor["bytes_requested"] == tensor["bytes_distinct"] == tensor["modelled_work_bytes"] == cache
    assert row["tensors"]["context_lens"]["bytes_distinct"] == 3 * 4
    assert all(tensor["counted_over_modelled"] == 1 for tensor in row["tensors"].values())
    assert row["operations_counted_over_modelled"] == 1
    useful = 4 * (300 + 37) * 8 * 128
    assert sum(row["operations"].values()) * row["useful_share_of_operations"] == pytest.approx(useful)
    loaded_and_stored = row["bytes_requested"] + row["bytes_written"]
    assert row["operations_per_requested_byte"] == pytest.approx(useful / loaded_and_stored)
    assert all(launch["programs"] > 0 for launch in row["launches"])


def test_product_is_counted_and_goes_through_the_cache_model():
    arguments = ("--rows", "130", "--in-features", "64", "--out-features", "260")
    [row] = as_json("count", "--kernel", "prefill_matmul", *arguments, "--gpu", "a100")
    assert row["tensors"]["weight"]["bytes_distinct"] == 260 * 64 * 2
    assert row["tensors"]["x"]["modelled_work_bytes"] == 130 * 64 * 2
    cache = row["modelled_cache"]
    assert cache["requested_bytes"] == row["bytes_requested"] + row["bytes_written"]
    assert cache["dram_bytes"] == cache["distinct_bytes"] <= cache["l2_bytes"]


def test_full_size_product_is_modelled_alone():
    arguments = ("--rows", "4096", "--in-features", "4096", "--out-features", "28672")
    [row] = as_json("count", "--kernel", "prefill_matmul", *arguments)
    assert (row["status"], row["provenance"]) == ("modelled", "modelled")
    assert "too many to interpret" in row["reason"]
    assert "tensors" not in row
    cache = row["modelled_cache"]
    levels = [cache[f"{level}_operations_per_byte"] for level in ("requested", "l2", "dram")]
    assert levels == sorted(levels)
    assert cache["distinct_bytes"] == 2 * (4096 * 4096 + 28672 * 4096 + 4096 * 28672)


def test_product_of_too_many_tiles_goes_without_the_cache_model():
    arguments = ("--rows", "2147483647", "--in-features", "1", "--out-features", "2147483647")
    [row] = as_json("count", "--kernel", "prefill_matmul", *arguments)
    assert (row["status"], row["modelled_cache"]) == ("modelled", None)


def test_count_prints_a_table_for_each_kernel():
    text = decodetax(
        "count", "--context", "40", "--rows", "20", "--in-features", "32", "--out-features", "40"
    ).stdout
    assert text.count("ops:bytes (counted)") == 2
    assert "through an L2 cache of 50 MiB (modelled" in text


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        pytest.param(
            ["--q-heads", "6", "--kv-heads", "4"], ["--q-heads", "6"], id="heads that do not divide"
        ),
        pytest.param(["--head-dim", "20"], ["--head-dim", "20", "multiple of 8"], id="head size"),
        pytest.param(["--context", "1,x"], ["--context", "1,x", "1000,37"], id="length"),
        pytest.param(["--context", "2000000"], ["--context", "too many"], id="length beyond the interpreter"),
        pytest.param(["--batch", "5000", "--context", "0"], ["--batch", "4096"], id="sequences"),
        pytest.param(
            ["--q-heads", "2147483647", "--kv-heads", "2147483647", "--context", "0"],
            ["--q-heads", "elements"],
            id="heads beyond memory",
        ),
        pytest.param(["--gpu", "h10"], ["--gpu", "h10", "H100"], id="gpu"),
        pytest.param(["--kernel", "flash"], ["flash", "decode_attention"], id="kernel"),
        pytest.param(["--dtype", "fp8"], ["--dtype", "fp8", "bf16"], id="dtype"),
        pytest.param(["--rows", "0"], ["--rows", "'0'"], id="rows"),
    ],
)
def test_wrong_argument_of_count_is_named_in_one_line(monkeypatch, capsys, arguments, fragments):
    error = misuse(monkeypatch, capsys, "count", *arguments)
    assert all(fragment.lower() in error.lower() for fragment in fragments), error


@pytest.mark.parametrize(
    "arguments", [["--gpu", "h10"], ["--gpu", "h100", "b20"], ["--gpu", "h100,"]], ids=" ".join
)
def test_wrong_gpu_of_inspect_is_named_in_one_line(monkeypatch, capsys, arguments):
    assert "--gpu" in misuse(monkeypatch, capsys, "inspect", *arguments)


def test_inspect_bounds_each_launch_of_each_gpu():
    rows = as_json("inspect", "--gpu", "h100", "sm_80", "--kernel", "decode_attention", "--dtype", "bf16")
    assert {row["gpu"] for row in rows} == {"H100-SXM5-80GB", "A100-SXM4-80GB"}
    for row in rows:
        assert row.keys() >= INSPECT_KEYS
        assert (row["status"], row["reason"], row["spill_bytes"]) == ("ok", None, 0)
    whole = [row for row in rows if row["variant"] == "contiguous:split_kv"]
    assert [row["limit"]["which"] for row in whole] == ["memory", "memory"]
    assert all(row["asynchronous"] and row["load_bytes"] == 16 for row in whole)
    assert all(0 < row["schedule_efficiency_ragged"] < row["schedule_efficiency"] <= 1 for row in whole)


def test_a_launch_that_does_not_compile_makes_inspect_fail(monkeypatch):
    name = LaunchName(kernel="decode_attention", variant="contiguous", gpu="B200", dtype="bf16", tiling={})
    monkeypatch.setattr(
        workers, "inspect_cases", lambda *_args, **_named: (failed_row(name, "no such thing"),)
    )
    result = decodetax("inspect", "--gpu", "b200")
    assert result.exit_code == 0  # the group returns it; main makes it the exit code
    assert "failed: B200 decode_attention contiguous bf16: no such thing" in result.stdout
    monkeypatch.setattr(sys, "argv", ["decodetax", "inspect", "--gpu", "b200"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
