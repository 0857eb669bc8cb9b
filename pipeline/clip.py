"""One clip → its features, in one pass over the file."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

from bmlpipe.pipeline.container import DamageError, Demuxer, open_media, zero
from bmlpipe.pipeline.decode import Pick, Pictures, Window, check_complete, pick
from bmlpipe.pipeline.features import ClipError, Features, Flow, Frames, Spectrogram
from bmlpipe.pipeline.flow import FlowOptions, encode_fields, estimator
from bmlpipe.pipeline.frames import FrameOptions, Scaler, encode
from bmlpipe.pipeline.prune import needed_shots
from bmlpipe.pipeline.sound import Sound
from bmlpipe.pipeline.spectrogram import RATE, SpectrogramOptions, fit, log_spectrogram

#: Sound and picture that start further apart than this, in seconds, are aligned by the file's clock; below it, each
#: starts with its own first sample or picture (such offsets are encoder delays, not content).
OFFSET = Fraction(1, 10)

#: How long before the clip's start decoding begins, in seconds: covers what audio decoders need to settle in.
PREROLL = Fraction(1)

#: Sound that is missing at the end up to this many seconds is not worth a flag.
TOLERANCE = Fraction(1, 20)


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

    Raises:
        ClipError: The clip cannot be used; docs/reasons.md lists the reasons.
        ValueError: An argument is out of range.
    """
    if not (math.isfinite(start) and start >= 0):
        raise ValueError(f"start is {start}: must be 0 or more seconds")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise ValueError(f"duration is {duration}: must be above 0 seconds")
    if seconds is not None and seconds < 1:
        raise ValueError(f"seconds is {seconds}: must be 1 or more")
    if spectrogram is not None and seconds is None:
        raise ValueError("a spectrogram needs a fixed length: give --seconds, for example 10")
    if frames is None and spectrogram is None and flow is None:
        raise ValueError("nothing is wanted: ask for frames, spectrogram or flow")
    window = Window(start, duration, seconds)
    for seek, prune in ((True, True), (False, True), (False, False)):
        if seek and window.start <= PREROLL:
            continue
        try:
            return _attempt(video, audio, window, frames, spectrogram, flow, seek=seek, prune=prune, strict=True)
        except DamageError:
            continue  # no key frame where one was sought, or damage
    return _attempt(video, audio, window, frames, spectrogram, flow, seek=False, prune=False, strict=False)


def _attempt(
    video: Path,
    audio: Path | None,
    window: Window,
    frames: FrameOptions | None,
    spectrogram: SpectrogramOptions | None,
    flow: FlowOptions | None,
    *,
    seek: bool,
    prune: bool,
    strict: bool,
) -> Features:
    flags: set[str] = set()
    media: dict[str, Any] = {}
    found_frames = found_flow = sound = None
    if frames or flow or audio is None:
        with open_media(video) as container:
            picture = _picture_stream(container)
            voice = container.streams.best("audio") if spectrogram and audio is None else None
            media |= _describe(container, picture, container.streams.best("audio"))
            if picture is None and (frames or flow):
                raise ClipError("missing_video", f"{video} has no video stream")
            if voice is None and spectrogram and audio is None:
                raise ClipError("missing_audio", f"{video} has no audio stream")
            wanted = [stream for stream in (picture if frames or flow else None, voice) if stream is not None]
            _check_decoders(wanted)
            demuxer = Demuxer(container, wanted)
            if seek:
                demuxer.seek(wanted[0], window.start - PREROLL)
            if picture is not None and (frames or flow):
                pictures = Pictures(picture, demuxer, strict)
                found_frames, found_flow = _visual(pictures, window, frames, flow, flags, prune)
                media["rotation"] = pictures.rotation
            if voice is not None and spectrogram:
                begin = zero(voice)
                if picture is not None and abs(begin - zero(picture)) > OFFSET:
                    begin = zero(picture)
                sound = _sound(voice, demuxer, begin, window, spectrogram, flags)
            if demuxer.damaged:
                flags.add("damaged_container")
    if audio is not None and spectrogram:
        with open_media(audio) as container:
            voice = container.streams.best("audio")
            if voice is None:
                raise ClipError("missing_audio", f"{audio} has no audio stream")
            media |= {"audio_container": container.format.name, **_describe_audio(voice)}
            _check_decoders([voice])
            demuxer = Demuxer(container, [voice])
            if seek:
                demuxer.seek(voice, window.start - PREROLL)
            sound = _sound(voice, demuxer, zero(voice), window, spectrogram, flags)
            if demuxer.damaged:
                flags.add("damaged_container")
    return Features(found_frames, sound, found_flow, tuple(sorted(flags)), media)


def _visual(
    pictures: Pictures,
    window: Window,
    frames: FrameOptions | None,
    flow: FlowOptions | None,
    flags: set[str],
    prune: bool,
) -> tuple[Frames | None, Flow | None]:
    stream = pictures.stream
    aspect = stream.sample_aspect_ratio
    scaler = Scaler(frames.short_side, aspect) if frames else None
    grey = Scaler(flow.short_side, aspect) if flow else None
    estimate = estimator(flow.algorithm) if flow else None
    jpegs: list[bytes] = []
    fields: list[tuple[tuple[bytes, bytes], ...]] = []
    times: list[float] = []
    flow_times: list[float] = []
    size = flow_size = (0, 0)
    after = flow.stack if flow else 0
    shots = needed_shots(pictures, window, after) if prune else None
    for chosen in pick(pictures, window, after, shots):
        _check_whole(pictures, window, chosen)
        times.append(pictures.seconds(chosen.shown.tick, window))
        if chosen.late:
            flags.add("late_video")
        if frames and scaler:
            planes = scaler.planes(chosen.shown.frame)
            size = planes.luma.shape
            jpegs.append(encode(planes, frames.quality))
        if flow and grey and estimate:
            luma = [grey.luma(shot.frame) for shot in chosen.shots]
            flow_size = luma[0].shape
            fields.append(encode_fields(luma, estimate, flow.bound, flow.quality))
            flow_times.append(pictures.seconds(chosen.shots[0].tick, window))
            if chosen.moved:
                flags.add("flow_window_moved")
    check_complete(pictures, window, len(times))
    if not pictures.strict:  # a strict decode met an error, which the decoder may now have concealed
        flags.add("damaged_video")
    if pictures.mended:
        flags.add("mended_times")
    if window.instants is not None and len(times) < window.instants:
        flags.add("short_video")
    return (
        Frames(tuple(jpegs), tuple(times), *size) if frames else None,
        Flow(tuple(fields), tuple(flow_times), *flow_size, flow.bound) if flow else None,
    )


def _check_whole(pictures: Pictures, window: Window, chosen: Pick) -> None:
    """Refuse an instant whose picture, or one of the pictures that follow it for flow, could not be decoded."""
    instant = pictures.tick(window, chosen.instant)
    first, last = chosen.shots[0].tick, max(instant, chosen.shots[-1].tick)
    if any(first < tick <= last for tick in pictures.lost):
        raise ClipError("damaged_video", f"the picture shown at {chosen.instant} s of the clip cannot be decoded")
    if chosen.late and chosen.instant > 0:
        late = float((chosen.shown.tick - pictures.tick(window, 0)) * pictures.stream.time_base)
        raise ClipError("late_video", f"the first decodable picture comes {late:.2f} s after the clip's start")


def _sound(
    stream: Any, demuxer: Demuxer, begin: Fraction, window: Window, options: SpectrogramOptions, flags: set[str]
) -> Spectrogram:
    if window.seconds is None:
        raise ValueError("a spectrogram needs a fixed length: give --seconds, for example 10")
    length = window.seconds if window.length is None else min(Fraction(window.seconds), window.length)
    sound = Sound(stream, demuxer, begin + window.start, round(length * RATE))
    samples = sound.read()
    if sound.lost > sound.count:
        raise ClipError(
            "damaged_audio", f"{sound.lost} of {sound.lost + sound.count} packets of sound cannot be decoded"
        )
    if not samples.size:
        raise ClipError(
            "missing_audio", f"the audio stream holds no sound at {float(window.start):g} s, where the clip begins"
        )
    sound.check_complete(samples.size)
    if sound.lost:
        flags.add("damaged_audio")
    if sound.gaps:
        flags.add("audio_gap")
    if samples.size < RATE * (window.seconds - TOLERANCE):
        flags.add("short_audio")
    if not samples.any():
        flags.add("silent_audio")
    return Spectrogram(log_spectrogram(fit(samples, window.seconds), options.preset).astype("float16"))


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
            "pix_fmt": context.pix_fmt,
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
