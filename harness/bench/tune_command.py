"""`decodetax tune`: searches the tilings of a kernel on a GPU; its options and text."""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import FAILED, INTERRUPTED, FailureError, UsageError
from ..core.progress import progress_bar
from ..core.table import Column, Table, wide_option
from ..core.units import seconds

if TYPE_CHECKING:
    from ..core.cases import Case
    from .compile_ahead import CompileAhead
    from .tiling_cache import TilingCache
    from .tuning import Tuned

HEADS = ("q_heads", "kv_heads", "head_dim")
ATTENTION_OPTIONS = ("context", *HEADS)

SHOWN = 5
"""Fastest tilings of a case in the text; the JSON has all."""


@click.command("tune")
@click.option(
    "--kernel",
    required=True,
    type=click.Choice(["decode_attention", "prefill_attention", "prefill_matmul"]),
    help="The kernel whose tilings are searched.",
)
@click.option(
    "--model",
    default="llama-3.1-8b",
    show_default=True,
    metavar="NAME",
    help="The model whose shapes are tuned: a preset (see `decodetax models`) or the path of a Hugging "
    "Face config.json.",
)
@options.option("--q-heads", options.SIZE, "N", "Query heads.  [default: those of the model]")
@options.option("--kv-heads", options.SIZE, "N", "KV heads.  [default: those of the model]")
@options.option("--head-dim", options.SIZE, "N", "Elements of a head.  [default: those of the model]")
@options.option(
    "--batch",
    options.SIZES,
    "N,...",
    "Sequences decoded together; a matmul is tuned with as many rows, and with those of a prefill.",
    default="1,8,32",
)
@options.option(
    "--context",
    options.SIZES,
    "N,...",
    "Tokens in each sequence's KV cache, or of each prompt of prefill_attention; attention only, as are the "
    "options of heads.",
    default="1024,4096",
)
@options.option(
    "--dtype",
    options.one_of("bf16", "fp16", "fp32"),
    "NAME",
    "Dtype of queries and cache, or of a matmul's operands: bf16, fp16, fp32.",
    default="bf16",
)
@options.option(
    "--time-limit",
    options.SECONDS,
    "SECONDS",
    "Approximate time for all cases together; tilings nearest to the default are tried first.",
    dest="time_limit_s",
    default="300",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the tilings that won, one file for each GPU and Triton version.  "
    "[default: $DECODETAX_CACHE, else $XDG_CACHE_HOME/decodetax, else ~/.cache/decodetax]",
)
@options.JSON
@wide_option
def tune_command(
    kernel: str, time_limit_s: int, cache: Path | None, as_json: bool, wide: bool, **asked: Any
) -> int:
    """Search a kernel's tilings on this machine's CUDA GPU.

    Tilings are compiled in parallel processes. Each is checked against the oracle before it is timed, and
    replaces the default only if it is faster by more than the noise. `decodetax run` then uses it on this
    GPU with this Triton version. Exit code 1 means that the default tiling failed for a case, 2 a wrong
    argument or no GPU, 130 that Ctrl-C ended the search early (what was found is kept).
    """
    cases = _cases(kernel, asked)
    from ...kernels import gpu_limits
    from .compile_ahead import CompileAhead
    from .environment import describe
    from .tiling_cache import open_cache
    from .tuning import open_gpu, tilings_of, tune

    device = open_gpu(cases[0])
    environment = describe(device)
    versions = environment["versions"]
    tiling_cache = open_cache(device.name, str(versions["triton"]), cache)
    _require_usable(tiling_cache)
    found: list[Tuned] = []
    interrupted, lost = False, None
    ahead = CompileAhead(gpu_limits(device.torch_device))
    with progress_bar() as progress, contextlib.closing(ahead):
        try:
            for tuned in tune(cases, device, time_limit_s=time_limit_s, progress=progress, ahead=ahead):
                found.append(tuned)
                _keep(tiling_cache, tuned, decodetax=versions["decodetax"], date=environment["started"])
        except KeyboardInterrupt:
            interrupted = True
        except FailureError as error:
            lost = error
    tried = {"tilings": sum(tuned.tried for tuned in found), "of": tilings_of(cases, device)}
    if as_json:
        document = {
            "schema_version": 1,
            "interrupted": interrupted,
            "environment": environment,
            "cache": str(tiling_cache.path),
            "tried": tried,
            "compile_processes": 0 if ahead.problem else ahead.processes,
            "cases": [tuned.to_json() for tuned in found],
        }
        click.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        heading = f"{device.name}, Triton {versions['triton']}"
        total = f"{kernel}: tried {tried['tilings']:,} of {tried['of']:,} tilings of {len(cases)} cases; "
        cases_text = [_text(tuned, wide=wide) for tuned in found]
        closing = _closing(found, tiling_cache, interrupted=interrupted)
        click.echo("\n\n".join((heading, *cases_text, total + _compiled(ahead), *closing)))
    if lost is not None:
        raise lost
    if interrupted:
        return INTERRUPTED
    return 0 if all(tuned.status == "ok" for tuned in found) else FAILED


def _compiled(ahead: "CompileAhead") -> str:
    if ahead.problem:
        return f"compiled one after another, because a compiling process failed: {ahead.problem}"
    text = f"compiled in {ahead.processes} {'process' if ahead.processes == 1 else 'processes'}"
    if ahead.skipped:
        text += f", but {len(ahead.skipped):,} as they were tried ({ahead.skipped[0]})"
    return text


def _closing(found: Sequence["Tuned"], cache: "TilingCache", *, interrupted: bool) -> Iterator[str]:
    if interrupted:
        yield "Interrupted: the cases after these were not searched."
    won = sum(tuned.winner is not None for tuned in found)
    yield (
        f"{won} of {len(found)} cases have a tiling better than the default; "
        f"`decodetax run` takes them from {cache.path}"
    )


def _text(tuned: "Tuned", *, wide: bool) -> str:
    """The fastest tilings of a case, those that failed or were not tried, and the verdict."""
    if tuned.status != "ok":
        return f"{tuned.case.id}\n{tuned.status.upper()}: the default: {tuned.reason}"
    default = tuned.trials[0].tiling
    timed = sorted((t for t in tuned.trials if t.time_s is not None), key=lambda t: t.median_s)
    rows = tuple(
        (_name_of(t.tiling, default), t.time_s.median, f"{seconds(t.time_s.low)} to {seconds(t.time_s.high)}")
        for rank, t in enumerate(timed)
        if t.time_s is not None and (rank < SHOWN or t.tiling == default)
    )
    columns = (
        Column(f"tiling (fastest of {len(timed)} timed)"),
        Column("median", "median_s", "measured", seconds),
        Column("95% interval", provenance="measured"),
    )
    lines = [Table(title=tuned.case.id, columns=columns, rows=rows).text(wide=wide)]
    lines.append(f"tried {tuned.tried:,} of {len(tuned.trials):,} tilings")
    lines += [
        f"rejected: {_name_of(t.tiling, default)}: {t.reason}" for t in tuned.trials if t.status == "failed"
    ]
    others = Counter(t.reason for t in tuned.trials if t.status not in ("ok", "failed"))
    lines += [f"{n} {'tiling' if n == 1 else 'tilings'} {reason}" for reason, n in others.items()]
    return "\n".join((*lines, _verdict(tuned)))


def _verdict(tuned: "Tuned") -> str:
    duel = tuned.duel
    if duel is None:
        return "the default stays: no other tiling was tried and passed"
    ratio, name = duel.ratio, _name_of(duel.challenger, tuned.trials[0].tiling)
    share = (
        f"{ratio.median:.1%} of the default's time ({ratio.low:.1%} to {ratio.high:.1%}, "
        f"won {duel.rounds_won} of {len(duel.default_s)} rounds)"
    )
    if duel.won:
        return f"won: {name}: {share}, {1 / ratio.median:.2f} times as fast"
    return f"the default stays: {name} takes {share}, not better by more than the noise"


def _name_of(tiling: Any, default: Any) -> str:
    """The fields of a tiling that differ from the default; all fields of the default."""
    changed = {
        name: value
        for name, value in dataclasses.asdict(tiling).items()
        if tiling == default or value != getattr(default, name)
    }
    text = ", ".join(f"{name} {value}" for name, value in changed.items())
    return f"default: {text}" if tiling == default else text


def _cases(kernel: str, asked: dict[str, Any]) -> "list[Case]":
    """The kernel's cases that `decodetax run` times for the same model, batches and contexts.

    Raises:
        UsageError: a model or shape that cannot be timed, or an option of another kernel.
    """
    for name, option in options.given().items():
        if name in ATTENTION_OPTIONS and kernel == "prefill_matmul":
            raise UsageError(f"{option}: applies to attention only, not to --kernel {kernel}")
        if name == "batch" and kernel == "prefill_attention":
            raise UsageError(f"{option}: prompts fill a forward whatever their number; leave it out")
    from ..core.sweep import Sweep, cases_of
    from ..core.timed_model import load_timed_model

    model = load_timed_model(asked["model"])
    if model.in_parts is not None and (own := [name for name in HEADS if asked[name]]):
        raise UsageError(
            f"--{own[0].replace('_', '-')}: applies to models whose layers are alike, not to {model.name}"
        )
    try:
        model = dataclasses.replace(model, **{name: asked[name] for name in HEADS if asked[name]})
    except UsageError as error:
        field, _, problem = str(error).partition(":")
        raise UsageError(f"--{field.replace('_', '-')}:{problem}") from error
    from .run_settings import MAX_SEQUENCES
    from .tilings import TUNABLE

    if max(asked["batch"]) > MAX_SEQUENCES:
        raise UsageError(f"--batch: {max(asked['batch'])} is over {MAX_SEQUENCES}, the most sequences timed")
    sweep = Sweep(
        batches=asked["batch"],
        contexts=asked["context"],
        prompt=None,
        prefill_tokens=8192,  # as `decodetax run` on a GPU
        dtype=asked["dtype"],
    )
    key = TUNABLE[kernel].key  # a prompt's LM head and that of one sequence are the same matmul
    return list({str(key(c)): c for c in cases_of(model, sweep) if c.operation == kernel}.values())


def _require_usable(cache: "TilingCache") -> None:
    """Make sure, before the search, that the cache can be read and written.

    Raises:
        UsageError: the file is not a cache of this GPU, or its folder cannot be written to.
    """
    try:
        cache.read()
    except UsageError as error:
        raise UsageError(f"{error}; move it away, or name another folder with --cache") from error
    try:
        cache.require_writable()
    except UsageError as error:
        raise UsageError(f"{error}; name another folder with --cache") from error


def _keep(cache: "TilingCache", tuned: "Tuned", **facts: str | None) -> None:
    """Merge a result into the cache at once, so that Ctrl-C loses nothing.

    Raises:
        FailureError: the disk is full or gone, or the file is no longer a cache.
    """
    try:
        cache.merge(tuned.cache_updates(**facts))
    except UsageError as error:
        raise FailureError(str(error)) from error
    except OSError as error:
        raise FailureError(
            f"tiling cache: {str(cache.path)!r} cannot be written ({error.strerror})"
        ) from error
