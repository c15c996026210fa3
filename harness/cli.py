"""The commands. Each imports what it needs when it runs, so that `--help` is fast."""

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import click

from .bench.compare_command import compare_command
from .bench.report_command import report_command
from .bench.run_command import run_command
from .bench.tune_command import tune_command
from .core.cache_folders import use_writable_caches
from .core.errors import FAILED, INTERRUPTED, MISUSE, FailureError, UsageError
from .core.files import FULL
from .core.options import JSON, complain
from .core.rank_process import end_process, silence_other_ranks
from .core.streams import StdoutError, discard_stdout, guard_streams
from .core.suggestions import meant_command, meant_option
from .core.table import Column, Table, wide_option
from .cost.accuracy_command import accuracy_command
from .cost.claims_command import claims_command
from .cost.predict_command import predict_command
from .cost.price_commands import price_command, prices_command
from .doctor.doctor_command import doctor_command
from .offline.count_command import count_command
from .offline.execute_command import execute_command
from .offline.inspect_command import inspect_command

USES_CACHES = {"count", "doctor", "execute", "inspect", "report", "run", "tune"}
"""Commands that may compile kernels or draw pictures."""


def main() -> NoReturn:
    """Run the command line; misuse becomes one line on stderr and exit code 2."""
    guard_streams()
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        code = done.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except click.exceptions.NoArgsIsHelpError:
        complain(f"name a command: {', '.join(sorted(cli.commands))}; --help describes them")
        code = MISUSE
    except (click.ClickException, UsageError, FailureError) as error:
        complain(_message(error) if isinstance(error, click.ClickException) else str(error))
        code = FAILED if isinstance(error, FailureError) else MISUSE
    except StdoutError as error:
        if error.errno != errno.EPIPE:
            complain(f"stdout cannot be written: {error.strerror}")
        discard_stdout()
        code = FAILED
    except OSError as error:
        if error.errno not in FULL:
            raise
        complain(f"{error.filename or 'a file'} cannot be written: {error.strerror}")
        code = FAILED
    end_process(code if isinstance(code, int) else 0)


def _message(error: click.ClickException) -> str:
    """The message of an error; a wrong option gets the one that is meant, where it is known."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        meant = meant_option(error.option_name, error.ctx.command)
        if meant is not None:
            return f"{error.message} Did you mean {meant}?"
    return error.format_message()


class _Commands(click.Group):
    """The commands; a wrong name gets the one that is meant, where it is known."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        meant = None if args[0] in self.commands else meant_command(args[0], self.commands)
        if meant is not None:
            raise UsageError(f"no such command {args[0]!r}; did you mean {meant}?")
        return super().resolve_command(context, args)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="decodetax")
@click.pass_context
def cli(context: click.Context) -> None:
    """Measure why an output token costs more than an input token, on this machine."""
    if context.invoked_subcommand == "run":
        silence_other_ranks()  # before the options are read, of which each rank would complain
    if context.invoked_subcommand in USES_CACHES:
        try:
            use_writable_caches()
        except UsageError:
            # The doctor reports it as one of its findings, and a report compiles nothing.
            if context.invoked_subcommand not in {"doctor", "report"}:
                raise


for command in (
    accuracy_command,
    claims_command,
    compare_command,
    count_command,
    execute_command,
    doctor_command,
    inspect_command,
    predict_command,
    price_command,
    prices_command,
    report_command,
    run_command,
    tune_command,
):
    cli.add_command(command)


@cli.command("models")
@wide_option
@JSON
def models_command(wide: bool, as_json: bool) -> None:
    """List the preset language models.

    A value of "can run" other than yes names the parts that `decodetax run` cannot time; `decodetax predict`
    models them. --wide shows shapes and sources.
    """
    from .core.language_model import preset_table

    shown = {
        "model": "model",
        "parameters_billion": "parameters (billion)",
        "active_billion": "active (billion)",
        "layers": "layers",
        "q_heads": "query heads",
        "kv_heads": "KV heads",
        "can_run": "can run",
    }
    if as_json:
        _print_json(models=preset_table())
    else:
        click.echo(_listing(preset_table(), shown, wide=wide))


@cli.command("devices")
@wide_option
@JSON
def devices_command(wide: bool, as_json: bool) -> None:
    """List the GPUs with known datasheet peaks (dense rates).

    --wide shows all peaks and sources; --json has them in base units, with links and rental prices.
    """
    from .core.gpus import datasheet_rows, gpu_table

    shown = {
        "gpu": "GPU",
        "compute_capability": "compute capability",
        "bf16_dense_tflops": "bf16 TFLOP/s",
        "memory_gb_per_s": "memory GB/s",
        "memory_gb": "memory GB",
    }
    if as_json:
        _print_json(devices=[{"provenance": "datasheet", **asdict(gpu)} for gpu in gpu_table().values()])
    else:
        click.echo(_listing(datasheet_rows(), shown, wide=wide))


def _print_json(**document: Any) -> None:
    click.echo(json.dumps({"schema_version": 1, **document}, indent=1, allow_nan=False))


def _listing(rows: Sequence[Mapping[str, Any]], shown: Mapping[str, str], *, wide: bool) -> str:
    """Rows as a table: the columns shown under their headings, with --wide all others under their names."""
    columns = tuple(Column(shown.get(name, name), name, wide=name not in shown) for name in rows[0])
    return Table(columns=columns, rows=tuple(tuple(row.values()) for row in rows)).text(wide=wide)
