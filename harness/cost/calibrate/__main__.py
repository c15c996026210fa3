"""Fits the constants of the model of kernel times to a folder of measured kernels.

python -m decodetax.harness.cost.calibrate FOLDER [--write]

The folder holds CSV files of measured kernels, one a row: GEMM, decode attention and prefill attention, told
apart by their columns. It stays outside the project, which keeps the constants, the error to expect of them
and a sample of the rows: `--write` rewrites these.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...core.errors import UsageError
from ..kernel_constants import calibrated
from .accuracy import accuracy_columns, accuracy_table, error_rows, errors_by_class
from .fit import Fitted, cells_of, fit_all, settled
from .layer_accuracy import accuracy_columns as layer_columns
from .layer_accuracy import files as layer_files
from .layer_fit import errors_by_class as layer_errors
from .layer_fit import fit_layers, kept_constants
from .layers import read_layer_sample, read_layers
from .measured import SIZES, Measured, read, read_sample

SOURCE = "ai-dynamo/aiconfigurator, Apache-2.0, commit 095f58a, 2026-08-21"
DATA = Path(__file__).parents[2] / "core" / "data"
SAMPLE_ROWS = 680


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the arguments; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m decodetax.harness.cost.calibrate", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument(
        "--write", action="store_true", help="rewrite the constants, their errors and the sample of rows"
    )
    options = parser.parse_args(arguments)
    try:
        tables, layers = read(options.folder), read_layers(options.folder)
        fitted = settled(tables, fit_all(tables))
        _say(f"Measured kernels: {SOURCE}")
        for m in tables:
            _say(f"  {m.kernel}: {m.gpu.name}, {m.dtype}, {m.software}, {len(m.time_s)} rows")
        _say("\nRelative error of the modelled time, median / 90th percentile")
        columns = accuracy_columns(tables, fitted)
        _say(accuracy_table(columns))
        of_layers = fit_layers(layers)
        errors = layer_columns(layers, of_layers)
        if layers:
            _say("\nThe same of MoE layers, MLA decode attention and all-reduce")
            _say(accuracy_table(errors))
    except UsageError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    if options.write:
        _write(DATA / "kernel_constants.csv", constant_rows(tables, fitted))
        _write(DATA / "kernel_errors.csv", error_rows(columns))
        _write(DATA / "measured_kernels.csv", sample_rows(tables))
        for name, rows in layer_files(layers, of_layers, errors, SOURCE).items():
            _write(DATA / name, rows)
    _say("\nThe same of the rows that the project keeps, by the constants that it keeps")
    _say(accuracy_table({"all rows": errors_by_class(read_sample(), calibrated())}))
    _say("")
    kept = read_layer_sample()
    _say(accuracy_table({"all rows": layer_errors(kept, kept_constants(kept))}))
    return 0


def constant_rows(tables: Sequence[Measured], fitted: Fitted) -> list[dict[str, str]]:
    """The table of constants: a row for each kernel, GPU and dtype."""
    return [
        {
            "gpu": m.gpu.name,
            "kernel": m.kernel,
            "dtype": m.dtype,
            **cells_of(fitted[m.key]),
            "source": f"fitted to {m.software} in {SOURCE}",
        }
        for m in tables
    ]


def sample_rows(tables: Sequence[Measured]) -> list[dict[str, str]]:
    """A sample of the rows: of each table, GPU and dtype equally many, those with the lowest hashes."""
    sets = list(dict.fromkeys((m.table, m.gpu.name, m.dtype) for m in tables))
    found = []
    for key in sets:
        candidates = []
        for m in tables:
            if (m.table, m.gpu.name, m.dtype) == key:
                fitted_to = m.only(m.classes()[m.table])
                candidates += [(int(value), row, fitted_to) for row, value in enumerate(fitted_to.hashes())]
        candidates.sort(key=lambda candidate: candidate[0])
        found += [_sample_row(m, row) for _, row, m in candidates[: SAMPLE_ROWS // len(sets)]]
    return found


def _sample_row(measured: Measured, row: int) -> dict[str, str]:
    sizes = {name: "" for names in SIZES.values() for name in names.values()}
    sizes |= {name: f"{values[row]:.0f}" for name, values in measured.sizes.items()}
    return {
        "table": measured.table,
        "gpu": measured.gpu.name,
        "dtype": measured.dtype,
        "software": measured.software,
        **sizes,
        "latency_us": f"{measured.time_s[row] * 1e6:.6g}",
        "source": SOURCE,
    }


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
