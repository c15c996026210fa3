"""`decodetax execute`: compiled kernels executed on the CPU, for GPUs that need not be present."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import UsageError, printable
from ..core.progress import progress_bar
from ..core.table import Column, Table, prose, wide_option
from ..core.units import number
from .sizes import DECODE_SIZES, MATMUL_SIZES, PREFILL_SIZES, prompts_refusal, size_options, sized_cases

if TYPE_CHECKING:
    from ..core.cases import DecodeAttention, PrefillAttention, PrefillMatmul
    from .execution.cases import Case

MAX_OPERATIONS = 2**31
MAX_KV_TOKENS = 2**16
"""Tokens of all sequences times KV heads."""
PADDED_ROWS = 16
"""Least rows of a tensor-core instruction."""

_KERNELS = ("decode_attention", "prefill_attention", "prefill_matmul", "merge_states")
_SIZES = {
    "decode_attention": DECODE_SIZES,
    "prefill_attention": PREFILL_SIZES,
    "prefill_matmul": MATMUL_SIZES,
}
_STATUSES = ("ok", "failed", "unsupported", "skipped")
_DTYPES = ("bf16", "fp16", "fp32", "e4m3", "e5m2", "int8")
_SHOWN_VIOLATIONS = 5


def _error(value: float) -> str:
    return number(value, 2)


_COLUMNS = (
    Column("case", "case"),
    Column("dtype", "dtype"),
    Column("SMs", "sm_count"),
    Column("CTAs", "ctas", "executed"),
    Column("grids", "grids", "executed", wide=True),
    Column("error", "relative_error", "executed", show=_error),
    Column("tolerance", "tolerance", "modelled", show=_error),
    Column("log-sum-exp error", "lse_error", "executed", show=_error, wide=True),
    Column("its tolerance", "lse_tolerance", "modelled", show=_error, wide=True),
    Column("compile s", "compile_s", show="{:.1f}".format, wide=True),
    Column("execute s", "execute_s", show="{:.1f}".format, wide=True),
    Column("instructions", "instructions", "executed", wide=True),
    Column("sectors", "sectors", "executed", wide=True),
    Column("bank conflicts", "bank_conflicts", "executed", wide=True),
    Column("notes", "notes", "executed", wide=True),
    Column("violations", "violations", "executed"),
    Column("status", "status"),
)


@click.command("execute")
@options.gpus_option(
    "GPUs to compile for: a100, h100, b200, l40s, rtx3090, rtx-5090 or sm_80 to sm_120.", required=True
)
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    type=click.Choice(_KERNELS),
    help="Kernel to execute; repeat for several.  [default: all, without --provider]",
)
@options.user_function_option(
    "A function of your own to execute, as `decodetax run` takes it; repeat for several. An autotuned kernel "
    "runs in its first configuration."
)
@options.option(
    "--dtype",
    options.one_of("all", *_DTYPES),
    "NAME",
    "all, bf16, fp16 or fp32; or e4m3, e5m2, int8: KV cache of decode attention, operands of the matmul "
    "(int8: its weight only).",
    default="all",
)
@size_options
@options.option("--seed", options.SEED, "N", "Seed of the inputs and of the order of CTAs.", default="0")
@wide_option
@options.JSON
def execute_command(
    gpus: tuple[str, ...],
    more_gpus: tuple[str, ...],
    kernels: tuple[str, ...],
    providers: tuple[str, ...],
    wide: bool,
    as_json: bool,
    **arguments: Any,
) -> int:
    """Execute compiled kernels without a GPU, and compare them with the oracle.

    What the host functions launch is compiled for each GPU, and every CTA of its PTX is executed on the CPU,
    in random order. Tilings are chosen as on a GPU with few SMs (column SMs), so that grids are small. A
    size, such as --rows or --context, selects one case in place of the list of small cases; with
    DECODETAX_FULL_MATRIX=1 the complete list is executed. Exit code 1 means a faulty memory access, a race,
    a missing wait, a wrong result, or an error.
    """
    from ..core.gpus import find_gpu
    from .execution.rows import execute_cases

    names = options.gpu_names(*gpus, *more_gpus)
    found = list({gpu.name: gpu for gpu in (find_gpu(name, with_limits=True) for name in names)}.values())
    cases = _cases(kernels, providers, arguments)
    rows = []
    with progress_bar() as progress:

        def on_row(row: Any) -> None:
            rows.append(row)
            progress(len(rows) / (len(cases) * len(found)), f"{row.gpu} {row.kernel} {row.case}")

        answers = execute_cases(found, cases, seed=arguments["seed"], on_row=on_row)
    written = [row.to_json() for row in answers]
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "rows": written}, indent=1, allow_nan=False))
    else:
        click.echo(_text(written, wide=wide))
    return 1 if any(row["status"] == "failed" for row in written) else 0


def _cases(
    kernels: tuple[str, ...], providers: tuple[str, ...], arguments: Mapping[str, Any]
) -> "list[Case]":
    """The cases of the kernels and functions named, in the dtypes named.

    Raises:
        UsageError: there is no such function, no case has that dtype, or the sizes cannot be executed.
    """
    from msgspec import structs

    from .execution.cases import UserCase, default_cases, full_cases, sized_case, user_sizes
    from .user_kernel import COMPILED_DTYPES, load_to_compile

    dtype = arguments["dtype"]
    functions = load_to_compile(providers, dtype) if providers else []
    given = {
        operation: [written for name, written in options.given().items() if name in names]
        for operation, names in _SIZES.items()
    }
    sized = [operation for operation in _SIZES if given[operation]]
    ours = kernels or (() if providers else tuple(sized) or _KERNELS)
    sizes = sized_cases(arguments, "bf16")
    for operation in sized:
        if operation not in {*ours, *(function.operation for function in functions)}:
            raise UsageError(f"{given[operation][0]}: no {operation} is executed")
        _check_size(sizes[operation])
    if (
        "prefill_attention" in sized
        and "prefill_attention" in ours
        and (refusal := prompts_refusal(arguments))
    ):
        raise UsageError(refusal)
    dtypes = _DTYPES if dtype == "all" else (dtype,)
    listed = full_cases() if os.environ.get("DECODETAX_FULL_MATRIX") else default_cases()
    cases: list[Case] = [
        case for case in listed if case.kernel in ours and case.kernel not in sized and case.dtype in dtypes
    ]
    cases += [sized_case(sizes[name], each) for name in sized if name in ours for each in dtypes]
    cases += [
        UserCase(kernel=function.name, sizes=structs.replace(case, dtype=each))
        for function in functions
        for case in (
            [sizes[function.operation]] if function.operation in sized else user_sizes(function.operation)
        )
        for each in (COMPILED_DTYPES if dtype == "all" else dtypes)
    ]
    if not cases:
        raise UsageError(f"--dtype: no case of {', '.join(ours)} has {dtype}")
    return cases


def _check_size(case: "DecodeAttention | PrefillAttention | PrefillMatmul") -> None:
    """Refuse a case that would take minutes to execute.

    Raises:
        UsageError: names the option, the amount and the most that is executed.
    """
    from ..core.cases import DecodeAttention, PrefillAttention

    if isinstance(case, DecodeAttention):
        option, unit, most = "--context", "KV tokens", MAX_KV_TOKENS
        amount = sum(case.contexts) * case.kv_heads
    elif isinstance(case, PrefillAttention):
        option, unit, most = "--prompt", "operations", MAX_OPERATIONS
        amount = case.work().operations
    else:
        option, unit, most = "--rows", "operations", MAX_OPERATIONS
        amount = 2 * max(case.rows, PADDED_ROWS) * case.in_features * case.out_features
    if amount > most:
        raise UsageError(f"{option}: {amount:,} {unit} are too many to execute; at most {most:,}")


def _text(rows: Sequence[Mapping[str, Any]], *, wide: bool) -> str:
    """A table for each GPU and kernel, the violations of each row, what was not executed, and totals."""
    tables = []
    executed = [row for row in rows if row["status"] in ("ok", "failed")]
    for (gpu, kernel), group in groupby(executed, key=lambda row: (row["gpu"], row["kernel"])):
        cells = tuple(tuple(_cell(row, column.name) for column in _COLUMNS) for row in group)
        tables.append(Table(columns=_COLUMNS, rows=cells, title=f"{kernel} on {gpu}").text(wide=wide))
    lines = [line for row in rows if row["status"] == "failed" for line in _failure(row)]
    lines += [*_not_executed(rows), _totals(rows)]
    return "\n\n".join([*tables, "\n".join(prose(line, wide=wide) for line in lines)])


def _cell(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column: sums and texts of a row's lists."""
    if name == "ctas":
        return " + ".join(f"{launch['ctas']:,}" for launch in row["launches"])
    if name == "grids":
        return ", ".join(
            f"{launch['kernel'].strip('_').removesuffix('_kernel')} {'x'.join(map(str, launch['grid']))}"
            for launch in row["launches"]
        )
    if name in ("violations", "notes"):
        return sum(each["count"] for each in row[name])
    if name in ("instructions", "sectors", "bank_conflicts"):
        return round(sum(_counted(launch["counters"], name) for launch in row["launches"]))
    return row[name]


def _counted(figures: Mapping[str, Any], name: str) -> float:
    """A launch's executed figure, summed over classes of instructions or tensors."""
    if name == "sectors":
        return float(sum(each["requested"] + each["written"] for each in figures["sectors"].values()))
    return float(sum(figures[name].values()) if name == "instructions" else figures[name])


def _failure(row: Mapping[str, Any]) -> Iterator[str]:
    """Lines that say why a row failed, and where: one for each kind of violation and line of the source."""
    yield printable(f"failed: {row['gpu']} {row['kernel']} {row['case']} {row['dtype']}: {row['reason']}")
    places: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for each in row["violations"]:
        place = each["source"] or str(each["ptx_line"])
        places.setdefault((each["kind"], each["kernel"], place), []).append(each)
    for first, *others in list(places.values())[:_SHOWN_VIOLATIONS]:
        more = f"; and at {len(others)} more PTX lines" if others else ""
        yield f"  {printable(_violation(first) + more)}"
    if len(places) > _SHOWN_VIOLATIONS:
        yield f"  and {len(places) - _SHOWN_VIOLATIONS} more; --json has them all"


def _violation(violation: Mapping[str, Any]) -> str:
    """A violation in one line: what, where in memory, where in the code, CTA and warp."""
    times = f", {violation['count']} times" if violation["count"] > 1 else ""
    place = violation["tensor"]
    if violation["shared_address"] is not None:
        place = f"shared address {violation['shared_address']}"
    source = f" at {violation['source']}" if violation["source"] else ""
    warp = "" if violation["warp"] is None else f", warp {violation['warp']}"
    return "; ".join(
        (
            f"{violation['kind']}{times}: {', '.join(filter(None, (place, violation['detail'])))}",
            f"{violation['kernel']}{source}, CTA ({', '.join(map(str, violation['cta']))}){warp}",
            f"PTX line {violation['ptx_line']}: {violation['ptx']}",
        )
    )


def _not_executed(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each GPU and reason for which cases were not executed, with the cases."""
    listed: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["status"] in ("unsupported", "skipped"):
            name = f"{row['case']} {row['dtype']}"
            listed.setdefault((row["status"], row["gpu"], row["reason"]), []).append(name)
    for (status, gpu, reason), names in listed.items():
        yield printable(f"{status}: {gpu}, cases: {len(names)}, {reason}: {', '.join(names)}")


def _totals(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was executed, in one line."""
    by_status = Counter(row["status"] for row in rows)
    ctas = sum(launch["ctas"] for row in rows for launch in row["launches"])
    violations = sum(each["count"] for row in rows for each in row["violations"])
    statuses = ", ".join(f"{by_status[status]} {status}" for status in _STATUSES if by_status[status])
    return f"cases: {statuses}; {ctas:,} CTAs executed in random order; {violations:,} violations"
