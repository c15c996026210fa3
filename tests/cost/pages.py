"""Pages of `predict --html` in a browser: writing them, setting their form, reading their figures."""

import random

from decodetax.harness.core.formats import CACHE_FORMATS, FORMATS
from decodetax.harness.core.gpus import gpu_table
from decodetax.harness.core.language_model import load_language_model, preset_table
from decodetax.harness.cost.deployment import Deployment
from decodetax.harness.cost.engine import ONE_GRAPH, engines
from decodetax.harness.cost.page.figures import AS_STORED, Setting
from decodetax.harness.cost.page.html_page import PARALLELISMS, html_page
from decodetax.harness.cost.price_ratio import PriceRatio

MODELS = {str(each["model"]): load_language_model(str(each["model"])) for each in preset_table()}
RATIO = PriceRatio(4.0, "deepseek-v3 (from 2025-02-08), 2025-02-08 (pydantic/genai-prices)")


def opening(**changes):
    """A setting that fits one H100; changes are those of the setting or of its deployment."""
    deployment = {"gpu": gpu_table()["H100-SXM5-80GB"], "usd_per_hour": 3.0}
    of_deployment = {"gpu", "parallelism", "cache_format", "engine", "usd_per_hour"}
    deployment |= {name: value for name, value in changes.items() if name in of_deployment}
    setting = {
        "model": MODELS["llama-3.1-8b"],
        "dtype": AS_STORED,
        "on": Deployment(**deployment),
        "batch": 8,
        "context": 1024,
        "prompt": 1024,
        "hit_share": 0.0,
        "price_ratio": RATIO.value,
    }
    return Setting(**setting | {name: value for name, value in changes.items() if name not in of_deployment})


def write_page(path, setting, ratio=RATIO):
    path.write_text(html_page(setting, ratio), encoding="utf-8")
    return path


SET_AND_READ = """(settings) => settings.map((setting) => {
  for (const [id, value] of Object.entries(setting)) document.getElementById(id).value = value ?? "";
  document.getElementById("setting").dispatchEvent(new Event("input"));
  if (document.getElementById("results").hidden) return null;
  const cells = document.querySelectorAll("[data-figure]");
  return Object.fromEntries(Array.from(cells, (cell) => [cell.dataset.figure, cell.dataset.value]));
})"""
"""Sets the fields of the page and reads all of its figures; null where it shows none."""


def fields_of(setting):
    """What the page's form shows for a setting."""
    return {
        "model": setting.model.name,
        "gpu": setting.on.gpu.name,
        "parallelism": PARALLELISMS.index(setting.on.parallelism),
        "dtype": setting.dtype,
        "cache_dtype": setting.on.cache_format.name,
        "engine": setting.on.engine.name,
        "batch": setting.batch,
        "context": setting.context,
        "prompt": setting.prompt,
        "hits": round(100 * setting.hit_share),
        "usd": setting.on.usd_per_hour,
    }


def random_settings(count, seed=20261129):
    """Settings over all models, GPUs and precisions: each occurs as often as the others, in random pairs."""
    draw = random.Random(seed)  # noqa: S311
    columns = {}
    for name, values in (
        ("model", [*MODELS.values()]),
        ("gpu", [*gpu_table().values()]),
        ("dtype", [AS_STORED, *FORMATS]),
        ("cache_format", [*CACHE_FORMATS.values()]),
        ("parallelism", [*PARALLELISMS]),
        ("engine", [ONE_GRAPH, *engines().values()]),
    ):
        columns[name] = values * (count // len(values) + 1)
        draw.shuffle(columns[name])
    return [
        opening(
            **{name: column[at] for name, column in columns.items()},
            batch=round(2 ** draw.uniform(0, 10)),
            context=round(2 ** draw.uniform(0, 17)),
            prompt=round(2 ** draw.uniform(0, 17)),
            hit_share=draw.choice((0.0, 0.25, 0.9)),
            usd_per_hour=draw.choice((None, 2.5)),
        )
        for at in range(count)
    ]
