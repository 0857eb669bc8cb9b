"""OPM and OGM in your own training loop: the six lines marked +, and a state that is saved like an optimiser's.

    python docs/examples/plain_loop.py

The loop provides the number of the epoch and an id per sample; which features are dropped depends on both.
"""

from __future__ import annotations

from typing import Any

import torch
from digits import MODALITIES, Digits, TwoViews, figures, show
from torch import Tensor
from torch.nn.functional import cross_entropy

from bmlpipe.train.modulation import OGM, OPM, Modulation, Rule, unimodal_logits, unimodal_scores  # +


class Training:
    """A model, its optimiser and its modulation."""

    def __init__(self, *rules: Rule) -> None:
        self.data = Digits("train")
        self.model = TwoViews()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9)
        self.balance = Modulation(MODALITIES, *rules, seed=0)  # +
        self.rows: list[Tensor] = []

    def epoch(self, number: int) -> None:
        """Train one pass over the data, shuffled by the number of the epoch."""
        model, balance = self.model, self.balance
        balance.epoch = number  # +
        for ids in torch.randperm(len(self.data), generator=torch.Generator().manual_seed(number)).split(32):
            batch = self.data[ids]
            features = model.encode(batch)
            alone = unimodal_scores(unimodal_logits(model.head, features), batch["labels"])  # + score of each modality
            features = balance.forward(features, alone, ids)  # + measures ρ, drops features (OPM)
            loss = cross_entropy(model.head(features), batch["labels"])
            self.optimizer.zero_grad()
            loss.backward()
            balance.backward(model.encoders)  # + damps gradients, adds noise (OGM)
            self.optimizer.step()
            self.rows.append(balance.row)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, for `torch.save`."""
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "balance")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)


def main() -> dict[str, dict[str, float]]:
    """Train without and with modulation, and compare both."""
    runs = {}
    for name, rules in {"joint": (), "balanced": (OPM(), OGM())}.items():
        training = Training(*rules)
        for number in range(8):
            training.epoch(number)
        runs[name] = figures(training.model, training.balance, training.rows)
    show(runs)
    return runs


if __name__ == "__main__":
    main()
