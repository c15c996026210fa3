"""The batch at which the gap equals a price ratio: modelled for a GPU, and measured in a run.

The commands that print price ratios are decorated with `break_even_options`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from decimal import Decimal
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import UsageError, printable
from ..core.formats import CACHE_FORMATS, FORMATS

if TYPE_CHECKING:
    from ..core.gap import Gap
    from ..core.language_model import LanguageModel
    from .deployment import Deployment

DEFAULT_SERVED_MODEL = "llama-3.1-8b"
_GPUS_OF_A_NODE = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """The gaps that price ratios are compared with.

    Attributes:
        model: the modelled language model.
        on: the GPUs that serve it.
        context: cached tokens of a sequence, and tokens of a prompt.
        gaps: the measured gaps of a run; empty without a run.
    """

    model: "LanguageModel"
    on: "Deployment"
    context: int
    gaps: "tuple[Gap, ...]" = ()

    @property
    def gpus(self) -> str:
        """The GPUs, in words, with the parallelism where it is not tensor parallelism alone."""
        parallelism, name = self.on.parallelism, self.on.gpu.name
        if parallelism.tensor_parallel < parallelism.gpus or parallelism.expert_parallel > 1:
            return self.on.text
        return f"{parallelism.gpus} x {name}" if parallelism.gpus > 1 else name

    @property
    def where(self) -> str:
        """The modelled case, in words."""
        from .memory import weight_formats

        cached = self.on.cache_format.name
        cache = "" if cached == "bf16" else f", cache in {cached}"
        return (
            f"{printable(self.model.name)} in {weight_formats(self.model)} on {self.gpus} "
            f"({self.context} cached tokens{cache})"
        )

    @property
    def fits(self) -> bool:
        """Whether the GPUs hold the model and one sequence."""
        from .memory_fit import largest_batch

        return largest_batch(self.model, self.on, context=self.context) > 0

    def to_json(self) -> dict[str, Any]:
        """Model, GPUs, dtypes and context of the modelled batches."""
        from .memory import weight_formats

        return {
            "provenance": "modelled",
            "model": self.model.name,
            "gpu": self.on.gpu.name,
            **asdict(self.on.parallelism),
            "dtype": weight_formats(self.model),
            "cache_dtype": self.on.cache_format.name,
            "context": self.context,
        }

    def batches(self, ratio: Decimal | None) -> dict[str, float | None]:
        """The modelled and the measured batch of a price ratio; both None if there is no ratio."""
        return {
            "modelled_batch": None if ratio is None else self.modelled_batch(float(ratio)),
            "measured_batch": None if ratio is None else measured_batch(self.gaps, float(ratio)),
        }

    def modelled_batch(self, ratio: float) -> int | None:
        """The smallest batch whose modelled gap is at most the ratio; None if there is none that fits."""
        return _modelled_batch(self.model, self.on, self.context, ratio)


@cache
def _modelled_batch(model: "LanguageModel", on: "Deployment", context: int, ratio: float) -> int | None:
    from .memory_fit import largest_batch
    from .prediction import break_even_batch

    fits = largest_batch(model, on, context=context)
    return break_even_batch(model, on, context=context, prompt=context, price_ratio=ratio, largest=fits)


def measured_batch(gaps: "Sequence[Gap]", ratio: float) -> float | None:
    """The batch at which measured gaps fall to a ratio, at the shortest measured context.

    Between two measured batches the gap is interpolated as a power of the batch (linearly in logarithms). It
    is the smallest measured batch if the gap there is at most the ratio, and None if no gap is.
    """
    shortest = min((gap.context for gap in gaps), default=0)
    points = sorted((gap.batch, gap.gap) for gap in gaps if gap.context == shortest)
    if not points or min(gap for _, gap in points) > ratio:
        return None
    if points[0][1] <= ratio:
        return float(points[0][0])
    for (batch, above), (next_batch, below) in itertools.pairwise(points):
        if above > ratio >= below:
            share = math.log(above / ratio) / math.log(above / below)
            return float(batch * (next_batch / batch) ** share)
    return None


@dataclass(frozen=True, kw_only=True)
class BreakEvenOptions:
    """The options of `break_even_options`; None where one was not given.

    Attributes:
        served_model: a preset or the path of a `config.json`.
        gpu: name of the GPU.
        dtype: format of weights.
        cache_dtype: format of the KV cache.
        tensor_parallel: as in `Parallelism`.
        data_parallel: as in `Parallelism`.
        expert_parallel: as in `Parallelism`.
        pipeline_parallel: as in `Parallelism`.
        context: cached tokens of a sequence, and tokens of a prompt.
        run_file: a file of `decodetax run`.
    """

    served_model: str | None
    gpu: str
    dtype: str | None
    cache_dtype: str | None
    tensor_parallel: int | None
    data_parallel: int | None
    expert_parallel: int | None
    pipeline_parallel: int | None
    context: int
    run_file: Path | None

    def break_even(self, priced_preset: str | None = None) -> BreakEven:
        """The gaps that the options select; without --served-model those of the preset whose price is asked.

        Raises:
            UsageError: there is no such model or GPU, the GPUs cannot share the model, or the run cannot be
                read or has no gap.
        """
        from ..core.language_model import load_language_model

        name = self.served_model
        if name is None:
            name = priced_preset or DEFAULT_SERVED_MODEL
        try:
            model = load_language_model(name)
        except UsageError as error:
            raise UsageError(f"--served-model: {str(error).removeprefix('--model: ')}") from error
        if self.dtype is not None:
            model = model.with_formats(FORMATS[self.dtype])
        on = self._deployment(model)
        return BreakEven(model=model, on=on, context=self.context, gaps=self._measured_gaps())

    def _deployment(self, model: "LanguageModel") -> "Deployment":
        """The GPUs that the options ask for, else the fewest that hold the model, at most 8."""
        from ..core.parallelism import Parallelism, require_parts
        from .deployment import deployment
        from .memory_fit import largest_batch

        cache_dtype = self.cache_dtype or model.cache_format or "bf16"
        one = deployment(self.gpu, cache_format=CACHE_FORMATS[cache_dtype])
        sizes = {part.name: getattr(self, part.name) for part in fields(Parallelism)}
        if asked := {name: size for name, size in sizes.items() if size is not None}:
            on = replace(one, parallelism=Parallelism(**asked))
            require_parts(model, on.parallelism)
            largest_batch(model, on, context=self.context)  # raises where the GPUs cannot share the model
            return on
        on = one
        for gpus in _GPUS_OF_A_NODE:
            more = replace(one, parallelism=Parallelism(tensor_parallel=gpus))
            try:
                fits = largest_batch(model, more, context=self.context)
            except UsageError:  # so many GPUs cannot share the model
                break
            on = more
            if fits:
                break
        return on

    def _measured_gaps(self) -> "tuple[Gap, ...]":
        if self.run_file is None:
            return ()
        from ..core.run_file import read_run

        gaps = tuple(read_run(self.run_file).gaps)
        if not gaps:
            raise UsageError(
                f"--run: {str(self.run_file)!r} has no gap; it must be a run of at least one batch"
            )
        return gaps


def break_even_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of a `BreakEven` to a command, which receives them as its argument `against`."""

    @click.option(
        "--served-model",
        metavar="NAME",
        help="Model whose gap is compared with the price ratio: a preset or the path of a config.json.  "
        f"[default: the preset that is priced, else {DEFAULT_SERVED_MODEL}]",
    )
    @click.option("--gpu", default="h100", show_default=True, metavar="NAME", help="GPU that serves it.")
    @options.option(
        "--dtype",
        options.one_of(*FORMATS),
        "NAME",
        f"Format of its weights: {', '.join(FORMATS)}.  [default: as the config says, else bf16]",
    )
    @options.option(
        "--cache-dtype",
        options.one_of(*CACHE_FORMATS),
        "NAME",
        f"Format of its KV cache: {', '.join(CACHE_FORMATS)}.  [default: as the config says, else bf16]",
    )
    @options.option(
        "--tensor-parallel",
        options.GPUS,
        "N",
        "GPUs that share each layer.  [default: the fewest of 1, 2, 4 and 8 that hold the model]",
    )
    @options.option("--data-parallel", options.GPUS, "N", "Groups of that many GPUs, each with attention.")
    @options.option("--expert-parallel", options.GPUS, "N", "GPUs that the routed experts are divided among.")
    @options.option("--pipeline-parallel", options.GPUS, "N", "Stages with equal shares of the layers.")
    @click.option(
        "--context",
        default="1024",
        show_default=True,
        callback=options.SIZE,
        metavar="N",
        help="Cached tokens of a sequence, and tokens of a prompt.",
    )
    @click.option(
        "--run",
        "run_file",
        type=click.Path(path_type=Path),
        metavar="RUN.json",
        help="A file of `decodetax run`, whose measured gap is compared too.",
    )
    @wraps(command)
    def with_break_even(**asked: Any) -> None:
        own = {field.name: asked.pop(field.name) for field in fields(BreakEvenOptions)}
        command(against=BreakEvenOptions(**own), **asked)

    return with_break_even
