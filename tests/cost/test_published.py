"""The model beside published end-to-end figures."""

import dataclasses
from pathlib import Path

import pytest
from decodetax.harness.cost import predict_command
from decodetax.harness.cost.published import deepseek_day, published_checks
from decodetax.harness.cost.published_engines import WITHIN
from hand_made import decodetax, strict_json

CHECKS = published_checks()
DOCS = Path(__file__).resolve().parents[2] / "docs" / "accuracy.md"


@pytest.mark.parametrize("found", CHECKS, ids=lambda each: each.what)
def test_checked_figures_are_within_their_limits_or_say_why_not(found):
    missed = f"{found.modelled} against {found.published} {found.unit}"
    if found.within != WITHIN:
        assert found.kept is not False, missed
    else:
        assert found.kept or len(found.remark) > 50, missed


def test_few_figures_of_engines_are_missed():
    engines = [each for each in CHECKS if each.within == WITHIN]
    assert len(engines) >= 26
    assert sum(not each.kept for each in engines) <= 8


def test_limits_of_the_checks():
    held = {each.what: each.within for each in CHECKS}
    assert sum(within == 0.15 for within in held.values()) == 2
    assert sum(within == 0.25 for within in held.values()) == 4
    assert held["gpt-fast, llama-2-7b in bf16 on A100, decode"] == 0.15
    assert [what for what, within in held.items() if within is None] == [
        "gpt-fast, llama-2-7b in int8 on A100, decode"
    ]


def test_deepseeks_day_by_arithmetic():
    day = deepseek_day()
    assert (day.node_hours, day.usd) == (5442, 87072)
    assert f"{day.input_usd_per_mtok:.2f} {day.output_usd_per_mtok:.2f}" == "0.06 0.30"
    assert f"{day.gap:.2f} {day.gap_without_hits:.2f}" == "4.98 2.18"


def test_missed_figure_is_shown_as_missed(monkeypatch):
    missed = dataclasses.replace(CHECKS[0], modelled=2 * CHECKS[0].published)
    assert missed.relative_error == pytest.approx(1)
    monkeypatch.setattr(predict_command, "published_checks", lambda: (missed, *CHECKS[1:]))
    outcome = decodetax("predict", "--published")
    assert outcome.code == 0
    assert outcome.out.count("MISSED") == 1 + sum(each.kept is False for each in CHECKS)
    assert "+100.0%" in outcome.out


def test_separated_costs_reproduce_tensorrt_llms_throughputs():
    published_of = {
        each.what.rpartition(", ")[2]: each.published for each in CHECKS if "saturated" in each.what
    }
    input_s, output_s = 1 / published_of["input"], 1 / published_of["output"]
    assert 2048 / (128 * input_s + 2048 * output_s) == pytest.approx(22714)
    assert 128 / (2048 * input_s + 128 * output_s) == pytest.approx(3450)
    assert published_of["gap"] == pytest.approx(2.79, abs=0.005)


def test_the_docs_show_what_the_command_prints():
    printed = [line.rstrip() for line in decodetax("predict", "--published", "--wide").out.splitlines()]
    page = DOCS.read_text(encoding="utf-8").partition("<!-- decodetax predict --published --wide -->")[2]
    assert page.split("```")[1].removeprefix("text\n").splitlines() == printed


def test_json_holds_source_and_provenance():
    document = strict_json(decodetax("predict", "--published", "--json").out)
    for row in document["published"]:
        assert row["source"]
        assert row["provenance"] == ("published" if "DeepSeek" in row["what"] else "modelled")


@pytest.mark.parametrize("option", [("--batch", "1"), ("--gpu", "h100"), ("--cache-hits", "0.5")])
def test_published_setups_take_no_other_option(option):
    outcome = decodetax("predict", "--published", *option)
    assert (outcome.code, outcome.out) == (2, "")
    assert option[0] in outcome.err
