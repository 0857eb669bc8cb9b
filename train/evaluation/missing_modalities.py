"""Missing modalities at test time: samples that lose the input of a modality at random, at given rates.

What is lost is the whole input, as normalised: zeros, the mean of the training samples. A sample loses modality m where
the uniform number of (seed, sample number, m) is below the rate, so neither batches nor ranks matter, no sample loses
at rate 0, every one at rate 1, and whoever loses m at one rate loses it at all higher ones.

A sample is in one of 2^A states where A modalities may be missing. The model predicts each state once
(`logits_without`), after which any number of rates and seeds is a matter of picking rows (`degraded`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bmlpipe.shards.kinds import MODALITY_KIND
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.evaluation.metrics import joint_metrics
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation import keyed

if TYPE_CHECKING:
    from bmlpipe.train.evaluation.predict import Predictions

#: Modality → share of the samples that lose it.
Rates = Mapping[str, float]

_STEP = 0.1  # of a range that names none
_GRAMMAR = "write like audio=0:1:0.1 (first:last:step), audio=0,0.5,visual=0.2 or audio+visual=0:0.5"


def parse_sweep(text: str) -> list[dict[str, float]]:
    """The rates that a sweep goes through.

    `NAMES=RATES[,NAMES=RATES…]`. RATES is numbers or ranges separated by commas; a range is FIRST:LAST[:STEP], both
    ends included, in steps of 0.1 where none is given. Of several NAMES every combination is taken; modalities joined
    by + are lost at one common rate, independently of each other.

    >>> parse_sweep("audio=0.1:0.3,visual=0.1")
    [{'audio': 0.1, 'visual': 0.1}, {'audio': 0.2, 'visual': 0.1}, {'audio': 0.3, 'visual': 0.1}]
    >>> parse_sweep("audio+visual=0,1")
    [{'audio': 0.0, 'visual': 0.0}, {'audio': 1.0, 'visual': 1.0}]

    Raises:
        ConfigError: It has another form, an unknown modality, one modality twice, or a rate outside [0, 1].
    """
    groups: dict[tuple[str, ...], list[float]] = {}
    group: tuple[str, ...] = ()
    for part in text.split(","):
        names, equals, values = part.rpartition("=")
        if equals:
            group = tuple(name.strip() for name in names.split("+"))
            if unknown := [name for name in group if name not in MODALITY_KIND]:
                known = ", ".join(MODALITY_KIND)
                raise ConfigError(f"missing {text!r}: {unknown[0]!r} is no modality ({known}): {_GRAMMAR}")
            groups[group] = []
        if not group:
            raise ConfigError(f"missing {text!r}: {part!r} names no modality: {_GRAMMAR}")
        groups[group] += [rate for rate in _rates(values, text) if rate not in groups[group]]
    named = [name for group in groups for name in group]
    if len(set(named)) < len(named) or text.count("=") != len(groups):
        raise ConfigError(f"missing {text!r}: names a modality twice: give a second --missing")
    return [
        {name: rate for group, rate in zip(groups, rates, strict=True) for name in group}
        for rates in itertools.product(*groups.values())
    ]


def _rates(text: str, whole: str) -> list[float]:
    try:
        first, *rest = (float(number) for number in text.split(":"))
        last, step = (*rest, _STEP)[:2] if rest else (first, _STEP)
        if len(rest) > 2 or not (0 <= first <= last <= 1 and step > 0 and math.isfinite(step)):
            raise ValueError
    except ValueError:
        raise ConfigError(f"missing {whole!r}: {text!r} are no rates from 0 to 1: {_GRAMMAR}") from None
    count = math.floor((last - first) / step + 1e-9)
    return [round(first + number * step, 10) for number in range(count + 1)]


def lost(numbers: npt.NDArray[np.int64], modality: str, rate: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which samples lose the modality, (N,), by their sample numbers (N,)."""
    stream = keyed.key(seed, "missing", modality)
    return keyed.uniform(torch.tensor(numbers), stream).numpy() < rate


def subsets(modalities: Sequence[str]) -> list[frozenset[str]]:
    """Every non-empty subset, in a fixed order."""
    sizes = range(1, len(modalities) + 1)
    return [frozenset(chosen) for size in sizes for chosen in itertools.combinations(modalities, size)]


def logits_without(
    model: MultimodalModel, inputs: Mapping[str, Tensor], features: Mapping[str, Tensor], gone: Sequence[frozenset[str]]
) -> list[Tensor]:
    """The joint prediction with the inputs of some modalities set to zeros.

    Without an exchange a feature depends on its own input only, so nothing is encoded twice: one sample of zeros a
    modality will do. With one every subset is encoded anew.

    Args:
        model: In evaluation mode.
        inputs: {m: (B, T, C, H, W)}, normalised.
        features: {m: (B, D_m)} of these inputs.
        gone: Subsets of the modalities.

    Returns:
        (B, K) for each subset.
    """
    absent = frozenset[str]().union(*gone)
    if model.exchange is None:
        nothing = {
            m: model.encoders[m](torch.zeros_like(inputs[m][:1])).expand_as(feature)
            for m, feature in features.items()
            if m in absent
        }
        return [model.head({m: nothing[m] if m in some else features[m] for m in features}) for some in gone]
    zeros = {m: torch.zeros_like(value) for m, value in inputs.items() if m in absent}
    return [
        model.head(model.encode({m: zeros[m] if m in some else inputs[m] for m in model.encoders})) for some in gone
    ]


def degraded(found: Predictions, rates: Rates, seed: int) -> npt.NDArray[np.float32]:
    """The joint prediction (N, K) where samples have lost modalities.

    Args:
        found: Predictions with `without` of all modalities whose rate is above 0.
        rates: Modality → rate; others lose nothing.
        seed: Of the draw.
    """
    states = {m: lost(found.numbers, m, rate, seed) for m, rate in rates.items() if rate > 0}
    logits = found.logits.copy()
    for gone, alternative in found.without.items():
        if gone <= set(states):
            rows = np.all([states[m] == (m in gone) for m in states], axis=0)
            logits[rows] = alternative[rows]
    return logits


def sweep(found: Predictions, combinations: Sequence[Rates], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Metrics at each combination of rates, once each, a value for each seed.

    Returns:
        Rows of `rates` (of every modality), `seeds`, and metric → values.
    """
    rows = []
    every = [{m: given.get(m, 0.0) for m in found.branches} for given in combinations]
    for rates in {tuple(rates.values()): rates for rates in every}.values():
        each = [joint_metrics(degraded(found, rates, seed), found.labels) for seed in seeds]
        rows.append({"rates": rates, "seeds": list(seeds), **{name: [one[name] for one in each] for name in each[0]}})
    return rows
