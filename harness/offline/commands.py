"""The two commands that give evidence without a GPU; each imports what it needs when it runs."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import FailureError, UsageError
from ..core.progress import progress_bar
from .provider_rows import compile_providers, count_providers, countable

if TYPE_CHECKING:
    from ..core.cases import DecodeAttention, PrefillMatmul

MOST_COUNTED_TOKENS = 1_000_000
MOST_COUNTED_SEQUENCES = 4096
MOST_CACHE_ELEMENTS = 2**28


@click.command("count")
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    type=click.Choice(["decode_attention", "prefill_matmul"]),
    help="What to count; repeat for several.  [default: both, without --provider]",
)
@options.user_function_option(
    "A function of your own to count, as `decodetax run` takes it; repeat for several."
)
@click.option(
    "--batch", callback=options.SIZE, metavar="N", help="Sequences.  [default: as many as --context]"
)
@click.option(
    "--context",
    default="1000,37",
    show_default=True,
    callback=options.LENGTHS,
    metavar="N,...",
    help="Tokens in the KV cache of each sequence in turn, 0 among them.",
)
@click.option(
    "--q-heads", default="32", show_default=True, callback=options.SIZE, metavar="N", help="Query heads."
)
@click.option(
    "--kv-heads", default="8", show_default=True, callback=options.SIZE, metavar="N", help="KV heads."
)
@click.option(
    "--head-dim",
    default="128",
    show_default=True,
    callback=options.SIZE,
    metavar="N",
    help="Elements of a head.",
)
@click.option(
    "--rows", default="256", show_default=True, callback=options.SIZE, metavar="N", help="Tokens of x."
)
@click.option(
    "--in-features",
    default="512",
    show_default=True,
    callback=options.SIZE,
    metavar="N",
    help="K of the product.",
)
@click.option(
    "--out-features",
    default="512",
    show_default=True,
    callback=options.SIZE,
    metavar="N",
    help="N of the product.",
)
@click.option(
    "--dtype",
    callback=options.one_of("bf16", "fp16", "fp32"),
    default="bf16",
    show_default=True,
    metavar="NAME",
    help="bf16, fp16 or fp32.",
)
@click.option(
    "--gpu",
    default="h100",
    show_default=True,
    metavar="NAME",
    help="Whose tiling and L2 cache: a100, h100, b200, ... or sm_80 to sm_120.",
)
@click.option(
    "--programs-per-sm",
    default="1",
    show_default=True,
    callback=options.SIZE,
    metavar="N",
    help="That an SM holds at one time, for the cache model.",
)
@click.option(
    "--seed", default="0", show_default=True, callback=options.SEED, metavar="N", help="Of the inputs."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
def count_command(kernels: tuple[str, ...], providers: tuple[str, ...], as_json: bool, **asked: Any) -> int:
    """Count bytes and operations while the kernels run in Triton's interpreter; needs no GPU.

    Bytes are counted per tensor: requested by live lanes, distinct, written. Beside them stand what the
    tiling's formula says (modelled) and what the case cannot do without (work). A large product is modelled
    alone. Exit code 1 means that a kernel gave a wrong result or touched memory as it must not.
    """
    from ..core.gpu_limits import find_gpu

    gpu, cases = find_gpu(asked["gpu"]), _cases(asked)
    from .count_rows import count_row
    from .sanitizer import SanitizerError

    own = countable(providers, cases)
    try:
        rows = [
            count_row(cases[name], gpu, programs_per_sm=asked["programs_per_sm"], seed=asked["seed"])
            for name in (dict.fromkeys(kernels) or ([] if providers else cases))
        ]
    except SanitizerError as error:
        raise FailureError(f"memory fault: {error}") from error
    counted = count_providers(own, cases, seed=asked["seed"])
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "rows": [*rows, *counted]}, indent=1, allow_nan=False))
    else:
        from .evidence_text import count_text, own_count_text

        click.echo("\n\n".join([*map(count_text, rows), *map(own_count_text, counted)]))
    return 1 if any(row["status"] == "failed" for row in counted) else 0


def _cases(asked: Mapping[str, Any]) -> "dict[str, DecodeAttention | PrefillMatmul]":
    """What is counted of each operation.

    Raises:
        UsageError: the kernel does not take such sizes, or they are too many to interpret.
    """
    from ..core.cases import DecodeAttention, PrefillMatmul

    dtype, contexts = asked["dtype"], asked["context"]
    if asked["q_heads"] % asked["kv_heads"] or asked["q_heads"] > 64 * asked["kv_heads"]:
        raise UsageError(f"--q-heads: {asked['q_heads']} is not 1 to 64 times --kv-heads {asked['kv_heads']}")
    if asked["head_dim"] not in range(16, 257, 8):
        raise UsageError(f"--head-dim: {asked['head_dim']} is not a multiple of 8 from 16 to 256")
    batch = asked["batch"] or len(contexts)
    if batch * max(1, *contexts) > MOST_COUNTED_TOKENS:
        raise UsageError(
            f"--context: {batch} sequences hold over {MOST_COUNTED_TOKENS} tokens, too many to interpret"
        )
    if batch > MOST_COUNTED_SEQUENCES:
        raise UsageError(
            f"--batch: {batch} is over {MOST_COUNTED_SEQUENCES}, the most sequences to interpret"
        )
    elements = max(1, *contexts) * asked["kv_heads"] + asked["q_heads"]
    if batch * elements * asked["head_dim"] > MOST_CACHE_ELEMENTS:
        raise UsageError(f"--q-heads: the cache and queries hold over {MOST_CACHE_ELEMENTS} elements")
    return {
        "decode_attention": DecodeAttention(
            contexts=tuple(contexts[i % len(contexts)] for i in range(batch)),
            q_heads=asked["q_heads"],
            kv_heads=asked["kv_heads"],
            head_dim=asked["head_dim"],
            dtype=dtype,
        ),
        "prefill_matmul": PrefillMatmul(
            phase="prefill",
            part="product",
            rows=asked["rows"],
            in_features=asked["in_features"],
            out_features=asked["out_features"],
            dtype=dtype,
        ),
    }


@click.command("inspect")
@click.option(
    "--gpu",
    "first",
    required=True,
    metavar="NAME [NAME ...]",
    help="GPUs to compile for: a100, h100, b200, l40s, rtx3090, rtx5090 or sm_80 to sm_120.",
)
@click.argument("others", nargs=-1, metavar="[NAME ...]")
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    type=click.Choice(["decode_attention", "prefill_matmul"]),
    help="What to compile; repeat for several.  [default: both, without --provider]",
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
    help="all, bf16, fp16 or fp32; e4m3, e5m2 or int8: of decode attention's cache, of the product's "
    "operands, int8 of its weight alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
def inspect_command(
    first: str,
    others: tuple[str, ...],
    kernels: tuple[str, ...],
    providers: tuple[str, ...],
    dtype: str,
    as_json: bool,
) -> int:
    """Compile every kernel and variant for GPUs that need not be there, and bound what they can reach.

    Registers, spills, loads and loops are read from the machine code; headrooms and limits are modelled from
    them. Exit code 1 means that something did not compile or does not fit.
    """
    from ..core.gpu_limits import find_gpu

    names = [name for text in (first, *others) for name in text.split(",")]
    limits = {limit.gpu: limit for limit in map(find_gpu, names)}
    own = compile_providers(providers, list(limits.values()), dtype)
    ours = () if providers and not kernels else (kernels or ("decode_attention", "prefill_matmul"))
    rows = _compiled(tuple(limits), ours, dtype) + own
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "rows": rows}, indent=1, allow_nan=False))
    else:
        from .evidence_text import inspect_text

        click.echo(inspect_text(rows))
    return 0 if all(row["status"] == "ok" for row in rows) else 1


def _compiled(gpus: tuple[str, ...], kernels: tuple[str, ...], dtype: str) -> list[dict[str, Any]]:
    """The rows of our own kernels."""
    from .variants import default_cases
    from .workers import inspect_cases

    cases = [case for case in default_cases() if case.kernel in kernels and dtype in ("all", case.dtype)]
    if not cases:
        return []
    with progress_bar() as progress:
        done: list[str] = []

        def on_row(row: Any) -> None:
            done.append(row.variant.partition(":")[0])
            progress(
                min(0.99, len(done) / (1.4 * len(cases) * len(gpus))), f"{row.gpu} {row.kernel} {row.variant}"
            )

        return [row.to_json() for row in inspect_cases(gpus, cases, on_row=on_row)]
