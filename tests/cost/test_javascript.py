"""The translation of Python functions to JavaScript: what node computes is what Python computes."""

import functools
import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from decodetax.harness.cost.page.javascript import Program
from decodetax.harness.cost.page.names import UntranslatableError

NODE = shutil.which("node")
SIZES = {"small": 2, ("large", 1): 3.5}


@dataclass(frozen=True, kw_only=True)
class Box:
    kind: ClassVar[str] = "box"
    width: float
    height: float = 2.0

    def __post_init__(self):
        if self.width < 0:
            raise ValueError(f"width: {self.width:.1f} is below 0")

    @property
    def area(self):
        return self.width * self.height

    def scaled(self, by, *, tall=False):
        return replace(self, height=self.height * by) if tall else replace(self, width=self.width * by)


@dataclass(frozen=True)
class Other:
    area: float = -1.0


def arithmetic():
    return [
        7 // 2,
        -7 // 2,
        -(-7 // 2),
        2**0.5,
        7 % 4,
        round(0.5),
        round(1.5),
        round(2.5),
        int(-1.5),
        divmod(7, 2),
    ]


def truth():
    empty, some = [], [0]
    return [
        1 if empty else 2,
        1 if some else 2,
        empty or "empty",
        some and 3,
        not empty,
        0 < len(some) <= 1,
        some is None,
    ]


def tables():
    merged = {**SIZES, "more": 1} | {"small": 4}
    return [
        merged["small"],
        merged["large", 1],
        "small" in merged,
        (1, 2) == (1, 2),
        sorted(merged.values()),
        max(merged, key=lambda name: merged[name] if name == "more" else 0),
        [name for name, size in merged.items() if size == 1],
        {Box(width=1.0): "equal"}[Box(width=1.0)],
        [1, 2, 3][-1],
        [1, 2, 3][1:],
        [*range(3), *(x * x for x in (4, 5))],
    ]


def loops():
    found = []
    for at, (name, _) in enumerate((("a", 1), ("b", 2))):
        if name == "c":
            break
        found.append((at, name))
    else:
        found.append("no break")
    below = 0
    while below < 10:
        below += 3
        if below == 6:
            break
    else:
        found.append("no break of while")
    return [found, below, sum(1 for _ in _counted(4))]


def _counted(count) -> Iterator[int]:
    for at in range(count):
        if at == 2:
            continue
        yield at
    yield from (7, 8)


def objects():
    box = Box(height=3.0, width=2.0)
    return [
        box.area,
        box.scaled(2).area,
        box.scaled(2, tall=True).area,
        box.kind,
        isinstance(box, Box | Other),
        Other().area,
    ]


def keywords():
    sizes = {"b": 2, "a": 1}
    return [_kept(1, *(2, 3), c=4), _kept(a=1, b=5), _named(**sizes), _cached(3), _cached(3)]


def _kept(a, *others, b=0, c=0, **more):
    return [a, list(others), b, c, list(more)]


def _named(a, b, c=10):
    return a + 2 * b + c


@functools.cache
def _cached(value):
    return value + 1


def numbers():
    return [
        math.ceil(1.2),
        math.fsum([0.5, 0.25]),
        math.isfinite(math.inf),
        min([3, 1, 2]),
        max(4, 5),
        min([], default=9),
        float("inf") > 1,
    ]


def texts():
    name = "a_b_c"
    return [
        f"{name!r} {0.256:.1%} {1234:,}",
        name.replace("_", "-"),
        ", ".join(sorted([name, "x"])),
        "b:c: d".partition(":")[2],
        name[:-2],
    ]


def matched():
    found = []
    for each in (Box(width=2.0), Other(), 3, "x"):
        match each:
            case Box(width=width):
                found.append(width)
            case Other() | 4:
                found.append("other")
            case 3:
                found.append("three")
            case _:
                found.append(None)
    return found


def caught():
    try:
        Box(width=-1.0)
    except ValueError as error:
        return "below 0" in str(error)
    return False


FUNCTIONS = (arithmetic, truth, tables, loops, objects, keywords, numbers, texts, matched, caught)


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: each.__name__)
def test_translated_function_gives_what_python_gives(function):
    program = Program()
    name = program.add(function, function.__name__)
    script = f'"use strict";\n{program.text()}\nconsole.log(JSON.stringify({name}()));'
    outcome = subprocess.run([NODE, "-"], input=script, capture_output=True, text=True, check=False)
    assert outcome.stderr == ""
    assert json.loads(outcome.stdout) == json.loads(json.dumps(function()))


def _with_statement():
    with open("file") as file:  # noqa: PTH123
        return file


def _unknown_name():
    return open("file")  # noqa: PTH123


def _deleted():
    found = {1: 2}
    del found[1]
    return found


@pytest.mark.parametrize("function", [_with_statement, _unknown_name, _deleted])
def test_what_has_no_javascript_is_refused_by_name(function):
    with pytest.raises(UntranslatableError, match=f"{function.__name__}|open"):
        Program().add(function, function.__name__)


def test_only_what_is_used_is_translated():
    program = Program()
    program.add(objects, "objects")
    text = program.text()
    assert "get area()" in text
    assert "SIZES" not in text
