"""`decodetax report`, and the report that `decodetax run` can write too."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import FailureError, UsageError, path_text
from ..core.files import file_problem, folder_problem, write_bytes, write_text

if TYPE_CHECKING:
    from ..core.records import Run

OUTPUTS = (
    click.option(
        "--html",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write the report as one HTML file that fetches nothing: figures, tables, environment. A file "
        "that is there is replaced, once the new one is whole; so it is with the options below.",
    ),
    click.option(
        "--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write all tables as Markdown."
    ),
    click.option(
        "--csv",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Write each table as a file in this folder: gaps.csv, kernels.csv, ceilings.csv and others.",
    ),
    click.option(
        "--png",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Write roofline.png and gap.png into this folder; needs matplotlib.",
    ),
)


def with_outputs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options that say where a report goes."""
    for option in reversed(OUTPUTS):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a report goes; None where it is not asked for."""

    html: Path | None
    markdown: Path | None
    csv: Path | None
    png: Path | None

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> "Outputs":
        """The places among all the options of a command."""
        return cls(**{field.name: asked[field.name] for field in fields(cls)})

    @property
    def asked(self) -> bool:
        """Whether any is."""
        return any(self._places().values())

    def _places(self) -> dict[str, Path | None]:
        return {"--html": self.html, "--markdown": self.markdown, "--csv": self.csv, "--png": self.png}

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Every file that may be written, with the option that asks for it."""
        yield from ((name, p) for name, p in self._places().items() if p and name in {"--html", "--markdown"})
        if self.csv:
            from .export import CSV_NAMES

            yield from (("--csv", self.csv / name) for name in CSV_NAMES)
        if self.png:
            from .pictures import PICTURE_NAMES

            yield from (("--png", self.png / name) for name in PICTURE_NAMES)

    def require_writable(self, kept: Sequence[Path]) -> None:
        """Make sure of all places before anything is read or measured.

        Raises:
            UsageError: one cannot be written to, would take the place of a file that is to be kept or of
                another output, or needs a library that is not installed.
        """
        if self.html:
            _require("plotly", "--html")
        if self.png:
            _require("matplotlib", "--png")
        for name, folder in (("--csv", self.csv), ("--png", self.png)):
            if folder is not None:
                _refuse(name, folder, folder_problem)
        taken = {path.resolve(): "a run" for path in kept}
        for name, file in self._files():
            if file.resolve() in taken:
                raise UsageError(
                    f"{name}: {str(file)!r} is the file of {taken[file.resolve()]} too; name another"
                )
            taken[file.resolve()] = name
            if name in {"--html", "--markdown"} or file.exists():
                _refuse(name, file, file_problem)

    def write(self, runs: Mapping[str, "Run"]) -> Iterator[str]:
        """Write what is asked for, and tell of each in a line.

        Raises:
            FailureError: a disk is full or gone by now.
        """
        from ..cost.prices import price_list
        from .series import price_ratios

        ratios = price_ratios(price_list())
        if self.html:
            from .html import html_report

            yield _written("Report", self.html, html_report(runs, ratios))
        if self.markdown:
            from .export import markdown_text

            yield _written("Tables", self.markdown, markdown_text(runs, ratios))
        if self.csv:
            from .export import csv_texts

            for name, text in csv_texts(runs, ratios).items():
                yield _written("Table", self.csv / name, text)
        if self.png:
            from .pictures import PICTURE_NAMES, pictures

            drawn = pictures(runs, ratios)
            for name in PICTURE_NAMES:
                if name in drawn:
                    yield _written("Picture", self.png / name, drawn[name])
                else:
                    yield f"No {name}: the run has nothing to show in it."


def _require(library: str, option: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise UsageError(f"{option}: needs {library}, which is not installed: pip install {library}")


def _refuse(name: str, place: Path, problem_of: Callable[[Path], str | None]) -> None:
    """Raise UsageError where a place cannot be written to."""
    try:
        problem = problem_of(place)
    except OSError as error:
        problem = error.strerror
    if problem is not None:
        raise UsageError(f"{name}: {str(place)!r} cannot be written ({problem}); name another place")


def _written(what: str, target: Path, content: str | bytes) -> str:
    """Write a file whole, through a link where there is one, and say so."""
    replaced = target.exists()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            write_text(target.resolve(), content)
        else:
            write_bytes(target.resolve(), content)
    except OSError as error:
        raise FailureError(f"{path_text(target)}: {error.strerror}; it was not written") from error
    told = ", in place of the file that was there" if replaced else ""
    return f"{what} written to {path_text(target)}{told}."


def findings(run: "Run") -> str:
    """The tables and sentences of a run, as text."""
    from ..core import tables
    from . import summary

    blocks = [
        summary.workload(run),
        tables.ceilings_table(run),
        tables.kernels_table(run),
        tables.counters_table(run),
        tables.gap_table(run),
    ]
    if run.interpreter_checks:
        blocks.append(tables.interpreter_table(run))
    blocks.append("\n".join(summary.sentences(run)))
    return "\n\n".join(filter(None, blocks))


@click.command("report")
@click.argument("run_files", type=click.Path(path_type=Path), metavar="RUN.json...", nargs=-1, required=True)
@with_outputs
def report_command(run_files: tuple[Path, ...], **asked: Any) -> None:
    """Print the tables and sentences of a run that `decodetax run` wrote, or write them as a report.

    Several runs stand in one report, each by the name of its file.
    """
    outputs = Outputs.of(asked)
    outputs.require_writable(run_files)
    from ..core.run_file import read_run

    runs = dict(zip(_names(run_files), map(read_run, run_files), strict=True))
    if outputs.asked:
        for line in outputs.write(runs):
            click.echo(line)
        return
    from .summary import heading

    for at, run in enumerate(runs.values()):
        text = f"{heading(run)}\n{findings(run)}"
        click.echo(f"\n{text}" if at else text)


def _names(run_files: Sequence[Path]) -> list[str]:
    """The names of the files without their endings, each once: a second of a name has its number."""
    names: list[str] = []
    for path in run_files:
        stem, number = path_text(path.stem), 1
        name = stem
        while name in names:
            number += 1
            name = f"{stem} ({number})"
        names.append(name)
    return names
