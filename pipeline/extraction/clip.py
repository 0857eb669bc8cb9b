"""Extract the features of one clip, in one pass over its file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.features import ClipFeatures
from bmlpipe.pipeline.front_ends.pictures import make_picture_features
from bmlpipe.pipeline.front_ends.quality import quality_flags
from bmlpipe.pipeline.front_ends.soundtrack import make_sound_features
from bmlpipe.pipeline.media.audio import AudioDecoder
from bmlpipe.pipeline.media.container import Demuxer, open_media, start_time
from bmlpipe.pipeline.media.errors import ClipError, DamageError
from bmlpipe.pipeline.media.ffmpeg_decoder import decode_with_ffmpeg, read_audio_with_ffmpeg
from bmlpipe.pipeline.media.h264_skip import decode_needed_frames
from bmlpipe.pipeline.media.video import ClipSpan, VideoDecoder

#: Sound and pictures that start further apart than this, in seconds, are aligned by the file's clock. Below it, each
#: starts with its own first sample or picture, since such offsets are encoder delays.
OFFSET = Fraction(1, 10)

#: Decoding begins this long before the clip's start, in seconds: audio decoders need some packets to settle.
PREROLL = Fraction(1)


def extract_clip(
    video: Path,
    request: ExtractionRequest,
    *,
    audio: Path | None = None,
    start: float = 0.0,
    duration: float | None = None,
) -> ClipFeatures:
    """Decode a clip once and make the features of a request.

    Args:
        video: The file with the pictures, and with the sound unless `audio` is given.
        request: Which features to make.
        audio: A separate file with the sound; both files begin at the same moment.
        start: Seconds from the file's beginning to the clip's; 0 or more.
        duration: Length of the clip in seconds, above 0; None: to the end of the file.

    Returns:
        The features, the clip's flags (docs/reasons.md), and the properties of its media.

    Raises:
        ClipError: The clip cannot be used; docs/reasons.md lists the reasons.
        OptionError: `start` or `duration` is out of range.
    """
    clip = _ClipFiles(video, audio, ClipSpan(start, duration, request.seconds), request)
    for attempt in _ATTEMPTS:
        if attempt.seek and not clip.may_seek:
            continue
        try:
            return clip.extract(attempt)
        except DamageError as error:
            damage = str(error)
    if request.ffmpeg:  # it does not report in which pictures it has concealed errors
        raise ClipError("damaged_video", f"ffmpeg cannot decode the pictures without error: {damage}")
    return clip.extract(_LAST_ATTEMPT)


@dataclass(frozen=True)
class _Attempt:
    """One way to decode a clip.

    Attributes:
        seek: Begin at a key frame before the clip's start instead of at the file's beginning.
        skip: Decode only the pictures that are needed.
        strict: Give up at the first sign of damage.
    """

    seek: bool
    skip: bool
    strict: bool = True


# The cheapest first. Each fails with a DamageError if its result could differ from that of the next one.
_ATTEMPTS = (_Attempt(seek=True, skip=True), _Attempt(seek=False, skip=True), _Attempt(seek=False, skip=False))
_LAST_ATTEMPT = _Attempt(seek=False, skip=False, strict=False)


@dataclass(frozen=True)
class _ClipFiles:
    """The files of one clip, and the request; see `extract_clip`."""

    video: Path
    audio: Path | None
    span: ClipSpan
    request: ExtractionRequest

    @property
    def may_seek(self) -> bool:
        return self.span.start > PREROLL and not any(
            options.counts_frames for options in self.request.picture_front_ends
        )

    def extract(self, attempt: _Attempt) -> ClipFeatures:
        features = ClipFeatures()
        if self.request.picture_front_ends or self.audio is None:
            features = features.updated(self._from_video_file(attempt))
        if self.audio is not None and self.request.sound_front_ends:
            features = features.updated(self._from_audio_file(self.audio, attempt))
        return replace(features, flags=(*features.flags, *quality_flags(features.media)))

    def _from_video_file(self, attempt: _Attempt) -> ClipFeatures:
        reads_pictures = bool(self.request.picture_front_ends)
        reads_sound = bool(self.request.sound_front_ends) and self.audio is None
        with open_media(self.video) as container:
            picture, sound = _picture_stream(container), container.streams.best("audio")
            features = ClipFeatures(media=_describe(container, picture, sound))
            if picture is None and reads_pictures:
                raise ClipError("missing_video", f"{self.video} has no video stream")
            if sound is None and reads_sound:
                raise ClipError("missing_audio", f"{self.video} has no audio stream")
            demuxer, seek_time = self._open_streams(
                container, [picture] * reads_pictures + [sound] * reads_sound, attempt
            )
            if reads_pictures:
                features = features.updated(self._picture_features(picture, demuxer, seek_time, attempt))
            if reads_sound:
                begin = start_time(sound)
                if picture is not None and abs(begin - start_time(picture)) > OFFSET:
                    begin = start_time(picture)
                features = features.updated(self._sound_features(self.video, sound, demuxer, begin, seek_time))
            return features.updated(ClipFeatures(flags=_demuxer_flags(demuxer)))

    def _from_audio_file(self, path: Path, attempt: _Attempt) -> ClipFeatures:
        with open_media(path) as container:
            sound = container.streams.best("audio")
            if sound is None:
                raise ClipError("missing_audio", f"{path} has no audio stream")
            media = {"audio_container": container.format.name, **_describe_audio(sound)}
            demuxer, seek_time = self._open_streams(container, [sound], attempt)
            features = self._sound_features(path, sound, demuxer, start_time(sound), seek_time)
            return ClipFeatures(media=media, flags=_demuxer_flags(demuxer)).updated(features)

    def _open_streams(
        self, container: InputContainer, streams: list[Any], attempt: _Attempt
    ) -> tuple[Demuxer, Fraction | None]:
        """Open a demuxer of these streams. Return it, and where it has seeked to; None: to the file's beginning."""
        if not self.request.ffmpeg:
            for stream in streams:
                if stream.codec_context is None:
                    raise ClipError("decoder_error", f"there is no decoder for the file's {stream.type} stream")
        demuxer = Demuxer(container, streams)
        return demuxer, demuxer.seek(streams[0], self.span.start - PREROLL) if attempt.seek else None

    def _picture_features(
        self, stream: Any, demuxer: Demuxer, seek_time: Fraction | None, attempt: _Attempt
    ) -> ClipFeatures:
        decoder = VideoDecoder(stream, demuxer, attempt.strict)
        decode: Any = decode_needed_frames if attempt.skip else None
        if self.request.ffmpeg:
            program = self.request.ffmpeg
            decode = partial(decode_with_ffmpeg, program, self.video, seek_time=seek_time, skip_unneeded=attempt.skip)
        return make_picture_features(decoder, self.span, self.video, self.request.picture_front_ends, decode)

    def _sound_features(
        self, path: Path, stream: Any, demuxer: Demuxer, begin: Fraction, seek_time: Fraction | None
    ) -> ClipFeatures:
        seconds, length = self.request.seconds, self.span.length
        assert seconds is not None  # checked by the request
        needed = Fraction(seconds) if length is None else min(Fraction(seconds), length)
        decoder = AudioDecoder(stream, demuxer, begin + self.span.start, needed)
        read: Any = AudioDecoder.read
        if self.request.ffmpeg:
            read = partial(read_audio_with_ffmpeg, self.request.ffmpeg, path, seek_time=seek_time)
        return make_sound_features(decoder, self.span, self.request.sound_front_ends, read)


def _demuxer_flags(demuxer: Demuxer) -> tuple[str, ...]:
    flags = set()
    if demuxer.damaged:
        flags.add("damaged_container")
    return tuple(flags)


def _picture_stream(container: InputContainer) -> Any:
    """Find the video stream that a player would show; cover art does not count."""
    best = container.streams.best("video")
    return None if best is None or best.disposition & Disposition.attached_pic else best


def _describe(container: InputContainer, picture: Any, sound: Any) -> dict[str, Any]:
    media: dict[str, Any] = {
        "container": container.format.name,
        "duration_s": None if container.duration is None else container.duration / av.time_base,
    }
    if picture is not None and picture.codec_context is not None:
        context = picture.codec_context
        media |= {
            "video_codec": context.name,
            "pix_fmt": context.format and context.format.name,  # `pix_fmt` itself crashes PyAV 17 if unknown
            "width": context.width,
            "height": context.height,
            "fps": float(picture.average_rate) if picture.average_rate else None,
            "pixel_aspect": str(picture.sample_aspect_ratio or 1),
        }
    return media | _describe_audio(sound)


def _describe_audio(sound: Any) -> dict[str, Any]:
    if sound is None or sound.codec_context is None:
        return {}
    context = sound.codec_context
    return {"audio_codec": context.name, "sample_rate": context.sample_rate, "channels": context.channels}
