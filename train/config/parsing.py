"""Options from a file, a checkpoint and the command line, by the fields of `TrainConfig`."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import click
import yaml

from bmlpipe.manifests.common.help_texts import option
from bmlpipe.train.config.options import GROUPS, TYPES, ConfigError, TrainConfig
from bmlpipe.train.modulation.presets import PRESETS


def convert(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert plain values to the types of their options.

    Args:
        values: Option → value, as a file or a checkpoint holds them.
        where: Where the values stand, for messages; "": nothing to say.

    Raises:
        ConfigError: An option is unknown, or a value has the wrong type.
    """
    known = {item.name for item in dataclasses.fields(TrainConfig)}
    converted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{_prefix(where)}unknown option {name!r}{hint}")
        converted[name] = _converted(name, value, where)
    return converted


def parse(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Make a configuration from plain values. The options of its preset hold where `values` does not override them.

    Args:
        values: Option → value, as a file or a checkpoint holds them.
        where: Where the values stand, for messages; "": nothing to say.

    Raises:
        ConfigError: An option is unknown, or a value has the wrong type or is impossible.
    """
    given = convert(values, where)
    preset = PRESETS.get(given.get("preset", "paper"))
    try:
        return TrainConfig(**{**(preset.options if preset else {}), **given})
    except ConfigError as error:
        raise ConfigError(f"{_prefix(where)}{error}") from error


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def read_file(path: Path) -> dict[str, Any]:
    """Read the options of a YAML file.

    Raises:
        ConfigError: The file cannot be read, or it is not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, expected lines of the form `option: value`")
    return content


def read_options(file: Path | None, given: Mapping[str, Any]) -> TrainConfig:
    """Make the resolved configuration of a command line.

    Args:
        file: YAML file of options, or None.
        given: Option → value of each flag; None: not given. Flags override the file.

    Raises:
        click.UsageError: An option is unknown or has an impossible value, or options do not go together.
        BmlpipeError: The shards or their data set cannot be determined.
    """
    flags_given = {name: value for name, value in given.items() if value is not None}
    try:
        values = {**(read_file(file) if file else {}), **flags_given}
        return parse(values, str(file) if file else "").resolved()
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function with `--config` and a flag for every training option; None: a flag was not given."""
    items = sorted(dataclasses.fields(TrainConfig), key=lambda item: GROUPS.index(item.metadata["group"]))
    for item in reversed(items):
        command = _flag(item)(command)
    return option(
        "--config",
        "file",
        group=GROUPS[0],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML file of options; flags override the file.",
    )(command)


def _flag(item: dataclasses.Field[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag, (value_type, several) = item.name.replace("_", "-"), _value_type(item.name)
    metadata = item.metadata
    shown = metadata["shown"] or _written(item.default)
    options: dict[str, Any] = {"group": metadata["group"], "default": None, "help": metadata["help"], "shown": shown}
    if value_type is bool:
        return option(f"--{flag}/--no-{flag}", item.name, **options)
    literal = typing.get_args(TYPES[item.name]) if typing.get_origin(TYPES[item.name]) is Literal else None
    kind: Any = click.Choice(literal) if literal else str if several else value_type
    metavar = "LIST" if several else "NAME" if metadata["choices"] else None
    return option(f"--{flag}", item.name, type=kind, metavar=metavar, listed=metadata["listed"], **options)


def _written(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _value_type(name: str) -> tuple[type, bool]:
    """Return the type of an option's value or, for a tuple, of its parts, and whether it is a tuple."""
    hint = TYPES[name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    if typing.get_origin(hint) is Literal:
        return str, False
    return typing.cast("type", hint), False


def _converted(name: str, value: Any, where: str) -> Any:
    value_type, several = _value_type(name)
    if value is None and isinstance(TYPES[name], types.UnionType):
        return None
    try:
        if several:
            parts = value.split(",") if isinstance(value, str) else value
            if isinstance(parts, list | tuple):
                return tuple(_part(value_type, part.strip() if isinstance(part, str) else part) for part in parts)
        else:
            return _part(value_type, value)
    except (TypeError, ValueError):
        pass
    expected = {str: "names", float: "numbers"}.get(value_type, value_type.__name__) if several else value_type.__name__
    raise ConfigError(f"{_prefix(where)}{name} is {value!r}: expected {expected}")


def _part(value_type: type, value: Any) -> Any:
    if value_type is float and not isinstance(value, bool):
        return float(value)  # YAML reads 1e-3 as text
    if not isinstance(value, value_type) or isinstance(value, bool) != (value_type is bool):
        raise TypeError
    return value
