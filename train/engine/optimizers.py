"""Optimisers, and the learning rate of an epoch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

Name = Literal["sgd", "adamw"]


def make_optimizer(
    name: Name, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float, fused: bool
) -> Optimizer:
    """Make an optimiser.

    Args:
        name: `sgd` (the paper, with momentum) or `adamw` (the T-PAMI release).
        parameters: Parameters to train.
        lr: Learning rate of the first epoch.
        momentum: Momentum of SGD; AdamW does not use it.
        weight_decay: For SGD the factor of an L2 term in the gradient, for AdamW of a decay decoupled from it.
        fused: Update all parameters in one kernel. Under loss scaling the fused optimiser skips a step with infinite
            gradients on the device, while the others have to wait for the host.
    """
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay, fused=fused)
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=fused)


def set_lr(optimizer: Optimizer, *, lr: float, epoch: int, every: int, gamma: float) -> float:
    """Set the learning rate of an epoch to lr · gamma^⌊epoch / every⌋, and return it.

    Args:
        optimizer: All its parameter groups get the rate.
        lr: Learning rate of epoch 0.
        epoch: Epoch, from 0.
        every: Number of epochs between two reductions; 0: the rate is constant.
        gamma: Factor of a reduction.
    """
    now = lr * gamma ** (epoch // every) if every else lr
    for group in optimizer.param_groups:
        group["lr"] = now
    return now
