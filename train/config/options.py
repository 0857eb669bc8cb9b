"""The options of a training run as one typed dataclass: defaults, help texts and checks."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bmlpipe.manifests.common.errors import BmlpipeError, OptionError
from bmlpipe.manifests.common.plugins import PluginError
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.shards.kinds import MODALITY_KIND
from bmlpipe.train.config.registries import ENCODERS, FUSIONS, INTERMEDIATE_FUSIONS
from bmlpipe.train.modulation.presets import PRESETS
from bmlpipe.train.modulation.rule_table import MODULATIONS

if TYPE_CHECKING:
    from bmlpipe.train.modulation.modulation import Modulation


class ConfigError(BmlpipeError):
    """An option is unknown, missing or has an impossible value, or a run does not fit its options."""


#: Headings of the help, in order; each option names its own.
GROUPS = ("Main options", "Data", "Model", "Modulation", "Optimisation", "Hardware", "Checkpoints and logs")
_MAIN, _DATA, _MODEL, _MODULATION, _OPTIMISATION, _HARDWARE, _LOGS = GROUPS

Names = Callable[[], Iterable[str]]


def _option(
    group: str, default: Any, text: str, *, choices: Names | None = None, listed: Names | None = None, shown: str = ""
) -> Any:
    """Declare an option.

    Args:
        group: Heading under which the help lists it.
        default: Default value. None, "" or (): filled in by `TrainConfig.resolved`.
        text: Help.
        choices: Gives the possible values, where they are neither a Literal nor free.
        listed: Gives names that the help lists for an option with free text.
        shown: What the help shows in place of the default value.
    """
    metadata = {"group": group, "help": text, "choices": choices, "listed": listed or choices, "shown": shown}
    return field(default=default, metadata=metadata)


#: Encoders that ImageNet weights exist for.
_PRETRAINED = ("resnet18", "tsm18")

#: Options that may change when a run is resumed: they say where and how to compute, not what.
MAY_CHANGE = frozenset(
    {"out", "shards", "cache", "cache_bytes", "accumulate", "epochs", "workers", "device", "resume", "tensorboard"}
    | {"checkpoint_every", "keep_every", "group_timeout", "trackers"}
)

#: Option → the smallest value that it may have.
_LOWEST: Mapping[str, float] = {
    **dict.fromkeys(("epochs", "batch_size", "frames", "accumulate", "classifier_layers", "shuffle_shards"), 1),
    **dict.fromkeys(("workers", "seed", "max_grad_norm", "lr_step", "checkpoint_every", "keep_every"), 0),
    "image_size": 16,
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a run. The defaults are the paper's (Sec. 4.1).

    Each option by itself is checked here, when it is made; `resolved` fills in what depends on the data set and checks
    the options together.

    Raises:
        ConfigError: A value is impossible. The message names the option, its value and the possible values.
    """

    dataset: str = _option(
        _MAIN,
        "",
        "Data set. It decides the defaults of the paper's setting.",
        choices=lambda: DATASETS,
        shown="the data set of the shards",
    )
    shards: tuple[str, ...] = _option(
        _MAIN,
        (),
        "Shards to train on: folders or addresses (s3://, gs://, https://), separated by commas.",
        shown="shards/<dataset>",
    )
    out: str = _option(_MAIN, "", "Folder of the run.", shown="runs/<dataset>/<modulation>-seed<seed>")
    modulation: str = _option(
        _MAIN,
        "none",
        "Modulation rules joined by +, options in brackets: opm, opm(p_exe=0.7)+ogm(alpha=0.5, epochs=0:50).",
        listed=lambda: ("none", *MODULATIONS),
    )
    modalities: tuple[str, ...] | None = _option(
        _MAIN, None, "Modalities to train, separated by commas.", listed=lambda: MODALITY_KIND, shown="the data set's"
    )
    epochs: int = _option(_MAIN, 100, "Number of epochs.")
    batch_size: int = _option(_MAIN, 32, "Number of samples per optimiser step, over all processes.")
    lr: float = _option(_MAIN, 1e-3, "Learning rate.")
    seed: int = _option(_MAIN, 0, "Seed of all random choices.")
    resume: bool = _option(_MAIN, False, "Continue from the last checkpoint of the run, if there is one.")

    shard_weights: tuple[float, ...] = _option(
        _DATA,
        (),
        "Relative sampling rate of each set of shards, separated by commas.",
        shown="each sample once per epoch",
    )
    shuffle_shards: int = _option(_DATA, 16, "Number of shards whose samples are shuffled together.")
    audio: Literal["spectrogram", "waveform"] = _option(
        _DATA, "spectrogram", "Feature kind of audio; waveform: the device computes the `vggsound` spectrogram."
    )
    frames: int | None = _option(_DATA, None, "Number of frames and of flow stacks per sample.", shown="the data set's")
    image_size: int = _option(_DATA, 224, "Height and width of the encoders' input images, in pixels.")
    augment: Literal["standard", "none"] = _option(
        _DATA, "standard", "Augmentation; standard: random crop, flip and choice of frames."
    )
    workers: int = _option(_DATA, 2, "Number of loader processes per training process; 0: load in the process itself.")
    cache: str | None = _option(
        _DATA, None, "Folder on a local disk for shards from an address (BMLPIPE_CACHE).", shown="~/.cache/bmlpipe"
    )
    cache_bytes: str | None = _option(
        _DATA,
        None,
        "Maximum size of the cache, such as 200GB (BMLPIPE_CACHE_BYTES).",
        shown="50 GB, at most half of the disk",
    )

    encoder: str = _option(
        _MODEL, "resnet18", "Encoder of every modality; tsm18: ResNet-18 with temporal shift.", choices=lambda: ENCODERS
    )
    weights: str | None = _option(
        _MODEL,
        None,
        "Initial weights of resnet18 and tsm18: none, imagenet (downloaded once) or a file of torchvision.",
        shown="the data set's",
    )
    fusion: str = _option(_MODEL, "concat", "Fusion of the features.", choices=lambda: FUSIONS)
    classifier_layers: int = _option(_MODEL, 1, "Number of linear layers of the classifier.")
    intermediate: str = _option(
        _MODEL,
        "none",
        "Fusion between stages of the encoders; mmtm: after stages 2 to 4, attention: after the last.",
        choices=lambda: ("none", *INTERMEDIATE_FUSIONS),
    )

    preset: str = _option(
        _MODULATION, "paper", "Published setting: defaults of the options and rules.", choices=lambda: PRESETS
    )
    discrepancy: Literal["ratio", "difference"] = _option(
        _MODULATION, "ratio", "Form of the discrepancy ρ between modalities: Eq. 7, or the variant of Table 15."
    )
    gamma: tuple[float, ...] | None = _option(
        _MODULATION,
        None,
        "Share γ of the head's bias in the score of each modality (Eq. 6), separated by commas.",
        shown="1/M each; with sum 1",
    )
    references: tuple[str, ...] = _option(
        _MODULATION, (), "For gblending: folders of the finished uni-modal runs and of the joint run.", shown="none"
    )

    optimizer: Literal["sgd", "adamw"] = _option(_OPTIMISATION, "sgd", "Optimiser.")
    momentum: float = _option(_OPTIMISATION, 0.9, "Momentum of SGD.")
    weight_decay: float = _option(_OPTIMISATION, 0.0, "Weight decay.")
    lr_step: int = _option(_OPTIMISATION, 0, "Number of epochs between two reductions of the learning rate; 0: none.")
    lr_gamma: float = _option(_OPTIMISATION, 0.1, "Factor of each reduction of the learning rate.")
    max_grad_norm: float = _option(
        _OPTIMISATION, 0.0, "Maximum norm of the gradient after modulation, over all parameters; 0: no clipping."
    )
    accumulate: int = _option(_OPTIMISATION, 1, "Number of micro-batches per optimiser step and process.")
    last_batch: Literal["drop", "pad"] = _option(
        _OPTIMISATION, "drop", "Incomplete last batch of an epoch: drop it, or pad it with samples of weight 0."
    )
    batch_norm: Literal["local", "sync", "frozen"] = _option(
        _OPTIMISATION, "local", "Batch statistics of each process, of all processes (CUDA), or fixed ones."
    )

    device: Literal["auto", "cpu", "cuda"] = _option(_HARDWARE, "auto", "Device to train on.")
    precision: Literal["fp32", "bf16", "fp16"] = _option(
        _HARDWARE, "fp32", "Arithmetic of the forward and backward pass; fp16 scales the loss."
    )
    channels_last: bool = _option(_HARDWARE, False, "Use the channels-last memory format; faster on CUDA with bf16.")
    compile: bool = _option(_HARDWARE, False, "Compile the model with torch.compile.")
    group_timeout: float = _option(
        _HARDWARE, 600.0, "Seconds that a process waits for the others before the run is given up."
    )

    checkpoint_every: int = _option(_LOGS, 0, "Number of steps between checkpoints; 0: only after each epoch.")
    keep_every: int = _option(
        _LOGS, 0, "Number of epochs between checkpoints that are kept; 0: keep the best and the last."
    )
    tensorboard: bool = _option(_LOGS, True, "Write TensorBoard files into the folder of the run.")
    trackers: tuple[str, ...] = _option(
        _LOGS, (), "Services that also receive the journal, separated by commas: wandb, mlflow.", shown="none"
    )

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value == item.default:
                continue  # listing the choices of a registry searches all installed packages
            choices = choices_of(item.name)
            if choices is not None and value not in choices:
                raise ConfigError(f"{item.name} is {value!r}: must be one of {', '.join(choices)}")
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value}: must be at least {low}")
        for name in ("lr", "group_timeout"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: must be above 0")
        modalities = self.modalities or ()
        if unknown := sorted(set(modalities) - set(MODALITY_KIND)):
            raise ConfigError(f"modalities: {', '.join(unknown)} is unknown: must be among {', '.join(MODALITY_KIND)}")
        if len(set(modalities)) != len(modalities):
            raise ConfigError(f"modalities are {', '.join(modalities)}: each may be named only once")

    def resolved(self) -> TrainConfig:
        """Fill in the places (`bmlpipe.train.config.places`) and the setting of the data set.

        Raises:
            ConfigError: Options do not go together, or a place cannot be found.
        """
        from bmlpipe.train.config.places import located  # needs this class

        config = located(self)
        setting = DATASETS[config.dataset]
        modalities = config.modalities or setting.modalities
        gamma = config.gamma or PRESETS[config.preset].gamma(config.fusion, len(modalities))
        if gamma is None and config.intermediate != "none" and config._splits_by_layer:
            gamma = (1.0,) * len(modalities)  # as zero-out does, which reads scores behind an intermediate fusion
        pretrained = setting.pretrained and config.encoder in _PRETRAINED
        filled = dataclasses.replace(
            config,
            modalities=modalities,
            frames=config.frames or setting.train_frames,
            gamma=gamma,
            weights=config.weights or ("imagenet" if pretrained else "none"),
        )
        filled._check_together(modalities)
        return filled

    @property
    def _splits_by_layer(self) -> bool:
        """Whether the head is one linear layer on concatenated features."""
        return self.fusion == "concat" and self.classifier_layers == 1

    def _check_together(self, modalities: tuple[str, ...]) -> None:
        weights = self.shard_weights
        if weights and (len(weights) != len(self.shards) or min(weights) <= 0):
            raise ConfigError(
                f"shard_weights are {', '.join(map(str, weights))}: give one number above 0 for each of "
                f"{', '.join(self.shards)}"
            )
        if self.encoder not in _PRETRAINED and self.weights != "none":
            known = " and ".join(_PRETRAINED)
            raise ConfigError(f"weights is {self.weights!r}: only {known} have ImageNet weights, not {self.encoder}")
        joint = {self.modulation, self.intermediate} != {"none"} or self.fusion != "concat"
        if len(modalities) == 1 and joint:
            raise ConfigError(
                f"with {modalities[0]} alone there is nothing to balance or fuse: leave --modulation and "
                "--intermediate at none and --fusion at concat"
            )
        splits = self.fusion == "sum" or self._splits_by_layer
        if self.gamma is not None and not (splits and len(self.gamma) == len(modalities)):
            raise ConfigError(
                f"gamma is {', '.join(map(str, self.gamma))}: it needs the fusion sum, or concat with one classifier "
                f"layer (here: {self.fusion} with {self.classifier_layers}), and one number for each of "
                f"{', '.join(modalities)}"
            )
        try:
            self.make_modulation()
        except (OptionError, PluginError) as error:
            raise ConfigError(f"modulation is {self.modulation!r}: {error}") from error

    def make_modulation(self) -> Modulation:
        """Make the modulation of a resolved configuration.

        Raises:
            OptionError: The modulation cannot be read, or an option of a rule is out of range.
        """
        from bmlpipe.train.modulation.registry import make_modulation  # imports torch

        modalities = self.resolved_modalities
        return make_modulation(self.modulation, modalities, seed=self.seed, form=self.discrepancy, preset=self.preset)

    @property
    def resolved_modalities(self) -> tuple[str, ...]:
        """Modalities of a resolved configuration."""
        assert self.modalities is not None
        return self.modalities

    @property
    def kinds(self) -> dict[str, str]:
        """Feature kind that each modality of a resolved configuration is read from."""
        return {m: self.audio if m == "audio" else MODALITY_KIND[m] for m in self.resolved_modalities}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for YAML, checkpoints and comparisons."""
        content = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}


#: Option → its type.
TYPES = typing.get_type_hints(TrainConfig)


def choices_of(name: str) -> Iterable[str] | None:
    """Return the possible values of an option; None: any. A value of a registry is looked up without importing it."""
    if typing.get_origin(TYPES[name]) is Literal:
        return typing.get_args(TYPES[name])
    choices: Names | None = TrainConfig.__dataclass_fields__[name].metadata["choices"]
    return None if choices is None else choices()
