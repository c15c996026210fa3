"""What a request costs by a price list, exactly, and how prices changed."""

import decimal
from decimal import Decimal
from fractions import Fraction

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.cost.prices import (
    MOST_DECIMALS,
    MOST_TOKENS,
    MOST_USD_PER_MTOK,
    PriceChange,
    TokenPrice,
    exact_text,
    price_changes,
    price_list,
    price_of,
    request_cost,
    request_terms,
    scaled_from_mtok,
    scaled_to_mtok,
    total_usd,
)
from hypothesis import given
from hypothesis import strategies as st


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


def listed(*prices):
    return {price.model: price for price in prices}


# The list.


@pytest.mark.parametrize(
    ("model", "effective", "input_usd", "cached_usd", "output_usd", "ratio"),
    [
        ("gpt-4o-2024-05-13", "2024-05-13", "5.00", None, "15.00", "3"),
        ("gpt-4o-2024-08-06", "2024-08-06", "2.50", "1.25", "10.00", "4"),
        ("claude-3-haiku", "2024-03-04", "0.25", "0.03", "1.25", "5"),
        ("gpt-5", "2026-08-21 snapshot", "1.25", "0.125", "10.00", "8"),
        ("together llama-3.1-405b", "2025-09-05 snapshot", "3.50", None, "3.50", "1"),
    ],
)
def test_listed_model_has_its_published_price(model, effective, input_usd, cached_usd, output_usd, ratio):
    found = price_of(model, price_list())
    assert (found.model, found.effective) == (model, effective)
    assert (found.input_usd_per_mtok, found.output_usd_per_mtok) == (Decimal(input_usd), Decimal(output_usd))
    assert found.cached_input_usd_per_mtok == (None if cached_usd is None else Decimal(cached_usd))
    assert found.output_over_input == Decimal(ratio)


def test_list_is_whole_and_each_price_has_date_and_source():
    prices = price_list()
    assert len(prices) == 40
    assert all(name == found.model and found.effective and found.source for name, found in prices.items())
    assert len({name.casefold() for name in prices}) == 40


def test_open_models_at_one_host_are_priced_one_to_one():
    llamas = [found for name, found in price_list().items() if name.startswith("together llama")]
    assert [found.output_over_input for found in llamas] == [1, 1, 1]


def test_list_cannot_be_changed():
    with pytest.raises(TypeError):
        price_list()["gpt-4"] = price()


@pytest.mark.parametrize("asked", ["gpt-4o-2024-08-06", "GPT-4o-2024-08-06"])
def test_model_is_found_in_upper_or_lower_case(asked):
    assert price_of(asked, price_list()).model == "gpt-4o-2024-08-06"


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        pytest.param("gpt-4o", ["gpt-4o-2024-05-13", "gpt-4o-2024-08-06", "gpt-4o-mini"], id="beginning"),
        pytest.param("claude-haku-4.5", ["claude-haiku-4.5"], id="misspelt"),
        pytest.param("llama-3.1-8b", ["together llama-3.1-8b"], id="end"),
    ],
)
def test_unknown_model_is_told_the_nearest(asked, nearest):
    with pytest.raises(UsageError, match=r"^--model: ") as caught:
        price_of(asked, price_list())
    assert repr(asked) in str(caught.value)
    assert all(name in str(caught.value) for name in nearest)


@pytest.mark.parametrize("asked", ["", "x" * 100_000, "\n"])
def test_name_like_no_other_has_no_nearest(asked):
    with pytest.raises(UsageError, match=r"^--model: ") as caught:
        price_of(asked, price_list())
    assert "nearest" not in str(caught.value)
    assert len(str(caught.value)) < 300


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
        Decimal(MOST_USD_PER_MTOK) + Decimal("0.01"),
        Decimal(1).scaleb(-MOST_DECIMALS - 1),
        0.5,
        1,
        "1",
        True,
    ],
    ids=repr,
)
def test_price_that_is_no_exact_amount_is_refused(field, value):
    with pytest.raises(
        UsageError, match=rf"^{field}: must be a number from 0 to 1000000000000 of at most 18"
    ):
        price(**{field: value})


@pytest.mark.parametrize("field", ["input_usd_per_mtok", "output_usd_per_mtok"])
def test_only_the_cached_price_may_be_missing(field):
    assert price(cached_input_usd_per_mtok=None).cached_input_usd_per_mtok is None
    with pytest.raises(UsageError, match=f"^{field}: .* was None$"):
        price(**{field: None})


def test_least_and_largest_price_are_prices():
    for value in (Decimal(0), Decimal(MOST_USD_PER_MTOK), Decimal(1).scaleb(-MOST_DECIMALS)):
        assert price(input_usd_per_mtok=value).input_usd_per_mtok == value


# The cost of a request.


def test_cost_of_a_request_is_exact():
    assert request_cost(price_of("gpt-4o-2024-08-06", price_list()), 500, 700) == Decimal("0.00825")
    assert request_cost(price_of("gpt-4o-2024-05-13", price_list()), 500, 700) == Decimal("0.013")


def test_prices_per_token_make_nineteen_dollars():
    per_token = price(
        input_usd_per_mtok=scaled_to_mtok(Decimal("0.01"), 1),
        output_usd_per_mtok=scaled_to_mtok(Decimal("0.02"), 1),
    )
    assert exact_text(request_cost(per_token, 500, 700)) == "19.00"


def test_a_tenth_and_two_tenths_are_three_tenths():
    assert 0.1 + 0.2 != 0.3
    assert str(request_cost(price("0.1", "0.2"), 1_000_000, 1_000_000)) == "0.3"


def test_cached_tokens_are_part_of_the_input():
    found = price("2.50", "10.00", "1.25")
    terms = request_terms(found, 500, 700, 400)
    assert [(term.kind, term.tokens, exact_text(term.usd)) for term in terms] == [
        ("input", 100, "0.00025"),
        ("cached input", 400, "0.0005"),
        ("output", 700, "0.007"),
    ]
    assert total_usd(terms) == request_cost(found, 500, 700, 400) == Decimal("0.00775")


def test_request_without_cached_tokens_needs_no_cached_price():
    assert [term.kind for term in request_terms(price(), 5, 0)] == ["input", "output"]


def test_largest_request_at_the_finest_price_loses_no_digit():
    finest = Decimal(MOST_USD_PER_MTOK) - Decimal(1).scaleb(-MOST_DECIMALS)
    with decimal.localcontext(decimal.Context(prec=3)):
        cost = request_cost(price(finest, finest, finest), MOST_TOKENS, MOST_TOKENS, MOST_TOKENS // 3)
    assert Fraction(cost) == Fraction(finest) * 2 * MOST_TOKENS / 10**6
    assert Fraction(exact_text(cost)) == Fraction(cost)


USD = st.decimals(0, MOST_USD_PER_MTOK, places=MOST_DECIMALS) | st.decimals(0, 100, places=3)
COUNT = st.integers(0, MOST_TOKENS // 4)


@st.composite
def requests(draw):
    cached = draw(COUNT)
    return cached + draw(COUNT) + 1, draw(COUNT), cached


@given(USD, USD, USD, requests())
def test_cost_equals_that_of_fractions(input_usd, output_usd, cached_usd, request_):
    input_tokens, output_tokens, cached = request_
    cost = request_cost(price(input_usd, output_usd, cached_usd), *request_)
    dollars = (
        Fraction(input_usd) * (input_tokens - cached)
        + Fraction(cached_usd) * cached
        + Fraction(output_usd) * output_tokens
    ) / 10**6
    assert Fraction(cost) == dollars
    assert Fraction(exact_text(cost)) == dollars


@given(USD, USD, USD, requests(), requests())
def test_two_requests_cost_what_both_would_as_one(input_usd, output_usd, cached_usd, one, other):
    at = price(input_usd, output_usd, cached_usd)
    together = [a + b for a, b in zip(one, other, strict=True)]
    apart = Fraction(request_cost(at, *one)) + Fraction(request_cost(at, *other))
    assert Fraction(request_cost(at, *together)) == apart


@pytest.mark.parametrize(
    ("counts", "fragment"),
    [
        ((-1, 5, 0), "input_tokens: must be a whole number from 0 to 9007199254740992, was -1"),
        ((5, -1, 0), "output_tokens: must be"),
        ((5, 5, -1), "cached_input_tokens: must be"),
        ((MOST_TOKENS + 1, 5, 0), "input_tokens: must be"),
        ((5, MOST_TOKENS + 1, 0), "output_tokens: must be"),
        ((0, 10**5000, 0), "output_tokens: must be .* was an integer of over 40 digits"),
        ((1.5, 5, 0), "input_tokens: must be .* was 1.5"),
        ((5, True, 0), "output_tokens: must be .* was True"),
        ((5, 5, 6), "cached_input_tokens: 6 is more than the input of 5 tokens"),
        ((0, 0, 0), "input_tokens: is 0, and so is the output"),
    ],
)
def test_count_that_is_none_is_named(counts, fragment):
    with pytest.raises(UsageError, match=f"^{fragment}"):
        request_cost(price(cached_usd="1"), *counts)


def test_cached_tokens_without_a_price_are_named():
    with pytest.raises(UsageError, match=r"^cached_input_tokens: 'gpt-4' lists no price for cached input"):
        request_cost(price_of("gpt-4", price_list()), 5, 5, 1)


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
    assert exact_text(scaled_to_mtok(Decimal(usd), per_tokens)) == per_mtok
    assert scaled_from_mtok(scaled_to_mtok(Decimal(usd), per_tokens), per_tokens) == Decimal(usd)


def test_price_that_would_have_to_be_rounded_raises():
    with pytest.raises(decimal.Inexact):
        scaled_to_mtok(Decimal("0.01"), 3)


# Changes.


def changes_of(family, prices=None):
    return [change for change in price_changes(prices or price_list()) if change.family == family]


def test_input_of_gpt_4o_fell_by_half_and_output_by_a_third():
    [change] = changes_of("gpt-4o")
    assert (change.earlier.model, change.later.model) == ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06")
    assert (change.earlier.output_over_input, change.later.output_over_input) == (3, 4)
    assert change.input_change_percent == -50
    assert f"{change.output_change_percent:.2f}" == "-33.33"
    assert change.to_json() == {
        "family": "gpt-4o",
        "earlier": "gpt-4o-2024-05-13",
        "later": "gpt-4o-2024-08-06",
        "input_change_percent": -50.0,
        "output_change_percent": pytest.approx(-100 / 3, rel=1e-15),
    }


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
    found = changes_of(family)
    assert [change.earlier.model for change in found] == models[:-1]
    assert [change.later.model for change in found] == models[1:]


def test_changes_go_by_date_and_then_by_the_order_of_the_list():
    members = [
        price(model="last", family="f", effective="2030-02-01 snapshot"),
        price(model="first of a month", family="f", effective="2030-01"),
        price(model="second of one day", family="f", effective="2030-01-15 snapshot"),
        price(model="third of one day", family="f", effective="2030-01-15"),
    ]
    found = changes_of("f", listed(*members))
    assert [change.later.model for change in found] == ["second of one day", "third of one day", "last"]


def test_model_alone_in_its_family_or_without_one_has_no_change():
    prices = listed(price(model="a", family="f"), price(model="b"), price(model="c"))
    assert price_changes(prices) == ()


def test_change_from_nothing_has_no_percentage():
    change = PriceChange(family="f", earlier=price("0", "4"), later=price("1", "5"))
    assert (change.input_change_percent, change.output_change_percent) == (None, 25)
    assert change.to_json()["input_change_percent"] is None
