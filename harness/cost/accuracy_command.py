"""`decodetax accuracy`: the error of the model against serving runs, kernels and published figures."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import options
from ..core.errors import UsageError, printable
from ..core.table import Column, Table, wide_option

if TYPE_CHECKING:
    from .published_engines import EngineFigure
    from .serving_accuracy import ServingCheck

_PERCENT = "{:.1%}".format
_RATIO = "{:.3f}".format
_ERROR_COLUMNS = {
    "rows": Column("rows"),
    "median": Column("median error", show=_PERCENT),
    "p90": Column("90th percentile", show=_PERCENT),
    "bias": Column("modelled / measured", show=_RATIO),
}
_SERVING_COLUMNS = {
    "engine": Column("engine"),
    "gpu": Column("gpu"),
    "model": Column("model"),
    "constants": Column("constants"),
    **_ERROR_COLUMNS,
    "ttft_median": Column("TTFT median error", show=_PERCENT),
    "basis": Column("GEMM's basis", wide=True),
    "expected_median": Column("its expected error", show=_PERCENT, wide=True),
    "expected_p90": Column("its 90th percentile", show=_PERCENT, wide=True),
}
_CONCURRENCY_COLUMNS = {"concurrency": Column("concurrency"), **_ERROR_COLUMNS}
_KERNEL_COLUMNS = {
    "kernel": Column("kernel"),
    "gpu": Column("gpu"),
    "dtype": Column("dtype"),
    **{name: _ERROR_COLUMNS[name] for name in ("rows", "median", "p90")},
}
_FIGURE_COLUMNS = {
    "figure": Column("figure"),
    "unit": Column("unit", wide=True),
    "published": Column("published"),
    "modelled": Column("modelled"),
    "relative_error": Column("error", show="{:+.1%}".format),
    "within": Column("within 30%", show=lambda within: "yes" if within else "MISSED"),
    "reason": Column("reason", wide=True),
}


@dataclass(frozen=True)
class _Found:
    """What the files hold, in the order in which they were given.

    Attributes:
        serving: measured serving runs.
        figures: published figures of engines.
        kernels: a row of errors for each class of measured kernels.
        other_files: files that hold none of these.
    """

    serving: "list[ServingCheck]" = field(default_factory=list)
    figures: "list[EngineFigure]" = field(default_factory=list)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)


@click.command("accuracy")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[PATH]...")
@wide_option
@options.JSON
def accuracy_command(paths: tuple[Path, ...], wide: bool, as_json: bool) -> None:
    """Compare modelled with measured times: serving runs, kernels, published figures.

    Without PATH, of the measured rows that come with the package. PATH is a CSV file, or a folder of such,
    of one of these tables, which its columns tell apart. A row that cannot be modelled is listed with the
    reason.
    """
    found = _committed() if not paths else _read(paths)
    if as_json:
        click.echo(json.dumps(_document(found), indent=1, allow_nan=False))
    else:
        click.echo("\n\n".join(_blocks(found, wide=wide)))


def _committed() -> _Found:
    from ..core.data_table import data_table
    from .calibrate.layers import read_layer_sample
    from .calibrate.measured import read_sample
    from .published_engines import engine_figures
    from .serving_accuracy import serving_checks

    return _Found(
        serving=serving_checks(data_table("serving.csv")),
        figures=engine_figures(data_table("published_engines.csv")),
        kernels=[*_kernel_rows(read_sample()), *_layer_rows(read_layer_sample())],
    )


def _read(paths: Iterable[Path]) -> _Found:
    """Reads files and folders.

    Raises:
        UsageError: a path does not exist, is not text, or holds none of the tables; a cell is invalid.
    """
    found = _Found()
    for path in _files(paths):
        try:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                rows = list(csv.DictReader(lines))
        except (OSError, UnicodeError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not a CSV file in UTF-8"
            raise UsageError(f"PATH: {str(path)!r}: {reason}") from None
        try:
            read = _add(found, path, rows)
        except UsageError as error:
            raise UsageError(f"PATH: {str(path)!r}: {error}") from None
        if not read:
            found.other_files.append(str(path))
    if not (found.serving or found.figures or found.kernels):
        from .serving_accuracy import COLUMNS

        files, needed = ", ".join(found.other_files), ", ".join(sorted(COLUMNS))
        raise UsageError(f"PATH: none of the tables is in {files}; a row of serving runs has {needed}")
    return found


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(path.rglob("*.csv"))
        if not inside:
            raise UsageError(f"PATH: {str(path)!r} holds no CSV file")
        yield from inside


def _add(found: _Found, path: Path, rows: list[dict[str, Any]]) -> bool:
    """Adds a file's rows to the kind that its columns say; whether they are those of any."""
    from . import published_engines, serving_accuracy
    from .calibrate.layers import read_layer_file
    from .calibrate.measured import read_file

    columns = set(rows[0]) if rows else set()
    if columns >= serving_accuracy.COLUMNS:
        found.serving.extend(serving_accuracy.serving_checks(_complete(rows)))
    elif columns >= published_engines.COLUMNS:
        found.figures.extend(published_engines.engine_figures(_complete(rows)))
    else:
        errors = [*_kernel_rows(read_file(path)), *_layer_rows(read_layer_file(path))]
        found.kernels.extend(errors)
        return bool(errors)
    return True


def _complete(rows: Sequence[Mapping[Any, Any]]) -> list[dict[str, str]]:
    """The rows with empty text for cells that are missing.

    Raises:
        UsageError: a row has more cells than there are columns.
    """
    for line, row in enumerate(rows, start=2):
        if None in row:
            raise UsageError(f"line {line} has more cells than the header")
    return [{name: cell or "" for name, cell in row.items()} for row in rows]


def _kernel_rows(tables: Sequence[Any]) -> list[dict[str, Any]]:
    from .calibrate.accuracy import errors_by_class, model_constants

    return _error_rows(errors_by_class(tables, model_constants(tables)))


def _layer_rows(tables: Sequence[Any]) -> list[dict[str, Any]]:
    from .calibrate.layer_fit import errors_by_class, kept_constants

    return _error_rows(errors_by_class(tables, kept_constants(tables)))


def _error_rows(errors: Mapping[tuple[str, str, str], Any]) -> list[dict[str, Any]]:
    """A row for each class of kernels, GPU and dtype."""
    from .serving_accuracy import errors_of

    rows = []
    for (kernel, gpu, dtype), off in errors.items():
        found = errors_of([1 + float(each) for each in off])
        if found is not None:
            rows.append(
                {
                    "kernel": kernel,
                    "gpu": gpu,
                    "dtype": dtype,
                    "rows": found.rows,
                    "median": found.median,
                    "p90": found.p90,
                }
            )
    return rows


def _serving_rows(checks: "Sequence[ServingCheck]") -> list[dict[str, Any]]:
    """Errors of time per output token by engine, GPU and model, fitted rows apart from tested ones."""
    rows = []
    for key in dict.fromkeys(check.key for check in checks):
        for name, fitted in (("fitted here", True), ("tested here", False)):
            chosen = [check for check in checks if check.key == key and check.fitted is fitted]
            errors = _errors(chosen, lambda check: check.tpot_ratio)
            if errors:
                ttft = _errors(chosen, lambda check: check.ttft_ratio)
                engine, gpu, model = key
                rows.append(
                    {
                        "engine": engine,
                        "gpu": gpu,
                        "model": model,
                        "constants": name,
                        **errors,
                        "ttft_median": ttft.get("median"),
                        **_basis(gpu, chosen[0].row["precision"]),
                    }
                )
    return rows


def _errors(
    checks: "Iterable[ServingCheck]", ratio: "Callable[[ServingCheck], float | None]"
) -> dict[str, Any]:
    from .serving_accuracy import errors_of

    found = errors_of([value for check in checks if (value := ratio(check)) is not None])
    return {} if found is None else vars(found)


def _basis(gpu: str, precision: str) -> dict[str, Any]:
    """What the GEMM times of a GPU and a precision rest on, and the error to expect of them."""
    from ..core.formats import FORMATS
    from ..core.gpus import find_gpu
    from .kernel_constants import constants_for

    bases = constants_for(find_gpu(gpu)).basis
    stored = FORMATS.get(precision.partition("_")[0].lower())
    dtype = "bf16" if stored is None else stored.multiplied_in
    basis = bases.get(("gemm", dtype), bases["gemm", "bf16"])
    return {
        "basis": basis.text,
        "expected_median": basis.median_error,
        "expected_p90": basis.p90_error,
    }


def _concurrency_rows(checks: "Sequence[ServingCheck]") -> list[dict[str, Any]]:
    """Errors of time per output token at each concurrency."""
    rows = []
    for concurrency in sorted({check.concurrency for check in checks}):
        chosen = [check for check in checks if check.concurrency == concurrency]
        errors = _errors(chosen, lambda check: check.tpot_ratio)
        if errors:
            rows.append({"concurrency": concurrency, **errors})
    return rows


def _not_modelled(found: _Found) -> list[dict[str, str]]:
    """Rows that cannot be modelled, with the reason."""
    runs = [
        {"row": " ".join((*check.key, check.row["concurrency"])), "reason": check.reason}
        for check in found.serving
        if check.modelled is None
    ]
    figures = [{"row": each.figure, "reason": each.reason} for each in found.figures if each.modelled is None]
    return runs + figures


def _document(found: _Found) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "provenance": "modelled",
        "serving": _serving_rows(found.serving),
        "concurrency": _concurrency_rows(found.serving),
        "kernels": found.kernels,
        "published": [each.to_json() for each in found.figures],
        "runs": [check.to_json() for check in found.serving],
        "not_modelled": _not_modelled(found),
        "other_files": found.other_files,
    }


def _blocks(found: _Found, *, wide: bool) -> Iterator[str]:
    """The tables as text; only those with rows."""
    figures = [each.to_json() for each in found.figures if each.modelled is not None]
    tables = (
        ("Time per output token, serving runs", _SERVING_COLUMNS, _serving_rows(found.serving)),
        ("The same at each concurrency", _CONCURRENCY_COLUMNS, _concurrency_rows(found.serving)),
        ("Kernel times", _KERNEL_COLUMNS, found.kernels),
        ("Published figures", _FIGURE_COLUMNS, figures),
        ("Not modelled", {"row": Column("row"), "reason": Column("reason")}, _not_modelled(found)),
    )
    for title, columns, rows in tables:
        if rows:
            yield Table.select(title, columns, rows).text(wide=wide)
    if found.other_files:
        yield f"None of the tables: {', '.join(printable(name) for name in found.other_files)}"
    missed = [each for each in found.figures if each.within is False and each.reason]
    if missed:
        yield "\n".join(f"{each.figure}: {each.reason}" for each in missed)
