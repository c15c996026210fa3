"""Clocks, power limit and driver of a GPU, where NVML tells."""

from typing import Any, Protocol, Self

import pynvml

THROTTLE_REASONS = {
    "power cap": pynvml.nvmlClocksThrottleReasonSwPowerCap,
    "thermal, software": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
    "thermal, hardware": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "power brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    "hardware slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
}


class Clocks(Protocol):
    """What a device tells of its clocks."""

    def clock_hz(self) -> float | None:
        """The SM clock now."""

    def throttle_reasons(self) -> tuple[str, ...]:
        """Why the clock is held down now; empty where it is not, or where nothing is known."""

    def facts(self) -> dict[str, Any]:
        """Driver, clocks and power limit, for the environment of a run."""


class NoClocks:
    """A device that tells nothing."""

    def clock_hz(self) -> float | None:
        """Unknown."""
        return None

    def throttle_reasons(self) -> tuple[str, ...]:
        """Unknown."""
        return ()

    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class NvmlClocks:
    """A GPU that NVML knows.

    Args:
        handle: NVML's handle of the GPU.
        nvml: stands in for `pynvml` in tests.
    """

    def __init__(self, handle: Any, *, nvml: Any = pynvml) -> None:
        self._handle, self._nvml = handle, nvml

    @classmethod
    def of(cls, uuid: str, *, nvml: Any = pynvml) -> Self | NoClocks:
        """The GPU that torch names by `uuid`; no clocks where NVML is not there or does not know it."""
        try:
            nvml.nvmlInit()
            return cls(nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"), nvml=nvml)
        except nvml.NVMLError:
            return NoClocks()

    def clock_hz(self) -> float | None:
        """The SM clock now."""
        clock_hz: float | None = self._ask(
            lambda n: n.nvmlDeviceGetClockInfo(self._handle, n.NVML_CLOCK_SM) * 1e6
        )
        return clock_hz

    def throttle_reasons(self) -> tuple[str, ...]:
        """Why the clock is held down now."""
        mask = self._ask(lambda n: n.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)) or 0
        return tuple(name for name, bit in THROTTLE_REASONS.items() if int(mask) & bit)

    def facts(self) -> dict[str, Any]:
        """Driver, clocks and power limit; what the GPU does not tell is left out."""
        questions = {
            "driver": lambda n: n.nvmlSystemGetDriverVersion(),
            "sm_clock_hz": lambda n: n.nvmlDeviceGetClockInfo(self._handle, n.NVML_CLOCK_SM) * 1e6,
            "sm_clock_max_hz": lambda n: n.nvmlDeviceGetMaxClockInfo(self._handle, n.NVML_CLOCK_SM) * 1e6,
            "memory_clock_hz": lambda n: n.nvmlDeviceGetClockInfo(self._handle, n.NVML_CLOCK_MEM) * 1e6,
            "power_limit_w": lambda n: n.nvmlDeviceGetEnforcedPowerLimit(self._handle) * 1e-3,
        }
        answers = {name: self._ask(question) for name, question in questions.items()}
        return {name: answer for name, answer in answers.items() if answer is not None}

    def _ask(self, question: Any) -> Any:
        try:
            return question(self._nvml)
        except self._nvml.NVMLError:
            return None
