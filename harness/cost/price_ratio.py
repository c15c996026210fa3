"""The output:input price ratio that a served model's gap is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..core import options
from ..core.errors import UsageError, printable
from .price_names import find_price, prices_of_served_model
from .prices import TokenPrice, price_list

DEFAULT_PRICE_RATIO = 4.0
"""The ratio for a model without a listed price: between those of the list, from 1 to 8."""

MAX_PRICE_RATIO = 1_000_000


@dataclass(frozen=True)
class PriceRatio:
    """Output price over input price.

    Attributes:
        value: the ratio.
        source: whose price it is, in words; or that it was given or assumed.
    """

    value: float
    source: str


def price_ratio(text: str | None, served_model: str) -> PriceRatio:
    """The ratio that `--price-ratio` names.

    Args:
        text: a number, or a model of the price list by any of its names. None, or the served model itself,
            means the listed price of the served model; without one, None means `DEFAULT_PRICE_RATIO`.
        served_model: name of the model whose gap is compared.

    Raises:
        UsageError: the text is no number above 0 and no model of the list, or input is free for that model.
    """
    if text is not None:
        try:
            value = options.positive_number(text, most=MAX_PRICE_RATIO)
        except ValueError:
            pass
        else:
            return PriceRatio(value, "as given")
    prices = price_list()
    own = prices_of_served_model(served_model, prices)
    if text is None:
        return _own_ratio(own, served_model)
    if (
        own
        and prices_of_served_model(text, prices) == own
        and text.casefold() not in map(str.casefold, prices)
    ):
        return _own_ratio(own, served_model)
    return _named_ratio(text, own, served_model, prices)


def _own_ratio(own: tuple[TokenPrice, ...], served_model: str) -> PriceRatio:
    """The first of the served model's own ratios; its source names the others that differ."""
    with_ratio = [price for price in own if price.output_over_input is not None]
    if not with_ratio:
        return PriceRatio(
            DEFAULT_PRICE_RATIO,
            f"assumed, as the price list has no price of {printable(served_model)}; --price-ratio sets it",
        )
    first, *others = with_ratio
    source = _whose(first)
    if others:
        source += f"; also listed: {', '.join(f'{p.model} {_ratio(p):.3g}' for p in others)}"
    return PriceRatio(_ratio(first), source)


def _named_ratio(
    text: str, own: tuple[TokenPrice, ...], served_model: str, prices: Mapping[str, TokenPrice]
) -> PriceRatio:
    try:
        price = find_price(text, prices, option="--price-ratio").price
    except UsageError as error:
        problem = str(error).removeprefix("--price-ratio: ")
        raise UsageError(
            f"--price-ratio: is not a number above 0, at most {MAX_PRICE_RATIO}, and {problem}"
        ) from None
    if price.output_over_input is None:
        raise UsageError(f"--price-ratio: the input of {price.model} is free, so it has no ratio")
    if price in own:
        return PriceRatio(_ratio(price), _whose(price))
    return PriceRatio(
        _ratio(price), f"{_whose(price)}, which is another model's price: {printable(served_model)} is served"
    )


def _ratio(price: TokenPrice) -> float:
    return float(price.output_over_input or 0)


def _whose(price: TokenPrice) -> str:
    return f"{price.model}, {price.effective} ({price.source})"
