"""What `decodetax tune` found, as text."""

from collections.abc import Iterator, Mapping
from typing import Any

from tabulate import tabulate

from ..core.units import seconds

SHOWN = 5
"""Of a case's tilings that were timed, the fastest; the JSON has all."""


def tune_text(document: Mapping[str, Any]) -> str:
    """The cases one after another, then where the winners are kept."""
    device, versions = document["environment"]["device"], document["environment"]["versions"]
    blocks = [f"{device['name']}, Triton {versions['triton']}"]
    blocks += ["\n".join(_case_lines(case)) for case in document["cases"]]
    if document["interrupted"]:
        blocks.append("Interrupted: the cases after these were not searched.")
    won = sum(case["winner"] is not None for case in document["cases"])
    blocks.append(
        f"{won} of {len(document['cases'])} cases have a tiling better than the default; "
        f"`decodetax run` takes them from {document['cache']}"
    )
    return "\n\n".join(blocks)


def _case_lines(case: Mapping[str, Any]) -> Iterator[str]:
    yield case["case"]
    if case["status"] != "ok":
        yield f"{case['status'].upper()}: the default: {case['reason']}"
        return
    trials, default = case["trials"], case["default"]
    timed = sorted((t for t in trials if t["status"] == "ok"), key=lambda t: t["time_s"]["median"])
    shown = [t for rank, t in enumerate(timed) if rank < SHOWN or t["tiling"] == default]
    rows = [(name_of(t["tiling"], default), seconds(t["time_s"]["median"]), _interval(t)) for t in shown]
    title = f"tiling (fastest of {len(timed)} timed)"
    yield tabulate(rows, headers=(title, "median", "95% interval"), disable_numparse=True)
    waiting: dict[str, int] = {}
    for trial in trials:
        if trial["status"] == "failed":
            yield f"rejected: {name_of(trial['tiling'], default)}: {trial['reason']}"
        elif trial["status"] != "ok":
            waiting[trial["reason"]] = waiting.get(trial["reason"], 0) + 1
    yield from (
        f"{count} {'tiling' if count == 1 else 'tilings'} {reason}" for reason, count in waiting.items()
    )
    yield _verdict(case)


def _verdict(case: Mapping[str, Any]) -> str:
    duel = case["duel"]
    if duel is None:
        return "the default stays: no other tiling was tried and passed"
    ratio, name = duel["ratio"], name_of(duel["challenger"], case["default"])
    rounds = f"won {duel['rounds_won']} of {len(duel['default_s'])} rounds"
    share = (
        f"{ratio['median']:.1%} of the default's time ({ratio['low']:.1%} to {ratio['high']:.1%}, {rounds})"
    )
    if duel["won"]:
        return f"won: {name}: {share}, {1 / ratio['median']:.2f} times as fast"
    return f"the default stays: {name} takes {share}, not better by more than the noise"


def name_of(tiling: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """A tiling told by what differs from the default; the default by all of it."""
    if tiling == default:
        return "default: " + ", ".join(f"{name} {value}" for name, value in default.items())
    return ", ".join(f"{name} {value}" for name, value in tiling.items() if value != default[name])


def _interval(trial: Mapping[str, Any]) -> str:
    return f"{seconds(trial['time_s']['low'])} to {seconds(trial['time_s']['high'])}"
