"""`decodetax count`: the traffic of kernels, counted in Triton's interpreter. Needs no GPU."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import FailureError, UsageError, printable
from ..core.table import Column, Table, prose, wide_option
from ..core.units import number, si
from .sizes import prompts_refusal, size_options, sized_cases

if TYPE_CHECKING:
    from ..core.cases import DecodeAttention, PrefillAttention, PrefillMatmul

MAX_TOKENS = 1_000_000
MAX_SEQUENCES = 4096
MAX_CACHE_ELEMENTS = 2**28

_TENSOR_COLUMNS = (
    Column("requested B", "bytes_requested", "counted"),
    Column("written B", "bytes_written", "counted"),
    Column("distinct B", "bytes_distinct", "counted"),
    Column("sectors", "sectors", "counted", wide=True),
    Column("minimum B", "modelled_work_bytes", "modelled"),
    Column("requested by tiling B", "modelled_bytes_requested", "modelled", wide=True),
    Column("written by tiling B", "modelled_bytes_written", "modelled", wide=True),
    Column("counted/modelled", "counted_over_modelled", show="{:.4f}".format),
)
_COUNTED_COLUMNS = _TENSOR_COLUMNS[:4]


@click.command("count")
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    type=click.Choice(["decode_attention", "prefill_attention", "prefill_matmul"]),
    help="Kernel to count; repeat for several.  [default: all, without --provider]",
)
@options.user_function_option(
    "A function of your own to count, as `decodetax run` takes it; repeat for several."
)
@size_options
@options.option(
    "--dtype", options.one_of("bf16", "fp16", "fp32"), "NAME", "bf16, fp16 or fp32.", default="bf16"
)
@click.option(
    "--gpu",
    default="h100",
    show_default=True,
    metavar="NAME",
    help="GPU whose tiling is counted and whose L2 is modelled: a100, h100, b200, ... or sm_80 to sm_120.",
)
@options.option(
    "--programs-per-sm",
    options.SIZE,
    "N",
    "Programs that an SM holds at one time, for the L2 model.",
    default="1",
)
@options.option("--seed", options.SEED, "N", "Seed of the inputs.", default="0")
@wide_option
@options.JSON
def count_command(
    kernels: tuple[str, ...], providers: tuple[str, ...], wide: bool, as_json: bool, **arguments: Any
) -> int:
    """Count the bytes and operations of kernels, without a GPU.

    Triton's interpreter runs the kernels. Shows the bytes of each tensor that unmasked lanes request and
    write, and the distinct bytes (counted), beside the tiling's formula and the case's minimum (modelled). A
    large matmul is modelled only. Exit code 1 means a wrong result or a faulty memory access.
    """
    from ..core.gpus import find_gpu

    gpu, cases = find_gpu(arguments["gpu"], with_limits=True), _cases(arguments)
    refusal = prompts_refusal(arguments)
    if refusal is not None and "prefill_attention" in kernels:
        raise UsageError(refusal)
    default = [name for name in cases if refusal is None or name != "prefill_attention"]
    from .kernel_traffic import count_row
    from .sanitizer import SanitizerError

    functions = []
    if providers:
        from .user_kernel import count_user_function, load_to_count

        functions = load_to_count(providers, cases)
    try:
        rows = [
            count_row(cases[name], gpu, programs_per_sm=arguments["programs_per_sm"], seed=arguments["seed"])
            for name in (dict.fromkeys(kernels) or ([] if providers else default))
        ]
    except SanitizerError as error:
        raise FailureError(f"memory fault: {error}") from error
    user_rows = [
        count_user_function(function, cases[function.operation], seed=arguments["seed"])
        for function in functions
    ]
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "rows": [*rows, *user_rows]}, indent=1, allow_nan=False))
    else:
        texts = [_text(row, wide=wide) for row in rows] + [_user_text(row, wide=wide) for row in user_rows]
        click.echo("\n\n".join(texts))
    return 1 if any(row["status"] == "failed" for row in user_rows) else 0


def _cases(arguments: Mapping[str, Any]) -> "dict[str, DecodeAttention | PrefillAttention | PrefillMatmul]":
    """The case of each kernel.

    Raises:
        UsageError: the kernel does not take such sizes, or they are too large to interpret.
    """
    contexts, head_dim = arguments["context"], arguments["head_dim"]
    batch, longest = arguments["batch"] or len(contexts), max(1, *contexts, arguments["prompt"])
    if batch * longest > MAX_TOKENS:
        option = "--prompt" if longest == arguments["prompt"] else "--context"
        raise UsageError(f"{option}: {batch} sequences hold over {MAX_TOKENS} tokens, too many to interpret")
    if batch > MAX_SEQUENCES:
        raise UsageError(f"--batch: {batch} is over {MAX_SEQUENCES}, the most sequences to interpret")
    if batch * (longest * arguments["kv_heads"] + arguments["q_heads"]) * head_dim > MAX_CACHE_ELEMENTS:
        raise UsageError(f"--q-heads: the cache and queries hold over {MAX_CACHE_ELEMENTS} elements")
    return sized_cases(arguments, arguments["dtype"])


def _text(row: Mapping[str, Any], *, wide: bool) -> str:
    """The text of a case of this package's kernels: tensors, operations, ops:bytes at each level."""
    title = f"{row['case']} on {row['gpu']}"
    tiling = ", ".join(f"{name} {value}" for name, value in row["tiling"].items() if value is not None)
    lines = {"tiling": tiling}
    if row["status"] == "counted":
        cells = tuple(
            (name, *(tensor[column.name] for column in _TENSOR_COLUMNS))
            for name, tensor in row["tensors"].items()
        )
        title = Table(columns=(Column("tensor"), *_TENSOR_COLUMNS), rows=cells, title=title).text(wide=wide)
        useful, ratio = row["useful_share_of_operations"], row["operations_counted_over_modelled"]
        requested, distinct = row["operations_per_requested_byte"], row["operations_per_distinct_byte"]
        programs = (f"{launch['kernel']} {launch['programs']:,}" for launch in row["launches"])
        lines["operations (counted)"] = (
            f"{_operations(row)}; {useful:.1%} useful; counted/modelled {ratio:.4f}"
        )
        lines["ops:bytes (counted)"] = f"{number(requested)} requested, {number(distinct)} distinct"
        lines["programs (counted)"] = ", ".join(programs)
    else:
        requested, written = si(row["modelled_bytes_requested"]), si(row["modelled_bytes_written"])
        operations = f"{row['modelled_operations']:,} operations with padding"
        lines["modelled only"] = row["reason"]
        lines["modelled"] = f"{requested}B requested, {written}B written, {operations}"
    cache = row["modelled_cache"]
    if cache is not None:
        requested, l2, dram = (
            number(cache[f"{level}_operations_per_byte"]) for level in ("requested", "l2", "dram")
        )
        l2_mib = cache["l2_capacity_bytes"] / 2**20
        lines[f"L2 of {l2_mib:.0f} MiB (modelled, programs per SM: {cache['programs_per_sm']})"] = (
            f"{si(cache['dram_bytes'])}B of DRAM traffic; "
            f"ops:bytes {requested} requested, {l2} L2, {dram} DRAM"
        )
    return "\n".join((title, *_wrapped(lines, wide=wide)))


def _user_text(row: Mapping[str, Any], *, wide: bool) -> str:
    """The text of a user's function: the tensors of each launch by parameter, and totals."""
    title = f"{row['kernel']}: {row['case']}"
    if row["status"] != "counted":
        return "\n".join((title, *_wrapped({row["status"]: row["reason"]}, wide=wide)))
    cells = tuple(
        (launch["kernel"], launch["programs"], name, *(tensor[column.name] for column in _COUNTED_COLUMNS))
        for launch in row["launches"]
        for name, tensor in launch["tensors"].items()
    )
    columns = (Column("launch"), Column("programs", "", "counted"), Column("tensor"), *_COUNTED_COLUMNS)
    lines = {
        "result": "correct",
        "operations (counted)": _operations(row),
        "minimum (modelled)": f"{row['modelled_work_operations']:,} operations, "
        f"{row['modelled_work_bytes']:,} bytes",
        "bytes requested and written over the minimum": number(row["bytes_counted_over_work"]),
        "minimum operations per byte requested and written": number(row["operations_per_counted_byte"]),
    }
    table = Table(columns=columns, rows=cells, title=title).text(wide=wide)
    return "\n".join((table, *_wrapped(lines, wide=wide)))


def _operations(row: Mapping[str, Any]) -> str:
    return (
        "; ".join(f"{count:,} in {types}" for types, count in row["operations"].items()) or "none by tl.dot"
    )


def _wrapped(lines: Mapping[str, str], *, wide: bool) -> Iterator[str]:
    """Lines "name: value", wrapped at 80 characters unless `wide`."""
    for name, value in lines.items():
        line = printable(f"{name}: {value}")
        yield prose(line, wide=wide)
