"""Tables and numbers in every format, also with hostile text of a file in a cell."""

import csv
import io
import re

import pytest
from decodetax.harness.core.table import Column, Table, percent
from decodetax.harness.core.units import number, seconds, si

HOSTILE = {
    "escape sequence": "torch\x1b[2J\x1b[31m",
    "C1 control": "torch\x9b2J",
    "line end": "torch\nall rows ok",
    "carriage return": "torch\rall rows ok",
    "JavaScript line end": "torch\u2028all rows ok",
    "right-to-left override": "torch\u202ekcits",
    "surrogate": "torch\udcff",
    "cell ends": 'a|b,"c</td><td>d',
}


def table(*rows, **columns):
    """A table of a name, a figure and further columns."""
    first = (Column("provider"), Column("median", "median_s", "measured", seconds))
    more = tuple(Column(heading, **facts) for heading, facts in columns.items())
    return Table(title="Times", id="times", columns=(*first, *more), rows=rows)


RENDERERS = {
    "text": Table.text,
    "wide text": lambda table: table.text(wide=True),
    "CSV": Table.csv,
    "Markdown": Table.markdown,
    "HTML": Table.html,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("render", RENDERERS.values(), ids=RENDERERS)
def test_hostile_text_stays_in_its_cell(render, text):
    plain, hostile = render(table(("torch", 1.0))), render(table((text, 1.0)))
    assert len(hostile.splitlines()) == len(plain.splitlines())
    assert all(character.isprintable() or character == "\n" for character in hostile)
    if render is RENDERERS["HTML"]:
        assert hostile.count("<") == plain.count("<")
    if render is RENDERERS["Markdown"]:
        assert re.sub(r"\\.", "", hostile).count("|") == plain.count("|")
        assert "<" not in hostile
    if render is RENDERERS["CSV"]:
        assert all(len(row) == 2 for row in csv.reader(io.StringIO(hostile)))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\n@x"])
def test_csv_holds_no_formula(text):
    [_, [cell, figure]] = csv.reader(io.StringIO(table((text, -1.5)).csv()))
    assert cell == f"'{text.strip()}"
    assert figure == "-1.5"


def test_an_interval_is_one_column_to_read_and_two_of_numbers():
    columns = (Column("case"), Column("95% interval", "time_s", "measured", "{:.1f}".format, interval=True))
    made = Table(columns=columns, rows=(("a", (1.23, 4.56)), ("b", None)))
    assert made.text(wide=True).splitlines()[-2:] == ["a     1.2 to 4.6", "b     -"]
    assert made.csv() == "case,measured_time_s_low,measured_time_s_high\na,1.23,4.56\nb,,"
    assert made.json_rows() == [
        {"case": "a", "measured_time_s_low": 1.23, "measured_time_s_high": 4.56},
        {"case": "b", "measured_time_s_low": None, "measured_time_s_high": None},
    ]


def test_csv_and_json_rows_keep_all_digits_under_name_and_provenance():
    made = table(("a", 1 / 3), ("b", None))
    assert made.csv() == "provider,measured_median_s\na,0.3333333333333333\nb,"
    assert made.json_rows()[0] == {"provider": "a", "measured_median_s": 1 / 3}


def test_text_has_numbers_at_the_right_and_provenance_beside_the_title():
    assert table(("torch", 0.0125), ("triton", 2.0)).text().splitlines() == [
        "Times (measured)",
        "provider   median",
        "--------  -------",
        "torch     12.5 ms",
        "triton        2 s",
    ]


def test_columns_of_several_provenances_are_listed():
    made = table(("torch", 1.0, 0.5), share={"provenance": "modelled", "show": percent})
    assert made.text().splitlines()[:3] == ["Times", "measured: median", "modelled: share"]
    assert "| provider | median (measured) | share (modelled) |\n| --- | ---: | ---: |" in made.markdown()


def test_a_table_without_rows_says_so():
    assert table().text() == "Times\n(none)"
    assert table().markdown() == "None."


def test_columns_without_values_are_left_out_for_people_and_kept_in_files():
    made = table(("torch", None), ("triton", None))
    assert "median" not in made.text() + made.markdown() + made.html()
    assert "median" in made.csv()


def test_wide_shows_more_columns_and_wraps_no_cell():
    reason = "why " * 30
    made = table(("torch", 1.0, reason.strip(), 7), why={}, rounds={"wide": True})
    narrow, wide = made.text(), made.text(wide=True)
    assert "rounds" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    assert " ".join(narrow.split()).count("why") == 31
    assert wide.splitlines()[-1].split()[-1] == "7"
    assert reason.strip() in wide


@pytest.mark.parametrize("length", [1, 77, 78, 79, 200])
def test_any_name_fits_80_characters_and_no_line_begins_with_its_rest(length):
    name = f"FAILED {'x' * length}-{'y' * length}/{'z' * length} FAILED all"
    text = table((name, 1.0), (name, 2.0), ("torch", 3.0)).text()
    lines = text.splitlines()[3:]
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == (
        ["FAILED", "FAILED", "torch"] if length == 1 else ["FAILED", "torch"]
    )
    assert text.count("x") == length * (2 if length == 1 else 1)


def test_rows_that_share_a_wrapped_first_cell_show_it_once():
    case = f"prefill/{'x' * 90}"
    lines = table((case, 1.0), (case, 2.0), ("decode", 3.0)).text().splitlines()
    assert sum("prefill" in line for line in lines) == 1
    assert [line.split()[-2] for line in lines if line.endswith(" s")] == ["1", "2", "3"]


def test_long_headings_are_wrapped():
    made = Table(columns=(Column("largest batch that fits"),), rows=((8,),))
    assert made.text().splitlines() == ["largest", "  batch", "   that", "   fits", "-------", "      8"]


def test_units_of_headings_are_not_broken_after_a_slash():
    made = Table(columns=(Column("bus GB/s"),), rows=((123456,),))  # 7 characters, as "bus GB/"
    assert made.text().splitlines()[:2] == ["    bus", "   GB/s"]


def test_headings_are_broken_after_hyphens_if_the_table_is_too_wide():
    columns = (*(Column(f"{at} tokens/s") for at in range(6)), Column("break-even batch"))
    wide = Table(title="of words " * 12, columns=columns, rows=((*[10**7] * 6, 8),)).text().splitlines()
    assert max(map(len, wide)) <= 80
    assert [line.split()[-1] for line in wide[2:5]] == ["break-", "even", "batch"]
    fits = Table(columns=columns[1:], rows=((*[10**7] * 5, 8),)).text()
    assert "break-even" in fits


def test_html_cell_keeps_its_number_for_sorting():
    text = table(("torch", 0.0125), ("triton", None)).html()
    assert '<td class="number" data-value="0.0125">12.5 ms</td>' in text
    assert "<td data-none>-</td>" in text


def test_values_are_shown_by_their_type():
    row = ("007", True, "", None, 4096, 0.25)
    assert [Column("any").text(value) for value in row] == ["007", "yes", "-", "-", "4,096", "0.25"]


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (number, 1810, "1,810"), (number, 1812.4, "1,812"), (number, 282.44, "282.4"),
        (number, 0.012, "0.012"), (number, 999.96, "1,000"), (number, -1234.5, "-1,234"),
        (number, 0.0, "0"), (number, 2e-5, "2e-05"), (number, float("inf"), "inf"),
        (si, 1_234_567, "1.235 M"),
        (si, 999.99, "1,000 "), (si, 142, "142 "), (si, 2.469e12, "2.469 T"), (si, 5e21, "5,000,000 P"),
        (seconds, 12.5, "12.5 s"), (seconds, 1.0, "1 s"), (seconds, 0.0625, "62.5 ms"),
        (seconds, 1e-3, "1 ms"), (seconds, 2.5e-4, "250 us"), (seconds, 3e-8, "0.03 us"),
        (seconds, 7200.0, "7,200 s"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_write_them(show, value, text):
    assert show(value) == text


def test_a_heading_above_numbers_is_broken_within_a_word_only_where_the_table_would_not_fit():
    columns = [Column(f"communication{at}") for at in range(6)]
    narrow = Table(columns=tuple(columns), rows=((1,) * 6,)).text()
    assert max(map(len, narrow.splitlines())) <= 80
    assert "communication0" not in narrow
    assert "communication0" in Table(columns=tuple(columns[:5]), rows=((1,) * 5,)).text()
