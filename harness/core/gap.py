"""The cost gap at one batch and context: seconds of an output token over seconds of an input token."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import to_builtins

from .record_fields import SMALLEST, Length, NonNegative, Positive, Size, require_keys

TOKEN_PARTS = ("projections", "attention", "rest", "lm_head")
"""Parts of a token's time where every layer is alike; "rest" is the time of a complete layer minus its
projections and attention."""

ATTENTION_PARTS = ("attention", "window_attention", "latent_attention")
"""Parts of a token's time by the kind of attention: of the whole context, of a sliding window, MLA."""

PARTS = ("projections", "experts", *ATTENTION_PARTS, "communication", "rest", "lm_head")
"""All parts of a token's time. A model has those of its layers; "rest" is absent where no complete layer is
timed, as of layers that differ, and "communication" on one rank."""

ROUNDING = 1e-9
"""Share by which the sum of a token's parts may change with their order in a file."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The bounds of a figure's 95% interval, in the figure's unit.

    Raises:
        ValueError: the lower bound is above the upper one.
    """

    low: Positive
    high: Positive

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low: {self.low} is above high, {self.high}")

    @property
    def bounds(self) -> tuple[float, float]:
        """The lower and the upper bound."""
        return self.low, self.high

    @property
    def half_width(self) -> float:
        """Half of the interval's width over its geometric mean; 0.1 is about +-10%."""
        return (self.high - self.low) / 2 / math.sqrt(self.low * self.high)

    def scaled(self, factor: float) -> "Interval":
        """The interval of `factor` times the figure."""
        return Interval(low=self.low * factor, high=self.high * factor)

    def inverse(self) -> "Interval":
        """The interval of 1 over the figure."""
        return Interval(low=1 / self.high, high=1 / self.low)

    def holds(self, figure: float) -> bool:
        """Whether a figure lies within the bounds, as far as rounding tells."""
        return self.low <= figure * (1 + ROUNDING) and figure <= self.high * (1 + ROUNDING)


Intervals = tuple[Interval | None, Interval | None]
"""Intervals of an input and an output token; None where unknown."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What an output token costs compared with an input token, at one batch and context.

    Attributes:
        prompt: tokens of the prompt that the input token belongs to.
        input_parts_s, output_parts_s: device seconds per token over all layers, by part: those of PARTS that
            the model has, the same for both.
        providers: the fastest provider by case id.
        prefill_layer_over_parts, decode_layer_over_parts: time of a complete layer over that of its parts;
            None where no complete layer is timed.
        triton_gap: the gap of the Triton kernels alone; None if one of them did not run.
        usd_per_hour: price of one device, US dollars per hour; None if unknown.
        ranks: devices that share the model; seconds and tokens are those of all together.
        rounds: rounds of the run, from 0, in which every part was timed; empty in older files.
        input_rounds_s, output_rounds_s: device seconds per token from the medians of each of these rounds,
            outliers of a row winsorised.
        gap_interval, triton_gap_interval, input_s_per_token_interval, output_s_per_token_interval: the 95%
            intervals of these figures; None with too few rounds, as in older files.

    Raises:
        ValueError: a part is missing, the parts sum to 0, or rounds or intervals contradict the figures.
    """

    batch: Size
    context: Length
    prompt: Size
    input_parts_s: Mapping[str, NonNegative]
    output_parts_s: Mapping[str, NonNegative]
    providers: Mapping[str, str]
    prefill_layer_over_parts: NonNegative | None
    decode_layer_over_parts: NonNegative | None
    triton_gap: NonNegative | None = None
    usd_per_hour: NonNegative | None = None
    ranks: Size = 1
    rounds: Sequence[Length] = ()
    input_rounds_s: Sequence[Positive] = ()
    output_rounds_s: Sequence[Positive] = ()
    gap_interval: Interval | None = None
    triton_gap_interval: Interval | None = None
    input_s_per_token_interval: Interval | None = None
    output_s_per_token_interval: Interval | None = None
    provenance: Literal["measured"] = "measured"

    def __post_init__(self) -> None:
        for name, parts_s in (("input", self.input_parts_s), ("output", self.output_parts_s)):
            require_keys(f"{name}_parts_s", parts_s, ("projections", "lm_head"))
            if not any(part in parts_s for part in ATTENTION_PARTS):
                raise ValueError(f"{name}_parts_s: lacks attention")
            if not sum(parts_s.values()) >= SMALLEST:
                raise ValueError(f"{name}_parts_s: sum to {sum(parts_s.values())} s, must be above 0")
        for name, rounds_s in (("input", self.input_rounds_s), ("output", self.output_rounds_s)):
            if len(rounds_s) != len(self.rounds):
                raise ValueError(f"{name}_rounds_s: {len(rounds_s)} of {len(self.rounds)} rounds")
        if len(set(self.rounds)) != len(self.rounds):
            raise ValueError("rounds: a round is repeated")
        for name in ("gap", "triton_gap", "input_s_per_token", "output_s_per_token"):
            figure, interval = getattr(self, name), getattr(self, f"{name}_interval")
            if interval is not None and (figure is None or not interval.holds(figure)):
                raise ValueError(
                    f"{name}_interval: {interval.low} to {interval.high} does not hold {name}, {figure}"
                )

    @property
    def input_s_per_token(self) -> float:
        """Device seconds of an input token."""
        return sum(self.input_parts_s.values())

    @property
    def output_s_per_token(self) -> float:
        """Device seconds of an output token."""
        return sum(self.output_parts_s.values())

    @property
    def gap(self) -> float:
        """Seconds of an output token over seconds of an input token."""
        return self.output_s_per_token / self.input_s_per_token

    @property
    def gap_rounds(self) -> list[float]:
        """The gap in each of `rounds`."""
        return [out_s / in_s for in_s, out_s in zip(self.input_rounds_s, self.output_rounds_s, strict=True)]

    def usd_per_mtok(self, s_per_token: float) -> float | None:
        """US dollars of a million tokens of `s_per_token` seconds each on all ranks; None without a price."""
        if self.usd_per_hour is None:
            return None
        return s_per_token * 1e6 * self.usd_per_hour * self.ranks / 3600

    @property
    def tokens_per_s_intervals(self) -> Intervals:
        """The 95% intervals of input and of output tokens per second."""
        input_s, output_s = self.input_s_per_token_interval, self.output_s_per_token_interval
        return input_s and input_s.inverse(), output_s and output_s.inverse()

    @property
    def usd_intervals(self) -> Intervals:
        """The 95% intervals of US dollars per million input and output tokens; None without a price."""
        input_s, output_s = self.input_s_per_token_interval, self.output_s_per_token_interval
        usd = self.usd_per_mtok(1.0)
        if usd is None:
            return None, None
        return input_s and input_s.scaled(usd), output_s and output_s.scaled(usd)

    def to_json(self) -> dict[str, Any]:
        """The gap as a JSON object: its fields and derived figures."""
        figures: dict[str, Any] = {"gap": self.gap}
        sides = zip(("input", "output"), self.tokens_per_s_intervals, self.usd_intervals, strict=True)
        for side, rate_interval, usd_interval in sides:
            s_per_token = getattr(self, f"{side}_s_per_token")
            figures |= {
                f"{side}_s_per_token": s_per_token,
                f"{side}_tokens_per_s": 1 / s_per_token,
                f"{side}_tokens_per_s_interval": rate_interval,
                f"{side}_usd_per_mtok": self.usd_per_mtok(s_per_token),
                f"{side}_usd_per_mtok_interval": usd_interval,
            }
        entry = to_builtins(self) | to_builtins(figures)
        if self.ranks == 1:
            entry.pop("ranks", None)
        return {name: value for name, value in entry.items() if "usd" not in name or value is not None}
