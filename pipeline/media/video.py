"""Decode a video with PyAV and select the frames shown at whole seconds.

All times are exact: either rational seconds, or integer ticks of the stream's time base. The clip's time zero is the
start of its stream.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from typing import Any, NamedTuple

import av.error

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.media.container import Demuxer, is_truncated, start_time
from bmlpipe.pipeline.media.errors import ClipError, DamageError


class ClipSpan:
    """The part of a file that is one clip, in exact seconds.

    Args:
        start: Seconds from the file's beginning to the clip's; 0 or more.
        duration: Length of the clip in seconds, above 0; None: to the end of the file.
        seconds: Largest number of instants (0, 1, 2 … s), and the length that sound is tiled or cut to; None: every
            instant.

    Attributes:
        start: See above.
        length: The duration; None: to the end of the file.
        seconds: See above.
        instants: Number of instants that the clip should have; None: as many as the file has.

    Raises:
        OptionError: A value is out of range.
    """

    def __init__(self, start: float = 0.0, duration: float | None = None, seconds: int | None = None) -> None:
        if not (math.isfinite(start) and start >= 0):
            raise OptionError(f"start is {start}: must be 0 or more seconds")
        if duration is not None and not (math.isfinite(duration) and duration > 0):
            raise OptionError(f"duration is {duration}: must be above 0 seconds")
        self.start = Fraction(repr(float(start)))  # the decimal number that was written, not its binary neighbour
        self.length = None if duration is None else Fraction(repr(float(duration)))
        self.seconds = seconds
        limits = [
            limit for limit in (seconds, None if self.length is None else math.ceil(self.length)) if limit is not None
        ]
        self.instants = min(limits) if limits else None


class TimedFrame(NamedTuple):
    """A frame and its presentation time.

    Attributes:
        pts: When the frame is first shown, in ticks of the stream's time base.
        image: The decoded frame (`av.VideoFrame`); None if the frame was not decoded.
    """

    pts: int
    image: Any


@dataclass
class VideoDecoder:
    """A decoder of the video of a clip to frames in display order.

    Attributes:
        stream: The video stream.
        demuxer: Supplies the stream's packets.
        raise_on_damage: Raise `DamageError` at the first sign of damage. Otherwise decode as far as possible and record
            the damage in `lost_pts`.
        lost_pts: Presentation times of frames that could not be decoded, or only in part.
        timestamps_repaired: Some presentation times did not increase and were replaced.
        end_pts: When the last frame decoded so far ends.
        decoded_count: Number of frames decoded so far.
        skipped_packets: Number of packets left out before the last one that was decoded.
        rotation: Rotation that the file requests for display, in degrees counter-clockwise.
    """

    stream: Any
    demuxer: Demuxer
    raise_on_damage: bool = True
    lost_pts: list[int] = field(default_factory=list)
    timestamps_repaired: bool = False
    end_pts: int = 0
    decoded_count: int = 0
    skipped_packets: int = 0
    rotation: int = 0

    @property
    def frame_duration(self) -> int:
        """Ticks per frame at the nominal frame rate; 1 if the rate is unknown."""
        rate = self.stream.average_rate
        return max(1, round(1 / (rate * self.stream.time_base))) if rate else 1

    def pts_at(self, span: ClipSpan, instant: int) -> int:
        """Return the last tick that is not after an instant, given in whole seconds from the clip's start."""
        base: Fraction = self.stream.time_base
        return math.floor((start_time(self.stream) + span.start + instant) / base)

    def seconds_from_start(self, pts: int, span: ClipSpan) -> float:
        """Convert a presentation time to seconds from the clip's start."""
        return float(pts * self.stream.time_base - start_time(self.stream) - span.start)

    def __iter__(self) -> Iterator[TimedFrame]:
        return self.decode(self.demuxer.packets(self.stream))

    def decode(self, packets: Iterable[Any]) -> Iterator[TimedFrame]:
        """Decode packets, given in decoding order, to frames in display order.

        Raises:
            DamageError: A packet cannot be decoded and `raise_on_damage` is set.
            ClipError: `decoder_error`.
        """
        context = self.stream.codec_context
        context.thread_count = 1
        context.thread_type = "NONE"
        if self.raise_on_damage:
            context.options = {"err_detect": "explode"}
        # AVI stores no presentation times: frames are timed by the order in which the decoder returns them.
        by_dts = self.stream.container.format.name == "avi"
        duration = self.frame_duration
        first = last = delay = None
        for packet in chain(packets, (None,)):
            if first is None and packet is not None:
                first = packet.dts
            for image in self._decode_packet(packet):
                self.decoded_count += 1
                pts = image.pts
                if by_dts or pts is None:
                    pts = image.dts
                    if pts is not None and by_dts:
                        delay = pts - (first or 0) if delay is None else delay
                        pts -= delay
                if pts is None:
                    pts = (self.stream.start_time or 0) if last is None else last + duration
                if last is not None and pts <= last:
                    self.timestamps_repaired = True
                    pts = last + duration
                if image.is_corrupt:
                    self._record_loss(pts)
                    continue
                if self.demuxer.packets_missing and (
                    self.raise_on_damage or (last is not None and 2 * (pts - last) > 3 * duration)
                ):
                    self._record_loss(pts - 1)  # the missing packets may have held frames before this one
                if last is None:
                    self.rotation = image.rotation
                last, self.end_pts = pts, pts + (image.duration or duration)
                yield TimedFrame(pts, image)

    def _decode_packet(self, packet: Any) -> list[Any]:
        """Decode one packet; None flushes the frames that the decoder still holds."""
        pts = None if packet is None else packet.dts if packet.pts is None else packet.pts
        if packet is not None and packet.is_corrupt:
            self._record_loss(pts)
        try:
            return list(self.stream.codec_context.decode(packet))
        except av.error.EOFError:
            return []
        except (av.error.FFmpegError, ValueError) as error:
            if not self.decoded_count and not isinstance(error, av.error.InvalidDataError):
                name = self.stream.codec_context.name
                raise ClipError("decoder_error", f"the {name} decoder rejected the stream: {error}") from error
            self._record_loss(pts)
            return []

    def _record_loss(self, pts: int | None) -> None:
        if self.raise_on_damage:
            raise DamageError
        if pts is not None:
            self.lost_pts.append(pts)


class SelectedFrames(NamedTuple):
    """The frames selected for one instant of a clip.

    Attributes:
        instant: Whole seconds from the clip's start.
        shown: The frame on display at the instant.
        frames: `shown` and the `lookahead` frames that follow it. Where fewer follow: the last `lookahead` + 1 frames.
        frame_index: Number of frames before `shown`, counted from where decoding began.
        late: The first decodable frame comes after the instant.
        moved: `frames` begins before `shown`, because fewer than `lookahead` frames follow it.
    """

    instant: int
    shown: TimedFrame
    frames: tuple[TimedFrame, ...]
    frame_index: int
    late: bool
    moved: bool

    def narrowed(self, lookahead: int) -> tuple[tuple[TimedFrame, ...], bool]:
        """Return `frames` and `moved` as they would be for a smaller `lookahead`."""
        begin = min(self.frames.index(self.shown), len(self.frames) - 1 - lookahead)
        return self.frames[begin : begin + lookahead + 1], self.frames[begin] != self.shown


def select_frames_at_instants(
    decoder: VideoDecoder, span: ClipSpan, lookahead: int = 0, frames: Iterable[TimedFrame] | None = None
) -> Iterator[SelectedFrames]:
    """Select the frame shown at each whole second of a clip: the last one whose presentation time is not after it.

    Decoding stops with the last frame needed. At most `lookahead` + 2 frames are held in memory, except where the
    frames of consecutive instants overlap.

    Args:
        decoder: The video.
        span: The clip's span.
        lookahead: Number of frames needed after the frame shown at each instant.
        frames: The frames in display order; None: every frame of `decoder`.

    Raises:
        ClipError: `no_frames`, or `too_few_frames` if the clip has fewer than `lookahead` + 1 frames.
        DamageError: After a seek, the first frame comes after the first instant; or `VideoDecoder.raise_on_damage`
            applies.
    """
    held: deque[TimedFrame] = deque()  # frames number `count - len(held)` to `count - 1`
    pending: deque[tuple[int, int, bool]] = deque()  # (instant, index, late) of instants that still lack frames
    count = instant = 0
    limit = span.instants
    target = decoder.pts_at(span, 0)

    def selected(instant: int, index: int, late: bool) -> SelectedFrames:
        base = count - len(held)
        begin = min(index, count - 1 - lookahead) - base
        following = tuple(held[at] for at in range(begin, begin + lookahead + 1))
        return SelectedFrames(instant, held[index - base], following, index, late, moved=begin < index - base)

    for frame in decoder if frames is None else frames:
        while frame.pts > target and (limit is None or instant < limit):
            if not count and decoder.demuxer.has_seeked:
                raise DamageError  # the seek landed after the clip's start
            pending.append((instant, max(count - 1, 0), count == 0))
            instant += 1
            target = decoder.pts_at(span, instant)
        held.append(frame)
        count += 1
        while pending and count > pending[0][1] + lookahead:
            yield selected(*pending.popleft())
        if limit is not None and instant == limit and not pending:
            return
        oldest_needed = min(pending[0][1] if pending else count - 1, count - 1 - lookahead)
        while count - len(held) < oldest_needed:
            held.popleft()
    while (limit is None or instant < limit) and count and decoder.pts_at(span, instant) < decoder.end_pts:
        pending.append((instant, count - 1, False))
        instant += 1
    if not count:
        if decoder.demuxer.has_seeked:
            raise DamageError  # no key frame follows, but there may be one before
        raise ClipError("no_frames", "no picture of the video stream can be decoded")
    if pending and count <= lookahead:
        raise ClipError("too_few_frames", f"the clip has {count} decodable pictures, but {lookahead + 1} are needed")
    while pending:
        yield selected(*pending.popleft())


def check_complete(decoder: VideoDecoder, span: ClipSpan, instants: int) -> None:
    """Reject a clip whose file ends before the length in its header, so that instants are missing.

    Args:
        decoder: The video, decoded to the last frame needed.
        span: The clip's span.
        instants: Number of instants that were found.

    Raises:
        ClipError: `truncated`, or `start_past_end` if the clip begins after the video's end.
    """
    if instants == span.instants:
        return
    stream = decoder.stream
    base = stream.time_base
    end = decoder.end_pts * base
    end_seconds = float(end - start_time(stream))
    if is_truncated(stream, decoder.demuxer, end, start_time(stream) + span.start + instants):
        raise ClipError(
            "truncated",
            f"the video ends after {end_seconds:.2f} s, but its header promises more: copy or download it again",
        )
    if not instants:
        raise ClipError(
            "start_past_end",
            f"the clip begins at {float(span.start):g} s, but the video ends after {end_seconds:.2f} s",
        )
