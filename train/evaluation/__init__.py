"""Evaluation of finished runs: predictions, missing modalities, linear probes, results, exports."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.evaluation.loaded_run import LoadedRun, find_checkpoints, load_run
    from bmlpipe.train.evaluation.missing_modalities import missing_metrics, parse_missing
    from bmlpipe.train.evaluation.predict import Predictions, PredictOptions, Predictor
    from bmlpipe.train.evaluation.results import evaluate, linear_probes

__all__ = [
    "LoadedRun",
    "PredictOptions",
    "Predictions",
    "Predictor",
    "evaluate",
    "find_checkpoints",
    "linear_probes",
    "load_run",
    "missing_metrics",
    "parse_missing",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "loaded_run": ["LoadedRun", "find_checkpoints", "load_run"],
        "missing_modalities": ["missing_metrics", "parse_missing"],
        "predict": ["PredictOptions", "Predictions", "Predictor"],
        "results": ["evaluate", "linear_probes"],
    },
)
