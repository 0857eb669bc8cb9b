"""Workers on other hosts: what they must have in common with the process that gives out the work.

A function for them travels by value, inside a small one that needs nothing but Python and Dask: so a worker without
this package, or with another version of it, answers with a reason instead of failing in a way of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.pipeline.store.versions import software

T = TypeVar("T")
R = TypeVar("R")

_OWN = "bmlpipe"


class UnfitWorkerError(BmlpipeError):
    """This worker cannot do the work though another one may: its host lacks something; the message says what."""


@dataclass(frozen=True)
class Answer:
    """What came back from a worker.

    Attributes:
        worker: Its address at Dask.
        host: The name of its machine.
        fit: Whether it has done the work.
        value: The function's result; of an unfit worker the reason.
        others: Packages of which it has another version, each with both.
    """

    worker: str
    host: str
    fit: bool
    value: Any
    others: tuple[str, ...]


def packed(function: Callable[[Sequence[T]], R], batch: Sequence[T]) -> bytes:
    """A call for `answering`'s function."""
    from distributed.protocol.pickle import dumps

    return bytes(dumps((function, batch)))  # type: ignore[no-untyped-call]


def answering() -> Callable[[bytes], tuple[Any, ...]]:
    """A function that makes a `packed` call in a worker and returns the fields of an `Answer`.

    A worker with another version of this package is unfit: it would understand the work differently. Other versions
    of the packages that features depend on are told, and recorded in each feature file.
    """
    own = _OWN
    wanted = {package: found for package, found in software().items() if package != "ffmpeg"}  # of the package av

    def answer(call: bytes) -> tuple[Any, ...]:
        import pickle
        import socket
        from importlib import metadata

        from distributed import get_worker

        others = {}
        for package, here in wanted.items():
            try:
                found = metadata.version(package)
            except metadata.PackageNotFoundError:
                found = "not installed as a package"
            if found != here:
                others[package] = f"{package} {found} ({here} here)"
        about = get_worker().address, socket.gethostname()
        told = tuple(sorted(others.values()))
        if own in others:
            return (*about, False, f"it has {others[own]}: install the same version on all hosts", told)
        function, batch = pickle.loads(call)  # noqa: S301  (as Dask does with all that it is sent)
        from bmlpipe.pipeline.cluster.worker_checks import UnfitWorkerError

        try:
            return (*about, True, function(batch), told)
        except UnfitWorkerError as error:
            return (*about, False, str(error), told)

    return answer
