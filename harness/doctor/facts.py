"""What the checks of `decodetax doctor` take and give."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

OK, WARNING, FAILED = "ok", "warning", "failed"
"""Status of a check. Only "failed" means that `decodetax run` cannot work."""

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

    @classmethod
    def of(cls, answers: Mapping[str, Answer]) -> Self:
        """The facts but for the forms, from the answers by name of the probe."""
        return cls(
            torch=answers["torch"],
            triton=answers["triton"],
            numpy=answers["numpy"],
            nvidia=answers["nvidia"],
            device=answers["device"],
        )

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
    """A finding that `decodetax run` works in spite of."""
    return Finding(text=text, status=WARNING, consequence=consequence)


def failed(text: str, consequence: str) -> Finding:
    """A finding with which `decodetax run` cannot work."""
    return Finding(text=text, status=FAILED, consequence=consequence)


def version(text: str) -> Version:
    """The first three numbers in a text."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def shown(numbers: Version) -> str:
    """A version as it is written."""
    return ".".join(map(str, numbers))
