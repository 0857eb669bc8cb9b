"""The options of a training run: one typed dataclass, from which the flags and the configuration file follow."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.shards.spec import MODALITY_KIND


class ConfigError(ValueError):
    """An option that is unknown, missing or has an impossible value."""


def _option(default: Any, text: str, *choices: str) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a run; the defaults are the paper's (Sec. 4.1), None is filled in from the data set's setting.

    `resolved()` checks the values and fills in what is None.
    """

    dataset: str = _option("folder", "Data set: its name decides the defaults of the paper's setting.", *DATASETS)
    shards: str = _option("", "Folder of the shards (bmlpipe shard).")
    out: str = _option("", "Folder of the run.")
    modalities: tuple[str, ...] | None = _option(None, "Modalities, separated by commas: audio, visual, flow.")
    encoder: str = _option("resnet18", "Encoder of every modality.", "resnet18", "cnn4")
    weights: str | None = _option(
        None, "Initial weights of resnet18: none, imagenet (downloaded once) or a file of torchvision's."
    )
    fusion: str = _option("concat", "Fusion.", "concat", "sum", "film", "gated")
    modulation: str = _option("none", "Modulation.", "none", "opm", "ogm", "opm+ogm")
    q_base: float = _option(0.5, "OPM: base drop probability (Eq. 8).")
    lam: float = _option(0.5, "OPM: λ, how strongly the discrepancy raises it (Eq. 8).")
    alpha: float = _option(0.8, "OGM: α, how strongly the discrepancy damps the gradient (Eq. 11).")
    noise: str = _option(
        "all", "OGM: restore the noise of every encoder (Eq. 17), of damped ones, or of none.", "all", "damped", "off"
    )
    epochs: int = _option(100, "Epochs.")
    batch_size: int = _option(32, "Global batch: samples of one optimiser step, all ranks together.")
    lr: float = _option(1e-3, "Learning rate of SGD.")
    momentum: float = _option(0.9, "Momentum of SGD.")
    weight_decay: float = _option(0.0, "Weight decay.")
    lr_step: int = _option(0, "Multiply the learning rate by lr_gamma every so many epochs; 0: never.")
    lr_gamma: float = _option(0.1, "See lr_step.")
    frames: int | None = _option(None, "Frames (and flow stacks) of a sample.")
    image_size: int = _option(224, "Side of the square pictures that the encoders see, in pixels.")
    augment: str = _option(
        "standard", "Training views: random crop, flip and frame choice, or the evaluation's.", "standard", "none"
    )
    batch_norm: str = _option(
        "local",
        "Batch statistics of each rank, of all ranks (CUDA), or none (running ones).",
        "local",
        "sync",
        "frozen",
    )
    precision: str = _option("fp32", "Arithmetic of forward and backward.", "fp32", "bf16")
    workers: int = _option(2, "Loader processes a rank; 0: load in the training process.")
    window: int = _option(16, "Shards whose samples are mixed with each other at a time.")
    seed: int = _option(0, "Seed of everything random.")
    device: str = _option("auto", "Where to compute.", "auto", "cpu", "cuda")
    resume: bool = _option(False, "Go on from the run's last checkpoint, if it has one.")
    checkpoint_every: int = _option(0, "Also save every so many steps; 0: after each epoch only.")
    tensorboard: bool = _option(True, "Write TensorBoard files into the run.")

    def resolved(self) -> TrainConfig:
        """The configuration with the data set's setting filled in.

        Raises:
            ConfigError: An option is missing or impossible; the message names it, its value and the remedy.
        """
        for name in ("shards", "out"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is missing")
        for item in dataclasses.fields(self):
            value, choices = getattr(self, item.name), item.metadata["choices"]
            if choices and value not in choices:
                raise ConfigError(f"{item.name} is {value!r}: must be one of {', '.join(choices)}")
        setting = DATASETS[self.dataset]
        filled = dataclasses.replace(
            self,
            modalities=self.modalities or setting.modalities,
            frames=self.frames or setting.train_frames,
            weights=self.weights or ("imagenet" if setting.pretrained and self.encoder == "resnet18" else "none"),
        )
        filled._check()
        return filled

    def _check(self) -> None:
        assert self.modalities is not None
        if unknown := set(self.modalities) - set(MODALITY_KIND):
            raise ConfigError(
                f"modalities: {', '.join(sorted(unknown))} is not known: choose among {', '.join(MODALITY_KIND)}"
            )
        if len(set(self.modalities)) != len(self.modalities):
            raise ConfigError(f"modalities are {', '.join(self.modalities)}: name each once")
        for name, low in (("epochs", 1), ("batch_size", 1), ("frames", 1), ("image_size", 16), ("workers", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}: must be at least {low}")
        if self.lr <= 0:
            raise ConfigError(f"lr is {self.lr}: must be above 0")
        if self.encoder != "resnet18" and self.weights != "none":
            raise ConfigError(f"weights is {self.weights!r}: only resnet18 has ImageNet weights, not {self.encoder}")
        if len(self.modalities) == 1 and (self.modulation != "none" or self.fusion != "concat"):
            raise ConfigError(
                f"with {self.modalities[0]} alone there is nothing to balance or fuse: "
                "leave --modulation at none and --fusion at concat"
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """Modalities of a resolved configuration."""
        assert self.modalities is not None
        return self.modalities

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for YAML, checkpoints and comparisons."""
        content = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}


_TYPES = typing.get_type_hints(TrainConfig)


def _scalar(name: str) -> type:
    hint = _TYPES[name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return tuple if typing.get_origin(hint) is tuple else typing.cast("type", hint)


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
    return TrainConfig(**made)


def _converted(name: str, value: Any, where: str) -> Any:
    kind = _scalar(name)
    if value is None and isinstance(_TYPES[name], types.UnionType):
        return None
    if kind is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
            return tuple(part.strip() for part in parts)
    elif kind is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except (TypeError, ValueError):
            pass
    elif isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    raise ConfigError(f"{where}: {name} is {value!r}: expected {'names' if kind is tuple else kind.__name__}")


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
        name, kind = item.name.replace("_", "-"), _scalar(item.name)
        shown = (
            item.default if item.default not in (None, "") else "the data set's" if item.default is None else "required"
        )
        text = f"{item.metadata['help']}  [{shown}]"
        if kind is bool:
            command = click.option(f"--{name}/--no-{name}", item.name, default=None, help=text)(command)
        else:
            choices = item.metadata["choices"]
            value_type: Any = click.Choice(choices) if choices else str if kind is tuple else kind
            command = click.option(f"--{name}", item.name, type=value_type, default=None, help=text)(command)
    return command
