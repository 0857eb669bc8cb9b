"""Classification: every sample has exactly one of K classes (target kind `class`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from bmlpipe.manifests.common.percent import percent
from bmlpipe.train.modulation.names import JOINT
from bmlpipe.train.modulation.scores import unimodal_scores
from bmlpipe.train.tasks import classification_metrics as metrics
from bmlpipe.train.tasks.classification_metrics import Labels, Logits
from bmlpipe.train.tasks.metric_names import SELECTION_METRIC

_PROBE_ITERATIONS = 1000


@dataclass(frozen=True)
class Classification:
    """Loss, modality scores, metrics and exports of single-label classification.

    Arrays hold N samples of a split, tensors B samples of a batch. Targets are class ids.

    Attributes:
        classes: Class names by class id, K of them.
        selection_metric: Metric of `summary` whose highest value on validation selects the best epoch.
    """

    classes: tuple[str, ...]
    selection_metric: ClassVar[str] = SELECTION_METRIC

    @property
    def outputs(self) -> int:
        """Length of the prediction of a sample: K logits."""
        return len(self.classes)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of each sample in float32: (B, K), (B,) → (B,)."""
        return functional.cross_entropy(logits.float(), labels, reduction="none")

    def scores(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Compute the scores s_i^m, the probability of the sample's class (Eq. 6): {m: (B, K)} → {m: (B,)}."""
        return unimodal_scores(logits, labels)

    def metrics(self, logits: Logits, labels: Labels) -> dict[str, float]:
        """Compute `accuracy`, `mAP`, `f1` and `loss` of one prediction, (N, K)."""
        return {
            "accuracy": metrics.accuracy(logits, labels),
            "mAP": metrics.mean_average_precision(logits, labels),
            "f1": metrics.macro_f1(logits, labels),
            "loss": metrics.cross_entropy(logits, labels),
        }

    def summary(self, logits: Logits, branches: Mapping[str, Logits], labels: Labels) -> dict[str, float]:
        """Compute the journal's metrics of a split: `accuracy`, `mAP` and `loss`, and the accuracy of each modality.

        Args:
            logits: Joint prediction, (N, K).
            branches: Modality → prediction of that modality alone, (N, K).
            labels: (N,).
        """
        return {
            "accuracy": metrics.accuracy(logits, labels),
            "mAP": metrics.mean_average_precision(logits, labels),
            "loss": metrics.cross_entropy(logits, labels),
            **{f"accuracy/{m}": metrics.accuracy(branch, labels) for m, branch in branches.items()},
        }

    def report(self, logits: Logits, branches: Mapping[str, Logits], labels: Labels) -> dict[str, Any]:
        """Compute all metrics of a split, as `bmlpipe evaluate` keeps them; arguments as in `summary`."""
        found = self.metrics(logits, labels)
        for m, branch in branches.items():
            found[f"accuracy/{m}"] = metrics.accuracy(branch, labels)
            found[f"mAP/{m}"] = metrics.mean_average_precision(branch, labels)
            found[f"f1/{m}"] = metrics.macro_f1(branch, labels)
        every = {JOINT: logits, **branches}
        return {
            "classes": list(self.classes),
            "metrics": found,
            "per_class": {name: metrics.per_class(one, labels) for name, one in every.items()},
            "confusion": {name: metrics.confusion(one, labels).tolist() for name, one in every.items()},
        }

    def probe(self, strength: float) -> LogisticRegression:
        """Make an unfitted linear probe of features; its `score` is the accuracy.

        Args:
            strength: Inverse strength of the L2 regularisation, scikit-learn's C.
        """
        return LogisticRegression(C=strength, max_iter=_PROBE_ITERATIONS)

    def target_ids(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the class ids of this task for class names, as other shards number them differently.

        Raises:
            KeyError: A name is not a class of this task.
        """
        ids = {name: number for number, name in enumerate(self.classes)}
        return np.array([ids[name] for name in names])

    def target_columns(self, labels: Labels) -> dict[str, npt.NDArray[Any]]:
        """Return what is exported with features: `label` (class name) and `label_id`, (N,) each."""
        return {"label": self._names[labels], "label_id": labels}

    def prediction_columns(
        self, logits: Logits, branches: Mapping[str, Logits], labels: Labels
    ) -> dict[str, npt.NDArray[Any]]:
        """Return what is exported per sample: its label, and the joint and uni-modal predictions.

        `label` is the class name. Columns of the joint prediction are `predicted`, `logit/<class>` and
        `probability/<class>`; those of a modality are `predicted/<modality>`, `logit/<modality>/<class>` and
        `probability/<modality>/<class>`. Arguments as in `summary`.
        """
        columns: dict[str, npt.NDArray[Any]] = {"label": self._names[labels]}
        for where, values in {"": logits, **{f"/{m}": branch for m, branch in branches.items()}}.items():
            shares = metrics.probabilities(values).astype(np.float32)
            columns[f"predicted{where}"] = self._names[values.argmax(axis=1)]
            columns |= {f"logit{where}/{name}": values[:, i] for i, name in enumerate(self.classes)}
            columns |= {f"probability{where}/{name}": shares[:, i] for i, name in enumerate(self.classes)}
        return columns

    def describe(self, summary: Mapping[str, Any]) -> str:
        """Write a summary as a log line shows it.

        Examples:
            >>> Classification(("a", "b")).describe({"accuracy": 0.5, "loss": 1.25, "accuracy/audio": 0.1604})
            'accuracy 50.0%  loss 1.250  accuracy/audio 16.0%'
        """
        return "  ".join(
            f"{name} {value:.3f}" if name == "loss" else f"{name} {percent(value)}"
            for name, value in summary.items()
            if isinstance(value, float)
        )

    @property
    def _names(self) -> npt.NDArray[np.str_]:
        return np.array(self.classes, dtype=np.str_)
