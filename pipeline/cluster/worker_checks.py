"""Checks that a worker on another host is fit to do the work of this process.

A call travels to such a worker by value, inside a small function that needs only Python and Dask. A worker without this
package, or with another version of it, therefore replies with a reason instead of failing in an unforeseen way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bmlpipe.manifests.common.errors import BmlpipeError

T = TypeVar("T")
R = TypeVar("R")

_PACKAGE = "bmlpipe"


class UnfitWorkerError(BmlpipeError):
    """This worker cannot do the work, but another one may: its host lacks something, which the message names."""


@dataclass(frozen=True)
class WorkerReply:
    """The reply of a worker to one call.

    Attributes:
        value: The function's result; None from an unfit worker.
        unfit: Why the worker cannot do the work; None: it has done it.
        worker: The worker's address.
        host: The name of its machine.
        differences: Packages of which the worker has another version, each with both versions.
    """

    value: Any
    unfit: str | None = None
    worker: str = ""
    host: str = ""
    differences: tuple[str, ...] = ()


def pickle_call(function: Callable[[Sequence[T]], R], batch: Sequence[T]) -> bytes:
    """Pickle a call for the function that `remote_caller` returns."""
    from distributed.protocol.pickle import dumps

    return bytes(dumps((function, batch)))  # type: ignore[no-untyped-call]


def remote_caller(versions: Mapping[str, str]) -> Callable[[bytes], tuple[Any, ...]]:
    """Make a function that runs a pickled call in a worker and returns the fields of a `WorkerReply`.

    A worker with another version of this package is unfit, since it would understand the work differently. Differences
    in the packages that features depend on are reported only.

    Args:
        versions: Package → version in this process (`store.versions.installed_versions`).
    """
    own = _PACKAGE
    expected = {package: version for package, version in versions.items() if package != "ffmpeg"}  # part of PyAV

    def run_call(call: bytes) -> tuple[Any, ...]:
        import pickle
        import socket
        from importlib import metadata

        from distributed import get_worker

        found = {}
        for package, version in expected.items():
            try:
                installed = metadata.version(package)
            except metadata.PackageNotFoundError:
                installed = "not installed as a package"
            if installed != version:
                found[package] = f"{package} {installed} ({version} here)"
        worker = get_worker().address, socket.gethostname(), tuple(sorted(found.values()))
        if own in found:
            return (None, f"it has {found[own]}: install the same version on all hosts", *worker)
        function, batch = pickle.loads(call)  # noqa: S301  (as Dask does with everything that it is sent)
        from bmlpipe.pipeline.cluster.worker_checks import UnfitWorkerError

        try:
            return (function(batch), None, *worker)
        except UnfitWorkerError as error:
            return (None, str(error), *worker)

    return run_call
