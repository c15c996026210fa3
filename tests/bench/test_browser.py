"""The report in a real browser, without a network."""

import re

import pytest
from browsers import CHROMIUM, DESK, PHONE, chromium, shown
from decodetax.harness.bench.chart_data import price_ratios
from decodetax.harness.bench.fleet import Fleet
from decodetax.harness.bench.html_report import html_report
from decodetax.harness.cost.prices import price_list
from hand_made import run_record
from rank_runs import rank_run
from report_runs import HOSTILE, SCRIPT, hostile_run, priced_run, whole_run

pytestmark = pytest.mark.slow

if CHROMIUM is None:
    pytest.skip("no chromium is installed here: apt-get install chromium", allow_module_level=True)
pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

RATIOS = price_ratios(price_list())


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    runs = {
        "whole": {"a": priced_run()},
        "two": {"a": whole_run(), "b": priced_run()},
        "hostile": {SCRIPT: hostile_run(), HOSTILE[1]: hostile_run()},
        "empty": {"a": run_record(interrupted=True)},
        "ranks": {"a": rank_run()},
    }
    for name, some in runs.items():
        (folder / f"{name}.html").write_text(html_report(some, RATIOS), encoding="utf-8")
    for name, some in (("fleet", {f"run {at}": priced_run() for at in range(30)}), ("odd", runs["hostile"])):
        page = html_report(some, RATIOS, Fleet(runs=some, left_out=[f"{SCRIPT}: is no run"]))
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "scheme", "viewport"),
    [
        pytest.param("whole", "light", DESK, id="light"),
        pytest.param("whole", "dark", DESK, id="dark"),
        pytest.param("whole", "dark", PHONE, id="phone"),
        pytest.param("two", "light", PHONE, id="two runs on a phone"),
        pytest.param("hostile", "dark", PHONE, id="hostile on a phone"),
        pytest.param("empty", "light", PHONE, id="empty on a phone"),
        pytest.param("ranks", "dark", PHONE, id="several ranks on a phone"),
        pytest.param("fleet", "light", DESK, id="fleet"),
        pytest.param("fleet", "dark", PHONE, id="fleet on a phone"),
        pytest.param("odd", "light", PHONE, id="hostile fleet on a phone"),
    ],
)
def test_opens_without_messages_and_does_not_overflow(browser, reports, name, scheme, viewport):
    with shown(browser, reports / f"{name}.html", scheme=scheme, viewport=viewport) as page:
        page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        ends = page.evaluate(
            "Array.from(document.querySelectorAll('.plot svg'), (svg) => svg.getBoundingClientRect().right)"
        )
        assert all(end <= viewport["width"] for end in ends)
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
        assert dark == (scheme == "dark")


@pytest.mark.parametrize(("name", "runs"), [("whole", 1), ("two", 2)])
def test_roofline_has_as_many_points_as_ok_rows(browser, reports, name, runs):
    with shown(browser, reports / f"{name}.html") as page:
        points = page.locator("#roofline .scatterlayer .points path").count()
        assert points == runs * sum(row.status == "ok" for row in whole_run().rows)


def test_the_scatter_of_a_fleet_has_a_point_for_each_gap_with_a_price(browser, reports):
    with shown(browser, reports / "fleet.html") as page:
        points = page.locator("#fleet-usd .scatterlayer .points path").count()
        assert points == 30 * len(priced_run().gaps)
        plot, after = (page.locator(place).bounding_box()["y"] for place in ("#fleet-usd", "#gap"))
        assert page.locator("#fleet").bounding_box()["y"] < plot < after
        height = page.evaluate(
            "document.querySelector('#fleet-usd .plot .bg, #fleet-usd .bglayer rect')"
            ".getBoundingClientRect().height"
        )
        assert height > 150


def texts(page, selector):
    return [" ".join(text.split()) for text in page.locator(selector).all_text_contents()]


HOVER = """() => {
  const plot = document.getElementById("roofline");
  const curveNumber = plot.data.findIndex((trace) => trace.mode === "markers");
  Plotly.Fx.hover(plot, [{ curveNumber, pointNumber: 0 }]);
}"""


@pytest.mark.parametrize(
    ("name", "row"), [("whole", priced_run().rows[0]), ("hostile", hostile_run().rows[0])]
)
def test_hover_shows_the_case(browser, reports, name, row):
    with shown(browser, reports / f"{name}.html") as page:
        page.evaluate(HOVER)
        page.wait_for_selector("#roofline .hoverlayer .hovertext")
        hover = " ".join(texts(page, "#roofline .hoverlayer .hovertext"))
        assert " ".join(row.case.id.split()) in hover
        assert "median (measured)" in hover


def test_mouse_over_a_point_shows_its_case(browser, reports):
    with shown(browser, reports / "whole.html") as page:
        point = page.locator("#roofline .scatterlayer .points path").first
        point.scroll_into_view_if_needed()
        box = point.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("#roofline .hoverlayer .hovertext")
        hovers = texts(page, "#roofline .hoverlayer .hovertext")
        assert any(row.case.id in text for text in hovers for row in whole_run().rows)


def test_figures_follow_a_change_to_dark(browser, reports):
    with shown(browser, reports / "whole.html") as page:
        colour = "document.getElementById('gap').layout.font.color"
        assert page.evaluate(colour) == "#1b1d21"
        page.emulate_media(color_scheme="dark")
        for _ in range(100):  # the page's policy lets no test wait by a script of its own
            if page.evaluate(colour) == "#e8eaee":
                break
            page.wait_for_timeout(50)
        assert page.evaluate(colour) == "#e8eaee"


def column(page, table, at):
    return texts(
        page, f"#{table} ~ .scroll tbody td:nth-child({at}), #{table} ~ details tbody td:nth-child({at})"
    )


def test_column_head_sorts_by_number_in_both_directions(browser, reports):
    with shown(browser, reports / "whole.html") as page:
        head = page.locator("#gaps ~ .scroll th", has_text="output tokens/s").first
        at = 1 + head.evaluate("(cell) => cell.cellIndex")
        head.get_by_role("button").click()
        rising = [float(text) for text in column(page, "gaps", at)]
        assert rising == sorted(rising)
        assert rising[0] < rising[-1]
        assert head.get_attribute("aria-sort") == "ascending"
        head.get_by_role("button").click()
        assert [float(text) for text in column(page, "gaps", at)] == rising[::-1]
        assert head.get_attribute("aria-sort") == "descending"


def test_the_keyboard_sorts_and_cells_without_a_value_stay_last(browser, reports):
    with shown(browser, reports / "whole.html") as page:
        head = page.locator("#price_ratios ~ .scroll th", has_text="break-even batch")
        at = 1 + head.evaluate("(cell) => cell.cellIndex")
        head.get_by_role("button").focus()
        for key in ("Enter", "Space"):
            page.keyboard.press(key)
            cells = column(page, "price_ratios", at)
            assert "-" in cells
            assert cells.index("-") == len(cells) - cells.count("-")
        assert head.get_attribute("aria-sort") == "descending"


def test_seconds_of_different_units_are_sorted_by_their_size(browser, reports):
    with shown(browser, reports / "whole.html") as page:
        page.locator("#kernels ~ details summary").click()
        head = page.locator("#kernels ~ details th", has_text="median")
        head.get_by_role("button").click()
        at = 1 + head.evaluate("(cell) => cell.cellIndex")
        values = [
            float(cell.get_attribute("data-value"))
            for cell in page.locator(f"#kernels ~ details tbody td:nth-child({at})").all()
        ]
        assert values == sorted(values)


def test_print_is_light_with_all_tables_open(browser, reports):
    with shown(browser, reports / "whole.html", scheme="dark") as page:
        assert len(page.pdf(prefer_css_page_size=True)) > 10_000
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("document.getElementById('gap').layout.font.color") == "#000000"
        assert page.locator("details:not([open])").count() == 0


def test_hostile_text_is_shown_as_it_is(browser, reports):
    with shown(browser, reports / "hostile.html") as page:
        assert SCRIPT in page.title() + page.locator("h1").text_content()
        body = re.sub(r"\s+", " ", page.locator("body").text_content())
        for text in HOSTILE:
            assert re.sub(r"\s+", " ", text) in body
        assert page.locator("img, a[href]:not([href^='#'])").count() == 0
        scripts = page.evaluate("[...document.scripts].map((script) => script.type)")
        assert scripts == ["application/json", "", ""]
        assert SCRIPT in " ".join(texts(page, "#roofline .legend text"))
