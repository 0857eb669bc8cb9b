"""What a prediction gets right class by class: precision, recall, F1, average precision, the confusion matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from bmlpipe.train.evaluation.metrics import Labels, Logits, average_precisions


def per_class(logits: Logits, labels: Labels) -> dict[str, list[float]]:
    """Measures of each class, by scikit-learn.

    Args:
        logits: (N, K).
        labels: (N,), class ids.

    Returns:
        `support` (samples), `precision`, `recall`, `f1` and `ap` (average precision), K numbers each. NaN where one is
        undefined: precision of a class never predicted, recall and average precision of a class without a sample.
    """
    classes = np.arange(logits.shape[1])
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=classes, zero_division=np.nan
    )
    ap = average_precisions(logits, labels)
    measures = {"support": support, "precision": precision, "recall": recall, "f1": f1, "ap": ap}
    return {name: values.tolist() for name, values in measures.items()}


def confusion(logits: Logits, labels: Labels) -> npt.NDArray[np.int64]:
    """Counts, (K, K): rows are the true classes, columns the predicted ones."""
    counts: npt.NDArray[np.int64] = confusion_matrix(
        labels, logits.argmax(axis=1), labels=np.arange(logits.shape[1])
    ).astype(np.int64)
    return counts
