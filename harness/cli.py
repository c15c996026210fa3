"""The commands. Each imports what it needs when it runs, so that help answers at once."""

import os
import sys
from typing import NoReturn

import click

from .bench.compare_command import compare_command
from .bench.report_command import report_command
from .bench.run_command import run_command
from .bench.tune_command import tune_command
from .core.errors import FAILED, INTERRUPTED, MISUSE, FailureError, UsageError
from .core.options import complain
from .cost.claims_command import claims_command
from .cost.predict_command import predict_command
from .cost.price_commands import price_command, prices_command
from .offline.count_command import count_command
from .offline.inspect_command import inspect_command


def main() -> NoReturn:
    """Run the command line; misuse becomes one line on stderr and exit code 2."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        code = done.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except click.exceptions.NoArgsIsHelpError:
        complain(f"name a command: {', '.join(sorted(cli.commands))}; --help tells more")
        code = MISUSE
    except (click.ClickException, UsageError, FailureError) as error:
        complain(error.format_message() if isinstance(error, click.ClickException) else str(error))
        code = FAILED if isinstance(error, FailureError) else MISUSE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    sys.exit(code if isinstance(code, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="decodetax")
def cli() -> None:
    """Measure why an output token costs more than an input token, on this machine."""


for command in (
    claims_command,
    compare_command,
    count_command,
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
def models_command() -> None:
    """List the preset language models, with their source."""
    from .core.language_model import preset_table
    from .core.table import Table

    click.echo(Table.of(preset_table()).text(wide=True))


@cli.command("devices")
def devices_command() -> None:
    """List the devices whose datasheet peaks are known (dense rates), with their source."""
    from .core.gpus import datasheet_rows
    from .core.table import Table

    click.echo(Table.of(datasheet_rows()).text(wide=True))
