"""Missing modalities at test time: samples lose the input of a modality at random, at given rates.

A sample that loses a modality gets zeros instead of its normalised input, the mean of the training samples. It loses
modality m if the uniform number of (seed, sample number, m) is below the rate. So the draw depends on neither batches
nor ranks, rate 0 removes no input and rate 1 every input, and a sample that loses m at one rate loses it at all higher
rates.

With A modalities that may be missing a sample is in one of 2^A states. The model predicts every state once
(`logits_without`); any number of rates and seeds then only picks rows among these predictions (`with_missing`).
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
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation import keyed
from bmlpipe.train.tasks.registry import Task

if TYPE_CHECKING:
    from bmlpipe.train.evaluation.predict import Predictions

#: Modality → fraction of the samples that lose it.
Rates = Mapping[str, float]

_STEP = 0.1  # default step of a range
_GRAMMAR = "write like audio=0:1:0.1 (first:last:step), audio=0,0.5,visual=0.2 or audio+visual=0:0.5"


def parse_missing(text: str) -> list[dict[str, float]]:
    """Parse the option `--missing` into combinations of rates.

    The form is `NAMES=RATES[,NAMES=RATES…]`. RATES is numbers or ranges separated by commas; a range is
    FIRST:LAST[:STEP], both ends included, with the step 0.1 by default. Several NAMES=RATES give every combination.
    Modalities joined by + are missing at one common rate, but independently of each other.

    Examples:
        >>> parse_missing("audio=0.1:0.3,visual=0.1")
        [{'audio': 0.1, 'visual': 0.1}, {'audio': 0.2, 'visual': 0.1}, {'audio': 0.3, 'visual': 0.1}]
        >>> parse_missing("audio+visual=0,1")
        [{'audio': 0.0, 'visual': 0.0}, {'audio': 1.0, 'visual': 1.0}]

    Raises:
        ConfigError: The text has another form, names an unknown modality or one twice, or has a rate outside [0, 1].
    """
    groups: dict[tuple[str, ...], list[float]] = {}
    group: tuple[str, ...] = ()
    for part in text.split(","):
        names, equals, values = part.rpartition("=")
        if equals:
            group = tuple(name.strip() for name in names.split("+"))
            if unknown := [name for name in group if name not in MODALITY_KIND]:
                known = ", ".join(MODALITY_KIND)
                raise ConfigError(f"missing {text!r}: {unknown[0]!r} is not a modality ({known}): {_GRAMMAR}")
            groups[group] = []
        if not group:
            raise ConfigError(f"missing {text!r}: {part!r} names no modality: {_GRAMMAR}")
        groups[group] += [rate for rate in _rates(values, text) if rate not in groups[group]]
    named = [name for group in groups for name in group]
    if len(set(named)) < len(named) or text.count("=") != len(groups):
        raise ConfigError(f"missing {text!r}: a modality is named twice: use a second --missing")
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
        raise ConfigError(f"missing {whole!r}: {text!r} is not a list of rates from 0 to 1: {_GRAMMAR}") from None
    count = math.floor((last - first) / step + 1e-9)
    return [round(first + number * step, 10) for number in range(count + 1)]


def is_missing(numbers: npt.NDArray[np.int64], modality: str, rate: float, seed: int) -> npt.NDArray[np.bool_]:
    """Draw the samples that lose a modality.

    Args:
        numbers: Sample numbers, (N,).
        modality: Name of the modality.
        rate: Probability of losing it, in [0, 1].
        seed: Seed of the draw.

    Returns:
        Whether each sample loses it, (N,).
    """
    stream = keyed.key(seed, "missing", modality)
    return keyed.uniform(torch.tensor(numbers), stream).numpy() < rate


def subsets(modalities: Sequence[str]) -> list[frozenset[str]]:
    """Return every non-empty subset, ordered by size."""
    sizes = range(1, len(modalities) + 1)
    return [frozenset(chosen) for size in sizes for chosen in itertools.combinations(modalities, size)]


def logits_without(
    model: MultimodalModel,
    inputs: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    missing: Sequence[frozenset[str]],
) -> list[Tensor]:
    """Predict a batch with the inputs of some modalities set to zeros.

    Without intermediate fusion a feature depends on its own input only. Then no sample is encoded again: one sample of
    zeros per modality suffices. With intermediate fusion every subset is encoded anew.

    Args:
        model: Model in evaluation mode.
        inputs: {m: (B, T, C, H, W)}, normalised.
        features: {m: (B, D_m)} of these inputs.
        missing: Subsets of the modalities.

    Returns:
        Joint prediction, (B, K), for each subset.
    """
    zeroed = frozenset[str]().union(*missing)
    if model.intermediate is None:
        zero_features = {
            m: model.encoders[m](torch.zeros_like(inputs[m][:1])).expand_as(feature)
            for m, feature in features.items()
            if m in zeroed
        }
        return [
            model.head({m: zero_features[m] if m in subset else features[m] for m in features}) for subset in missing
        ]
    zeros = {m: torch.zeros_like(value) for m, value in inputs.items() if m in zeroed}
    return [
        model.head(model.encode({m: zeros[m] if m in subset else inputs[m] for m in model.encoders}))
        for subset in missing
    ]


def with_missing(predictions: Predictions, rates: Rates, seed: int) -> npt.NDArray[np.float32]:
    """Return the joint prediction, (N, K), of samples that lose modalities at random.

    Args:
        predictions: Predictions, with `without` for all modalities whose rate is above 0.
        rates: Modality → rate; a modality without a rate is never missing.
        seed: Seed of the draw.
    """
    states = {m: is_missing(predictions.numbers, m, rate, seed) for m, rate in rates.items() if rate > 0}
    logits = predictions.logits.copy()
    for subset, alternative in predictions.without.items():
        if subset <= set(states):
            rows = np.all([states[m] == (m in subset) for m in states], axis=0)
            logits[rows] = alternative[rows]
    return logits


def missing_metrics(
    task: Task, predictions: Predictions, combinations: Sequence[Rates], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Compute the metrics of the task at each combination of rates.

    Args:
        task: Computes the metrics.
        predictions: Predictions, with `without` for all modalities whose rate is above 0.
        combinations: Combinations of rates; equal ones count once.
        seeds: Seeds of the draws of each combination.

    Returns:
        One row per combination: `rates` of every modality, `seeds`, and metric → one value per seed.
    """
    rows = []
    every = [{m: given.get(m, 0.0) for m in predictions.branches} for given in combinations]
    for rates in {tuple(rates.values()): rates for rates in every}.values():
        each = [task.metrics(with_missing(predictions, rates, seed), predictions.labels) for seed in seeds]
        rows.append({"rates": rates, "seeds": list(seeds), **{name: [one[name] for one in each] for name in each[0]}})
    return rows
