"""The feature store: one HDF5 file per clip, which is complete or does not exist, with its provenance inside.

Layout of a file (format version 1): root attributes `id`, `clip`, `source`, `flags` and `media` (JSON), and one group
per feature kind with the attributes `parameters`, `software` (JSON) and `parameters_sha256`. A group holds the
data sets of its kind's `Storage`, all with checksums:

- pictures: `jpeg` (uint8, all JPEGs one after the other, ordered by instant, step and component), `ends` (int64, where
  each JPEG ends) and `times` (float64, seconds); attributes `height`, `width` and, if the kind has them, `stack` and
  `bound`;
- an array: `values`;
- sound: `flac` (uint8, the bytes of the FLAC file).

A kind that was made from companion files, such as precomputed flow images, has their identity as the attribute `images`
(JSON).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy.typing as npt

from bmlpipe.manifests.common.files import write_atomically
from bmlpipe.pipeline.front_ends.features import FEATURE_TYPES, ClipFeatures, Feature
from bmlpipe.pipeline.media.source_file import SourceFile
from bmlpipe.pipeline.store.errors import StoreError, StoreWriteError
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.shards.kinds import KINDS, FeatureKind
from bmlpipe.shards.sample import digest

_FORMAT, _VERSION = "bmlpipe-features", 1

# Attributes of a kind's group that are provenance and not part of the feature.
_PARAMETERS, _PARAMETERS_SHA256, _SOFTWARE, _COMPANION = "parameters", "parameters_sha256", "software", "images"
_PROVENANCE = {_PARAMETERS, _PARAMETERS_SHA256, _SOFTWARE, _COMPANION}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write a file of the feature folder into a `StoreWriteError`."""
    try:
        yield
    except OSError as error:
        raise StoreWriteError(
            f"{path} cannot be written ({error}): free disk space or correct the permissions, then run the same "
            "command again; features that are stored stay stored"
        ) from error


@dataclass(frozen=True)
class StoredClip:
    """The contents of a feature file.

    Attributes:
        id: Clip id.
        clip: Start and duration of the clip in its file: (seconds, seconds or None).
        sources: The video file and, if there was one, the separate sound file.
        parameters: Feature kind → parameters it was made with.
        features: The features, their flags and the properties of the media.
        software: Feature kind → package → version it was made with.
        companions: Feature kind → identity of the companion files it was made from; only kinds that have such files.
    """

    id: str
    clip: tuple[float, float | None]
    sources: tuple[SourceFile, ...]
    parameters: dict[str, dict[str, Any]]
    features: ClipFeatures
    software: dict[str, dict[str, str]] = field(default_factory=dict)
    companions: dict[str, SourceFile] = field(default_factory=dict)

    def with_kept(self, old: StoredClip, kinds: Collection[str]) -> StoredClip:
        """Return this clip with some feature kinds added that were stored before.

        Args:
            old: The stored clip, with the features of `kinds` only.
            kinds: The kinds to keep.
        """
        return replace(
            self,
            parameters=self.parameters | {kind: old.parameters[kind] for kind in kinds},
            features=old.features.updated(self.features),
            software=self.software | {kind: old.software[kind] for kind in kinds},
            companions=self.companions | {kind: files for kind, files in old.companions.items() if kind in kinds},
        )


class FeatureStore:
    """The feature files of a feature folder.

    Args:
        folder: The feature folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = FeatureFolder(folder)

    def path(self, clip_id: str) -> Path:
        """Return the path of a clip's file, whether or not it exists."""
        return self.folder.clip(clip_id)

    def write(self, stored: StoredClip) -> None:
        """Write or replace a clip's file as a whole.

        Raises:
            StoreWriteError: The disk is full or the folder cannot be written.
        """
        path = self.path(stored.id)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _encode(stored), concurrent=True)

    def read(self, clip_id: str, kinds: Iterable[str] | None = None) -> StoredClip:
        """Read a clip's features.

        Args:
            clip_id: Clip id.
            kinds: Feature kinds to load; None: all that are stored; empty: provenance only.

        Raises:
            StoreError: There is no file, it is damaged or of another format, or it lacks one of these kinds.
        """
        path = self.path(clip_id)
        try:
            with h5py.File(path, "r") as file:
                return _load(file, kinds)
        except FileNotFoundError as error:
            raise StoreError(f"{path} is missing: run bmlpipe extract again") from error
        except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
            raise StoreError(
                f"{path} cannot be read ({type(error).__name__}: {error}): delete it and run bmlpipe extract again"
            ) from error

    def remove_leftovers(self) -> None:
        """Remove temporary files that killed runs left behind."""
        for path in self.folder.leftovers():
            path.unlink(missing_ok=True)


def _encode(stored: StoredClip) -> bytes:
    """Encode the file in memory, because libhdf5 can crash the process when a disk is full."""
    with h5py.File("image", "w", driver="core", backing_store=False, libver="latest") as file:
        _fill(file, stored)
        file.flush()
        return bytes(file.id.get_file_image())


def _fill(file: h5py.File, stored: StoredClip) -> None:
    file.attrs["version"] = _VERSION
    _put_text(file, "format", _FORMAT)
    _put_text(file, "id", stored.id)
    attributes = {
        "clip": stored.clip,
        "source": [asdict(source) for source in stored.sources],
        "flags": stored.features.flags,
        "media": stored.features.media,
    }
    for name, value in attributes.items():
        _put_json(file, name, value)
    for kind, parameters in sorted(stored.parameters.items()):  # the same bytes in any order of the kinds
        group = file.create_group(kind)
        _put_json(group, _PARAMETERS, parameters)
        _put_text(group, _PARAMETERS_SHA256, digest(parameters))
        _put_json(group, _SOFTWARE, stored.software.get(kind, {}))
    for kind in KINDS:
        if kind in stored.features.features:
            _fill_group(file[kind], stored.features[kind])
            if kind in stored.companions:
                _put_json(file[kind], _COMPANION, asdict(stored.companions[kind]))


def _fill_group(group: h5py.Group, feature: Feature) -> None:
    for name, values in feature.datasets().items():
        _put(group, name, values)
    for name, number in feature.attributes().items():
        group.attrs[name] = number


def _put_text(group: h5py.Group, name: str, text: str) -> None:
    raw = text.encode()  # of fixed length: HDF5 stores strings of variable length where it keeps no checksums
    group.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", len(raw)))


def _put_json(group: h5py.Group, name: str, value: Any) -> None:
    _put_text(group, name, json.dumps(value, sort_keys=True, allow_nan=False))


def _put(group: h5py.Group, name: str, values: npt.NDArray[Any]) -> None:
    group.create_dataset(name, data=values, chunks=values.shape, fletcher32=True)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def _load(file: h5py.File, kinds: Iterable[str] | None) -> StoredClip:
    name, version = _text(file.attrs["format"]), int(file.attrs["version"])
    if (name, version) != (_FORMAT, _VERSION):
        raise ValueError(f"format {name!r} version {version}, expected {_FORMAT!r} version {_VERSION}")
    chosen = set(KINDS).intersection(file) if kinds is None else set(kinds)
    if absent := [kind for kind in chosen if kind not in file]:
        raise StoreError(
            f"{file.filename} holds {', '.join(file)} but not {', '.join(absent)}: extract these kinds in one command "
            "(bmlpipe extract --kinds); kinds that are stored are kept"
        )
    start, duration = json.loads(file.attrs["clip"])
    features = {name: _feature(file[name], kind) for name, kind in KINDS.items() if name in chosen}
    companions = {kind: group.attrs[_COMPANION] for kind, group in file.items() if _COMPANION in group.attrs}
    return StoredClip(
        id=_text(file.attrs["id"]),
        clip=(start, duration),
        sources=tuple(SourceFile(**source) for source in json.loads(file.attrs["source"])),
        parameters={kind: json.loads(group.attrs[_PARAMETERS]) for kind, group in file.items()},
        features=ClipFeatures(features, json.loads(file.attrs["flags"]), json.loads(file.attrs["media"])),
        software={kind: json.loads(group.attrs.get(_SOFTWARE, "{}")) for kind, group in file.items()},
        companions={kind: SourceFile(**json.loads(identity)) for kind, identity in companions.items()},
    )


def _feature(group: h5py.Group, kind: FeatureKind) -> Feature:
    datasets = {name: dataset[()] for name, dataset in group.items()}
    numbers = {name: value.item() for name, value in group.attrs.items() if name not in _PROVENANCE}
    return FEATURE_TYPES[kind.storage].from_stored(datasets, numbers)
