"""What an hour of a GPU costs to rent: the default that turns seconds into dollars."""

import functools
from dataclasses import dataclass
from decimal import Decimal

from .data_table import data_table

_BASIS = "on demand"


@dataclass(frozen=True, kw_only=True)
class Rental:
    """The price of one GPU for one hour.

    Attributes:
        gpu: name in the price list, such as "H100-SXM".
        usd_per_hour: US dollars per GPU-hour.
        basis: what kind of price it is, such as "on demand (x1)".
        source: who lists it, and when where that is known.
    """

    gpu: str
    usd_per_hour: Decimal
    basis: str
    source: str


def default_rental(gpu: str) -> Rental | None:
    """Gives the price that stands for a GPU where none is given: the lowest on-demand price listed for it.

    An assumed price, a total cost of ownership or a median of listings is never taken: none of them is what
    an hour can be had for.

    Args:
        gpu: a name of the price list, or a `DevicePeaks.gpu`.

    Returns:
        The price, or None where no on-demand price is listed.
    """
    listed = [
        rental
        for device, rental in _rentals()
        if gpu in (rental.gpu, device) and rental.basis.startswith(_BASIS)
    ]
    return min(listed, key=lambda rental: rental.usd_per_hour, default=None)


@functools.cache
def _rentals() -> tuple[tuple[str, Rental], ...]:
    """The price list, each price with the device of the table of peaks that it is for."""
    return tuple(
        (
            row["device"],
            Rental(
                gpu=row["gpu"],
                usd_per_hour=Decimal(row["usd_per_gpu_hour"]),
                basis=row["basis"],
                source=row["source"],
            ),
        )
        for row in data_table("gpu_rental.csv")
    )
