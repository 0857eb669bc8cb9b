"""Workers on other hosts: each must see the videos and the feature folder as the planning process sees them.

A host on which a folder is not mounted would quickly turn every clip that it is given into a failed one. So each batch
carries the sizes of its files as this process sees them, and a worker that sees other sizes returns the batch.
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
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.task import ClipTask
from bmlpipe.pipeline.media.ffmpeg_program import FFmpegError
from bmlpipe.pipeline.store.errors import StoreWriteError
from bmlpipe.pipeline.store.feature_file import writing
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.pipeline.store.ledger import LedgerRow


def map_on_scheduler(
    function: Callable[[Sequence[ClipTask]], list[LedgerRow]],
    batches: Iterable[Sequence[ClipTask]],
    died: Callable[[ClipTask], list[LedgerRow]],
    *,
    request: ExtractionRequest,
    out: Path,
    scheduler: str,
) -> Generator[list[LedgerRow], None, None]:
    """Run `map_batches` on an existing scheduler, with workers that see the same folders as this process.

    Args:
        function: See `map_batches`.
        batches: See `map_batches`.
        died: See `map_batches`.
        request: The features to make of each clip. The workers' hosts need its companion files and its ffmpeg program.
        out: Feature folder.
        scheduler: Address of the scheduler, or `file://` and the path of its scheduler file.

    Raises:
        ClusterError: See `map_batches`.
        StoreWriteError: The feature folder cannot be written.
    """
    with run_marker(out) as marker:
        results = map_batches(
            OnSharedFolders(function, request, marker),
            ([TaskFiles.seen_now(task) for task in batch] for batch in batches),
            lambda files: died(files.task),
            ExistingScheduler(scheduler),
            refresh=lambda batch: [files.seen_again() for files in batch],
        )
        with closing(results):
            yield from results


@dataclass(frozen=True)
class TaskFiles:
    """A clip, and the sizes of its files as the planning process sees them.

    Attributes:
        task: The clip.
        sizes: Size of each file in bytes; None: the file does not exist or is changing, so it is not compared.
    """

    task: ClipTask
    sizes: tuple[int | None, ...]

    @classmethod
    def seen_now(cls, task: ClipTask) -> TaskFiles:
        """Record the present sizes of a clip's files."""
        return cls(task, tuple(map(_size, task.files)))

    def seen_again(self) -> TaskFiles:
        """Drop those sizes that have changed since."""
        now = TaskFiles.seen_now(self.task).sizes
        return TaskFiles(
            self.task, tuple(old if old == new else None for old, new in zip(self.sizes, now, strict=True))
        )


@dataclass(frozen=True)
class OnSharedFolders:
    """A function on batches that first checks that its worker sees the same files as the planning process.

    Attributes:
        function: The function.
        request: The features to make of each clip. The worker's host needs its companion files and its ffmpeg program.
        marker: A file in the feature folder that was made for this run.
    """

    function: Callable[[Sequence[ClipTask]], list[LedgerRow]]
    request: ExtractionRequest
    marker: Path

    def __call__(self, batch: Sequence[TaskFiles]) -> list[LedgerRow]:
        """Call the function on a batch.

        Raises:
            UnfitWorkerError: This worker does not see the same files, before the call or after it failed.
            StoreWriteError: No worker can write the feature folder.
        """
        self._check(batch)
        try:
            rows = self.function([files.task for files in batch])
        except StoreWriteError:
            self._check(batch)
            raise
        if any(row.reason == "unreadable_file" for row in rows):
            self._check(batch)
        return rows

    def _check(self, batch: Sequence[TaskFiles]) -> None:
        if not self.marker.exists():
            raise UnfitWorkerError(
                f"it does not see the feature folder {self.marker.parent} of this run: mount the same folder there"
            )
        _check_writable(self.marker)
        for files in batch:
            for path, size in zip(files.task.files, files.sizes, strict=True):
                seen = _size(path)
                if size is not None and seen != size:
                    what = "does not see it" if seen is None else f"sees {seen}"
                    raise UnfitWorkerError(
                        f"{path} has {size} bytes here, it {what}: mount the same folder of videos at the same place"
                    )
        for options in self.request.front_ends:
            folder = options.companion_folder
            if folder is not None and _empty(folder):
                raise UnfitWorkerError(
                    f"it sees no files for {options.kind} in {folder}: mount the same folder at the same place"
                )
        if self.request.ffmpeg is not None:
            try:
                self.request.ffmpeg.program()
            except FFmpegError as error:
                raise UnfitWorkerError(str(error)) from error


@contextmanager
def run_marker(out: Path) -> Iterator[Path]:
    """Create a file in the feature folder by which workers recognise it; it is removed when the block ends.

    Raises:
        StoreWriteError: The folder cannot be written.
    """
    folder = FeatureFolder(out)
    with writing(out):
        for leftover in out.glob(folder.run_marker("*").name):  # of killed runs
            leftover.unlink(missing_ok=True)
        marker = folder.run_marker(uuid.uuid4().hex)  # a new name, which no host can have cached as missing
        marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


@cache
def _check_writable(marker: Path) -> None:
    """Check once per worker and run that the feature folder can be written."""
    path = marker.with_name(f"{marker.name}-{uuid.uuid4().hex}")
    try:
        path.touch()
        path.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a fault of the folder, not of the host
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
