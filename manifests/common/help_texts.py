"""Help of the commands: options under headings, names of registered plug-ins, examples, and uncut summaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from gettext import gettext
from typing import Any, TypeVar

import click

from bmlpipe.manifests.common.plugins import PluginError

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Heading of the options that every command has.
GENERAL = "General options"


class GroupedOption(click.Option):
    """An option with a heading.

    Args:
        group: Heading under which the help lists the option.
        listed: Returns names that the help appends. It is called only when the help is shown.
        shown: Text that the help shows as the default value.
    """

    def __init__(
        self,
        *arguments: Any,
        group: str = "Options",
        listed: Callable[[], Iterable[str]] | None = None,
        shown: str = "",
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        if self.metavar is None and isinstance(self.type, click.IntRange | click.FloatRange):
            self.metavar = "INTEGER" if isinstance(self.type, click.IntRange) else "FLOAT"
        self.group = group
        self._listed, self._shown = listed, shown

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help, with the listed names and the default."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        text, mark, brackets = record[1].partition("  [")
        if self._listed is not None:
            try:
                text += f" One of: {', '.join(self._listed())}."
            except PluginError as error:
                text += f" {error}"
        if self._shown:
            mark, brackets = "  [", f"default: {self._shown}]"
        return record[0], text + mark + brackets


def option(*declarations: str, group: str = "Options", **options: Any) -> Callable[[_Function], _Function]:
    """Decorate a function with a `GroupedOption`; takes its arguments and those of `click.option`."""
    return click.option(*declarations, cls=GroupedOption, group=group, **options)


class HelpedCommand(click.Command):
    """A command whose help lists options under headings and ends with examples.

    Args:
        examples: Command lines.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section per heading, in the order in which the headings first occur."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                heading = getattr(parameter, "group", GENERAL if "--help" in parameter.opts else gettext("Options"))
                groups.setdefault(heading, []).append(record)
        if GENERAL in groups:
            groups[GENERAL] = groups.pop(GENERAL)  # last
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples and the epilog."""
        if self.examples:
            with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        super().format_epilog(ctx, formatter)


class HelpedGroup(HelpedCommand, click.Group):
    """A group that lists its commands in the order of their registration, with whole summaries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of their registration."""
        return list(self.commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the options."""
        rows = [(name, command.get_short_help_str(limit=200)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        HelpedCommand.format_options(self, ctx, formatter)
