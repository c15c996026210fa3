"""Command-line options that commands share, and parsers that turn a bad value into a one-line error."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from .errors import UsageError, printable
from .suggestions import meant_word

MAX_SIZE = 2**31 - 1
"""Largest size: an int32's."""

MAX_GPUS = 4096
"""Most GPUs of a deployment."""

Parser = Callable[[click.Context, click.Parameter, str | None], Any]


class UnclearError(ValueError):
    """A value that may mean several things: what it may mean, and what to write, without the value."""


def parsed(parse: Callable[[str], Any], expected: str) -> Parser:
    """A callback that parses an option's text, if given; a ValueError becomes one clear line."""

    def callback(_context: click.Context, param: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        try:
            return parse(value)
        except UnclearError as error:
            raise UsageError(f"{param.opts[-1]}: {value[:40]!r} {error}") from None
        except ValueError as error:
            raise UsageError(f"{param.opts[-1]}: {value[:40]!r} is not {expected}") from error

    return callback


def option(
    name: str,
    parse: Parser,
    metavar: str,
    help_text: str,
    *,
    dest: str | None = None,
    default: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option with a parser; help shows its default, if it has one."""
    names = (name, dest) if dest else (name,)
    return click.option(
        *names,
        callback=parse,
        metavar=metavar,
        help=help_text,
        default=default,
        show_default=default is not None,
    )


def complain(message: str) -> None:
    """Print a message of the program on stderr, in one line."""
    click.echo(f"decodetax: {printable(message)}", err=True)


def given() -> dict[str, str]:
    """The options given to the running command: by parameter name, as the user writes them."""
    context = click.get_current_context()
    return {
        str(param.name): param.opts[0]
        for param in context.command.params
        if context.get_parameter_source(str(param.name)) is not click.core.ParameterSource.DEFAULT
    }


def _size(text: str) -> int:
    """A whole number of at least 1 that an int32 holds; 8k is 8 x 1024, 1M is 1024 x 1024."""
    _refuse_thousands_separator(text)
    return _scaled(text, least=1)


def _scaled(text: str, *, least: int) -> int:
    """A whole number up to an int32's largest, with k, K, Ki for 1024 or M, Mi for 1024 x 1024 after it."""
    split = re.fullmatch(r"([0-9]+)(k|K|Ki|M|Mi)", text)
    if split is None:
        return _whole(text, least=least, most=MAX_SIZE)
    unit = 2**10 if split[2].lower().startswith("k") else 2**20
    return _whole(split[1], least=least, most=MAX_SIZE // unit) * unit


def _whole(text: str, *, least: int, most: int) -> int:
    digits = text.lstrip("0") or "0"
    if not (text.isascii() and text.isdecimal() and len(digits) < 20 and least <= int(digits) <= most):
        raise ValueError(text)
    return int(digits)


def _refuse_thousands_separator(text: str) -> None:
    """Refuses digits whose commas can only stand between thousands.

    Raises:
        UnclearError: they are such digits.
    """
    if re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+", text):
        raise UnclearError(f"has a thousands separator; write {text.replace(',', '')}")


def _refuse_unclear_list(text: str) -> None:
    """Refuses a list that reads as one number: 1,024, whose 024 is no size, or 16,384, a power of two.

    Raises:
        UnclearError: it is such a list.
    """
    if not re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+", text):
        return
    number = int(text.replace(",", ""))
    if ",0" in text:
        raise UnclearError(f"has a thousands separator, but a comma separates sizes; write {number}")
    if number.bit_count() == 1:
        sizes = text.replace(",", ", ")
        raise UnclearError(f"is a list or a thousands separator; write {number}, or '{sizes}' for the list")


def _sizes(text: str) -> tuple[int, ...]:
    """Sizes and ranges of them separated by commas; sorted, without duplicates.

    A range has its first size, its doublings and its last: 1-100 is 1, 2, 4, 8, 16, 32, 64, 100.
    """
    _refuse_unclear_list(text)
    sizes: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        size, end = _scaled(first.strip(), least=1), _scaled((last or first).strip(), least=1)
        if size > end or part.strip().endswith("-"):
            raise ValueError(text)
        while size < end:
            sizes.add(size)
            size *= 2
        sizes.add(end)
    return tuple(sorted(sizes))


def _lengths(text: str) -> tuple[int, ...]:
    """Whole numbers from 0 separated by commas, in the order given."""
    _refuse_unclear_list(text)
    return tuple(_scaled(part.strip(), least=0) for part in text.split(","))


def _tokens(text: str) -> int:
    """A whole number of tokens from 0; no suffix, as prices count tokens by 1000 and contexts by 1024."""
    _refuse_thousands_separator(text)
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?(k|K|Ki|M|Mi)", text):
        raise UnclearError("may count by 1000 or by 1024; write all digits")
    return _whole(text, least=0, most=2**53)


def _requests(text: str) -> tuple[int, int]:
    """Input and output tokens of a request, separated by a slash."""
    sizes, texts = [], text.split("/")
    for part in texts:
        try:
            sizes.append(_size(part.strip()))
        except UnclearError as error:
            raise UnclearError(f"{error}, not {part.strip()}") from None
    if len(sizes) != 2:
        raise ValueError(text)
    return sizes[0], sizes[1]


def positive_number(text: str, *, most: float, least: float = 0.0) -> float:
    """A number above 0, at least `least` and at most `most`.

    Raises:
        ValueError: it is no such number.
    """
    value = float(text)
    if not (text.isascii() and "_" not in text and 0 < value <= most and value >= least):
        raise ValueError(text)
    return value


def positive(expected: str, *, most: float, least: float = 0.0) -> Parser:
    """A callback that parses a number above 0; `expected` names the quantity in the error."""
    bounds = f"from {least:g} to {most}" if least else f"above 0, at most {most}"
    return parsed(lambda text: positive_number(text, most=most, least=least), f"{expected} {bounds}")


def _share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not (text.isascii() and "_" not in text and 0 <= value <= 1):
        raise ValueError(text)
    return value


def one_of(*words: str) -> Parser:
    """A callback that accepts one of a few words."""
    expected = f"one of {', '.join(words)}"

    def parse(text: str) -> str:
        if text not in words:
            hint = meant_word(text, words)
            raise UnclearError(f"is not {expected}" + (f"; {hint}" if hint else ""))
        return text

    return parsed(parse, expected)


MAX_USD_PER_HOUR = 1_000_000
MAX_SECONDS = 86_400

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
SEED = parsed(
    lambda text: _whole(text, least=0, most=2**63 - 1), "a whole number from 0 to 9223372036854775807"
)
SIZE = parsed(_size, f"a whole number from 1 to {MAX_SIZE}, such as 1024 or 8k")
SIZES = parsed(_sizes, f"a list of whole numbers from 1 to {MAX_SIZE}, such as 1,8,32 or 1-64 or 8k")
LENGTHS = parsed(_lengths, f"a list of whole numbers from 0 to {MAX_SIZE}, such as 1000,37")
TOKENS = parsed(_tokens, f"a whole number of tokens from 0 to {2**53}")
GPUS = parsed(lambda text: _whole(text, least=1, most=MAX_GPUS), f"a whole number from 1 to {MAX_GPUS}")
REQUESTS = parsed(
    _requests, f"INPUT/OUTPUT, two whole numbers of tokens from 1 to {MAX_SIZE}, such as 1024/1024 or 8k/1k"
)
SECONDS = parsed(
    lambda text: _whole(text, least=1, most=MAX_SECONDS),
    f"a whole number of seconds from 1 to {MAX_SECONDS}",
)
DOLLARS = positive("a number of dollars", most=MAX_USD_PER_HOUR)
SHARE = parsed(_share, "a share from 0 to 1")


def user_function_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option --provider: functions of the user's own; it may be repeated."""
    return click.option("--provider", "providers", multiple=True, metavar="MODULE:FUNCTION", help=help_text)


def gpus_option(
    help_text: str, *, required: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option --gpu, which takes several names: separated by spaces or commas, or repeated.

    The command gets `gpus` and `more_gpus`, which `gpu_names` joins.
    """
    option = click.option(
        "--gpu", "gpus", multiple=True, required=required, metavar="NAME [NAME ...]", help=help_text
    )
    following = click.argument("more_gpus", nargs=-1, metavar="[NAME ...]")
    return lambda command: option(following(command))


def gpu_names(*texts: str) -> list[str]:
    """The names in the texts of `gpus_option`."""
    return [name.strip() for text in texts for name in text.split(",")]


@contextlib.contextmanager
def user_code() -> Iterator[None]:
    """Runs functions of the user's own.

    What they print goes to stderr, as stdout holds the command's output alone. A working folder that they
    change is restored, as the names of output files are relative to it.
    """
    with contextlib.redirect_stdout(sys.stderr), contextlib.chdir(Path.cwd()):
        yield
