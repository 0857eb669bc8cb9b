"""Tasks, one per kind of target: the loss, scores and metrics of predictions."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.tasks.classification import Classification
    from bmlpipe.train.tasks.registry import TASKS, make_task

__all__ = ["TASKS", "Classification", "make_task"]

__getattr__ = lazy_exports(
    __name__,
    {
        "classification": ["Classification"],
        "registry": ["TASKS", "make_task"],
    },
)
