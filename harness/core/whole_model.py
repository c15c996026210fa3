"""Forwards of the whole model, each measured in one piece and beside the time that its parts add up to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from msgspec import to_builtins

from .cases import Phase
from .gap import TOKEN_PARTS, Gap
from .record_fields import SMALLEST, Length, NonNegative, Positive, Size, require_keys
from .statistics import Summary, summarise

CLOSE = 0.10
"""The composed rate agrees with the measured one if it differs by at most this share."""

NAMED_SHARE = 0.25
"""A part is named where it causes at least this share of the difference."""


@dataclass(frozen=True, kw_only=True)
class WholeForward:
    """One prefill forward or one decode step of several layers, embedding and LM head.

    Attributes:
        by: "decodetax", or a peer and its version.
        sequences: prompts of a forward, or the batch of a step.
        tokens: tokens of a prompt, or the context of a step, its new token included.
        layers: layers of the forward, each with weights of its own.
        limited_by: why these are not all of the model's; None if they are.
        reason: why there are no samples; None if there are.
        composed_parts_s: seconds of the same forward as the run's gap composes it, by TOKEN_PARTS.
        parts_s: seconds of each part inside the forward; None if they were not taken.
        one_layer_s: seconds of the forward with the weights and the KV cache of one layer for all; None if
            it was not timed.
        relative_error, tolerance: largest relative L2 error of a row of logits, and its limit.
        method: how the samples were taken.

    Raises:
        ValueError: the fields contradict one another, or a part is missing.
    """

    phase: Phase
    by: str
    sequences: Size
    tokens: Length
    layers: Size
    status: Literal["ok", "failed", "skipped"]
    limited_by: Literal["memory", "time"] | None = None
    reason: str | None = None
    samples_s: Sequence[Positive] = ()
    composed_parts_s: Mapping[str, NonNegative] | None = None
    parts_s: Mapping[str, NonNegative] | None = None
    one_layer_s: Positive | None = None
    relative_error: NonNegative | None = None
    tolerance: NonNegative | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        if (self.status == "ok") != bool(self.samples_s):
            raise ValueError(f"samples_s: {len(self.samples_s)} of a forward that is {self.status}")
        if (self.status == "ok") != (self.reason is None):
            raise ValueError(f"reason: is {self.reason!r} on a forward that is {self.status}")
        if self.status == "ok" and self.composed_parts_s is None:
            raise ValueError("composed_parts_s: is null on a forward that is ok")
        for name in ("composed_parts_s", "parts_s"):
            if (parts_s := getattr(self, name)) is not None:
                require_keys(name, parts_s, TOKEN_PARTS)
                if not sum(parts_s.values()) >= SMALLEST:
                    raise ValueError(f"{name}: sum to {sum(parts_s.values())} s, must be above 0")

    @property
    def new_tokens(self) -> int:
        """Tokens that pass through a forward."""
        return self.sequences * (self.tokens if self.phase == "prefill" else 1)

    @cached_property
    def time_s(self) -> Summary:
        """Median seconds of a forward with its 95% interval; of an ok forward only."""
        return summarise(self.samples_s)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second, measured; of an ok forward only."""
        return self.new_tokens / self.time_s.median

    @property
    def composed_s(self) -> float:
        """Seconds of the forward, composed of its parts; of an ok forward only."""
        return sum((self.composed_parts_s or {}).values())

    @property
    def composed_tokens_per_s(self) -> float:
        """Tokens per second, composed of the parts; of an ok forward only."""
        return self.new_tokens / self.composed_s

    @property
    def composed_over_measured(self) -> float:
        """The composed rate over the measured one; of an ok forward only."""
        return self.time_s.median / self.composed_s

    @property
    def close(self) -> bool:
        """Whether the composed rate agrees with the measured one; of an ok forward only."""
        return abs(self.composed_over_measured - 1) <= CLOSE

    @property
    def causes(self) -> tuple[str, ...]:
        """The parts that cause most of the difference to the composed time, the largest first."""
        if self.parts_s is None or self.composed_parts_s is None:
            return ()
        sign = math.copysign(1, self.time_s.median - self.composed_s)
        added = {part: sign * (self.parts_s[part] - self.composed_parts_s[part]) for part in TOKEN_PARTS}
        least = NAMED_SHARE * abs(self.time_s.median - self.composed_s)
        named = [part for part in TOKEN_PARTS if added[part] > 0 and added[part] >= least]
        return tuple(sorted(named, key=lambda part: -added[part]))

    def to_json(self) -> dict[str, Any]:
        """The forward as a JSON object: its fields and derived figures."""
        entry: dict[str, Any] = to_builtins(self)
        if self.status == "ok":
            entry |= {
                "time_s": to_builtins(self.time_s),
                "tokens_per_s": self.tokens_per_s,
                "composed_tokens_per_s": self.composed_tokens_per_s,
                "composed_over_measured": self.composed_over_measured,
            }
        return entry | {"provenance": "measured"}


@dataclass(frozen=True, kw_only=True)
class WholeModel:
    """The measured forwards of a run's whole model.

    Attributes:
        layers: layers of the model.
        reason: why the step ended before its last forward; None if it did not.
        elapsed_s: seconds of the whole step, the drawing of weights included.
    """

    layers: Size
    forwards: Sequence[WholeForward] = ()
    reason: str | None = None
    elapsed_s: NonNegative = 0.0

    @property
    def timed_s(self) -> float:
        """Seconds in timed forwards."""
        return math.fsum(sample for forward in self.forwards for sample in forward.samples_s)

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object: its fields and derived figures."""
        return {**to_builtins(self), "forwards": [forward.to_json() for forward in self.forwards]}


def composed_parts_s(gap: Gap, phase: Phase, *, tokens: int, layers: int, of_layers: int) -> dict[str, float]:
    """Seconds of a forward of `tokens` new tokens and `layers` of `of_layers` layers, by TOKEN_PARTS."""
    per_token_s = gap.input_parts_s if phase == "prefill" else gap.output_parts_s
    shares = dict.fromkeys(TOKEN_PARTS, layers / of_layers) | {"lm_head": 1.0}
    return {part: tokens * shares[part] * per_token_s[part] for part in TOKEN_PARTS}
