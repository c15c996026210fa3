"""`decodetax claims`: the article, checked."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core import options
from ..core.errors import UsageError

if TYPE_CHECKING:
    from .claims import Facts


@click.command("claims")
@click.argument("run_file", required=False, type=click.Path(path_type=Path), metavar="[RUN.json]")
@click.option(
    "--model",
    metavar="NAME",
    help="Modelled without a run: a preset or the path of a config.json.  [default: llama-3.1-8b]",
)
@click.option(
    "--gpu", metavar="NAME", help="Modelled without a run: see `decodetax devices`.  [default: h100]"
)
@click.option(
    "--context",
    callback=options.SIZE,
    metavar="N",
    help="Modelled without a run: cached tokens, and tokens of a prompt.  [default: 1024]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
def claims_command(
    run_file: Path | None, model: str | None, gpu: str | None, context: int | None, as_json: bool
) -> None:
    """Check the article's claims on why output tokens cost more, with numbers.

    From a run that `decodetax run` wrote where one is named, else modelled. Each claim holds, holds in part
    or does not hold, under the condition that is said.
    """
    from .claims import check_claims
    from .prices import price_list

    facts = _facts(run_file, model, gpu, context)
    claims = check_claims(facts, price_list(None))
    if as_json:
        document = {
            "schema_version": 1,
            "where": facts.where,
            "provenance": facts.provenance,
            "claims": [claim.to_json() for claim in claims],
        }
        click.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    from .claims_page import claims_text

    click.echo(claims_text(facts, claims))


def _facts(run_file: Path | None, model: str | None, gpu: str | None, context: int | None) -> "Facts":
    from .claims import measured_facts, modelled_facts

    if run_file is not None:
        for name, given in (("--model", model), ("--gpu", gpu), ("--context", context)):
            if given is not None:
                raise UsageError(f"{name}: is of claims that are modelled; it goes with no RUN.json")
        from ..core.run_file import read_run

        run = read_run(run_file)
        try:
            return measured_facts(run)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind = type(error).__name__
            raise UsageError(f"run file: {str(run_file)!r} is not a whole run ({kind}: {error})") from error
    from ..core.language_model import load_language_model
    from .deployment import deployment

    on = deployment(gpu or "h100")
    return modelled_facts(load_language_model(model or "llama-3.1-8b"), on, context=context or 1024)
