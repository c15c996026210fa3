"""Several ranks on GPUs: NCCL, symmetric memory, a layer that two GPUs share, and a run."""

import json
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from decodetax.harness.bench.collective_groups import Groups
from decodetax.harness.bench.collective_providers import Backend
from decodetax.harness.bench.collectives import QUICK_LINK_BYTES, link_collectives, run_collective
from decodetax.harness.bench.decoder_layer import decoder_layer, gate_of
from decodetax.harness.bench.ranks import RankLostError
from decodetax.harness.bench.timer import Budget
from decodetax.harness.core.collectives import COLLECTIVES, Collective
from decodetax.harness.core.gate import judge
from decodetax.harness.core.inputs import Source, draw
from rank_processes import on_ranks
from sharded_layer import layer_over_ranks
from small_cases import layer_case, tiny_model

RANKS = 2
BUDGET = Budget(time_limit_s=0.2, warm_up_s=0.2)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < RANKS,
        reason=f"needs {RANKS} CUDA GPUs, this machine has {torch.cuda.device_count()}",
    ),
]


def rows_of(ranks, cases):
    groups = Groups(ranks)
    return [row for case in cases for row in run_collective(case, groups, BUDGET)]


def case_of(kind, dtype, elements=2**16):
    return Collective(kind=kind, phase="decode", elements=elements, ranks=RANKS, dtype=dtype)


def test_collectives_pass_the_gate_and_symmetric_memory_does_or_says_what_is_lacking():
    cases = [case_of(kind, dtype) for kind in COLLECTIVES for dtype in ("bf16", "fp16", "fp32")]
    cases += [case_of("all_reduce", "bf16", elements) for elements in (8, 264, 2**23 + 8)]
    rows, other = on_ranks(RANKS, rows_of, cases, timeout_s=60, kind="cuda")
    assert rows == other
    by_provider = {}
    for row in rows:
        by_provider.setdefault(row.provider, []).append(row)
    assert {(row.status, row.reason) for row in by_provider.pop("nccl")} == {("ok", None)}
    assert len(by_provider) == 3
    failed = [row for found in by_provider.values() for row in found if row.status == "failed"]
    assert failed == []


def test_link_has_a_latency_of_microseconds_and_a_bandwidth():
    rows, _ = on_ranks(
        RANKS, rows_of, link_collectives(RANKS, QUICK_LINK_BYTES["cuda"]), timeout_s=60, kind="cuda"
    )
    nccl = [row for row in rows if row.provider == "nccl"]
    assert 1e-6 < nccl[0].time_s.median < 1e-3
    assert nccl[0].method == "cuda: mean of 20 calls one after another, of its slowest rank"
    assert nccl[0].skew_s < nccl[0].time_s.median
    assert 1e9 < nccl[-1].bus_bytes_per_s < 2e12


class NotEntered:
    """torch.distributed, whose third all-reduce rank 1 does not enter."""

    def __init__(self):
        self._calls = 0

    def __getattr__(self, name):
        return getattr(dist, name)

    def all_reduce(self, x, *, group):
        self._calls += 1
        if self._calls != 3 or dist.get_rank() == 0:
            dist.all_reduce(x, group=group)


def ends(ranks):
    start_s = time.monotonic()
    with pytest.raises(RankLostError):
        run_collective(
            case_of("all_reduce", "bf16", 2**26),
            Groups(ranks),
            BUDGET,
            providers=[Backend("nccl", NotEntered())],
        )
    return time.monotonic() - start_s


def test_collective_that_hangs_ends_with_an_error_in_time():
    for after_s in on_ranks(RANKS, ends, timeout_s=10, kind="cuda"):
        assert after_s < 25


def layer(ranks, case):
    device = ranks.device.torch_device
    alone = draw(case, Source(device, 0))
    shared = layer_over_ranks(draw(case, Source(device, 0)))
    gate = gate_of(case, alone, ranks=ranks.size)
    return gate.judge(shared), judge(shared, decoder_layer(alone), bound=2 * gate.bound)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_layer_of_two_gpus_equals_that_of_one(phase, dtype):
    model = tiny_model(hidden_size=256, q_heads=8, kv_heads=2, head_dim=64, intermediate_size=512)
    case = layer_case(phase, model=model, dtype=dtype)
    for verdicts in on_ranks(RANKS, layer, case, timeout_s=60, kind="cuda"):
        assert all(verdict.passed for verdict in verdicts)


def test_run_of_two_gpus_has_a_share_of_communication(tmp_path):
    path = tmp_path / "run.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "decodetax.harness",
            "run",
            "--quick",
            "--tensor-parallel",
            "2",
            "--output",
            path,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(path.read_text("utf-8"))
    ok = [row for row in run["collectives"] if row["status"] == "ok"]
    assert {"nccl"} <= {row["provider"] for row in ok}
    assert all(gap["ranks"] == RANKS for gap in run["gaps"])
