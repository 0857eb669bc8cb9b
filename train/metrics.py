"""Metrics of predictions, by scikit-learn and SciPy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, average_precision_score

Logits = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]


def accuracy(logits: Logits, labels: Labels) -> float:
    """Share of samples whose highest logit is their class's; (N, K) and (N,) → [0, 1]."""
    return float(accuracy_score(labels, logits.argmax(axis=1)))


def mean_average_precision(logits: Logits, labels: Labels) -> float:
    """Macro mAP: the mean over classes of the average precision of each class's softmax probability, one against rest.

    Classes without a sample in `labels` have no average precision and are left out of the mean.

    Args:
        logits: (N, K).
        labels: (N,), class ids.

    Returns:
        [0, 1].
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    present = np.unique(labels)
    truth = labels[:, None] == present
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a single class: everything is positive, precision is 1
        return float(average_precision_score(truth, probabilities[:, present], average="macro"))


def cross_entropy(logits: Logits, labels: Labels) -> float:
    """Mean of −log softmax(logits)[label], the loss; (N, K) and (N,) → [0, ∞)."""
    of_labels = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return float(-of_labels.mean())


def summarise(logits: Logits, branches: Mapping[str, Logits], labels: Labels) -> dict[str, float]:
    """Accuracy, mAP and loss of the joint prediction, accuracy of each modality's branch (`accuracy/audio`)."""
    return {
        "accuracy": accuracy(logits, labels),
        "mAP": mean_average_precision(logits, labels),
        "loss": cross_entropy(logits, labels),
        **{f"accuracy/{modality}": accuracy(branch, labels) for modality, branch in branches.items()},
    }
