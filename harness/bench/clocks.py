"""Clocks, state and driver of an NVIDIA GPU, read through NVML; tests pass a fake of it."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import pynvml

THROTTLE_REASONS = {
    "power cap": pynvml.nvmlClocksThrottleReasonSwPowerCap,
    "thermal, software": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
    "thermal, hardware": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "power brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    "hardware slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
}

COMPUTE_MODES = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "default",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD: "exclusive thread",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive process",
}


class Clocks:
    """The clocks of a device that reports none."""

    def clock_hz(self) -> float | None:
        """The SM clock now; None if unknown."""
        return None

    def throttle_reasons(self) -> tuple[str, ...]:
        """Why the clock is throttled now; empty if it is not, or if unknown."""
        return ()

    def facts(self) -> dict[str, Any]:
        """Driver, clocks and power limit, as far as they are known."""
        return {}

    def state(self) -> dict[str, Any]:
        """What can disturb or forbid a measurement, as far as it is known (see `NvmlClocks.state`)."""
        return {}


class NvmlClocks(Clocks):
    """The clocks of a GPU, read through NVML.

    Args:
        handle: NVML's handle of the GPU.
        nvml: replaces `pynvml` in tests.
    """

    def __init__(self, handle: Any, *, nvml: Any = pynvml) -> None:
        self._handle, self._nvml = handle, nvml

    @classmethod
    def of(cls, uuid: str, *, nvml: Any = pynvml) -> Clocks:
        """The clocks of the GPU with torch's `uuid`; unknown ones if NVML is missing or does not find it."""
        try:
            nvml.nvmlInit()
            return cls(nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"), nvml=nvml)
        except nvml.NVMLError:
            return Clocks()

    def clock_hz(self) -> float | None:  # noqa: D102  (inherited, as below)
        clock_hz: float | None = self._ask(
            lambda n: n.nvmlDeviceGetClockInfo(self._handle, n.NVML_CLOCK_SM) * 1e6
        )
        return clock_hz

    def throttle_reasons(self) -> tuple[str, ...]:  # noqa: D102
        mask = self._ask(lambda n: n.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)) or 0
        return tuple(name for name, bit in THROTTLE_REASONS.items() if int(mask) & bit)

    def facts(self) -> dict[str, Any]:  # noqa: D102
        questions = {
            "driver": lambda n: n.nvmlSystemGetDriverVersion(),
            "sm_clock_hz": lambda n: n.nvmlDeviceGetClockInfo(self._handle, n.NVML_CLOCK_SM) * 1e6,
            "sm_clock_max_hz": lambda n: n.nvmlDeviceGetMaxClockInfo(self._handle, n.NVML_CLOCK_SM) * 1e6,
            "memory_clock_hz": lambda n: n.nvmlDeviceGetClockInfo(self._handle, n.NVML_CLOCK_MEM) * 1e6,
            "power_limit_w": lambda n: n.nvmlDeviceGetEnforcedPowerLimit(self._handle) * 1e-3,
        }
        return self._answers(questions)

    def state(self) -> dict[str, Any]:
        """What can disturb or forbid a measurement; what NVML cannot say is left out.

        Returns:
            "ecc" and "mig": whether they are on; "compute_mode"; "clocks_set": whether the clock is held by a
            setting; "other_processes": ids of other processes with a context on the GPU.
        """
        set_bit = self._nvml.nvmlClocksThrottleReasonApplicationsClocksSetting
        questions = {
            "ecc": lambda n: bool(n.nvmlDeviceGetEccMode(self._handle)[0]),
            "mig": lambda n: bool(n.nvmlDeviceGetMigMode(self._handle)[0]),
            "compute_mode": lambda n: COMPUTE_MODES.get(n.nvmlDeviceGetComputeMode(self._handle)),
            "clocks_set": lambda n: bool(n.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle) & set_bit),
            "other_processes": lambda n: [
                process.pid
                for running in (
                    n.nvmlDeviceGetComputeRunningProcesses,
                    n.nvmlDeviceGetGraphicsRunningProcesses,
                )
                for process in running(self._handle)
                if process.pid != os.getpid()
            ],
        }
        return self._answers(questions)

    def _answers(self, questions: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
        answers = {name: self._ask(question) for name, question in questions.items()}
        return {name: answer for name, answer in answers.items() if answer is not None}

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self._nvml)
        except self._nvml.NVMLError:
            return None


def nvidia_driver(*, nvml: Any = pynvml) -> dict[str, Any]:
    """The NVIDIA driver of this machine, found without torch.

    Returns:
        "driver": its version; "cuda": the newest CUDA that it runs, such as 12.8; "gpus": names of its GPUs.

    Raises:
        NVMLError: no driver is loaded, or its library is missing or of another version.
    """
    nvml.nvmlInit()
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
    return {
        "driver": nvml.nvmlSystemGetDriverVersion(),
        "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
        "gpus": [nvml.nvmlDeviceGetName(handle) for handle in handles],
    }
