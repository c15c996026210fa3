"""The page of `predict --html` in a real browser: its figures are those of Python, and all can read it."""

import itertools
import json
import math
from dataclasses import replace

import pytest
from browsers import CHROMIUM, DESK, PHONE, chromium, shown
from click.testing import CliRunner
from decodetax.harness.cli import cli
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gpus import gpu_table
from decodetax.harness.core.parallelism import Parallelism
from decodetax.harness.cost.memory_fit import largest_batch
from decodetax.harness.cost.page.figures import fitting_batch, served_model
from decodetax.harness.cost.page.html_page import MOST_BATCH, MOST_TOKENS
from decodetax.harness.cost.prediction import predict
from decodetax.harness.cost.prices import price_list
from pages import MODELS, SET_AND_READ, fields_of, opening, random_settings, write_page

pytestmark = pytest.mark.slow

if CHROMIUM is None:
    pytest.skip("no chromium is installed here: apt-get install chromium", allow_module_level=True)
pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

WITHIN = 1e-3
SETTINGS = 600


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("pages") / "page.html", opening())


def expected_figures(setting):
    """The figures of `predict`; None where nothing fits, or the GPUs cannot share the model."""
    model, on = served_model(setting), setting.on
    try:
        fits = largest_batch(model, on, context=setting.context)
        if not fits:
            return None
        batch = min(setting.batch, fits)
        found = predict(
            model, on, batch=batch, context=setting.context, prompt=setting.prompt, price_ratio=math.inf
        )
    except UsageError:
        return None
    told, billed = found.to_json(), 1 - setting.hit_share
    figures = {
        "input_s": told["input_s_per_token"],
        "billed_input_s": told["input_s_per_token"] * billed,
        "output_s": told["output_s_per_token"],
        "step_s": told["output_s_per_token"] * batch,
        "gap": told["gap"] / billed,
        "largest_batch": fits,
        "input_usd_per_mtok": told["input_usd_per_mtok"],
        "billed_input_usd_per_mtok": told["input_usd_per_mtok"] and told["input_usd_per_mtok"] * billed,
        "output_usd_per_mtok": told["output_usd_per_mtok"],
        "weight_bytes": told["memory"]["weight_bytes"],
        "kv_bytes": told["memory"]["kv_bytes"],
        "usable_bytes": told["memory"]["usable_bytes"],
    }
    for side in ("input", "output"):
        figures |= {f"{side}_split_s.{name}": part for name, part in told[f"{side}_split_s"].items()}
    at_once = on.parallelism.data_parallel * on.parallelism.pipeline_parallel
    tokens = {"decode": batch, "prefill": found.prefill.rows * at_once}
    seconds = {"decode": told["output_s_per_token"], "prefill": told["input_s_per_token"]}
    for phase in ("decode", "prefill"):
        parts = told[f"{phase}_parts"]
        operations = sum(part["times"] * part["operations"] for part in parts)
        kinds = ("weight_bytes", "kv_bytes", "activation_bytes")
        moved = sum(part["times"] * part[kind] for part in parts for kind in kinds)
        figures[f"{phase}.operations_per_byte"] = operations / moved
        figures[f"{phase}.flop_per_s"] = operations / (tokens[phase] * seconds[phase])
    return figures


def assert_equal_figures(shown_figures, setting):
    expected = expected_figures(setting)
    if expected is None:
        assert shown_figures is None, setting
        return
    assert shown_figures is not None, setting
    for name, value in expected.items():
        cell = shown_figures[name]
        assert (cell == "") == (value is None), (name, setting)
        if value is not None:
            assert float(cell) == pytest.approx(value, rel=WITHIN, abs=0.0), (name, setting)


def test_figures_are_those_of_python_at_settings_over_all_models_gpus_and_precisions(browser, page_file):
    settings = random_settings(SETTINGS)
    with shown(browser, page_file) as page:
        found = page.evaluate(SET_AND_READ, [fields_of(setting) for setting in settings])
    assert sum(figures is not None for figures in found) > SETTINGS / 3
    for figures, setting in zip(found, settings, strict=True):
        assert_equal_figures(figures, setting)


def test_figures_are_those_of_python_at_the_ends_of_all_sliders(browser, page_file):
    extremes = itertools.product(
        (("llama-3.2-1b", "B200"), ("gpt-oss-20b", "T4"), ("llama-3.1-8b", "H100-SXM5-80GB")),
        (1, MOST_BATCH),
        (1, MOST_TOKENS),
        (1, MOST_TOKENS),
        (0.0, 0.99),
    )
    ends = [
        opening(
            model=MODELS[model],
            gpu=gpu_table()[gpu],
            batch=batch,
            context=context,
            prompt=prompt,
            hit_share=hits,
        )
        for (model, gpu), batch, context, prompt, hits in extremes
    ]
    with shown(browser, page_file) as page:
        found = page.evaluate(SET_AND_READ, [fields_of(setting) for setting in ends])
        for slider in page.locator("input[type=range]").all():
            slider.focus()
            for key, bound in (("Home", "min"), ("End", "max")):
                page.keyboard.press(key)
                assert slider.input_value() == slider.get_attribute(bound)
                assert page.locator("svg [d*=NaN], svg [x=NaN], svg [points*=NaN]").count() == 0
    for figures, setting in zip(found, ends, strict=True):
        assert_equal_figures(figures, setting)


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({}, []),
        ({"batch": 64, "context": 4096, "prompt": 512}, []),
        ({"model": MODELS["qwen3-30b-a3b"], "dtype": "fp8"}, ["--model", "qwen3-30b-a3b", "--dtype", "fp8"]),
        (
            {
                "model": MODELS["llama-3.1-70b"],
                "parallelism": Parallelism(tensor_parallel=4),
                "context": 8192,
            },
            ["--model", "llama-3.1-70b", "--tensor-parallel", "4"],
        ),
    ],
)
def test_break_even_batch_and_gap_are_those_of_the_command(browser, page_file, changes, arguments):
    setting = opening(**changes)
    sizes = [f"--{name}={getattr(setting, name)}" for name in ("batch", "context", "prompt")]
    result = CliRunner().invoke(
        cli,
        ["predict", *arguments, *sizes, "--gpu", "h100", "--usd-per-hour=3", "--price-ratio=4", "--json"],
    )
    told = json.loads(result.stdout)["predictions"][0]
    with shown(browser, page_file) as page:
        page.evaluate(SET_AND_READ, [fields_of(setting)])
        page.wait_for_selector("html:not([data-pending])", state="attached")
        cell = page.locator("[data-figure=break_even_batch]").get_attribute("data-value")
        gap = page.locator("[data-figure=gap]").get_attribute("data-value")
        usd = page.locator("[data-figure=output_usd_per_mtok]").get_attribute("data-value")
    assert (int(cell) if cell else None) == told["break_even_batch"]
    assert float(gap) == pytest.approx(told["gap"], rel=WITHIN)
    assert float(usd) == pytest.approx(told["output_usd_per_mtok"], rel=WITHIN)


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [
        pytest.param("light", DESK, id="light"),
        pytest.param("dark", DESK, id="dark"),
        pytest.param("dark", PHONE, id="phone"),
    ],
)
def test_nothing_is_wider_than_the_screen(browser, page_file, scheme, viewport):
    with shown(browser, page_file, scheme=scheme, viewport=viewport) as page:
        longest = max(range(len(price_list())), key=lambda at: len(list(price_list())[at]))
        page.locator("#price").select_option(index=1 + longest)
        page.wait_for_selector("html:not([data-pending])", state="attached")
        page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        outside = page.evaluate(
            """() => Array.from(document.querySelectorAll("svg, svg text, input, select"))
              .map((each) => [each.getBoundingClientRect(), each.textContent])
              .filter(([box]) => box.left < 0 || box.right > innerWidth).map(([, text]) => text)"""
        )
        assert outside == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
        assert dark == (scheme == "dark")


CONTRASTS = """() => {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((each) => Number(each) / 255)
      .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = "p, label, th, td, a, summary, h1, h2, svg text, li, input, select";
  return Array.from(document.querySelectorAll(texts), (each) => {
    const style = getComputedStyle(each);
    const pair = [each instanceof SVGElement ? style.fill : style.color, behind(each)].map(luminance);
    return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), each.textContent.slice(0, 40)];
  }).filter(([contrast]) => contrast < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(browser, page_file, scheme):
    with shown(browser, page_file, scheme=scheme) as page:
        assert page.evaluate(CONTRASTS) == []


def test_every_control_has_a_label_and_every_chart_a_title_and_a_description(browser, page_file):
    with shown(browser, page_file) as page:
        page.wait_for_selector("html:not([data-pending])", state="attached")
        unnamed = page.evaluate(
            """() => Array.from(document.querySelectorAll("input, select"))
              .filter((each) => !each.labels.length && !each.ariaLabel).map((each) => each.id)"""
        )
        assert unnamed == []
        charts = page.locator(".chart svg").all()
        assert len(charts) == 4
        for chart in charts:
            assert chart.get_attribute("role") == "img"
            title, description = chart.get_attribute("aria-labelledby").split()
            assert page.locator(f"#{title}").text_content()
            assert len(page.locator(f"#{description}").text_content()) > 60


def test_the_keyboard_moves_the_batch_and_focus_is_visible(browser, page_file):
    with shown(browser, page_file) as page:
        slider = page.locator("#batch_slider")
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#batch").input_value() == "9"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
        assert "at batch 9 " in page.locator("#answer").text_content()


def test_points_move_with_the_batch(browser, page_file):
    with shown(browser, page_file) as page:

        def place():
            return float(page.locator("#roofline rect.decode").get_attribute("x"))

        before = place()
        page.locator("#batch").fill("128")
        assert place() > before


def test_a_setting_that_does_not_fit_says_so_and_hides_figures(browser, page_file):
    with shown(browser, page_file) as page:
        page.locator("#gpu").select_option("L4")
        page.locator("#model").select_option("llama-3.1-70b")
        assert "does not fit" in page.locator("#problem").text_content()
        assert not page.locator("#results").is_visible()
        page.locator("#model").select_option("llama-3.2-1b")
        assert not page.locator("#problem").is_visible()
        assert page.locator("#results").is_visible()


def test_a_batch_beyond_the_memory_shows_the_largest_that_fits(browser, page_file):
    with shown(browser, page_file) as page:
        page.locator("#context").fill("65536")
        page.locator("#batch").fill("4096")
        fits = fitting_batch(opening(context=65536))
        assert f"those of batch {fits}" in page.locator("#problem").text_content()


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "1e99"])
def test_a_wrong_number_is_told_and_changes_no_figure(browser, page_file, text):
    with shown(browser, page_file) as page:
        before = page.locator("#answer").text_content()
        page.locator("#context").fill(text)
        assert "out of range" in page.locator("#problem").text_content()
        assert page.locator("#answer").text_content() == before


def test_another_gpu_brings_its_own_price(browser, page_file):
    with shown(browser, page_file) as page:
        page.locator("#gpu").select_option("B200")
        listed = gpu_table()["B200"].usd_per_hour
        assert page.locator("#usd").input_value() == ("" if listed is None else f"{listed:g}")


def test_paper_is_light_and_shows_all_tables(browser, page_file):
    with shown(browser, page_file, scheme="dark") as page:
        assert len(page.pdf(prefer_css_page_size=True)) > 10_000
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator("details:not([open])").count() == 0


def test_hostile_names_are_shown_as_they_are(browser, tmp_path):
    name = "</script><img src=x onerror=alert(1)>"
    model = replace(MODELS["llama-3.1-8b"], name=name)
    with shown(browser, write_page(tmp_path / "page.html", opening(model=model))) as page:
        assert name in page.locator("#answer").text_content()
        assert page.locator("img").count() == 0
