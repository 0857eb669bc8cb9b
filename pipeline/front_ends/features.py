"""The features of one clip: plain data between the front ends and the feature store."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from bmlpipe.shards.kinds import FeatureKind, Storage

Array = npt.NDArray[Any]


class Feature(ABC):
    """One feature kind of one clip, in the form in which it is stored. There is one subclass per `Storage`."""

    @abstractmethod
    def datasets(self) -> dict[str, Array]:
        """Return the arrays to store in the feature file: name → values."""

    def attributes(self) -> dict[str, int | float]:
        """Return the numbers to store in the feature file: name → value."""
        return {}

    @classmethod
    @abstractmethod
    def from_stored(cls, datasets: Mapping[str, Array], attributes: Mapping[str, int | float]) -> Feature:
        """Make the feature from what `datasets` and `attributes` returned.

        Raises:
            LookupError: An array or a number is missing.
        """

    @abstractmethod
    def members(self, kind: FeatureKind) -> dict[str, bytes]:
        """Encode the tar members of a sample: name → contents.

        Args:
            kind: The feature kind.
        """

    def meta(self, kind: FeatureKind) -> dict[str, Any]:
        """Return what the sample's JSON holds for this kind, often nothing.

        Args:
            kind: The feature kind.
        """
        return {}

    @abstractmethod
    def channel_values(self, kind: FeatureKind) -> Array:
        """Return the values that the data set's statistics are taken from, (channels, n) float64.

        Args:
            kind: The feature kind.
        """


@dataclass(frozen=True)
class JpegSeries(Feature):
    """Pictures at the instants of a clip.

    Attributes:
        jpegs: Baseline JPEGs, ordered by instant, step and component.
        times: Presentation time of each instant's first picture, in seconds from the clip's start.
        height: Rows of each picture.
        width: Columns of each picture.
        numbers: Further numbers that describe the pictures: `stack`, the steps at each instant (1 where absent), and
            `bound`, the displacement in pixels that the extreme grey levels of a flow field stand for.
    """

    jpegs: tuple[bytes, ...]
    times: tuple[float, ...]
    height: int
    width: int
    numbers: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def stack(self) -> int:
        """Number of steps at each instant."""
        return int(self.numbers.get("stack", 1))

    def at(self, instant: int) -> tuple[bytes, ...]:
        """Return the JPEGs of one instant, ordered by step and component."""
        count = len(self.jpegs) // len(self.times)
        return self.jpegs[instant * count : (instant + 1) * count]

    def datasets(self) -> dict[str, Array]:
        """Return all JPEGs one after the other, where each ends, and the times."""
        return {
            "jpeg": np.frombuffer(b"".join(self.jpegs), dtype=np.uint8),
            "ends": np.cumsum([len(jpeg) for jpeg in self.jpegs], dtype=np.int64),
            "times": np.asarray(self.times, dtype=np.float64),
        }

    def attributes(self) -> dict[str, int | float]:
        """Return height and width, then `numbers`."""
        return {"height": self.height, "width": self.width, **self.numbers}

    @classmethod
    def from_stored(cls, datasets: Mapping[str, Array], attributes: Mapping[str, int | float]) -> JpegSeries:
        """See `Feature.from_stored`."""
        whole, ends = datasets["jpeg"].tobytes(), datasets["ends"].tolist()
        jpegs = tuple(whole[start:end] for start, end in zip([0, *ends[:-1]], ends))
        numbers = {name: value for name, value in attributes.items() if name not in ("height", "width")}
        size = int(attributes["height"]), int(attributes["width"])
        return cls(jpegs, tuple(datasets["times"].tolist()), *size, numbers)

    def members(self, kind: FeatureKind) -> dict[str, bytes]:
        """Return one member per JPEG."""
        return dict(zip(kind.members(len(self.times), self.stack), self.jpegs, strict=True))

    def meta(self, kind: FeatureKind) -> dict[str, Any]:
        """Return the values that the table of kinds names for this kind."""
        known = {"times": self.times, "height": self.height, "width": self.width, **self.numbers}
        return {name: known[name] for name in kind.meta}

    def channel_values(self, kind: FeatureKind) -> Array:
        """Decode all pixels at the first step of the middle instant, in levels from 0 to 255."""
        first = self.at(len(self.times) // 2)[: len(kind.components)]
        planes = (simplejpeg.decode_jpeg(jpeg, kind.colourspace).reshape(-1, kind.picture_channels).T for jpeg in first)
        return np.concatenate([plane.astype(np.float64) for plane in planes])


@dataclass(frozen=True)
class ArrayFeature(Feature):
    """One array.

    Attributes:
        values: The array, in the type in which it is stored; a spectrogram is (frequency bins, windows) float16.
    """

    values: Array

    def datasets(self) -> dict[str, Array]:
        """Return the array."""
        return {"values": self.values}

    @classmethod
    def from_stored(cls, datasets: Mapping[str, Array], attributes: Mapping[str, int | float]) -> ArrayFeature:
        """See `Feature.from_stored`."""
        return cls(datasets["values"])

    def members(self, kind: FeatureKind) -> dict[str, bytes]:
        """Encode the array as one `.npy` file."""
        file = io.BytesIO()
        np.save(file, self.values, allow_pickle=False)
        return {kind.member: file.getvalue()}

    def channel_values(self, kind: FeatureKind) -> Array:
        """Return all values, as one channel."""
        return np.asarray(self.values.reshape(1, -1), dtype=np.float64)


@dataclass(frozen=True)
class FlacSound(Feature):
    """Sound.

    Attributes:
        flac: A FLAC file: 16-bit, mono.
    """

    flac: bytes

    def datasets(self) -> dict[str, Array]:
        """Return the bytes of the file."""
        return {"flac": np.frombuffer(self.flac, dtype=np.uint8)}

    @classmethod
    def from_stored(cls, datasets: Mapping[str, Array], attributes: Mapping[str, int | float]) -> FlacSound:
        """See `Feature.from_stored`."""
        return cls(datasets["flac"].tobytes())

    def members(self, kind: FeatureKind) -> dict[str, bytes]:
        """Return the file."""
        return {kind.member: self.flac}

    def channel_values(self, kind: FeatureKind) -> Array:
        """Decode all samples, as one channel, within ±1."""
        import soundfile

        return np.asarray(soundfile.read(io.BytesIO(self.flac))[0][None], dtype=np.float64)


#: Storage → the class of its features.
FEATURE_TYPES: Mapping[Storage, type[Feature]] = {
    Storage.JPEG: JpegSeries,
    Storage.NPY: ArrayFeature,
    Storage.FLAC: FlacSound,
}


@dataclass(frozen=True)
class ClipFeatures:
    """The features of one clip, and the properties of its source.

    Attributes:
        features: Feature kind → feature.
        flags: Conditions that did not fail the clip (docs/reasons.md), sorted: `short_video`, `silent_audio` …
        media: Properties of the source (codecs, width, height, frame rate, rotation, duration, sample rate, channels),
            and its measured quality (see `quality`).
    """

    features: Mapping[str, Feature] = field(default_factory=dict)
    flags: Sequence[str] = ()
    media: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "flags", tuple(sorted(set(self.flags))))

    def __getitem__(self, kind: str) -> Any:  # the class of the feature depends on the kind
        return self.features[kind]

    def updated(self, newer: ClipFeatures) -> ClipFeatures:
        """Add the features of another decode of the clip to these, or replace them."""
        return replace(
            self,
            features={**self.features, **newer.features},
            flags=(*self.flags, *newer.flags),
            media={**self.media, **newer.media},
        )
