"""The price list and the cost of one request by it; each command imports what it needs when it runs."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core import options
from ..core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.records import Gap
    from .break_even import BreakEven
    from .prices import TokenPrice

MOST_TOKENS = 2**53
MOST_USD = 1_000_000
MOST_DECIMALS = 12


def _tokens(text: str) -> int:
    """A whole number of tokens, 0 among them."""
    if not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > MOST_TOKENS:
        raise ValueError(text)
    return int(text)


def _usd(text: str) -> Decimal:
    """An amount from 0 to MOST_USD, exactly as written."""
    if not re.fullmatch(r"([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?", text):
        raise ValueError(text)
    value = Decimal(text)
    exponent = value.as_tuple().exponent
    if value > MOST_USD or not isinstance(exponent, int) or exponent < -MOST_DECIMALS:
        raise ValueError(text)
    return value


def _per_tokens(text: str) -> int:
    """A power of ten, so that any price divides by it exactly."""
    if not re.fullmatch(r"10{0,9}", text):
        raise ValueError(text)
    return int(text)


TOKENS = options.parsed(_tokens, f"a whole number of tokens from 0 to {MOST_TOKENS}")
USD = options.parsed(
    _usd, f"a number of dollars from 0 to {MOST_USD} of at most {MOST_DECIMALS} decimals, such as 0.15"
)
PER_TOKENS = options.parsed(_per_tokens, "a power of ten from 1 to 1000000000")

PRICES = click.option(
    "--prices",
    "price_file",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="Prices of your own, added to the list: tables [[price]] of model, effective, input_usd_per_mtok, "
    "output_usd_per_mtok, source, and if you like cached_input_usd_per_mtok and family. One of a model that "
    "the list has takes its place.",
)
JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help='Print JSON on stdout, and nothing else there. Money is text with all its digits, such as "2.50"; '
    "tokens, ratios and percentages are numbers.",
)


SERVED = (
    click.option(
        "--served-model",
        default="llama-3.1-8b",
        show_default=True,
        metavar="NAME",
        help="Whose modelled gap stands beside the price ratio: a preset or the path of a config.json.",
    ),
    click.option(
        "--gpu", default="h100", show_default=True, metavar="NAME", help="Where it is served, in bf16."
    ),
    click.option(
        "--context",
        default="1024",
        show_default=True,
        callback=options.SIZE,
        metavar="N",
        help="Its cached tokens, and tokens of a prompt.",
    ),
    click.option(
        "--run",
        "run_file",
        type=click.Path(path_type=Path),
        metavar="RUN.json",
        help="A run of `decodetax run`, whose measured gap stands beside the price ratio too.",
    ),
)


def beside_a_gap(command: "Callable[..., None]") -> "Callable[..., None]":
    """Gives a command the options of what its price ratios are set against."""
    for option in reversed(SERVED):
        command = option(command)
    return command


def _break_even(served_model: str, gpu: str, context: int, run_file: Path | None) -> "BreakEven":
    from ..core.language_model import load_language_model
    from .break_even import BreakEven
    from .deployment import deployment

    try:
        model = load_language_model(served_model)
    except UsageError as error:
        raise UsageError(f"--served-model: {str(error).removeprefix('--model: ')}") from error
    gaps: tuple[Gap, ...] = ()
    if run_file is not None:
        from ..core.run_file import read_run

        gaps = tuple(read_run(run_file).gaps)
        if not gaps:
            raise UsageError(f"--run: {str(run_file)!r} holds no gap")
    return BreakEven(model=model, on=deployment(gpu), context=context, gaps=gaps)


@click.command("prices")
@PRICES
@beside_a_gap
@JSON
def prices_command(
    price_file: Path | None,
    served_model: str,
    gpu: str,
    context: int,
    run_file: Path | None,
    as_json: bool,
) -> None:
    """List what APIs charge for input and output tokens, with date and source, and how it changed.

    Prices are published ones, in US dollars per million tokens. "snapshot" marks the day on which a price
    was read, where it is not known since when it holds. A family is a line of models that replaced one
    another. Beside each ratio stands the batch at which the gap between an output and an input token of
    --served-model equals it, modelled on --gpu and, with --run, measured.
    """
    from .prices import price_changes, price_list

    prices = price_list(price_file)
    against = _break_even(served_model, gpu, context, run_file)
    if as_json:
        document = {
            "schema_version": 1,
            "break_even": against.to_json(),
            "prices": [
                price.to_json() | against.batches(price.output_over_input) for price in prices.values()
            ],
            "changes": [change.to_json() for change in price_changes(prices)],
        }
        click.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    from .price_tables import prices_text

    click.echo(prices_text(prices, against))


@click.command("price")
@click.option(
    "--input",
    "input_tokens",
    default="0",
    show_default=True,
    callback=TOKENS,
    metavar="N",
    help="Tokens of the request's input, cached ones included.",
)
@click.option(
    "--output",
    "output_tokens",
    default="0",
    show_default=True,
    callback=TOKENS,
    metavar="N",
    help="Tokens of its output.",
)
@click.option(
    "--cached-input",
    "cached_input_tokens",
    default="0",
    show_default=True,
    callback=TOKENS,
    metavar="N",
    help="How many of the --input tokens are charged at the cached price; at most --input.",
)
@click.option("--model", metavar="NAME", help="Whose prices: one of `decodetax prices`, or of --prices.")
@click.option("--input-price", callback=USD, metavar="X", help="In place of --model: $ per --per tokens.")
@click.option("--output-price", callback=USD, metavar="X", help="In place of --model, beside --input-price.")
@click.option(
    "--cached-input-price", callback=USD, metavar="X", help="Beside --input-price, for --cached-input."
)
@click.option(
    "--per",
    "per_tokens",
    default="1000000",
    show_default=True,
    callback=PER_TOKENS,
    metavar="N",
    help="How many tokens the prices given are for: a power of ten.",
)
@PRICES
@beside_a_gap
@JSON
def price_command(
    input_tokens: int,
    output_tokens: int,
    cached_input_tokens: int,
    model: str | None,
    input_price: Decimal | None,
    output_price: Decimal | None,
    cached_input_price: Decimal | None,
    per_tokens: int,
    price_file: Path | None,
    served_model: str,
    gpu: str,
    context: int,
    run_file: Path | None,
    as_json: bool,
) -> None:
    """Tell what one request costs at an API's prices, exactly: nothing is rounded.

    The prices are those of --model, or --input-price and --output-price. Cached input tokens are part of
    --input and charged at the cached price in place of the input price. Beside the price ratio stands the
    batch at which the gap of --served-model equals it.
    """
    against = _break_even(served_model, gpu, context, run_file)
    if model is None:
        price = _price_given(input_price, output_price, cached_input_price, per_tokens)
        _refuse_given({"price_file"}, "goes with --model, not with --input-price")
        if cached_input_tokens and cached_input_price is None:
            raise UsageError("--cached-input-price: is missing beside --cached-input and --input-price")
    else:
        alone = {"input_price", "output_price", "cached_input_price", "per_tokens"}
        _refuse_given(alone, "stands in place of --model, not beside it")
        from .prices import price_list, price_of

        price = price_of(model, price_list(price_file))
    from .prices import exact_text, request_terms, total_usd

    try:
        terms = request_terms(price, input_tokens, output_tokens, cached_input_tokens)
    except UsageError as error:
        field, _, problem = str(error).partition(":")
        raise UsageError(f"--{field.removesuffix('_tokens').replace('_', '-')}:{problem}") from error
    if as_json:
        document = {
            "schema_version": 1,
            "price": price.to_json() | ({"model": None, "effective": None} if model is None else {}),
            "terms": [term.to_json() for term in terms],
            "usd": exact_text(total_usd(terms)),
            "break_even": against.to_json() | against.batches(price.output_over_input),
        }
        click.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    from .price_tables import request_text

    click.echo(request_text(price, terms, against, per_tokens=per_tokens))


def _price_given(
    input_price: Decimal | None, output_price: Decimal | None, cached_input_price: Decimal | None, per: int
) -> "TokenPrice":
    """The prices of the options.

    Raises:
        UsageError: one of the two that are needed is missing.
    """
    if input_price is None and output_price is None:
        raise UsageError(
            "--model: is missing; name one of `decodetax prices`, or give --input-price and --output-price"
        )
    if input_price is None:
        raise UsageError("--input-price: is missing beside --output-price")
    if output_price is None:
        raise UsageError("--output-price: is missing beside --input-price")
    from .prices import TokenPrice, scaled_to_mtok

    return TokenPrice(
        model="prices as given",
        effective="",
        input_usd_per_mtok=scaled_to_mtok(input_price, per),
        cached_input_usd_per_mtok=(
            None if cached_input_price is None else scaled_to_mtok(cached_input_price, per)
        ),
        output_usd_per_mtok=scaled_to_mtok(output_price, per),
        source="the command line",
    )


def _refuse_given(names: set[str], why: str) -> None:
    """Raise UsageError where one of these options was given."""
    for name, option in options.given().items():
        if name in names:
            raise UsageError(f"{option}: {why}")
