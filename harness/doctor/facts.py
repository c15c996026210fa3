"""The facts that `decodetax doctor` checks: the answers of the probes, asked in processes of their own."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..bench.launcher import launcher_problem
from ..core.cache_folders import triton_cache_problem
from ..core.worker_processes import Crash, run_jobs
from .probes import FORMS, Form

PROBE_LIMIT_S, FORM_LIMIT_S, TOTAL_LIMIT_S = 20.0, 25.0, 48.0
"""Seconds for an import or the device, for one form of a kernel, and for all of them."""

_WORKER = f"{__package__}.probes"
_PROBES = ("numpy", "torch", "nvidia", "device", "triton")
"""In an order for one process: the device decides whether it imports Triton to interpret or to compile."""

Version = tuple[int, ...]

Answer = Mapping[str, Any]
"""What a probe found; {"broken": reason} if it failed."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the probes found: the packages, the NVIDIA driver, the device of a run, and the forms.

    `forms` holds the answers by form and how it was run: "compiled", "interpreted", or a target.
    """

    torch: Answer
    triton: Answer
    numpy: Answer
    nvidia: Answer
    device: Answer
    forms: Mapping[tuple[str, str], Answer] = field(default_factory=dict)

    @property
    def imports(self) -> bool:
        """Whether torch, triton and numpy can be imported."""
        return not any("broken" in answer for answer in (self.torch, self.triton, self.numpy))

    @property
    def on_gpu(self) -> bool:
        """Whether `decodetax run` takes a CUDA GPU."""
        return self.device.get("kind") == "cuda"

    @property
    def has_nvidia_gpu(self) -> bool:
        """Whether the machine has an NVIDIA GPU, even one that torch does not find."""
        return bool(self.nvidia.get("gpus") or self.nvidia.get("on_bus"))


def version(text: str) -> Version:
    """The first three numbers in a text."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def shown(numbers: Version) -> str:
    """A version as it is written."""
    return ".".join(map(str, numbers))


def gather(progress: Callable[[float, str], None]) -> Facts:
    """The facts of this machine: imports and the device first, then the forms of the kernels."""
    questions = _Questions(progress)
    answers = questions.ask([{"probe": name} for name in _PROBES], PROBE_LIMIT_S)
    by_name: dict[str, Any] = dict(zip(_PROBES, answers, strict=True))
    facts = Facts(**by_name)
    groups = _groups(facts)
    forms: dict[tuple[str, str], Answer] = {}
    with ThreadPoolExecutor(2) as pool, questions.ended_on_error():
        for jobs, found in zip(groups, pool.map(questions.ask, groups), strict=True):
            forms |= {(job["form"], job["how"]): answer for job, answer in zip(jobs, found, strict=True)}
    return dataclasses.replace(facts, forms=forms)


def _groups(facts: Facts) -> list[list[dict[str, str]]]:
    """The forms to check, for one or two processes at a time."""
    jobs = [{"form": name, "how": how} for name, form in FORMS.items() for how in ways(form, facts)]
    if not facts.on_gpu:  # a process interprets kernels or compiles them
        interpreted = [job for job in jobs if job["how"] == "interpreted"]
        return [interpreted, [job for job in jobs if job not in interpreted]]
    shared = facts.device.get("compute_mode", "default") == "default"
    return [jobs[::2], jobs[1::2]] if shared else [jobs]


class _Questions:
    """Asks the probes, within the time of all."""

    def __init__(self, progress: Callable[[float, str], None]) -> None:
        self._progress, self._end_s = progress, time.monotonic() + TOTAL_LIMIT_S

    def ask(self, jobs: Sequence[Mapping[str, str]], limit_s: float = FORM_LIMIT_S) -> list[Answer]:
        """The answers of one process to jobs of which each may take so long."""
        answers: dict[int, Answer] = {}

        def on_answer(at: int, answer: Any) -> None:
            answers[at] = {"broken": answer.reason} if isinstance(answer, Crash) else answer
            self._progress(1 - self._left_s() / TOTAL_LIMIT_S, " ".join(jobs[at].values()))

        run_jobs(_WORKER, jobs, on_answer, processes=1, limit_s=lambda: min(limit_s, self._left_s()))
        return [answers[at] for at in range(len(jobs))]

    @contextlib.contextmanager
    def ended_on_error(self) -> Iterator[None]:
        """No job is begun any more after Ctrl-C."""
        try:
            yield
        except BaseException:
            self._end_s = 0.0
            raise

    def _left_s(self) -> float:
        return self._end_s - time.monotonic()


def ways(form: Form, facts: Facts) -> tuple[str, ...]:
    """How a form is checked here: compiled on a GPU that has it; else interpreted and executed."""
    if not facts.imports or "broken" in facts.device:
        return ()
    compiles = triton_cache_problem() is None
    if not facts.on_gpu:
        return ("interpreted", *(form.targets if compiles else ()))
    first, last = form.capability
    major, minor = version(facts.device["compute_capability"])
    compiles = compiles and first <= 10 * major + minor <= last
    return ("compiled",) if compiles and launcher_problem() is None else ()
