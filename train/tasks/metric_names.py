"""The names of the metrics of a task, for programs that read results: no metric is computed or imported here."""

from __future__ import annotations

from collections.abc import Mapping

#: Metric whose highest value on validation selects the best epoch.
SELECTION_METRIC = "accuracy"

#: Metric → its title in tables; all of them are fractions from 0 to 1.
FRACTIONS: Mapping[str, str] = {"accuracy": "accuracy", "mAP": "mAP", "f1": "F1"}
