"""The tilings that won a search, in one file for each GPU and Triton version.

An entry holds the facts of its case, the tiling, the default that it was compared with and the ratio of their
times. It is used only while the kernel would still choose that default: after a change of the kernel, or on a
MIG slice of the GPU, it has no effect.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...kernels import gpu_limits
from ..core.cases import Case
from ..core.errors import UsageError, schema_fault, short_repr
from ..core.files import folder_problem, read_user_json, write_text
from ..core.own_file import LockedError, locked
from ..core.record_fields import Count
from .device import Device
from .runner import TilingOf
from .tilings import TUNABLE, Key

SCHEMA_VERSION = 1

LOCK_WAIT_S = 5.0
"""Seconds to wait for another search that writes the file."""

Entry = Mapping[str, Any]


class _Entry(msgspec.Struct):
    """What an entry must hold; other fields are kept as they are."""

    kernel: str
    key: dict[str, int | str]
    tiling: dict[str, bool | Count | str | None]  # as in a row of a run
    default: dict[str, bool | Count | str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TilingCache:
    """The file of one GPU and Triton version.

    Attributes:
        path: path of the file, which need not exist yet.
        gpu: name of the GPU, as the device reports it.
        triton: Triton's version.
    """

    path: Path
    gpu: str
    triton: str

    def read(self) -> dict[str, Entry]:
        """The entries by name; none if there is no file yet.

        Raises:
            UsageError: the file cannot be read, is not a tiling cache, or is for another schema version, GPU
                or Triton version.
        """
        try:
            if not self.path.exists():
                return {}
            document = read_user_json(self.path, "tiling cache", max_mib=64)
        except OSError as error:
            raise self._problem(f"cannot be read ({error.strerror})") from error
        except UsageError as error:
            raise self._problem(str(error)) from error
        if not isinstance(document, dict):
            raise self._problem("holds no JSON object")
        for field, known in (("schema_version", SCHEMA_VERSION), ("gpu", self.gpu), ("triton", self.triton)):
            if document.get(field) != known:
                raise self._problem(f"has {field} {short_repr(document.get(field))}, can be {known!r}")
        entries = document.get("entries")
        try:
            msgspec.convert(entries, list[_Entry])
        except msgspec.ValidationError as error:
            raise self._problem(f"is not a valid cache ({schema_fault(error)})") from error
        return {entry_name(entry["kernel"], entry["key"]): entry for entry in entries or ()}

    def merge(self, updates: Mapping[str, Entry | None]) -> None:
        """Write entries by name into the file; None removes an entry, and all others stay.

        Raises:
            UsageError: as `read`; the file is then unchanged.
            OSError: the folder cannot be written to.
        """
        with contextlib.ExitStack() as lock:
            with contextlib.suppress(LockedError):  # a process that is stopped must not lose the result
                lock.enter_context(locked(self.path, wait_s=LOCK_WAIT_S))
            found = {**self.read(), **updates}
            document = {
                "schema_version": SCHEMA_VERSION,
                "gpu": self.gpu,
                "triton": self.triton,
                "entries": [entry for _, entry in sorted(found.items()) if entry is not None],
            }
            write_text(self.path.resolve(), json.dumps(document, indent=1, allow_nan=False))

    def require_writable(self) -> None:
        """Make the folder.

        Raises:
            UsageError: it cannot be made or written to.
        """
        folder = self.path.resolve().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            problem = folder_problem(folder)
        except OSError as error:
            problem = error.strerror
        if problem:
            raise self._problem(f"cannot be written ({problem})")

    def _problem(self, what: str) -> UsageError:
        return UsageError(f"tiling cache: {str(self.path)!r} {what}")


def open_cache(gpu: str, triton: str, folder: Path | None = None) -> TilingCache:
    """The cache of a GPU and a Triton version in a folder; see `default_folder`.

    Raises:
        UsageError: no folder is given and there is no default.
    """
    words = (re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.")[:80] for word in (gpu, f"triton {triton}"))
    name = "--".join(words) + ".json"
    return TilingCache(path=(folder or default_folder(os.environ)) / name, gpu=gpu, triton=triton)


def default_folder(environment: Mapping[str, str]) -> Path:
    """$DECODETAX_CACHE, $XDG_CACHE_HOME/decodetax or ~/.cache/decodetax.

    Raises:
        UsageError: none of them is known.
    """
    if environment.get("DECODETAX_CACHE"):
        return Path(environment["DECODETAX_CACHE"])
    shared = Path(environment.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # the XDG specification ignores relative paths
        return shared / "decodetax"
    try:
        return Path.home() / ".cache" / "decodetax"
    except RuntimeError as error:
        raise UsageError("tiling cache: no home folder is known; name a folder in DECODETAX_CACHE") from error


def entry_name(kernel: str, key: Key) -> str:
    """The name of an entry: its kernel and the facts of its case, sorted."""
    return " ".join((kernel, *(f"{fact}={value}" for fact, value in sorted(key.items()))))


def tuned_tilings(cache: TilingCache, device: Device) -> TilingOf:
    """A function that finds the tuned tiling of a case on a CUDA device, or None.

    Raises:
        UsageError: see `TilingCache.read`.
    """
    entries, limits = cache.read(), gpu_limits(device.torch_device)

    def tiling_of(case: Case) -> Any:
        tunable = TUNABLE.get(case.operation)
        if tunable is None:
            return None
        entry = entries.get(entry_name(case.operation, tunable.key(case)))
        default = tunable.default(case, limits)
        if entry is None or entry["default"] != dataclasses.asdict(default):
            return None
        try:
            return type(default)(**entry["tiling"])
        except (TypeError, ValueError):  # edited by hand into an invalid tiling
            return None

    return tiling_of
