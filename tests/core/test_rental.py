"""The price of a GPU-hour that stands where none is given."""

from decimal import Decimal

import pytest
from decodetax.harness.core import rental
from decodetax.harness.core.peaks import device_table
from decodetax.harness.core.rental import Rental, default_rental


@pytest.mark.parametrize(
    ("gpu", "listed_as", "usd_per_hour"),
    [
        ("H100-SXM5-80GB", "H100-SXM", "2.95"),
        ("H100-SXM", "H100-SXM", "2.95"),
        ("A100-SXM4-80GB", "A100-80GB", "2.79"),
        ("A100-PCIe-80GB", "A100-80GB-PCIe", "1.39"),
        ("H200-SXM-141GB", "H200", "3.50"),
        ("B200", "B200", "5.50"),
    ],
)
def test_gpu_has_its_on_demand_price(gpu, listed_as, usd_per_hour):
    price = default_rental(gpu)
    assert (price.gpu, price.usd_per_hour) == (listed_as, Decimal(usd_per_hour))
    assert price.basis.startswith("on demand")


@pytest.mark.parametrize(
    "gpu",
    [
        pytest.param("H800-SXM", id="assumed by its operator alone"),
        pytest.param("GB200", id="total cost of ownership alone"),
        pytest.param("H100-PCIe-80GB", id="another H100 is listed"),
        pytest.param("A100-SXM4-40GB", id="another A100 is listed"),
        pytest.param("", id="no name"),
        pytest.param("T4", id="not listed"),
    ],
)
def test_gpu_without_an_on_demand_price_has_none(gpu):
    assert default_rental(gpu) is None


def test_price_says_where_it_comes_from():
    assert default_rental("H100-SXM5-80GB") == Rental(
        gpu="H100-SXM",
        usd_per_hour=Decimal("2.95"),
        basis="on demand",
        source="Nebius via SkyPilot v8 catalog (undated)",
    )


def test_lowest_on_demand_price_wins_whatever_the_order(monkeypatch):
    def listed(usd, basis):
        return "X", Rental(gpu="X-cloud", usd_per_hour=Decimal(usd), basis=basis, source="test")

    prices = (
        listed("0.10", "assumed by the operator"),
        listed("9.00", "on demand"),
        listed("10.00", "on demand"),
        listed("8.50", "on demand (x8)"),
        listed("0.20", "total cost of ownership"),
        listed("0.30", "median of listings"),
    )
    monkeypatch.setattr(rental, "_rentals", lambda: prices)
    assert default_rental("X").usd_per_hour == Decimal("8.50")


def test_every_price_is_for_a_device_of_the_table():
    devices = {row["gpu"] for row in device_table()}
    assert {device for device, _ in rental._rentals()} <= devices
