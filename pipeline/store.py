"""The feature store: one HDF5 file a clip, complete or not there, with its provenance inside.

Layout of a file (format version 1): root attributes `id`, `clip`, `source`, `flags`, `media`, `software` (JSON); one
group a feature kind with attribute `parameters` (JSON) and `parameters_sha256`:

- `frames`: `jpeg` (uint8, all JPEGs one after the other), `ends` (int64), `times` (float64, s);
- `spectrogram`: `values` (float16, bins × windows);
- `flow`: as `frames`, JPEGs in the order instant, step, x before y; attributes `stack` and `bound`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bmlpipe.pipeline.features import Features, Flow, Frames, Spectrogram
from bmlpipe.shards.spec import digest, key_of

_FORMAT, _VERSION = "bmlpipe-features", 1
_TEMPORARY = ".writing"


class StoreError(Exception):
    """A feature file that is missing, damaged or of another format."""


class StoreWriteError(Exception):
    """The feature folder cannot be written: no clip's fault, so the run must stop."""


@dataclass(frozen=True)
class SourceFile:
    """A source file's identity: size and modification time as the quick check, SHA-256 as the sure one."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Read a file's identity.

        Raises:
            OSError: The file cannot be read.
        """
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return cls(path.name, status.st_size, status.st_mtime_ns, _sha256(file))

    def same_content(self, path: Path) -> bool:
        """Whether the file still holds the same bytes (hashed only where size is equal and time is not)."""
        status = path.stat()
        if status.st_size != self.bytes:
            return False
        return status.st_mtime_ns == self.mtime_ns or SourceFile.of(path).sha256 == self.sha256


@dataclass(frozen=True)
class Stored:
    """A feature file's contents.

    Attributes:
        id: Clip id.
        clip: Start and duration that were asked for: [seconds, seconds or None].
        sources: Video file and, where there was one, separate sound file.
        parameters: Feature kind → parameters it was made with.
        features: The features.
    """

    id: str
    clip: tuple[float, float | None]
    sources: tuple[SourceFile, ...]
    parameters: dict[str, dict[str, Any]]
    features: Features


class FeatureStore:
    """Feature files below a folder, spread over 256 sub-folders.

    Args:
        folder: Root of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, clip_id: str) -> Path:
        """Where a clip's file is or would be."""
        fan = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).hexdigest()[:2]
        return self.folder / "clips" / fan / f"{key_of(clip_id)}.h5"

    def write(self, stored: Stored, software: Mapping[str, str]) -> None:
        """Write a clip's file under a temporary name, then rename it.

        Raises:
            StoreWriteError: The disk is full or the folder cannot be written.
        """
        path = self.path(stored.id)
        temporary = path.with_name(f"{path.name}.{os.getpid()}{_TEMPORARY}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(temporary, "w", libver="latest") as file:
                _fill(file, stored, software)
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # h5py reports a full disk as either
            temporary.unlink(missing_ok=True)
            raise StoreWriteError(
                f"{path} cannot be written ({error}): free space or permissions, then run the same command again; "
                "what is done stays done"
            ) from error

    def read(self, clip_id: str, kinds: Iterable[str] | None = None) -> Stored:
        """Read a clip's features.

        Args:
            clip_id: Clip id.
            kinds: Feature kinds to load, None for all that are there; () for provenance only.

        Raises:
            StoreError: There is no file, it cannot be read, or a wanted kind is not in it.
        """
        path = self.path(clip_id)
        try:
            with h5py.File(path, "r") as file:
                return _load(file, kinds)
        except FileNotFoundError as error:
            raise StoreError(f"{path} is missing: run bmlpipe extract again") from error
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise StoreError(
                f"{path} cannot be read ({type(error).__name__}: {error}): delete it and extract again"
            ) from error

    def sweep(self) -> int:
        """Remove temporary files that a killed run left; returns their number."""
        rest = list((self.folder / "clips").glob(f"??/*{_TEMPORARY}"))
        for path in rest:
            path.unlink(missing_ok=True)
        return len(rest)


def _sha256(file: Any) -> str:
    whole = hashlib.sha256()
    while block := file.read(1 << 20):
        whole.update(block)
    return whole.hexdigest()


def _fill(file: h5py.File, stored: Stored, software: Mapping[str, str]) -> None:
    features = stored.features
    file.attrs["format"], file.attrs["version"], file.attrs["id"] = _FORMAT, _VERSION, stored.id
    about = {
        "clip": stored.clip,
        "source": [asdict(source) for source in stored.sources],
        "flags": features.flags,
        "media": features.media,
        "software": dict(software),
    }
    for name, value in about.items():
        file.attrs[name] = json.dumps(value, sort_keys=True, allow_nan=False)
    for kind, parameters in stored.parameters.items():
        group = file.create_group(kind)
        group.attrs["parameters"] = json.dumps(parameters, sort_keys=True, allow_nan=False)
        group.attrs["parameters_sha256"] = digest(parameters)
    if features.frames is not None:
        _put_pictures(file["frames"], features.frames.jpegs, features.frames)
    if features.spectrogram is not None:
        file["spectrogram"]["values"] = features.spectrogram.values
    if features.flow is not None:
        fields = [image for instant in features.flow.jpegs for pair in instant for image in pair]
        _put_pictures(file["flow"], fields, features.flow)
        file["flow"].attrs["stack"] = len(features.flow.jpegs[0])
        file["flow"].attrs["bound"] = features.flow.bound


def _put_pictures(group: h5py.Group, jpegs: Iterable[bytes], about: Frames | Flow) -> None:
    images = list(jpegs)
    group["jpeg"] = np.frombuffer(b"".join(images), dtype=np.uint8)
    group["ends"] = np.cumsum([len(image) for image in images], dtype=np.int64)
    group["times"] = np.asarray(about.times, dtype=np.float64)
    group.attrs["height"], group.attrs["width"] = about.height, about.width


def _pictures(group: h5py.Group) -> tuple[list[bytes], tuple[float, ...], int, int]:
    whole = group["jpeg"][()].tobytes()
    ends = group["ends"][()].tolist()
    images = [whole[start:end] for start, end in zip([0, *ends[:-1]], ends)]
    return images, tuple(group["times"][()].tolist()), int(group.attrs["height"]), int(group.attrs["width"])


def _load(file: h5py.File, kinds: Iterable[str] | None) -> Stored:
    if file.attrs["format"] != _FORMAT or file.attrs["version"] != _VERSION:
        raise ValueError(
            f"format {file.attrs['format']!r} version {file.attrs['version']!r}, expected {_FORMAT!r} {_VERSION}"
        )
    wanted = tuple(file) if kinds is None else tuple(kinds)
    frames = spectrogram = flow = None
    if "frames" in wanted:
        images, times, height, width = _pictures(file["frames"])
        frames = Frames(tuple(images), times, height, width)
    if "spectrogram" in wanted:
        spectrogram = Spectrogram(file["spectrogram"]["values"][()])
    if "flow" in wanted:
        images, times, height, width = _pictures(file["flow"])
        pairs = list(zip(images[::2], images[1::2]))
        stack = int(file["flow"].attrs["stack"])
        fields = tuple(tuple(pairs[start : start + stack]) for start in range(0, len(pairs), stack))
        flow = Flow(fields, times, height, width, float(file["flow"].attrs["bound"]))
    start, duration = json.loads(file.attrs["clip"])
    flags = tuple(json.loads(file.attrs["flags"]))
    return Stored(
        id=str(file.attrs["id"]),
        clip=(start, duration),
        sources=tuple(SourceFile(**source) for source in json.loads(file.attrs["source"])),
        parameters={kind: json.loads(group.attrs["parameters"]) for kind, group in file.items()},
        features=Features(frames, spectrogram, flow, flags, json.loads(file.attrs["media"])),
    )
