"""The table of feature kinds: one row per kind holds all that the rest of the program needs to know about it.

To add a feature kind, add its row here and its front end in `bmlpipe.pipeline.front_ends`. Extraction, the feature
store, sharding, statistics, verification and the loader read the table.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from bmlpipe.manifests.common.errors import OptionError


class Storage(Enum):
    """The form in which the values of a feature kind are stored in a sample."""

    JPEG = "jpeg"  #: a series of JPEG pictures, one or more for each instant
    NPY = "npy"  #: one array in NumPy's `.npy` format
    FLAC = "flac"  #: one FLAC file, 16-bit mono


@dataclass(frozen=True)
class FeatureKind:
    """One feature kind.

    Attributes:
        name: Name in options, manifests, feature files and indexes.
        summary: One line for help texts.
        modality: The modality that reads this kind.
        source: Part of a clip that the kind is made from: `pictures` or `sound`.
        storage: How its values are stored.
        member: Name of its tar members. Picture kinds have the fields `{instant}` (whole seconds from the clip's
            start), `{step}` (position in the stack of consecutive pictures) and `{component}`.
        channels: Number of input channels per picture of the stack; 1 for arrays and sound.
        fixed_length: Every sample has the same length in time, so that extraction needs `--seconds`.
        default: The modality reads this kind unless another one is named.
        first_member: Name of the member at step 0, if it differs from `member`.
        components: Names of the separate pictures that make up one step; one nameless component for colour pictures.
        mirrored: Components whose sign changes when a picture is mirrored left to right.
        meta: Names of the values that each sample's JSON holds for this kind.
        normalisation: `dataset`: by the mean and standard deviation of each channel over the training samples, which
            the index holds; `clip`: each clip is standardised by itself, and the index holds nothing.
        imagenet: The kind has the channels of ImageNet's pictures, so pretrained encoders can read it.
    """

    name: str
    summary: str
    modality: str
    source: Literal["pictures", "sound"]
    storage: Storage
    member: str
    channels: int
    fixed_length: bool
    default: bool = True
    first_member: str | None = None
    components: tuple[str, ...] = ("",)
    mirrored: frozenset[str] = frozenset()
    meta: tuple[str, ...] = ()
    normalisation: Literal["dataset", "clip"] = "dataset"
    imagenet: bool = False

    @property
    def is_pictures(self) -> bool:
        """Whether the kind is stored as pictures."""
        return self.storage is Storage.JPEG

    @property
    def picture_channels(self) -> int:
        """Number of channels of one stored picture: 3 (RGB) or 1 (grey)."""
        return self.channels // len(self.components)

    @property
    def colourspace(self) -> Literal["RGB", "GRAY"]:
        """Colour space of one stored picture, as simplejpeg names it."""
        return "RGB" if self.picture_channels == 3 else "GRAY"

    def members_at(self, instant: int, stack: int = 1) -> list[str]:
        """Return the member names of the pictures at one instant, ordered by step, then component.

        Args:
            instant: Number of the instant, from 0.
            stack: Number of steps at the instant.

        Examples:
            >>> KINDS["flow"].members_at(3)
            ['flow_003_00_x.jpg', 'flow_003_00_y.jpg']
            >>> KINDS["rgb_diff"].members_at(3, stack=2)
            ['rgb_diff_003.jpg', 'rgb_diff_003_01.jpg']
        """
        return [
            (self.member if step or self.first_member is None else self.first_member).format(
                instant=instant, step=step, component=component
            )
            for step in range(stack)
            for component in self.components
        ]

    def members(self, instants: int = 1, stack: int = 1) -> list[str]:
        """Return all member names of a sample, in the order in which the front end makes them.

        Args:
            instants: Number of instants of the sample; ignored for arrays and sound.
            stack: Number of steps at each instant.

        Examples:
            >>> KINDS["frames"].members(2), KINDS["spectrogram"].members()
            (['frame_000.jpg', 'frame_001.jpg'], ['spectrogram.npy'])
        """
        if not self.is_pictures:
            return [self.member]
        return [member for instant in range(instants) for member in self.members_at(instant, stack)]

    def changes_sign(self, member: str) -> bool:
        """Return whether the values of a member change their sign when its picture is mirrored left to right."""
        return any(member.endswith(f"_{component}.jpg") for component in self.mirrored)


_ROWS = (
    FeatureKind(
        name="frames",
        summary="RGB frames at 1 frame per second",
        modality="visual",
        source="pictures",
        storage=Storage.JPEG,
        member="frame_{instant:03d}.jpg",
        channels=3,
        fixed_length=False,
        meta=("times", "height", "width"),
        imagenet=True,
    ),
    FeatureKind(
        name="spectrogram",
        summary="log spectrogram of the sound",
        modality="audio",
        source="sound",
        storage=Storage.NPY,
        member="spectrogram.npy",
        channels=1,
        fixed_length=True,
    ),
    FeatureKind(
        name="flow",
        summary="optical flow at the instants of the frames",
        modality="flow",
        source="pictures",
        storage=Storage.JPEG,
        member="flow_{instant:03d}_{step:02d}_{component}.jpg",
        channels=2,
        fixed_length=False,
        components=("x", "y"),
        mirrored=frozenset("x"),
        meta=("times", "height", "width", "bound"),
    ),
    FeatureKind(
        name="rgb_diff",
        summary="RGB differences at the instants of the frames",
        modality="rgb_diff",
        source="pictures",
        storage=Storage.JPEG,
        member="rgb_diff_{instant:03d}_{step:02d}.jpg",
        first_member="rgb_diff_{instant:03d}.jpg",
        channels=3,
        fixed_length=False,
        meta=("times", "height", "width"),
    ),
    FeatureKind(
        name="waveform",
        summary="the sound itself, from which training makes spectrograms",
        modality="audio",
        source="sound",
        storage=Storage.FLAC,
        member="waveform.flac",
        channels=1,
        fixed_length=True,
        default=False,
        normalisation="clip",
    ),
)

_TABLE = {kind.name: kind for kind in _ROWS}

KINDS: Mapping[str, FeatureKind] = MappingProxyType(_TABLE)
"""Name → feature kind, in the order in which the members of a sample are written."""

MODALITY_KIND: Mapping[str, str] = MappingProxyType({kind.modality: kind.name for kind in _ROWS if kind.default})
"""Modality → name of the feature kind that it reads by default."""


def kind_named(name: str) -> FeatureKind:
    """Look up a feature kind by its name.

    Raises:
        OptionError: There is no such kind.

    Examples:
        >>> kind_named("flow").channels
        2
    """
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, 1)
        remedy = f"did you mean {near[0]}?" if near else f"choose among {', '.join(KINDS)}"
        raise OptionError(f"there is no feature kind {name!r}: {remedy}")
    return KINDS[name]


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names of feature kinds into the order of the table, without repetition.

    Raises:
        OptionError: There is no such kind.

    Examples:
        >>> ordered(["flow", "frames", "flow"])
        ('frames', 'flow')
    """
    chosen = {kind_named(name).name for name in names}
    return tuple(name for name in KINDS if name in chosen)


def kind_of(member: str) -> str:
    """Return the name of the feature kind that a member belongs to; its own stem if it belongs to none.

    Args:
        member: Name of a tar member after the key of its sample.

    Examples:
        >>> kind_of("frame_003.jpg"), kind_of("flow_003_00_x.jpg"), kind_of("cls")
        ('frames', 'flow', 'cls')
    """
    stem = _stem(member)
    return next((kind.name for kind in KINDS.values() if _stem(kind.member) == stem), stem)


@lru_cache(maxsize=4096)
def _stem(member: str) -> str:
    """Return a member's name without its numbers, component and extension."""
    match = re.match(r"[a-z]+(_[a-z]+)*", member)
    return match.group() if match else member
