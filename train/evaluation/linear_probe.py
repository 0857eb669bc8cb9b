"""Linear probes: how good the features of a frozen encoder are, whatever the head made of them.

A multinomial logistic regression on the training split's features (evaluation views, no augmentation), each dimension
standardised by its mean and deviation there. Its regularisation is the one that is best on validation, the strongest of
equals; nothing is fitted to test. Alain and Bengio, "Understanding intermediate layers using linear classifier probes",
2016; the protocol is that of Kornblith, Shlens, Le, "Do better ImageNet models transfer better?", CVPR 2019, App. A.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

_logger = logging.getLogger(__name__)

#: Inverse regularisation strengths that validation chooses from; scikit-learn's C.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_ITERATIONS = 1000

#: Features (N, D) and class ids (N,).
Split = tuple[npt.NDArray[np.floating], npt.NDArray[np.integer]]


@dataclass(frozen=True)
class Probe:
    """What a linear probe reads.

    Attributes:
        C: The chosen inverse regularisation strength.
        accuracy: Split → accuracy, of `train`, `val` and, where it was given, `test`.
    """

    C: float
    accuracy: Mapping[str, float]


def fit(splits: Mapping[str, Split], strengths: Sequence[float] = STRENGTHS) -> Probe:
    """Fit a probe.

    Args:
        splits: `train` and `val`, and perhaps `test`: features of one encoder, with labels.
        strengths: To choose from, ascending.

    Raises:
        ValueError: The training split has a single class.
    """
    splits = {name: (features.astype(np.float64), labels) for name, (features, labels) in splits.items()}
    best: tuple[float, float, Pipeline] | None = None
    for strength in strengths:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=_ITERATIONS))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(*splits["train"])
        if any(issubclass(warning.category, ConvergenceWarning) for warning in told):
            _logger.warning("the probe with C = %g had not converged after %d iterations", strength, _ITERATIONS)
        reached = float(model.score(*splits["val"]))
        if best is None or reached > best[0]:
            best = reached, strength, model
    assert best is not None
    _, strength, model = best
    return Probe(strength, {name: float(model.score(*split)) for name, split in splits.items()})
