"""Requests on a deployment: steady states at each concurrency, and the concurrencies that limit it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.language_model import LanguageModel
from .basis import decode_basis
from .deployment import Deployment
from .memory_fit import largest_batch
from .steady_state import largest_concurrency, saturation_concurrency, steady_state


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Requests of one size, and what their users expect.

    Attributes:
        input_tokens: tokens of each prompt.
        output_tokens: tokens that are generated for each.
        cache_hits: share of each prompt found in a prefix cache, which costs nothing.
        slo_ttft_s: longest time to the first token that is accepted; None without a bound.
        slo_tpot_s: longest time per output token that is accepted; None without a bound.
    """

    input_tokens: int
    output_tokens: int
    cache_hits: float = 0.0
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None

    @property
    def context(self) -> int:
        """Tokens of a sequence at its end."""
        return self.input_tokens + self.output_tokens

    @property
    def has_slo(self) -> bool:
        """Whether a bound is given."""
        return self.slo_ttft_s is not None or self.slo_tpot_s is not None

    @property
    def _size(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_hits": self.cache_hits,
        }

    def states(
        self, model: LanguageModel, on: Deployment, concurrencies: Sequence[int]
    ) -> list[dict[str, Any]]:
        """A row for each concurrency; requests beyond what fits the memory wait."""
        rows = []
        for each in concurrencies:
            state = steady_state(model, on, concurrency=each, **self._size)
            middle = self.input_tokens + self.output_tokens // 2
            basis = decode_basis(model, on, batch=state.running, context=middle)
            rows.append({**self._size, **state.to_json(), "basis": basis.to_json()})
        return rows

    def limits(self, model: LanguageModel, on: Deployment) -> dict[str, Any]:
        """The concurrency from which throughput hardly grows, the largest in memory, and that of the bounds.

        `slo_concurrency` is the largest concurrency that meets the bounds, 0 if none does, and None without a
        bound; `slo` is the steady state there.
        """
        found = None
        if self.has_slo:
            found = largest_concurrency(
                model, on, **self._size, slo_ttft_s=self.slo_ttft_s, slo_tpot_s=self.slo_tpot_s
            )
        return {
            "provenance": "modelled",
            "saturation_concurrency": saturation_concurrency(model, on, **self._size),
            "memory_concurrency": largest_batch(model, on, context=self.context),
            "slo_ttft_s": self.slo_ttft_s,
            "slo_tpot_s": self.slo_tpot_s,
            "slo_concurrency": found,
            "slo": self.states(model, on, [found])[0] if found else None,
        }


def ttft_alone_s(model: LanguageModel, on: Deployment, prompt: int) -> float | None:
    """Time to the first token of a prompt alone; None if it does not fit the memory."""
    if not largest_batch(model, on, context=prompt + 1):
        return None
    return steady_state(model, on, input_tokens=prompt, output_tokens=1, concurrency=1).ttft_alone_s
