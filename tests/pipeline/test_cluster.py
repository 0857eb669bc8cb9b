"""Batches on a Dask cluster: the number in flight is bounded, and a worker that dies loses a single item.

Functions that are defined inside tests are pickled by value.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bmlpipe.pipeline.cluster.batches import map_batches
from bmlpipe.pipeline.cluster.worker_checks import UnfitWorkerError
from bmlpipe.pipeline.cluster.worker_pool import ClusterError, ExistingScheduler, LocalWorkers
from bmlpipe.pipeline.store.versions import installed_versions

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("both_cores")]


def batches_of(count: int, size: int, pulled: list[int]) -> Iterator[Sequence[int]]:
    for first in range(0, count, size):
        pulled.append(first)
        yield range(first, min(first + size, count))


def died(item: int) -> list[tuple[int, str]]:
    return [(item, "died")]


def worker(killers: set[int], delay: float = 0.0) -> Callable[[Sequence[int]], list[tuple[int, str]]]:
    """Return a batch function that kills its process on some items."""

    def work(batch: Sequence[int]) -> list[tuple[int, str]]:
        time.sleep(delay)
        for item in batch:
            if item in killers:
                os.kill(os.getpid(), signal.SIGKILL)
        return [(item, "ok") for item in batch]

    return work


@pytest.fixture
def scheduler() -> Iterator[str]:
    """Address of a running cluster with one worker of two threads."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def test_a_worker_that_dies_loses_one_item_and_few_batches_are_in_flight() -> None:
    killers, pulled, results = {5, 6, 31}, list[int](), list[tuple[int, str]]()
    for rows in map_batches(worker(killers), batches_of(60, 4, pulled), died, LocalWorkers(2)):
        results += rows
        assert len(pulled) <= 2 * 2 + -(-len(results) // 4) + 2 * len(killers) + 1
    assert dict(results) == {item: "died" if item in killers else "ok" for item in range(60)}
    assert len(results) == 60  # no item twice


def test_batches_are_read_only_when_workers_are_free() -> None:
    pulled: list[int] = []
    results = map_batches(worker(set(), 0.01), batches_of(10**9, 1, pulled), died, LocalWorkers(2))
    for number in range(1, 21):
        next(results)
        assert len(pulled) <= 4 + number
    results.close()  # which closes the cluster


def test_an_existing_scheduler_is_used_and_left_running(scheduler: str) -> None:
    from distributed import Client

    pulled: list[int] = []
    for _ in range(2):
        results = [
            r
            for rows in map_batches(worker(set()), batches_of(9, 2, pulled), died, ExistingScheduler(scheduler))
            for r in rows
        ]
        assert sorted(results) == [(item, "ok") for item in range(9)]
    with Client(scheduler) as client:
        assert sum(client.nthreads().values()) == 2


def test_an_exception_of_the_batch_function_reaches_the_caller(scheduler: str) -> None:
    def fail(batch: Sequence[int]) -> list[tuple[int, str]]:
        raise LookupError("what the worker raised")

    with pytest.raises(LookupError, match="what the worker raised"):
        list(map_batches(fail, [[1]], died, ExistingScheduler(scheduler)))


def test_a_scheduler_file_names_the_scheduler(scheduler: str, tmp_path: Path) -> None:
    path = tmp_path / "a scheduler.json"
    path.write_text(json.dumps({"address": scheduler}))
    results = map_batches(worker(set()), [[1], [2]], died, ExistingScheduler(f"file://{path}"))
    assert sorted(results) == [[(1, "ok")], [(2, "ok")]]


@pytest.mark.parametrize("wanted", [True, False])
def test_the_address_of_the_dashboard_is_logged_if_there_is_one(wanted: bool, caplog: pytest.LogCaptureFixture) -> None:
    if wanted:
        pytest.importorskip("bokeh", reason="Dask's dashboard needs the package bokeh")
    with caplog.at_level(logging.INFO, "bmlpipe"):
        results = map_batches(worker(set()), [[1], [2]], died, LocalWorkers(1, dashboard=None if wanted else False))
        next(results)
        logged = [message for message in caplog.messages if "dashboard" in message]
        if wanted:
            address = logged[0].removeprefix("Dask's dashboard: ")
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(address, timeout=20) as page:
                assert b"install" not in page.read()  # as the page without bokeh says
        assert len(logged) == wanted
        results.close()


def test_workers_with_another_version_of_this_package_are_refused(
    scheduler: str, caplog: pytest.LogCaptureFixture
) -> None:
    numpy = installed_versions()["numpy"]
    workers = ExistingScheduler(scheduler, versions={**installed_versions(), "numpy": "1.2.3"})
    assert len(list(map_batches(worker(set()), [[1], [2]], died, workers))) == 2
    (warning,) = [message for message in caplog.messages if "numpy" in message]
    assert f"has numpy {numpy} (1.2.3 here)" in warning
    workers = ExistingScheduler(scheduler, patience=1, versions={**installed_versions(), "bmlpipe": "0.0.0"})
    with pytest.raises(ClusterError, match=r"worker tcp://.*it has bmlpipe .* \(0.0.0 here\): install"):
        list(map_batches(worker(set()), [[1]], died, workers))


def test_an_unfit_worker_is_retired_and_another_worker_processes_its_batches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from distributed import LocalCluster

    claim = tmp_path / "unfit"

    def work(batch: Sequence[int]) -> list[int]:
        """The first process that runs this stays unfit. A batch of −1 fails everywhere until it is refreshed."""
        if not claim.exists():
            claim.write_text(str(os.getpid()))
        if claim.read_text() == str(os.getpid()) or -1 in batch:
            raise UnfitWorkerError("it lacks something")
        return list(batch)

    def refresh(batch: Sequence[int]) -> Sequence[int]:
        return [abs(item) for item in batch]

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        batches = [[item] for item in (*range(2, 30), -1)]
        done = map_batches(work, batches, died, ExistingScheduler(address), refresh)  # type: ignore[arg-type]
        assert sorted(item for batch in done for item in batch) == list(range(1, 30))
    (warning,) = [message for message in caplog.messages if "retired" in message]
    assert warning.endswith("it lacks something")


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path) -> None:
    import dask

    with pytest.raises(ClusterError, match=r"there is no scheduler file .*none\.json: start"):
        list(map_batches(worker(set()), [[1]], died, ExistingScheduler(f"file://{tmp_path}/none.json")))
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        for address in ("tcp://127.0.0.1:1", "carrier-pigeon://coop"):
            with pytest.raises(ClusterError, match=f"no Dask scheduler answers at {address}"):
                list(map_batches(worker(set()), [[1]], died, ExistingScheduler(address)))


def test_a_lost_scheduler_is_an_error_that_names_the_remedy() -> None:
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
    ):
        address = cluster.scheduler_address
        results = map_batches(worker(set(), 0.2), batches_of(99, 1, []), died, ExistingScheduler(address))
        next(results)
        cluster.close()
        with pytest.raises(ClusterError, match="run the same command again"):
            list(results)
