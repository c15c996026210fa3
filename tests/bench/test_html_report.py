"""The report as one HTML file: its contents, and that no text of a file becomes markup."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from decodetax.harness.bench.chart_data import LABEL_CHARACTERS, price_ratios, shortened
from decodetax.harness.bench.html_report import html_report
from decodetax.harness.bench.plotly_figure import script_safe
from decodetax.harness.bench.summary import missing_from, sentences
from decodetax.harness.cost.prices import price_list
from hand_made import ceilings, failed_row, gap, run_record
from report_runs import CONTROL, HOSTILE, SCRIPT, hostile_run, priced_run, whole_run

RATIOS = price_ratios(price_list())


class Page(HTMLParser):
    """Elements with their attributes, visible text, and the content of each script and style."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.raw, self.text, self.rows = [], [], [], {}
        self._table = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in {"script", "style"}:
            self.raw.append((tag, dict(attributes), []))
        if tag == "h2":
            self._table = dict(attributes).get("id")
        if tag == "tr" and self._table:
            self.rows.setdefault(self._table, []).append([])
        if tag in {"td", "th"}:
            self.rows[self._table][-1].append("")

    def handle_data(self, data):
        if self.lasttag in {"script", "style"} and self.raw and self.cdata_elem:
            self.raw[-1][2].append(data)
            return
        self.text.append(data)
        if self.lasttag in {"td", "th", "span", "small"} and self.rows.get(self._table):
            self.rows[self._table][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def scripts(self):
        return [(attributes, "".join(text)) for tag, attributes, text in self.raw if tag == "script"]

    def figures(self):
        [found] = [text for attributes, text in self.scripts() if attributes.get("id") == "charts"]
        return json.loads(found)

    def words(self):
        return " ".join(" ".join(self.text).split())


def page(*runs):
    return Page(html_report({f"run {at}": run for at, run in enumerate(runs)}, RATIOS))


def test_answer_comes_first_and_unchanged():
    run = whole_run()
    words = page(run).words()
    for sentence in sentences(run):
        assert sentence in words
    assert words.index(next(sentences(run))) < words.index("Roofline")


def test_roofline_has_a_point_for_each_ok_row_and_a_line_for_each_roof():
    run = whole_run()
    traces = page(run).figures()["roofline"]["data"]
    points = [x for trace in traces if trace["mode"] == "markers" for x in trace["x"]]
    assert len(points) == sum(row.status == "ok" for row in run.rows)
    roofs = {trace["name"]: trace for trace in traces if trace["mode"] == "lines"}
    assert [trace["line"]["dash"] for trace in roofs.values()] == ["solid", "dash"]
    measured = next(trace for name, trace in roofs.items() if name.startswith("measured"))
    assert dict(zip(measured["x"], measured["y"], strict=True))[10.0] == 1e9  # the balance of 1e9 over 1e8
    assert measured["y"][0] == pytest.approx(1e8 * measured["x"][0])


def test_hover_shows_case_provider_shape_and_times():
    run = whole_run()
    [trace] = [t for t in page(run).figures()["roofline"]["data"] if t["name"].startswith("projection, pre")]
    shown = trace["hovertext"][0].split("<br>")
    row = run.rows[0]
    assert shown[0] == f"<b>{row.case.id}</b>"
    assert shown[1:3] == ["run: run 0", "provider: torch"]
    assert "in_features 64" in shown[3]
    assert shown[5:7] == ["median (measured): 2 ms", "95% interval: 1 ms to 3 ms"]
    assert trace["hoverinfo"] == "text"


def test_several_runs_have_a_trace_each_and_are_named_in_the_tables():
    found = page(whole_run(), whole_run())
    traces = [t for t in found.figures()["roofline"]["data"] if t["mode"] == "markers"]
    assert [t["name"] for t in traces] == ["run 0 (measured)", "run 1 (measured)"]
    assert len({t["marker"]["symbol"] for t in traces}) == len({t["marker"]["color"] for t in traces}) == 2
    assert {row[0] for row in found.rows["gaps"][1:]} == {"run 0", "run 1"}
    assert {"heat-1", "heat-2", "parts-1", "parts-2"} <= set(found.figures())


def test_gap_figure_marks_the_break_even_batches():
    traces = page(whole_run()).figures()["gap"]["data"]
    [stars] = [trace for trace in traces if trace.get("name", "").startswith("break-even")]
    # The gap falls from 10 at batch 1 to 2.5 at batch 8 along a power of the batch: -2 / 3.
    for batch, ratio in zip(stars["x"], stars["y"], strict=True):
        assert 10 * batch ** (-2 / 3) == pytest.approx(ratio)
    published = [trace for trace in traces if trace.get("line", {}).get("dash") == "dot"]
    assert {trace["y"][0] for trace in published} == {float(ratio.ratio) for ratio in RATIOS}


def test_gap_figure_has_bars_of_the_intervals_and_none_without():
    lines = [trace for trace in page(whole_run()).figures()["gap"]["data"] if "error_y" in trace]
    assert [trace["y"] for trace in lines] == [[10.0, 2.5]] * 2
    for trace in lines:  # from a tenth below to a fifth above
        assert trace["error_y"]["array"] == pytest.approx([2.0, 0.5])
        assert trace["error_y"]["arrayminus"] == pytest.approx([1.0, 0.25])
        assert trace["customdata"] == [" (95% interval 9 to 12)", " (95% interval 2.25 to 3)"]
    [line] = [t for t in page(whole_run(gaps=[gap()])).figures()["gap"]["data"] if "error_y" in t]
    assert line["error_y"]["array"] == [0.0]
    assert line["customdata"] == [""]


def test_price_ratios_are_those_of_the_list():
    prices = price_list()
    assert {2, 4, 5, 8} <= {int(ratio.ratio) for ratio in RATIOS}
    for ratio in RATIOS:
        assert {prices[model].output_over_input for model in ratio.models} == {ratio.ratio}


def test_bars_add_up_to_the_token():
    bars = page(whole_run()).figures()["parts-1"]["data"]
    assert sum(bar["y"][0] for bar in bars) == pytest.approx(40e3)  # 40 s in ms
    assert len({bar["marker"]["pattern"]["shape"] for bar in bars}) == len(bars)


def test_heat_map_holds_each_gap_once():
    [heat] = page(whole_run()).figures()["heat-1"]["data"]
    assert (heat["x"], heat["y"], heat["z"]) == (["1", "8"], ["16", "64"], [[10.0, 2.5], [10.0, 2.5]])


def test_dollars_are_a_chart_with_a_price_and_a_sentence_without():
    priced, free = page(priced_run()), page(whole_run())
    # 4 s an input token at $3.6 an hour are $4000 a million.
    assert 4000.0 in {y for trace in priced.figures()["cost"]["data"] for y in trace["y"]}
    assert "cost" not in free.figures()
    assert "No price of this device is known" in free.words()
    assert "No price" not in priced.words()


def test_each_figure_has_a_text_alternative_and_its_provenance():
    found = page(priced_run())
    plots = [a for a in found.all("div") if a.get("class", "").startswith("plot")]
    assert {plot["id"] for plot in plots} == set(found.figures())
    for plot in plots:
        assert plot["role"] == "img"
        assert len(plot["aria-label"]) > 40
    assert found.words().count("Provenance:") == len(plots)
    targets = {link["href"][1:] for link in found.all("a")}
    assert targets <= {a["id"] for _, a in found.elements if "id" in a}


def test_a_cell_keeps_its_number_for_sorting():
    cells = [a for a in page(whole_run()).all("td") if "data-value" in a]
    assert len(cells) > 50
    assert all(float(cell["data-value"]) >= 0 for cell in cells)


def test_nothing_is_fetched_and_only_the_scripts_of_the_page_may_run():
    found = page(whole_run())
    assert not [a for _, a in found.elements if "src" in a or "srcset" in a]
    assert all(link["href"].startswith("#") for link in found.all("a"))
    assert [link["href"] for link in found.all("link")] == ["data:,"]
    [policy] = [a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    named = set(re.findall(r"'sha256-([^']+)'", policy))
    run_here = [text for attributes, text in found.scripts() if "type" not in attributes]
    digests = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run_here}
    assert named == digests
    assert "unsafe-eval" not in policy
    assert not re.search(r"script-src[^;]*unsafe", policy)


def test_no_text_of_a_file_becomes_markup():
    plain, hostile = page(priced_run(), priced_run()), Page(
        html_report({SCRIPT: hostile_run(), HOSTILE[1]: hostile_run()}, RATIOS)
    )  # fmt: skip
    known = {tag for tag, _ in plain.elements}
    assert {tag for tag, _ in hostile.elements} <= known
    assert len(hostile.scripts()) == len(plain.scripts()) == 3
    assert not [a for _, a in hostile.elements if any(name.startswith("on") for name in a)]
    assert all(a["href"].startswith(("#", "data:,")) for _, a in hostile.elements if "href" in a)
    assert SCRIPT in hostile.words()
    for text in HOSTILE:
        assert " ".join(text.split()) in hostile.words()


def strings(value):
    """All strings in JSON data."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [string for inner in value for string in strings(inner)]
    return [value] if isinstance(value, str) else []


def chart_strings(runs):
    text = html_report(runs, RATIOS)
    [data] = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    assert not re.search("[<>&\u2028\u2029]", data)
    return strings(json.loads(data))


def test_no_text_of_a_file_becomes_a_tag_of_plotly_or_ends_the_script():
    found = chart_strings({SCRIPT: hostile_run(), HOSTILE[1]: hostile_run()})
    tags = {tag for string in found for tag in re.findall(r"<[^>]*>", string)}
    assert tags <= {"<b>", "</b>", "<br>", "<extra>", "</extra>"}
    assert not [string for string in found if "<extra>" in string and "alert" in string]


def test_no_control_character_of_a_file_reaches_a_chart_or_the_page():
    hostile = hostile_run((CONTROL,) * len(HOSTILE))
    found = chart_strings({CONTROL: hostile, "b": hostile})
    assert any("OWNED" in string for string in found)
    assert all(string.isprintable() for string in found)
    attributes = [value for _, a in page(hostile).elements for value in a.values() if value]
    assert all(value.isprintable() for value in [*attributes, page(hostile).words()])


def test_labels_are_one_line_of_limited_length():
    assert shortened("a\n\x1b b") == "a b"
    assert len(shortened("<" * 100)) == LABEL_CHARACTERS


def test_data_of_a_page_holds_no_end_of_a_script_whatever_library_wrote_it():
    text = json.dumps("</script><!--&\u2028", ensure_ascii=False)
    assert not re.search("[<>&\u2028]", script_safe(text))
    assert json.loads(script_safe(text)) == json.loads(text)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (run_record(interrupted=True, elapsed_s=12.0), ["interrupted after 12 s", "No gap", "No kernel"]),
        (
            whole_run(broken="out of memory"),
            ["ended early with an error: out of memory", "1 result was wrong"],
        ),
        (whole_run(counters_reason="no permission"), ["counters were not read for every row: no permission"]),
        (whole_run(gaps=[]), ["No gap could be computed"]),
        (whole_run(ceilings=[]), ["measured roof lacks its read bandwidth and its bf16 matmul", "datasheet"]),
        (whole_run(ceilings=ceilings()[:1]), ["measured roof lacks its bf16 matmul"]),
        (whole_run(ceilings=ceilings()[1:]), ["measured roof lacks its read bandwidth"]),
        (
            whole_run(rows=[failed_row(row.case) for row in whole_run().rows], ceilings=[], gaps=[]),
            ["results were wrong", "roofline has no points"],
        ),
    ],
    ids=[
        "empty",
        "broken",
        "no counters",
        "no gaps",
        "no ceilings",
        "bandwidth",
        "matmul",
        "only failed rows",
    ],
)
def test_missing_parts_are_listed(run, said):
    found = page(run)
    for words in said:
        assert words in found.words()
    assert len(list(missing_from(run))) >= len(said)
    assert ("roofline" in found.figures()) == bool(run.ceilings or any(r.status == "ok" for r in run.rows))


def test_a_gap_that_is_missing_is_named():
    run = whole_run(gaps=[gap(batch=1, context=16), gap(batch=8, context=64)])
    run.settings = {**run.settings, "batches": [1, 8], "contexts": [16, 64]}
    words = page(run).words()
    assert "There is no gap at batch 1 and context 64" in words
    [heat] = page(run).figures()["heat-1"]["data"]
    assert heat["z"] == [[10.0, None], [None, 10.0]]


def test_one_batch_alone_has_figures_too():
    figures = page(whole_run(gaps=[gap()])).figures()
    assert {"gap", "heat-1", "parts-1"} <= set(figures)


def test_a_run_whose_gap_is_under_every_ratio_has_no_star_and_says_so():
    low = replace(gap(), output_parts_s={"projections": 4.0, "attention": 0.0, "rest": 0.0, "lm_head": 0.0})
    found = page(whole_run(gaps=[low]))
    assert not [t for t in found.figures()["gap"]["data"] if "break-even" in t.get("name", "")]
    assert "the gap is at most the ratio already at the smallest batch, 1" in found.words()
