"""The training loop: forward with drop, backward, modulated gradients, a journal row, and nothing that waits."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.train.config.options import ConfigError, TrainConfig
from bmlpipe.train.data.dataset import ClipDataset, make_loader, reading
from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.data.open_shards import open_shards
from bmlpipe.train.data.sampler import TrainBatches, evaluation_batches
from bmlpipe.train.distributed.process_group import ProcessInfo, share_buffers
from bmlpipe.train.engine.objective import objective_of, reference_weights
from bmlpipe.train.engine.optimizers import make_optimizer, set_lr
from bmlpipe.train.engine.step import TrainStep
from bmlpipe.train.engine.stop_request import StopRequest
from bmlpipe.train.evaluation.metrics import summarise
from bmlpipe.train.evaluation.predict import predict
from bmlpipe.train.models.build import build_model
from bmlpipe.train.models.multimodal import freeze_batch_norm
from bmlpipe.train.modulation import optimizer_advice, row_advice, rule_advice
from bmlpipe.train.modulation.rules.gblending import GBlending
from bmlpipe.train.runs import checkpoint
from bmlpipe.train.runs.journal import DelayedRows, Journal, Row
from bmlpipe.train.runs.progress_line import ProgressLine
from bmlpipe.train.runs.trackers import Trackers

_logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"


class DivergedError(BmlpipeError):
    """The loss is not a number any more; the message says where and what to try."""


@dataclass
class Progress:
    """Where a run stands: all of it goes into a checkpoint.

    Attributes:
        step: Optimiser steps done, over all epochs: the position in the data too.
        evaluated: Steps done when validation was evaluated last; behind `step` at an epoch's end, it is due.
        best_epoch: Epoch of the highest validation accuracy so far, −1 before the first.
        best_accuracy: That accuracy.
    """

    step: int = 0
    evaluated: int = 0
    best_epoch: int = -1
    best_accuracy: float = -1.0


class Training:
    """One run, on one rank.

    Args:
        config: Resolved configuration.
        place: This process among the ranks.

    Raises:
        ConfigError, ShardError: The configuration, the shards or the checkpoint do not fit together.
    """

    def __init__(self, config: TrainConfig, process: ProcessInfo) -> None:
        if config.batch_norm == "sync" and process.device.type != "cuda":
            raise ConfigError("batch_norm is 'sync', which torch offers on CUDA only: choose local or frozen")
        self.config, self.place, self.folder = config, place, Path(config.out)
        reader, mixture = open_shards(config)
        self.data = ClipDataset(
            reader,
            config.chosen,
            kinds=config.kinds,
            frames=config.frames or 1,
            image_size=config.image_size,
            augment=config.augment == "standard",
            seed=config.seed,
        )
        self.index = reader.index
        self.index.split_shards("val")  # the best epoch is chosen on it: say early if it is not there
        self.balance = config.balance()
        resuming = config.resume and self._path(checkpoint.LAST).is_file()
        blending = next((rule for rule in self.balance.rules if isinstance(rule, GBlending)), None)
        weights = None
        if blending and not resuming:
            weights = reference_weights(config.references, config.chosen, blending.blend_until)
        model = build_model(config, self.index, blend=blending is not None, weights=weights)
        self.balance.bind(model)
        if config.batch_norm == "sync":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.to(process.device)
        imagenet = config.weights != "none"
        inputs = Normaliser(config.chosen, self.index.statistics, kinds=config.kinds, imagenet=imagenet)
        self.inputs = inputs.to(process.device)
        self.optimizer = make_optimizer(
            config.optimizer,
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=config.precision == "fp16",
        )
        self.step = TrainStep(
            self.model,
            self._wrapped(),
            self.inputs,
            self.balance,
            self.optimizer,
            place,
            objective=objective_of(self.model.head),
            precision=config.precision,
            gamma=config.gamma,
            clip=config.clip,
            compiled=config.compile,
        )
        self.progress = Progress()
        if resuming:
            self._load(checkpoint.LAST)
        self.batches = TrainBatches(
            mixture,
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=config.seed,
            window=config.window,
            rank=process.rank,
            world=process.world_size,
            first_step=self.progress.step,
            accumulate=config.accumulate,
            last_batch=config.last_batch,
        )
        self.rows = DelayedRows([*self.balance.columns, "loss", "stop"])
        self.stop = StopRequest()
        self.stopping = False

    def run(self) -> Row | None:
        """Train to the end, then evaluate the best epoch on the test split, once.

        Returns:
            The last row of metrics (the same on every rank), empty where nothing was left to do; None where the run
            was asked to stop and can be resumed.

        Raises:
            DivergedError: The loss is not a number any more.
        """
        if self.process.is_main:
            for advice in filter(None, [optimizer_advice(self.balance, self.optimizer), *rule_advice(self.balance)]):
                _logger.warning(advice)
        first, options = self.process.is_main, self.config
        with (
            Journal(
                self.folder,
                first_step=self.progress.step,
                evaluated=self.progress.evaluated,
                tensorboard=options.tensorboard,
                trackers=Trackers(options.trackers, self.folder, options.as_dict()),
            )
            if first
            else nullcontext() as journal,
            ProgressLine(self.batches.steps) if first else nullcontext() as line,
            self.stop.listening(),
            reading(make_loader(self.data, self.batches, workers=options.workers, pin_memory=self._on_cuda)) as loader,
        ):
            metrics: Row = {}
            now = self.progress
            while now.step < self.batches.steps or now.evaluated < now.step:
                epoch, inside = divmod(now.step, self.batches.steps_per_epoch)
                if inside or now.evaluated == now.step:
                    self._epoch(epoch, loader, journal, line)
                    if self.stopping:
                        self._save(checkpoint.LAST)
                        if journal is not None:
                            journal.stopped = True
                        return None
                else:
                    metrics = self._evaluate("val", epoch - 1, journal)
                    now.evaluated = now.step
                    if metrics["accuracy"] > now.best_accuracy:
                        now.best_epoch, now.best_accuracy = epoch - 1, metrics["accuracy"]
                        self._save(checkpoint.BEST)
                    if self.config.keep_every and epoch % self.config.keep_every == 0:
                        self._save(checkpoint.KEPT.format(epoch))
                    self._save(checkpoint.LAST)
            if any(shard.split == "test" for shard in self.index.shards):
                if self.process.world_size > 1:
                    torch.distributed.barrier()  # the first rank has written it
                best = checkpoint.load(self._path(checkpoint.BEST), self.process.device)
                self.model.load_state_dict(best["model"])
                metrics = self._evaluate("test", self.progress.best_epoch, journal)
            return metrics

    @property
    def _on_cuda(self) -> bool:
        return self.process.device.type == "cuda"

    def _wrapped(self) -> nn.Module:
        if self.config.compile:
            self.model.compile()
        if self.process.world_size == 1:
            return self.model
        return DistributedDataParallel(self.model, device_ids=[self.process.device] if self._on_cuda else None)

    def _epoch(
        self, epoch: int, loader: Iterator[dict[str, Any]], journal: Journal | None, line: ProgressLine | None
    ) -> None:
        """Take the steps of one epoch, or of what is left of it; ends early where the ranks agree to stop."""
        config = self.config
        self.model.train()
        if config.batch_norm == "frozen":
            freeze_batch_norm(self.model)
        self.balance.epoch = epoch
        lr = set_lr(self.optimizer, lr=config.lr, epoch=epoch, every=config.lr_step, gamma=config.lr_gamma)
        end = (epoch + 1) * self.batches.steps_per_epoch
        before = time.perf_counter()
        while self.progress.step < end and not self.stopping:
            self.stop.check()
            micro = [next(loader) for _ in range(config.accumulate)]
            loaded = time.perf_counter()
            real = self.batches.real(self.progress.step)
            values = self.step(micro, real=real, also=[float(self.stop.requested)])
            now = time.perf_counter()
            about: Row = {"step": self.progress.step, "epoch": epoch, "lr": lr, "samples": real}
            about |= {"data_s": loaded - before, "step_s": now - before, "samples_per_s": real / (now - before)}
            before = now
            self.progress.step += 1
            self._read(self.rows.push(about, values), journal, line)
            if config.checkpoint_every and self.progress.step % config.checkpoint_every == 0:
                self._flush(journal, line)
                self._save(checkpoint.LAST)
        self._flush(journal, line)

    def _read(self, row: Row | None, journal: Journal | None, line: ProgressLine | None) -> None:
        """Act on a row that has arrived, alike on every rank."""
        if row is None:
            return
        self.stopping |= row.pop("stop") > 0
        if journal is not None:
            journal.step(row)
        if line is not None:
            line.step(row, row_advice({name: row[name] for name in self.balance.columns}, self.balance))
        if not math.isfinite(row["loss"]):
            raise DivergedError(
                f"the loss is {row['loss']} at step {row['step']} (epoch {row['epoch']}): lower --lr (now "
                f"{row['lr']:g}), or look at the gradient norms in steps.jsonl; the last checkpoint is from before"
            )

    def _flush(self, journal: Journal | None, line: ProgressLine | None) -> None:
        for row in self.rows.flush():
            self._read(row, journal, line)

    def _evaluate(self, split: str, epoch: int, journal: Journal | None) -> Row:
        """Evaluate a split on all ranks; every rank gets the row that the first one journals."""
        place = self.place
        share_buffers(self.model)
        batches = evaluation_batches(
            self.index.split_range(split),
            batch_size=max(1, self.config.batch_size // process.world_size),
            rank=process.rank,
            world=process.world_size,
        )
        loader = make_loader(self.data, batches, workers=self.config.workers, pin_memory=self._on_cuda)
        classes, gamma = len(self.index.classes), self.config.gamma
        with reading(loader) as coming:
            found = predict(self.model, self.inputs, coming, classes, process.device, gamma=gamma)
        row: Row = {"epoch": epoch, "step": self.progress.step, "split": split}
        if split == "val":
            row |= {"left_out": self.batches.dropped, "padded": self.batches.padded}
        row |= summarise(found.logits, found.branches, found.labels)
        if journal is not None:
            journal.metrics(row)
            shown = [f"{name} {value:.3f}" for name, value in row.items() if isinstance(value, float)]
            _logger.info("%s after epoch %d:  %s", split, epoch, "  ".join(shown))
        return row

    def _path(self, name: str) -> Path:
        return self.folder / CHECKPOINTS / name

    def _save(self, name: str) -> None:
        if self.process.is_main:
            content = {
                "model": self.model.state_dict(),
                "inputs": self.inputs.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.step.scaler.state_dict(),
                "modulation": self.balance.state_dict(),
                "progress": vars(self.progress),
                "steps_per_epoch": self.batches.steps_per_epoch,
                "config": self.config.as_dict(),
                "dataset": self.index.dataset,
                "classes": list(self.index.classes),
                "features": dict(self.index.features),
                "samples_sha256": self.index.samples_sha256,
            }
            checkpoint.save(self._path(name), content)

    def _load(self, name: str) -> None:
        path = self._path(name)
        state = checkpoint.load(path, self.process.device)
        checkpoint.check_same_run(state, self.config.as_dict(), path)
        checkpoint.check_same_features(state, self.index.features, self.config.kinds.values(), path)
        checkpoint.check_same_samples(state, self.index.samples_sha256, path)
        self.model.load_state_dict(state["model"])
        self.inputs.load_state_dict(state["inputs"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step.scaler.load_state_dict(state["scaler"])
        self.balance.load_state_dict(state["modulation"])
        self.progress = Progress(**state["progress"])
