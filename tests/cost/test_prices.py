"""The price list, the exact cost of a request, and price changes."""

import decimal
from decimal import Decimal
from fractions import Fraction

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.cost.price_names import find_price
from decodetax.harness.cost.prices import (
    MAX_DECIMALS,
    MAX_TOKENS,
    MAX_USD_PER_MTOK,
    TokenPrice,
    exact_text,
    price_changes,
    price_list,
    request_charges,
    tokens_usd,
    total_usd,
)
from hypothesis import given
from hypothesis import strategies as st

FINEST = Decimal(1).scaleb(-MAX_DECIMALS)


def price(input_usd="2.50", output_usd="10.00", cached_usd=None, **changes):
    return TokenPrice(
        **{
            "model": "made-up",
            "effective": "2030-01-01",
            "input_usd_per_mtok": Decimal(input_usd),
            "cached_input_usd_per_mtok": None if cached_usd is None else Decimal(cached_usd),
            "output_usd_per_mtok": Decimal(output_usd),
            "source": "made by hand",
            **changes,
        }
    )


def cost_usd(at, *counts):
    return total_usd(request_charges(at, *counts))


# The list.


@pytest.mark.parametrize(
    ("model", "effective", "input_usd", "cached_usd", "output_usd", "ratio"),
    [
        ("gpt-4o-2024-05-13", "2024-05-13", "5.00", None, "15.00", "3"),
        ("GPT-4o-2024-08-06", "2024-08-06", "2.50", "1.25", "10.00", "4"),
        ("claude-3-haiku", "2024-03-04", "0.25", "0.03", "1.25", "5"),
        ("gpt-5", "2026-08-21 snapshot", "1.25", "0.125", "10.00", "8"),
        ("together llama-3.1-8b", "2025-09-05 snapshot", "0.18", None, "0.18", "1"),
        ("together llama-3.3-70b", "2025-09-05 snapshot", "0.88", None, "0.88", "1"),
        ("together llama-3.1-405b", "2025-09-05 snapshot", "3.50", None, "3.50", "1"),
    ],
)
def test_listed_model_in_any_case_has_its_published_price(
    model, effective, input_usd, cached_usd, output_usd, ratio
):
    found = find_price(model, price_list()).price
    assert (found.model, found.effective) == (model.lower(), effective)
    assert (found.input_usd_per_mtok, found.output_usd_per_mtok) == (Decimal(input_usd), Decimal(output_usd))
    assert found.cached_input_usd_per_mtok == (None if cached_usd is None else Decimal(cached_usd))
    assert found.output_over_input == Decimal(ratio)


def test_list_is_complete_and_cannot_be_changed():
    prices = price_list()
    assert len(prices) == len({name.casefold() for name in prices}) == 40
    assert all(name == found.model and found.effective and found.source for name, found in prices.items())
    with pytest.raises(TypeError):
        prices["gpt-4"] = price()


# A price.


@pytest.mark.parametrize(
    ("input_usd", "output_usd", "ratio"),
    [
        ("0", "1", None),
        ("0", "0", None),
        ("1", "0", "0"),
        ("0.27", "1.10", "4.074074074074074074074074074"),
        ("0.1", "0.3", "3"),
    ],
)
def test_ratio_is_output_over_input_and_none_where_input_is_free(input_usd, output_usd, ratio):
    assert price(input_usd, output_usd).output_over_input == (None if ratio is None else Decimal(ratio))


@pytest.mark.parametrize("field", ["input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok"])
@pytest.mark.parametrize(
    "value",
    [
        Decimal("-0.01"),
        Decimal("-0"),
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        Decimal(MAX_USD_PER_MTOK) + Decimal("0.01"),
        FINEST / 10,
        0.5,
        1,
        "1",
        True,
        None,
    ],
    ids=repr,
)
def test_rejects_price_that_is_not_an_exact_amount(field, value):
    if value is None and field == "cached_input_usd_per_mtok":
        assert price(**{field: value}).cached_input_usd_per_mtok is None
        return
    with pytest.raises(
        UsageError, match=rf"^{field}: must be a number from 0 to 1000000000000 of at most 18"
    ):
        price(**{field: value})


@pytest.mark.parametrize("value", [Decimal(0), Decimal(MAX_USD_PER_MTOK), FINEST])
def test_accepts_smallest_and_largest_price(value):
    assert price(input_usd_per_mtok=value).input_usd_per_mtok == value


# The cost of a request.


@pytest.mark.parametrize(
    ("at", "counts", "usd"),
    [
        (price_list()["gpt-4o-2024-08-06"], (500, 700), "0.00825"),
        (price_list()["gpt-4o-2024-05-13"], (500, 700), "0.013"),
        (price("0.1", "0.2"), (1_000_000, 1_000_000), "0.3"),  # 0.1 + 0.2 is another number in binary
        (price("2.50", "10.00", "1.25"), (500, 700, 400), "0.00775"),
    ],
    ids=str,
)
def test_cost_of_a_request_is_exact(at, counts, usd):
    assert cost_usd(at, *counts) == Decimal(usd)


def test_cached_tokens_are_part_of_the_input():
    charges = request_charges(price("2.50", "10.00", "1.25"), 500, 700, 400)
    assert [(charge.kind, charge.tokens, exact_text(charge.usd)) for charge in charges] == [
        ("input", 100, "0.00025"),
        ("cached input", 400, "0.0005"),
        ("output", 700, "0.007"),
    ]
    assert [charge.kind for charge in request_charges(price(), 5, 0)] == ["input", "output"]


def test_largest_request_at_the_finest_price_loses_no_digit():
    finest = Decimal(MAX_USD_PER_MTOK) - FINEST
    with decimal.localcontext(decimal.Context(prec=3)):
        cost = cost_usd(price(finest, finest, finest), MAX_TOKENS, MAX_TOKENS, MAX_TOKENS // 3)
    assert Fraction(cost) == Fraction(finest) * 2 * MAX_TOKENS / 10**6
    assert Fraction(exact_text(cost)) == Fraction(cost)


USD = st.decimals(0, MAX_USD_PER_MTOK, places=MAX_DECIMALS) | st.decimals(0, 100, places=3)
COUNT = st.integers(0, MAX_TOKENS // 2)


@given(USD, USD, USD, COUNT, COUNT, COUNT)
def test_cost_equals_that_of_fractions(input_usd, output_usd, cached_usd, uncached, output, cached):
    cost = cost_usd(price(input_usd, output_usd, cached_usd), cached + uncached, output + 1, cached)
    tokens = ((input_usd, uncached), (cached_usd, cached), (output_usd, output + 1))
    assert Fraction(cost) == sum(Fraction(usd) * count for usd, count in tokens) / 10**6
    assert Fraction(exact_text(cost)) == Fraction(cost)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((-1, 5, 0), "--input: must be an integer from 0 to 9007199254740992, was -1"),
        ((5, -1, 0), "--output: must be"),
        ((5, 5, -1), "--cached-input: must be"),
        ((MAX_TOKENS + 1, 5, 0), "--input: must be"),
        ((5, MAX_TOKENS + 1, 0), "--output: must be"),
        ((0, 10**5000, 0), "--output: must be .* was an integer of over 40 digits"),
        ((1.5, 5, 0), "--input: must be .* was 1.5"),
        ((5, True, 0), "--output: must be .* was True"),
        ((5, 5, 6), "--cached-input: must be at most --input, 5, was 6"),
        ((0, 0, 0), "--input: was 0, and so was --output"),
    ],
)
def test_rejects_a_count_by_name(counts, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        request_charges(price(cached_usd="1"), *counts)


def test_rejects_cached_tokens_without_a_price():
    with pytest.raises(UsageError, match=r"^--cached-input: must be 0, as 'gpt-4' lists no price for cached"):
        request_charges(price_list()["gpt-4"], 5, 5, 1)


# Amounts as text, and prices per other numbers of tokens.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("19", "19.00"),
        ("0.00825", "0.00825"),
        ("0.0082500", "0.00825"),
        ("1E+3", "1000.00"),
        ("1E-18", "0.000000000000000001"),
        ("0", "0.00"),
        ("0E+5", "0.00"),
        ("0.1", "0.10"),
        ("100", "100.00"),
    ],
)
def test_amount_has_all_its_digits_and_at_least_two_decimals(value, text):
    assert exact_text(Decimal(value)) == text


@pytest.mark.parametrize(
    ("usd", "per_tokens", "per_mtok"),
    [("0.01", 1, "10000.00"), ("0.0025", 1000, "2.50"), ("2.5", 1_000_000, "2.50"), ("7", 10**9, "0.007")],
)
def test_price_per_other_numbers_of_tokens(usd, per_tokens, per_mtok):
    usd_per_mtok = tokens_usd(10**6, Decimal(usd), per_tokens)
    assert exact_text(usd_per_mtok) == per_mtok
    assert tokens_usd(per_tokens, usd_per_mtok) == Decimal(usd)


def test_rejects_a_price_that_would_be_rounded():
    with pytest.raises(decimal.Inexact):
        tokens_usd(10**6, Decimal("0.01"), 3)


# Changes.


def changes_of(*prices):
    return list(price_changes({price.model: price for price in prices}))


def test_input_of_gpt_4o_fell_by_half_and_output_by_a_third():
    [change] = [change for change in price_changes(price_list()) if change.family == "gpt-4o"]
    assert change[:4] == ("gpt-4o", "gpt-4o-2024-05-13", "gpt-4o-2024-08-06", -50.0)
    assert change.output_change_percent == pytest.approx(-100 / 3, rel=1e-15)


@pytest.mark.parametrize(
    ("family", "models"),
    [
        ("gemini-1.5-pro", ["gemini-1.5-pro (early)", "gemini-1.5-pro (later up to 128k)"]),
        ("deepseek-v3", ["deepseek-v3 (until 2025-02-08)", "deepseek-v3 (from 2025-02-08)"]),
        ("mistral-large", ["mistral-large-2402", "mistral-large-2407"]),
        ("claude-haiku", ["claude-3-haiku", "claude-3.5-haiku", "claude-haiku-4.5"]),
    ],
)
def test_family_of_the_list_goes_from_old_to_new(family, models):
    found = [change for change in price_changes(price_list()) if change.family == family]
    assert [change.earlier for change in found] == models[:-1]
    assert [change.later for change in found] == models[1:]


def test_changes_are_ordered_by_date_and_then_by_the_list():
    found = changes_of(
        price(model="last", family="f", effective="2030-02-01 snapshot"),
        price(model="first of a month", family="f", effective="2030-01"),
        price(model="second of one day", family="f", effective="2030-01-15 snapshot"),
        price(model="third of one day", family="f", effective="2030-01-15"),
    )
    assert [change.later for change in found] == ["second of one day", "third of one day", "last"]


def test_model_alone_in_its_family_or_without_one_has_no_change():
    assert changes_of(price(model="a", family="f"), price(model="b"), price(model="c")) == []


def test_change_from_a_free_price_has_no_percentage():
    [change] = changes_of(price("0", "4", model="a", family="f"), price("1", "5", model="b", family="f"))
    assert (change.input_change_percent, change.output_change_percent) == (None, 25)
