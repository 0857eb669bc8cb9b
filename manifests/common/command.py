"""Base classes of every bmlpipe program: log options, signals, one-line errors and exit statuses.

A `BmlpipeError`, and an `OSError` that names its file, end a program with one line and exit status 1; `OptionError` is
wrong usage, with exit status 2. Any other exception is unexpected: it keeps its traceback, with exit status 1.

Exit statuses: 0 success, 1 an error or a negative verdict that the last line explains, 2 wrong usage, 128 + n ended by
signal n (129 SIGHUP, 130 SIGINT, 143 SIGTERM).
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from bmlpipe.manifests.common.errors import BmlpipeError, OptionError
from bmlpipe.manifests.common.help_texts import GENERAL, HelpedCommand, HelpedGroup, option
from bmlpipe.manifests.common.logs import ENVIRONMENT, FORMATS, configure, log_settings
from bmlpipe.manifests.common.signals import exit_status, signals_as_exceptions

_logger = logging.getLogger(__name__)

_Target = TypeVar("_Target", bound="Callable[..., Any] | click.Command")

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def log_options(target: _Target) -> _Target:
    """Add `--log-format` and `--verbose/--quiet` to a command, or to the function that becomes one."""
    options = (
        option(
            "--log-format",
            group=GENERAL,
            type=click.Choice(FORMATS),
            default="text",
            envvar=ENVIRONMENT,
            show_default=True,
            show_envvar=True,
            is_eager=True,
            expose_value=False,
            callback=_configure,
            help="Format of the log on stderr; json: one object per line.",
        ),
        option(
            "--verbose/--quiet",
            "loud",
            group=GENERAL,
            default=None,
            is_eager=True,
            expose_value=False,
            callback=_configure,
            help="Log more, or only warnings and errors.",
        ),
    )
    for decorate in options:
        decorate(target)
    return target


def _configure(context: click.Context, option: click.Parameter, value: Any) -> None:
    given = context.meta.setdefault(__name__, {})
    given[option.name] = value
    loud = given.get("loud")
    level = logging.INFO if loud is None else logging.DEBUG if loud else logging.WARNING
    configure(given.get("log_format", "text"), level)


class Program(HelpedCommand):
    """A command that reports errors and signals as the module docstring describes.

    Args:
        on_interrupt: Advice to the user after Ctrl-C, SIGTERM or SIGHUP. It is logged when one of them ends the
            command.
    """

    def __init__(self, *arguments: Any, on_interrupt: str = "run the same command again", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._on_interrupt = on_interrupt

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            click.ClickException: An error that the user can correct, to be shown in one line.
            click.exceptions.Exit: A signal has ended the command.
        """
        try:
            return super().invoke(ctx)
        except OptionError as error:
            raise click.UsageError(str(error), ctx) from error
        except BmlpipeError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if not error.filename and error.errno not in _DISK_FULL:
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error
        except KeyboardInterrupt as error:
            cause = f"stopped by {error}" if str(error) else "interrupted"
            _logger.warning("%s: %s", cause, self._on_interrupt)
            raise click.exceptions.Exit(exit_status(error)) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse the arguments, run, and end the process with the exit status (`standalone_mode` as in click)."""
        configure("json" if os.environ.get(ENVIRONMENT) == "json" else "text")
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            if log_settings().format == "json" or log_settings().rank is not None:
                _logger.error("%s", error.format_message())  # noqa: TRY400  (a traceback would hide it)
            else:
                error.show()
            status = error.exit_code
        except click.Abort as error:
            cause = error.__cause__
            status = exit_status(cause) if isinstance(cause, KeyboardInterrupt) else 1
        sys.exit(status if isinstance(status, int) else 0)


class ProgramGroup(Program, HelpedGroup):
    """A program of several commands. Each has the log options, and SIGTERM and SIGHUP stop it like Ctrl-C."""

    command_class = Program

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Register a command."""
        super().add_command(log_options(cmd), name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        with signals_as_exceptions():
            return super().invoke(ctx)
