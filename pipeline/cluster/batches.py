"""Apply a function to batches on Dask: a bounded number is in flight, and a worker's death costs one item."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from bmlpipe.pipeline.cluster.worker_pool import ExistingScheduler, LocalWorkers, WorkerPool

T = TypeVar("T")
R = TypeVar("R")

_BATCHES_PER_THREAD = 2


def map_batches(
    function: Callable[[Sequence[T]], R],
    batches: Iterable[Sequence[T]],
    on_worker_death: Callable[[T], R],
    workers: LocalWorkers | ExistingScheduler,
    refresh: Callable[[Sequence[T]], Sequence[T]] = lambda batch: batch,
) -> Generator[R, None, None]:
    """Apply a function to each batch on Dask and yield the results in the order in which they finish.

    At most two batches per worker are in flight, and no further batches are taken from the iterable. When a worker
    dies, Dask suspects every batch that it held: their items are set aside, and at the end each is tried in a batch of
    its own with nothing else on the cluster. The result of an item that kills its worker again comes from
    `on_worker_death`.

    A worker of an existing scheduler that cannot do the work (it has another version of this package, or the function
    raises `UnfitWorkerError`) is retired with a warning, and another worker does its batch.

    Args:
        function: Runs in a worker. The function, its batches and its results must be picklable.
        batches: The batches.
        on_worker_death: Makes, in this process, the result of an item whose worker died.
        workers: Worker processes of this machine, or an existing Dask scheduler.
        refresh: Updates a batch after a worker reported that it is unfit for it. If the new batch differs, the
            batch was at fault and the worker is kept.

    Raises:
        ClusterError: The scheduler cannot be reached, was lost, or has only unfit workers.
    """
    from distributed import KilledWorker

    with workers.open() as pool:
        queue = _BatchQueue(pool, function, batches)
        queue.fill()
        for call in queue.finished():
            try:
                reply = pool.reply(call.future)
            except KilledWorker:
                if call.alone:
                    yield on_worker_death(call.batch[0])
                else:
                    queue.isolate(call.batch)
                queue.fill()
                continue
            if reply.unfit is None:
                yield reply.value
                queue.fill()
                continue
            batch = refresh(call.batch)
            queue.put_back(batch, alone=call.alone)
            call.future.release()  # Dask retires no worker that holds a result that is still needed
            # As long as the worker is there, it would get the batch again: let its other calls finish first.
            if batch != call.batch or pool.retire(reply) or not queue.in_flight:
                queue.fill()


class _Call(NamedTuple):
    """A batch in flight; `alone`: it is a single suspected item with the cluster to itself."""

    future: Any
    batch: Sequence[Any]
    alone: bool


class _BatchQueue(Generic[T]):
    """The batches of one run: those to come, those put back, those in flight, and items suspected of killing a worker.

    Attributes:
        in_flight: Future → its call.
    """

    def __init__(
        self, pool: WorkerPool, function: Callable[[Sequence[T]], Any], batches: Iterable[Sequence[T]]
    ) -> None:
        from distributed import as_completed

        self._pool, self._function = pool, function
        self._coming = iter(batches)
        self._put_back: deque[Sequence[T]] = deque()
        self._suspects: deque[T] = deque()
        self._completed = as_completed()  # type: ignore[no-untyped-call]
        self.in_flight: dict[Any, _Call] = {}

    def fill(self) -> None:
        """Submit batches until every thread has two. Suspects follow one by one, when nothing else is in flight."""
        capacity = _BATCHES_PER_THREAD * max(1, self._pool.threads())
        while len(self.in_flight) < capacity and (batch := self._next()) is not None:
            self._submit(batch)
        if not self.in_flight and self._suspects:
            self._submit([self._suspects.popleft()], alone=True)

    def finished(self) -> Iterator[_Call]:
        """Yield calls as they finish, until nothing is in flight."""
        for future in self._completed:
            yield self.in_flight.pop(future)

    def put_back(self, batch: Sequence[T], *, alone: bool) -> None:
        """Take back a batch that was not done."""
        if alone:
            self._suspects.extend(batch)
        else:
            self._put_back.append(batch)

    def isolate(self, batch: Sequence[T]) -> None:
        """Set aside the items of a batch whose worker died, to be tried one by one."""
        self._suspects.extend(batch)

    def _next(self) -> Sequence[T] | None:
        return self._put_back.popleft() if self._put_back else next(self._coming, None)

    def _submit(self, batch: Sequence[T], *, alone: bool = False) -> None:
        future = self._pool.submit(self._function, batch)
        self.in_flight[future] = _Call(future, batch, alone)
        self._completed.add(future)  # type: ignore[no-untyped-call]
