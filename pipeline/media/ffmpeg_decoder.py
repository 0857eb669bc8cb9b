"""Decode a clip with an ffmpeg program instead of PyAV: the same frames at the same times, and the same audio.

PyAV still reads the container: it chooses the stream, and knows the packets' presentation times, the colours and the
rotation. ffmpeg demuxes and decodes by itself. A frame whose time is not that of a packet is rejected, so an error of
either program cannot pass unnoticed.
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

from bmlpipe.pipeline.media.audio import AudioDecoder, Samples
from bmlpipe.pipeline.media.errors import ClipError, DamageError
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
from bmlpipe.pipeline.media.h264_skip import MAX_REORDER, selected_pts
from bmlpipe.pipeline.media.video import ClipSpan, TimedFrame, VideoDecoder

_MAX_EXPRESSION = 100_000  # characters of ffmpeg's select filter; Linux accepts 131,071 in one argument
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_MAX_DELAY = 40  # packets within which a decoder returns its first frame

# Pixel formats that NUT can store and into which ffmpeg may convert others (of hardware decoders, or of codecs that
# PyAV does not know).
_PIXEL_FORMATS = (
    "yuv420p|yuvj420p|nv12|yuv422p|yuvj422p|yuv444p|yuvj444p|yuv420p10le|yuv422p10le|yuv444p10le|"
    "yuv420p12le|yuv422p12le|yuv444p12le|gray|rgb24|bgra"
)
_PCM_CODECS = {"u8": "pcm_u8", "s16": "pcm_s16le", "s32": "pcm_s32le", "s64": "pcm_s64le", "dbl": "pcm_f64le"}


def decode_with_ffmpeg(
    ffmpeg: FFmpeg,
    path: Path,
    decoder: VideoDecoder,
    span: ClipSpan,
    lookahead: int,
    *,
    seek_time: Fraction | None = None,
    skip_unneeded: bool = True,
) -> Generator[TimedFrame, None, None]:
    """Yield the frames of a clip in display order, as `VideoDecoder.decode` does.

    Args:
        ffmpeg: The program.
        path: The file.
        decoder: The video, of which nothing has been read yet. It decodes one frame for its colours and rotation.
        span: The clip's span.
        lookahead: Number of frames needed after the frame shown at each instant.
        seek_time: Where `decoder.demuxer` has seeked to, in seconds of the file's clock; None: it has not.
        skip_unneeded: Transfer only the frames needed; all others come with `image` None.

    Raises:
        DamageError: ffmpeg met an error, or did not return a frame that is needed. Try again without `skip_unneeded`
            or `seek_time`.
        ClipError: `decoder_error` or `timeout`.
    """
    by_dts = decoder.stream.container.format.name == "avi"
    if by_dts and seek_time is not None:
        raise DamageError("AVI files store no times by which two decoders could agree on where a seek landed")
    scan = _scan_packets(decoder, span, lookahead, by_dts)
    if decoder.demuxer.packets_missing:
        raise DamageError("a part of the container cannot be read, so packets may be missing")
    selected: set[int] | None = None
    if skip_unneeded and scan.ends and scan.all_timed and not by_dts and span.instants is not None:
        decoder.end_pts = scan.end_pts
        selected = selected_pts(decoder, span, lookahead, [TimedFrame(pts, None) for pts in sorted(scan.ends)])
    output = _output_options(selected, decoder.stream.time_base, scan.sample, ffmpeg.hwaccel)
    images = ffmpeg.frames(path, decoder.stream, output, exit_on_error=True, seek_time=seek_time)
    frames = _timed(images, decoder, scan, by_dts, ffmpeg.hwaccel)
    return _all_frames(frames, decoder, scan) if selected is None else _some_frames(frames, decoder, scan, selected)


def read_audio_with_ffmpeg(
    ffmpeg: FFmpeg, path: Path, audio: AudioDecoder, rates: Sequence[int], *, seek_time: Fraction | None = None
) -> dict[int, Samples]:
    """Decode as `AudioDecoder.read` does, but with ffmpeg, at the file's own rate and sample format.

    Args:
        ffmpeg: The program.
        path: The file.
        audio: The audio to decode, of which nothing has been read yet.
        rates: Sampling rates to resample to, in Hz.
        seek_time: As for `decode_with_ffmpeg`.

    Raises:
        DamageError: After a seek, the audio begins after the clip's start.
        ClipError: `decoder_error` or `timeout`.
    """
    stream, context = audio.stream, audio.stream.codec_context
    packet_count = 0
    for packet in audio.demuxer.packets(stream):
        packet_count += 1
        if packet.pts is not None and packet.pts * stream.time_base > audio.start + audio.length:
            break
    sample_format = (
        context.format.name.removesuffix("p") if context is not None and context.format is not None else "flt"
    )
    layout = context.layout.name if context is not None and context.layout.nb_channels else None
    output = {"c:a": _PCM_CODECS.get(sample_format, "pcm_f32le")}

    def frames(exit_on_error: bool) -> Generator[Any, None, None]:
        decoded = ffmpeg.frames(
            path, stream, output, exit_on_error=exit_on_error, seek_time=seek_time, channel_layout=layout
        )
        with closing(decoded):
            try:
                for frame in decoded:
                    audio.decoded_count += 1
                    yield frame
            except DamageError:
                if exit_on_error:
                    raise
                audio.lost_packets = max(1, packet_count - audio.decoded_count)

    try:
        return audio.read(rates, frames(exit_on_error=True))
    except DamageError:
        audio.decoded_count, audio.lost_packets = 0, 1
    return audio.read(rates, frames(exit_on_error=False))


def _all_frames(
    frames: Generator[TimedFrame, None, None], decoder: VideoDecoder, scan: _PacketScan
) -> Generator[TimedFrame, None, None]:
    with closing(frames):
        for frame in frames:
            decoder.end_pts = scan.ends.get(frame.pts, frame.pts + decoder.frame_duration)
            yield frame


def _some_frames(
    frames: Generator[TimedFrame, None, None], decoder: VideoDecoder, scan: _PacketScan, selected: set[int]
) -> Generator[TimedFrame, None, None]:
    """Yield all frames of the scan, of which only those selected are taken from `frames`."""
    last = max(selected, default=None)
    with closing(frames):
        for pts in sorted(scan.ends):
            frame = next(frames, None) if pts in selected else TimedFrame(pts, None)
            while frame is not None and frame.pts < pts:  # ffmpeg returned a frame that was not selected
                frame = next(frames, None)
            if frame is None or frame.pts != pts:
                raise DamageError(f"ffmpeg did not return the frame with presentation time {pts}")
            yield frame
            if pts == last:
                frames.close()  # the rest of the file need not be decoded
    decoder.end_pts = scan.end_pts


def _timed(
    images: Generator[Any, None, None], decoder: VideoDecoder, scan: _PacketScan, by_dts: bool, hwaccel: str | None
) -> Generator[TimedFrame, None, None]:
    """Yield ffmpeg's frames with their presentation times and colours, checked against the container."""
    last = None
    delay = scan.delay
    with closing(images):
        try:
            for image in images:
                pts = round(image.pts * image.time_base / decoder.stream.time_base)
                if by_dts:
                    delay = pts - scan.first_dts if delay is None else delay
                    pts = scan.first_dts if last is None else pts - delay
                _check_frame(pts, last, image, scan, hwaccel)
                decoder.decoded_count += 1
                last = pts
                yield TimedFrame(pts, _with_properties(image, scan.sample))
        except DamageError as error:
            if (hwaccel and not decoder.decoded_count) or scan.sample is None:
                raise ClipError("decoder_error", f"ffmpeg cannot decode a single frame: {error}") from error
            raise


@dataclass
class _PacketScan:
    """The information about frames that the packets of a clip hold.

    Attributes:
        ends: Presentation time of each frame → when it ends, in ticks.
        first_dts: Decoding time of the first packet; 0 if it has none.
        delay: Ticks of decoding time from the first packet to the one that made the decoder return its first frame.
        all_timed: Every packet states a presentation time.
        sample: A decoded frame, for its colours and rotation; None: PyAV cannot decode this video.
    """

    ends: dict[int, int] = field(default_factory=dict)
    first_dts: int = 0
    delay: int | None = None
    all_timed: bool = True
    sample: Any = None

    @property
    def end_pts(self) -> int:
        """When the last frame ends, in ticks."""
        return self.ends[max(self.ends)] if self.ends else 0


def _scan_packets(decoder: VideoDecoder, span: ClipSpan, lookahead: int, by_dts: bool) -> _PacketScan:
    """Read the packets up to the last one that the clip needs."""
    scan = _PacketScan()
    last = None if span.instants is None else decoder.pts_at(span, span.instants - 1)
    beyond = 0
    for number, packet in enumerate(decoder.demuxer.packets(decoder.stream)):
        if not number:
            scan.first_dts = packet.dts or 0
        if number < _MAX_DELAY and scan.sample is None:
            scan.sample = _decode_sample(decoder, packet)
        pts = packet.dts if by_dts else packet.pts
        scan.all_timed &= pts is not None
        if pts is not None and not packet.is_discard:
            scan.ends[pts] = pts + (packet.duration or decoder.frame_duration)
            beyond += last is not None and pts > last
        if beyond > MAX_REORDER + lookahead + 1:
            break
    if scan.sample is None:
        scan.sample = _decode_sample(decoder, None)
    if scan.sample is not None:
        decoder.rotation = scan.sample.rotation
        scan.delay = None if scan.sample.dts is None else scan.sample.dts - scan.first_dts
    return scan


def _decode_sample(decoder: VideoDecoder, packet: Any) -> Any:
    """Decode a packet; return the first frame that PyAV gives for it, if any."""
    context = decoder.stream.codec_context
    if context is None:
        return None
    if not context.is_open:
        context.thread_count = 1
        context.thread_type = "NONE"
    try:
        return next(iter(context.decode(packet)), None)
    except (av.error.FFmpegError, ValueError):
        return None


def _output_options(selected: set[int] | None, base: Fraction, sample: Any, hwaccel: str | None) -> dict[str, Any]:
    """Make output options for raw, unchanged frames with their times; only the selected ones if that is possible."""
    filters = []
    if selected is not None:
        expression = "+".join(f"eq(pts,{pts})" for pts in sorted(selected))
        if len(expression) < _MAX_EXPRESSION:
            filters.append(f"select='{expression}'")
    if sample is None or hwaccel:
        filters.append(f"format={_PIXEL_FORMATS}")
    output = {"c:v": "rawvideo", "fps_mode": "passthrough", "enc_time_base:v": f"{base.numerator}/{base.denominator}"}
    if filters:
        output["vf"] = ",".join(filters)
    return output | {"upright": sample is None}


def _check_frame(pts: int, last: int | None, image: Any, scan: _PacketScan, hwaccel: str | None) -> None:
    """Reject a frame on which ffmpeg and PyAV do not agree."""
    if (last is not None and pts <= last) or (scan.all_timed and pts not in scan.ends and pts <= max(scan.ends)):
        raise DamageError(f"ffmpeg returned a frame with presentation time {pts}, where the file has none")
    if scan.sample is not None and not hwaccel:
        name = scan.sample.format.name.replace("yuvj", "yuv")
        if image.format.name != name:
            raise ClipError("decoder_error", f"frames of pixel format {name} cannot be transferred from ffmpeg")


def _with_properties(raw: Any, sample: Any) -> Any:
    """Give a raw frame the properties of decoded ones: colour matrix, range, chroma location and rotation."""
    if sample is None or sample.format.name == "pal8":
        return raw
    # Reformatting keeps the properties of the sample, whose pixels are then replaced.
    frame = sample.reformat(16, 16, "gray").reformat(raw.width, raw.height, raw.format.name)
    frame.colorspace = sample.colorspace
    frame.color_range = _FULL_RANGE if sample.format.name.startswith("yuvj") else sample.color_range
    for target, source in zip(frame.planes, raw.planes):
        rows = np.frombuffer(source, np.uint8).reshape(source.height, source.line_size)
        width = min(source.line_size, target.line_size)
        np.frombuffer(target, np.uint8).reshape(target.height, target.line_size)[:, :width] = rows[:, :width]
    return frame
