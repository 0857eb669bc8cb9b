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

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.train.config.options import TYPES, ConfigError, TrainConfig, choices_of


def _kind(name: str) -> tuple[type, bool]:
    """Type of an option's value or, for a tuple, of its parts; whether it is a tuple."""
    hint = TYPES[name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    if typing.get_origin(hint) is Literal:
        return str, False
    return typing.cast("type", hint), False


def parse(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Build a configuration from plain values, as a file or a checkpoint holds them.

    Raises:
        ConfigError: A key is unknown or a value has the wrong type.
    """
    known = {item.name for item in dataclasses.fields(TrainConfig)}
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            raise ConfigError(f"{where}: unknown option {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        made[name] = _converted(name, value, where)
    config = TrainConfig(**made)
    return config if config.preset == "paper" else TrainConfig(**{**_published(config), **made})


def _published(config: TrainConfig) -> dict[str, Any]:
    """The options of the preset that a configuration names; none where it names what is unknown (told later)."""
    from bmlpipe.train.modulation import PRESETS

    if config.preset not in PRESETS or config.dataset not in DATASETS:
        return {}
    modalities = config.modalities or DATASETS[config.dataset].modalities
    return PRESETS[config.preset].of_run(config.fusion, len(modalities))


def _converted(name: str, value: Any, where: str) -> Any:
    kind, several = _kind(name)
    if value is None and isinstance(TYPES[name], types.UnionType):
        return None
    try:
        if several:
            parts = value.split(",") if isinstance(value, str) else value
            if isinstance(parts, list | tuple):
                return tuple(_part(kind, part.strip() if isinstance(part, str) else part) for part in parts)
        else:
            return _part(kind, value)
    except (TypeError, ValueError):
        pass
    expected = {str: "names", float: "numbers"}.get(kind, kind.__name__) if several else kind.__name__
    raise ConfigError(f"{where}: {name} is {value!r}: expected {expected}")


def _part(kind: type, value: Any) -> Any:
    if kind is float and not isinstance(value, bool):
        return float(value)  # YAML reads 1e-3 as text
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise TypeError
    return value


def read_file(path: Path) -> dict[str, Any]:
    """Options of a YAML file.

    Raises:
        ConfigError: It cannot be read, or is not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, expected lines of the form `option: value`")
    return content


def flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a click command with a flag for each option; only those given on the command line arrive."""
    for item in reversed(dataclasses.fields(TrainConfig)):
        name, (kind, several) = item.name.replace("_", "-"), _kind(item.name)
        default = {None: "the data set's", "": "required", (): "none"}.get(item.default, item.default)
        shown = item.metadata["shown"] or default
        text = f"{item.metadata['help']}  [{shown}]"
        if kind is bool:
            command = click.option(f"--{name}/--no-{name}", item.name, default=None, help=text)(command)
        else:
            choices = choices_of(item.name)
            plain = choices and not item.metadata["plugins"]
            value_type: Any = click.Choice(choices) if plain else str if several else kind
            text = f"{item.metadata['help']}  ({', '.join(choices)})  [{shown}]" if choices and not plain else text
            command = click.option(f"--{name}", item.name, type=value_type, default=None, help=text)(command)
    return command
