"""Names of models as users type them, and the entries of the price list that they mean."""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ..core.errors import UsageError, short_repr
from .prices import TokenPrice

_MOST_CANDIDATES = 12

# Words that a model's name may carry and that do not change its price.
_WORDS_WITHOUT_MEANING = frozenset({"instruct", "it", "chat", "latest", "versatile", "hf", "meta"})
_DATE = re.compile(r"(?<![0-9])20[0-9]{2}-?[01][0-9]-?[0-3][0-9](?![0-9])")
_PARENTHESES = re.compile(r"\s*\(.*\)")
# A number keeps its parts together, so that 3.1-8b and 3.8-1b differ.
_WORD = re.compile(r"[0-9]+(?:[\W_]+[0-9]+)*|[^\W\d_]+|\d")


class PriceMatch(NamedTuple):
    """The entry of the price list that a name means, and how the name was read; "" if it is the entry's."""

    price: TokenPrice
    note: str


class _Name:
    """A name without case, punctuation and words without meaning."""

    def __init__(self, in_order: Sequence[str]) -> None:
        self.in_order = tuple(in_order)
        self.words = sorted(in_order)

    def matches(self, other: "_Name") -> bool:
        """Whether the words are equal, in any order, or the letters and digits in this order."""
        return bool(self.words) and (self.words == other.words or self.joined == other.joined)

    @property
    def joined(self) -> str:
        return "".join(self.in_order).replace(".", "")

    def without_first_word(self) -> "_Name":
        """The name as "sonnet-4" of "claude-sonnet-4"; empty where only a number is left."""
        left = self.in_order[1:]
        return _Name(left if any(word.isalpha() for word in left) else ())


_Forms: TypeAlias = Callable[[TokenPrice], Iterable[_Name]]


class _Spelling(NamedTuple):
    """A text to look for, and whether the name has a date, so that it is no family's."""

    text: str
    has_own_date: bool


def find_price(name: str, prices: Mapping[str, TokenPrice], *, option: str = "--model") -> PriceMatch:
    """The entry that a name means.

    A name may differ from that of the list in case, punctuation and order of words, and may lack a provider
    ("llama-3.1-8b"), a remark in parentheses ("gemini-2.5-pro") or the first word ("sonnet-4"). It may have
    an organisation ("openai/gpt-4o-mini") and, where the entry has none, a date ("gpt-4o-mini-2024-07-18").
    The name of a family ("gpt-4o") means its newest entry.

    Raises:
        UsageError: no entry or several have that name; one line that starts with the option and lists them.
    """
    by_name = {entry.casefold(): price for entry, price in prices.items()}
    if name.casefold() in by_name:
        return PriceMatch(by_name[name.casefold()], "")
    for asked, forms in _readings(name):
        found = [price for price in prices.values() if any(map(asked.matches, forms(price)))]
        if found:
            return _one_of(found, name, option)
    raise UsageError(f"{option}: {_unknown(name, prices)}")


def prices_of_served_model(name: str, prices: Mapping[str, TokenPrice]) -> tuple[TokenPrice, ...]:
    """The entries of a model that anybody may serve, by any provider; of a family only the newest.

    The entry of the same name comes first, then the others from the newest to the oldest.
    """
    found = [
        price for price in prices.values() if is_price_of(price, name) and not _is_outdated(price, prices)
    ]
    same = [price for price in found if _name(price.model).words == _name(name).words]
    return (*same, *sorted((price for price in found if price not in same), key=_date, reverse=True))


def is_price_of(price: TokenPrice, served_model: str) -> bool:
    """Whether an entry is a price of a model that anybody may serve, whoever the provider is."""
    for spelling in _spellings(served_model):
        asked, forms = (
            _name(spelling.text),
            _short_names if spelling.has_own_date else _short_and_family_names,
        )
        if any(asked.words == form.words for form in (_name(price.model), *forms(price)) if form.words):
            return True
    return False


def _is_outdated(price: TokenPrice, prices: Mapping[str, TokenPrice]) -> bool:
    family = [each for each in prices.values() if each.family is not None and each.family == price.family]
    return bool(family) and price is not _newest(family)


def _readings(name: str) -> Iterator[tuple["_Name", "_Forms"]]:
    """Ways to read a name, and the forms of an entry's name that each is compared with; the best first."""
    for spelling in _spellings(name):
        asked = _name(spelling.text)
        yield asked, _full_name
        if spelling.has_own_date:
            yield asked, _short_names
            yield asked, _short_names_without_first_word
        else:
            yield asked, _short_and_family_names
            yield asked, _short_and_family_names_without_first_word


def _spellings(name: str) -> Iterator[_Spelling]:
    """A name, that behind its last slash, and both without a date; a provider before the slash is kept."""
    if not name.isprintable():
        return
    behind = name.rpartition("/")[2]
    provider = re.match(r"[^\W_]+", name.partition("/")[0]) if "/" in name else None
    spelt = dict.fromkeys([name, *([f"{provider[0]} {behind}"] if provider else []), behind])
    dated = _DATE.search(name) is not None
    yield from (_Spelling(text, dated) for text in spelt)
    if dated:
        yield from (_Spelling(_DATE.sub("", text), dated) for text in spelt)


@functools.lru_cache(maxsize=1024)
def _name(text: str) -> _Name:
    words = []
    for match in _WORD.findall(text.casefold()[:200]):
        word = re.sub(r"[\W_]+", ".", match)
        if word == "turbo" and "instruct" in text.casefold():
            continue  # a provider's quantised deployment of an open model
        if word not in _WORDS_WITHOUT_MEANING:
            words.append(word)
    return _Name(words)


def _full_name(price: TokenPrice) -> list[_Name]:
    return [_name(price.model)]


def _short_names(price: TokenPrice) -> list[_Name]:
    """An entry's name without a remark in parentheses, and without its provider."""
    plain = _PARENTHESES.sub("", price.model)
    return [_name(plain), _name(plain.partition(" ")[2])]


def _short_and_family_names(price: TokenPrice) -> list[_Name]:
    return [*_short_names(price), *([] if price.family is None else [_name(price.family)])]


def _short_names_without_first_word(price: TokenPrice) -> list[_Name]:
    return [name.without_first_word() for name in _short_names(price)]


def _short_and_family_names_without_first_word(price: TokenPrice) -> list[_Name]:
    return [name.without_first_word() for name in _short_and_family_names(price)]


def _one_of(found: list[TokenPrice], name: str, option: str) -> PriceMatch:
    """The only entry found, or the newest of the one family that all belong to."""
    families = {price.family for price in found}
    if len(found) > 1 and (len(families) > 1 or None in families):
        raise UsageError(f"{option}: {short_repr(name)} may be {_listed(found, ' or ')}; name one of them")
    price = _newest(found)
    newest = f", the newest listed of the family {price.family}" if len(found) > 1 else ""
    return PriceMatch(price, f"{short_repr(name)} is read as {price.model}{newest}.")


def _unknown(name: str, prices: Mapping[str, TokenPrice]) -> str:
    asked = set(_name(name).words)
    with_words = [price for price in prices.values() if asked and asked <= set(_name(price.model).words)]
    if len(with_words) > 1:
        return f"{short_repr(name)} may be {_listed(with_words, ' or ')}; name one of them"
    by_name = {entry.casefold(): price for entry, price in prices.items()}
    near = difflib.get_close_matches(name.casefold()[:80], by_name, n=5, cutoff=0.5)
    nearest = list(
        {price.model: price for price in [*with_words, *(by_name[each] for each in near)]}.values()
    )
    hint = (
        f"the nearest are {_listed(nearest, ', ')}; `decodetax prices`" if nearest else "`decodetax prices`"
    )
    return f"{short_repr(name)} is not in the price list; {hint} shows all"


def _listed(prices: Iterable[TokenPrice], last: str) -> str:
    names = [price.model for price in prices]
    if len(names) > _MOST_CANDIDATES:
        names = [*names[:_MOST_CANDIDATES], f"{len(names) - _MOST_CANDIDATES} others"]
    return ", ".join(names[:-1]) + (last if len(names) > 1 else "") + names[-1]


def _newest(prices: list[TokenPrice]) -> TokenPrice:
    """The entry of the latest date; of equal dates the last of the list, which goes from old to new."""
    return max(enumerate(prices), key=lambda each: (_date(each[1]), each[0]))[1]


def _date(price: TokenPrice) -> str:
    return str(price.effective).partition(" ")[0]
