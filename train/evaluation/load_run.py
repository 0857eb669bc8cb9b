"""A run's checkpoint brought back: model, inputs and data as they were in training, ready to predict any split."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bmlpipe.shards.index import Index
from bmlpipe.train.config.options import ConfigError, TrainConfig
from bmlpipe.train.config.parsing import parse, read_file
from bmlpipe.train.data.dataset import ClipDataset, make_loader, reading
from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.data.open_shards import open_reader
from bmlpipe.train.data.sampler import evaluation_batches
from bmlpipe.train.distributed.process_group import Place
from bmlpipe.train.evaluation.predict import Predictions, predict
from bmlpipe.train.models.build import build_model
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation.rules.gblending import GBlending
from bmlpipe.train.runs import checkpoint

CONFIG = "config.yaml"
_CHECKPOINTS = "checkpoints"


def find_checkpoints(place: Path, wanted: Sequence[str]) -> list[Path]:
    """The checkpoint files that are meant.

    Args:
        place: A run's folder, or a checkpoint file, which is then the only one.
        wanted: Names in the run's folder (`best`, `last`, `epoch-003`), `all`, or paths.

    Raises:
        ConfigError: There is none of that name; the message lists those there are.
    """
    if place.is_file():
        return [place]
    there = {path.stem: path for path in sorted((place / _CHECKPOINTS).glob("*.pt"))}
    if not there:
        raise ConfigError(f"{place} holds no checkpoints: name the folder of a run, or a checkpoint file")
    found: dict[Path, None] = {}
    for name in wanted:
        if name == "all":
            found.update(dict.fromkeys(there.values()))
        elif name.removesuffix(".pt") in there:
            found[there[name.removesuffix(".pt")]] = None
        elif Path(name).is_file():
            found[Path(name)] = None
        else:
            raise ConfigError(
                f"{place} has no checkpoint {name!r}: choose among {', '.join(there)}, all, or name a file"
            )
    return list(found)


def run_folder(path: Path) -> Path:
    """The folder of the run that a checkpoint file is of; of one that lies elsewhere, the folder it lies in."""
    up = path.absolute().parent.parent
    return up if (up / CONFIG).is_file() else path.absolute().parent


@dataclass(frozen=True)
class Restored:
    """A checkpoint, ready to predict.

    Attributes:
        folder: Of its run.
        name: Of the checkpoint: `best`, `last`, `epoch-003`, or what its file is called.
        epoch: The last epoch that it was trained in, from 0, as in the journals.
        step: Optimiser steps done.
        config: Options of the run, with the place of the shards that are read.
        classes: Names by class id.
        model: With the checkpoint's parameters, on the device.
        inputs: With the checkpoint's means and deviations.
        data: The shards' samples, without random views.
        index: Of the shards.
        label_of: Class id in the shards → class id of the model.
        other_samples: In words, how the shards differ from those of the training; empty: they are those.
        model_sha256: Hash of all parameters and buffers.
        place: This process.
    """

    folder: Path
    name: str
    epoch: int
    step: int
    config: TrainConfig
    classes: tuple[str, ...]
    model: MultimodalModel
    inputs: Normaliser
    data: ClipDataset
    index: Index
    label_of: npt.NDArray[np.int64]
    other_samples: str
    model_sha256: str
    place: Place

    def has_split(self, split: str) -> bool:
        """Whether the shards have samples of a split."""
        return any(shard.split == split for shard in self.index.shards)

    def predict(
        self,
        split: str,
        *,
        features: bool = False,
        absent: Sequence[str] = (),
        batch_size: int | None = None,
        workers: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Predictions:
        """Predict a split on all ranks; see `bmlpipe.train.evaluation.predict.predict`.

        Args:
            split: `train` (without random views), `val` or `test`.
            features: Also keep the features.
            absent: Modalities that may be missing.
            batch_size: Samples that a rank goes through at a time; None: its share of the training's batch.
            workers: Loader processes a rank; None: as in training.
            progress: Told of this rank's samples.

        Raises:
            ShardError: The shards have no such split, or a sample is damaged.
        """
        config, place = self.config, self.place
        batches = evaluation_batches(
            self.index.split_range(split),
            batch_size=batch_size or max(1, config.batch_size // place.world),
            rank=place.rank,
            world=place.world,
        )
        loader = make_loader(
            self.data,
            batches,
            workers=config.workers if workers is None else workers,
            pin_memory=place.device.type == "cuda",
        )
        with reading(loader) as coming:
            found = predict(
                self.model,
                self.inputs,
                coming,
                len(self.classes),
                place.device,
                gamma=config.gamma,
                features=features,
                absent=absent,
                progress=progress,
            )
        return dataclasses.replace(found, labels=self.label_of[found.labels])


def restore(path: Path, place: Place, *, shards: Sequence[str] = ()) -> Restored:
    """Bring a checkpoint back.

    Nothing but the checkpoint decides what the model is; the run's `config.yaml` says where its shards lie.

    Args:
        path: The checkpoint file.
        place: This process and its device.
        shards: Other shards to read; none: the run's.

    Raises:
        ConfigError: It is no checkpoint, or does not fit the shards: other front ends, other classes, or, where the
            shards were not named, other samples.
        ShardError: The shards cannot be read.
    """
    state = checkpoint.load(path, place.device)
    config = options_of(path, state)
    if shards:
        config = dataclasses.replace(config, shards=tuple(shards))
    reader = open_reader(config)
    index, classes = reader.index, tuple(state["classes"])
    checkpoint.check_same_features(state, index.features, config.kinds.values(), path)
    other = _other_samples(state, index)
    if other and not shards:
        raise ConfigError(
            f"{reader.folder} holds other samples than {path} was trained on ({other}): where they moved to, or what "
            "else to evaluate on, is for --shards to say"
        )
    if unknown := [name for name in index.classes if name not in classes]:
        raise ConfigError(
            f"{path} does not know the classes {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''} of "
            f"{reader.folder}; it has {len(classes)}: {', '.join(classes[:5])}{' …' if len(classes) > 5 else ''}"
        )
    if "steps_per_epoch" not in state:
        raise ConfigError(f"{path} does not say how long an epoch was (an older bmlpipe made it): train the run again")
    model, inputs = _modules(config, state, index)
    data = ClipDataset(
        reader,
        config.chosen,
        kinds=config.kinds,
        frames=config.frames or 1,
        image_size=config.image_size,
        augment=False,
        seed=config.seed,
    )
    step = int(state["progress"]["step"])
    return Restored(
        folder=run_folder(path),
        name=path.stem,
        epoch=-(-step // int(state["steps_per_epoch"])) - 1,
        step=step,
        config=config,
        classes=classes,
        model=model.to(place.device),
        inputs=inputs.to(place.device),
        data=data,
        index=index,
        label_of=np.array([classes.index(name) for name in index.classes]),
        other_samples=other,
        model_sha256=_digest(model.state_dict()),
        place=place,
    )


def options_of(path: Path, state: Mapping[str, Any] | None = None) -> TrainConfig:
    """Options of a checkpoint's run: its own, with those of `config.yaml` of where and how to compute.

    Args:
        path: The checkpoint file.
        state: Its content, where it is read already.

    Raises:
        ConfigError: They cannot be read.
    """
    values = dict((state or checkpoint.load(path))["config"])
    if (file := run_folder(path) / CONFIG).is_file():
        values |= {name: value for name, value in read_file(file).items() if name in checkpoint.FREE}
    return parse(values, str(path)).resolved()


def _modules(config: TrainConfig, state: Mapping[str, Any], index: Index) -> tuple[MultimodalModel, Normaliser]:
    """Model and inputs of a checkpoint; shards without training samples, and so without statistics, will do."""
    as_trained = dataclasses.replace(index, classes=tuple(state["classes"]), features=state["features"])
    blend = any(isinstance(rule, GBlending) for rule in config.balance().rules)
    model = build_model(dataclasses.replace(config, weights="none"), as_trained, blend=blend)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    numbers = {
        kind: {name: state["inputs"][f"{m}_{name}"].tolist() for name in ("mean", "std")}
        for m, kind in config.kinds.items()
    }
    inputs = Normaliser(config.chosen, numbers, kinds=config.kinds)
    model.load_state_dict(state["model"])
    inputs.load_state_dict(state["inputs"])
    return model.eval(), inputs


def _other_samples(state: Mapping[str, Any], index: Index) -> str:
    """How shards differ from a checkpoint's, in words; empty: they hold the same samples in the same order."""
    if state["samples_sha256"] == index.samples_sha256:
        return ""
    about = f"samples {state['samples_sha256'][:12]} in training, {index.samples_sha256[:12]} here"
    if state["dataset"] != index.dataset:
        about += f"; data set {state['dataset']} in training, {index.dataset} here"
    missing = len(set(state["classes"]) - set(index.classes))
    return about + (f"; {missing} of its {len(state['classes'])} classes are not there" if missing else "")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
