"""`decodetax prices`, the price list, and `decodetax price`, the cost of one request: options and text."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from textwrap import fill
from typing import Any

import click

from ..core import options
from ..core.errors import UsageError, printable, short_repr
from ..core.gpus import rental_rows
from ..core.table import Column, Table, wide_option
from . import prices
from .break_even import BreakEven, BreakEvenOptions, break_even_options
from .memory import weight_formats
from .price_names import PriceMatch, find_price, is_price_of

MAX_USD = 1_000_000
MAX_DECIMALS = 12  # from 1e-12 per 1e9 tokens to MAX_USD per token: within the bounds of the price list

PRICES = click.option(
    "--prices",
    "price_file",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="Your own prices, which extend the list or replace entries: [[price]] tables with model, effective, "
    "input_usd_per_mtok, output_usd_per_mtok, source; optional: cached_input_usd_per_mtok, family.",
)
_PRICE_COLUMNS = {
    "model": Column("model"),
    "effective": Column("effective", wide=True),
    "input_usd_per_mtok": Column("input", show=prices.exact_text),
    "cached_input_usd_per_mtok": Column("cached input", show=prices.exact_text),
    "output_usd_per_mtok": Column("output", show=prices.exact_text),
    "output_over_input": Column("price ratio", show="{:.2f}".format),
    "modelled_batch": Column("modelled batch"),
    "measured_batch": Column("measured batch"),
    "source": Column("source", wide=True),
}
_CHANGE_COLUMNS = {
    "family": Column("family", wide=True),
    "earlier": Column("from"),
    "later": Column("to"),
    "input_change_percent": Column("input change", show="{:+.4g}%".format),
    "output_change_percent": Column("output change", show="{:+.4g}%".format),
    "earlier_ratio": Column("ratio before", show="{:.2f}".format),
    "later_ratio": Column("ratio after", show="{:.2f}".format),
}
_RENTAL_COLUMNS = {
    "gpu": Column("GPU"),
    "usd_per_gpu_hour": Column("$ per hour"),
    "basis": Column("basis"),
    "source": Column("source", wide=True),
}


def _usd(text: str) -> Decimal:
    is_number = re.fullmatch(r"(?=\.?[0-9])[0-9]*\.?[0-9]*([eE][+-]?[0-9]{1,2})?", text)
    if not (is_number and prices.is_amount(Decimal(text), MAX_USD, MAX_DECIMALS)):
        raise ValueError(text)
    return Decimal(text)


def _share(text: str) -> Decimal:
    share = _usd(text)
    if share > 1:
        raise ValueError(text)
    return share


def _usd_option(name: str, help_text: str) -> Callable[..., Any]:
    expected = f"a number of dollars from 0 to {MAX_USD} of at most {MAX_DECIMALS} decimals, such as 0.15"
    return click.option(name, callback=options.parsed(_usd, expected), metavar="X", help=help_text)


def _tokens_option(name: str, parameter: str, help_text: str) -> Callable[..., Any]:
    return click.option(
        name, parameter, default="0", show_default=True, callback=options.TOKENS, metavar="N", help=help_text
    )


@click.command("prices")
@PRICES
@break_even_options
@wide_option
@options.JSON
def prices_command(price_file: Path | None, against: BreakEvenOptions, wide: bool, as_json: bool) -> None:
    """List published API prices of tokens, how they changed, and rental prices of GPUs.

    Prices are in US dollars per million tokens; --wide adds date and source. "snapshot" after a date means
    that the price was read on that day and its first day is unknown. A family is a line of models that
    replaced one another. The price ratio is output price over input price. The batch shown is that at which
    the gap of --served-model falls to the price ratio, modelled on --gpu and, with --run, measured. In JSON,
    money is text with all its digits, such as "2.50".
    """
    listed, gap = prices.price_list(price_file), against.break_even()
    rows = [price.to_json() | gap.batches(price.output_over_input) for price in listed.values()]
    changes = [change._asdict() for change in prices.price_changes(listed)]
    if as_json:
        rentals = [{"provenance": "published", **rental} for rental in rental_rows()]
        _print_json(break_even=gap.to_json(), prices=rows, changes=changes, gpu_rentals=rentals)
        return
    click.echo(Table.select("Published prices, $ per 1M tokens", _PRICE_COLUMNS, rows).text(wide=wide))
    if changes:
        for change in changes:
            change |= {
                f"{name}_ratio": listed[change[name]].output_over_input for name in ("earlier", "later")
            }
        title = "Changes from one model of a family to the next"
        click.echo(f"\n{Table.select(title, _CHANGE_COLUMNS, changes).text(wide=wide)}")
    title = "Prices of an hour of one GPU; predict takes the lowest on demand"
    click.echo(f"\n{Table.select(title, _RENTAL_COLUMNS, rental_rows()).text(wide=wide)}")
    modelled = f"modelled batch: the smallest at which {gap.where} has a gap of at most the price ratio"
    notes = [f"{modelled}, whichever model the row is of"]
    if not gap.fits:
        notes = [f"no modelled batch: {_too_large(gap)}"]
    if gap.gaps:
        notes.append("measured batch: the batch at which the run's gap falls to the price ratio")
    if gap.fits or gap.gaps:
        notes.append("-: no such batch")
    click.echo("\n" + fill("; ".join(notes), 80))


def _too_large(against: BreakEven) -> str:
    return (
        f"{printable(against.model.name)} in {weight_formats(against.model)} with one sequence of "
        f"{against.context} tokens does not fit {against.gpus}; another --gpu, --dtype, --tensor-parallel or "
        "--context may"
    )


@click.command("price")
@_tokens_option("--input", "input_tokens", "Input tokens of the request, cached ones included.")
@_tokens_option("--output", "output_tokens", "Output tokens of the request.")
@_tokens_option("--cached-input", "cached_input_tokens", "Tokens of --input charged at the cached price.")
@click.option(
    "--cache-hits",
    callback=options.parsed(_share, "a share from 0 to 1 of at most 12 decimals, such as 0.9"),
    metavar="X",
    help="Instead of --cached-input: share of --input charged at the cached price, 0 to 1, in whole tokens.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="Model of the price list (`decodetax prices`), or of --prices; a family, such as gpt-4o, means its "
    "newest model.",
)
@_usd_option("--input-price", "Instead of --model: price of input tokens, $ per --per tokens.")
@_usd_option("--output-price", "Instead of --model: price of output tokens, $ per --per tokens.")
@_usd_option("--cached-input-price", "Instead of --model: price of cached input, $ per --per tokens.")
@click.option(
    "--per",
    default="1000000",
    show_default=True,
    callback=options.one_of(*(str(10**digits) for digits in range(10))),
    metavar="N",
    help="Number of tokens that the prices given are for, a power of ten.",
)
@PRICES
@break_even_options
@options.JSON
def price_command(against: BreakEvenOptions, as_json: bool, **asked: Any) -> None:
    """Compute the exact cost of one request at an API's prices.

    The prices are those of --model, or --input-price and --output-price; nothing is rounded. Cached input
    tokens are part of --input and are charged at the cached price. The batch shown is that at which the gap
    of --served-model falls to the price ratio, output over input. In JSON, money is text with all its digits,
    such as "2.50".
    """
    listed = {} if asked["model"] is None else prices.price_list(asked["price_file"])
    price, note = _asked_price(asked, listed)
    if asked["cache_hits"] and price.cached_input_usd_per_mtok is None:
        name = short_repr(price.model)
        raise UsageError(f"--cache-hits: must be 0, as {name} lists no price for cached input")
    counts = (asked["input_tokens"], asked["output_tokens"], _cached_input_tokens(asked))
    charges = prices.request_charges(price, *counts)
    gap = against.break_even(_preset_of(price) if listed else None)
    if not as_json:
        of_another = bool(listed) and not is_price_of(price, gap.model.name)
        click.echo(
            "\n".join(
                [
                    *([fill(note, 80) + "\n"] if note else []),
                    *_request_text(price, charges, int(asked["per"])),
                    *_break_even_text(price, gap, of_another=of_another),
                ]
            )
        )
        return
    _print_json(
        asked_model=asked["model"],
        price=price.to_json() | ({"model": None} if price.effective is None else {}),
        terms=[charge._asdict() for charge in charges],
        usd=prices.total_usd(charges),
        break_even=gap.to_json() | gap.batches(price.output_over_input),
    )


def _print_json(**document: Any) -> None:
    document = {"schema_version": 1, **document}
    click.echo(json.dumps(document, indent=1, allow_nan=False, default=prices.exact_text))


def _asked_price(asked: Mapping[str, Any], listed: Mapping[str, prices.TokenPrice]) -> PriceMatch:
    """The price of --model, or the one that the options give; UsageError if the options contradict."""
    given = options.given()
    if asked["model"] is not None:
        for name in ("input_price", "output_price", "cached_input_price", "per"):
            if name in given:
                raise UsageError(f"{given[name]}: cannot be combined with --model")
        return find_price(asked["model"], listed)
    for name in ("input_price", "output_price", "cached_input_price"):
        if asked[name] is None and (name != "cached_input_price" or _cached_input_tokens(asked)):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option}: is missing; give it, or --model with a name of `decodetax prices`")
    if "price_file" in given:
        raise UsageError("--prices: needs --model, and cannot be combined with --input-price")
    usd_per_mtok: dict[str, Any] = {
        f"{kind}_usd_per_mtok": prices.tokens_usd(prices.MTOK, asked[f"{kind}_price"], int(asked["per"]))
        for kind in ("input", "cached_input", "output")
        if asked[f"{kind}_price"] is not None
    }
    given_price = prices.TokenPrice(
        model="prices as given", effective=None, source="the command line", **usd_per_mtok
    )
    return PriceMatch(given_price, "")


def _cached_input_tokens(asked: Mapping[str, Any]) -> int:
    """The tokens charged at the cached price: --cached-input, or the share --cache-hits of --input."""
    if asked["cache_hits"] is None:
        return int(asked["cached_input_tokens"])
    if "cached_input_tokens" in options.given():
        raise UsageError("--cache-hits: cannot be combined with --cached-input")
    return int(asked["cache_hits"] * asked["input_tokens"])


def _preset_of(price: prices.TokenPrice) -> str | None:
    """The preset that is priced; None if the price is of another model."""
    from ..core.language_model import preset_table

    names = (str(row["model"]) for row in preset_table())
    return next((name for name in names if is_price_of(price, name)), None)


def _request_text(
    price: prices.TokenPrice, charges: Sequence[prices.Charge], per_tokens: int
) -> Iterator[str]:
    """The cost of one request, charge by charge with all digits; prices are per `per_tokens` tokens."""
    name = price.model if price.effective is None else f"{price.model}, effective {price.effective}"
    unit = {1: "token", 1000: "1K", prices.MTOK: "1M"}.get(per_tokens, str(per_tokens))
    money = (Column(f"$ per {unit}", show=prices.exact_text), Column("$", show=prices.exact_text))
    rows = tuple((c.kind, c.tokens, prices.tokens_usd(per_tokens, c.usd_per_mtok), c.usd) for c in charges)
    columns = (Column("kind"), Column("tokens"), *money)
    yield Table(title=f"{name} ({price.source})", columns=columns, rows=rows).text()
    yield f"\nThe request costs ${prices.exact_text(prices.total_usd(charges))}."


def _break_even_text(price: prices.TokenPrice, against: BreakEven, *, of_another: bool) -> Iterator[str]:
    """The price ratio, and the batches at which the gap falls to it; `of_another` model than the priced."""
    if price.output_over_input is None:
        return
    yield f"The price ratio of output to input is {price.output_over_input:.2f}."
    modelled, measured = against.batches(price.output_over_input).values()
    other = f"{', another model than the priced,' if of_another else ''}"
    if not against.fits:
        gap = f"No modelled batch: {_too_large(against)}."
    elif modelled is None:
        gap = f"The modelled gap of {against.where}{other} is above this ratio at every batch that fits."
    else:
        gap = f"The modelled gap of {against.where}{other} falls to this ratio at batch {modelled}."
    yield fill(gap, 80)
    if against.gaps:
        at = "no measured batch" if measured is None else f"batch {measured:.3g}"
        yield f"The measured gap of the run falls to this ratio at {at}."
