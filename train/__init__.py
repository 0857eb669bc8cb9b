"""From shards to a model: loader, encoders, fusion, modulation, loop, evaluation, journals."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.config.options import ConfigError, TrainConfig
    from bmlpipe.train.config.parsing import read_file
    from bmlpipe.train.distributed.group import LostRankError, process_group
    from bmlpipe.train.engine.trainer import Trainer
    from bmlpipe.train.evaluation.loaded_run import LoadedRun, load_run
    from bmlpipe.train.models.build import build_model
    from bmlpipe.train.models.multimodal import MultimodalModel
    from bmlpipe.train.runs.run_reader import Run, read_run

__all__ = [
    "ConfigError",
    "LoadedRun",
    "LostRankError",
    "MultimodalModel",
    "Run",
    "TrainConfig",
    "Trainer",
    "build_model",
    "load_run",
    "process_group",
    "read_file",
    "read_run",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "config.options": ["ConfigError", "TrainConfig"],
        "config.parsing": ["read_file"],
        "distributed.group": ["LostRankError", "process_group"],
        "engine.trainer": ["Trainer"],
        "evaluation.loaded_run": ["LoadedRun", "load_run"],
        "models.build": ["build_model"],
        "models.multimodal": ["MultimodalModel"],
        "runs.run_reader": ["Run", "read_run"],
    },
)
