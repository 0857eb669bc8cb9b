"""The trainer: load → step → validate → save."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bmlpipe.train.config.options import ConfigError, TrainConfig
from bmlpipe.train.data.dataset import make_loader, reading
from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.data.sampler import TrainBatches
from bmlpipe.train.data.shard_sets import make_dataset, open_shards
from bmlpipe.train.distributed.group import ProcessInfo, broadcast_buffers
from bmlpipe.train.engine.gblending_references import reference_weights
from bmlpipe.train.engine.optimizers import make_optimizer, set_lr
from bmlpipe.train.engine.run_log import RunLog
from bmlpipe.train.engine.step import StepOptions, TrainStep
from bmlpipe.train.engine.stop_request import StopRequest
from bmlpipe.train.evaluation.predict import Predictor
from bmlpipe.train.models.build import build_model
from bmlpipe.train.models.multimodal import MultimodalModel, freeze_batch_norm
from bmlpipe.train.modulation import optimizer_advice, rule_advice
from bmlpipe.train.modulation.rules.gblending import GBlending
from bmlpipe.train.runs import checkpoint
from bmlpipe.train.runs.folder import BEST, LAST, RunFolder, epoch_checkpoint
from bmlpipe.train.runs.journal import Journal
from bmlpipe.train.runs.journal_reader import Row
from bmlpipe.train.runs.progress_line import ProgressLine
from bmlpipe.train.runs.trackers import Trackers
from bmlpipe.train.tasks.registry import make_task

_logger = logging.getLogger(__name__)

Batches = Iterator[dict[str, Any]]


@dataclass
class ValidationState:
    """Progress and best result of validation.

    Attributes:
        validated_step: Number of steps done at the last validation. If it is lower than the number of steps at the end
            of an epoch, validation is due.
        best_epoch: Epoch with the highest validation value so far; −1 before the first validation.
        best_value: That value of the task's selection metric.
    """

    validated_step: int = 0
    best_epoch: int = -1
    best_value: float = -1.0


class Trainer:
    """One run on one rank.

    The modulation counts the steps; epochs and positions in the data follow from their number. A resumed run therefore
    continues bit for bit from what a checkpoint holds.

    Args:
        config: Resolved options.
        process: This process.

    Raises:
        ConfigError, ShardError: The options, the shards or the checkpoint do not fit together.
    """

    def __init__(self, config: TrainConfig, process: ProcessInfo) -> None:
        if config.batch_norm == "sync" and process.device.type != "cuda":
            raise ConfigError("batch_norm is 'sync', which torch supports on CUDA only: choose local or frozen")
        self.config, self.process, self.folder = config, process, RunFolder(Path(config.out))
        resuming = config.resume and self.folder.checkpoint(LAST).is_file()
        reader, mixture = open_shards(config)
        self.index = reader.index
        self.index.split_shards("val")  # raises now, not after the first epoch, if the split is missing
        self.data = make_dataset(config, reader, augment=config.augment == "standard")
        self.task = make_task(self.index.classes)
        self.modulation = config.make_modulation()
        self.model = self._build_model(resuming)
        self.normaliser = Normaliser(
            config.resolved_modalities, self.index.statistics, kinds=config.kinds, imagenet=config.weights != "none"
        ).to(process.device)
        self.optimizer = make_optimizer(config, self.model.parameters())
        options = StepOptions(config.precision, config.gamma, config.max_grad_norm, config.compile)
        self.train_step = TrainStep(
            self.model, self.normaliser, self.modulation, self.optimizer, self.task, process, options
        )
        self.predictor = Predictor(config, self.model, self.normaliser, self.data, self.index, self.task, process)
        self.validation = ValidationState()
        self.stop_request = StopRequest()
        if resuming:
            self.load(LAST)
        self.batches = TrainBatches(
            mixture, config, rank=process.rank, world_size=process.world_size, first_step=self.step
        )

    @property
    def step(self) -> int:
        """Number of optimiser steps done, over all epochs."""
        return self.modulation.index

    @property
    def validation_due(self) -> bool:
        """Whether the run was stopped or killed between the end of an epoch and its validation."""
        return self.step % self.batches.steps_per_epoch == 0 and self.validation.validated_step < self.step

    def train(self) -> Row | None:
        """Train to the end, then evaluate the best epoch on the test split once.

        Returns:
            The last row of metrics, the same on every rank; empty if nothing was left to do. None if the run was asked
            to stop and can be resumed.

        Raises:
            DivergedError: The loss is NaN or infinite.
        """
        self._log_advice()
        with self._open_log() as log, self.stop_request.listening(), self._load_batches() as batches:
            metrics: Row = self.validate(log) if self.validation_due else {}
            while self.step < self.batches.steps:
                self.train_epoch(batches, log)
                if log.stop_agreed:
                    self.save(LAST)
                    log.mark_stopped()
                    return None
                metrics = self.validate(log)
            if self.index.has_split("test"):
                metrics = self.test(log)
            return metrics

    def train_epoch(self, batches: Batches, log: RunLog) -> None:
        """Take the steps of one epoch that are left; end early if the ranks agree to stop."""
        config, steps_per_epoch = self.config, self.batches.steps_per_epoch
        epoch = self.step // steps_per_epoch
        self.model.train()
        if config.batch_norm == "frozen":
            freeze_batch_norm(self.model)
        self.modulation.epoch = epoch
        lr = set_lr(self.optimizer, config, epoch)
        start = time.perf_counter()
        while self.step < (epoch + 1) * steps_per_epoch and not log.stop_agreed:
            self.stop_request.check()
            step, samples = self.step, self.batches.samples_in(self.step)
            micro_batches = [next(batches) for _ in range(config.accumulate)]
            loaded = time.perf_counter()
            values = self.train_step(
                micro_batches, samples=samples, sum_over_ranks=[float(self.stop_request.requested)]
            )
            end = time.perf_counter()
            row: Row = {"step": step, "epoch": epoch, "lr": lr, "samples": samples}
            row |= {"data_s": loaded - start, "step_s": end - start, "samples_per_s": samples / (end - start)}
            start = end
            log.step(row, values)
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                log.flush()
                self.save(LAST)
        log.flush()

    def validate(self, log: RunLog) -> Row:
        """Evaluate the validation split after an epoch, and save the best, the last and every `keep_every`-th model."""
        epoch = self.step // self.batches.steps_per_epoch - 1
        row = self.evaluate("val", epoch, log)
        self.validation.validated_step = self.step
        value = row[self.task.selection_metric]
        if value > self.validation.best_value:
            self.validation.best_epoch, self.validation.best_value = epoch, value
            self.save(BEST)
        if self.config.keep_every and (epoch + 1) % self.config.keep_every == 0:
            self.save(epoch_checkpoint(epoch))
        self.save(LAST)
        return row

    def test(self, log: RunLog) -> Row:
        """Evaluate the test split with the parameters of the best epoch."""
        if self.process.world_size > 1:
            torch.distributed.barrier()  # until the first rank has written the checkpoint
        best = checkpoint.load(self.folder.checkpoint(BEST), self.process.device)
        self.model.load_state_dict(best["model"])
        return self.evaluate("test", self.validation.best_epoch, log)

    def evaluate(self, split: str, epoch: int, log: RunLog) -> Row:
        """Evaluate a split on all ranks, and write the row to the journal.

        Args:
            split: `val` or `test`.
            epoch: Epoch of the parameters, from 0.
            log: Log of the run.

        Returns:
            The row, the same on every rank.
        """
        broadcast_buffers(self.model)
        found = self.predictor.predict(split)
        row: Row = {"epoch": epoch, "step": self.step, "split": split}
        if split == "val":
            row |= {"left_out": self.batches.dropped, "padded": self.batches.padded}
        row |= self.task.summary(found.logits, found.branches, found.labels)
        log.evaluation(row)
        return row

    def save(self, name: str) -> None:
        """Write a checkpoint, on the first rank."""
        if self.process.is_main:
            content = {
                "step": self.step,
                "model": self.model.state_dict(),
                "normaliser": self.normaliser.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.train_step.scaler.state_dict(),
                "modulation": self.modulation.state_dict(),
                "validation": vars(self.validation),
                "steps_per_epoch": self.batches.steps_per_epoch,
                "config": self.config.as_dict(),
                "dataset": self.index.dataset,
                "classes": list(self.index.classes),
                "features": dict(self.index.features),
                "samples_sha256": self.index.samples_sha256,
            }
            checkpoint.save(self.folder.checkpoint(name), content)

    def load(self, name: str) -> None:
        """Continue from a checkpoint of this run.

        Raises:
            ConfigError: The checkpoint is damaged or belongs to other options, features or samples, or the checkpoint
                of the best epoch, with which the test split will be evaluated, is missing.
        """
        path = self.folder.checkpoint(name)
        state = checkpoint.load(path, self.process.device)
        checkpoint.check_same_options(state, self.config.as_dict(), path)
        checkpoint.check_same_features(state, self.index.features, self.config.kinds.values(), path)
        checkpoint.check_same_samples(state, self.index.samples_sha256, path)
        self.model.load_state_dict(state["model"])
        self.normaliser.load_state_dict(state["normaliser"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.train_step.scaler.load_state_dict(state["scaler"])
        self.modulation.load_state_dict(state["modulation"])
        self.validation = ValidationState(**state["validation"])
        best = self.folder.checkpoint(BEST)
        if self.index.has_split("test") and self.validation.best_epoch >= 0 and not best.is_file():
            raise ConfigError(
                f"{best} is missing: it holds the parameters of the best epoch, epoch {self.validation.best_epoch}, "
                "with which the test split is evaluated at the end. Restore the file, or train anew with another --out"
            )

    def _build_model(self, resuming: bool) -> MultimodalModel:
        """Build the model on the device, as the options describe it."""
        config = self.config
        blending = next((rule for rule in self.modulation.rules if isinstance(rule, GBlending)), None)
        weights = None
        if blending and not resuming:  # a checkpoint brings the weights along
            weights = reference_weights(config.references, config.resolved_modalities, blending.blend_until)
        model = build_model(config, self.index, blend=blending is not None, weights=weights)
        self.modulation.bind(model)
        if config.batch_norm == "sync":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.to(self.process.device)

    @contextmanager
    def _open_log(self) -> Iterator[RunLog]:
        if not self.process.is_main:
            yield RunLog(self.modulation, self.task)
            return
        config = self.config
        trackers = Trackers(config.trackers, self.folder.path, config.as_dict())
        with (
            Journal(
                self.folder.path,
                first_step=self.step,
                validated_step=self.validation.validated_step,
                tensorboard=config.tensorboard,
                trackers=trackers,
            ) as journal,
            ProgressLine(self.batches.steps) as line,
        ):
            yield RunLog(self.modulation, self.task, journal, line)

    @contextmanager
    def _load_batches(self) -> Iterator[Batches]:
        pin_memory = self.process.device.type == "cuda"
        loader = make_loader(self.data, self.batches, workers=self.config.workers, pin_memory=pin_memory)
        with reading(loader) as batches:
            yield batches

    def _log_advice(self) -> None:
        if self.process.is_main:
            for advice in [optimizer_advice(self.modulation, self.optimizer), *rule_advice(self.modulation)]:
                if advice:
                    _logger.warning(advice)
