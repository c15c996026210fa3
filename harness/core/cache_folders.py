"""Cache folders of the libraries, also where the home folder cannot be written to."""

import getpass
import os
import stat
import tempfile
from pathlib import Path

from .errors import UsageError
from .files import folder_problem


def use_writable_caches() -> None:
    """Give the libraries cache folders below the temporary one where their own cannot be written to.

    Sets environment variables, which child processes inherit, before a library reads them. One that is set
    already stays.

    Raises:
        UsageError: `TRITON_CACHE_DIR` names a folder that cannot be written to.
    """
    settings = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  (the same)
    if "MPLCONFIGDIR" not in os.environ and _problem(Path(settings) / "matplotlib"):
        _set_own("MPLCONFIGDIR", "matplotlib")
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ and not _user_has_a_name():
        _set_own("TORCHINDUCTOR_CACHE_DIR", "inductor")
    folder, problem = triton_cache_folder(), triton_cache_problem()
    if problem and (os.environ.get("TRITON_CACHE_DIR") or not _set_own("TRITON_CACHE_DIR", "triton")):
        raise UsageError(
            f"TRITON_CACHE_DIR: {str(folder)!r} cannot be written ({problem}); it must be a folder that can"
        )


def triton_cache_folder() -> Path:
    """The folder of Triton's compiled kernels and launchers, as Triton finds it."""
    named = os.environ.get("TRITON_CACHE_DIR")
    if named:
        return Path(named)
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~/")  # noqa: PTH111  (may be no home: no error)
    return Path(home) / ".triton" / "cache"


def triton_cache_problem() -> str | None:
    """Why Triton cannot write to its cache folder, or None."""
    return _problem(triton_cache_folder())


def own_temporary_folder() -> Path:
    """A folder below the temporary one that this user alone can write to: compiled code is loaded from it."""
    folder = Path(tempfile.gettempdir()) / f"decodetax-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    is_own = found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022
    return folder if is_own else Path(tempfile.mkdtemp(prefix="decodetax-"))


def _set_own(variable: str, name: str) -> bool:
    """Let a variable name a folder of this user's below the temporary one; False where there is none."""
    try:
        os.environ[variable] = str(own_temporary_folder() / name)
    except OSError:
        return False
    return True


def _problem(folder: Path) -> str | None:
    """Why a folder, which need not exist yet, cannot be written to, or None."""
    if folder.parts[0] == "~":
        return "no home folder is known"
    try:
        return folder_problem(folder)
    except (OSError, RuntimeError) as error:  # before Python 3.13 a loop of links is a RuntimeError
        return getattr(error, "strerror", None) or "a loop of symbolic links"


def _user_has_a_name() -> bool:
    """Whether the user has a name, as in a container it may not; PyTorch names its cache folder after it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        return False
    return True
