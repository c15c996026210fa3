"""`decodetax predict`: the modelled cost of tokens on a GPU; options and text."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from ..core import options
from ..core.errors import UsageError
from ..core.formats import CACHE_FORMATS, FORMATS
from ..core.gpus import find_gpu
from ..core.language_model import LanguageModel, load_language_model
from ..core.table import TERMINAL_COLUMNS, Column, Table, percent, wide_option
from ..core.units import seconds
from .deployment import Deployment
from .parallelism import Parallelism
from .prediction import largest_batch, predict, request_cost
from .price_ratio import price_ratio
from .published import published_checks

DTYPES = ("bf16", "fp8", "int8", "int4")

_SHOW_USD = "{:.4g}".format
_WHERE = {"gpus": Column("gpu"), "batch": Column("batch"), "context": Column("context")}
_COMPONENTS = {
    "weights": Column("weights", show=percent),
    "matmul_arithmetic": Column("GEMM compute", show=percent),
    "kv_cache": Column("KV cache", show=percent),
    "attention_arithmetic": Column("attention compute", show=percent),
    "activations": Column("activations", show=percent, wide=True),
    "communication": Column("all-reduce", show=percent),
    "launch": Column("launch", show=percent),
    "engine": Column("engine", show=percent, wide=True),
}
_TOKEN_COLUMNS = {
    **_WHERE,
    "input_s_per_token": Column("s/input token", show=seconds, wide=True),
    "output_s_per_token": Column("s/output token", show=seconds, wide=True),
    "input_tokens_per_s": Column("input tokens/s"),
    "output_tokens_per_s": Column("output tokens/s"),
    "gap": Column("gap", show="{:.2f}".format),
    "input_usd_per_mtok": Column("$/1M input", show=_SHOW_USD),
    "output_usd_per_mtok": Column("$/1M output", show=_SHOW_USD),
    "input_bound": Column("input bound", show=lambda name: _COMPONENTS[name].heading, wide=True),
    "bound": Column("output bound", show=lambda name: _COMPONENTS[name].heading, wide=True),
    "break_even_batch": Column("break-even batch"),
    "largest_batch": Column("largest batch", wide=True),
}
_REQUEST_COLUMNS = {
    "gpus": Column("gpu"),
    "batch": Column("batch"),
    "prompt": Column("prompt"),
    "cache_hits": Column("cached", show=percent),
    "output": Column("output"),
    "input_s": Column("input time", show=seconds),
    "output_s": Column("output time", show=seconds),
    "usd": Column("$/request", show=_SHOW_USD),
}
_PUBLISHED_COLUMNS = {
    "what": Column("figure"),
    "unit": Column("unit"),
    "published": Column("published"),
    "modelled": Column("modelled"),
    "relative_error": Column("error", show="{:+.1%}".format),
    "within": Column("allowed", show="{:.1%}".format),
    "kept": Column("met", show=lambda kept: "yes" if kept else "MISSED"),
    "remark": Column("remark", wide=True),
}


@click.command("predict")
@click.option(
    "--model",
    default="llama-3.1-8b",
    show_default=True,
    metavar="NAME",
    help="A preset (see `decodetax models`) or the path of a Hugging Face config.json.",
)
@options.gpus_option(
    "GPUs of `decodetax devices`; short names such as h100, b200, rtx4090 are accepted.  [default: h100]"
)
@options.option("--batch", options.SIZES, "N,...", "Sequences decoded together.", default="1,8,32")
@options.option(
    "--context", options.SIZES, "N,...", "Tokens in each sequence's KV cache.", default="1024,4096"
)
@options.option("--prompt", options.SIZE, "N", "Tokens of a prompt.  [default: the context]")
@options.option(
    "--dtype",
    options.one_of(*DTYPES),
    "NAME",
    "Dtype of weights: bf16; fp8, multiplied in fp8 if the GPU can; int8 or int4, multiplied in bf16.",
    default="bf16",
)
@options.option(
    "--cache-dtype",
    options.one_of(*DTYPES),
    "NAME",
    "Dtype of the KV cache: bf16, fp8, int8, int4.",
    default="bf16",
)
@options.option("--tensor-parallel", options.GPUS, "N", "GPUs that share each layer, 1 to 8.", default="1")
@options.option(
    "--link-gb-per-s",
    options.positive("a bandwidth in GB/s", least=0.001, most=1_000_000),
    "X",
    "Bandwidth of a GPU's link in each direction.  [default: that of the datasheet]",
)
@options.option(
    "--link-latency-us",
    options.positive("a number of microseconds", least=0.001, most=1_000_000),
    "X",
    "Time of an all-reduce of 0 bytes.  [default: as measured, 3 to 7 by NVLink]",
)
@options.option(
    "--usd-per-hour",
    options.DOLLARS,
    "X",
    "Price of one GPU, $ per hour.  [default: its lowest listed on-demand price]",
)
@click.option(
    "--price-ratio",
    metavar="X|MODEL",
    help="Output price over input price, for the break-even batch: a number, or a model of "
    "`decodetax prices`.  [default: that of the served model's listed price; 4 if none is listed]",
)
@options.option("--output", options.SIZE, "N", "Also model the cost of a request with N output tokens.")
@options.option(
    "--cache-hits",
    options.SHARE,
    "X",
    "With --output: share of the prompt found in a prefix cache, 0 to 1.  [default: 0]",
)
@click.option(
    "--published",
    is_flag=True,
    help="Compare modelled with published end-to-end figures instead; allows only --json and --wide.",
)
@wide_option
@options.JSON
def predict_command(published: bool, wide: bool, as_json: bool, **asked: Any) -> None:
    """Model the cost of input and output tokens on any known GPU.

    Nothing is measured and no GPU is needed. Kernel times are rooflines with efficiencies and fixed costs
    fitted to measured kernels of H100 and A100 (docs/accuracy.md states the error). Times are device seconds,
    money is in US dollars. Exit code 2 means a wrong argument: an unknown name, a shape that does not divide,
    too little memory.
    """
    if published:
        _show_published(wide=wide, as_json=as_json)
        return
    if asked["cache_hits"] is not None and asked["output"] is None:
        raise UsageError("--cache-hits: applies to a request; give --output too")
    model = load_language_model(asked["model"])
    if "dtype" in options.given():
        model = model.with_formats(FORMATS[asked["dtype"]])
    ratio = price_ratio(asked["price_ratio"], model.name)
    rows: list[dict[str, Any]] = []
    for on in _deployments(asked):
        for context, batch in _sweep(model, on, asked):
            prompt = asked["prompt"] or context
            found = predict(model, on, batch=batch, context=context, prompt=prompt, price_ratio=ratio.value)
            rows.append(found.to_json() | {"price_ratio_source": ratio.source})
            if asked["output"] is not None:
                request = request_cost(
                    model,
                    on,
                    prompt=prompt,
                    output=asked["output"],
                    batch=batch,
                    cache_hits=asked["cache_hits"] or 0.0,
                )
                rows[-1]["request"] = request.to_json()
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "predictions": rows}, indent=1, allow_nan=False))
    else:
        click.echo(_predictions_text(rows, wide=wide))


def _sweep(model: LanguageModel, on: Deployment, asked: dict[str, Any]) -> list[tuple[int, int]]:
    """Contexts and batches; of the defaults, only those that fit into memory, if any does."""
    pairs = [(context, batch) for context in asked["context"] for batch in asked["batch"]]
    if {"batch", "context"} & set(options.given()):
        return pairs
    fit = [(context, batch) for context, batch in pairs if batch <= largest_batch(model, on, context=context)]
    return fit or pairs[:1]


def _show_published(*, wide: bool, as_json: bool) -> None:
    """Print the comparison of modelled with published figures.

    Raises:
        UsageError: an option was given that has no effect here.
    """
    for name, option in options.given().items():
        if name not in {"published", "wide", "as_json"}:
            raise UsageError(f"{option}: does not go with --published, whose figures have their own setups")
    rows = [each.to_json() for each in published_checks()]
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "published": rows}, indent=1, allow_nan=False))
    else:
        click.echo(Table.select("", _PUBLISHED_COLUMNS, rows).text(wide=wide))


def _deployments(asked: dict[str, Any]) -> list[Deployment]:
    """Each GPU that is named, once, with the model's tensor parallelism and dtypes."""
    link: dict[str, Any] = {}
    if asked["link_gb_per_s"] is not None:
        link["link_bytes_per_s"] = asked["link_gb_per_s"] * 1e9
    latency_us = asked["link_latency_us"]
    names = options.gpu_names(*asked["gpus"], *asked["more_gpus"]) or ["h100"]
    return [
        Deployment(
            gpu=replace(gpu, **link),
            parallelism=Parallelism(tensor_parallel=asked["tensor_parallel"]),
            cache_format=CACHE_FORMATS[asked["cache_dtype"]],
            usd_per_hour=asked["usd_per_hour"] or gpu.usd_per_hour,
            all_reduce_latency_s=None if latency_us is None else latency_us * 1e-6,
        )
        for gpu in dict.fromkeys(find_gpu(name) for name in names)
    ]


def _predictions_text(rows: Sequence[Mapping[str, Any]], *, wide: bool) -> str:
    """Tables of tokens and their cost, of the components of an output token's time, and of requests.

    Args:
        rows: `Prediction.to_json`, with its "request" where one was asked for.
        wide: whether all columns are shown.
    """
    first = rows[0]
    as_context = all(row["prompt"] == row["context"] for row in rows)
    heading = (
        f"Modelled, not measured: {first['model']}, weights in {first['dtype']}, KV cache in "
        f"{first['cache_dtype']}, prompt {'as long as the context' if as_context else first['prompt']}. "
        "The break-even batch is the smallest batch that fits and has a gap of at most "
        f"{first['price_ratio']:.4g}, the price ratio; - where there is none. Price ratio: "
        f"{first['price_ratio_source']}."
    )
    several = first["tensor_parallel"] > 1
    rows = [
        {**row, "gpus": f"{row['tensor_parallel']} x {row['gpu']}" if several else row["gpu"]} for row in rows
    ]
    shares = [
        {**row, **{name: s / row["output_s_per_token"] for name, s in row["output_split_s"].items()}}
        | ({} if several else {"communication": None})
        for row in rows
    ]
    tables = [
        Table.select("Tokens and their cost", _TOKEN_COLUMNS, rows),
        Table.select(
            f"Shares of an output token's time{'' if wide else '; --wide adds activations'}",
            _WHERE | _COMPONENTS,
            shares,
        ),
    ]
    if "request" in first:
        requests = [{**row, **row["request"]} for row in rows]
        tables.append(
            Table.select("One request, device seconds of all its tokens", _REQUEST_COLUMNS, requests)
        )
    blocks = [textwrap.fill(heading, TERMINAL_COLUMNS), *(table.text(wide=wide) for table in tables)]
    return "\n\n".join(blocks)
