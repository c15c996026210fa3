"""`decodetax claims`: checks the article's claims; options and text."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import click

from ..core import options
from ..core.errors import UsageError, printable
from ..core.units import number, seconds

if TYPE_CHECKING:
    from .claims import Claim, Facts, Figure


@click.command("claims")
@click.argument("run_file", required=False, type=click.Path(path_type=Path), metavar="[RUN.json]")
@click.option(
    "--model",
    metavar="NAME",
    help="Without a run: the model, a preset or the path of a config.json.  [default: llama-3.1-8b]",
)
@click.option(
    "--gpu", metavar="NAME", help="Without a run: the GPU, see `decodetax devices`.  [default: h100]"
)
@click.option(
    "--context",
    callback=options.SIZE,
    metavar="N",
    help="Without a run: cached tokens, and tokens of a prompt.  [default: 1024]",
)
@options.JSON
def claims_command(
    run_file: Path | None, model: str | None, gpu: str | None, context: int | None, as_json: bool
) -> None:
    """Check nine claims on why output tokens cost more, with numbers.

    The claims are those of an article on token prices. The numbers come from RUN.json, a file of `decodetax
    run`; without one they are modelled. Each claim holds, holds in part or does not hold, under the stated
    conditions.
    """
    from .claims import check_claims
    from .prices import price_list

    facts = _facts(run_file, model, gpu, context)
    claims = check_claims(facts, price_list())
    if not as_json:
        click.echo("\n\n".join(_blocks(facts, claims)))
        return
    document = {
        "schema_version": 1,
        "where": facts.where,
        "provenance": facts.provenance,
        "claims": [asdict(claim) for claim in claims],
    }
    click.echo(json.dumps(document, indent=1, allow_nan=False))


def _facts(run_file: Path | None, model: str | None, gpu: str | None, context: int | None) -> "Facts":
    from .claims import measured_facts, modelled_facts

    if run_file is not None:
        for name, given in (("--model", model), ("--gpu", gpu), ("--context", context)):
            if given is not None:
                raise UsageError(f"{name}: applies to modelled claims; leave it out with RUN.json")
        from ..core.run_file import read_run

        return measured_facts(read_run(run_file))
    from ..core.language_model import load_language_model
    from .deployment import deployment

    on = deployment("h100" if gpu is None else gpu)
    return modelled_facts(
        load_language_model("llama-3.1-8b" if model is None else model), on, context=context or 1024
    )


def _blocks(facts: "Facts", claims: "Sequence[Claim]") -> Iterator[str]:
    """A heading, then each claim with its verdict, conditions and figures."""
    verdicts = [claim.verdict for claim in claims]
    yield (
        f"The article's claims, {facts.provenance} for {printable(facts.where)}:\n"
        f"{verdicts.count('holds')} hold, {verdicts.count('holds in part')} hold in part, "
        f"{verdicts.count('does not hold')} do not hold"
    )
    for claim in claims:
        width = max(len(figure.what) for figure in claim.figures)
        figures = (f"{each.what:<{width}}  {_value(each)} ({each.provenance})" for each in claim.figures)
        title = wrap(f"{claim.number}. {claim.claim}", 77)
        yield "\n   ".join((*title, claim.verdict.upper(), *wrap(claim.condition, 77), *figures))


def _value(figure: "Figure") -> str:
    if figure.unit == "s":
        return seconds(figure.value)
    if figure.unit == "of the roof":
        return f"{figure.value:.1%} of the roof"
    if figure.unit == "ratio":
        return f"{figure.value:.3g}"
    return f"{number(figure.value)} {figure.unit}"
