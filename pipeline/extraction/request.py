"""The request of an extraction: the front end of each feature kind, and what is common to all clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.front_ends.front_end import FrontEndOptions, PictureOptions, SoundOptions
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
from bmlpipe.shards.kinds import KINDS, kind_named, ordered
from bmlpipe.shards.sample import digest


@dataclass(frozen=True)
class ExtractionRequest:
    """The features to make of each clip, and their parameters. They are validated here, once.

    Attributes:
        front_ends: Options of one front end per feature kind (`bmlpipe.pipeline.front_ends`), in any order.
        seconds: Number of instants, and length of the sound, that are taken of each clip; None: the whole clip, which
            excludes kinds of a fixed length.
        ffmpeg: Decode with this program; None: with PyAV. Both give the same features, so the program is no parameter
            of them; only hardware decoding is.

    Raises:
        OptionError: `front_ends` is empty or names a kind twice, or `seconds` is out of range or needed and missing.

    Examples:
        >>> ExtractionRequest((FrameOptions(short_side=224), SpectrogramOptions()), seconds=10)  # doctest: +SKIP
    """

    front_ends: tuple[FrontEndOptions, ...]
    seconds: int | None = 10
    ffmpeg: FFmpeg | None = None

    def __post_init__(self) -> None:
        if not self.front_ends:
            raise OptionError(f"no feature kind is named: give --kinds with at least one of {', '.join(KINDS)}")
        kinds = Counter(options.kind for options in self.front_ends)
        if twice := [kind for kind, count in kinds.items() if count > 1]:
            raise OptionError(f"feature kind {twice[0]} is named twice: name each kind once")
        if self.seconds is not None and self.seconds < 1:
            raise OptionError(f"seconds is {self.seconds}: must be 1 or more")
        fixed = [kind for kind in kinds if kind_named(kind).fixed_length]
        if fixed and self.seconds is None:
            raise OptionError(f"feature kind {fixed[0]} has a fixed length: give --seconds, for example 10")
        by_kind = {options.kind: options for options in self.front_ends}
        object.__setattr__(self, "front_ends", tuple(by_kind[kind] for kind in ordered(by_kind)))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the feature kinds."""
        return tuple(options.kind for options in self.front_ends)

    @property
    def picture_front_ends(self) -> tuple[PictureOptions, ...]:
        """The front ends that read pictures."""
        return tuple(options for options in self.front_ends if isinstance(options, PictureOptions))

    @property
    def sound_front_ends(self) -> tuple[SoundOptions, ...]:
        """The front ends that read sound."""
        return tuple(options for options in self.front_ends if isinstance(options, SoundOptions))

    @cached_property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Feature kind → everything that its stored bytes depend on."""
        found = {options.kind: options.parameters(self.seconds) for options in self.front_ends}
        if self.ffmpeg is not None and self.ffmpeg.hwaccel is not None:
            for options in self.picture_front_ends:
                found[options.kind]["hwaccel"] = self.ffmpeg.hwaccel
        return found

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all parameters."""
        return digest(self.parameters)

    def only(self, kinds: Collection[str]) -> ExtractionRequest:
        """Return the same request for some of its feature kinds."""
        return replace(self, front_ends=tuple(options for options in self.front_ends if options.kind in kinds))
