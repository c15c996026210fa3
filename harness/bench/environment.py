"""The environment of a run: machine, versions, commit."""

import importlib.metadata
import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from . import cpu_facts
from .device import CudaDevice, Device


def describe(device: Device) -> dict[str, Any]:
    """Facts about the machine and the software that figures may depend on, as a JSON object."""
    return {
        "device": {
            "kind": device.kind,
            "name": device.name,
            "memory_bytes": device.memory_bytes,
            "last_level_cache_bytes": device.cache_bytes,
            **_kind_facts(device),
            **device.clocks.facts(),
        },
        "versions": {
            "decodetax": _version("decodetax"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "cuda": torch.version.cuda,
        },
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_rank(device: Device) -> dict[str, Any]:
    """Facts about one rank of several, as a flat JSON object: its host, device, versions and commit."""
    found = describe(device)
    facts = {"host": socket.gethostname(), "device": device.name}
    facts |= {name: fact for name, fact in found["device"].items() if name != "name"}
    return {**facts, **found["versions"], "commit": found["commit"]}


def _kind_facts(device: Device) -> dict[str, Any]:
    if isinstance(device, CudaDevice):
        return {"compute_capability": device.compute_capability, "sm_count": device.sm_count}
    facts: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    if (quota := cpu_facts.cpu_quota_cores()) is not None:
        facts["cpu_quota_cores"] = quota
    if cpu_facts.last_level_cache_bytes() is None:
        facts["last_level_cache_assumed"] = True
    return facts


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this file's checkout, marked if files have changed; None outside a checkout."""
    here = Path(__file__).resolve()
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)  # fails in a checkout of something else
        commit = _git(here.parent, "rev-parse", "HEAD")
        changes = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit} with changes" if changes else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
