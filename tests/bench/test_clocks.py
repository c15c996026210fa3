"""Clocks, state and driver of a GPU on a fake of NVML."""

import os

import pynvml
import pytest
from decodetax.harness.bench.clocks import THROTTLE_REASONS, Clocks, NvmlClocks, nvidia_driver
from fake_nvml import FakeNvml


def clocks(**options):
    return NvmlClocks.of("1234", nvml=FakeNvml(**options))


@pytest.mark.parametrize("uuid", ["1234", "GPU-1234"])
def test_gpu_is_found_by_torchs_uuid(uuid):
    assert isinstance(NvmlClocks.of(uuid, nvml=FakeNvml()), NvmlClocks)


@pytest.mark.parametrize("options", [{"lost": {"init"}}, {"uuid": "GPU-9"}], ids=["no driver", "another GPU"])
def test_gpu_that_nvml_does_not_know_has_no_clocks(options):
    found = clocks(**options)
    assert type(found) is Clocks
    assert (found.clock_hz(), found.throttle_reasons(), found.facts()) == (None, (), {})


def test_facts_are_in_base_units():
    assert clocks().facts() == {
        "driver": "550.54.15",
        "sm_clock_hz": 1.5e9,
        "sm_clock_max_hz": 1.98e9,
        "memory_clock_hz": 2.6e9,
        "power_limit_w": pytest.approx(700.0),
    }
    assert clocks().clock_hz() == 1.5e9


@pytest.mark.parametrize(
    ("lost", "left"),
    [
        ({"power"}, {"driver", "sm_clock_hz", "sm_clock_max_hz", "memory_clock_hz"}),
        ({"clock"}, {"driver", "sm_clock_max_hz", "power_limit_w"}),
        ({"driver", "most"}, {"sm_clock_hz", "memory_clock_hz", "power_limit_w"}),
        ({"driver", "most", "clock", "power"}, set()),
    ],
    ids=lambda value: "+".join(sorted(value)) or "nothing",
)
def test_facts_leave_out_what_nvml_cannot_read(lost, left):
    assert clocks(lost=lost).facts().keys() == left


NAMED = [
    (0x0000000000000004, ("power cap",)),
    (0x0000000000000020, ("thermal, software",)),
    (0x0000000000000040, ("thermal, hardware",)),
    (0x0000000000000080, ("power brake",)),
    (0x0000000000000008, ("hardware slowdown",)),
]


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        *NAMED,
        (0x44, ("power cap", "thermal, hardware")),
        pytest.param(0x1, (), id="idle is no throttling"),
        pytest.param(0x2, (), id="clocks set by the user are no throttling"),
        (0, ()),
    ],
)
def test_throttle_reasons_are_named(mask, reasons):
    assert clocks(throttling=mask).throttle_reasons() == reasons


def test_every_throttle_reason_has_its_own_bit():
    assert len(set(THROTTLE_REASONS.values())) == len(THROTTLE_REASONS) == len(NAMED)


def test_clock_and_throttling_that_nvml_cannot_read_are_unknown():
    found = clocks(lost={"clock", "throttling"})
    assert (found.clock_hz(), found.throttle_reasons()) == (None, ())


def test_state_says_what_can_disturb_a_measurement():
    found = clocks(ecc=0, mig=1, compute_mode=3, pids=(os.getpid(), 7), graphics_pids=(8,), throttling=0x3)
    assert found.state() == {
        "ecc": False,
        "mig": True,
        "compute_mode": "exclusive process",
        "clocks_set": True,
        "other_processes": [7, 8],
    }


def test_state_of_an_idle_gpu_is_undisturbed():
    assert clocks().state() == {
        "ecc": True,
        "mig": False,
        "compute_mode": "default",
        "clocks_set": False,
        "other_processes": [],
    }


def test_state_leaves_out_what_nvml_cannot_read():
    assert clocks(lost={"ecc", "mig", "mode", "throttling", "processes"}).state() == {}
    assert Clocks().state() == {}


def test_driver_is_found_without_torch():
    assert nvidia_driver(nvml=FakeNvml(cuda=13010)) == {
        "driver": "550.54.15",
        "cuda": "13.1",
        "gpus": ["NVIDIA H100 80GB HBM3"],
    }
    with pytest.raises(pynvml.NVMLError):
        nvidia_driver(nvml=FakeNvml(lost={"init"}))
