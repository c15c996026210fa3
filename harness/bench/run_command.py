"""`decodetax run`: measures the cost gap between an output and an input token; its options and output."""

import contextlib
import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import FAILED, INTERRUPTED, FailureError, UsageError, path_text
from ..core.files import FULL, file_problem, folder_problem
from ..core.progress import progress_bar
from ..core.streams import StdoutError, discard_stdout
from ..core.table import prose
from .report_command import Outputs, report_options, run_text

if TYPE_CHECKING:
    from ..core.records import Run
    from .device import Device
    from .executor import Executor
    from .run_settings import Settings
    from .run_writer import RunWriter
    from .runner import TilingOf


RANKS_LIMIT = 2
"""Time limit of a run of several ranks over that of one: it times the whole model on one rank too."""


@click.command("run")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto (a CUDA GPU if there is one), cpu, cuda or cuda:INDEX.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="A preset (see `decodetax models`) or the path of a Hugging Face "
    "config.json.  [default: llama-3.1-8b on a GPU, llama-3.2-1b on a CPU]",
)
@options.option(
    "--batch", options.SIZES, "N,...", "Sequences decoded together.  [default: 1,8,32; with --quick 1,8]"
)
@options.option(
    "--context",
    options.SIZES,
    "N,...",
    "Tokens in each sequence's KV cache.  [default: 1024,4096; with --quick 256]",
)
@options.option("--prompt", options.SIZE, "N", "Tokens of a prompt.  [default: the context]")
@options.option(
    "--prefill-tokens",
    options.SIZE,
    "N",
    "Tokens of one prefill forward.  [default: 8192 on a GPU, 2048 on a CPU; with --quick an eighth]",
)
@options.option(
    "--dtype",
    options.one_of("auto", "bf16", "fp16", "fp32"),
    "NAME",
    "Dtype of weights and KV cache: auto (the faster of bf16 and fp32 on a CPU), bf16, fp16, fp32.",
    default="auto",
)
@options.option(
    "--usd-per-hour",
    options.DOLLARS,
    "X",
    "Price of the device, of each rank's if there are several, $ per hour.  [default: a published one of the "
    "GPU, none on a CPU]",
)
@click.option("--quick", is_flag=True, help="A smaller sweep: about 15 s on 2 idle CPU cores.")
@options.option(
    "--whole-model",
    options.one_of("measure", "none", "transformers"),
    "NAME",
    "All layers in one forward, measured beside the composed figures: measure, none, or transformers (the "
    "same model in Hugging Face transformers too).  [default: measure; with --quick none]",
)
@options.option(
    "--tensor-parallel",
    options.GPUS,
    "N",
    "Ranks that share each layer, each on a GPU of its own or on a part of the CPU's cores; they are started "
    "here, by PyTorch's torchrun.  [default: 1; under torchrun all its ranks]",
)
@options.option(
    "--expert-parallel",
    options.GPUS,
    "N",
    "Ranks that the routed experts are divided among. Without --tensor-parallel, each of N ranks decodes "
    "sequences of its own.  [default: 1]",
)
@options.option(
    "--collective-timeout",
    options.SECONDS,
    "S",
    "Seconds after which a rank that does not answer ends the run.",
    default="60",
)
@options.option("--seed", options.SEED, "N", "Seed of the random inputs.", default="0")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON file of the run.  [default: results/run-DATE.json]",
)
@options.user_function_option(
    "Your own function, checked and timed like the built-in providers; repeat for several. It takes "
    "(x, weight) or (q, k_cache, v_cache, context_lens), and optionally out."
)
@click.option(
    "--counters",
    is_flag=True,
    help="Also read DRAM bytes and tensor-core activity of each kernel from the GPU's hardware counters; "
    "needs nsight-python, Nsight Compute 2026.2.1 or newer, and permission to profile. The run says why if "
    "they cannot be read.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN.json",
    help="Continue a run that was interrupted, killed, cut short by its time limit or that failed, in its "
    "own file or in --output.",
)
@options.JSON
@report_options
def run_command(
    device: str, output: Path | None, resume: Path | None, as_json: bool, wide: bool, **asked: Any
) -> int:
    """Measure the cost gap between an output and an input token.

    The gap is the device time of an output token over that of an input token. Every kernel is checked, then
    timed in several rounds. Exit code 1 means that a kernel failed or gave a wrong result, 2 a wrong
    argument, 130 that Ctrl-C ended the run early (what was measured is kept).

    The run is saved while it is measured: to --output or, if that file exists already, to FILE.partial beside
    it until the end. A file that another run is writing to is refused.
    """
    from ..core.rank_process import quiet_torch, rank_and_size
    from .ranks_asked import ranks_to_start
    from .run_writer import RunWriter, locked_run

    number, here = ranks_to_start(device, asked, resume), rank_and_size()
    if number > 1 or here is not None:
        quiet_torch()
    if number > 1:
        from .launch_ranks import launch

        _places(output, resume, asked)  # what cannot be written is said before ranks start
        return launch(sys.argv[1:], ranks=number)
    if here is not None and here[0] > 0:
        from .run_on_ranks import follow_rank_0

        return follow_rank_0(device, asked["collective_timeout"])
    with contextlib.ExitStack() as locks:
        if resume is not None:
            locks.enter_context(locked_run("--resume", resume))
        settings, opened, begun = _begun(device, resume, asked)
        from ..core.user_function import load_user_functions
        from .run_settings import check_memory
        from .session import begin, measure
        from .summary import heading

        check_memory(settings, opened)
        _check_peer(settings)
        with options.user_code():
            load_user_functions(settings.providers)  # a wrong name is reported before anything is measured
        target, outputs = _places(output, resume, asked)
        target.parent.mkdir(exist_ok=True)
        writer = RunWriter(target, resume, locks)
        result = begun or begin(settings, opened)
        printing, tiling_of = _Printing(), _tuned_tilings(result, opened)
        with _executor(opened, result, writer, asked) as executor:
            if not as_json:
                going_on = f"the run goes on and is written to {path_text(target)}"
                printing(prose(heading(result), wide=wide), kept=going_on)
            _warn_of_quota(result.environment["device"])
            with progress_bar() as progress, options.user_code():
                measure(result, settings, opened, progress, tiling_of, lambda: writer(result), executor)
        return _end(result, writer, outputs, printing, as_json=as_json, wide=wide)


def _check_peer(settings: "Settings") -> None:
    """Require what `--whole-model transformers` needs.

    Raises:
        UsageError: it is missing.
    """
    from .transformers_peer import require_transformers

    if settings.whole_model == "transformers":
        if settings.model.in_parts is not None:
            raise UsageError(
                f"--whole-model: transformers needs a model whose layers are timed whole; "
                f"{settings.model.name} has {settings.model.in_parts}"
            )
        require_transformers()


def _executor(
    device: "Device", result: "Run", writer: "RunWriter", asked: dict[str, Any]
) -> "contextlib.AbstractContextManager[Executor]":
    """What the run runs on: this process, or all ranks, of which it is rank 0."""
    from ..core.rank_process import rank_and_size

    if rank_and_size() is None:
        from .session import OneProcess

        return contextlib.nullcontext(OneProcess(device))
    from .run_on_ranks import joined

    return joined(device, result, writer, timeout_s=asked["collective_timeout"])


class _Printing:
    """Prints on stdout; the first time that it cannot be written, says so and what is kept all the same."""

    def __init__(self) -> None:
        self.failed = False

    def __call__(self, text: str, *, kept: str) -> None:
        if self.failed:
            return
        try:
            click.echo(text)
        except StdoutError as error:
            self.failed = True
            options.complain(f"stdout cannot be written: {error.strerror}; {kept}")
            discard_stdout()


def _end(
    run: "Run", writer: "RunWriter", outputs: Outputs, printing: _Printing, *, as_json: bool, wide: bool
) -> int:
    """Write the run, print it and write its reports; each that fails is reported, and none hinders another.

    Raises:
        FailureError: the run ended early.
    """
    place, problem = writer.finish(run)
    kept = f"the run was written to {place}" if place else "the run was not written either"
    if as_json:
        printing(json.dumps(run.to_json(), indent=1, allow_nan=False), kept=kept)
    else:
        kind = "Interrupted run" if run.interrupted else "Run"
        spent = f"{run.elapsed_s:.0f} s, {run.timed_share:.0%} of them in timed calls"
        ending = f"\n\n{kind} written to {place} after {spent}." if place else ""
        printing(run_text(run, wide=wide) + ending, kept=kept)
    if problem or writer.unsaved:
        options.complain(problem or str(writer.unsaved))
    try:
        for line in outputs.write({path_text(writer.named.stem): run}):
            if as_json:
                click.echo(line, err=True)
            else:
                printing(line, kept=kept)
    except FailureError as error:
        options.complain(str(error))
        problem = str(error)
    if problem or printing.failed:
        return FAILED
    if run.interrupted:
        return INTERRUPTED
    if run.broken is not None:
        raise FailureError(f"the run ended early: {run.broken}; what was measured is in {place}")
    return FAILED if run.failures else 0


def _warn_of_quota(device: dict[str, Any]) -> None:
    """Say that more threads run than a CPU quota lets run at once: the others then wait, and times vary."""
    quota, threads = device.get("cpu_quota_cores"), device.get("threads", 1)
    if quota is not None and threads > math.ceil(quota):
        options.complain(
            f"torch uses {threads} threads, but the control group's CPU quota is {quota:.3g} cores: set "
            f"OMP_NUM_THREADS={math.ceil(quota)} for steady times"
        )


def _begun(device: str, resume: Path | None, asked: dict[str, Any]) -> "tuple[Settings, Device, Run | None]":
    """The settings, the device, and with --resume the run to continue."""
    if resume is not None:
        from .resuming import read_unfinished, require_as_many_ranks, require_same_machine

        run, settings = read_unfinished(resume)
        require_as_many_ranks(run)
        opened = _opened(device)
        require_same_machine(run, opened)
        return settings, opened, run
    from ..core.timed_model import load_timed_model

    model = load_timed_model(asked["model"]) if asked["model"] is not None else None
    from .ranks_asked import parallelism_asked, require_for_ranks, require_shares
    from .run_settings import Settings

    parallelism = parallelism_asked(asked)
    several = parallelism.gpus > 1
    if several:
        require_for_ranks(device, asked)
    opened = _opened(device)
    gpu, quick = opened.kind == "cuda", asked["quick"]
    model = model or load_timed_model("llama-3.1-8b" if gpu else "llama-3.2-1b")
    require_shares(model, parallelism)
    limit_s = (60 if gpu else 12.3) if quick else (200 if gpu else 56.5)
    settings = Settings(
        model=model,
        batches=asked["batch"] or ((1, 8) if quick else (1, 8, 32)),
        contexts=asked["context"] or ((256,) if quick else (1024, 4096)),
        prompt=asked["prompt"],
        prefill_tokens=asked["prefill_tokens"] or (8192 if gpu else 2048) // (8 if quick else 1),
        dtype=asked["dtype"],
        usd_per_hour=asked["usd_per_hour"],
        total_limit_s=limit_s * (RANKS_LIMIT if several else 1),
        seed=asked["seed"],
        providers=asked["providers"],
        counters=asked["counters"],
        whole_model=asked["whole_model"] or ("none" if quick or several else "measure"),
        parallelism=parallelism,
        link_bytes=_link_bytes(opened.kind, quick=quick) if several else (),
    )
    return settings, opened, None


def _link_bytes(device_kind: str, *, quick: bool) -> tuple[int, ...]:
    """Sizes of the messages that measure the link between ranks."""
    from .collectives import LINK_BYTES, QUICK_LINK_BYTES

    return tuple((QUICK_LINK_BYTES if quick else LINK_BYTES)[device_kind])


def _opened(device: str) -> "Device":
    """The device of this process, which may be one of several ranks."""
    from ..core.rank_process import rank_and_size

    if rank_and_size() is not None:
        from .ranks import device_of_rank

        return device_of_rank(device)
    from .device import open_device

    return open_device(device)


def _tuned_tilings(run: "Run", device: "Device") -> "TilingOf":
    """The tilings that `decodetax tune` found for this GPU; an invalid cache is reported and not used."""
    from .runner import no_tiling

    if device.kind != "cuda":
        return no_tiling
    from .tiling_cache import open_cache, tuned_tilings

    try:
        return tuned_tilings(open_cache(device.name, str(run.environment["versions"]["triton"])), device)
    except UsageError as error:
        options.complain(f"{error}; no tuned tiling is used")
        return no_tiling


def _places(output: Path | None, resume: Path | None, asked: dict[str, Any]) -> tuple[Path, Outputs]:
    """The file of the run, and its reports.

    Raises:
        UsageError: one of them cannot be written.
    """
    target, outputs = _writable(output or resume), Outputs(asked)
    outputs.require_writable([target, *([resume] if resume else [])])
    return target, outputs


def _writable(output: Path | None) -> Path:
    """The file that the run is written to, checked before anything is measured.

    A full disk is no obstacle: there may be room at the end, and if not, the run is kept elsewhere.

    Raises:
        UsageError: it cannot be written.
    """
    from ..core.own_file import free_name

    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    target = output or free_name(Path("results") / f"run-{now}.json")
    try:
        problem = file_problem(target) if output is not None else folder_problem(target.parent)
    except OSError as error:
        problem = None if error.errno in FULL else error.strerror
    except RuntimeError:  # before Python 3.13
        problem = "a loop of symbolic links"
    if problem is not None:
        raise UsageError(
            f"--output: {str(target)!r} cannot be written ({problem}); name a file in a folder that can"
        )
    return target
