"""Clocks on a fake of NVML."""

import pynvml
import pytest
from decodetax.harness.bench.device import THROTTLE_REASONS, Clocks, NvmlClocks


class FakeNvml:
    """NVML for one GPU; whatever is named in `lost` raises."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM

    def __init__(self, *, lost=(), throttling=0, uuid="GPU-1234"):
        self._lost, self._throttling, self._uuid = lost, throttling, uuid

    def _answer(self, name, value):
        if name in self._lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value

    def nvmlInit(self):  # noqa: N802  (NVML's names, here and below)
        self._answer("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid != self._uuid:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        assert handle == "handle"
        return self._answer("clock", {self.NVML_CLOCK_SM: 1500, self.NVML_CLOCK_MEM: 2600}[kind])

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):  # noqa: N802
        assert (handle, kind) == ("handle", self.NVML_CLOCK_SM)
        return self._answer("most", 1980)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):  # noqa: N802
        assert handle == "handle"
        return self._answer("throttling", self._throttling)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):  # noqa: N802
        assert handle == "handle"
        return self._answer("power", 700_000)

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return self._answer("driver", "550.54.15")


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
