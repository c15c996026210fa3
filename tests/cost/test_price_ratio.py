"""The price ratio that a served model's gap is compared with, and `predict --price-ratio`."""

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.cost import price_ratio as module
from decodetax.harness.cost.price_ratio import price_ratio
from decodetax.harness.cost.prices import price_list
from hand_made import assert_misuse, decodetax, strict_json
from msgspec.structs import replace

PREDICT = (
    "predict",
    "--model",
    "llama-3.1-70b",
    "--tensor-parallel",
    "4",
    "--batch",
    "8",
    "--context",
    "1024",
)


def prediction(*arguments):
    outcome = decodetax(*PREDICT, *arguments, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    [row] = strict_json(outcome.out)["predictions"]
    return row


def printed(*arguments):
    outcome = decodetax(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return " ".join(outcome.out.split())


def test_served_model_is_compared_with_its_own_listed_price():
    found = price_ratio(None, "llama-3.1-8b")
    assert found.value == 1.0
    assert found.source == "together llama-3.1-8b, 2025-09-05 snapshot (AgentOps-AI/tokencost)"


def test_of_several_providers_the_newest_price_is_taken_and_the_others_are_listed():
    found = price_ratio(None, "llama-3.3-70b")
    assert found.value == pytest.approx(0.79 / 0.59)
    assert found.source.startswith("groq llama-3.3-70b, 2026-08-21 snapshot")
    assert found.source.endswith("; also listed: together llama-3.3-70b 1")


@pytest.mark.parametrize("name", ["deepseek-v3", "DeepSeek-V3", "deepseek-ai/DeepSeek-V3"])
def test_of_a_family_the_newest_price_is_taken(name):
    found = price_ratio(None, name)
    assert found.value == pytest.approx(1.10 / 0.27)
    assert found.source.startswith("deepseek-v3 (from 2025-02-08), ")


def test_the_entry_of_the_same_name_precedes_newer_ones_of_other_providers():
    found = price_ratio(None, "deepseek-r1")
    assert found.source.startswith("deepseek-r1, 2025-02 ")
    assert "together deepseek-r1 2.33, fireworks deepseek-r1 2.67" in found.source


@pytest.mark.parametrize("name", ["llama-3.1-70b", "llama-3.1-80b", "deepseek-v3.2", "config", "", "-"])
def test_model_without_a_listed_price_has_the_default_ratio_and_says_so(name):
    found = price_ratio(None, name)
    assert (found.value, found.source.partition(",")[0]) == (4.0, "assumed")
    assert f"no price of {name};" in found.source


def test_model_whose_listed_input_is_free_has_the_default_ratio(monkeypatch):
    prices = dict(price_list())
    name = "together llama-3.1-8b"
    prices[name] = replace(prices[name], input_usd_per_mtok=0 * prices[name].input_usd_per_mtok)
    monkeypatch.setattr(module, "price_list", lambda: prices)
    assert price_ratio(None, "llama-3.1-8b").source.startswith("assumed")
    with pytest.raises(UsageError, match=r"^--price-ratio: the input of together llama-3\.1-8b is free"):
        price_ratio("together llama-3.1-8b", "llama-3.1-8b")


@pytest.mark.parametrize(("text", "value"), [("8", 8.0), ("2.5", 2.5), ("1e6", 1e6)])
def test_number_is_taken_as_given(text, value):
    assert (price_ratio(text, "llama-3.1-8b").value, price_ratio(text, "x").source) == (value, "as given")


@pytest.mark.parametrize(
    ("text", "value", "start"),
    [
        ("gpt-4o", 4.0, "gpt-4o-2024-08-06, 2024-08-06 "),
        ("gpt-5", 8.0, "gpt-5, 2026-08-21 snapshot "),
        ("llama-3.1-8b", 1.0, "together llama-3.1-8b, "),
    ],
)
def test_ratio_of_another_model_says_that_it_is_another_models(text, value, start):
    row = prediction("--price-ratio", text)
    assert row["price_ratio"] == value
    assert row["price_ratio_source"].startswith(start)
    other = ", which is another model's price: llama-3.1-70b is served"
    assert row["price_ratio_source"].endswith(other)
    assert other in printed(*PREDICT, "--price-ratio", text)


@pytest.mark.parametrize("text", ["llama-3.3-70b", "Llama-3.3-70B-Instruct", "groq llama-3.3-70b"])
def test_the_served_model_by_its_own_name_is_no_other_model(text):
    found = price_ratio(text, "llama-3.3-70b")
    assert found.value == pytest.approx(0.79 / 0.59)
    assert "another" not in found.source


def test_a_provider_that_is_named_is_taken():
    found = price_ratio("together llama-3.3-70b", "llama-3.3-70b")
    assert found.value == 1.0
    assert "another" not in found.source


def test_predict_says_whose_price_ratio_it_used():
    assert "Price ratio: assumed, as the price list has no price of llama-3.1-70b;" in printed(*PREDICT)
    own = ("predict", "--batch", "1", "--context", "512")
    assert "at most 1, the price ratio" in printed(*own)
    assert "Price ratio: together llama-3.1-8b, 2025-09-05 snapshot" in printed(*own)
    assert "Price ratio: as given." in printed(*own, "--price-ratio", "3")


@pytest.mark.parametrize(
    "text", ["0", "-1", "nan", "inf", "", "1e300", "1_0", "gpt-4oo", "4:1", "llama-3.3-70b"]
)
def test_rejects_an_invalid_price_ratio_in_one_line(text):
    assert_misuse(decodetax(*PREDICT, "--price-ratio", text), "--price-ratio", repr(text))


def test_price_ratio_of_an_unknown_model_names_the_nearest():
    assert_misuse(decodetax(*PREDICT, "--price-ratio", "gpt-4o-min"), "--price-ratio", "gpt-4o-mini")
