"""At which batch the gap equals a price ratio: modelled for a GPU, and measured in a run."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

from ..core.language_model import LanguageModel
from ..core.records import Gap
from .deployment import Deployment
from .prediction import break_even_batch, largest_batch


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """What price ratios are set against.

    Attributes:
        model: the modelled language model.
        on: where it is served.
        context: cached tokens, and tokens of a prompt, of both.
        gaps: of a run; none where no run is given.
    """

    model: LanguageModel
    on: Deployment
    context: int
    gaps: tuple[Gap, ...] = ()

    @property
    def where(self) -> str:
        """The modelled one, in words."""
        return f"{self.model.name} on {self.on.peaks.gpu}, {self.context} cached tokens"

    def to_json(self) -> dict[str, Any]:
        """What the batches are those of."""
        return {"model": self.model.name, "gpu": self.on.peaks.gpu, "context": self.context}

    def batches(self, ratio: Decimal | None) -> dict[str, float | None]:
        """The modelled and the measured batch of a price ratio; None where there is no ratio either."""
        if ratio is None:
            return {"modelled_batch": None, "measured_batch": None}
        return {
            "modelled_batch": self.modelled_batch(float(ratio)),
            "measured_batch": self.measured_batch(float(ratio)),
        }

    def modelled_batch(self, ratio: float) -> int | None:
        """The smallest batch at which the modelled gap is at most the ratio; None where none fits."""
        return _modelled_batch(self.model, self.on, self.context, ratio)

    def measured_batch(self, ratio: float) -> float | None:
        """The batch at which the run's gap equals the ratio; None where no measured batch comes to it."""
        return measured_batch(self.gaps, ratio)


@cache
def _modelled_batch(model: LanguageModel, on: Deployment, context: int, ratio: float) -> int | None:
    fits = largest_batch(model, on, context=context)
    return break_even_batch(model, on, context=context, prompt=context, price_ratio=ratio, largest=fits)


def measured_batch(gaps: Sequence[Gap], ratio: float) -> float | None:
    """The batch at which measured gaps come down to a ratio, at the shortest context that was measured.

    Between two measured batches the gap is taken as a power of the batch, a line in their logarithms. At or
    below the ratio from the smallest batch on, it is that batch; above it to the largest, None.
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
