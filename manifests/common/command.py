"""What all programs of this package have in common for those who run them: log options, signals, exit statuses.

Exit statuses: 0 done, 1 an error or a verdict that the last line explains, 2 wrong usage, 128 + n stopped by signal n
(129 SIGHUP, 130 SIGINT, 143 SIGTERM).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from bmlpipe.manifests.common.logs import ENVIRONMENT, FORMATS, chosen, configure
from bmlpipe.manifests.common.signals import exit_status, signals_raised

_logger = logging.getLogger(__name__)

_Target = TypeVar("_Target", bound="Callable[..., Any] | click.Command")


def log_options(target: _Target) -> _Target:
    """Give a command, or the function that becomes one, `--log-format` and `--verbose/--quiet`."""
    options = (
        click.option(
            "--log-format",
            type=click.Choice(FORMATS),
            default="text",
            envvar=ENVIRONMENT,
            show_default=True,
            show_envvar=True,
            is_eager=True,
            expose_value=False,
            callback=_configure,
            help="Lines on stderr: for people, or a JSON object each.",
        ),
        click.option(
            "--verbose/--quiet",
            "loud",
            default=None,
            is_eager=True,
            expose_value=False,
            callback=_configure,
            help="Log more, or only warnings and errors.",
        ),
    )
    for option in options:
        option(target)
    return target


def _configure(context: click.Context, option: click.Parameter, value: Any) -> None:
    given = context.meta.setdefault(__name__, {})
    given[option.name] = value
    loud = given.get("loud")
    level = logging.INFO if loud is None else logging.DEBUG if loud else logging.WARNING
    configure(given.get("log_format", "text"), level)


class Program(click.Command):
    """A command whose errors are log lines where JSON is chosen, and whose exit statuses are those of this module."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse, run, and end the process with the exit status (`standalone_mode`: as click has it)."""
        configure("json" if os.environ.get(ENVIRONMENT) == "json" else "text")
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            if chosen()[0] == "json":
                _logger.error("%s", error.format_message())  # noqa: TRY400  (a traceback would hide it)
            else:
                error.show()
            status = error.exit_code
        except click.Abort as error:
            cause = error.__cause__
            status = exit_status(cause) if isinstance(cause, KeyboardInterrupt) else 1
        sys.exit(status if isinstance(status, int) else 0)


class ProgramGroup(Program, click.Group):
    """A `Program` of several commands, each of which gets the log options; SIGTERM and SIGHUP stop it like Ctrl-C."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Register a command."""
        super().add_command(log_options(cmd), name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        with signals_raised():
            return super().invoke(ctx)
