"""`decodetax count`: the traffic of kernels, counted in Triton's interpreter. Needs no GPU."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import FailureError, UsageError

if TYPE_CHECKING:
    from ..core.cases import DecodeAttention, PrefillMatmul

MAX_TOKENS = 1_000_000
MAX_SEQUENCES = 4096
MAX_CACHE_ELEMENTS = 2**28


def _size_option(
    name: str, default: int, help_text: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        name, default=str(default), show_default=True, callback=options.SIZE, metavar="N", help=help_text
    )


@click.command("count")
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    type=click.Choice(["decode_attention", "prefill_matmul"]),
    help="Kernel to count; repeat for several.  [default: both, without --provider]",
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
    help="Tokens in the KV cache of each sequence in turn; may be 0.",
)
@_size_option("--q-heads", 32, "Query heads.")
@_size_option("--kv-heads", 8, "KV heads.")
@_size_option("--head-dim", 128, "Elements of a head.")
@_size_option("--rows", 256, "M of the matmul: tokens of x.")
@_size_option("--in-features", 512, "K of the matmul.")
@_size_option("--out-features", 512, "N of the matmul.")
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
    help="GPU whose tiling is counted and whose L2 is modelled: a100, h100, b200, ... or sm_80 to sm_120.",
)
@_size_option("--programs-per-sm", 1, "Programs that an SM holds at one time, for the L2 model.")
@click.option(
    "--seed", default="0", show_default=True, callback=options.SEED, metavar="N", help="Seed of the inputs."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
def count_command(kernels: tuple[str, ...], providers: tuple[str, ...], as_json: bool, **asked: Any) -> int:
    """Count bytes and operations of kernels in Triton's interpreter; needs no GPU.

    Shows the bytes of each tensor that unmasked lanes request and write and the distinct bytes (counted),
    beside the tiling's formula and the case's minimum (modelled). A large matmul is modelled only. Exit code
    1 means a wrong result or a faulty memory access.
    """
    from ..core.gpu_limits import find_gpu

    gpu, cases = find_gpu(asked["gpu"]), _cases(asked)
    from .kernel_traffic import count_row
    from .sanitizer import SanitizerError

    functions = []
    if providers:
        from .user_kernel import count_user_function, load_to_count

        functions = load_to_count(providers, cases)
    try:
        rows = [
            count_row(cases[name], gpu, programs_per_sm=asked["programs_per_sm"], seed=asked["seed"])
            for name in (dict.fromkeys(kernels) or ([] if providers else cases))
        ]
    except SanitizerError as error:
        raise FailureError(f"memory fault: {error}") from error
    user_rows = [
        count_user_function(function, cases[function.operation], seed=asked["seed"]) for function in functions
    ]
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "rows": [*rows, *user_rows]}, indent=1, allow_nan=False))
    else:
        from .evidence_text import count_text, own_count_text

        click.echo("\n\n".join([*map(count_text, rows), *map(own_count_text, user_rows)]))
    return 1 if any(row["status"] == "failed" for row in user_rows) else 0


def _cases(asked: Mapping[str, Any]) -> "dict[str, DecodeAttention | PrefillMatmul]":
    """The case of each kernel.

    Raises:
        UsageError: the kernel does not take such sizes, or they are too large to interpret.
    """
    from ..core.cases import DecodeAttention, PrefillMatmul

    contexts, q_heads, kv_heads = asked["context"], asked["q_heads"], asked["kv_heads"]
    head_dim = asked["head_dim"]
    if q_heads % kv_heads or q_heads > 64 * kv_heads:
        raise UsageError(f"--q-heads: {q_heads} is not 1 to 64 times --kv-heads {kv_heads}")
    if head_dim not in range(16, 257, 8):
        raise UsageError(f"--head-dim: {head_dim} is not a multiple of 8 from 16 to 256")
    batch, longest = asked["batch"] or len(contexts), max(1, *contexts)
    if batch * longest > MAX_TOKENS:
        raise UsageError(f"--context: {batch} sequences hold over {MAX_TOKENS} tokens, too many to interpret")
    if batch > MAX_SEQUENCES:
        raise UsageError(f"--batch: {batch} is over {MAX_SEQUENCES}, the most sequences to interpret")
    if batch * (longest * kv_heads + q_heads) * head_dim > MAX_CACHE_ELEMENTS:
        raise UsageError(f"--q-heads: the cache and queries hold over {MAX_CACHE_ELEMENTS} elements")
    return {
        "decode_attention": DecodeAttention(
            contexts=tuple(contexts[i % len(contexts)] for i in range(batch)),
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=asked["dtype"],
        ),
        "prefill_matmul": PrefillMatmul(
            phase="prefill",
            part="product",
            rows=asked["rows"],
            in_features=asked["in_features"],
            out_features=asked["out_features"],
            dtype=asked["dtype"],
        ),
    }
