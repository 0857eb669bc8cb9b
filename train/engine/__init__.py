"""The training loop: the trainer, its optimiser step and its log."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.engine.run_log import DivergedError
    from bmlpipe.train.engine.step import StepOptions, TrainStep
    from bmlpipe.train.engine.trainer import Trainer

__all__ = ["DivergedError", "StepOptions", "TrainStep", "Trainer"]

__getattr__ = lazy_exports(
    __name__,
    {
        "run_log": ["DivergedError"],
        "step": ["StepOptions", "TrainStep"],
        "trainer": ["Trainer"],
    },
)
