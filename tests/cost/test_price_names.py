"""Names of models as users type them, and the entries of the price list that they mean."""

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.cost.price_names import find_price, prices_of_served_model
from decodetax.harness.cost.prices import price_list
from hand_made import assert_misuse, decodetax, strict_json
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

PRICES = price_list()


def found(name):
    return find_price(name, PRICES).price.model


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt4o", "gpt-4o-2024-08-06"),
        ("GPT 4o", "gpt-4o-2024-08-06"),
        ("4o", "gpt-4o-2024-08-06"),
        ("gpt-4o-latest", "gpt-4o-2024-08-06"),
        ("openai/gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("GPT_4_1_MINI", "gpt-4.1-mini"),
        ("gpt-5", "gpt-5"),
        ("claude-sonnet", "claude-sonnet-4"),
        ("sonnet", "claude-sonnet-4"),
        ("Claude Sonnet 3.5", "claude-3.5-sonnet"),
        ("claude-3-5-sonnet-20241022", "claude-3.5-sonnet"),
        ("claude-3-5-sonnet-latest", "claude-3.5-sonnet"),
        ("anthropic/claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-opus", "claude-opus-4.5"),
        ("haiku 4.5", "claude-haiku-4.5"),
        ("gemini-flash", "gemini-2.5-flash"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("gemini-2.5-pro", "gemini-2.5-pro (up to 200k)"),
        ("gemini-1.5-pro", "gemini-1.5-pro (later up to 128k)"),
        ("deepseek-v3", "deepseek-v3 (from 2025-02-08)"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-r1"),
        ("llama-3.1-8b", "together llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "together llama-3.1-8b"),
        ("together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo", "together llama-3.3-70b"),
        ("groq/llama-3.3-70b-versatile", "groq llama-3.3-70b"),
        ("mistral-large", "mistral-large-2407"),
    ],
)
def test_name_that_users_type_means_an_entry(name, entry):
    assert found(name) == entry
    assert found(name.upper()) == entry


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("llama-3.3-70b", {"together llama-3.3-70b", "groq llama-3.3-70b"}),
        ("r1", {"deepseek-r1", "together deepseek-r1", "fireworks deepseek-r1"}),
        ("claude-3.5", {"claude-3.5-sonnet", "claude-3.5-haiku"}),
        ("claude 4.5", {"claude-haiku-4.5", "claude-opus-4.5"}),
        ("mini", {"gpt-4o-mini", "gpt-4.1-mini", "gpt-5-mini"}),
        ("together", {name for name in PRICES if name.startswith("together")}),
        ("gpt", {"gpt-4", "2 others"}),
    ],
)
def test_ambiguous_name_lists_its_candidates(name, candidates):
    with pytest.raises(UsageError, match=r"^--model: '.*' may be .* or .*; name one of them$") as caught:
        found(name)
    listed = str(caught.value).partition(" may be ")[2].partition(";")[0].replace(" or ", ", ").split(", ")
    assert candidates <= set(listed)
    assert len(listed) == max(len(candidates), 13 if name == "gpt" else 0)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt-4o-2024-11-20", "another snapshot"),
        ("chatgpt-4o-latest", "another model"),
        ("gemini-2.5-flash-preview", "another version"),
        ("llama-3.8-1b", "sizes the other way round"),
        ("gpt-5.1", "another version"),
        ("deepseek-v3-0324", "another version"),
        ("gpt-4oé", "another letter"),
        ("gpt-٤o", "other digits"),
        ("4:1", "a ratio"),
        ("turbo", "one word of a name"),
        ("", "nothing"),
        ("-", "no letter"),
        ("()", "no letter"),
        ("/", "no letter"),
        ("\n", "no letter"),
        ("gpt\n4", "two lines"),
        ("x" * 100_000, "no model"),
        ("-" * 100_000, "no letter"),
        ("1." * 50_000, "no model"),
    ],
    ids=lambda value: value[:30],
)
def test_no_other_model_is_taken(name, why):
    del why
    with pytest.raises(UsageError, match=r"^--model: ") as caught:
        found(name)
    assert len(str(caught.value)) < 400


@given(st.text(max_size=30))
def test_any_text_means_an_entry_or_is_refused_in_one_line(name):
    try:
        outcome = find_price(name, PRICES).price.model
    except UsageError as error:
        outcome = str(error)
    assert outcome in PRICES or (outcome.startswith("--model: ") and outcome.isprintable())


def test_each_entry_is_found_by_its_own_name_in_any_case_and_punctuation():
    for name in PRICES:
        assert find_price(name, PRICES) == (PRICES[name], "")
        assert find_price(name.upper(), PRICES) == (PRICES[name], "")
        assert found(name.replace("-", "_").replace(".", "-")) == name


def test_note_says_how_a_name_was_read():
    note = find_price("gpt-4o", PRICES).note
    assert note == "'gpt-4o' is read as gpt-4o-2024-08-06, the newest listed of the family gpt-4o."
    assert find_price("sonnet-4", PRICES).note == "'sonnet-4' is read as claude-sonnet-4."


def test_newest_of_a_family_goes_by_date():
    newer = replace(PRICES["gpt-4o-2024-05-13"], model="first", effective="2030-01-01")
    assert find_price("gpt-4o", {"first": newer, **PRICES}).price is newer


def test_served_model_has_the_prices_of_all_its_providers_and_of_no_other_model():
    def names(model):
        return [price.model for price in prices_of_served_model(model, PRICES)]

    assert names("llama-3.3-70b") == ["groq llama-3.3-70b", "together llama-3.3-70b"]
    assert names("DeepSeek-R1") == ["deepseek-r1", "together deepseek-r1", "fireworks deepseek-r1"]
    assert names("deepseek-v3") == ["deepseek-v3 (from 2025-02-08)"]
    assert names("llama-3.1-70b") == names("llama-318b") == names("8b") == names("") == []


def test_price_says_how_a_name_was_read():
    outcome = decodetax("price", "--input", "500", "--output", "700", "--model", "gpt-4o")
    assert (outcome.code, outcome.err) == (0, "")
    assert "'gpt-4o' is read as gpt-4o-2024-08-06, the newest listed of the family gpt-4o." in " ".join(
        outcome.out.split()
    )
    assert "The request costs $0.00825." in outcome.out
    exact = decodetax("price", "--input", "5", "--model", "gpt-4o-2024-08-06")
    assert "read as" not in exact.out
    document = strict_json(decodetax("price", "--input", "5", "--model", "gpt-4o", "--json").out)
    assert (document["asked_model"], document["price"]["model"]) == ("gpt-4o", "gpt-4o-2024-08-06")


def test_price_refuses_an_ambiguous_name_in_one_line():
    outcome = decodetax("price", "--input", "5", "--model", "llama-3.3-70b")
    assert_misuse(outcome, "--model", "'llama-3.3-70b' may be together llama-3.3-70b or groq llama-3.3-70b")
