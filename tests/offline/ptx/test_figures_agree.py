"""Executed figures agree with what `count` and `inspect` say of the same launches.

docs/evidence.md, "Executed figures", says where they need not.
"""

import collections
import json
from pathlib import Path

import msgspec
import pytest
import torch
import triton
from compiled_program import output_of
from decodetax.harness.core.cases import DecodeAttention, PrefillMatmul
from decodetax.harness.core.inputs import Source
from decodetax.harness.offline.kernel_traffic import count_case
from decodetax.harness.offline.ptx.instruction_classes import INSPECT_CLASSES
from executed_figures import small_tiling

GROUPED = DecodeAttention(contexts=(300, 64), q_heads=4, kv_heads=1, head_dim=128, dtype="bf16")
UNGROUPED = DecodeAttention(contexts=(301, 77), q_heads=3, kv_heads=3, head_dim=64, dtype="fp32")
TILES = PrefillMatmul(phase="prefill", part="qkv", rows=65, in_features=256, out_features=144, dtype="bf16")
ROWS = PrefillMatmul(phase="decode", part="qkv", rows=8, in_features=512, out_features=144, dtype="fp16")
ODD = PrefillMatmul(phase="prefill", part="qkv", rows=41, in_features=101, out_features=53, dtype="bf16")
DOCUMENTED = "3.9.0"
"""The Triton version of the page's bank conflicts."""
# A lane reads a float32 row of 64 elements in 16 loads, each by 4 warps: in each of its 4 passes, eight lanes
# meet in one bank group, which takes eight passes.
CONFLICTS = {GROUPED: {}, ROWS: {}, UNGROUPED: {"_split_kv_kernel": 7 * (256 // 16) * 4 * 4}}
"""Bank conflicts of a hot loop on A100, by kernel; 0 for all others."""
SAME_CLASSES = ("matrix", "load_global", "load_shared", "store", "mufu", "shuffle")
"""Classes whose instructions ptxas neither adds nor removes in a loop."""
SAME_SECTORS = ("k_ptr", "v_ptr", "x_ptr", "x_desc", "weight_ptr", "weight_desc", "partial_ptr")
"""Tensors of which each warp reads or writes whole sectors of its own."""


def execute(gpu, *cases):
    """Figures by launch of each case."""
    texts = [msgspec.json.encode(case).decode() for case in cases]
    printed = output_of(Path(__file__).with_name("executed_figures.py"), gpu, *texts)
    return dict(zip(cases, map(json.loads, printed.splitlines()), strict=True))


def check_sectors(gpu, case, launches):
    counted = count_case(case, small_tiling(case, gpu), Source(torch.device("cpu"), 0))
    for launch in counted.launches:
        sectors = launches[launch.kernel]["figures"]["sectors"]
        for tensor, expected in launch.tensors.items():
            found = sectors.get(tensor, {"requested": 0, "written": 0})
            if tensor in SAME_SECTORS:
                assert found == {"requested": expected.sectors_requested, "written": expected.sectors_written}
            elif tensor != "context_lens_ptr":  # its load may be left out where nothing uses it
                assert found["requested"] >= expected.sectors_requested
                assert found["written"] >= expected.sectors_written


def check_hot_loop(launch):
    executed = collections.Counter()
    for name, number in launch["figures"]["hot_loop"]["instructions"].items():
        executed[INSPECT_CLASSES[name]] += number
    inspected = launch["inspected"]
    assert {name: executed[name] for name in SAME_CLASSES} == {
        name: inspected.get(name, 0) for name in SAME_CLASSES
    }


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["a100", "h100", "rtx5090", "b200"])
def test_figures_of_every_case_agree(gpu):
    for case, launches in execute(gpu, GROUPED, UNGROUPED, TILES, ROWS, ODD).items():
        check_sectors(gpu, case, launches)
        for kernel in launches.keys() - {"_split_k_reduce_kernel"}:
            if gpu in {"a100", "rtx5090"}:
                check_hot_loop(launches[kernel])
            if gpu == "a100" and case in CONFLICTS and triton.__version__ == DOCUMENTED:
                conflicts = CONFLICTS[case].get(kernel, 0)
                assert launches[kernel]["figures"]["hot_loop"]["bank_conflicts"] == conflicts
