"""The run files that a command's arguments name: files, and folders of them."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path

from ..core.errors import UsageError, path_text
from ..core.records import Run
from ..core.run_file import read_run

FAULTS_SHOWN = 3
"""How many files of a folder without a run an error names."""


@dataclass(frozen=True)
class RunFile:
    """A file to read as a run, and the folder in which it was found; None where the user named the file."""

    path: Path
    folder: Path | None = None


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; one that cannot be looked at is none."""
    with suppress(OSError):
        return path.is_dir()
    return False


def run_files(arguments: Sequence[Path]) -> list[RunFile]:
    """The files that are named, and in place of each folder its *.json files in order of name.

    Folders within folders and hidden files are left out. A file of a folder counts once, under whatever names
    and links it is met, and not where it is named itself.

    Raises:
        UsageError: a folder cannot be read or has no *.json file.
    """
    seen = {realpath(path) for path in arguments if not is_folder(path)}
    found: list[RunFile] = []
    for argument in arguments:
        if not is_folder(argument):
            found.append(RunFile(argument))
            continue
        for path in _json_files(argument):
            if (real := realpath(path)) not in seen:
                seen.add(real)
                found.append(RunFile(path, argument))
    return found


def _json_files(folder: Path) -> list[Path]:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise UsageError(f"{str(folder)!r}: cannot be read: {error.strerror}") from None
    files = [folder / name for name in names if not name.startswith(".")]
    if not files:
        raise UsageError(f"{str(folder)!r}: has no run file of decodetax run (*.json)")
    return files


def read_run_files(files: Sequence[RunFile]) -> tuple[list[tuple[Path, Run]], list[str]]:
    """The runs by path, and the files of folders that are no runs, each with the reason.

    Raises:
        UsageError: a file that is named itself is no run, or no file of a folder is one.
    """
    runs: list[tuple[Path, Run]] = []
    faults: dict[Path, list[str]] = {}
    for file in files:
        try:
            runs.append((file.path, read_run(file.path)))
        except UsageError as error:
            if file.folder is None:
                raise
            faults.setdefault(file.folder, []).append(str(error))
    for folder, some in faults.items():
        if len(some) == sum(file.folder == folder for file in files):
            more = f"; and {len(some) - FAULTS_SHOWN} more" if len(some) > FAULTS_SHOWN else ""
            shown = "; ".join(some[:FAULTS_SHOWN])
            raise UsageError(f"{str(folder)!r}: has no run file of decodetax run: {shown}{more}")
    return runs, [fault for some in faults.values() for fault in some]


def run_names(paths: Sequence[Path]) -> list[str]:
    """The names of files without their suffixes, safe to print; a repeated name gets a number."""
    return list(_numbered([path_text(path.stem) for path in paths]))


def names_with_folders(paths: Sequence[Path]) -> list[str]:
    """As `run_names`; files of the same name in different folders have the folder's name before theirs."""
    stems = [path_text(path.stem) or "unnamed" for path in paths]
    return list(
        _numbered(
            [
                path_text(f"{path.absolute().parent.name}/{path.stem}") if stems.count(stem) > 1 else stem
                for path, stem in zip(paths, stems, strict=True)
            ]
        )
    )


def _numbered(names: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for first in names:
        name, number = first, 1
        while name in seen:
            number += 1
            name = f"{first} ({number})"
        seen.add(name)
        yield name
