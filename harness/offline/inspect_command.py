"""`decodetax inspect`: kernels compiled for GPUs that need not be present, with their modelled limits."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import click

from ..core import options
from ..core.errors import printable
from ..core.progress import progress_bar
from ..core.table import Column, Table, percent, wide_option
from ..core.units import number


def _ratio(value: float) -> str:
    return number(value, 3)


_COLUMNS = (
    Column("variant", "variant"),
    Column("dtype", "dtype"),
    Column("registers", "registers", "compiled"),
    Column("spill B", "spill_bytes", "compiled"),
    Column("shared B", "shared_bytes", "compiled", wide=True),
    Column("tensor-core instruction", "matrix_instruction", "compiled", wide=True),
    Column("load B", "load_bytes", "compiled", wide=True),
    Column("async loads", "asynchronous", "compiled", wide=True),
    Column("loop instructions", "loop_instructions", "compiled", wide=True),
    Column("tensor-core drains", "matrix_drains", "compiled", wide=True),
    Column("programs/SM", "programs_per_sm", "modelled"),
    Column("issue headroom", "issue_headroom", "modelled", show=_ratio, wide=True),
    Column("latency headroom", "latency_headroom", "modelled", show=_ratio, wide=True),
    Column("latency headroom at wait", "latency_headroom_at_wait", "modelled", show=_ratio, wide=True),
    Column("tensor-core share", "matrix_share", "modelled", show=_ratio, wide=True),
    Column("schedule efficiency", "schedule_efficiency", "modelled", show=_ratio, wide=True),
    Column("ragged schedule", "schedule_efficiency_ragged", "modelled", show=_ratio, wide=True),
    Column("limit", "limit", "modelled"),
    Column("of peak", "share_of_peak", "modelled", show=percent),
)

_KERNELS = ("decode_attention", "prefill_attention", "prefill_matmul")


@click.command("inspect")
@options.gpus_option(
    "GPUs to compile for: a100, h100, b200, l40s, rtx3090, rtx5090 or sm_80 to sm_120.", required=True
)
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    type=click.Choice(_KERNELS),
    help="Kernel to compile; repeat for several.  [default: all, without --provider]",
)
@options.user_function_option(
    "A function of your own to compile, as `decodetax run` takes it; repeat for several."
)
@click.option(
    "--dtype",
    callback=options.one_of("all", "bf16", "fp16", "fp32", "e4m3", "e5m2", "int8"),
    default="all",
    show_default=True,
    metavar="NAME",
    help="all, bf16, fp16 or fp32; or e4m3, e5m2, int8: KV cache of decode attention, operands of the "
    "others (int8: the matmul's weight only).",
)
@wide_option
@options.JSON
def inspect_command(
    gpus: tuple[str, ...],
    more_gpus: tuple[str, ...],
    kernels: tuple[str, ...],
    providers: tuple[str, ...],
    dtype: str,
    wide: bool,
    as_json: bool,
) -> int:
    """Compile kernels for GPUs that need not be present, and bound them.

    Registers, spills, loads and loops are read from the machine code; headrooms and limits are modelled from
    them. Exit code 1 means that a kernel does not compile or does not fit the GPU.
    """
    from ..core.gpus import find_gpu

    names = options.gpu_names(*gpus, *more_gpus)
    found = {gpu.name: gpu for gpu in (find_gpu(name, with_limits=True) for name in names)}
    user_rows = []
    if providers:
        from .user_kernel import compile_user_functions

        compiled = compile_user_functions(providers, list(found.values()), dtype)
        user_rows = [row.to_json() for row in compiled]
    ours = kernels or (() if providers else _KERNELS)
    rows = _compiled(tuple(found), ours, dtype) + user_rows
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "rows": rows}, indent=1, allow_nan=False))
    else:
        click.echo(_text(rows, wide=wide))
    return 0 if all(row["status"] == "ok" for row in rows) else 1


def _compiled(gpus: tuple[str, ...], kernels: tuple[str, ...], dtype: str) -> list[dict[str, Any]]:
    """The rows of this package's kernels."""
    from .variants import default_cases
    from .workers import inspect_cases

    cases = [case for case in default_cases() if case.kernel in kernels and dtype in ("all", case.dtype)]
    if not cases:
        return []
    with progress_bar() as progress:
        done = 0

        def on_row(row: Any) -> None:
            nonlocal done
            done += 1
            fraction_done = done / (1.4 * len(cases) * len(gpus))  # a case has one or two launches
            progress(min(0.99, fraction_done), f"{row.gpu} {row.kernel} {row.variant}")

        return [row.to_json() for row in inspect_cases(gpus, cases, on_row=on_row)]


def _text(rows: Sequence[Mapping[str, Any]], *, wide: bool) -> str:
    """A table for each GPU and kernel, then a line for each row that is not ok."""
    tables = []
    compiled = (row for row in rows if row["status"] == "ok")
    for (kernel, gpu), group in groupby(compiled, key=lambda row: (row["kernel"], row["gpu"])):
        cells = []
        for row in group:
            limit = row["limit"] or {}
            flat = {**row, "limit": limit.get("which"), "share_of_peak": limit.get("share_of_peak")}
            cells.append(tuple(flat[column.name] for column in _COLUMNS))
        tables.append(Table(columns=_COLUMNS, rows=tuple(cells), title=f"{kernel} on {gpu}").text(wide=wide))
    others = [
        f"{row['status']}: {row['gpu']} {row['kernel']} {row['variant']} {row['dtype']}: {row['reason']}"
        for row in rows
        if row["status"] != "ok"
    ]
    return "\n\n".join([*tables, *(["\n".join(map(printable, others))] if others else [])])
