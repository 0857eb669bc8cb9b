"""On other hosts: every worker must see the videos and the feature folder as the process does that plans the run.

A host where a folder is not mounted, or not any more, would turn every clip that it is given into a failed one, and
fast. So each batch carries what its files look like from here, and a worker that sees something else gives it back.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bmlpipe.pipeline.cluster.batches import map_batches
from bmlpipe.pipeline.cluster.worker_checks import UnfitWorkerError
from bmlpipe.pipeline.cluster.worker_pool import ExistingScheduler
from bmlpipe.pipeline.extraction.worker import Recipe, Task
from bmlpipe.pipeline.media.ffmpeg_program import FFmpegError
from bmlpipe.pipeline.store.feature_file import StoreWriteError, writing
from bmlpipe.pipeline.store.ledger import Row

_MARKER = ".run-"


def map_on_scheduler(
    function: Callable[[Sequence[Task]], list[Row]],
    batches: Iterable[Sequence[Task]],
    died: Callable[[Task], list[Row]],
    *,
    recipe: Recipe,
    out: Path,
    scheduler: str,
) -> Generator[list[Row], None, None]:
    """`cluster.map_batches` on an existing scheduler, whose workers must see these folders.

    Args:
        function: As there.
        batches: As there.
        died: As there.
        recipe: Whose other needs are looked after: ready-made flow images, an ffmpeg program.
        out: Feature folder.
        scheduler: As there.

    Raises:
        ClusterError: As there.
        StoreWriteError: The feature folder cannot be written.
    """
    with marked(out) as marker:
        results = map_batches(
            OnSharedFolders(function, recipe, marker),
            ([Seen.now(task) for task in batch] for batch in batches),
            lambda seen: died(seen.task),
            ExistingScheduler(scheduler),
            refresh=lambda batch: [seen.again() for seen in batch],
        )
        with closing(results):
            yield from results


@dataclass(frozen=True)
class Seen:
    """A clip and the sizes of its files in bytes, as they are seen from here; None: a file that comes or goes."""

    task: Task
    sizes: tuple[int | None, ...]

    @classmethod
    def now(cls, task: Task) -> Seen:
        """A clip as its files are at this moment."""
        return cls(task, tuple(map(_size, task.files)))

    def again(self) -> Seen:
        """The clip without the sizes that have changed since."""
        now = Seen.now(self.task).sizes
        return Seen(self.task, tuple(old if old == new else None for old, new in zip(self.sizes, now, strict=True)))


@dataclass(frozen=True)
class OnSharedFolders:
    """The work on a batch, where the worker sees what is seen here.

    Attributes:
        function: The work.
        recipe: Whose other needs are looked after: ready-made flow images, an ffmpeg program.
        marker: A file in the feature folder, made for this run.
    """

    function: Callable[[Sequence[Task]], list[Row]]
    recipe: Recipe
    marker: Path

    def __call__(self, batch: Sequence[Seen]) -> list[Row]:
        """Do the work.

        Raises:
            UnfitWorkerError: This worker does not see what is seen here, before the work or after it went wrong.
            StoreWriteError: The feature folder cannot be written, by any worker.
        """
        self._look(batch)
        try:
            rows = self.function([seen.task for seen in batch])
        except StoreWriteError:
            self._look(batch)
            raise
        if any(row.reason == "unreadable_file" for row in rows):
            self._look(batch)
        return rows

    def _look(self, batch: Sequence[Seen]) -> None:
        if not self.marker.exists():
            raise UnfitWorkerError(
                f"it does not see the feature folder {self.marker.parent} as it is seen here: mount the same one there"
            )
        _try_to_write(self.marker)
        for seen in batch:
            for path, size in zip(seen.task.files, seen.sizes, strict=True):
                there = _size(path)
                if size is not None and there != size:
                    what = "does not see it" if there is None else f"sees {there}"
                    raise UnfitWorkerError(
                        f"{path} has {size} bytes here, it {what}: mount the same folder of videos at the same place"
                    )
        images = self.recipe.flow_images
        if images is not None and _empty(images):
            raise UnfitWorkerError(f"it sees no flow images in {images}: mount the same folder at the same place")
        if self.recipe.ffmpeg is not None:
            try:
                self.recipe.ffmpeg.program()
            except FFmpegError as error:
                raise UnfitWorkerError(str(error)) from error


@contextmanager
def marked(out: Path) -> Iterator[Path]:
    """A file in the feature folder by which workers know it, for the length of a `with` block.

    Raises:
        StoreWriteError: The folder cannot be written.
    """
    with writing(out):
        for left in out.glob(f"{_MARKER}*"):  # by killed runs
            left.unlink(missing_ok=True)
        marker = out / f"{_MARKER}{uuid.uuid4().hex}"  # no host has looked for this name before: nothing is cached
        marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


@cache
def _try_to_write(marker: Path) -> None:
    """Once a worker and run."""
    path = marker.with_name(f"{marker.name}-{uuid.uuid4().hex}")
    try:
        path.touch()
        path.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of the folder, not of the host
            with writing(path):
                raise
        raise UnfitWorkerError(
            f"it cannot write into {marker.parent} ({error.strerror}): mount it writable, for the same user"
        ) from error


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _empty(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is None
    except OSError:
        return True
