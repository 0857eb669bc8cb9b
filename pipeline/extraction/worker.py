"""What one worker does with a batch of clips: look whether there is anything to do, extract, store, report.

Runs in Dask workers and without Dask alike; everything that goes in and out is plain data.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.manifests.locate import Source
from bmlpipe.manifests.schema import Clip
from bmlpipe.pipeline.extraction.clip_timeout import TimeLimit
from bmlpipe.pipeline.extraction.freed_memory import keep_freed_memory
from bmlpipe.pipeline.front_ends.clip import extract_clip
from bmlpipe.pipeline.front_ends.features import Features
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.flow_images import identity, quick_check, same_images
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
from bmlpipe.pipeline.media.source_file import SourceFile
from bmlpipe.pipeline.store.feature_file import FeatureStore, Stored, StoreError, StoreWriteError
from bmlpipe.pipeline.store.ledger import Row
from bmlpipe.pipeline.store.versions import software
from bmlpipe.shards.kinds import KINDS
from bmlpipe.shards.sample import digest

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Which features to make, and how; None: that one is not wanted.

    Attributes:
        seconds: Length of the front ends in seconds; None: the whole clip (no sound then).
        ffmpeg: Decode with this program; None: with PyAV. Software decoders give the same features, so only hardware
            is one of their parameters.
    """

    seconds: int | None
    frames: FrameOptions | None = None
    spectrogram: SpectrogramOptions | None = None
    flow: FlowOptions | None = None
    rgb_diff: RgbDiffOptions | None = None
    waveform: WaveformOptions | None = None
    ffmpeg: FFmpeg | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and self.seconds < 1:
            raise OptionError(f"seconds is {self.seconds}: must be at least 1")
        if (self.spectrogram or self.waveform) and self.seconds is None:
            raise OptionError("sound has a fixed length: give it with --seconds (10 for 257×1004, 3 for 257×299)")
        if not self.parameters:
            raise OptionError(f"no feature is wanted: name at least one of {', '.join(KINDS)}")

    @cached_property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Feature kind → everything that determines its values."""
        found: dict[str, dict[str, Any]] = {}
        if self.frames is not None:
            found["frames"] = {**self.frames.parameters(), "seconds": self.seconds}
        if self.spectrogram is not None and self.seconds is not None:
            found["spectrogram"] = self.spectrogram.parameters(self.seconds)
        if self.flow is not None:
            found["flow"] = {**self.flow.parameters(), "seconds": self.seconds}
        if self.rgb_diff is not None:
            found["rgb_diff"] = {**self.rgb_diff.parameters(), "seconds": self.seconds}
        if self.waveform is not None and self.seconds is not None:
            found["waveform"] = self.waveform.parameters(self.seconds)
        if self.ffmpeg is not None and self.ffmpeg.hwaccel is not None:
            for kind in found.keys() & {"frames", "flow", "rgb_diff"}:
                found[kind]["hwaccel"] = self.ffmpeg.hwaccel
        return found

    @property
    def flow_images(self) -> Path | None:
        """Folder of the ready-made flow images that are wanted."""
        return None if self.flow is None else self.flow.images

    @cached_property
    def sha256(self) -> str:
        """Hash of all parameters."""
        return digest(self.parameters)

    def only(self, kinds: set[str]) -> Recipe:
        """The same recipe for some of its feature kinds."""
        dropped = {kind: None for kind in KINDS if kind not in kinds}
        return replace(self, **dropped)


@dataclass(frozen=True, slots=True)
class Task:
    """One clip to be extracted, and the file it lies in."""

    clip: Clip
    source: Source

    def row(self, recipe: Recipe, videos: Path, **values: str) -> Row:
        """The clip's ledger row, with these values of other columns.

        Args:
            recipe: What was asked for.
            videos: Folder that the source's name is relative to.
            values: Column → value.
        """
        name = os.path.relpath(self.source.video, videos)
        common = {"status": "ok", "source": name, "parameters": recipe.sha256}
        return Row(self.clip.id, self.clip.split, **{**common, **values})

    def stamp(self, flow_images: Path | None = None) -> str:
        """Size and modification time of the clip's files, and its stretch: equal stamps mean that nothing has changed.

        Args:
            flow_images: Folder of ready-made flow images, where they are wanted: number, size and newest modification
                time of the clip's images are part of the stamp then.

        Raises:
            OSError: A file is gone or cannot be looked at.
        """
        stats = [f"{status.st_size}:{status.st_mtime_ns}" for status in map(os.stat, self.files)]
        start, duration = self.clip.start, self.clip.duration
        if start != 0 or duration is not None:
            stats.append(f"{start!r}+{duration!r}")
        if flow_images is not None:
            stats.append("images:{}:{}:{}".format(*quick_check(flow_images, self.source.video)))
        return " ".join(stats)

    @property
    def files(self) -> tuple[Path, ...]:
        """Video file and, where there is one, the separate sound file."""
        return (self.source.video,) if self.source.audio is None else (self.source.video, self.source.audio)


def extract_batch(
    tasks: Sequence[Task], recipe: Recipe, out: Path, videos: Path, limit: TimeLimit | None = None
) -> list[Row]:
    """Extract clips one after the other; a bad clip becomes a row and the next one is taken.

    Args:
        tasks: Clips.
        recipe: What to make of them.
        out: Feature folder.
        videos: Folder that the ledger's source names are relative to.
        limit: Time that a clip may take before this process is ended; None: any.

    Returns:
        A ledger row for each clip, in order.

    Raises:
        StoreWriteError: The feature folder cannot be written (full disk, no permission): the run must stop, nothing
            is lost.
    """
    keep_freed_memory()
    store = FeatureStore(out)
    rows = []
    for task in tasks:
        with limit.watch(task.clip.id) if limit else nullcontext():
            rows.append(_row(task, recipe, store, videos))
    return rows


def _row(task: Task, recipe: Recipe, store: FeatureStore, videos: Path) -> Row:
    row = task.row(recipe, videos)
    try:
        row = replace(row, stamp=task.stamp(recipe.flow_images))
        flags = _bring_up_to_date(task, recipe, store)
    except StoreWriteError:
        raise
    except ClipError as error:
        return replace(row, status="failed", reason=error.reason, message=error.message)
    except OSError as error:
        return replace(row, status="failed", reason="unreadable_file", message=str(error))
    except MemoryError as error:
        return replace(row, status="failed", reason="out_of_memory", message=str(error) or "no memory for this clip")
    except Exception as error:  # a fault of ours must cost one clip, not a night
        _logger.exception("internal error in clip %s", task.clip.id)
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return replace(row, status="failed", reason="internal_error", message=message)
    return replace(row, flags=" ".join(flags))


def _bring_up_to_date(task: Task, recipe: Recipe, store: FeatureStore) -> tuple[str, ...]:
    """Extract what is missing or was made otherwise, keep the rest; returns the clip's flags."""
    clip, wanted = task.clip, recipe.parameters
    old = _usable(task, store)
    missing = {kind for kind in wanted if old is None or old.parameters.get(kind) != wanted[kind]}
    images = recipe.flow_images
    if old is not None and images is not None and not same_images(old.flow_images, images, task.source.video):
        missing.add("flow")
    if old is not None and not missing:
        return old.features.flags
    kept = old.parameters.keys() - missing if old is not None else set()
    if kept:
        try:
            old = store.read(clip.id, kept)
        except StoreError:  # damaged behind its attributes
            kept, missing = set(), set(wanted)
    sources = tuple(SourceFile.of(path) for path in task.files)  # first: a file that changes meanwhile is taken again
    part = recipe.only(missing)
    about_images = old.flow_images if old is not None and "flow" in kept else None
    if part.flow_images is not None:
        about_images = identity(part.flow_images, task.source.video)
    features = extract_clip(
        task.source.video,
        audio=task.source.audio,
        start=clip.start,
        duration=clip.duration,
        seconds=recipe.seconds,
        frames=part.frames,
        spectrogram=part.spectrogram,
        flow=part.flow,
        rgb_diff=part.rgb_diff,
        waveform=part.waveform,
        ffmpeg=recipe.ffmpeg,
    )
    parameters, versions = dict(part.parameters), dict.fromkeys(missing, software())
    if recipe.ffmpeg is not None:
        versions = {kind: {**packages, **recipe.ffmpeg.software()} for kind, packages in versions.items()}
    if old is not None and kept:
        features = _merged(old.features, features)
        parameters |= {kind: old.parameters[kind] for kind in kept}
        versions |= {kind: old.software[kind] for kind in kept}
    stretch = (clip.start, clip.duration)
    store.write(Stored(clip.id, stretch, sources, parameters, features, versions, about_images))
    return features.flags


def _usable(task: Task, store: FeatureStore) -> Stored | None:
    """The provenance of what is stored, if it was made from the same stretch of the same bytes."""
    try:
        old = store.read(task.clip.id, ())
    except StoreError:
        return None
    wanted = (task.clip.id, (task.clip.start, task.clip.duration), len(task.files))
    if (old.id, old.clip, len(old.sources)) != wanted:
        return None
    return old if all(file.same_content(path) for file, path in zip(old.sources, task.files)) else None


def _merged(old: Features, new: Features) -> Features:
    return Features(
        frames=new.frames or old.frames,
        spectrogram=new.spectrogram or old.spectrogram,
        flow=new.flow or old.flow,
        rgb_diff=new.rgb_diff or old.rgb_diff,
        waveform=new.waveform or old.waveform,
        flags=tuple(sorted({*old.flags, *new.flags})),
        media={**old.media, **new.media},
    )
