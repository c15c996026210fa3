"""The page of `decodetax predict --html`, one file that fetches nothing."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ...core.errors import FailureError, UsageError, path_text
from ...core.files import written
from ...core.formats import CACHE_FORMATS, FORMATS
from ...core.gpus import gpu_table
from ...core.html_page import content_security_policy, page_style
from ...core.language_model import LanguageModel, load_language_model, preset_table
from ...core.parallelism import Parallelism
from ...core.table import Table, html_escaped
from ..deployment import Deployment
from ..engine import ONE_GRAPH, engines
from ..price_ratio import PriceRatio
from ..prices import price_list
from . import figures
from .expected_error import expected_error
from .figures import AS_STORED, ApiPrice, Setting
from .javascript import Program

MOST_HIT_PERCENT = 99
"""Most cache hits, as input tokens that are all hits cost nothing, and the gap has no value."""

MOST_BATCH, MOST_TOKENS = 8192, 2**20
"""Ends of the sliders of batch, and of context and prompt."""

STEPS_PER_DOUBLING = 8
"""Steps of these sliders between a number and its double."""

PAUSE_MS = 150
"""Time without a change after which the page searches for the break-even batch."""

PARALLELISMS = (
    *(Parallelism(tensor_parallel=count) for count in (1, 2, 4, 8, 16)),
    *(Parallelism(data_parallel=count, expert_parallel=count) for count in (8, 16)),
)
"""Ways to share a model that the page offers: its layers by tensor parallelism, or its experts alone."""

COMPONENT_NAMES = {
    "weights": "reading weights",
    "matmul_arithmetic": "GEMM compute",
    "kv_cache": "reading the KV cache",
    "attention_arithmetic": "attention compute",
    "activations": "activations",
    "communication": "all-reduce between GPUs",
    "launch": "launches and fixed costs of kernels",
    "engine": "the engine between steps",
}

SHOWN_FIGURES = (
    ("input_s", "Time of a computed input token", "seconds"),
    ("billed_input_s", "Time of an average input token, cache hits included", "seconds"),
    ("output_s", "Time of an output token", "seconds"),
    ("step_s", "Time of a decode step, between two tokens of a sequence", "seconds"),
    ("gap", "Gap: output token over average input token", "number"),
    ("break_even_batch", "Break-even batch", "number"),
    ("largest_batch", "Largest batch that fits the memory", "number"),
    ("input_usd_per_mtok", "1M computed input tokens", "dollars"),
    ("billed_input_usd_per_mtok", "1M average input tokens", "dollars"),
    ("output_usd_per_mtok", "1M output tokens", "dollars"),
    ("weight_bytes", "Weights on each GPU", "gib"),
    ("kv_bytes", "KV caches on each GPU", "gib"),
    ("usable_bytes", "Memory of a GPU for both", "gib"),
)
"""Rows of the page's table: the figure's name, its text, and the function of the page that writes it."""

_FORMULAS: tuple[Callable[..., Any], ...] = (
    figures.Setting,
    UsageError,
    figures.ApiPrice,
    figures.price_ratio_at,
    figures.figures,
    figures.fitting_batch,
    figures.break_even,
    figures.curve,
    figures.weight_bytes,
    figures.usable_bytes,
    figures.where,
    figures.basis_of,
)


def opening_setting(model: LanguageModel, on: Deployment, asked: Mapping[str, Any]) -> Setting:
    """The setting of the options of `decodetax predict`, by name: the first batch and context of several.

    Requests in a steady state decode at their concurrency, with half of their output in the cache.
    """
    batch, context, prompt = asked["batch"][0], asked["context"][0], asked["prompt"]
    if asked["requests"]:
        prompt, output = asked["requests"]
        batch, context = (asked["concurrency"] or [1])[0], prompt + output // 2
    return Setting(
        model=model,
        dtype=asked["dtype"] or AS_STORED,
        on=on,
        batch=batch,
        context=context,
        prompt=prompt or context,
        hit_share=min(asked["cache_hits"] or 0.0, MOST_HIT_PERCENT / 100),
        price_ratio=1.0,  # the page takes it from `ApiPrice`
    )


def write_page(file: Path, opening: Setting, ratio: PriceRatio) -> str:
    """Writes the page and returns the message; the arguments are those of `html_page`.

    Raises:
        FailureError: the file can no longer be written, for instance because the disk is full.
    """
    page = html_page(opening, ratio)
    try:
        return written("Page", file, f"{page}\n".encode())
    except OSError as error:
        raise FailureError(f"{path_text(file)}: {error.strerror}; it was not written") from error


def html_page(opening: Setting, ratio: PriceRatio) -> str:
    """The page, from the template `assets/page.html`.

    Args:
        opening: the setting that the page opens with; its model and GPU join those of the tables.
        ratio: the price ratio that the page opens with.
    """
    on = opening.on
    models = {name: load_language_model(name) for name in (str(each["model"]) for each in preset_table())}
    models |= {opening.model.name: opening.model}
    gpus = {**gpu_table(), on.gpu.name: on.gpu}
    parallelisms = tuple(dict.fromkeys((*PARALLELISMS, on.parallelism)))
    cache_formats = {**CACHE_FORMATS, on.cache_format.name: on.cache_format}
    serving_engines = {each.name: each for each in (ONE_GRAPH, *engines().values(), on.engine)}
    own = ApiPrice(
        model=f"ratio {ratio.value:.4g}",
        input_usd_per_mtok=1.0,
        cached_input_usd_per_mtok=1.0,
        output_usd_per_mtok=ratio.value,
    )
    prices = (own, *_api_prices())
    script = _script(
        {
            "models": models,
            "gpus": gpus,
            "parallelisms": parallelisms,
            "cache_formats": cache_formats,
            "engines": serving_engines,
            "api_prices": prices,
            "component_names": COMPONENT_NAMES,
            "opening_deployment": on,
        }
    )
    error, error_table = expected_error()
    page = Template(_asset("page.html")).substitute(
        policy=content_security_policy(script),
        title="What an output token costs, modelled",
        style=page_style() + _asset("page.css"),
        accuracy=html_escaped(error),
        error_table=_plain_table(error_table),
        models=_options(models),
        gpus=_options(gpus),
        parallelisms=_numbered(map(_parallelism_text, parallelisms)),
        dtypes=_options((AS_STORED, *FORMATS)),
        cache_dtypes=_options((AS_STORED, *FORMATS)),
        engines=_options(serving_engines),
        prices=_numbered([f"{own.model}: {ratio.source}", *(each.model for each in prices[1:])]),
        most_batch=max(MOST_BATCH, opening.batch),
        most_tokens=max(MOST_TOKENS, opening.context, opening.prompt),
        most_hits=MOST_HIT_PERCENT,
        batch_steps=_steps(MOST_BATCH),
        token_steps=_steps(MOST_TOKENS),
        version=version("decodetax"),
        opening=_json(_opening(opening, own, parallelisms.index(on.parallelism))),
        script=script,
    )
    return page.removesuffix("\n")


def _opening(setting: Setting, own: ApiPrice, parallelism: int) -> Mapping[str, Any]:
    return {
        "setting": {
            "model": setting.model.name,
            "gpu": setting.on.gpu.name,
            "parallelism": parallelism,
            "dtype": setting.dtype,
            "cache_dtype": setting.on.cache_format.name,
            "engine": setting.on.engine.name,
            "batch": setting.batch,
            "context": setting.context,
            "prompt": setting.prompt,
            "hits": round(100 * setting.hit_share),
            "usd": setting.on.usd_per_hour,
            "price": 0,
        },
        "own_ratio": own.model,
        "texts": {"figures": SHOWN_FIGURES},
        "steps_per_doubling": STEPS_PER_DOUBLING,
        "pause_ms": PAUSE_MS,
    }


def _api_prices() -> tuple[ApiPrice, ...]:
    """The models of the price list whose input is not free."""
    return tuple(
        ApiPrice(
            model=each.model,
            input_usd_per_mtok=float(each.input_usd_per_mtok),
            cached_input_usd_per_mtok=float(each.cached_input_usd_per_mtok or each.input_usd_per_mtok),
            output_usd_per_mtok=float(each.output_usd_per_mtok),
        )
        for each in price_list().values()
        if each.input_usd_per_mtok
    )


def _script(data: Mapping[str, Any]) -> str:
    """The translated formulas, their data, and the page's own script, in one function."""
    program = Program()
    names = {name: program.add(value, name) for name, value in data.items()}
    names |= {each.__name__: program.add(each, each.__name__) for each in _FORMULAS}
    exported = ", ".join(f"{name}: {local}" for name, local in names.items())
    return (
        f'"use strict";\n(() => {{\nconst formulas = (() => {{\n{program.text()}\n'
        f"return {{ py, {exported} }};\n}})();\n{_asset('page.js')}}})();"
    )


def _parallelism_text(parallelism: Parallelism) -> str:
    if parallelism.gpus == 1:
        return "1 GPU"
    return f"{parallelism.gpus} GPUs: {parallelism.text}"


def _plain_table(table: Table) -> str:
    """A table whose columns are not sorted."""
    return (
        table.html()
        .replace('<button type="button">', "")
        .replace("</button>", "")
        .replace("; press a column's head to sort by it", "")
    )


def _numbered(texts: Iterable[str]) -> str:
    return "".join(f'<option value="{at}">{html_escaped(text)}</option>' for at, text in enumerate(texts))


def _options(names: Iterable[str]) -> str:
    return "".join(f"<option>{html_escaped(name)}</option>" for name in names)


def _steps(most: int) -> int:
    return STEPS_PER_DOUBLING * (most.bit_length() - 1)


def _json(value: Any) -> str:
    """JSON that ends no script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


@functools.cache
def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
