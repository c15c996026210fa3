"""The default tilings as compiled: performance promises that hold without a GPU.

Promised for every launch compiled here:
- it compiles, fits the GPU's shared memory and spills no registers;
- in bf16 and fp16 the decode and matmul loops load 16 bytes per lane asynchronously and use tensor cores,
  from 64 rows per tile on with the GPU's fastest instruction; 8-bit caches load asynchronously, at least
  8 bytes per lane;
- in bf16 the decode loop keeps a tile of keys and values in flight at its tightest wait;
- all CTAs of decode attention are resident at one time (one wave);
- decode attention and few rows are memory-bound, many rows are bound by tensor cores, and so are few rows on
  GPUs with little arithmetic for their bandwidth; on A100, H100 and B200 decode attention has the headrooms
  of `HEADROOM`, at the common shape those of `COMMON_SHAPE`, and few rows those of `FEW_ROWS`;
- a matmul loop of 128 x 256 x 64 has no more instructions than the same tile of Triton's tutorials;
- the hot loop has no more instructions than in the snapshot of this Triton version.

By default each kernel is compiled once, for H100; the slow tests compile a slice of the cases for three GPUs,
with DECODETAX_FULL_MATRIX=1 every default case for every GPU generation, with DECODETAX_FULL_MATRIX=2 every
case, in about half an hour. After a change that adds instructions on purpose, or to lower the bar after one
that saves some, once with the oldest and once with the newest Triton:

    python tests/offline/test_compiler.py --update
"""

import functools
import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline import workers
from decodetax.harness.offline.compiled_rows import CompiledRow
from decodetax.harness.offline.headroom import Limit, peak_flop_per_s
from decodetax.harness.offline.variants import (
    ELEMENT_BYTES,
    case_decode_tiling,
    default_cases,
    feature_cases,
    full_cases,
    iteration_work,
)
from decodetax.harness.offline.workers import inspect_cases

FULL = os.environ.get("DECODETAX_FULL_MATRIX", "")
GPUS = ("a100", "rtx3090", "l40s", "h100", "b200", "rtx5090")
SLICE_GPUS = ("a100", "h100", "b200")
SLICE = {
    "bf16": (
        "contiguous",
        "pages_16",
        "latent_16_heads",
        "latent_128_heads",
        "packed_pages_16",
        "rows_8192",
        "rows_8192_pointers",
        "rows_8192_warp_specialized",
        "rows_1",
        "rows_64",
    ),
    "e4m3": ("contiguous", "pages_16", "rows_8192"),
    "int8": ("rows_64",),
}
FASTEST = {"H100-SXM5-80GB": "HGMMA", "B200": "UTCHMMA"}
SNAPSHOT_DTYPE = "bf16"
NARROW_DTYPES = ("e4m3", "e5m2", "int8")

# Issue and latency headroom of decode attention at least, by dtype; float32 is limited by its plain units.
HEADROOM = {"bf16": 1.5, "fp16": 1.5, "e4m3": 1.1, "e5m2": 1.1, "int8": 1.1}
INT8_ON_B200 = 0.85  # its conversions alone take more slots than there are
# At 32 query and 8 key-value heads of 128, bf16: issue headroom contiguous and in pages of 16, and latency
# headroom at the wait. Other kernels compiled the same way reach at most 9.1 / 8.5 / 4.7 and 4.7 / 4.3 / 2.3
# (H100 at 1.755 GHz).
COMMON_SHAPE = {
    "A100-SXM4-80GB": (9.0, 7.5, 4.0),
    "H100-SXM5-80GB": (8.76, 7.3, 4.0),
    "B200": (4.6, 3.8, 2.0),
}

# Issue headroom over a latent cache (MLA) with 16 query heads, and latency headroom at the wait; then the
# share of the tensor cores' rate that the modelled limit allows with 128 heads. The Triton kernels of vLLM
# 0.33.0 and SGLang 0.5.23, compiled the same way, reach at most 3.60 / 3.29 / 1.72, and 0 at the wait.
LATENT = {
    "A100-SXM4-80GB": (4.2, 4.0, 0.6),
    "H100-SXM5-80GB": (6.5, 3.0, 0.6),
    "B200": (3.4, 1.5, 0.3),
}

# Instructions per warp of Triton's tutorials 03 (pointers) and 09 (descriptors), 128 x 256 x 64, 8 warps,
# bf16, compiled the same way with Triton 3.9.0.
TUTORIALS = {
    "A100-SXM4-80GB": {"matmul": 282},
    "H100-SXM5-80GB": {"matmul": 130, "tma": 105},
    "B200": {"matmul": 138, "tma": 102},
}
# Issue headroom of up to 64 rows at least, on the weights' bytes alone, and latency headroom at the wait.
FEW_ROWS = {"bf16": (1.5, 2.0), "fp16": (1.5, 2.0), "int8": (1.1, 2.0)}


def cases():
    if FULL:
        return full_cases() if FULL == "2" else default_cases()
    return [case for case in default_cases() if case.variant in SLICE.get(case.dtype, ())]


def triton_version():
    import triton  # noqa: PLC0415  (the conftest decides first how it runs)

    return triton.__version__


def snapshot_path():
    return Path(__file__).with_name(f"snapshot_{triton_version().replace('.', '_')}.json")


def key(row):
    return f"{row.gpu} {row.kernel} {row.variant} {row.dtype}"


def broken_promises(row):
    """What a row does not keep, in words."""
    if row.status != "ok":
        return [f"{row.status}: {row.reason}"]
    promises = {
        "spills": row.spill_bytes == 0,
        "shared memory": row.shared_bytes <= row.shared_limit_bytes,
    }
    launch = row.variant.partition(":")[2]
    if launch in {"split_kv", "matmul", "tma"} and row.dtype in {"bf16", "fp16"}:
        promises["16-byte asynchronous loads"] = (row.load_bytes, row.asynchronous) == (16, True)
        rows = row.tiling["block_g" if launch == "split_kv" else "block_m"]
        fastest = FASTEST.get(row.gpu, "HMMA") if rows >= 64 else "HMMA"
        promises[f"{fastest}, not {row.matrix_instruction}"] = row.matrix_instruction == fastest
    if launch in {"matmul", "tma"}:
        promises |= product_promises(row, launch)
    latent = row.variant.startswith("latent")
    if latent and launch == "split_kv" and row.gpu in LATENT:
        promises |= latent_promises(row)
    if launch == "split_kv" and row.dtype in {"bf16", "fp16"} and not latent:
        promises[f"limited by memory, not {row.limit.which}"] = row.limit.which == "memory"
    if launch == "split_kv" and not latent:
        promises |= decode_promises(row)
    return [promise for promise, kept in promises.items() if not kept]


def product_promises(row, launch):
    """Promises of a matmul, in words, and whether it keeps each; none for float8, which some GPUs lack."""
    rows, promises = row.tiling["block_m"], {}
    large = [row.tiling[name] for name in ("block_m", "block_n", "block_k", "num_warps")] == [128, 256, 64, 8]
    most = TUTORIALS.get(row.gpu, {}).get(launch)
    if large and row.dtype == "bf16" and most:
        promises[f"{most} instructions, not {row.loop_instructions}"] = row.loop_instructions <= most
    if row.dtype in {"bf16", "fp16", "int8"}:
        # Up to 64 rows weights come from memory, once; consumer GPUs balance at fewer operations per byte.
        gpu = find_gpu(row.gpu)
        balance = peak_flop_per_s("bf16", gpu) / gpu.bandwidth_bytes_per_s
        wanted = "matrix" if rows >= 128 or 2 * rows / ELEMENT_BYTES[row.dtype] > balance else "memory"
        promises[f"limited by {wanted}, not {row.limit.which}"] = row.limit.which == wanted
        if rows <= 64 and row.gpu in COMMON_SHAPE:
            issue, at_wait = FEW_ROWS[row.dtype]
            promises[f"an issue headroom of {issue}"] = row.issue_headroom >= issue
            promises[f"{at_wait} at the wait"] = row.latency_headroom_at_wait >= at_wait
    return promises


def decode_promises(row):
    """Promises of decode attention, in words, and whether it keeps each."""
    gpu, promises = find_gpu(row.gpu), {}
    name = row.variant.partition(":")[0]
    case = next((case for case in full_cases() if (case.variant, case.dtype) == (name, row.dtype)), None)
    if case is not None:
        tiling = case_decode_tiling(case, gpu)
        one_wave = tiling.programs <= gpu.sm_count * row.programs_per_sm
        promises[f"all of {tiling.programs} CTAs at one time"] = one_wave
    if row.dtype in NARROW_DTYPES:
        promises["8-byte asynchronous loads"] = row.load_bytes >= 8 and row.asynchronous
    if row.dtype == "bf16":
        promises["a tile in flight at the wait"] = row.latency_headroom_at_wait >= 0.5 * row.latency_headroom
    if row.gpu not in COMMON_SHAPE or row.dtype not in HEADROOM:
        return promises
    issue, latency = HEADROOM[row.dtype], HEADROOM[row.dtype]
    if (row.gpu, row.dtype) == ("B200", "int8"):
        issue = INT8_ON_B200
    elif row.dtype in NARROW_DTYPES:
        promises[f"memory as its limit, not {row.limit.which}"] = row.limit.which == "memory"
    contiguous, paged, at_wait = COMMON_SHAPE[row.gpu]
    if row.dtype == "bf16" and row.variant in {"contiguous:split_kv", "pages_16:split_kv"}:
        issue = contiguous if row.variant == "contiguous:split_kv" else paged
        promises[f"{at_wait} at the wait"] = row.latency_headroom_at_wait >= at_wait
    promises[f"an issue headroom of {issue}"] = row.issue_headroom >= issue
    promises[f"a latency headroom of {latency}"] = row.latency_headroom >= latency
    return promises


def latent_promises(row):
    """Promises of decode attention over a latent cache, in words, and whether it keeps each."""
    issue, at_wait, share = LATENT[row.gpu]
    if row.variant.startswith("latent_16_heads"):
        return {
            f"limited by memory, not {row.limit.which}": row.limit.which == "memory",
            f"an issue headroom of {issue}": row.issue_headroom >= issue,
            f"{at_wait} at the wait": row.latency_headroom_at_wait >= at_wait,
        }
    # 128 heads are 242 operations per byte: one of memory and tensor cores is the roof, near the other.
    return {f"{share:.0%} of the tensor cores": tensor_core_share(row) >= share}


def tensor_core_share(row):
    """Share of the bf16 rate that the limit of a loop over latents of 576 and 512 elements allows."""
    limit = row.limit
    rate = limit.flop_per_s or limit.bandwidth_bytes_per_s * row.tiling["group"] * (576 + 512) / 576
    return rate / find_gpu(row.gpu).flop_per_s["bf16"]


def raised_counts(rows, snapshot):
    """Loops with more instructions than in the snapshot, or missing from it."""
    counts = {
        key(row): row.loop_instructions for row in rows if row.dtype == SNAPSHOT_DTYPE and row.status == "ok"
    }
    return {
        name: (count, snapshot.get(name))
        for name, count in counts.items()
        if name not in snapshot or (count or 0) > (snapshot[name] or 0)
    }


def documented(kernel, table):
    """Cells of the rows of a kernel's page that follow a mark, the two lines of the header left out."""
    page = Path(__file__).parents[2] / "docs" / "kernels" / f"{kernel}.md"
    _, _, after = page.read_text(encoding="utf-8").partition(f"<!-- {table}:")
    lines = after.splitlines()[1:]
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines))[2:]
    assert rows
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


@functools.cache
def compiled(gpu):
    """The rows of the cases, by GPU."""
    return inspect_cases([gpu], cases(), processes=None if FULL else 1)


def check_documented_headrooms(rows):
    """Issue headroom and that at the wait on A100, H100 and B200; returns how many rows the tables have."""
    lines = {(case, dtype): cells for case, dtype, *cells in (
        *documented("decode_attention", "headrooms"), *documented("prefill_matmul", "product headrooms"),
        *documented("decode_attention", "latent headrooms"),
    )}  # fmt: skip
    rows = [row for row in rows if (row.variant.partition(":")[0], row.dtype) in lines]
    for row in rows:
        at = [find_gpu(gpu).name for gpu in SLICE_GPUS].index(row.gpu)
        shown = [cell.split(" / ")[at] for cell in lines[row.variant.partition(":")[0], row.dtype]]
        made = [f"{figure:.2f}" for figure in (row.issue_headroom, row.latency_headroom_at_wait)]
        assert shown == made, key(row)
    return len(rows)


def test_each_kernel_keeps_its_promises_on_h100():
    few = [case for case in default_cases() if case.dtype == "bf16"]
    few = [case for case in few if case.variant in {"contiguous", "rows_1", "rows_8192"}]
    rows = inspect_cases(["h100"], few, processes=1)
    assert [row.variant.partition(":")[2] for row in rows] == ["split_kv", "combine", "tma", "matmul"]
    assert {key(row): broken for row in rows if (broken := broken_promises(row))} == {}
    decode = rows[0]
    tiling = case_decode_tiling(few[0], find_gpu("h100"))  # the schedule is simulated with this one
    for name in ("block_g", "block_n", "num_splits", "min_tiles"):
        assert decode.tiling[name] == getattr(tiling, name)
    assert 0 < decode.schedule_efficiency_ragged < decode.schedule_efficiency < 1
    assert decode.limit.share_of_peak == decode.schedule_efficiency
    if triton_version() == "3.9.0":
        assert check_documented_headrooms([decode, rows[-1]]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS if FULL else SLICE_GPUS)
def test_default_tilings_keep_their_promises(gpu):
    rows = compiled(gpu)
    supported = {case.variant for case in cases() if case.applies_to(find_gpu(gpu).sm)}
    assert {row.variant.partition(":")[0] for row in rows} == supported
    assert {key(row): broken for row in rows if (broken := broken_promises(row))} == {}
    path = snapshot_path()
    if path.exists():  # the oldest and the newest version have one, of the default cases
        known = {case.variant for case in default_cases()}
        rows = [row for row in rows if row.variant.partition(":")[0] in known]
        assert raised_counts(rows, json.loads(path.read_text(encoding="utf-8"))) == {}


@pytest.mark.slow
@pytest.mark.skipif(triton_version() != "3.9.0", reason="the docs have what Triton 3.9.0 compiles")
@pytest.mark.parametrize("gpu", SLICE_GPUS)
def test_tables_of_the_docs_are_what_the_compiler_makes(gpu):
    known = {(case.variant, case.dtype) for case in cases() if case in default_cases()}
    rows = {(row.variant.partition(":")[0], row.dtype): row for row in compiled(gpu)
            if not row.variant.endswith((":combine", ":split_k_reduce"))}  # fmt: skip
    rows = {name: row for name, row in rows.items() if name in known}
    decodes = sum(row.kernel == "decode_attention" for row in rows.values())
    checked = check_documented_headrooms(rows.values())
    assert checked >= decodes + 3
    at = SLICE_GPUS.index(gpu)
    for case, limits, shares in documented("decode_attention", "latent limits"):
        row = rows[case, "bf16"]
        made = (row.limit.which, f"{tensor_core_share(row):.0%}")
        assert (limits.split(" / ")[at], shares.split(" / ")[at]) == made
    for case, dtype, tile, counts, peers in documented("prefill_matmul", "product loops"):
        row = rows.get((case, dtype))
        if row is None:
            assert counts.split(" / ")[at] == "-"
            continue
        made = "{block_m} x {block_n} x {block_k}, {num_warps} warps".format(**row.tiling)
        assert (tile, counts.split(" / ")[at]) == (made, str(row.loop_instructions))
        launch = {"(03)": "matmul", "(09)": "tma"}.get(peers[-4:])
        if launch:
            most = TUTORIALS[row.gpu].get(launch, "-")
            assert peers.removesuffix(peers[-4:]).strip().split(" / ")[at] == str(most)
        checked += 1
    assert checked >= decodes + 5


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS if FULL else SLICE_GPUS)
def test_all_options_at_once_compile_and_fit(gpu):
    rows = inspect_cases([gpu], feature_cases(), processes=None if FULL else 1)
    assert [row.reason for row in rows if row.status != "ok"] == []
    assert sum(row.variant.endswith(":combine") for row in rows) == len(feature_cases())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["rows_8192", pytest.param("rows_8192_pointers", marks=pytest.mark.slow)])
def test_float8_on_h100_waits_for_all_products_once_in_256_of_k(variant):
    """Adding to registers of a wgmma in flight, or promoting each product at once, waits twice as often."""
    case = next(case for case in default_cases() if (case.variant, case.dtype) == ("rows_8192", "e4m3"))
    if variant == "rows_8192_pointers":
        case = replace(case, matmul_variant="pointers")
    row, *_ = inspect_cases(["h100"], [case], processes=1)
    assert (row.spill_bytes, row.matrix_instruction, row.asynchronous) == (0, "QGMMA", True)
    assert 256 * row.matrix_drains == row.tiling["block_k"]
    assert row.loop_instructions_by_class["matrix"] == 8
    assert row.limit.which == "matrix"
    assert 0.9 < row.limit.share_of_peak < 1.0
    if triton_version() == "3.9.0" and variant == "rows_8192":
        page = Path(__file__).parents[2] / "docs" / "kernels" / "prefill_matmul.md"
        for figure in (
            f"{row.drained_instructions} instructions of a warp stand between",
            f"of {row.loop_instructions}, and 8 QGMMA; {row.registers} registers",
            f"limit is {row.limit.share_of_peak:.1%} of the tensor-core peak",
        ):
            assert figure in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_descriptors_compile_and_fit_where_they_are_not_the_default():
    case = next(case for case in default_cases() if case.variant == "rows_8192_pointers")
    (row,) = inspect_cases(["rtx5090"], [replace(case, matmul_variant="descriptors")], processes=1)
    assert (row.status, row.variant.partition(":")[2]) == ("ok", "tma"), row.reason
    assert row.shared_bytes <= row.shared_limit_bytes


GOOD = CompiledRow(
    kernel="decode_attention",
    variant="contiguous:split_kv",
    gpu="H100-SXM5-80GB",
    dtype="bf16",
    tiling={"block_g": 16},
    status="ok",
    registers=80,
    spill_bytes=0,
    shared_bytes=71680,
    shared_limit_bytes=232448,
    programs_per_sm=3,
    programs_limited_by="shared_memory",
    matrix_instruction="HMMA",
    load_bytes=16,
    asynchronous=True,
    loop_instructions=240,
    loop_instructions_by_class={"matrix": 32, "integer": 208},
    bytes_per_iteration=32768.0,
    issue_headroom=9.4,
    latency_headroom=9.7,
    latency_headroom_at_wait=4.85,
    matrix_share=0.5,
    limit=Limit(which="memory", bandwidth_bytes_per_s=3350e9, flop_per_s=None, share_of_peak=1.0),
)
MANY_ROWS = replace(
    GOOD,
    kernel="prefill_matmul",
    variant="rows_8192:tma",
    tiling={"block_m": 128, "block_n": 256, "block_k": 64, "num_warps": 8},
    matrix_instruction="HGMMA",
    loop_instructions=105,
    limit=Limit(which="matrix", bandwidth_bytes_per_s=None, flop_per_s=900e12, share_of_peak=0.9),
)
FEW = replace(
    GOOD,
    kernel="prefill_matmul",
    variant="rows_1:matmul",
    tiling={"block_m": 16, "block_n": 32, "block_k": 128, "num_warps": 4},
)
BY_ISSUE = replace(GOOD.limit, which="issue")


@pytest.mark.parametrize(
    ("good", "change", "promise"),
    [
        (GOOD, {"status": "failed", "reason": "CompilationError"}, "CompilationError"),
        (GOOD, {"spill_bytes": 8}, "spills"),
        (GOOD, {"shared_bytes": 232449}, "shared memory"),
        (GOOD, {"load_bytes": 4}, "16-byte"),
        (GOOD, {"asynchronous": False}, "asynchronous"),
        (GOOD, {"matrix_instruction": None}, "HMMA"),
        (GOOD, {"tiling": {"block_g": 64}}, "HGMMA"),
        (GOOD, {"latency_headroom_at_wait": 4.0, "latency_headroom": 9.0}, "in flight"),
        (GOOD, {"latency_headroom_at_wait": 3.9, "latency_headroom": 7.0}, "at the wait"),
        (GOOD, {"issue_headroom": 8.75}, "issue headroom of 8.76"),
        (GOOD, {"variant": "pages_16:split_kv", "issue_headroom": 7.2}, "issue headroom of 7.3"),
        (GOOD, {"variant": "pages_16_d64_g4:split_kv", "issue_headroom": 1.4}, "issue headroom of 1.5"),
        (GOOD, {"dtype": "int8", "issue_headroom": 1.0}, "issue headroom of 1.1"),
        (GOOD, {"dtype": "int8", "gpu": "B200", "issue_headroom": 0.8}, "issue headroom of 0.85"),
        (GOOD, {"dtype": "e4m3", "load_bytes": 4}, "8-byte"),
        (GOOD, {"programs_per_sm": 2}, "396 CTAs"),
        (GOOD, {"limit": BY_ISSUE}, "limited by memory"),
        (MANY_ROWS, {"loop_instructions": 106}, "105 instructions"),
        (MANY_ROWS, {"variant": "rows_8192:matmul", "gpu": "B200", "matrix_instruction": "UTCHMMA",
                     "loop_instructions": 139}, "138 instructions"),
        (MANY_ROWS, {"matrix_instruction": "HMMA"}, "HGMMA"),
        (MANY_ROWS, {"limit": GOOD.limit}, "limited by matrix"),
        (MANY_ROWS, {"load_bytes": 8}, "16-byte"),
        (FEW, {"limit": BY_ISSUE}, "limited by memory"),
        (FEW, {"issue_headroom": 1.49}, "issue headroom of 1.5"),
        (FEW, {"dtype": "int8", "issue_headroom": 1.09}, "issue headroom of 1.1"),
        (FEW, {"latency_headroom_at_wait": 1.99}, "2.0 at the wait"),
    ],
)  # fmt: skip
def test_every_planted_fault_breaks_one_promise(good, change, promise):
    assert broken_promises(good) == []
    (broken,) = broken_promises(replace(good, **change))
    assert promise in broken


def test_a_loop_may_shrink_but_not_grow_or_be_new():
    assert raised_counts([GOOD], {key(GOOD): 240}) == {}
    assert raised_counts([GOOD], {key(GOOD): 250}) == {}
    assert raised_counts([GOOD], {key(GOOD): 239}) == {key(GOOD): (240, 239)}
    assert raised_counts([GOOD], {}) == {key(GOOD): (240, None)}


def test_rows_survive_json():
    written = json.loads(json.dumps(GOOD.to_json()))
    assert written["provenance"] == "compiled"
    assert written["limit"]["provenance"] == "modelled"
    assert set(written["modelled_fields"]) < set(written)
    assert CompiledRow.from_json(written) == GOOD
    failed = CompiledRow(**{**vars(GOOD), "status": "failed", "limit": None})
    assert CompiledRow.from_json(failed.to_json()) == failed


def test_cases_have_unique_names():
    names = [(case.kernel, case.variant, case.dtype) for case in full_cases()]
    assert len(set(names)) == len(names)
    assert set(default_cases()) < set(full_cases())


def test_useful_bytes_of_a_decode_iteration_are_shared_by_the_gqa_group():
    (case, *_) = default_cases()
    constants = {"group": 16, "query_tokens": 2, "block_g": 16, "block_n": 64}
    constants |= {"head_dim": 128, "v_head_dim": 128, "latent": False}
    work = iteration_work(case, "split_kv", constants, sm=90)
    assert (work.useful_bytes, work.tile_bytes) == (16384, 32768)
    assert work.flop == 4 * 16 * 64 * 128
    assert iteration_work(case, "split_k_reduce", constants, sm=90) is None
    latent = iteration_work(
        case, "split_kv", constants | {"head_dim": 576, "v_head_dim": 512, "latent": True}, 90
    )
    assert (latent.tile_bytes, latent.flop) == (64 * 576 * 2, 2 * 16 * 64 * (576 + 512))


@pytest.mark.parametrize(
    ("variant", "block_m", "useful", "streamed"),
    [
        ("rows_1", 16, 64 * 64 * 2, 64 * 64 * 2),  # the weights alone
        ("rows_8192", 128, (8192 * 4096 * 2) * 2 / (64 * 128 * 64), (128 + 64) * 64 * 2),  # a share of both
    ],
)
def test_useful_bytes_of_a_matmul_iteration(variant, block_m, useful, streamed):
    case = next(case for case in default_cases() if case.variant == variant and case.dtype == "bf16")
    work = iteration_work(case, "matmul", {"block_m": block_m, "block_n": 64, "block_k": 64}, sm=90)
    assert (work.useful_bytes, work.streamed_bytes) == (useful, streamed)


def test_a_worker_that_dies_gives_failed_rows(monkeypatch):
    monkeypatch.setattr(workers, "_WORKER", "decodetax.harness.no_such_module")
    reported = []
    rows = inspect_cases(["h100"], default_cases()[:2], processes=1, on_row=reported.append)
    assert [row.status for row in rows] == ["failed", "failed"]
    assert "no_such_module" in rows[0].reason
    assert reported == list(rows)


def test_rejects_unknown_gpus_and_no_processes():
    with pytest.raises(UsageError, match="h1000"):
        inspect_cases(["h1000"], default_cases())
    with pytest.raises(ValueError, match="processes"):
        inspect_cases(["h100"], default_cases(), processes=0)


def update():
    compiled = [case for case in default_cases() if case.dtype == SNAPSHOT_DTYPE]
    rows = inspect_cases(GPUS, compiled)
    counts = {key(row): row.loop_instructions for row in rows}
    snapshot_path().write_text(json.dumps(counts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__" and sys.argv[1:] == ["--update"]:
    update()
