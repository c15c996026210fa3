"""The gate: no provider is timed before its output agrees with the oracle.

The one place where tolerances are derived. The error of an output row is ||actual - expected|| / ||expected||
in the Euclidean norm; the worst row decides.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SAFETY = 2.0
"""Each term below is a typical size (root mean square); the worst of thousands of rows is within twice it."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to nearest in a floating-point dtype: half its epsilon."""
    return float(torch.finfo(dtype).eps) / 2


def tolerance(dtype: torch.dtype, *, reduction: int, roundings: int = 1) -> float:
    """Bound on the relative L2 error of an output row.

    Two sources: each of `roundings` passes through the storage dtype moves every element by at most its unit
    roundoff u, hence the row's norm by at most u; and accumulating `reduction` products in float32 adds
    rounding errors whose sum grows like a random walk, sqrt(reduction) float32 roundoffs (Higham and Mary,
    SIAM J. Sci. Comput. 41, 2019). `SAFETY` times their sum is allowed.

    Args:
        dtype: the storage dtype of inputs and output.
        reduction: products summed into an output element.
        roundings: times that a value is rounded to `dtype` between input and output.
    """
    accumulation = math.sqrt(reduction) * unit_roundoff(torch.float32)
    return SAFETY * (roundings * unit_roundoff(dtype) + accumulation)


def row_errors(actual: Tensor, expected: Tensor) -> Tensor:
    """Relative L2 error of each row (the last dimension), as float64 [rows].

    A row is infinitely wrong where NaN or an infinity stands in one and not the same in the other; where
    the expected row is all zeros it must be met exactly. Non-finite elements that agree are right.

    Raises:
        ValueError: shapes that differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"actual: has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    width = expected.shape[-1]
    a, e = actual.detach().reshape(-1, width).double(), expected.detach().reshape(-1, width).double()
    finite = e.isfinite()
    agrees = torch.where(finite, a.isfinite(), (a == e) | (a.isnan() & e.isnan())).all(dim=-1)
    a, e = a.where(finite & a.isfinite(), 0.0), e.where(finite, 0.0)
    distance, norm = (a - e).norm(dim=-1), e.norm(dim=-1)
    error = torch.where(distance == 0, 0.0, distance / norm)
    return error.where(agrees, torch.inf)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate found: the worst row, its error, and the tolerance it was held against."""

    relative_error: float
    tolerance: float
    worst_row: int

    @property
    def passed(self) -> bool:
        """Whether the worst row lies within the tolerance."""
        return self.relative_error <= self.tolerance

    @property
    def reason(self) -> str | None:
        """Why it did not pass; None where it did."""
        if self.passed:
            return None
        return (
            f"wrong result: relative error {self.relative_error:.3g} in row {self.worst_row}, "
            f"at most {self.tolerance:.3g} allowed"
        )


def judge(actual: Tensor, expected: Tensor, *, bound: float) -> Verdict:
    """Hold `actual` against `expected` (same shape, any float dtypes); `bound` is on each row's error."""
    errors = row_errors(actual, expected)
    worst = int(errors.argmax())
    return Verdict(relative_error=float(errors[worst]), tolerance=bound, worst_row=worst)
