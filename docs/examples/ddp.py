"""OPM and OGM under DistributedDataParallel: any number of ranks gives the result of one process.

    python docs/examples/ddp.py
    torchrun --nproc-per-node 2 docs/examples/ddp.py

The scores and the drops belong into the forward pass that DDP wraps. The gradients are modulated after `backward()` has
returned, when they are averaged over the ranks. Every rank needs the same seed, and the same ids for the same samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from digits import MODALITIES, Digits, TwoViews, figures, show
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bmlpipe.train.distributed import ProcessInfo, all_equal, process_group
from bmlpipe.train.modulation import OGM, OPM, Modulation, unimodal_logits, unimodal_scores

GLOBAL_BATCH = 48


class Balanced(TwoViews):
    """The model that DDP wraps, with the modulation between the encoders and the head."""

    def __init__(self, balance: Modulation) -> None:
        super().__init__()
        self.balance = balance

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of the part of a batch that this rank has."""
        features = self.encode(batch)
        alone = unimodal_scores(unimodal_logits(self.head, features), batch["labels"])
        features = self.balance.forward(features, alone, batch["ids"])
        return cross_entropy(self.head(features), batch["labels"])


def train(process: ProcessInfo, epochs: int) -> tuple[Balanced, list[Tensor]]:
    """Train on this rank's part of each batch."""
    data = Digits("train")
    balance = Modulation(MODALITIES, OPM(), OGM(), seed=0)
    model = Balanced(balance).to(process.device)
    wrapped = DistributedDataParallel(model) if process.world_size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    rows = []
    for epoch in range(epochs):
        balance.epoch = epoch
        for ids in torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch)).split(GLOBAL_BATCH):
            batch = data[ids[process.rank :: process.world_size]]
            batch = {name: value.to(process.device) for name, value in batch.items()}
            optimizer.zero_grad()
            loss = wrapped(batch)
            balance.reduce()  # optional: lets the collective of the step overlap with the backward pass
            loss.backward()
            balance.backward(model.encoders)
            optimizer.step()
            rows.append(balance.row)
    return model, rows


def main() -> None:
    """Train on all ranks, check that their models are equal, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--save", type=Path, help="folder for the weights and measurements of each rank, <rank>.pt")
    options = parser.parse_args()
    with process_group("cpu") as process:
        model, rows = train(process, options.epochs)
        if not all_equal(model):
            raise RuntimeError("the replicas differ")
        if process.is_main:
            show({f"{process.world_size} rank{'s'[: process.world_size > 1]}": figures(model, model.balance, rows)})
        if options.save is not None:
            torch.save({"model": model.state_dict(), "rows": torch.stack(rows)}, options.save / f"{process.rank}.pt")


if __name__ == "__main__":
    main()
