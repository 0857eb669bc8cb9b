"""Kind of target → task."""

from __future__ import annotations

from collections.abc import Sequence

from bmlpipe.shards.targets import CLASS
from bmlpipe.train.tasks.classification import Classification

#: A task; every kind of target has its own.
Task = Classification

#: Kind of target (`bmlpipe.shards.targets`) → its task.
TASKS: dict[str, type[Task]] = {CLASS.name: Classification}


def make_task(classes: Sequence[str], target: str = CLASS.name) -> Task:
    """Make the task of a set of shards.

    Args:
        classes: Class names by class id.
        target: Kind of target of the samples.
    """
    return TASKS[target](tuple(classes))
