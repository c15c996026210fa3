"""The cost gap at one batch and context: seconds of an output token over seconds of an input token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import to_builtins

from .cases import Length, Size
from .record_fields import SMALLEST, NonNegative, require_keys

TOKEN_PARTS = ("projections", "attention", "rest", "lm_head")
"""Parts of a token's time; "rest" is the time of a complete layer minus its projections and attention."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What an output token costs compared with an input token, at one batch and context.

    Attributes:
        prompt: tokens of the prompt that the input token belongs to.
        input_parts_s, output_parts_s: device seconds per token over all layers, by TOKEN_PARTS.
        providers: the fastest provider by case id.
        prefill_layer_over_parts, decode_layer_over_parts: time of a complete layer over that of its parts.
        triton_gap: the gap of the Triton kernels alone; None if one of them did not run.
        usd_per_hour: price of the device, US dollars per hour; None if unknown.

    Raises:
        ValueError: a part is missing, or the parts sum to 0.
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
    provenance: Literal["measured"] = "measured"

    def __post_init__(self) -> None:
        for name, parts_s in (("input", self.input_parts_s), ("output", self.output_parts_s)):
            require_keys(f"{name}_parts_s", parts_s, TOKEN_PARTS)
            if not sum(parts_s.values()) >= SMALLEST:
                raise ValueError(f"{name}_parts_s: sum to {sum(parts_s.values())} s, must be above 0")

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

    def usd_per_mtok(self, s_per_token: float) -> float | None:
        """US dollars of a million tokens of `s_per_token` seconds each; None without a price."""
        return None if self.usd_per_hour is None else s_per_token * 1e6 * self.usd_per_hour / 3600

    def to_json(self) -> dict[str, Any]:
        """The gap as a JSON object: its fields and derived figures."""
        entry = to_builtins(self) | {
            "input_s_per_token": self.input_s_per_token,
            "output_s_per_token": self.output_s_per_token,
            "input_tokens_per_s": 1 / self.input_s_per_token,
            "output_tokens_per_s": 1 / self.output_s_per_token,
            "gap": self.gap,
            "input_usd_per_mtok": self.usd_per_mtok(self.input_s_per_token),
            "output_usd_per_mtok": self.usd_per_mtok(self.output_s_per_token),
        }
        return {name: value for name, value in entry.items() if "usd" not in name or value is not None}
