"""Rotary embedding of a language model, and checks of its numbers."""

import math
from dataclasses import dataclass, fields

from .errors import UsageError, short_repr

SIZE_AT_MOST = 2**31 - 1


def require_size(field: str, value: object, *, least: int = 1) -> None:
    """Checks a size.

    Raises:
        UsageError: it is not an integer from `least` to 2^31 - 1; one line that starts with the field.
    """
    if type(value) is not int or not least <= value <= SIZE_AT_MOST:
        raise UsageError(
            f"{field}: must be an integer from {least} to {SIZE_AT_MOST}, was {short_repr(value)}"
        )


def require_positive(field: str, value: object) -> None:
    """Checks a finite number above 0.

    Raises:
        UsageError: it is none; one line that starts with the field.
    """
    if not is_positive(value):
        raise UsageError(f"{field}: must be a finite number above 0, was {short_repr(value)}")


def is_positive(value: object) -> bool:
    """Whether a value is a finite number above 0."""
    return type(value) in {int, float} and 0 < value < math.inf  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary position embedding (RoPE, arXiv 2104.09864), unscaled, scaled linearly, or as in Llama 3.

    Attributes:
        theta: base of the frequencies.
        factor: divides the frequencies: all of them, or in Llama 3 the low ones; 1 if unscaled.
        low_freq_factor, high_freq_factor, original_positions: limits of Llama 3's scaling; None if linear.

    Raises:
        UsageError: a field is not a positive number, or the limits do not ascend.
    """

    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_positions: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                require_positive(f"rotary.{field.name}", value)
        limits = (self.low_freq_factor, self.high_freq_factor, self.original_positions)
        low, high, _ = limits
        if any(limit is None for limit in limits) and any(limit is not None for limit in limits):
            raise UsageError("rotary: needs all of low_freq_factor, high_freq_factor and original_positions")
        if low is not None and high is not None and low >= high:
            raise UsageError(f"rotary.high_freq_factor: must be above low_freq_factor, {low}, was {high}")

    def frequencies(self, head_dim: int) -> tuple[float, ...]:
        """Radians per position of each pair of a head's elements, [head_dim / 2].

        Llama 3 divides the frequencies whose wavelength exceeds original_positions / low_freq_factor, keeps
        those below original_positions / high_freq_factor, and interpolates between them (Hugging Face
        transformers, modeling_rope_utils.py).
        """
        return tuple(self._scaled(self.theta ** (-2 * i / head_dim)) for i in range(head_dim // 2))

    def _scaled(self, frequency: float) -> float:
        low, high, positions = self.low_freq_factor, self.high_freq_factor, self.original_positions
        if low is None or high is None or positions is None:
            return frequency / self.factor
        turns = positions * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return frequency * (kept + (1 - kept) / self.factor)
