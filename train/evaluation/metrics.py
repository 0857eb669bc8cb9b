"""Metrics of predictions, by scikit-learn and SciPy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

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
    return float(np.nanmean(average_precisions(logits, labels)))


def average_precisions(logits: Logits, labels: Labels) -> npt.NDArray[np.float64]:
    """The average precision of each class, (K,) in [0, 1]; NaN for a class without a sample."""
    present = np.unique(labels)
    truth = labels[:, None] == present
    found = np.full(logits.shape[1], np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a single class: everything is positive, precision is 1
        found[present] = average_precision_score(truth, probabilities(logits)[:, present], average=None)
    return found


def probabilities(logits: Logits) -> npt.NDArray[np.float64]:
    """Softmax; (N, K) → (N, K)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    shares: npt.NDArray[np.float64] = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    return shares


def macro_f1(logits: Logits, labels: Labels) -> float:
    """The mean of F1 over the classes that have a sample or were predicted; (N, K) and (N,) → [0, 1]."""
    return float(f1_score(labels, logits.argmax(axis=1), average="macro", zero_division=0))


def cross_entropy(logits: Logits, labels: Labels) -> float:
    """Mean of −log softmax(logits)[label], the loss; (N, K) and (N,) → [0, ∞)."""
    of_labels = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return float(-of_labels.mean())


def joint_metrics(logits: Logits, labels: Labels) -> dict[str, float]:
    """Accuracy, mAP, F1 and loss."""
    return {
        "accuracy": accuracy(logits, labels),
        "mAP": mean_average_precision(logits, labels),
        "f1": macro_f1(logits, labels),
        "loss": cross_entropy(logits, labels),
    }


def summarise(logits: Logits, branches: Mapping[str, Logits], labels: Labels) -> dict[str, float]:
    """Accuracy, mAP and loss of the joint prediction, accuracy of each modality's branch (`accuracy/audio`)."""
    return {
        "accuracy": accuracy(logits, labels),
        "mAP": mean_average_precision(logits, labels),
        "loss": cross_entropy(logits, labels),
        **{f"accuracy/{modality}": accuracy(branch, labels) for modality, branch in branches.items()},
    }
