"""The batch at which the gap equals a price ratio: modelled for a GPU, and measured in a run.

The commands that print price ratios are decorated with `break_even_options`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import UsageError

if TYPE_CHECKING:
    from ..core.gap import Gap
    from ..core.language_model import LanguageModel
    from .deployment import Deployment


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """The gaps that price ratios are compared with.

    Attributes:
        model: the modelled language model.
        on: the GPU that serves it.
        context: cached tokens of a sequence, and tokens of a prompt.
        gaps: the measured gaps of a run; empty without a run.
    """

    model: "LanguageModel"
    on: "Deployment"
    context: int
    gaps: "tuple[Gap, ...]" = ()

    @property
    def where(self) -> str:
        """The modelled case, in words."""
        return f"{self.model.name} on {self.on.gpu.name} ({self.context} cached tokens)"

    @property
    def fits(self) -> bool:
        """Whether the GPU holds the model and one sequence."""
        from .prediction import largest_batch

        return largest_batch(self.model, self.on, context=self.context) > 0

    def to_json(self) -> dict[str, Any]:
        """Model, GPU and context of the modelled batches."""
        return {"model": self.model.name, "gpu": self.on.gpu.name, "context": self.context}

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
    from .prediction import break_even_batch, largest_batch

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


def break_even_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of a `BreakEven` to a command, which receives it as its argument `against`."""

    @click.option(
        "--served-model",
        default="llama-3.1-8b",
        show_default=True,
        metavar="NAME",
        help="Model whose gap is compared with the price ratio: a preset or the path of a config.json.",
    )
    @click.option(
        "--gpu", default="h100", show_default=True, metavar="NAME", help="GPU that serves it in bf16."
    )
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
    def with_break_even(
        served_model: str, gpu: str, context: int, run_file: Path | None, **others: Any
    ) -> None:
        command(against=_break_even(served_model, gpu, context, run_file), **others)

    return with_break_even


def _break_even(served_model: str, gpu: str, context: int, run_file: Path | None) -> BreakEven:
    """The gaps that the options select.

    Raises:
        UsageError: there is no such model or GPU, or the run cannot be read or has no gap.
    """
    from ..core.language_model import load_language_model
    from .deployment import deployment

    try:
        model = load_language_model(served_model)
    except UsageError as error:
        raise UsageError(f"--served-model: {str(error).removeprefix('--model: ')}") from error
    gaps: tuple[Gap, ...] = ()
    if run_file is not None:
        from ..core.run_file import read_run

        gaps = tuple(read_run(run_file).gaps)
        if not gaps:
            raise UsageError(f"--run: {str(run_file)!r} has no gap; it must be a run of at least one batch")
    return BreakEven(model=model, on=deployment(gpu), context=context, gaps=gaps)
