"""`decodetax predict`: the modelled cost of tokens and of requests on GPUs; options and their rows."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click

from ..core import options
from ..core.errors import UsageError
from ..core.files import require_writable
from ..core.formats import CACHE_FORMATS, FORMATS
from ..core.gpus import find_gpu
from ..core.language_model import LanguageModel, load_language_model
from ..core.parallelism import Parallelism, require_parts
from ..core.table import Column, Table, wide_option
from .basis import decode_basis
from .deployment import Deployment
from .engine import ENGINES, ONE_GRAPH, engines
from .memory import weight_formats
from .memory_fit import largest_batch, memory_fit
from .model_facts import model_json, warnings_of
from .predict_text import document_text
from .prediction import predict
from .price_ratio import price_ratio
from .published import published_checks
from .request_rows import Requests, ttft_alone_s

DEFAULT_CONCURRENCIES = (1, 8, 32, 128)

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


_MILLISECONDS = options.positive("a number of milliseconds", most=1_000_000_000)
_OF_TOKENS = ("batch", "context", "prompt", "price_ratio")
_OF_REQUESTS = ("concurrency", "cache_hits", "slo_ttft", "slo_tpot")


@click.command("predict")
@click.option(
    "--model",
    default="llama-3.1-8b",
    show_default=True,
    metavar="NAME",
    help="A preset (see `decodetax models`) or the path of a Hugging Face config.json.",
)
@options.option(
    "--assume",
    options.one_of("dense"),
    "dense",
    "Read a config.json of an unknown model_type as a dense decoder with a gated MLP.",
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
    options.one_of(*FORMATS),
    "NAME",
    f"Format of the layers' weights: {', '.join(FORMATS)}. fp8 and nvfp4 are multiplied so if the GPU can, "
    "others in bf16.  [default: as the config says, else bf16]",
)
@options.option(
    "--cache-dtype",
    options.one_of(*CACHE_FORMATS),
    "NAME",
    f"Format of the KV cache: {', '.join(CACHE_FORMATS)}.  [default: as the config says, else bf16]",
)
@options.option("--tensor-parallel", options.GPUS, "N", "GPUs that share each layer.", default="1")
@options.option(
    "--data-parallel",
    options.GPUS,
    "N",
    "Groups of that many GPUs, each with a copy of attention and dense MLPs.",
    default="1",
)
@options.option(
    "--expert-parallel",
    options.GPUS,
    "N",
    "GPUs that the routed experts are divided among; a divisor of tensor x data parallelism.",
    default="1",
)
@options.option(
    "--pipeline-parallel", options.GPUS, "N", "Stages with equal shares of the layers.", default="1"
)
@options.option(
    "--engine",
    options.one_of(*ENGINES),
    "NAME",
    f"What serves the model, with its own time between steps: {', '.join(ENGINES)}.  [default: none; all "
    "kernels of a step follow in one CUDA graph]",
)
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
@click.option(
    "--link-from",
    type=click.Path(path_type=Path),
    metavar="RUN.json",
    help="Latency and bandwidth of the link as a run of several GPUs of one host measured them.",
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
@options.option(
    "--requests",
    options.REQUESTS,
    "IN/OUT",
    "Instead of single tokens, model requests of IN input and OUT output tokens in a steady state.",
)
@options.option(
    "--concurrency", options.SIZES, "N,...", "With --requests: requests in the system.  [default: 1,8,32,128]"
)
@options.option(
    "--cache-hits",
    options.SHARE,
    "X",
    "With --requests: share of the prompt in a prefix cache.  [default: 0]",
)
@options.option(
    "--slo-ttft",
    _MILLISECONDS,
    "MS",
    "With --requests: longest time to first token, for the largest concurrency that meets it.",
)
@options.option(
    "--slo-tpot", _MILLISECONDS, "MS", "With --requests: longest time per output token, for the same."
)
@click.option(
    "--published",
    is_flag=True,
    help="Compare modelled with published end-to-end figures instead; allows only --json and --wide.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page with sliders instead, one self-contained HTML file that opens with these options; an "
    "existing file is replaced.",
)
@wide_option
@options.JSON
def predict_command(published: bool, html: Path | None, wide: bool, as_json: bool, **asked: Any) -> None:
    """Model the cost of input and output tokens on any known GPU.

    Nothing is measured and no GPU is needed. Kernel times are rooflines with efficiencies and fixed costs
    fitted to measured kernels (docs/accuracy.md names GPUs and errors). Times are device seconds, money is in
    US dollars. Exit code 2 means a wrong argument: an unknown name, GPUs that cannot share the model, too
    little memory.
    """
    if published:
        _show_published(wide=wide, as_json=as_json)
        return
    _require_one_kind(asked)
    if html is not None:
        _write_page(html, asked, as_json=as_json)
        return
    model = load_language_model(asked["model"], asked["assume"])
    if asked["dtype"] is not None:
        model = model.with_formats(FORMATS[asked["dtype"]])
    deployments = _deployments(model, asked)
    require_parts(model, deployments[0].parallelism)
    document = _document(model, deployments, asked)
    if as_json:
        click.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        click.echo(document_text(document, wide=wide))


def _require_one_kind(asked: Mapping[str, Any]) -> None:
    """Refuse options of single tokens beside --requests, and those of requests without it.

    Raises:
        UsageError: there are such options.
    """
    given = options.given()
    for name in _OF_TOKENS if asked["requests"] else _OF_REQUESTS:
        if name in given:
            if asked["requests"]:
                raise UsageError(f"{given[name]}: does not go with --requests and --concurrency")
            raise UsageError(f"{given[name]}: applies to requests; give --requests INPUT/OUTPUT too")


def _document(
    model: LanguageModel, deployments: Sequence[Deployment], asked: dict[str, Any]
) -> dict[str, Any]:
    """What is printed: predictions or requests of each deployment, and what is left out as it does not fit.

    Raises:
        UsageError: nothing fits.
    """
    if asked["requests"]:
        found = _requests(model, deployments, asked)
        contexts = [sum(asked["requests"])]
    else:
        found = _predictions(model, deployments, asked)
        contexts = sorted({*asked["context"], *filter(None, [asked["prompt"]])})
    return {
        "schema_version": 1,
        "model": model_json(model, deployments[0].cache_format),
        "warnings": list(warnings_of(model, contexts)),
        **found,
    }


def _predictions(
    model: LanguageModel, deployments: Sequence[Deployment], asked: dict[str, Any]
) -> dict[str, Any]:
    """Tokens on each deployment at each context and batch that fits."""
    ratio = price_ratio(asked["price_ratio"], model.name)
    rows, left_out = [], _LeftOut(model)
    for on, context, batch in itertools.product(deployments, asked["context"], asked["batch"]):
        if left_out.fits(on, batch, context):
            prompt = asked["prompt"] or context
            found = predict(model, on, batch=batch, context=context, prompt=prompt, price_ratio=ratio.value)
            rows.append(
                {
                    **_place(model, on),
                    **found.to_json(),
                    "ttft_alone_s": ttft_alone_s(model, on, prompt),
                    "price_ratio_source": ratio.source,
                    "basis": decode_basis(model, on, batch=batch, context=context).to_json(),
                }
            )
    left_out.require_some(rows)
    return {"predictions": rows, "does_not_fit": left_out.rows}


def _requests(
    model: LanguageModel, deployments: Sequence[Deployment], asked: dict[str, Any]
) -> dict[str, Any]:
    """Requests on each deployment that one fits, at each concurrency."""
    input_tokens, output_tokens = asked["requests"]
    requests = Requests(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_hits=asked["cache_hits"] or 0.0,
        slo_ttft_s=_in_seconds(asked["slo_ttft"]),
        slo_tpot_s=_in_seconds(asked["slo_tpot"]),
    )
    rows, limits, left_out = [], [], _LeftOut(model, "--requests")
    for on in deployments:
        if left_out.fits(on, 1, requests.context):
            states = requests.states(model, on, asked["concurrency"] or DEFAULT_CONCURRENCIES)
            rows += [{**_place(model, on), **state} for state in states]
            limits.append({**_place(model, on), **requests.limits(model, on)})
    left_out.require_some(rows)
    return {"requests": rows, "limits": limits, "does_not_fit": left_out.rows}


def _in_seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _place(model: LanguageModel, on: Deployment) -> dict[str, Any]:
    """The GPUs of a row, and how weights and caches are stored there."""
    return {
        "gpu": on.gpu.name,
        "gpus": on.gpus,
        **asdict(on.parallelism),
        "dtype": weight_formats(model),
        "cache_dtype": on.cache_format.name,
        "engine": on.engine.name,
        "usd_per_hour": on.usd_per_hour,
    }


class _LeftOut:
    """What does not fit the memory: a row for each, with the reason."""

    def __init__(self, model: LanguageModel, context_option: str = "--context") -> None:
        self._model = model
        self._context_option = context_option
        self.rows: list[dict[str, Any]] = []

    def fits(self, on: Deployment, batch: int, context: int) -> bool:
        """Whether a batch fits; one that does not is kept."""
        if batch <= largest_batch(self._model, on, context=context):
            return True
        fit = memory_fit(self._model, on, batch=batch, context=context)
        reason = fit.refusal(self._model, on, self._context_option)
        self.rows.append({**_place(self._model, on), "reason": reason, **fit.to_json()})
        return False

    def require_some(self, rows: Sequence[Any]) -> None:
        """Raise UsageError if all is left out."""
        if not rows:
            count = len(self.rows)
            others = f"; of the {count} combinations asked for, none fits" if count > 1 else ""
            raise UsageError(f"{self.rows[0]['reason']}{others}")


def _write_page(html: Path, asked: dict[str, Any], *, as_json: bool) -> None:
    """Write the page that opens with the first GPU, batch and context of the options.

    Raises:
        UsageError: a wrong argument, a file that cannot be written, or --json.
    """
    from .page.html_page import opening_setting, write_page

    if as_json:
        raise UsageError("--json: does not go with --html, which writes a page instead")
    require_writable("html", html)
    model = load_language_model(asked["model"], asked["assume"])
    ratio = price_ratio(asked["price_ratio"], model.name)
    click.echo(write_page(html, opening_setting(model, _deployments(model, asked)[0], asked), ratio))


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


def _deployments(model: LanguageModel, asked: dict[str, Any]) -> list[Deployment]:
    """Each GPU that is named, once, with the parallelism, cache and engine that are asked for."""
    link: dict[str, Any] = {}
    if asked["link_gb_per_s"] is not None:
        link["link_bytes_per_s"] = asked["link_gb_per_s"] * 1e9
    latency_us = asked["link_latency_us"]
    run_file = asked["link_from"]
    for name in ("link_gb_per_s", "link_latency_us"):
        if run_file is not None and asked[name] is not None:
            raise UsageError(f"--{name.replace('_', '-')}: does not go with --link-from, which has both")
    parallelism = Parallelism(**{part.name: asked[part.name] for part in fields(Parallelism)})
    names = options.gpu_names(*asked["gpus"], *asked["more_gpus"]) or ["h100"]
    found = [
        Deployment(
            gpu=replace(gpu, **link),
            parallelism=parallelism,
            cache_format=CACHE_FORMATS[asked["cache_dtype"] or model.cache_format or "bf16"],
            usd_per_hour=asked["usd_per_hour"] or gpu.usd_per_hour,
            engine=engines()[asked["engine"]] if asked["engine"] else ONE_GRAPH,
            all_reduce_latency_s=None if latency_us is None else latency_us * 1e-6,
        )
        for gpu in dict.fromkeys(find_gpu(name) for name in names)
    ]
    if run_file is None:
        return found
    from .measured_link import with_measured_link

    return [with_measured_link(each, run_file) for each in found]
