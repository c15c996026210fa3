"""The command that searches the tilings of a kernel; it imports what it needs when it runs."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import FAILED, INTERRUPTED, FailureError, UsageError
from ..core.progress import progress_bar

if TYPE_CHECKING:
    from ..core.cases import Case
    from .tiling_cache import TilingCache
    from .tuning import Tuned

HEADS = ("q_heads", "kv_heads", "head_dim")
ATTENTION_OPTIONS = ("context", *HEADS)


@click.command("tune")
@click.option(
    "--kernel",
    required=True,
    type=click.Choice(["decode_attention", "prefill_matmul"]),
    help="Whose tilings to search.",
)
@click.option(
    "--model",
    default="llama-3.1-8b",
    show_default=True,
    metavar="NAME",
    help="Whose shapes: a preset (see `decodetax models`) or the path of a Hugging Face config.json.",
)
@click.option(
    "--q-heads", callback=options.SIZE, metavar="N", help="Query heads.  [default: those of the model]"
)
@click.option(
    "--kv-heads", callback=options.SIZE, metavar="N", help="KV heads.  [default: those of the model]"
)
@click.option(
    "--head-dim",
    callback=options.SIZE,
    metavar="N",
    help="Elements of a head.  [default: those of the model]",
)
@click.option(
    "--batch",
    default="1,8,32",
    show_default=True,
    callback=options.SIZES,
    metavar="N,...",
    help="Sequences decoded together; the rows of a product, beside those of a prefill.",
)
@click.option(
    "--context",
    default="1024,4096",
    show_default=True,
    callback=options.SIZES,
    metavar="N,...",
    help="Tokens in each sequence's KV cache, for decode_attention alone, as the options of heads.",
)
@click.option(
    "--dtype",
    callback=options.one_of("bf16", "fp16", "fp32"),
    default="bf16",
    show_default=True,
    metavar="NAME",
    help="Of queries and cache, or of a product's operands: bf16, fp16, fp32.",
)
@click.option(
    "--time-limit",
    "time_limit_s",
    default="300",
    show_default=True,
    callback=options.SECONDS,
    metavar="SECONDS",
    help="For all cases together, about; tilings nearest to the default come first.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the winners are kept, a file for each GPU and Triton version.  "
    "[default: $DECODETAX_CACHE, else $XDG_CACHE_HOME/decodetax, else ~/.cache/decodetax]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else there.")
def tune_command(kernel: str, time_limit_s: int, cache: Path | None, as_json: bool, **asked: Any) -> int:
    """Search the tilings of a kernel on the CUDA GPU at hand, and keep those that win.

    Each tiling is held against the oracle before it is timed; one takes the default's place only where it is
    faster by more than the noise. `decodetax run` uses what was kept for its GPU and Triton version. Exit
    code 1 means that the default itself could not be run for a case, 2 a wrong argument or no GPU, 130 that
    Ctrl-C ended the search early (what was found is kept).
    """
    if kernel != "decode_attention":
        for name, option in options.given().items():
            if name in ATTENTION_OPTIONS:
                raise UsageError(f"{option}: is of decode_attention; it goes with no --kernel {kernel}")
    cases = _cases(kernel, asked)
    from .environment import describe
    from .tiling_cache import open_cache
    from .tuning import open_gpu, tune

    device = open_gpu(cases[0])
    environment = describe(device)
    versions = environment["versions"]
    kept = open_cache(device.name, str(versions["triton"]), cache)
    _require_usable(kept)
    found: list[Tuned] = []
    interrupted, lost = False, None
    with progress_bar() as progress:
        try:
            for tuned in tune(cases, device, time_limit_s=time_limit_s, progress=progress):
                found.append(tuned)
                _keep(kept, tuned, decodetax=versions["decodetax"], date=environment["started"])
        except KeyboardInterrupt:
            interrupted = True
        except FailureError as error:
            lost = error
    document = {
        "schema_version": 1,
        "interrupted": interrupted,
        "environment": environment,
        "cache": str(kept.path),
        "cases": [tuned.to_json() for tuned in found],
    }
    if as_json:
        click.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        from .tune_text import tune_text

        click.echo(tune_text(document))
    if lost is not None:
        raise lost
    if interrupted:
        return INTERRUPTED
    return 0 if all(tuned.status == "ok" for tuned in found) else FAILED


def _cases(kernel: str, asked: dict[str, Any]) -> "list[Case]":
    """The cases of this kernel that `decodetax run` times for the same model, batches and contexts.

    Raises:
        UsageError: names the option.
    """
    from ..core.cases import Sweep, cases_of
    from ..core.language_model import load_timed_model

    model = load_timed_model(asked["model"])
    try:
        model = dataclasses.replace(model, **{name: asked[name] for name in HEADS if asked[name]})
    except UsageError as error:
        field, _, problem = str(error).partition(":")
        raise UsageError(f"--{field.replace('_', '-')}:{problem}") from error
    from .session import MOST_SEQUENCES
    from .tilings import TUNABLE

    if max(asked["batch"]) > MOST_SEQUENCES:
        raise UsageError(f"--batch: {max(asked['batch'])} is over {MOST_SEQUENCES}, the most sequences timed")
    sweep = Sweep(
        batches=asked["batch"],
        contexts=asked["context"],
        prompt=None,
        prefill_tokens=8192,  # as `decodetax run` on a GPU
        dtype=asked["dtype"],
    )
    key = TUNABLE[kernel].key  # the LM head of a prompt and that of one sequence are the same product
    return list({str(key(c)): c for c in cases_of(model, sweep) if c.operation == kernel}.values())


def _require_usable(cache: "TilingCache") -> None:
    """Make sure of the cache before anything is searched.

    Raises:
        UsageError: the file is no cache of this GPU, or its folder cannot be written to.
    """
    try:
        cache.read()
    except UsageError as error:
        raise UsageError(f"{error}; move it away, or name another folder with --cache") from error
    cache.require_writable()


def _keep(cache: "TilingCache", tuned: "Tuned", **facts: str | None) -> None:
    """Merge what was found into the cache at once, so that Ctrl-C loses none of it.

    Raises:
        FailureError: the disk is full or gone by now, or the file is no cache any more.
    """
    try:
        cache.merge(tuned.cache_updates(**facts))
    except UsageError as error:
        raise FailureError(str(error)) from error
    except OSError as error:
        raise FailureError(
            f"tiling cache: {str(cache.path)!r} cannot be written ({error.strerror})"
        ) from error
