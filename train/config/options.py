"""The options of a training run, one typed dataclass: their defaults, what they mean, and which go together."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bmlpipe.manifests.common.errors import BmlpipeError, OptionError
from bmlpipe.manifests.common.plugins import PluginError
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.shards.kinds import MODALITY_KIND

if TYPE_CHECKING:
    from bmlpipe.train.modulation import Modulation


class ConfigError(BmlpipeError):
    """An option that is unknown, missing or has an impossible value."""


def _option(default: Any, text: str, *choices: str, plugins: str = "", shown: str = "") -> Any:
    """An option.

    Args:
        default: Its default; None: filled in when the configuration is resolved.
        text: Help.
        choices: Possible values where they are not a Literal type; none: any.
        plugins: Group of the entry points by which other packages add choices.
        shown: What the help says of the default instead of its value.
    """
    return field(default=default, metadata={"help": text, "choices": choices, "plugins": plugins, "shown": shown})


_PRETRAINED = ("resnet18", "tsm18")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a run; the defaults are the paper's (Sec. 4.1), None is filled in from the data set's setting.

    `resolved()` checks the values and fills in what is None.
    """

    dataset: str = _option("folder", "Data set: its name decides the defaults of the paper's setting.", *DATASETS)
    shards: tuple[str, ...] = _option(
        (), "Folders or addresses (s3://, gs://, https://) of one or more sets of shards.", shown="required"
    )
    mix: tuple[float, ...] = _option(
        (),
        "How often each set of shards is drawn from, in any unit, separated by commas.",
        shown="each sample once an epoch",
    )
    cache: str | None = _option(
        None,
        "Folder where shards from an address are kept, on a local disk (BMLPIPE_CACHE).",
        shown="~/.cache/bmlpipe",
    )
    cache_bytes: str | None = _option(
        None,
        "Most bytes that it may hold, like 200GB (BMLPIPE_CACHE_BYTES).",
        shown="50 GB, or half of what the disk has",
    )
    out: str = _option("", "Folder of the run.")
    modalities: tuple[str, ...] | None = _option(None, f"Modalities, separated by commas: {', '.join(MODALITY_KIND)}.")
    audio: Literal["spectrogram", "waveform"] = _option(
        "spectrogram",
        "What audio is read from: stored spectrograms, or the sound, made into `vggsound` ones on the device.",
    )
    encoder: str = _option(
        "resnet18",
        "Encoder of every modality (tsm18: resnet18 with temporal shift).",
        *("resnet18", "tsm18", "cnn4"),
        plugins="bmlpipe.encoders",
    )
    weights: str | None = _option(
        None, "Initial weights of resnet18 and tsm18: none, imagenet (downloaded once) or a file of torchvision's."
    )
    fusion: str = _option(
        "concat",
        "Fusion of the features.",
        *("concat", "sum", "film", "gated", "lowrank", "centralnet"),
        plugins="bmlpipe.fusions",
    )
    classifier_layers: int = _option(1, "Linear layers of the classifier; above 1, concat is read by zero-out.")
    intermediate: str = _option(
        "none",
        "Intermediate fusion between the encoders' stages: mmtm (after stages 2 to 4) or attention (after the last).",
        *("none", "mmtm", "attention"),
        plugins="bmlpipe.exchanges",
    )
    preset: Literal["paper", "tpami-release", "cvpr2022-release"] = _option(
        "paper", "Published setting, the defaults of what is not given."
    )
    modulation: str = _option(
        "none",
        "Modulations and baselines, joined by +, each with its options: opm, opm(p_exe=0.7)+ogm(epochs=0:50), … "
        "(docs/methods.md).",
    )
    q_base: float = _option(0.5, "OPM: base drop probability (Eq. 8).")
    lam: float = _option(0.5, "OPM: λ, how strongly the discrepancy raises it (Eq. 8).")
    alpha: float = _option(0.8, "OGM: α, how strongly the discrepancy damps the gradient (Eq. 11).")
    noise: Literal["all", "damped", "off"] = _option(
        "all", "OGM: restore the noise of every encoder (Eq. 17), of damped ones, or of none."
    )
    ratio: Literal["ratio", "difference"] = _option("ratio", "Discrepancy: ratio (Eq. 7) or difference (Table 15).")
    gamma: tuple[float, ...] | None = _option(
        None,
        "Share of the head's bias in each modality's score (Eq. 6), separated by commas.",
        shown="1/M each; 1 with sum",
    )
    references: tuple[str, ...] = _option((), "gblending: folders of the finished uni-modal and plain joint runs.")
    epochs: int = _option(100, "Epochs.")
    batch_size: int = _option(32, "Global batch: samples of one optimiser step, all ranks together.")
    accumulate: int = _option(1, "Micro-batches that a rank goes through for one optimiser step.")
    last_batch: Literal["drop", "pad"] = _option(
        "drop", "An epoch's last, incomplete batch: drop it, or pad it with samples of weight 0."
    )
    optimizer: Literal["sgd", "adamw"] = _option("sgd", "Optimiser.")
    lr: float = _option(1e-3, "Learning rate.")
    momentum: float = _option(0.9, "Momentum of SGD.")
    weight_decay: float = _option(0.0, "Weight decay.")
    lr_step: int = _option(0, "Multiply the learning rate by lr_gamma every so many epochs; 0: never.")
    lr_gamma: float = _option(0.1, "See lr_step.")
    clip: float = _option(0.0, "Clip the gradient of all parameters to this norm, after modulation; 0: never.")
    frames: int | None = _option(None, "Frames (and flow stacks) of a sample.")
    image_size: int = _option(224, "Side of the square pictures that the encoders see, in pixels.")
    augment: Literal["standard", "none"] = _option(
        "standard", "Training views: random crop, flip and frame choice, or the evaluation's."
    )
    batch_norm: Literal["local", "sync", "frozen"] = _option(
        "local", "Batch statistics of each rank, of all ranks (CUDA), or none (running ones)."
    )
    precision: Literal["fp32", "bf16", "fp16"] = _option(
        "fp32", "Arithmetic of forward and backward; fp16 scales the loss."
    )
    channels_last: bool = _option(False, "Lay pictures and convolutions out channels last: faster on CUDA with bf16.")
    compile: bool = _option(False, "Compile the model with torch.compile.")
    workers: int = _option(2, "Loader processes a rank; 0: load in the training process.")
    window: int = _option(16, "Shards whose samples are mixed with each other at a time.")
    seed: int = _option(0, "Seed of everything random.")
    device: Literal["auto", "cpu", "cuda"] = _option("auto", "Where to compute.")
    resume: bool = _option(False, "Go on from the run's last checkpoint, if it has one.")
    checkpoint_every: int = _option(0, "Also save every so many steps; 0: after each epoch only.")
    group_timeout: float = _option(
        600.0, "Seconds that a rank waits for the others before the run is given up; a slow fetch or save must fit."
    )
    keep_every: int = _option(
        0, "Keep a checkpoint every so many epochs (checkpoints/epoch-003.pt); 0: only the best and the last."
    )
    tensorboard: bool = _option(True, "Write TensorBoard files into the run.")
    trackers: tuple[str, ...] = _option((), "Services to send the journal to as well: wandb, mlflow (docs/sweeps.md).")

    def resolved(self) -> TrainConfig:
        """The configuration with the data set's setting filled in.

        Raises:
            ConfigError: An option is missing or impossible; the message names it, its value and the remedy.
        """
        for name in ("shards", "out"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is missing")
        if self.mix and (len(self.mix) != len(self.shards) or min(self.mix) <= 0):
            raise ConfigError(f"mix is {self.mix}: one number above 0 for each of {', '.join(self.shards)}")
        for item in dataclasses.fields(self):
            value, choices = getattr(self, item.name), choices_of(item.name)
            if choices and value not in choices and value not in _plugged(item.metadata["plugins"]):
                raise ConfigError(f"{item.name} is {value!r}: must be one of {', '.join(choices)}")
        setting = DATASETS[self.dataset]
        modalities = self.modalities or setting.modalities
        # Scores behind an intermediate fusion are read by zero-out, which of one linear layer is its split with γ = 1.
        whole_bias = self.intermediate != "none" and self.fusion == "concat" and self.classifier_layers == 1
        filled = dataclasses.replace(
            self,
            modalities=modalities,
            frames=self.frames or setting.train_frames,
            gamma=self.gamma or ((1.0,) * len(modalities) if whole_bias else None),
            weights=self.weights or ("imagenet" if setting.pretrained and self.encoder in _PRETRAINED else "none"),
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
        lowest = dict.fromkeys(("epochs", "batch_size", "frames", "accumulate", "classifier_layers"), 1)
        for name, low in {**lowest, "image_size": 16, "workers": 0, "clip": 0, "keep_every": 0}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}: must be at least {low}")
        for name in ("lr", "group_timeout"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: must be above 0")
        if self.encoder not in _PRETRAINED and self.weights != "none":
            there = " and ".join(_PRETRAINED)
            raise ConfigError(f"weights is {self.weights!r}: only {there} have ImageNet weights, not {self.encoder}")
        joint = {self.modulation, self.intermediate} != {"none"} or self.fusion != "concat"
        if len(self.modalities) == 1 and joint:
            raise ConfigError(
                f"with {self.modalities[0]} alone there is nothing to balance or fuse: leave --modulation and "
                "--intermediate at none and --fusion at concat"
            )
        splits = self.fusion == "sum" or (self.fusion == "concat" and self.classifier_layers == 1)
        if self.gamma is not None and not (splits and len(self.gamma) == len(self.modalities)):
            raise ConfigError(
                f"gamma is {', '.join(map(str, self.gamma))}: it shares out the bias of concat with one classifier "
                f"layer or of sum (this is {self.fusion} with {self.classifier_layers}), one number for each of "
                f"{', '.join(self.modalities)}"
            )
        try:
            self.balance()
        except (OptionError, PluginError) as error:
            raise ConfigError(f"modulation is {self.modulation!r}: {error}") from error

    def balance(self) -> Modulation:
        """The modulation that the options of a resolved configuration name.

        Raises:
            OptionError: They name none, or give it an impossible option.
        """
        from bmlpipe.train.modulation import make_modulation  # imports torch

        return make_modulation(
            self.modulation,
            self.chosen,
            seed=self.seed,
            form=self.ratio,
            preset=self.preset,
            q_base=self.q_base,
            lam=self.lam,
            alpha=self.alpha,
            noise=self.noise,
        )

    @property
    def chosen(self) -> tuple[str, ...]:
        """Modalities of a resolved configuration."""
        assert self.modalities is not None
        return self.modalities

    @property
    def kinds(self) -> dict[str, str]:
        """Feature kind that each chosen modality is read from."""
        return {m: self.audio if m == "audio" else MODALITY_KIND[m] for m in self.chosen}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for YAML, checkpoints and comparisons."""
        content = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}


#: Option → its type.
TYPES = typing.get_type_hints(TrainConfig)


def _plugged(group: str) -> set[str]:
    """Names that other packages register in a group of entry points, without loading them."""
    return {point.name for point in importlib.metadata.entry_points(group=group)} if group else set()


def choices_of(name: str) -> tuple[str, ...]:
    """Possible values of an option; empty: any."""
    literal = typing.get_args(TYPES[name]) if typing.get_origin(TYPES[name]) is Literal else ()
    return literal or TrainConfig.__dataclass_fields__[name].metadata["choices"]
