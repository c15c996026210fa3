"""Types of the numbers in a run file, and checks that several records share."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

SMALLEST, LARGEST = 1e-24, 1e24
"""Limits of the numbers in a run file: beyond any real time, rate or size; their products do not overflow."""

Positive = Annotated[float, Meta(ge=SMALLEST, le=LARGEST)]
NonNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Length = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Status = Literal["ok", "failed", "skipped", "unsupported"]
Dtype = Annotated[str, Meta(pattern=r"\A(bf16|fp16|fp32)\Z")]


def require_keys(field_name: str, found: Mapping[str, Any], names: Sequence[str]) -> None:
    """Make sure that a mapping in a record has all of these keys.

    Raises:
        ValueError: it lacks one; names the field and the first missing key.
    """
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{field_name}: lacks {missing[0]}")


def check_ok(status: Status, samples_s: Sequence[float], reason: str | None) -> None:
    """Make sure that a row has samples if it is ok, and a reason if it is not.

    Raises:
        ValueError: it contradicts itself; names the field.
    """
    if (status == "ok") != bool(samples_s):
        raise ValueError(f"samples_s: {len(samples_s)} of a row that is {status}")
    if (status == "ok") != (reason is None):
        raise ValueError(f"reason: is {reason!r} on a row that is {status}")


def finite(error: float | None) -> float | None:
    """An error as JSON has it, without infinity and NaN; the reason states them."""
    return error if error is not None and math.isfinite(error) else None
