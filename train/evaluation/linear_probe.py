"""Linear probes: how much of the target the features of a frozen encoder hold, whatever the head makes of them.

A probe is the task's linear model of the training split's features (centre crops, no augmentation), each dimension
standardised by its mean and deviation over that split. Its regularisation is the one with the highest score on
validation, the strongest among equals; nothing is fitted to the test split. Alain and Bengio, "Understanding
intermediate layers using linear classifier probes", 2016; the protocol is that of Kornblith, Shlens, Le, "Do better
ImageNet models transfer better?", CVPR 2019, App. A.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.tasks.registry import Task

_logger = logging.getLogger(__name__)

#: Inverse regularisation strengths to choose from, scikit-learn's C.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)

#: Features (N, D) and targets (N,) of a split.
Split = tuple[npt.NDArray[np.floating], npt.NDArray[np.integer]]


@dataclass(frozen=True)
class ProbeResult:
    """A fitted probe.

    Attributes:
        C: Inverse regularisation strength that was chosen.
        accuracy: Split → score of the task's probe, from 0 to 1; accuracy for classification.
    """

    C: float
    accuracy: Mapping[str, float]


def fit_probe(task: Task, splits: Mapping[str, Split], strengths: Sequence[float] = STRENGTHS) -> ProbeResult:
    """Fit a probe of one encoder.

    Args:
        task: Makes the linear model.
        splits: `train`, `val` and optionally `test` → features and targets.
        strengths: Inverse regularisation strengths to choose from, ascending.

    Raises:
        OptionError: The training split has a single class.
    """
    if len(np.unique(splits["train"][1])) < 2:
        raise OptionError("the training split has a single class: a linear probe needs two or more; leave out --probe")
    splits = {name: (features.astype(np.float64), targets) for name, (features, targets) in splits.items()}
    best: tuple[float, float, Pipeline] | None = None
    for strength in strengths:
        model = make_pipeline(StandardScaler(), task.probe(strength))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(*splits["train"])
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            _logger.warning("the probe with C = %g has not converged", strength)
        score = float(model.score(*splits["val"]))
        if best is None or score > best[0]:
            best = score, strength, model
    assert best is not None
    _, strength, model = best
    return ProbeResult(strength, {name: float(model.score(*split)) for name, split in splits.items()})
