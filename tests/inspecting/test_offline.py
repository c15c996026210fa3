"""The default tilings as the compiler makes them: promises of performance that need no GPU to hold.

What is promised, for every launch compiled here:
- it compiles and fits the GPU's shared memory, and nothing spills;
- in bf16 and fp16 the decode and matmul loops load 16 bytes a lane, asynchronously, and use matrix
  instructions, where the tile has at least 64 rows those that the GPU is fastest with;
- in bf16 the decode loop keeps a tile of keys and values on its way through its tightest wait;
- decode attention and few rows are limited by memory, many rows by the matrix units;
- the hot loop has no more instructions than in the snapshot of this Triton version.

A slice is compiled by default; with DECODETAX_FULL_MATRIX=1 every default case for every GPU generation.
After a change that costs instructions on purpose, or to lower the bar after one that saves some, once with
the oldest Triton and once with the newest:

    python tests/inspecting/test_offline.py --update
"""

import json
import os
import sys
from pathlib import Path

import pytest
from decodetax.harness.accounting.errors import UsageError
from decodetax.harness.inspecting import workers
from decodetax.harness.inspecting.compiled_rows import CompiledRow
from decodetax.harness.inspecting.headroom import Limit
from decodetax.harness.inspecting.variants import default_cases, full_cases, workload
from decodetax.harness.inspecting.workers import inspect_cases

FULL = bool(os.environ.get("DECODETAX_FULL_MATRIX"))
GPUS = ("a100", "rtx3090", "l40s", "h100", "b200", "rtx5090")
SLICE_GPUS = ("a100", "h100", "b200")
SLICE_VARIANTS = ("contiguous_split", "pages_16", "rows_8192")
FASTEST = {"H100-SXM5-80GB": "HGMMA", "B200": "UTCHMMA"}
SNAPSHOT_DTYPE = "bf16"


def cases():
    if FULL:
        return default_cases()
    return [case for case in default_cases() if case.dtype == "bf16" and case.variant in SLICE_VARIANTS]


def snapshot_path():
    import triton  # noqa: PLC0415  (the conftest decides first how it runs)

    return Path(__file__).with_name(f"snapshot_{triton.__version__.replace('.', '_')}.json")


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
    if launch in {"split", "tile"} and row.dtype in {"bf16", "fp16"}:
        promises["16-byte asynchronous loads"] = (row.load_bytes, row.asynchronous) == (16, True)
        rows = row.tiling["block_m" if launch == "tile" else "block_g"]
        fastest = FASTEST.get(row.gpu, "HMMA") if rows >= 64 else "HMMA"
        promises[f"{fastest}, not {row.matrix_instruction}"] = row.matrix_instruction == fastest
        many_rows = launch == "tile" and rows >= 128
        wanted = "matrix" if many_rows else "memory"
        promises[f"limited by {wanted}, not {row.limit.which}"] = row.limit.which == wanted
    if launch == "split" and row.dtype == "bf16":
        promises["a tile in flight at the wait"] = row.latency_headroom_at_wait >= 0.5 * row.latency_headroom
    return [promise for promise, kept in promises.items() if not kept]


def raised_counts(rows, snapshot):
    """Loops that a snapshot knows smaller, or not at all."""
    counts = {
        key(row): row.loop_instructions for row in rows if row.dtype == SNAPSHOT_DTYPE and row.status == "ok"
    }
    return {
        name: (count, snapshot.get(name))
        for name, count in counts.items()
        if name not in snapshot or (count or 0) > (snapshot[name] or 0)
    }


@pytest.mark.parametrize("gpu", GPUS if FULL else SLICE_GPUS)
def test_default_tilings_keep_their_promises(gpu):
    rows = inspect_cases([gpu], cases(), processes=None if FULL else 1)
    assert {row.variant.partition(":")[0] for row in rows} == {case.variant for case in cases()}
    assert {key(row): broken for row in rows if (broken := broken_promises(row))} == {}
    path = snapshot_path()
    if path.exists():  # the oldest and the newest version have one
        assert raised_counts(rows, json.loads(path.read_text(encoding="utf-8"))) == {}


GOOD = CompiledRow(
    kernel="decode_attention",
    variant="contiguous:split",
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
    loop_instructions=381,
    loop_instructions_by_class={"matrix": 32, "integer": 349},
    bytes_per_iteration=32768.0,
    issue_headroom=5.9,
    latency_headroom=9.7,
    latency_headroom_at_wait=4.85,
    matrix_share=0.5,
    limit=Limit(which="memory", bandwidth_bytes_per_s=3350e9, flop_per_s=None, share_of_peak=1.0),
)


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"status": "failed", "reason": "CompilationError"}, "CompilationError"),
        ({"spill_bytes": 8}, "spills"),
        ({"shared_bytes": 232449}, "shared memory"),
        ({"load_bytes": 4}, "16-byte"),
        ({"asynchronous": False}, "asynchronous"),
        ({"matrix_instruction": None}, "HMMA"),
        ({"tiling": {"block_g": 64}}, "HGMMA"),
        ({"latency_headroom_at_wait": 0.0}, "in flight"),
        (
            {"limit": Limit(which="issue", bandwidth_bytes_per_s=1.0, flop_per_s=None, share_of_peak=0.5)},
            "memory",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_every_planted_fault_breaks_one_promise(change, promise):
    assert broken_promises(GOOD) == []
    (broken,) = broken_promises(CompiledRow(**{**vars(GOOD), **change}))
    assert promise in broken


def test_a_loop_may_shrink_but_not_grow_nor_appear_unseen():
    assert raised_counts([GOOD], {key(GOOD): 381}) == {}
    assert raised_counts([GOOD], {key(GOOD): 400}) == {}
    assert raised_counts([GOOD], {key(GOOD): 380}) == {key(GOOD): (381, 380)}
    assert raised_counts([GOOD], {}) == {key(GOOD): (381, None)}


def test_rows_survive_json():
    written = json.loads(json.dumps(GOOD.to_json()))
    assert written["provenance"] == "compiled"
    assert written["limit"]["provenance"] == "modelled"
    assert set(written["modelled_fields"]) < set(written)
    assert CompiledRow.from_json(written) == GOOD
    failed = CompiledRow(**{**vars(GOOD), "status": "failed", "limit": None})
    assert CompiledRow.from_json(failed.to_json()) == failed


def test_cases_have_names_of_their_own():
    names = [(case.kernel, case.variant, case.dtype) for case in full_cases()]
    assert len(set(names)) == len(names)
    assert set(default_cases()) < set(full_cases())


def test_useful_bytes_of_a_decode_step_are_its_tile_shared_by_the_blocks_of_a_group():
    (case, *_) = default_cases()
    constants = {"group": 32, "head_dim": 128, "block_n": 64, "block_g": 16}
    work = workload(case, "split", constants)
    assert (work.useful_bytes, work.tile_bytes) == (16384, 32768)
    assert work.flop == 4 * 16 * 64 * 128
    assert workload(case, "split", {"head_dim": 128}) is None
    assert workload(case, "unheard_of", constants) is None


@pytest.mark.parametrize(
    ("variant", "block_m", "useful", "streamed"),
    [
        ("rows_1", 16, 64 * 64 * 2, 64 * 64 * 2),  # the weights alone
        (
            "rows_8192",
            128,
            (8192 * 4096 * 2) * 2 / (64 * 128 * 64),
            (128 + 64) * 64 * 2,
        ),  # shared by the tiles
    ],
)
def test_useful_bytes_of_a_matmul_step_are_the_weights_or_a_share_of_both(variant, block_m, useful, streamed):
    case = next(case for case in default_cases() if case.variant == variant and case.dtype == "bf16")
    work = workload(case, "tile", {"block_m": block_m, "block_n": 64, "block_k": 64})
    assert (work.useful_bytes, work.streamed_bytes) == (useful, streamed)


def test_a_worker_that_dies_is_a_failed_row_and_not_a_crash(monkeypatch):
    monkeypatch.setattr(workers, "_WORKER", "decodetax.harness.no_such_module")
    told = []
    rows = inspect_cases(["h100"], default_cases()[:2], processes=1, on_row=told.append)
    assert [row.status for row in rows] == ["failed", "failed"]
    assert "no_such_module" in rows[0].reason
    assert told == list(rows)


def test_wrong_names_are_refused_before_anything_is_compiled():
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
