"""A run of two ranks made by hand, of round numbers, beside the same model on one."""

from dataclasses import replace

from decodetax.harness.core.collectives import CollectiveRow, collective
from decodetax.harness.core.parallelism import Parallelism
from decodetax.harness.core.sweep import cases_of, collectives_of
from hand_made import CPU, TINY, ceilings, gap, ok_row, run_record, sweep
from msgspec import to_builtins

TP2 = Parallelism(tensor_parallel=2)


def link_row(message_bytes, time_s, **changes):
    """An all-reduce among two ranks, whose bus bandwidth is its algorithm bandwidth."""
    case = collective("all_reduce", "link", message_bytes // 2, 2, "bf16")
    return collective_row(case, samples_s=(time_s,) * 3, **changes)


def collective_row(case, *, samples_s=(1e-3, 2e-3, 4e-3), **changes):
    return CollectiveRow(
        **{
            "case": case,
            "provider": "gloo",
            "status": "ok",
            "samples_s": samples_s,
            "rounds": tuple(range(len(samples_s))),
            "skew_s": 1e-4,
            "relative_error": 0.0,
            "tolerance": 0.0,
            **changes,
        }
    )


def failed_collective(case, status="failed", **changes):
    return collective_row(
        case, samples_s=(), skew_s=None, status=status, **{"reason": "wrong sum", **changes}
    )


def deployment_gap(**changes):
    """3.2 s per input token, 25% of them communication; 25 s per output token: 12% communication."""
    input_s = {"projections": 1.0, "attention": 0.8, "communication": 0.8, "rest": 0.4, "lm_head": 0.2}
    output_s = {"projections": 8.0, "attention": 9.0, "communication": 3.0, "rest": 3.0, "lm_head": 2.0}
    return gap(**{"input_parts_s": input_s, "output_parts_s": output_s, "ranks": 2, **changes})


def rank_run(*, device=None, hosts=("one", "one"), **changes):
    """Two ranks: kernels, the first of which takes one of them twice as long, collectives, a link, gaps."""
    plan = sweep(batches=(1, 8), contexts=(16,), parallelism=TP2)
    rows = [
        ok_row(case, samples_s=(1e-3,) * 3, rounds=(0, 1, 2), ranks_s=((1e-3, 1e-3),) * 3)
        for case in cases_of(TINY, plan)
    ]
    rows[0] = replace(rows[0], ranks_s=((1e-3, 1.5e-3), (1e-3, 2e-3), (4e-3, 1e-3)))
    run = run_record(
        device=device or CPU,
        **{
            "rows": rows,
            "collectives": [
                *map(collective_row, collectives_of(TINY, plan)),
                link_row(8192, 50e-6),
                link_row(2**20, 1e-3),
                link_row(2**24, 8e-3),
            ],
            "gaps": [deployment_gap(), deployment_gap(batch=8)],
            "one_rank_rows": [ok_row(case, samples_s=(2e-3,) * 3) for case in cases_of(TINY, sweep())],
            "one_rank_gaps": [gap()],
            "ceilings": ceilings(bandwidth_bytes_per_s=1e12, flop_per_s=1e13),
            **changes,
        },
    )
    run.settings = {
        **run.settings,
        "model": to_builtins(TINY),
        "batches": [1, 8],
        "contexts": [16],
        "parallelism": to_builtins(TP2),
    }
    name = run.environment["device"]["name"]
    ranks = {str(rank): {"host": host, "device": name} for rank, host in enumerate(hosts)}
    run.environment = {**run.environment, "ranks": ranks}
    return run
