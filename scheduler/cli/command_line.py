"""The `stoker` command line: collects all commands and turns errors into a message and an exit code."""

from __future__ import annotations

import errno
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import StokerError, UserError
from jobs.messages import reason
from scheduler.cli.commands import (
    change_commands,
    cron_commands,
    fetch_commands,
    operator_commands,
    plan_command,
    run_command,
    serve_commands,
    show_commands,
    submit_command,
    webhook_commands,
)
from scheduler.cli.connect import GlobalOptions, folder_named
from scheduler.cli.interrupts import Interrupted
from scheduler.cli.terminal import StdoutClosed, WarningsHandler, show, show_error
from scheduler.client.connection import ApiError
from scheduler.embedded.data_dir import MAKE_ROOM

DONE, FAILED, USAGE = 0, 1, 2
"""Exit codes: success; a job or a service failed; the request was invalid."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it

# Typer has its own copy of click. This finds the base class of command-line errors in either one.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="stoker",
    help="A GPU batch daemon: queue inference and training jobs, and run them on every GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_GROUPS = (
    serve_commands,
    run_command,
    submit_command,
    plan_command,
    show_commands,
    fetch_commands,
    change_commands,
    cron_commands,
    webhook_commands,
    operator_commands,
)
for module in _GROUPS:
    module.add_to(app)


def _show_version(requested: bool) -> None:
    if requested:
        from scheduler.admin.version import version

        show(f"stoker {version()}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    data_dir: Annotated[
        Path | None, typer.Option(parser=folder_named, metavar="<path>", help="Data directory [default: ~/.stoker].")
    ] = None,
    url: Annotated[str | None, typer.Option(help="URL of the API.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and more log messages.")] = False,
    version: Annotated[  # noqa: ARG001, handled by the callback
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, handlers=[WarningsHandler()], force=True)
    context.obj = GlobalOptions(data_dir=data_dir, url=url)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `stoker` command.

    Args:
        arguments: Arguments without the program's name; by default those of the process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        code = app(args=words, prog_name="stoker", standalone_mode=False)
        return code if isinstance(code, int) else DONE
    except Interrupted as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return Interrupted(signal.SIGINT).exit_code
    except StdoutClosed:
        return _BROKEN_PIPE
    except _CommandLineError as error:
        return _show_usage_error(error)
    except StokerError as error:
        if debug:
            logging.getLogger(__name__).info("the traceback", exc_info=error)
        show_error(error.message)
        return exit_code_of(error)
    except OSError as error:
        if debug:
            raise
        show_error(_system_error(error))
        return FAILED
    except Exception as error:
        if debug:
            raise
        show_error(f"unexpected {type(error).__name__}: {error}; run `stoker --debug ...` to see the traceback")
        return FAILED


def exit_code_of(error: StokerError) -> int:
    """Exit code of an error: 2 for an invalid request, 1 for a failed service."""
    is_user_error = error.is_user_error if isinstance(error, ApiError) else isinstance(error, UserError)
    return USAGE if is_user_error else FAILED


def _system_error(error: OSError) -> str:
    """Message for an error of the operating system, most likely a full disk."""
    place = f"'{error.filename}'" if error.filename else "a file"
    advice = f"; {MAKE_ROOM}" if error.errno in _FULL else ""
    return f"cannot use {place}: {reason(error)}{advice}"


def _show_usage_error(error: Exception) -> int:
    message = str(getattr(error, "format_message", error.__str__)()).strip().replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        show(context.get_help() if context is not None else message)
        return USAGE
    path = context.command_path if context is not None else "stoker"
    show_error(f"{message.rstrip('.')}; see `{path} --help`")
    return USAGE
