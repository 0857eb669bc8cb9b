"""Optimisers, and the learning rate of an epoch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from bmlpipe.train.config.options import TrainConfig


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Make the optimiser of a run: SGD with momentum (the paper) or AdamW (the T-PAMI release).

    Args:
        config: Its `optimizer`, `lr`, `momentum` (SGD only), `precision` and `weight_decay`, which is the factor of an
            L2 term in the gradient for SGD, and of a decay decoupled from the gradient for AdamW.
        parameters: Parameters to train.
    """
    # Under loss scaling the fused optimiser skips a step with infinite gradients on the device; the others would make
    # the host wait.
    fused = config.precision == "fp16"
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
        )
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=fused)


def set_lr(optimizer: Optimizer, config: TrainConfig, epoch: int) -> float:
    """Set the learning rate of an epoch to lr · lr_gamma^⌊epoch / lr_step⌋, and return it.

    Args:
        optimizer: All its parameter groups get the rate.
        config: Its `lr`, `lr_gamma` and `lr_step`; with lr_step = 0 the rate is constant.
        epoch: Epoch, from 0.
    """
    lr = config.lr * config.lr_gamma ** (epoch // config.lr_step) if config.lr_step else config.lr
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr
