"""The options of `count` and `execute` that give the sizes of a case."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..core import options
from ..core.errors import UsageError

if TYPE_CHECKING:
    from ..core.cases import DecodeAttention, PrefillAttention, PrefillMatmul

DECODE_SIZES = ("batch", "context", "q_heads", "kv_heads", "head_dim", "latent")
PREFILL_SIZES = ("prompt",)
MATMUL_SIZES = ("rows", "in_features", "out_features")

_OPTIONS = (
    options.option("--batch", options.SIZE, "N", "Sequences.  [default: as many as --context]"),
    options.option(
        "--context",
        options.LENGTHS,
        "N,...",
        "Tokens in the KV cache of each sequence; may be 0. A larger --batch repeats the list.",
        default="1000,37",
    ),
    options.option("--q-heads", options.SIZE, "N", "Query heads.", default="32"),
    options.option("--kv-heads", options.SIZE, "N", "KV heads.", default="8"),
    options.option("--head-dim", options.SIZE, "N", "Elements of a head.", default="128"),
    options.option(
        "--latent",
        options.SIZE,
        "N",
        "Latent cache (MLA): values are the first N elements of each key, such as 512 of 576.",
    ),
    options.option(
        "--prompt",
        options.SIZE,
        "N",
        "Tokens of each prompt of prefill_attention; --batch prompts, else one, of the same heads.",
        default="150",
    ),
    options.option("--rows", options.SIZE, "N", "M of the matmul: tokens of x.", default="256"),
    options.option("--in-features", options.SIZE, "N", "K of the matmul.", default="512"),
    options.option("--out-features", options.SIZE, "N", "N of the matmul.", default="512"),
)


def size_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options whose values `sized_cases` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def prompts_refusal(arguments: Mapping[str, Any]) -> str | None:
    """Why prefill_attention does not take the sizes given; None if it does."""
    from ..core.cases import MAX_PREFILL_HEAD_DIM  # noqa: PLC0415  (`--help` needs no cases)

    if arguments["latent"] is not None:
        return f"--latent: {arguments['latent']} is not for prefill_attention, which has no cache here"
    if arguments["head_dim"] > MAX_PREFILL_HEAD_DIM:
        most = MAX_PREFILL_HEAD_DIM
        return f"--head-dim: {arguments['head_dim']} is not from 1 to {most}, as prefill_attention takes"
    return None


def sized_cases(
    arguments: Mapping[str, Any], dtype: str
) -> "dict[str, DecodeAttention | PrefillAttention | PrefillMatmul]":
    """A case of the sizes given, by operation.

    Raises:
        UsageError: the kernel does not take such sizes.
    """
    from ..core.cases import (  # noqa: PLC0415  (`--help` needs no cases)
        DecodeAttention,
        PrefillAttention,
        PrefillMatmul,
    )

    contexts, q_heads, kv_heads = arguments["context"], arguments["q_heads"], arguments["kv_heads"]
    head_dim = arguments["head_dim"]
    latent = arguments["latent"]
    if q_heads % kv_heads or q_heads > 128 * kv_heads:
        raise UsageError(f"--q-heads: {q_heads} is not 1 to 128 times --kv-heads {kv_heads}")
    most = 512 if latent is None else 576
    if head_dim > most:
        raise UsageError(f"--head-dim: {head_dim} is not from 1 to {most}")
    if latent is not None and latent > min(head_dim, 512):
        raise UsageError(f"--latent: {latent} is not from 1 to {min(head_dim, 512)}")
    batch = arguments["batch"] or len(contexts)
    return {
        "decode_attention": DecodeAttention(
            contexts=tuple(contexts[i % len(contexts)] for i in range(batch)),
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            v_head_dim=latent,
            latent=latent is not None,
        ),
        "prefill_attention": PrefillAttention(
            sequences=arguments["batch"] or 1,
            prompt=arguments["prompt"],
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
        ),
        "prefill_matmul": PrefillMatmul(
            phase="prefill",
            part="product",
            rows=arguments["rows"],
            in_features=arguments["in_features"],
            out_features=arguments["out_features"],
            dtype=dtype,
        ),
    }
