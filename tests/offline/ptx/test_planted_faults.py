"""Faults planted at each synchronisation of the compiled kernels: how many are found, by case and target.

Not found are synchronisations that the case does not need: barriers that another makes redundant, and those
of code that its input does not reach.
"""

import json
from pathlib import Path

import pytest
from compiled_program import output_of

PROGRAM = Path(__file__).with_name("planted_faults.py")
ALL = "all bar.sync"

# Case: by kernel and fault, how many are planted and how many found.
FAULTS = {
    "90 prefill_matmul weight_first int8": {
        "_matmul_kernel": {
            ALL: (1, 1),
            "bar.sync": (4, 4),
            "wgmma.wait_group": (1, 1),
            "wgmma.wait_group + 1": (1, 1),
            "fence.proxy.async": (1, 1),
        }
    },
    "80 decode_attention ragged bf16 split": {
        "_split_kv_kernel": {
            ALL: (1, 1),
            "bar.sync": (34, 33),
            "cp.async.wait_group": (4, 4),
            "cp.async.commit_group": (12, 10),
            "cp.async.wait_group + 1": (4, 3),
        }
    },
    "80 decode_attention ragged bf16 combine": {"_combine_kernel": {ALL: (1, 1), "bar.sync": (6, 4)}},
    "80 prefill_matmul rows_5 fp16": {"_matmul_kernel": {ALL: (1, 1), "bar.sync": (4, 4)}},
    "100 prefill_matmul weight_first int8": {
        "_matmul_kernel": {
            ALL: (1, 1),
            "bar.sync": (10, 7),
            "fence.proxy.async": (2, 2),
            "mbarrier wait": (2, 2),
            "tcgen05.wait::ld": (1, 1),
            "tcgen05.wait::st": (3, 2),
            "tcgen05.commit": (2, 2),
            "tcgen05.dealloc": (1, 1),
        }
    },
    "120 prefill_matmul weight_first int8": {"_matmul_kernel": {ALL: (1, 1), "bar.sync": (6, 6)}},
    "90 prefill_matmul tma_several_items bf16": {
        "_tma_kernel": {
            ALL: (1, 1),
            "bar.sync": (13, 1),
            "wgmma.wait_group": (3, 2),
            "wgmma.wait_group + 1": (3, 2),
            "mbarrier wait": (1, 1),
        }
    },
    "90 prefill_matmul tma_weight_first int8": {
        "_tma_kernel": {
            ALL: (1, 1),
            "bar.sync": (26, 7),
            "wgmma.wait_group": (4, 3),
            "wgmma.wait_group + 1": (4, 3),
            "fence.proxy.async": (1, 0),
            "mbarrier wait": (2, 2),
        }
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FAULTS)
def test_planted_faults_are_found(case):
    wanted, got = FAULTS[case], json.loads(output_of(PROGRAM, *case.split()))
    assert list(got) == list(wanted)
    for kernel, faults in wanted.items():
        for fault, (places, found) in faults.items():
            quiet = [place for place in got[kernel].get(fault, ()) if place != "reported"]
            assert len(quiet) <= places - found, (kernel, fault, got[kernel][fault])
