"""Decode a clip with an ffmpeg program instead of PyAV: the same pictures at the same times, and the same sound.

PyAV still reads the container: which stream, when its packets are shown, colours and orientation. ffmpeg demuxes and
decodes by itself; a picture whose time is not that of a packet is refused, so neither can mislead the other.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error
import numpy as np

from bmlpipe.pipeline.front_ends.spectrogram import Floats
from bmlpipe.pipeline.media.audio import Sound
from bmlpipe.pipeline.media.errors import ClipError, DamageError
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
from bmlpipe.pipeline.media.video import Pictures, Shot, Window, pick

_REORDER = 16  # pictures decoded before another that is shown before them, at most (ITU-T H.264, E.2.1)
_EXPRESSION = 100_000  # characters; Linux takes 131,071 in one argument
_FULL = 2  # libavutil's number of the range
_SAMPLED = 40  # packets within which a decoder gives its first picture

# What NUT can carry and ffmpeg may turn other forms into (of hardware, or of codecs that PyAV does not know).
_FORMATS = (
    "yuv420p|yuvj420p|nv12|yuv422p|yuvj422p|yuv444p|yuvj444p|yuv420p10le|yuv422p10le|yuv444p10le|"
    "yuv420p12le|yuv422p12le|yuv444p12le|gray|rgb24|bgra"
)
_PCM = {"u8": "pcm_u8", "s16": "pcm_s16le", "s32": "pcm_s32le", "s64": "pcm_s64le", "dbl": "pcm_f64le"}


def ffmpeg_shots(
    ffmpeg: FFmpeg,
    path: Path,
    pictures: Pictures,
    window: Window,
    after: int,
    *,
    since: Fraction | None = None,
    select: bool = True,
) -> Generator[Shot, None, None]:
    """The pictures of a clip in display order, as by `Pictures.decode`.

    Args:
        ffmpeg: The program.
        path: The file.
        pictures: The video, nothing read of it yet; its decoder is used for one picture's colours and orientation.
        window: The clip.
        after: Pictures needed after the one shown at each instant.
        since: Where `pictures.demuxer` was sought to, in seconds of the file's clock; None: it was not.
        select: Take over only the pictures needed; the others come without their frame.

    Raises:
        DamageError: ffmpeg met an error, or a picture needed did not come out: try without `select` or `since`.
        ClipError: `decoder_error`, `timeout`.
    """
    by_dts = pictures.stream.container.format.name == "avi"
    if by_dts and since is not None:
        raise DamageError("AVI files have no times by which two decoders could agree where a seek led")
    scan = _scan(pictures, window, after, by_dts)
    if pictures.demuxer.holes:
        raise DamageError("a part of the container cannot be read, packets may be missing")
    wanted: set[int] | None = None
    if select and scan.ends and scan.timed and not by_dts and window.instants is not None:
        display = [Shot(tick, None) for tick in sorted(scan.ends)]
        pictures.end = scan.end
        wanted = {shot.tick for one in pick(pictures, window, after, display) for shot in (one.shown, *one.shots)}
    output = _output(wanted, pictures.stream.time_base, scan.sample, ffmpeg.hwaccel)
    frames = ffmpeg.frames(path, pictures.stream, output, strict=True, since=since)
    ticked = _ticked(frames, pictures, scan, by_dts, ffmpeg.hwaccel)
    return _all(ticked, pictures, scan) if wanted is None else _chosen(ticked, pictures, scan, wanted)


def _all(ticked: Generator[Shot, None, None], pictures: Pictures, scan: _Scan) -> Generator[Shot, None, None]:
    with closing(ticked):
        for shot in ticked:
            pictures.end = scan.ends.get(shot.tick, shot.tick + pictures.step)
            yield shot


def _chosen(
    ticked: Generator[Shot, None, None], pictures: Pictures, scan: _Scan, wanted: set[int]
) -> Generator[Shot, None, None]:
    last = max(wanted, default=None)
    with closing(ticked):
        for tick in sorted(scan.ends):
            shot = next(ticked, None) if tick in wanted else Shot(tick, None)
            while shot is not None and shot.tick < tick:  # not selected, but handed over
                shot = next(ticked, None)
            if shot is None or shot.tick != tick:
                raise DamageError(f"the picture of tick {tick} did not come out of ffmpeg")
            yield shot
            if tick == last:
                ticked.close()  # the rest of the file need not be decoded
    pictures.end = scan.end


def _ticked(
    frames: Generator[Any, None, None], pictures: Pictures, scan: _Scan, by_dts: bool, hwaccel: str | None
) -> Generator[Shot, None, None]:
    """Frames with their ticks and colours, checked against what the file says."""
    last = None
    delay = scan.delay
    with closing(frames):
        try:
            for frame in frames:
                tick = round(frame.pts * frame.time_base / pictures.stream.time_base)
                if by_dts:
                    delay = tick - scan.first if delay is None else delay
                    tick = scan.first if last is None else tick - delay
                _check(tick, last, frame, scan, hwaccel)
                pictures.count += 1
                last = tick
                yield Shot(tick, _named(frame, scan.sample))
        except DamageError as error:
            if (hwaccel and not pictures.count) or scan.sample is None:
                raise ClipError("decoder_error", f"ffmpeg decodes not one picture: {error}") from error
            raise


def read_sound(
    ffmpeg: FFmpeg, path: Path, sound: Sound, rates: Sequence[int], *, since: Fraction | None = None
) -> dict[int, Floats]:
    """What `Sound.read` gives, decoded by ffmpeg at the file's own rate and in its own sample format.

    Args:
        ffmpeg: The program.
        path: The file.
        sound: What is wanted, nothing read of it yet.
        rates: Sampling rates wanted, in Hz.
        since: See `ffmpeg_shots`.

    Raises:
        DamageError: The sound was sought for and begins after the clip's start.
        ClipError: `decoder_error`, `timeout`.
    """
    stream, context = sound.stream, sound.stream.codec_context
    packets = 0
    for packet in sound.demuxer.packets(stream):
        packets += 1
        if packet.pts is not None and packet.pts * stream.time_base > sound.begin + sound.length:
            break
    form = context.format.name.removesuffix("p") if context is not None and context.format is not None else "flt"
    layout = context.layout.name if context is not None and context.layout.nb_channels else None
    output = {"c:a": _PCM.get(form, "pcm_f32le")}

    def frames(strict: bool) -> Generator[Any, None, None]:
        with closing(ffmpeg.frames(path, stream, output, strict=strict, since=since, layout=layout)) as decoded:
            try:
                for frame in decoded:
                    sound.count += 1
                    yield frame
            except DamageError:
                if strict:
                    raise
                sound.lost = max(1, packets - sound.count)

    try:
        return sound.read(rates, frames(strict=True))
    except DamageError:
        sound.count, sound.lost = 0, 1
    return sound.read(rates, frames(strict=False))


@dataclass
class _Scan:
    """What the packets of a clip say.

    Attributes:
        ends: Tick at which a picture is shown → tick at which it ends.
        first: Decoding time of the first packet, 0 if it has none.
        delay: Ticks of decoding time from the first packet to the one that made the first picture come out.
        timed: Every packet says when its picture is shown.
        sample: A decoded picture, for its colours and orientation; None: PyAV cannot decode this video.
    """

    ends: dict[int, int] = field(default_factory=dict)
    first: int = 0
    delay: int | None = None
    timed: bool = True
    sample: Any = None

    @property
    def end(self) -> int:
        """Tick at which the last picture ends."""
        return self.ends[max(self.ends)] if self.ends else 0


def _scan(pictures: Pictures, window: Window, after: int, by_dts: bool) -> _Scan:
    """Read the packets up to the last one that the clip needs."""
    scan = _Scan()
    last = None if window.instants is None else pictures.tick(window, window.instants - 1)
    beyond = 0
    for number, packet in enumerate(pictures.demuxer.packets(pictures.stream)):
        if not number:
            scan.first = packet.dts or 0
        if number < _SAMPLED and scan.sample is None:
            scan.sample = _sample(pictures, packet)
        tick = packet.dts if by_dts else packet.pts
        scan.timed &= tick is not None
        if tick is not None and not packet.is_discard:
            scan.ends[tick] = tick + (packet.duration or pictures.step)
            beyond += last is not None and tick > last
        if beyond > _REORDER + after + 1:
            break
    if scan.sample is None:
        scan.sample = _sample(pictures, None)
    if scan.sample is not None:
        pictures.rotation = scan.sample.rotation
        scan.delay = None if scan.sample.dts is None else scan.sample.dts - scan.first
    return scan


def _sample(pictures: Pictures, packet: Any) -> Any:
    """A picture decoded by PyAV, if this packet makes one come out."""
    context = pictures.stream.codec_context
    if context is None:
        return None
    if not context.is_open:
        context.thread_count = 1
        context.thread_type = "NONE"
    try:
        return next(iter(context.decode(packet)), None)
    except (av.error.FFmpegError, ValueError):
        return None


def _output(wanted: set[int] | None, base: Fraction, sample: Any, hwaccel: str | None) -> dict[str, Any]:
    """Output options of the raw video: every picture as it is, with its time."""
    filters = []
    if wanted is not None:
        chosen = "+".join(f"eq(pts,{tick})" for tick in sorted(wanted))
        if len(chosen) < _EXPRESSION:
            filters.append(f"select='{chosen}'")
    if sample is None or hwaccel:
        filters.append(f"format={_FORMATS}")
    output = {"c:v": "rawvideo", "fps_mode": "passthrough", "enc_time_base:v": f"{base.numerator}/{base.denominator}"}
    if filters:
        output["vf"] = ",".join(filters)
    return output | {"upright": sample is None}


def _check(tick: int, last: int | None, frame: Any, scan: _Scan, hwaccel: str | None) -> None:
    """Refuse what ffmpeg and PyAV do not see alike."""
    if (last is not None and tick <= last) or (scan.timed and tick not in scan.ends and tick <= max(scan.ends)):
        raise DamageError(f"ffmpeg shows a picture at tick {tick}, where the file has none")
    if scan.sample is not None and not hwaccel:
        name = scan.sample.format.name.replace("yuvj", "yuv")
        if frame.format.name != name:
            raise ClipError("decoder_error", f"pictures of pixel format {name} cannot be taken over from ffmpeg")


def _named(raw: Any, sample: Any) -> Any:
    """A raw picture with all that the decoder says of its pictures: matrix, range, chroma location, orientation."""
    if sample is None or sample.format.name == "pal8":
        return raw
    frame = sample.reformat(16, 16, "gray").reformat(
        raw.width, raw.height, raw.format.name
    )  # these keep its properties
    frame.colorspace = sample.colorspace
    frame.color_range = _FULL if sample.format.name.startswith("yuvj") else sample.color_range
    for target, source in zip(frame.planes, raw.planes):
        rows = np.frombuffer(source, np.uint8).reshape(source.height, source.line_size)
        width = min(source.line_size, target.line_size)
        np.frombuffer(target, np.uint8).reshape(target.height, target.line_size)[:, :width] = rows[:, :width]
    return frame
