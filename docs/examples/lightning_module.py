"""OPM and OGM in a Lightning module: the lines marked + in six methods.

    pip install lightning
    python docs/examples/lightning_module.py

Gradients are modulated in `on_before_optimizer_step`. Lightning calls it once per optimiser step, after the last
accumulated batch, when gradients are averaged over the ranks and unscaled, and clips them afterwards.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from digits import MODALITIES, Digits, TwoViews, figures, show
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

from bmlpipe.train.modulation import OGM, OPM, Modulation, Rule, unimodal_logits, unimodal_scores


class Balanced(lightning.LightningModule):
    """A model of two views of digits, with its modulation."""

    def __init__(self, *rules: Rule) -> None:
        super().__init__()
        self.model = TwoViews()
        self.balance = Modulation(MODALITIES, *rules, seed=0)  # +
        self.rows: list[Tensor] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Use SGD: an optimiser such as Adam would cancel the factor of OGM."""
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)

    def on_train_epoch_start(self) -> None:
        """Tell the modulation the number of the epoch."""
        self.balance.epoch = self.current_epoch  # +

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a (micro-)batch."""
        features = self.model.encode(batch)
        alone = unimodal_scores(unimodal_logits(self.model.head, features), batch["labels"])  # +
        features = self.balance.forward(features, alone, batch["ids"])  # + measure, drop
        return cross_entropy(self.model.head(features), batch["labels"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Modulate the gradients, once per step, between the backward pass and clipping."""
        self.balance.backward(self.model.encoders)  # + damp, add noise
        self.log_dict(self.balance.telemetry())
        self.rows.append(self.balance.row)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of the modulation beside that of the model and the optimiser."""
        checkpoint["balance"] = self.balance.state_dict()  # +

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the modulation."""
        self.balance.load_state_dict(checkpoint["balance"])  # +


def loader(batch_size: int = 32) -> DataLoader[dict[str, Tensor]]:
    """The training split, shuffled by the number of the epoch, so that a resumed run sees the same batches."""
    data = Digits("train")
    return DataLoader(data, batch_size, sampler=DistributedSampler(data, num_replicas=1, rank=0))


def main() -> dict[str, dict[str, float]]:
    """Train without and with modulation, and compare both."""
    runs = {}
    for name, rules in {"joint": (), "balanced": (OPM(), OGM())}.items():
        module = Balanced(*rules)
        trainer = lightning.Trainer(
            max_epochs=8,
            gradient_clip_val=5.0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, loader())
        runs[name] = figures(module.model, module.balance, module.rows)
    show(runs)
    return runs


if __name__ == "__main__":
    main()
