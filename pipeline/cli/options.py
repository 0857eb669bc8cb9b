"""Options and arguments that several commands share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bmlpipe.manifests import places
from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.shards.kinds import KINDS

FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, path_type=Path)
PICTURE = click.Path(dir_okay=False, path_type=Path)

DATASET = click.Choice(list(DATASETS))

#: First heading of a command with many options.
MAIN = "Main options"

_logger = logging.getLogger("bmlpipe.pipeline.cli")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def kinds_option(text: str, **options: Any) -> Callable[[_Command], _Command]:
    """Make the option `--kinds` with this help. The command gets a tuple of feature kinds, or None."""
    return option("--kinds", metavar="LIST", callback=_kinds, help=text, listed=lambda: KINDS, **options)


def _kinds(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(part.strip() for part in value.split(",") if part.strip())
    if not names or set(names) - set(KINDS):
        raise click.BadParameter(f"{value!r} must be names among {', '.join(KINDS)}, separated by commas.")
    return names


def flags_option(declaration: str, name: str, text: str, **options: Any) -> Callable[[_Command], _Command]:
    """Make a repeatable option for flags of clips, by their names or beginnings. The command gets a tuple of flags."""
    return option(declaration, name, metavar="FLAG", multiple=True, callback=_flags, help=text, **options)


def _flags(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from bmlpipe.pipeline.store.reasons import named_flags

    try:
        return named_flags(value)
    except OptionError as error:
        raise click.BadParameter(str(error)) from error


def shards_argument(command: _Command) -> _Command:
    """Add the argument SHARDS: a folder or an address. The command gets a Path, or the address as text."""
    return click.argument("shards", required=False, callback=_shards)(command)


def _shards(context: click.Context, parameter: click.Parameter, value: str | None) -> Path | str:
    from bmlpipe.shards.index import INDEX_FILE

    if value is None:
        only = places.the_only(places.SHARDS, INDEX_FILE, option="the argument SHARDS", command="bmlpipe shard")
        log_places(shards=only)
        return only
    return folder_or_address(context, parameter, value)


def folder_or_address(context: click.Context, parameter: click.Parameter, value: str) -> Path | str:
    """Convert an argument to the path of an existing folder, or leave it as the address of shards."""
    from bmlpipe.shards.remote.shard_set import is_remote

    return value if is_remote(value) else Path(str(EXISTING_FOLDER.convert(value, parameter, context)))


def log_places(**found: Path | str | None) -> None:
    """Log which places a command takes."""
    _logger.info("%s", ", ".join(f"{name} {place}" for name, place in found.items() if place is not None))


def log_next(command: str) -> None:
    """Log the command that comes next."""
    _logger.info("Next: %s", command)
