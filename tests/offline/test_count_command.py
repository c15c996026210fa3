"""`decodetax count` of this package's kernels."""

import pytest
from decodetax.harness.offline import kernel_traffic
from decodetax.harness.offline.sanitizer import SanitizerError
from hand_made import assert_misuse, decodetax, strict_json

SMALL = (
    "--context",
    "40",
    "--prompt",
    "40",
    "--q-heads",
    "8",
    "--kv-heads",
    "2",
    "--rows",
    "20",
    "--in-features",
    "32",
    "--out-features",
    "40",
)


def count_row(kernel, *arguments):
    outcome = decodetax("count", "--kernel", kernel, *arguments, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    [row] = strict_json(outcome.out)["rows"]
    return row


def test_decode_attention_is_counted_beside_the_model():
    row = count_row("decode_attention", "--context", "300,0,37", "--q-heads", "8", "--kv-heads", "2")
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
    moved_bytes = row["bytes_requested"] + row["bytes_written"]
    assert row["operations_per_requested_byte"] == pytest.approx(useful / moved_bytes)
    assert all(launch["programs"] > 0 for launch in row["launches"])


def test_prefill_attention_is_counted_below_the_diagonal_alone():
    row = count_row("prefill_attention", "--prompt", 200, "--q-heads", "4", "--kv-heads", "2")
    # Two row blocks of each query head, over one and two tiles of 128 keys. The TMA reads past the last key
    # of the first KV head, to those of the second, and stops at the end of memory.
    keys = 2 * (128 + 256) + 2 * (128 + 200)
    assert row["tensors"]["k"]["bytes_requested"] == keys * 128 * 2
    assert all(tensor["counted_over_modelled"] == 1 for tensor in row["tensors"].values())
    assert row["operations_counted_over_modelled"] == 1
    assert row["modelled_cache"] is None


def test_matmul_is_counted_and_modelled_through_the_l2():
    sizes = ("--rows", "130", "--in-features", "64", "--out-features", "260")
    row = count_row("prefill_matmul", *sizes, "--gpu", "a100")
    assert row["tensors"]["weight"]["bytes_distinct"] == 260 * 64 * 2
    assert row["tensors"]["x"]["modelled_work_bytes"] == 130 * 64 * 2
    cache = row["modelled_cache"]
    assert cache["requested_bytes"] == row["bytes_requested"] + row["bytes_written"]
    assert cache["dram_bytes"] == cache["distinct_bytes"] <= cache["l2_bytes"]


def test_large_matmul_is_modelled_only():
    sizes = ("--rows", "4096", "--in-features", "4096", "--out-features", "28672")
    row = count_row("prefill_matmul", *sizes)
    assert (row["status"], row["provenance"]) == ("modelled", "modelled")
    assert "too many to interpret" in row["reason"]
    assert "tensors" not in row
    cache = row["modelled_cache"]
    intensities = [cache[f"{level}_operations_per_byte"] for level in ("requested", "l2", "dram")]
    assert intensities == sorted(intensities)
    assert cache["distinct_bytes"] == 2 * (4096 * 4096 + 28672 * 4096 + 4096 * 28672)
    assert (
        "modelled only: 9.62e+11 operations" in decodetax("count", "--kernel", "prefill_matmul", *sizes).out
    )


def test_matmul_of_too_many_tiles_has_no_l2_model():
    row = count_row("prefill_matmul", "--rows", 2**31 - 1, "--in-features", 1, "--out-features", 2**31 - 1)
    assert (row["status"], row["modelled_cache"]) == ("modelled", None)


def test_text_has_80_columns_and_all_figures_when_wide():
    text = decodetax("count", *SMALL).out
    assert text.count("ops:bytes (counted)") == 3
    assert "L2 of 50 MiB (modelled" in text
    assert max(map(len, text.splitlines())) <= 80
    wide = decodetax("count", *SMALL, "--wide").out
    assert "sectors" in wide
    assert "sectors" not in text


def test_a_memory_fault_fails_in_one_line(monkeypatch):
    def fault(*_args, **_named):
        raise SanitizerError("x_ptr: stray", kind="bounds", tensor="x_ptr", program=(0, 0, 0), byte_offset=8)

    monkeypatch.setattr(kernel_traffic, "count_row", fault)
    outcome = decodetax("count")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "decodetax: memory fault: x_ptr: stray\n")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        pytest.param(["--q-heads", 6, "--kv-heads", 4], ["--q-heads: 6"], id="heads that do not divide"),
        pytest.param(["--head-dim", 513], ["--head-dim: 513", "from 1 to 512"], id="head size"),
        pytest.param(["--latent", 129], ["--latent: 129", "from 1 to 128"], id="values longer than a latent"),
        pytest.param(
            ["--kernel", "prefill_attention", "--head-dim", 300],
            ["--head-dim: 300", "prefill_attention", "from 1 to 256"],
            id="head size of prompts",
        ),
        pytest.param(
            ["--kernel", "prefill_attention", "--latent", 64], ["--latent: 64"], id="latents of prompts"
        ),
        pytest.param(["--prompt", 2000000], ["--prompt", "too many"], id="prompt beyond the interpreter"),
        pytest.param(["--context", "1,x"], ["--context", "1,x", "1000,37"], id="length"),
        pytest.param(["--context", 2000000], ["--context", "too many"], id="length beyond the interpreter"),
        pytest.param(["--batch", 5000, "--context", 0], ["--batch", "4096"], id="sequences"),
        pytest.param(
            ["--q-heads", 2**31 - 1, "--kv-heads", 2**31 - 1, "--context", 0],
            ["--q-heads", "elements"],
            id="heads beyond memory",
        ),
        pytest.param(["--gpu", "h10"], ["--gpu", "h10", "H100"], id="gpu"),
        pytest.param(["--kernel", "flash"], ["flash", "decode_attention"], id="kernel"),
        pytest.param(["--dtype", "fp8"], ["--dtype", "fp8", "bf16"], id="dtype"),
        pytest.param(["--rows", 0], ["--rows", "'0'"], id="rows"),
    ],
)
def test_rejects_a_wrong_argument(arguments, fragments):
    assert_misuse(decodetax("count", *arguments), *fragments)
