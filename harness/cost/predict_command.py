"""`decodetax predict`: what tokens cost on GPUs that need not be there."""

import json
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..core.language_model import LanguageModel
    from .deployment import Deployment

DTYPES = ("bf16", "fp8", "int8", "int4")


@click.command("predict")
@click.option(
    "--model",
    default="llama-3.1-8b",
    show_default=True,
    metavar="NAME",
    help="A preset (see `decodetax models`) or the path of a Hugging Face config.json.",
)
@click.option(
    "--gpu",
    "gpus",
    default="h100",
    show_default=True,
    metavar="NAME,...",
    help="See `decodetax devices`; h100, b200, rtx4090 and the like will do.",
)
@click.option(
    "--batch",
    default="1,8,32",
    show_default=True,
    callback=options.SIZES,
    metavar="N,...",
    help="Sequences decoded together.",
)
@click.option(
    "--context",
    default="1024,4096",
    show_default=True,
    callback=options.SIZES,
    metavar="N,...",
    help="Tokens in each sequence's KV cache.",
)
@click.option(
    "--prompt", callback=options.SIZE, metavar="N", help="Tokens of a prompt.  [default: as the context]"
)
@click.option(
    "--dtype",
    default="bf16",
    show_default=True,
    callback=options.one_of(*DTYPES),
    metavar="NAME",
    help="Of weights: bf16; fp8, multiplied as it is where the GPU can; int8 and int4, multiplied as bf16.",
)
@click.option(
    "--cache-dtype",
    default="bf16",
    show_default=True,
    callback=options.one_of(*DTYPES),
    metavar="NAME",
    help="Of the KV cache: bf16, fp8, int8, int4.",
)
@click.option(
    "--tensor-parallel",
    default="1",
    show_default=True,
    callback=options.GPUS,
    metavar="N",
    help="GPUs that share each layer, 1 to 8.",
)
@click.option(
    "--link-gb-per-s",
    callback=options.positive("a bandwidth in GB/s", least=0.001, most=1_000_000),
    metavar="X",
    help="Of one GPU to the others, in each direction.  [default: of the GPU's datasheet]",
)
@click.option(
    "--link-latency-us",
    callback=options.positive("a number of microseconds", least=0.001, most=1_000_000),
    metavar="X",
    help="Of an all-reduce of nothing.  [default: 10 by NVLink, 20 by PCIe]",
)
@click.option(
    "--usd-per-hour",
    callback=options.DOLLARS,
    metavar="X",
    help="Price of one GPU, $ per hour.  [default: a cited one per GPU]",
)
@click.option(
    "--price-ratio",
    default="4",
    show_default=True,
    metavar="X|MODEL",
    help="Output over input price for the break-even batch: a number, or a model of `decodetax prices`.",
)
@click.option("--output", callback=options.SIZE, metavar="N", help="Output tokens: costs a request too.")
@click.option(
    "--cache-hits",
    callback=options.SHARE,
    metavar="X",
    help="Share of a request's prompt found in a prefix cache, 0 to 1; goes with --output.  [default: 0]",
)
@click.option(
    "--published",
    is_flag=True,
    help="Instead, set the model beside published end-to-end figures; goes with --json alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
def predict_command(published: bool, as_json: bool, **asked: Any) -> None:
    """Model what an input and an output token cost on GPUs that need not be there.

    Kernel times are rooflines with efficiencies and fixed costs fitted to measured kernels of H100 and A100
    (docs/accuracy.md states the error). Times are device seconds, money US dollars; nothing is measured.
    Exit code 2 means a wrong argument: an unknown name, a shape that does not divide, too little memory.
    """
    from ..core.language_model import load_language_model
    from .prediction import predict, request_cost

    if published:
        _show_published(as_json=as_json)
        return
    if asked["cache_hits"] is not None and asked["output"] is None:
        raise UsageError("--cache-hits: is of a request; it goes with --output")
    model = load_language_model(asked["model"])
    ratio = _price_ratio(asked["price_ratio"])
    rows: list[dict[str, Any]] = []
    for on in _deployments(asked):
        for context, batch in _sweep(model, on, asked):
            prompt = asked["prompt"] or context
            found = predict(model, on, batch=batch, context=context, prompt=prompt, price_ratio=ratio)
            row = found.to_json()
            if asked["output"] is not None:
                request = request_cost(
                    model,
                    on,
                    prompt=prompt,
                    output=asked["output"],
                    batch=batch,
                    cache_hits=asked["cache_hits"] or 0.0,
                )
                row["request"] = request.to_json()
            rows.append(row)
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "predictions": rows}, indent=1, allow_nan=False))
        return
    from .predict_tables import predict_text

    click.echo(predict_text(rows))


def _sweep(model: "LanguageModel", on: "Deployment", asked: dict[str, Any]) -> "Iterable[tuple[int, int]]":
    """Contexts and batches; of those that nobody asked for only what fits, where anything does."""
    from .prediction import largest_batch

    pairs = [(context, batch) for context in asked["context"] for batch in asked["batch"]]
    if {"batch", "context"} & set(options.given()):
        return pairs
    fit = [(context, batch) for context, batch in pairs if batch <= largest_batch(model, on, context=context)]
    return fit or pairs[:1]


def _show_published(*, as_json: bool) -> None:
    """Published figures beside the model's.

    Raises:
        UsageError: another option was given, which none of them would heed.
    """
    for name, option in options.given().items():
        if name not in {"published", "as_json"}:
            raise UsageError(f"{option}: goes with no --published, whose figures have their own setups")
    from .published import published_comparisons

    rows = [each.to_json() for each in published_comparisons()]
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "published": rows}, indent=1, allow_nan=False))
        return
    from .predict_tables import published_text

    click.echo(published_text(rows))


def _deployments(asked: dict[str, Any]) -> "list[Deployment]":
    """Each GPU that is named, once, with how the model lies on it."""
    from dataclasses import replace

    from ..core.gpus import find_gpu
    from .deployment import Deployment

    link: dict[str, float] = {}
    if asked["link_gb_per_s"] is not None:
        link["link_bytes_per_s"] = asked["link_gb_per_s"] * 1e9
    if asked["link_latency_us"] is not None:
        link["link_latency_s"] = asked["link_latency_us"] * 1e-6
    return [
        Deployment(
            gpu=replace(gpu, **link),  # type: ignore[arg-type]
            tensor_parallel=asked["tensor_parallel"],
            dtype=asked["dtype"],
            cache_dtype=asked["cache_dtype"],
            usd_per_hour=asked["usd_per_hour"] or gpu.usd_per_hour,
        )
        for gpu in dict.fromkeys(find_gpu(name.strip()) for name in asked["gpus"].split(","))
    ]


def _price_ratio(text: str) -> float:
    """A number above 0, or the output:input ratio of a model of the price list.

    Raises:
        UsageError: it is neither, or that model's input is free.
    """
    try:
        return options.positive_number(text, most=1_000_000)
    except ValueError:
        pass
    from .prices import price_list, price_of

    try:
        ratio = price_of(text, price_list(None)).output_over_input
    except UsageError as error:
        problem = str(error).removeprefix("--model: ")
        raise UsageError(f"--price-ratio: is no number above 0, at most 1000000, and {problem}") from error
    if ratio is None:
        raise UsageError(f"--price-ratio: the input of {text} is free, so it has no ratio")
    return float(ratio)
