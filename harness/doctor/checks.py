"""The checks of `decodetax doctor`: functions of what the probes found, or of the machine, by name.

No module here imports torch or triton, either of which may be broken: `probes` does, in its own process.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..bench.launcher import c_compiler, launcher_problem
from ..core.cache_folders import triton_cache_folder, triton_cache_problem
from .facts import Answer, Facts, Version, shown, version, ways
from .probes import FORMS

OK, WARNING, FAILED = "ok", "warning", "failed"
"""Status of a check. Only "failed" means that `decodetax run` cannot work."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        text: what it is, in one line.
        status: OK, WARNING or FAILED.
        consequence: what that means for `decodetax run`; empty if OK.
    """

    text: str
    status: str = OK
    consequence: str = ""


Check = Callable[[Facts], Finding | None]
"""A check of the facts or of the machine; None where it does not apply."""


def warning(text: str, consequence: str) -> Finding:
    """A finding despite which `decodetax run` works."""
    return Finding(text=text, status=WARNING, consequence=consequence)


def failed(text: str, consequence: str) -> Finding:
    """A finding with which `decodetax run` cannot work."""
    return Finding(text=text, status=FAILED, consequence=consequence)


TESTED: Mapping[str, tuple[Version, Version | None]] = {
    "torch": ((2, 6), None),
    "triton": ((3, 6), (3, 9)),
    "numpy": ((1, 26), None),
}
"""The oldest version that a package may have, and the newest that was tested if a newer one may break."""

NCU_VERSION: Version = (2026, 2, 1)
"""The oldest Nsight Compute that `decodetax run --counters` can use."""

CACHE_BYTES = 500e6
"""Free space that a run's compiled kernels fit in."""

PROC = Path("/proc")

# Software


def _python(_facts: Facts) -> Finding:
    text = platform.python_version()
    for name in ("decodetax", "torch", "triton"):
        wanted = _python_wanted(name)
        for sign, bound in re.findall(r"(>=|<)\s*([\d.]+)", wanted):
            if (version(text) < version(bound)) == (sign == ">="):
                return failed(f"{text}, but {name} needs {wanted}", "`run` cannot work: use another Python")
    return Finding(text=text)


def _python_wanted(name: str) -> str:
    """The versions of Python that an installed package declares, such as ">=3.11,<3.15"; empty if none."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    return next(iter(metadata.get_all("Requires-Python") or ()), "")


def _package(name: str, facts: Facts) -> Finding:
    answer: Answer = getattr(facts, name)
    if "broken" in answer:
        return failed(f"cannot be imported: {answer['broken']}", f"`run` cannot work: reinstall {name}")
    text, (oldest, newest) = answer["version"], TESTED[name]
    if version(text) < oldest:
        return failed(f"{text} is too old", f"`run` cannot work: install {name} {shown(oldest)} or newer")
    if newest is not None and version(text)[: len(newest)] > newest:
        return warning(
            f"{text} is newer than {shown(newest)}, the newest tested",
            f"if a kernel below is not ok, install {name} {shown(newest)}",
        )
    return Finding(text=f"{text} ({_build(answer)})" if name == "torch" else text)


def _build(torch: Answer) -> str:
    if torch["rocm"]:
        return f"ROCm {torch['rocm']} build"
    return f"CUDA {torch['cuda']} build" if torch["cuda"] else "CPU build"


def _together(facts: Facts) -> Finding | None:
    """Versions that do not work together, each of which may be fine."""
    if not facts.imports:
        return None
    torch, triton, numpy = (answer["version"] for answer in (facts.torch, facts.triton, facts.numpy))
    if version(triton)[:2] == (3, 6) and version(numpy) >= (2, 4):
        return warning(
            f"the interpreter of triton {triton} needs numpy below 2.4, installed is {numpy}",
            "`run` works, as it patches the interpreter; elsewhere loops in interpreted kernels may fail",
        )
    pin = facts.torch["triton_pin"]
    if pin is not None and version(pin) != version(triton):
        return warning(
            f"torch {torch} asks for triton {pin}, installed is {triton}",
            "the `torch-flex` rows of `run` may fail",
        )
    return Finding(text="torch, triton and numpy work together")


def _rocm(facts: Facts) -> Finding | None:
    torch, cpu = facts.torch, "`run` measures NVIDIA GPUs and CPUs"
    if not torch.get("rocm"):
        return None
    if torch["no_gpu"] is None:
        return failed("torch is a ROCm build and finds an AMD GPU", f"{cpu}: `run --device cpu` works")
    return warning("torch is a ROCm build", f"{cpu}, here the CPU")


def _unused_gpu(facts: Facts) -> Finding | None:
    """An NVIDIA GPU that torch does not find."""
    torch, newest = facts.torch, facts.nvidia.get("cuda")
    if torch.get("no_gpu") is None or torch["rocm"] or not facts.has_nvidia_gpu:
        return None
    if torch["cuda"] is None:
        text, fix = "torch is a CPU build, and an NVIDIA GPU is here", "install a CUDA build of torch"
    elif newest is not None and version(newest)[:1] < version(torch["cuda"])[:1]:
        text = f"driver {facts.nvidia['driver']} runs CUDA {newest}, torch is a CUDA {torch['cuda']} build"
        fix = "update the driver, or install an older CUDA build of torch"
    else:
        text = f"torch cannot use the NVIDIA GPU: {torch['no_gpu']}"
        fix = "check the driver and CUDA_VISIBLE_DEVICES"
    return warning(text, f"`run` measures the CPU: {fix}")


# The device


def _device(facts: Facts) -> Finding | None:
    device = facts.device
    if not facts.imports:
        return None
    if "broken" in device:
        return failed(f"cannot be opened: {device['broken']}", "`run` ends with this error")
    if not facts.on_gpu:
        quota = f" (quota {device['cpu_quota_cores']:.3g})" if device.get("cpu_quota_cores") else ""
        return Finding(
            text=f"CPU: {device['name']}, {device['cores']} cores{quota}, "
            f"{device['free_bytes'] / 1e9:.1f} of {device['memory_bytes'] / 1e9:.1f} GB free"
        )
    capability = device["compute_capability"]
    text = f"GPU: {device['name']}, compute capability {capability}"
    if version(capability) < (8, 0):
        return warning(text, "`run` times no Triton kernel: they need 8.0 or newer")
    if not device["in_table"]:
        return warning(f"{text}, not in `decodetax devices`", "`run` shows no datasheet peaks")
    return Finding(text=text)


def _driver(facts: Facts) -> Finding:
    driver = facts.device.get("driver")
    if driver is None:
        problem = facts.nvidia.get("problem") or facts.nvidia.get("broken") or "it does not find this GPU"
        return warning(
            f"NVML cannot be used: {problem}", "rows of `run` have no clocks; throttling is not noticed"
        )
    return Finding(
        text=f"{driver}, runs CUDA {facts.nvidia.get('cuda', 'of an unknown version')}; NVML works"
    )


def _clocks(facts: Facts) -> Finding | None:
    device = facts.device
    if "sm_clock_hz" not in device:
        return None
    held = "held by a setting" if device.get("clocks_set") else "not held by a setting"
    most = device.get("sm_clock_max_hz", device["sm_clock_hz"])
    text = f"SM {device['sm_clock_hz'] / 1e6:,.0f} of {most / 1e6:,.0f} MHz, {held}"
    if reasons := device["throttle_reasons"]:
        return warning(f"{text}, throttled: {', '.join(reasons)}", "`run` measures a slower GPU, and says so")
    return Finding(text=f"{text}, not throttled")


def _switch(name: str, good: bool, consequence: str, facts: Facts) -> Finding | None:
    """A setting of the GPU that is on or off; NVML does not say it for GPUs without it."""
    value = facts.device.get(name)
    if value is None:
        return None
    text = "on" if value else "off"
    return Finding(text=text) if value == good else warning(text, consequence)


def _compute_mode(facts: Facts) -> Finding | None:
    mode = facts.device.get("compute_mode")
    if mode is None or mode == "default":
        return None
    if mode == "prohibited":
        return failed(mode, "`run` cannot use the GPU: set compute mode 0 with nvidia-smi")
    return warning(mode, "`run` works while no other process uses the GPU")


def _processes(facts: Facts) -> Finding | None:
    others = facts.device.get("other_processes")
    if others is None:
        return None
    if not others:
        return Finding(text="none")
    return warning(
        f"{len(others)} on the GPU: {', '.join(map(str, others[:4]))}", "they disturb the times of `run`"
    )


def _gpu_memory(facts: Facts) -> Finding:
    free, memory = facts.device["free_bytes"], facts.device["memory_bytes"]
    text = f"{free / 1e9:.1f} of {memory / 1e9:.1f} GB free"
    if free < 0.8 * memory:
        return warning(text, "`run` skips cases, or does not start, where memory is short")
    return Finding(text=text)


def _interpreter_variable(_facts: Facts) -> Finding | None:
    if os.environ.get("TRITON_INTERPRET", "0").lower() not in {"1", "true", "yes", "on", "y"}:
        return None
    return warning("TRITON_INTERPRET is set", "`run` times no Triton kernel: unset it")


# The machine


def _compiler(facts: Facts) -> Finding:
    problem = launcher_problem()
    if problem is None:
        return Finding(text=f"{c_compiler() or 'none, but a launcher in the cache'}, with Python.h")
    if facts.on_gpu:
        return warning(problem, "the Triton rows of `run` are unsupported")
    return warning(problem, "`run` on a CPU needs none; on a GPU Triton rows would be unsupported")


def _cache(_facts: Facts) -> Finding:
    folder = triton_cache_folder()
    fix = "let TRITON_CACHE_DIR name another folder"
    problem = triton_cache_problem()
    if problem is not None:
        return failed(f"{folder} cannot be written: {problem}", f"`run` refuses to start: {fix}")
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(nearest).free
    text = f"{folder}, {free / 1e9:.1f} GB free"
    if free < CACHE_BYTES:
        return warning(text, f"compiled kernels may not fit: {fix}")
    return Finding(text=text)


def _nsight(facts: Facts) -> Finding:
    if not facts.on_gpu:
        return Finding(text="not looked for: hardware counters are those of a GPU")
    problem = _counters_problem()
    if problem is None:
        return Finding(text="Nsight Compute and nsight-python are here, with permission to profile")
    return warning(problem, "`run --counters` has no counters; the rest of `run` works")


def _counters_problem() -> str | None:
    """Why hardware counters cannot be read, or None."""
    if importlib.util.find_spec("nsight") is None:
        return "nsight-python is not installed"
    try:
        done = subprocess.run(["ncu", "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Nsight Compute (ncu) cannot be run: {getattr(error, 'strerror', None) or 'it hangs'}"
    found = re.search(r"Version (\d+\.\d+\.\d+)", done.stdout)
    if found is None or version(found[1]) < NCU_VERSION:
        has = found[1] if found else "of an unknown version"
        return f"Nsight Compute is {has}, older than {shown(NCU_VERSION)}"
    try:
        parameters = (PROC / "driver/nvidia/params").read_text("ascii", "replace")
    except OSError:
        parameters = ""
    if "RmProfilingAdminOnly: 1" in parameters and os.geteuid() != 0:
        return "only root may read hardware counters (NVreg_RestrictProfilingToAdminUsers)"
    return None


def _proc(_facts: Facts) -> Finding:
    for name in ("cpuinfo", "meminfo"):
        try:
            (PROC / name).read_bytes()
        except OSError as error:
            return warning(
                f"{PROC / name}: {error.strerror}",
                "without it PyTorch takes slow CPU kernels, which `run` on a CPU measures",
            )
    return Finding(text="cpuinfo and meminfo can be read")


# The kernels


_WRONG = {
    "compiled": (FAILED, "`run` marks it as failed and exits with 1"),
    "interpreted": (FAILED, "`run` reports it as failed and exits with 1"),
}
_WRONG_EXECUTED = (WARNING, "`run` here is not affected; a run on such a GPU would be")
_TIMED_OUT = (WARNING, "not checked: `run` may be slow here")


def _form(name: str, facts: Facts) -> Finding | None:
    how = ways(FORMS[name], facts)
    answers = {each: facts.forms.get((name, each), {"broken": "was not asked"}) for each in how}
    if not answers:
        return None
    for each, answer in answers.items():
        reason = answer.get("broken") or answer.get("reason")
        if reason is not None:
            wrong = _WRONG.get(each, _WRONG_EXECUTED)
            status, consequence = _TIMED_OUT if "timed out" in reason else wrong
            return Finding(text=f"{each}: {reason}", status=status, consequence=consequence)
    seconds = sum(answer["seconds"] for answer in answers.values())
    return Finding(text=f"correct: {', '.join(how)} ({seconds:.1f} s)")


SOFTWARE: Sequence[tuple[str, Check]] = (
    ("Python", _python),
    *((name, partial(_package, name)) for name in TESTED),
    ("versions", _together),
    ("ROCm", _rocm),
    ("unused GPU", _unused_gpu),
    ("device", _device),
)
GPU: Sequence[tuple[str, Check]] = (
    ("driver", _driver),
    ("clocks", _clocks),
    ("ECC", partial(_switch, "ecc", True, "`run` measures more bandwidth than with ECC")),
    ("MIG", partial(_switch, "mig", False, "`run` measures a slice, whose peaks are not the datasheet's")),
    ("compute mode", _compute_mode),
    ("processes", _processes),
    ("GPU memory", _gpu_memory),
    ("environment", _interpreter_variable),
)
MACHINE: Sequence[tuple[str, Check]] = (
    ("C compiler", _compiler),
    ("Triton cache", _cache),
    ("counters", _nsight),
    ("/proc", _proc),
)
KERNELS: Sequence[tuple[str, Check]] = tuple((name, partial(_form, name)) for name in FORMS)


def findings(facts: Facts) -> Iterator[tuple[str, Finding]]:
    """The name and the finding of each check that applies."""
    for name, check in (*SOFTWARE, *(GPU if facts.on_gpu else ()), *MACHINE, *KERNELS):
        found = check(facts)
        if found is not None:
            yield name, found


def conclusion(facts: Facts, found: Sequence[tuple[str, Finding]]) -> str:
    """What `decodetax run` will do here, in one sentence."""
    failed = [name for name, finding in found if finding.status == FAILED]
    if failed:
        return f"`decodetax run` cannot work here (see {', '.join(failed)})."
    if facts.on_gpu:
        return f"`decodetax run` will measure the GPU {facts.device['name']}."
    torch = facts.torch
    why = torch["no_gpu"] if torch["cuda"] else f"torch {torch['version']} is a {_build(torch)}"
    return f"`decodetax run` will measure the CPU (no CUDA GPU: {why})."
