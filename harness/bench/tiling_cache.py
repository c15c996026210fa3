"""The tunings that won, in a file for each GPU and version of Triton.

Each entry tells the facts of the case that it was found for, the tiling, the default that it was held against
and by how much it won. An entry is used only where the kernel would still choose that default: one found for
another form of the kernel, or another share of the GPU, lapses by itself.
"""

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...kernels import gpu_limits
from ..core.cases import Case
from ..core.errors import UsageError
from ..core.files import write_text
from .device import Device
from .runner import TilingOf
from .tilings import TUNABLE, Key

SCHEMA_VERSION = 1

Entry = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TilingCache:
    """The file of one GPU and Triton version.

    Attributes:
        path: of the file, which need not exist yet.
        gpu: its name, as the device tells it.
        triton: its version.
    """

    path: Path
    gpu: str
    triton: str

    def read(self) -> dict[str, Entry]:
        """The entries by name; none where there is no file yet.

        Raises:
            UsageError: the file cannot be read, is no such cache, or one of another version, GPU or Triton.
        """
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._problem(f"cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise self._problem("is not JSON") from error
        if not isinstance(document, dict):
            raise self._problem("holds no JSON object")
        for field, known in (("schema_version", SCHEMA_VERSION), ("gpu", self.gpu), ("triton", self.triton)):
            if document.get(field) != known:
                raise self._problem(f"has {field} {str(document.get(field))[:40]!r}, can be {known!r}")
        try:
            entries = {entry_name(entry["kernel"], entry["key"]): entry for entry in document["entries"]}
            for entry in entries.values():
                _require_plain(entry["tiling"])
                _require_plain(entry["default"])
        except (AttributeError, KeyError, TypeError) as error:
            raise self._problem(f"is not a whole cache ({type(error).__name__}: {error})") from error
        return entries

    def merge(self, updates: Mapping[str, Entry | None]) -> None:
        """Put entries by name into the file as it stands now; None takes one out. The rest stays.

        Raises:
            UsageError: as `read`; the file is then left as it is.
            OSError: the folder cannot be written to.
        """
        found = {**self.read(), **updates}
        document = {
            "schema_version": SCHEMA_VERSION,
            "gpu": self.gpu,
            "triton": self.triton,
            "entries": [entry for _, entry in sorted(found.items()) if entry is not None],
        }
        write_text(self.path.resolve(), json.dumps(document, indent=1, allow_nan=False))

    def require_writable(self) -> None:
        """Make sure of the folder.

        Raises:
            UsageError: it cannot be made or written to.
        """
        try:
            folder = self.path.resolve().parent
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".decodetax-"):
                pass
        except OSError as error:
            raise self._problem(f"cannot be written ({error.strerror})") from error

    def _problem(self, what: str) -> UsageError:
        return UsageError(f"tiling cache: {str(self.path)!r} {what}")


def open_cache(gpu: str, triton: str, folder: Path | None = None) -> TilingCache:
    """The cache of a GPU and a Triton version in a folder, or in the one that the environment names.

    Raises:
        UsageError: the environment names none.
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
    if shared.is_absolute():  # the specification has others ignored
        return shared / "decodetax"
    try:
        return Path.home() / ".cache" / "decodetax"
    except RuntimeError as error:
        raise UsageError("tiling cache: no home folder is known; name a folder in DECODETAX_CACHE") from error


def entry_name(kernel: str, key: Key) -> str:
    """One text for a kernel and the facts of a case, in whatever order they come."""
    return " ".join((kernel, *(f"{fact}={value}" for fact, value in sorted(key.items()))))


def tuned_tilings(cache: TilingCache, device: Device) -> TilingOf:
    """Tells the tuned tiling of a case on a CUDA device, where the cache holds one that still applies.

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
        except (TypeError, ValueError):  # edited by hand into what is no tiling
            return None

    return tiling_of


def _require_plain(tiling: Mapping[str, Any]) -> None:
    for field, value in tiling.items():
        if not isinstance(value, int | str | None):
            raise TypeError(f"{field} is {str(value)[:40]!r}, must be a whole number or a word")
