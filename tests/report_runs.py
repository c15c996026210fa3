"""Runs made by hand for the report: a complete one, and one in which every text is hostile."""

from dataclasses import replace

from decodetax.harness.core.gap import Interval
from decodetax.harness.core.records import Row
from decodetax.harness.core.sweep import cases_of
from hand_made import (
    CPU,
    TINY,
    ceilings,
    check,
    failed_row,
    forward,
    gap,
    ok_row,
    run_record,
    sweep,
    whole_model,
)
from msgspec import structs

SCRIPT = "<script>alert(1)</script>"
HOSTILE = (
    SCRIPT,
    "</script><img src=x onerror=alert(1)>",
    "]]></style></title>",
    "\"' onmouseover=alert(1) x='",
    "javascript:alert(1)",
    '<a href="javascript:alert(1)">名前 ünï \u2028 \U0001f600</a>',
    "%{customdata[0]}${alert(1)}$x_1$|`a`|",
)
CONTROL = "\x1b]0;OWNED\x07\x1b[2J\nOWNED\r\x9bOWNED\u2028OWNED \u202eOWNED"
"""Control sequences and line ends of a terminal."""


def whole_run(**changes):
    """Every case timed, a failed row, an unsupported one, gaps at two batches and contexts, both roofs."""
    cases = list(cases_of(TINY, sweep(batches=(1, 8), contexts=(16, 64))))
    rows = [
        ok_row(case, samples_s=(1e-3 * (at + 1), 2e-3 * (at + 1), 3e-3 * (at + 1)))
        for at, case in enumerate(cases)
    ]
    rows += [
        failed_row(cases[0], "triton"),
        Row(case=cases[1], provider="triton", status="unsupported", reason="no GPU here"),
    ]
    steps = {1: 1.0, 8: 0.25}
    gaps = [
        with_intervals(
            batch=batch,
            context=context,
            output_parts_s={name: seconds * part for name, seconds in gap().output_parts_s.items()},
        )
        for batch, part in steps.items()
        for context in (16, 64)
    ]
    roofs = [
        *ceilings(bandwidth_bytes_per_s=1e8, flop_per_s=1e9),
        *ceilings(bandwidth_bytes_per_s=2e8, flop_per_s=4e9, provenance="datasheet"),
    ]
    return run_record(
        **{
            "rows": rows,
            "gaps": gaps,
            "ceilings": roofs,
            "interpreter_checks": [check()],
            "whole_model": whole_model(),
            **changes,
        }
    )


def with_intervals(**changes):
    """A gap of three rounds; its intervals reach from a tenth below its figures to a fifth above."""
    found = gap(**changes)
    bounds = {
        f"{name}_interval": Interval(low=0.9 * figure, high=1.2 * figure)
        for name in ("gap", "input_s_per_token", "output_s_per_token")
        if (figure := getattr(found, name))
    }
    rounds_s = {
        "input_rounds_s": (found.input_s_per_token,) * 3,
        "output_rounds_s": tuple(found.output_s_per_token * factor for factor in (0.95, 1.0, 1.1)),
    }
    return replace(found, rounds=(0, 1, 2), **rounds_s, **bounds)


def priced_run():
    """The same on a device whose price is known."""
    run = whole_run()
    run.gaps = [replace(gap, usd_per_hour=3.6) for gap in run.gaps]
    run.settings = {**run.settings, "usd_per_hour": 3.6, "usd_per_hour_source": "a list"}
    return run


def hostile_run(texts=HOSTILE):
    """A run with such texts wherever a file can put one."""
    run = priced_run()
    run.environment = {
        **run.environment,
        "device": {**CPU, "name": texts[0], "capability": texts[2]},
        "versions": {"python": texts[4], texts[6]: texts[3]},
        "commit": texts[3],
        texts[0]: texts[1],
    }
    run.settings = {**run.settings, "model": {"name": texts[5]}, "usd_per_hour_source": texts[1]}
    run.broken = run.counters_reason = texts[1]
    run.rows = [
        replace(row, provider=f"{texts[at % len(texts)]}{at}", reason=row.reason and texts[1])
        for at, row in enumerate(run.rows)
    ]
    first = run.rows[0]
    run.rows[0] = replace(
        first, case=structs.replace(first.case, part=texts[1]), throttle_reasons=(texts[0],), variant=texts[2]
    )
    run.gaps = [
        replace(
            gap,
            providers={f"{texts[0]}/{texts[1]}/m1": texts[1]},
            output_parts_s={**gap.output_parts_s, texts[1]: 1e-9, texts[0]: 2e-9},
        )
        for gap in run.gaps
    ]
    run.ceilings = [replace(ceiling, detail=texts[1]) for ceiling in run.ceilings]
    run.ceilings.append(replace(run.ceilings[0], kind="copy_bandwidth", reason=texts[2]))
    run.interpreter_checks = [check(provider=texts[0], reason=texts[1])]
    skipped = forward(status="skipped", samples_s=(), by=texts[2], reason=texts[1])
    run.whole_model = whole_model(forwards=(forward(by=texts[0]), skipped), reason=texts[1])
    return run
