"""What a wrong name may have meant: commands, options, dtypes, GPUs and models, by the names others use."""

import difflib
import functools
import re
from collections.abc import Collection, Iterable, Mapping

import click

from .data_table import data_table


def meant_command(name: str, commands: Collection[str]) -> str | None:
    """The command that others call by that name."""
    return _known_as("command", name, commands)


def meant_option(name: str, command: click.Command) -> str | None:
    """The option of a command that others call by that name, such as --tensor-parallel for --tp."""
    return _known_as("option", name.lstrip("-").replace("_", "-").lower(), _options(command))


def did_you_mean(names: Iterable[str]) -> str:
    """A question that names the names, or nothing without any."""
    asked = " or ".join(dict.fromkeys(names))
    return f"did you mean {asked}?" if asked else ""


def meant_word(word: str, words: Collection[str]) -> str:
    """Which of a few words, such as dtypes, another word may mean: a question, or nothing."""
    key = _key(word)
    same = [each for each in words if _key(each) == key]
    known = _known_as("dtype", key, words)
    near = difflib.get_close_matches(word[:80].lower(), words, n=2)
    return did_you_mean(same or ([known] if known else near))


def vendor(name: str) -> str | None:
    """What a device of that name is, such as "an AMD GPU"; None for a name like those of NVIDIA GPUs."""
    for pattern, what in _others("gpu").items():
        if re.fullmatch(pattern, name.strip(), re.IGNORECASE):
            return what
    return None


def counted(name: str) -> tuple[str, int] | None:
    """The name and the number of a text such as 2xh100, 2 x h100, h100x2, h100*2 or h100:2."""
    text, times = name.strip(), r" ?[x*:\u00d7] ?"
    found = re.fullmatch(rf"(?P<count>\d{{1,5}}){times}(?P<name>\S.*)", text, re.IGNORECASE)
    found = found or re.fullmatch(rf"(?P<name>.*\S){times}(?P<count>\d{{1,5}})", text, re.IGNORECASE)
    return (found["name"], int(found["count"])) if found and int(found["count"]) else None


def option_of_command(name: str) -> bool:
    """Whether the running command has an option."""
    context = click.get_current_context(silent=True)
    return context is not None and name in _options(context.command)


def _options(command: click.Command) -> list[str]:
    return [name for param in command.params for name in param.opts]


def _known_as(kind: str, name: str, names: Collection[str]) -> str | None:
    """The first of the names meant by another name that exists here."""
    meant = _others(kind).get(name, "").split()
    return next((each for each in meant if each in names), None)


@functools.cache
def _others(kind: str) -> Mapping[str, str]:
    return {row["name"]: row["meant"] for row in data_table("other_names.csv") if row["kind"] == kind}


def _key(word: str) -> str:
    return re.sub(r"[\s_.-]", "", word).lower()
