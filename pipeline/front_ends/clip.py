"""One clip → its features, in one pass over the file."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.front_ends.features import Features
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.pictures import visual_features
from bmlpipe.pipeline.front_ends.quality import quality_flags
from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions
from bmlpipe.pipeline.front_ends.soundtrack import auditory_features
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions
from bmlpipe.pipeline.media.audio import AudioDecoder
from bmlpipe.pipeline.media.container import Demuxer, open_media, start_time
from bmlpipe.pipeline.media.errors import ClipError, DamageError
from bmlpipe.pipeline.media.ffmpeg_decoder import decode_with_ffmpeg, read_audio_with_ffmpeg
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
from bmlpipe.pipeline.media.h264_skip import decode_needed_frames
from bmlpipe.pipeline.media.video import VideoDecoder, Window

#: Sound and picture that start further apart than this, in seconds, are aligned by the file's clock; below it, each
#: starts with its own first sample or picture (such offsets are encoder delays, not content).
OFFSET = Fraction(1, 10)

#: How long before the clip's start decoding begins, in seconds: covers what audio decoders need to settle in.
PREROLL = Fraction(1)

_Visual = tuple[FrameOptions | None, FlowOptions | None, RgbDiffOptions | None]
_Auditory = tuple[SpectrogramOptions | None, WaveformOptions | None]


def extract_clip(
    video: Path,
    *,
    audio: Path | None = None,
    start: float = 0.0,
    duration: float | None = None,
    seconds: int | None = 10,
    frames: FrameOptions | None = None,
    spectrogram: SpectrogramOptions | None = None,
    flow: FlowOptions | None = None,
    rgb_diff: RgbDiffOptions | None = None,
    waveform: WaveformOptions | None = None,
    ffmpeg: FFmpeg | None = None,
) -> Features:
    """Decode one clip once and make the features asked for.

    Args:
        video: The file with the pictures, and the sound unless `audio` is given.
        audio: A separate file with the sound; both files begin at the same moment.
        start: Seconds from the file's beginning at which the clip begins.
        duration: Seconds that the clip lasts; None: to the end of the file.
        seconds: Instants at most (0, 1, 2 … s), and the length that sound is tiled or cut to; None: every instant.
        frames: How to store frames; None: not wanted.
        spectrogram: Which spectrogram; None: not wanted.
        flow: How to compute optical flow; None: not wanted.
        rgb_diff: How to store RGB differences; None: not wanted.
        waveform: How to store the sound itself; None: not wanted.
        ffmpeg: Decode with this program; None: with PyAV.

    Raises:
        ClipError: The clip cannot be used; docs/reasons.md lists the reasons.
        OptionError: An argument is out of range.
    """
    if not (math.isfinite(start) and start >= 0):
        raise OptionError(f"start is {start}: must be 0 or more seconds")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise OptionError(f"duration is {duration}: must be above 0 seconds")
    if seconds is not None and seconds < 1:
        raise OptionError(f"seconds is {seconds}: must be 1 or more")
    visual, auditory = (frames, flow, rgb_diff), (spectrogram, waveform)
    if any(auditory) and seconds is None:
        raise OptionError("sound needs a fixed length: give --seconds, for example 10")
    if not any(visual + auditory):
        raise OptionError("nothing is wanted: ask for frames, spectrogram, flow, rgb_diff or waveform")
    window = Window(start, duration, seconds)
    for seek, prune in ((True, True), (False, True), (False, False)):
        if seek and (window.start <= PREROLL or (flow and flow.images)):  # images are numbered from the file's start
            continue
        try:
            return _attempt(video, audio, window, visual, auditory, ffmpeg, seek=seek, prune=prune, strict=True)
        except DamageError as error:
            damage = str(error)
            continue  # no key frame where one was sought, or damage
    if ffmpeg:  # which does not tell which pictures it has concealed errors in
        raise ClipError("damaged_video", f"ffmpeg cannot decode the pictures without error: {damage}")
    return _attempt(video, audio, window, visual, auditory, None, seek=False, prune=False, strict=False)


def _attempt(
    video: Path,
    audio: Path | None,
    window: Window,
    visual: _Visual,
    auditory: _Auditory,
    ffmpeg: FFmpeg | None,
    *,
    seek: bool,
    prune: bool,
    strict: bool,
) -> Features:
    flags: set[str] = set()
    media: dict[str, Any] = {}
    frames = flow = rgb_diff = spectrogram = waveform = None
    see, hear = any(visual), any(auditory)
    if see or audio is None:
        with open_media(video) as container:
            picture = _picture_stream(container)
            voice = container.streams.best("audio") if hear and audio is None else None
            media |= _describe(container, picture, container.streams.best("audio"))
            if picture is None and see:
                raise ClipError("missing_video", f"{video} has no video stream")
            if voice is None and hear and audio is None:
                raise ClipError("missing_audio", f"{video} has no audio stream")
            wanted = [stream for stream in (picture if see else None, voice) if stream is not None]
            if not ffmpeg:
                _check_decoders(wanted)
            demuxer, since = Demuxer(container, wanted), None
            if seek:
                since = demuxer.seek(wanted[0], window.start - PREROLL)
            if picture is not None and see:
                pictures = VideoDecoder(picture, demuxer, strict)
                decode = (
                    partial(decode_with_ffmpeg, ffmpeg, video, since=since, select=prune)
                    if ffmpeg
                    else (decode_needed_frames if prune else None)
                )
                frames, flow, rgb_diff = visual_features(
                    pictures, window, *visual, flags, media, video=video, decode=decode
                )
                media["rotation"] = pictures.rotation
            if voice is not None and hear:
                begin = start_time(voice)
                if picture is not None and abs(begin - start_time(picture)) > OFFSET:
                    begin = start_time(picture)
                read = partial(read_audio_with_ffmpeg, ffmpeg, video, since=since) if ffmpeg else AudioDecoder.read
                spectrogram, waveform = auditory_features(voice, demuxer, begin, window, *auditory, flags, media, read)
            if demuxer.damaged:
                flags.add("damaged_container")
    if audio is not None and hear:
        with open_media(audio) as container:
            voice = container.streams.best("audio")
            if voice is None:
                raise ClipError("missing_audio", f"{audio} has no audio stream")
            media |= {"audio_container": container.format.name, **_describe_audio(voice)}
            if not ffmpeg:
                _check_decoders([voice])
            demuxer, since = Demuxer(container, [voice]), None
            if seek:
                since = demuxer.seek(voice, window.start - PREROLL)
            read = partial(read_audio_with_ffmpeg, ffmpeg, audio, since=since) if ffmpeg else AudioDecoder.read
            spectrogram, waveform = auditory_features(
                voice, demuxer, start_time(voice), window, *auditory, flags, media, read
            )
            if demuxer.damaged:
                flags.add("damaged_container")
    return Features(frames, spectrogram, flow, rgb_diff, waveform, tuple(sorted(flags | quality_flags(media))), media)


def _picture_stream(container: InputContainer) -> Any:
    """The video stream that a player would show; cover art does not count."""
    best = container.streams.best("video")
    return None if best is None or best.disposition & Disposition.attached_pic else best


def _check_decoders(streams: list[Any]) -> None:
    for stream in streams:
        if stream.codec_context is None:
            raise ClipError("decoder_error", f"there is no decoder for the file's {stream.type} stream")


def _describe(container: InputContainer, picture: Any, voice: Any) -> dict[str, Any]:
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
    return media | _describe_audio(voice)


def _describe_audio(voice: Any) -> dict[str, Any]:
    if voice is None or voice.codec_context is None:
        return {}
    context = voice.codec_context
    return {"audio_codec": context.name, "sample_rate": context.sample_rate, "channels": context.channels}
