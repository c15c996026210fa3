"""API prices per token: the price list, the exact cost of a request, and how prices changed.

Money is `Decimal`. Sums and products are exact: an operation that would round raises `decimal.Inexact`.
"""

import datetime as dt
import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow, localcontext
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec

from ..core.data_table import data_table
from ..core.errors import UsageError, schema_fault, short_repr
from ..core.files import read_user_text

MTOK = 1_000_000
MAX_TOKENS = 2**53
MAX_USD_PER_MTOK = 10**12
MAX_DECIMALS = 18

_ROUNDED = Context(prec=28)
_EXACT = Context(prec=100, traps=[Inexact, InvalidOperation, Overflow])  # 100 digits hold any request's cost
_USD_FIELDS = ("input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok")
_OPTIONAL = ("family", "effective", "cached_input_usd_per_mtok")


class TokenPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an API charges for the tokens of a model; the schema of the price list and of a user's file.

    Attributes:
        model: name in the price list, such as "gpt-4o-2024-08-06".
        family: the line of models that replaced one another, such as "gpt-4o"; None if in no such line.
        effective: date from which the price holds, or "DATE snapshot", the day on which it was read; perhaps
            without day or month. None for prices given as options.
        input_usd_per_mtok: US dollars per million input tokens that are not in the API's prompt cache.
        cached_input_usd_per_mtok: the same for tokens in that cache; None if no such price is listed.
        output_usd_per_mtok: US dollars per million output tokens.
        source: who lists the price.

    Raises:
        UsageError: a price is not an exact `Decimal` in range, or a text is not one short line.
    """

    model: str
    family: str | None = None
    effective: str | None
    input_usd_per_mtok: Decimal
    cached_input_usd_per_mtok: Decimal | None = None
    output_usd_per_mtok: Decimal
    source: str

    def __post_init__(self) -> None:
        _check(msgspec.structs.asdict(self))

    @property
    def output_over_input(self) -> Decimal | None:
        """Price ratio of an output token to an input token, to 28 digits; None if input is free."""
        if not self.input_usd_per_mtok:
            return None
        return _ROUNDED.divide(self.output_usd_per_mtok, self.input_usd_per_mtok)

    def to_json(self) -> dict[str, Any]:
        """The fields, money as `Decimal`, and the ratio as a number."""
        ratio = self.output_over_input
        return {**msgspec.structs.asdict(self), "output_over_input": None if ratio is None else float(ratio)}


class PriceChange(NamedTuple):
    """The step from one model of a family to the next, by name; a change from a price of 0 is None."""

    family: str
    earlier: str
    later: str
    input_change_percent: float | None
    output_change_percent: float | None


class Charge(NamedTuple):
    """The charge of a request for one kind of token: "input" (uncached), "cached input" or "output"."""

    kind: str
    tokens: int
    usd_per_mtok: Decimal
    usd: Decimal


def request_charges(
    price: TokenPrice, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0
) -> tuple[Charge, ...]:
    """The charges of one request; of all `input_tokens`, the `cached_input_tokens` pay the cached price.

    Raises:
        UsageError: a count is not an integer from 0 to MAX_TOKENS, input and output are both 0, or the
            cached tokens exceed the input or have no price; one line that starts with the option.
    """
    counts = {"input": input_tokens, "output": output_tokens, "cached-input": cached_input_tokens}
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count <= MAX_TOKENS:
            raise UsageError(f"--{name}: must be an integer from 0 to {MAX_TOKENS}, was {short_repr(count)}")
    if not input_tokens and not output_tokens:
        raise UsageError("--input: was 0, and so was --output; a request has at least 1 token")
    if (cached := cached_input_tokens) > input_tokens:
        raise UsageError(f"--cached-input: must be at most --input, {input_tokens}, was {cached}")
    prices = [("input", input_tokens - cached_input_tokens, price.input_usd_per_mtok)]
    if cached_input_tokens:
        if price.cached_input_usd_per_mtok is None:
            problem = f"must be 0, as {short_repr(price.model)} lists no price for cached input, was {cached}"
            raise UsageError(f"--cached-input: {problem}")
        prices.append(("cached input", cached_input_tokens, price.cached_input_usd_per_mtok))
    prices.append(("output", output_tokens, price.output_usd_per_mtok))
    return tuple(Charge(kind, tokens, usd, tokens_usd(tokens, usd)) for kind, tokens, usd in prices)


def total_usd(charges: Iterable[Charge]) -> Decimal:
    """The sum of all charges, exact."""
    with localcontext(_EXACT):
        return sum((charge.usd for charge in charges), Decimal(0))


def tokens_usd(tokens: int, usd: Decimal, per_tokens: int = MTOK) -> Decimal:
    """Cost of a number of tokens at a price of `usd` per `per_tokens` tokens, exact."""
    with localcontext(_EXACT):
        return tokens * usd / per_tokens


def exact_text(usd: Decimal) -> str:
    """All digits of an amount, at least two decimals, never an exponent: "19.00", "0.00825"."""
    whole, _, decimals = f"{usd:f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def price_list(path: Path | None = None) -> Mapping[str, TokenPrice]:
    """Prices by model, in the order of the list; a TOML file of `[[price]]` tables adds or replaces prices.

    Raises:
        UsageError: the file cannot be read or is no price file; one line that starts with `--prices:` and
            names the entry and its field.
    """
    rows = [{column: text for column, text in row.items() if text} for row in data_table("prices.csv")]
    prices = {price.model.casefold(): price for price in msgspec.convert(rows, list[TokenPrice])}
    if path is not None:
        try:
            prices |= _own_prices(read_user_text(path, "price file", max_mib=1))
        except UsageError as error:
            raise UsageError(f"--prices: {short_repr(str(path))}: {error}") from None
    return MappingProxyType({price.model: price for price in prices.values()})


def price_changes(prices: Mapping[str, TokenPrice]) -> Iterator[PriceChange]:
    """Each step from one model of a family to the next, by date; in the order of the list for equal dates."""
    by_date = sorted(prices.values(), key=lambda price: str(price.effective).partition(" ")[0])
    for family in dict.fromkeys(price.family for price in prices.values() if price.family is not None):
        members = (price for price in by_date if price.family == family)
        for earlier, later in itertools.pairwise(members):
            yield PriceChange(
                family,
                earlier.model,
                later.model,
                _change_percent(earlier.input_usd_per_mtok, later.input_usd_per_mtok),
                _change_percent(earlier.output_usd_per_mtok, later.output_usd_per_mtok),
            )


class _PriceFile(msgspec.Struct, forbid_unknown_fields=True):
    """A user's price file."""

    price: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]


def _own_prices(text: str) -> dict[str, TokenPrice]:
    """The prices of a user's file by model in lower case; a UsageError names the entry and its field."""
    try:
        entries = msgspec.convert(tomllib.loads(text, parse_float=Decimal), _PriceFile).price
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        fault = schema_fault(error) if isinstance(error, msgspec.ValidationError) else error
        raise UsageError(f"is not a TOML file of [[price]] tables alone: {fault}") from None
    except (ValueError, ArithmeticError, RecursionError):
        raise UsageError("holds a number of too many digits, or is nested too deeply") from None
    prices: dict[str, TokenPrice] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            price = _own_price(entry)
        except UsageError as error:
            raise UsageError(f"[[price]] {number}: {error}") from None
        if prices.setdefault(price.model.casefold(), price) is not price:
            raise UsageError(f"[[price]] {number}: model: {short_repr(price.model)} is in the file twice")
    return prices


def _own_price(entry: Mapping[str, Any]) -> TokenPrice:
    """The price of one TOML table, in which a price may be an integer and `effective` a date."""
    fields = {name: Decimal(value) if type(value) is int else value for name, value in entry.items()}
    if type(date := entry.get("effective")) is dt.date:
        fields["effective"] = date.isoformat()
    _check({name: fields[name] for name in TokenPrice.__struct_fields__ if name in fields})
    try:
        return msgspec.convert(fields, TokenPrice)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{schema_fault(error)}; its fields are {', '.join(TokenPrice.__struct_fields__)}"
        ) from None


def _check(fields: Mapping[str, object]) -> None:
    """Raise UsageError for the first invalid field of a price."""
    for name, value in fields.items():
        if value is None and name in _OPTIONAL:
            continue
        if name in _USD_FIELDS:
            valid = is_amount(value, MAX_USD_PER_MTOK, MAX_DECIMALS)
            expected = f"a number from 0 to {MAX_USD_PER_MTOK} of at most {MAX_DECIMALS} decimals"
        else:
            valid = isinstance(value, str) and value.isprintable() and 0 < len(value.strip()) <= 200
            expected = "one line of text of at most 200 characters"
        if name == "effective":
            valid = valid and _starts_with_date(str(value))
            expected += " that starts with a date such as 2024-08-06 or 2025-02"
        if not valid:
            raise UsageError(f"{name}: must be {expected}, was {short_repr(value)}")


def _starts_with_date(text: str) -> bool:
    """Whether a text starts with a year, a month or a day: "2024", "2024-08", "2024-08-06 snapshot"."""
    date = text.partition(" ")[0]
    try:  # `fromisoformat` takes 20240806 and weeks too
        return dt.date.fromisoformat((date + "-01-01")[:10]).isoformat().startswith(date)
    except ValueError:
        return False


def is_amount(value: object, max_usd: int, max_decimals: int) -> bool:
    """Whether a value is a finite `Decimal` from 0 to `max_usd` of at most so many decimals."""
    if not (isinstance(value, Decimal) and value.is_finite() and not value.is_signed()):
        return False
    return int(value.as_tuple().exponent) >= -max_decimals and value <= max_usd


def _change_percent(earlier: Decimal, later: Decimal) -> float | None:
    return float(_ROUNDED.divide(100 * (later - earlier), earlier)) if earlier else None
