"""A fake of NVML."""

import types

import pynvml


class FakeNvml:
    """NVML for one GPU; whatever is named in `lost` raises."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM

    nvmlClocksThrottleReasonApplicationsClocksSetting = 2  # noqa: N815

    def __init__(
        self,
        *,
        lost=(),
        throttling=0,
        uuid="GPU-1234",
        ecc=1,
        mig=0,
        compute_mode=0,
        pids=(),
        graphics_pids=(),
        cuda=12080,
    ):
        self._lost, self._throttling, self._uuid = lost, throttling, uuid
        self._ecc, self._mig, self._compute_mode, self._cuda = ecc, mig, compute_mode, cuda
        self._pids, self._graphics_pids = pids, graphics_pids

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

    def nvmlSystemGetCudaDriverVersion_v2(self):  # noqa: N802
        return self._answer("cuda", self._cuda)

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        assert index == 0
        return "handle"

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        assert handle == "handle"
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetEccMode(self, handle):  # noqa: N802
        assert handle == "handle"
        return self._answer("ecc", [self._ecc, 1])  # now, and after a restart

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        assert handle == "handle"
        return self._answer("mig", [self._mig, 0])

    def nvmlDeviceGetComputeMode(self, handle):  # noqa: N802
        assert handle == "handle"
        return self._answer("mode", self._compute_mode)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        assert handle == "handle"
        return self._answer("processes", [types.SimpleNamespace(pid=pid) for pid in self._pids])

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):  # noqa: N802
        assert handle == "handle"
        return self._answer("processes", [types.SimpleNamespace(pid=pid) for pid in self._graphics_pids])
