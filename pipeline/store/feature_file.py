"""The feature store: one HDF5 file a clip, complete or not there, with its provenance inside.

Layout of a file (format version 1): root attributes `id`, `clip`, `source`, `flags`, `media` (JSON); one group a
feature kind with attributes `parameters`, `software` (JSON) and `parameters_sha256`; data sets have checksums:

- `frames`: `jpeg` (uint8, all JPEGs one after the other), `ends` (int64), `times` (float64, s);
- `spectrogram`: `values` (float16, bins × windows);
- `flow`: as `frames`, JPEGs in the order instant, step, x before y; attributes `stack` and `bound`, and `images`
  (JSON) where it was taken from ready-made ones;
- `rgb_diff`: as `frames`, JPEGs in the order instant, step; attribute `stack`;
- `waveform`: `flac` (uint8, the FLAC file).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.manifests.common.files import TEMPORARY_SUFFIX, write_atomically
from bmlpipe.pipeline.front_ends.features import Features, Flow, Frames, RgbDiff, Spectrogram, Waveform
from bmlpipe.pipeline.media.source_file import SourceFile
from bmlpipe.shards.sample import digest, key_of

_FORMAT, _VERSION = "bmlpipe-features", 1

_Step = TypeVar("_Step")


class StoreError(BmlpipeError):
    """A feature file that is missing, damaged or of another format."""


class StoreWriteError(BmlpipeError):
    """The feature folder cannot be written: no clip's fault, so the run must stop."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the failure to write a file of the feature folder into a `StoreWriteError`."""
    try:
        yield
    except OSError as error:
        raise StoreWriteError(
            f"{path} cannot be written ({error}): free space or mend permissions, then run the same command again; "
            "what is done stays done"
        ) from error


@dataclass(frozen=True)
class Stored:
    """A feature file's contents.

    Attributes:
        id: Clip id.
        clip: Start and duration that were asked for: [seconds, seconds or None].
        sources: Video file and, where there was one, separate sound file.
        parameters: Feature kind → parameters it was made with.
        features: The features.
        software: Feature kind → package → the version it was made with.
        flow_images: Identity of the ready-made images that the flow was taken from; None: it was computed.
    """

    id: str
    clip: tuple[float, float | None]
    sources: tuple[SourceFile, ...]
    parameters: dict[str, dict[str, Any]]
    features: Features
    software: dict[str, dict[str, str]] = field(default_factory=dict)
    flow_images: SourceFile | None = None


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

    def write(self, stored: Stored) -> None:
        """Write a clip's file under a temporary name, then rename it.

        Raises:
            StoreWriteError: The disk is full or the folder cannot be written.
        """
        path = self.path(stored.id)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _image(stored), concurrent=True)

    def read(self, clip_id: str, kinds: Iterable[str] | None = None) -> Stored:
        """Read a clip's features.

        Args:
            clip_id: Clip id.
            kinds: Feature kinds to load, None for all that are there; () for provenance only.

        Raises:
            StoreError: There is no file, it is damaged or of another format, or a wanted kind is not in it.
        """
        path = self.path(clip_id)
        try:
            with h5py.File(path, "r") as file:
                return _load(file, kinds)
        except FileNotFoundError as error:
            raise StoreError(f"{path} is missing: run bmlpipe extract again") from error
        except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
            raise StoreError(
                f"{path} cannot be read ({type(error).__name__}: {error}): delete it and extract again"
            ) from error

    def sweep(self) -> int:
        """Remove temporary files that a killed run left; returns their number."""
        rest = list((self.folder / "clips").glob(f"??/*{TEMPORARY_SUFFIX}"))
        for path in rest:
            path.unlink(missing_ok=True)
        return len(rest)


def _image(stored: Stored) -> bytes:
    """The file's bytes; made in memory, because libhdf5 can crash the process when a disk is full."""
    with h5py.File("image", "w", driver="core", backing_store=False, libver="latest") as file:
        _fill(file, stored)
        file.flush()
        return bytes(file.id.get_file_image())


def _fill(file: h5py.File, stored: Stored) -> None:
    features = stored.features
    file.attrs["version"] = _VERSION
    _put_text(file, "format", _FORMAT)
    _put_text(file, "id", stored.id)
    about = {
        "clip": stored.clip,
        "source": [asdict(source) for source in stored.sources],
        "flags": features.flags,
        "media": features.media,
    }
    for name, value in about.items():
        _put_json(file, name, value)
    for kind, parameters in sorted(stored.parameters.items()):  # the same bytes in whatever order they were made
        group = file.create_group(kind)
        _put_json(group, "parameters", parameters)
        _put_text(group, "parameters_sha256", digest(parameters))
        _put_json(group, "software", stored.software.get(kind, {}))
    if features.frames is not None:
        _put_pictures(file["frames"], features.frames.jpegs, features.frames)
    if features.spectrogram is not None:
        _put(file["spectrogram"], "values", features.spectrogram.values)
    if features.flow is not None:
        fields = [image for instant in features.flow.jpegs for pair in instant for image in pair]
        _put_pictures(file["flow"], fields, features.flow)
        file["flow"].attrs["stack"] = len(features.flow.jpegs[0])
        file["flow"].attrs["bound"] = features.flow.bound
        if stored.flow_images is not None:
            _put_json(file["flow"], "images", asdict(stored.flow_images))
    if features.rgb_diff is not None:
        steps = [image for instant in features.rgb_diff.jpegs for image in instant]
        _put_pictures(file["rgb_diff"], steps, features.rgb_diff)
        file["rgb_diff"].attrs["stack"] = len(features.rgb_diff.jpegs[0])
    if features.waveform is not None:
        _put(file["waveform"], "flac", np.frombuffer(features.waveform.flac, dtype=np.uint8))


def _put_text(group: h5py.Group, name: str, text: str) -> None:
    raw = text.encode()  # of fixed length: strings of variable length lie where HDF5 has no checksums
    group.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", len(raw)))


def _put_json(group: h5py.Group, name: str, value: Any) -> None:
    _put_text(group, name, json.dumps(value, sort_keys=True, allow_nan=False))


def _put(group: h5py.Group, name: str, values: npt.NDArray[Any]) -> None:
    group.create_dataset(name, data=values, chunks=values.shape, fletcher32=True)


def _put_pictures(group: h5py.Group, jpegs: Iterable[bytes], about: Frames | Flow | RgbDiff) -> None:
    images = list(jpegs)
    _put(group, "jpeg", np.frombuffer(b"".join(images), dtype=np.uint8))
    _put(group, "ends", np.cumsum([len(image) for image in images], dtype=np.int64))
    _put(group, "times", np.asarray(about.times, dtype=np.float64))
    group.attrs["height"], group.attrs["width"] = about.height, about.width


def _pictures(group: h5py.Group) -> tuple[list[bytes], tuple[float, ...], int, int]:
    whole = group["jpeg"][()].tobytes()
    ends = group["ends"][()].tolist()
    images = [whole[start:end] for start, end in zip([0, *ends[:-1]], ends)]
    return images, tuple(group["times"][()].tolist()), int(group.attrs["height"]), int(group.attrs["width"])


def _stacks(group: h5py.Group, steps: list[_Step]) -> tuple[tuple[_Step, ...], ...]:
    stack = int(group.attrs["stack"])
    return tuple(tuple(steps[start : start + stack]) for start in range(0, len(steps), stack))


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def _load(file: h5py.File, kinds: Iterable[str] | None) -> Stored:
    kind, version = _text(file.attrs["format"]), int(file.attrs["version"])
    if (kind, version) != (_FORMAT, _VERSION):
        raise ValueError(f"format {kind!r} version {version}, expected {_FORMAT!r} version {_VERSION}")
    wanted = tuple(file) if kinds is None else tuple(kinds)
    if absent := [kind for kind in wanted if kind not in file]:
        raise StoreError(
            f"{file.filename} holds {', '.join(file)} and no {', '.join(absent)}: extract these kinds in one command "
            "(bmlpipe extract --modalities), what is there is kept"
        )
    frames = spectrogram = flow = rgb_diff = waveform = None
    if "frames" in wanted:
        images, times, height, width = _pictures(file["frames"])
        frames = Frames(tuple(images), times, height, width)
    if "spectrogram" in wanted:
        spectrogram = Spectrogram(file["spectrogram"]["values"][()])
    if "flow" in wanted:
        images, times, height, width = _pictures(file["flow"])
        pairs = list(zip(images[::2], images[1::2]))
        flow = Flow(_stacks(file["flow"], pairs), times, height, width, float(file["flow"].attrs["bound"]))
    if "rgb_diff" in wanted:
        images, times, height, width = _pictures(file["rgb_diff"])
        rgb_diff = RgbDiff(_stacks(file["rgb_diff"], images), times, height, width)
    if "waveform" in wanted:
        waveform = Waveform(file["waveform"]["flac"][()].tobytes())
    ready_made = file["flow"].attrs.get("images") if "flow" in file else None
    start, duration = json.loads(file.attrs["clip"])
    flags = tuple(json.loads(file.attrs["flags"]))
    return Stored(
        id=_text(file.attrs["id"]),
        clip=(start, duration),
        sources=tuple(SourceFile(**source) for source in json.loads(file.attrs["source"])),
        parameters={kind: json.loads(group.attrs["parameters"]) for kind, group in file.items()},
        features=Features(frames, spectrogram, flow, rgb_diff, waveform, flags, json.loads(file.attrs["media"])),
        software={kind: json.loads(group.attrs.get("software", "{}")) for kind, group in file.items()},
        flow_images=SourceFile(**json.loads(ready_made)) if ready_made else None,
    )
