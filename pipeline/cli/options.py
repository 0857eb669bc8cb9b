"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.shards.kinds import KINDS

FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, path_type=Path)
PICTURE = click.Path(dir_okay=False, path_type=Path)

dataset_option = click.option(
    "--dataset", required=True, type=click.Choice(list(DATASETS)), help="See `bmlpipe datasets`."
)

_Command = TypeVar("_Command", bound=Callable[..., Any])


def kinds_option(text: str) -> Callable[[_Command], _Command]:
    """The option `--modalities` with this help: feature kinds separated by commas, a tuple or None to the command."""
    return click.option("--modalities", "kinds", metavar="NAMES", callback=_kinds, help=text)


def _kinds(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(part.strip() for part in value.split(",") if part.strip())
    if not names or set(names) - set(KINDS):
        raise click.BadParameter(f"{value!r}: choose among {', '.join(KINDS)}, separated by commas")
    return names


def flags_option(option: str, name: str, text: str) -> Callable[[_Command], _Command]:
    """A repeatable option for flags of clips, whole or by what they begin with; a tuple of flags to the command."""
    return click.option(option, name, metavar="NAME", multiple=True, callback=_flags, help=text)


def _flags(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from bmlpipe.pipeline.store.reasons import named_flags

    try:
        return named_flags(value)
    except OptionError as error:
        raise click.BadParameter(str(error)) from error
