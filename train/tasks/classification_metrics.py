"""Metrics of classification, by scikit-learn and SciPy, as fractions from 0 to 1.

Logits are (N, K) and labels are class ids, (N,), of N samples and K classes.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

Logits = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]


def accuracy(logits: Logits, labels: Labels) -> float:
    """Compute the fraction of the samples whose highest logit is that of their class."""
    return float(accuracy_score(labels, logits.argmax(axis=1)))


def mean_average_precision(logits: Logits, labels: Labels) -> float:
    """Compute macro mAP: the mean over classes of the average precision of the class's softmax probability.

    Classes without a sample in `labels` have no average precision and are left out of the mean.
    """
    return float(np.nanmean(average_precisions(logits, labels)))


def average_precisions(logits: Logits, labels: Labels) -> npt.NDArray[np.float64]:
    """Compute the average precision of each class against the rest, (K,); NaN for a class without a sample."""
    present = np.unique(labels)
    truth = labels[:, None] == present
    found = np.full(logits.shape[1], np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a single class: every sample is positive, precision is 1
        found[present] = average_precision_score(truth, probabilities(logits)[:, present], average=None)
    return found


def probabilities(logits: Logits) -> npt.NDArray[np.float64]:
    """Compute the softmax of each row, (N, K)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    shares: npt.NDArray[np.float64] = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    return shares


def macro_f1(logits: Logits, labels: Labels) -> float:
    """Average F1 over the classes that have a sample or were predicted."""
    return float(f1_score(labels, logits.argmax(axis=1), average="macro", zero_division=0))


def cross_entropy(logits: Logits, labels: Labels) -> float:
    """Average −log softmax(logits)[label], in [0, ∞)."""
    of_labels = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return float(-of_labels.mean())


def per_class(logits: Logits, labels: Labels) -> dict[str, list[float]]:
    """Compute the metrics of each class.

    Returns:
        `support` (number of samples), `precision`, `recall`, `f1` and `ap` (average precision), K numbers each. NaN
        where a metric is undefined: the precision of a class that was never predicted, the recall and the average
        precision of a class without a sample.
    """
    classes = np.arange(logits.shape[1])
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=classes, zero_division=np.nan
    )
    ap = average_precisions(logits, labels)
    measures = {"support": support, "precision": precision, "recall": recall, "f1": f1, "ap": ap}
    return {name: values.tolist() for name, values in measures.items()}


def confusion(logits: Logits, labels: Labels) -> npt.NDArray[np.int64]:
    """Count the samples of each true class (rows) for which each class (columns) was predicted, (K, K)."""
    counts: npt.NDArray[np.int64] = confusion_matrix(
        labels, logits.argmax(axis=1), labels=np.arange(logits.shape[1])
    ).astype(np.int64)
    return counts
