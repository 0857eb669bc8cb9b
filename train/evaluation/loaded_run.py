"""Load a run from one of its checkpoints: model, normaliser and data as in training, ready to predict any split."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bmlpipe.shards.index import Index
from bmlpipe.train.config.options import MAY_CHANGE, ConfigError, TrainConfig
from bmlpipe.train.config.parsing import parse, read_file
from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.data.shard_sets import make_dataset, open_reader
from bmlpipe.train.distributed.group import ProcessInfo
from bmlpipe.train.evaluation.predict import Predictions, PredictOptions, Predictor
from bmlpipe.train.models.build import build_model
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation.rules.gblending import GBlending
from bmlpipe.train.runs import checkpoint
from bmlpipe.train.runs.folder import RunFolder, folder_of_checkpoint
from bmlpipe.train.tasks.registry import Task, make_task


def find_checkpoints(run: Path, names: Sequence[str]) -> list[Path]:
    """Find the checkpoint files that a command names.

    Args:
        run: Folder of a run, or a checkpoint file, which is then the only result.
        names: Names in the run's folder (`best`, `last`, `epoch-003`), `all`, or paths of files.

    Raises:
        ConfigError: The run has no checkpoint of a name; the message lists those that it has.
    """
    if run.is_file():
        return [run]
    available = {path.stem: path for path in sorted(RunFolder(run).checkpoints.glob("*.pt"))}
    if not available:
        raise ConfigError(f"{run} holds no checkpoints: name the folder of a run, or a checkpoint file")
    found: dict[Path, None] = {}
    for name in names:
        if name == "all":
            found.update(dict.fromkeys(available.values()))
        elif name.removesuffix(".pt") in available:
            found[available[name.removesuffix(".pt")]] = None
        elif Path(name).is_file():
            found[Path(name)] = None
        else:
            raise ConfigError(
                f"{run} has no checkpoint {name!r}: choose among {', '.join(available)}, all, or name a file"
            )
    return list(found)


@dataclass(frozen=True)
class LoadedRun:
    """A run, loaded from one of its checkpoints.

    Attributes:
        folder: Folder of the run.
        checkpoint: Name of the checkpoint: `best`, `last`, `epoch-003`, or the stem of its file name.
        epoch: Last epoch that the checkpoint was trained in, counted from 0.
        step: Number of optimiser steps done.
        predictor: Model, normaliser and data.
        label_of: Class id in the shards → class id of the model, (classes of the shards,).
        other_samples: How the shards differ from those of the training, in words; empty if they are the same.
        model_sha256: SHA-256 of all parameters and buffers.
    """

    folder: RunFolder
    checkpoint: str
    epoch: int
    step: int
    predictor: Predictor
    label_of: npt.NDArray[np.int64]
    other_samples: str
    model_sha256: str

    @property
    def config(self) -> TrainConfig:
        """Resolved options of the run, with the shards that are read."""
        return self.predictor.config

    @property
    def model(self) -> MultimodalModel:
        """The model with the checkpoint's parameters, on the device, in evaluation mode."""
        return self.predictor.model

    @property
    def normaliser(self) -> Normaliser:
        """The normaliser with the checkpoint's means and deviations, on the device."""
        return self.predictor.normaliser

    @property
    def index(self) -> Index:
        """Index of the shards."""
        return self.predictor.index

    @property
    def task(self) -> Task:
        """The task of the run."""
        return self.predictor.task

    @property
    def process(self) -> ProcessInfo:
        """This process."""
        return self.predictor.process

    def predict(self, split: str, options: PredictOptions | None = None) -> Predictions:
        """Predict a split on all ranks, with the labels of the model; see `Predictor.predict`."""
        found = self.predictor.predict(split, options)
        return dataclasses.replace(found, labels=self.label_of[found.labels])


def load_run(path: Path, process: ProcessInfo, *, shards: Sequence[str] = ()) -> LoadedRun:
    """Load a run from a checkpoint.

    The checkpoint alone decides what the model is; the run's `config.yaml` says where the shards are.

    Args:
        path: Checkpoint file.
        process: This process and its device.
        shards: Shards to read instead of the run's own; empty: the run's own.

    Raises:
        ConfigError: The file is not a checkpoint, or the shards do not fit it: other front ends, unknown classes, or,
            if `shards` is empty, other samples.
        ShardError: The shards cannot be read.
    """
    state = checkpoint.load(path, process.device)
    config = checkpoint_config(path, state)
    if shards:
        config = dataclasses.replace(config, shards=tuple(shards))
    reader = open_reader(config)
    index, task = reader.index, make_task(state["classes"])
    checkpoint.check_same_features(state, index.features, config.kinds.values(), path)
    other = _other_samples(state, index)
    if other and not shards:
        raise ConfigError(
            f"{reader.folder} holds other samples than {path} was trained on ({other}): name the shards with --shards, "
            "either those of the training at their new path or others to evaluate on"
        )
    if unknown := [name for name in index.classes if name not in task.classes]:
        raise ConfigError(
            f"{reader.folder} has classes that {path} was not trained on: {_shortened(unknown)}; the checkpoint has "
            f"{len(task.classes)} classes: {_shortened(task.classes)}"
        )
    model, normaliser = _load_modules(config, state, index)
    data = make_dataset(config, reader, augment=False)
    step = int(state["step"])
    predictor = Predictor(config, model.to(process.device), normaliser.to(process.device), data, index, task, process)
    return LoadedRun(
        folder=folder_of_checkpoint(path),
        checkpoint=path.stem,
        epoch=-(-step // int(state["steps_per_epoch"])) - 1,
        step=step,
        predictor=predictor,
        label_of=task.target_ids(index.classes),
        other_samples=other,
        model_sha256=_hash_tensors(model.state_dict()),
    )


def checkpoint_config(path: Path, state: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read the resolved options of a checkpoint's run. `config.yaml`, if it exists, says where and how to compute.

    Args:
        path: Checkpoint file.
        state: Content of the file; None: read it.

    Raises:
        ConfigError: The options cannot be read.
    """
    values = dict((state or checkpoint.load(path))["config"])
    if (file := folder_of_checkpoint(path).config).is_file():
        values |= {name: value for name, value in read_file(file).items() if name in MAY_CHANGE}
    return parse(values, str(path)).resolved()


def _load_modules(config: TrainConfig, state: Mapping[str, Any], index: Index) -> tuple[MultimodalModel, Normaliser]:
    """Load the model and normaliser of a checkpoint. The shards need no training samples, and so no statistics."""
    as_trained = dataclasses.replace(index, classes=tuple(state["classes"]), features=state["features"])
    blend = any(isinstance(rule, GBlending) for rule in config.make_modulation().rules)
    model = build_model(dataclasses.replace(config, weights="none"), as_trained, blend=blend)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    statistics = {
        kind: {name: state["normaliser"][f"{m}_{name}"].tolist() for name in ("mean", "std")}
        for m, kind in config.kinds.items()
    }
    normaliser = Normaliser(config.resolved_modalities, statistics, kinds=config.kinds)
    model.load_state_dict(state["model"])
    normaliser.load_state_dict(state["normaliser"])
    return model.eval(), normaliser


def _other_samples(state: Mapping[str, Any], index: Index) -> str:
    """Describe how shards differ from those of a checkpoint; empty if they hold the same samples in the same order."""
    if state["samples_sha256"] == index.samples_sha256:
        return ""
    text = f"samples {state['samples_sha256'][:12]} in training, {index.samples_sha256[:12]} here"
    if state["dataset"] != index.dataset:
        text += f"; data set {state['dataset']} in training, {index.dataset} here"
    missing = len(set(state["classes"]) - set(index.classes))
    return text + (f"; {missing} of its {len(state['classes'])} classes are missing here" if missing else "")


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash names and values of tensors with SHA-256."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
