"""The checked claims as a page."""

from collections.abc import Sequence
from textwrap import wrap

from ..core.units import number, seconds
from .claims import VERDICTS, Claim, Facts, Figure


def claims_text(facts: Facts, claims: Sequence[Claim]) -> str:
    """Each claim with its verdict, its condition, and the figures that it rests on."""
    counts = ", ".join(
        f"{sum(claim.verdict == verdict for claim in claims)} {verdict.replace('holds', 'hold', 1)}"
        if verdict.startswith("holds")
        else f"{sum(claim.verdict == verdict for claim in claims)} do not hold"
        for verdict in VERDICTS
    )
    heading = f"The article's claims, {facts.provenance} for {facts.where}: {counts}"
    return "\n\n".join((heading, *map(_claim, claims)))


def _claim(claim: Claim) -> str:
    lines = [f"{claim.number}. {claim.claim}", f"   {claim.verdict.upper()}"]
    lines += [f"   {line}" for line in wrap(claim.condition, 100)]
    width = max(len(figure.what) for figure in claim.figures)
    lines += [
        f"   {figure.what:<{width}}  {_value(figure)} ({figure.provenance})" for figure in claim.figures
    ]
    return "\n".join(lines)


def _value(figure: Figure) -> str:
    if figure.unit == "s":
        return seconds(figure.value)
    if figure.unit == "of the roof":
        return f"{figure.value:.1%} of the roof"
    if figure.unit == "ratio":
        return f"{figure.value:.3g}"
    return f"{number(figure.value)} {figure.unit}"
