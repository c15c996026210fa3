"""What APIs charge for tokens: a price list, what a request costs by it, and how prices changed.

Money is `Decimal`. Sums and products of it are exact: what would have to be rounded raises instead.
"""

import dataclasses
import datetime as dt
import difflib
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow, localcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from ..core.data_table import data_table
from ..core.errors import UsageError, shown

MOST_TOKENS = 2**53
MOST_USD_PER_MTOK = 10**12
MOST_DECIMALS = 18

_MTOK = 1_000_000
_ROUNDED = Context(prec=28)
_FILE_BYTES_AT_MOST = 2**20  # some thousand prices; this keeps a wrong path from being read whole
_CHARACTERS_AT_MOST = 200
_NAMES_SHOWN = 5

_USD_FIELDS = ("input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok")
_REQUIRED = ("model", "effective", "input_usd_per_mtok", "output_usd_per_mtok", "source")
_FIELDS = (*_REQUIRED, "cached_input_usd_per_mtok", "family")
# A year, a month or a day, and perhaps a word on it: "2024-08-06", "2025-02", "2026-08-21 snapshot".
_EFFECTIVE = re.compile(r"(?P<date>\d{4}(-\d{2}){0,2})( .+)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class TokenPrice:
    """What an API charges for the tokens of a model, in US dollars per million tokens.

    Attributes:
        model: name in the price list, such as "gpt-4o-2024-08-06".
        family: the line of models that replaced one another which this is of, such as "gpt-4o"; or None.
        effective: since when, as a date that may lack day or month; "snapshot" after it marks the day on
            which the price was read, where it is not known since when it holds.
        input_usd_per_mtok: of an input token that no cache holds.
        cached_input_usd_per_mtok: of an input token that the API's prompt cache holds, or None where none is
            listed.
        output_usd_per_mtok: of an output token.
        source: who lists it.

    Raises:
        UsageError: a price is no finite `Decimal` from 0 to MOST_USD_PER_MTOK of at most MOST_DECIMALS
            decimals.
    """

    model: str
    family: str | None = None
    effective: str
    input_usd_per_mtok: Decimal
    cached_input_usd_per_mtok: Decimal | None = None
    output_usd_per_mtok: Decimal
    source: str

    def __post_init__(self) -> None:
        for field in _USD_FIELDS:
            value = getattr(self, field)
            if not (_is_price(value) or (value is None and field == "cached_input_usd_per_mtok")):
                raise UsageError(f"{field}: must be {_A_PRICE}, was {_told(value)}")

    @property
    def output_over_input(self) -> Decimal | None:
        """An output token's price over an input token's, to 28 digits; None where input is free."""
        return _over(self.output_usd_per_mtok, self.input_usd_per_mtok)

    def to_json(self) -> dict[str, Any]:
        """The fields and the ratio: money as exact text, the ratio as a number."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        money = {name: None if fields[name] is None else exact_text(fields[name]) for name in _USD_FIELDS}
        return {**fields, **money, "output_over_input": _number(self.output_over_input)}


@dataclass(frozen=True, kw_only=True)
class PriceChange:
    """From one model of a family to the next.

    Attributes:
        family: of both.
        earlier: the price that was replaced.
        later: the price that replaced it.
    """

    family: str
    earlier: TokenPrice
    later: TokenPrice

    @property
    def input_change_percent(self) -> Decimal | None:
        """By how much an input token's price rose; below 0 where it fell, None where it had been free."""
        return _change_percent(self.earlier.input_usd_per_mtok, self.later.input_usd_per_mtok)

    @property
    def output_change_percent(self) -> Decimal | None:
        """The same of an output token."""
        return _change_percent(self.earlier.output_usd_per_mtok, self.later.output_usd_per_mtok)

    def to_json(self) -> dict[str, Any]:
        """The names of both models and the changes, which are numbers."""
        return {
            "family": self.family,
            "earlier": self.earlier.model,
            "later": self.later.model,
            "input_change_percent": _number(self.input_change_percent),
            "output_change_percent": _number(self.output_change_percent),
        }


@dataclass(frozen=True, kw_only=True)
class CostTerm:
    """One kind of token of a request.

    Attributes:
        kind: "input" (no cached one among them), "cached input" or "output".
        tokens: how many.
        usd_per_mtok: what a million of them costs.
    """

    kind: str
    tokens: int
    usd_per_mtok: Decimal

    @property
    def usd(self) -> Decimal:
        """What they cost, exactly."""
        with _exactly():
            return self.tokens * self.usd_per_mtok / _MTOK

    def to_json(self) -> dict[str, Any]:
        """Kind, tokens, and money as exact text."""
        return {
            "kind": self.kind,
            "tokens": self.tokens,
            "usd_per_mtok": exact_text(self.usd_per_mtok),
            "usd": exact_text(self.usd),
        }


def request_terms(
    price: TokenPrice, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0
) -> tuple[CostTerm, ...]:
    """What a request is charged for: input and output, and cached input where there is some.

    Args:
        price: of the model that serves it.
        input_tokens: all of its input, what a prompt cache holds included.
        output_tokens: of the answer.
        cached_input_tokens: the part of `input_tokens` that is charged at the cached price.

    Raises:
        UsageError: a count is no whole number from 0 to MOST_TOKENS, there are no tokens at all, or the
            cached ones are more than the input or have no price.
    """
    counts = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cached_input_tokens": cached_input_tokens,
    }
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count <= MOST_TOKENS:
            raise UsageError(f"{name}: must be a whole number from 0 to {MOST_TOKENS}, was {_told(count)}")
    if cached_input_tokens > input_tokens:
        raise UsageError(
            f"cached_input_tokens: {cached_input_tokens} is more than the input of {input_tokens} tokens "
            "that it is a part of"
        )
    if not input_tokens and not output_tokens:
        raise UsageError("input_tokens: is 0, and so is the output; a request has at least 1 token")
    terms = [
        CostTerm(
            kind="input",
            tokens=input_tokens - cached_input_tokens,
            usd_per_mtok=price.input_usd_per_mtok,
        )
    ]
    if cached_input_tokens:
        if price.cached_input_usd_per_mtok is None:
            raise UsageError(
                f"cached_input_tokens: {shown(price.model)} lists no price for cached input; leave it out, "
                "or give one of your own"
            )
        terms.append(
            CostTerm(
                kind="cached input",
                tokens=cached_input_tokens,
                usd_per_mtok=price.cached_input_usd_per_mtok,
            )
        )
    terms.append(CostTerm(kind="output", tokens=output_tokens, usd_per_mtok=price.output_usd_per_mtok))
    return tuple(terms)


def total_usd(terms: Iterable[CostTerm]) -> Decimal:
    """What all of them cost together, exactly."""
    with _exactly():
        return sum((term.usd for term in terms), Decimal(0))


def request_cost(
    price: TokenPrice, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0
) -> Decimal:
    """What one request costs in US dollars, exactly; arguments and errors as those of `request_terms`."""
    return total_usd(request_terms(price, input_tokens, output_tokens, cached_input_tokens))


def scaled_to_mtok(usd: Decimal, per_tokens: int) -> Decimal:
    """Turns a price per so many tokens, a power of ten, into one per million, exactly."""
    with _exactly():
        return usd * _MTOK / per_tokens


def scaled_from_mtok(usd_per_mtok: Decimal, per_tokens: int) -> Decimal:
    """The other way: a price per million tokens into one per so many, a power of ten."""
    with _exactly():
        return usd_per_mtok * per_tokens / _MTOK


def exact_text(usd: Decimal) -> str:
    """All digits of an amount, two decimals at least, never an exponent: "19.00", "0.00825"."""
    whole, _, decimals = f"{usd:f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def price_list(path: Path | None = None) -> Mapping[str, TokenPrice]:
    """The prices by model, in the order of the list.

    Args:
        path: a price file, whose prices are added; one of a model that the list has, in upper or lower case,
            takes its place.

    Raises:
        UsageError: the file cannot be read or is no price file; one line that starts with `--prices:` and
            names the entry and its field.
    """
    listed = {price.model.casefold(): price for price in map(_listed_price, data_table("prices.csv"))}
    if path is not None:
        listed.update(_own_prices(path))
    return MappingProxyType({price.model: price for price in listed.values()})


def price_of(model: str, prices: Mapping[str, TokenPrice]) -> TokenPrice:
    """The price of a model, named in upper or lower case.

    Raises:
        UsageError: there is none; one line that starts with `--model:` and names the nearest.
    """
    by_name = {name.casefold(): price for name, price in prices.items()}
    asked = model.casefold()
    if asked in by_name:
        return by_name[asked]
    beginning = [name for name in by_name if asked and name.startswith(asked)]
    alike = difflib.get_close_matches(asked, by_name, n=_NAMES_SHOWN, cutoff=0.3)
    nearest = [by_name[name].model for name in dict.fromkeys([*beginning, *alike])][:_NAMES_SHOWN]
    hint = f"the nearest are {', '.join(nearest)}; " if nearest else ""
    raise UsageError(
        f"--model: {shown(model)} is not in the price list; {hint}`decodetax prices` shows all of it"
    )


def price_changes(prices: Mapping[str, TokenPrice]) -> tuple[PriceChange, ...]:
    """Each step from one model of a family to the next, by date; of one date, in the order of the list."""
    families: dict[str, list[TokenPrice]] = {}
    for price in prices.values():
        if price.family is not None:
            families.setdefault(price.family, []).append(price)
    return tuple(
        PriceChange(family=family, earlier=earlier, later=later)
        for family, members in families.items()
        for earlier, later in itertools.pairwise(
            sorted(members, key=lambda price: price.effective.partition(" ")[0])
        )
    )


def _listed_price(row: Mapping[str, str]) -> TokenPrice:
    cached = row["cached_input_usd_per_mtok"]
    return TokenPrice(
        model=row["model"],
        family=row["family"] or None,
        effective=row["effective"],
        input_usd_per_mtok=Decimal(row["input_usd_per_mtok"]),
        cached_input_usd_per_mtok=Decimal(cached) if cached else None,
        output_usd_per_mtok=Decimal(row["output_usd_per_mtok"]),
        source=row["source"],
    )


def _own_prices(path: Path) -> dict[str, TokenPrice]:
    """The prices of a user's file by name in lower case."""
    found: dict[str, TokenPrice] = {}
    try:
        for number, entry in enumerate(_entries(_read_toml(path)), start=1):
            price = _own_price(number, entry)
            if found.setdefault(price.model.casefold(), price) is not price:
                _refuse_second(number, price)
    except UsageError as error:
        raise UsageError(f"--prices: {shown(str(path))}: {error}") from None
    return found


def _entries(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tables of a price file, which has nothing else and one at least."""
    if unknown := [key for key in document if key != "price"]:
        raise UsageError(f"{shown(unknown[0])} is no key of a price file, which holds [[price]] alone")
    entries = document.get("price", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"price: must be tables, each headed [[price]], was {_told(entries)}")
    if not entries:
        raise UsageError("holds no [[price]]")
    return entries


def _refuse_second(number: int, price: TokenPrice) -> NoReturn:
    raise UsageError(f"[[price]] {number}: model: {shown(price.model)} stands in the file twice")


def _read_toml(path: Path) -> dict[str, Any]:
    """Reads a file of TOML, or says in one line why there is none."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError("is not a regular file")
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_AT_MOST + 1)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or type(error).__name__}") from None
    if len(content) > _FILE_BYTES_AT_MOST:
        raise UsageError(f"is too large for a price file: more than {_FILE_BYTES_AT_MOST // 2**20} MiB")
    try:
        return tomllib.loads(content.decode("utf-8-sig"), parse_float=Decimal)
    except UnicodeDecodeError as error:
        raise UsageError(f"is not UTF-8: byte {error.start} cannot be decoded") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"is not TOML: {error}") from None
    except (ValueError, ArithmeticError):  # an integer of thousands of digits, an exponent past any Decimal
        raise UsageError("holds a number of too many digits") from None
    except RecursionError:
        raise UsageError("is nested too deeply") from None


def _own_price(number: int, entry: Mapping[str, Any]) -> TokenPrice:
    """A price from a table of the user's file; a UsageError starts with the table's number and the field."""
    try:
        return TokenPrice(**_own_fields(entry))
    except UsageError as error:
        raise UsageError(f"[[price]] {number}: {error}") from None


def _own_fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := [field for field in entry if field not in _FIELDS]:
        raise UsageError(f"{shown(unknown[0])}: is no field; those are {', '.join(_FIELDS)}")
    if missing := [field for field in _REQUIRED if field not in entry]:
        raise UsageError(f"{missing[0]}: is missing")
    return {field: _own_value(field, value) for field, value in entry.items()}


def _own_value(field: str, value: object) -> Any:
    """What TOML gives as what a price has; whether a number is a price is for the price itself to judge."""
    if field in _USD_FIELDS:
        return Decimal(value) if type(value) is int else value
    return _effective(value) if field == "effective" else _text(field, value)


def _text(field: str, value: object) -> str:
    if not (isinstance(value, str) and value.strip() and value.isprintable()):
        raise UsageError(f"{field}: must be one line of text, was {_told(value)}")
    if len(value) > _CHARACTERS_AT_MOST:
        raise UsageError(f"{field}: must have at most {_CHARACTERS_AT_MOST} characters, had {len(value)}")
    return value


def _effective(value: object) -> str:
    """A date of TOML, or a text that starts with a date."""
    if type(value) is dt.date:
        return value.isoformat()
    text = _text("effective", value)
    if not _starts_with_date(text):
        raise UsageError(
            f"effective: must start with a date such as 2024-08-06 or 2025-02, was {_told(text)}"
        )
    return text


def _starts_with_date(text: str) -> bool:
    match = _EFFECTIVE.fullmatch(text)
    if match is None:
        return False
    date = match["date"]
    try:
        dt.date.fromisoformat(date + "0000-01-01"[len(date) :])  # the first of a month, of a year
    except ValueError:
        return False
    return True


_A_PRICE = f"a number from 0 to {MOST_USD_PER_MTOK} of at most {MOST_DECIMALS} decimals"


def _is_price(value: object) -> bool:
    if not isinstance(value, Decimal) or value.is_signed():
        return False
    exponent = value.as_tuple().exponent  # a letter where the value is infinite or no number
    return isinstance(exponent, int) and exponent >= -MOST_DECIMALS and value <= MOST_USD_PER_MTOK


def _told(value: object) -> str:
    """A value for a message; a number of thousands of digits by its kind alone."""
    if isinstance(value, Decimal):
        return shown(str(value)).replace("'", "")
    if isinstance(value, int) and abs(value) > 10**40:
        return "an integer of over 40 digits"
    return shown(value)


def _exactly() -> AbstractContextManager[Context]:
    """A context in which what would have to be rounded raises; 100 digits hold any cost that can be."""
    return localcontext(Context(prec=100, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow]))


def _over(part: Decimal, whole: Decimal) -> Decimal | None:
    return _ROUNDED.divide(part, whole) if whole else None


def _change_percent(earlier: Decimal, later: Decimal) -> Decimal | None:
    with _exactly():
        rise = 100 * (later - earlier)
    return _over(rise, earlier)


def _number(value: Decimal | None) -> float | None:
    return None if value is None else float(value)
