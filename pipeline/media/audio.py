"""Decode the audio of a clip, mix it to mono, resample it and place it on the clip's time line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import av.error
import av.filter
import numpy as np
import numpy.typing as npt

from bmlpipe.pipeline.media.container import Demuxer, is_truncated, start_time
from bmlpipe.pipeline.media.errors import ClipError, DamageError

Samples = npt.NDArray[np.float32]

#: A forward jump of the stream's clock by more than this many seconds is a gap and becomes silence. Smaller jumps are
#: rounding errors of the container's time stamps.
GAP_THRESHOLD = 0.05

#: The same threshold once packets have been lost: the samples that follow must not take their place.
GAP_THRESHOLD_AFTER_LOSS = 0.005


@dataclass
class AudioDecoder:
    """A decoder of the audio of a clip, at most `length` seconds of it.

    Attributes:
        stream: The audio stream.
        demuxer: Supplies the stream's packets.
        start: The clip's start, in seconds of the stream's clock.
        length: Seconds to decode.
        has_gaps: Silence was inserted for a part that the file does not hold.
        decoded_count: Number of audio frames decoded.
        lost_packets: Number of packets that could not be decoded.
    """

    stream: Any
    demuxer: Demuxer
    start: Fraction
    length: Fraction
    has_gaps: bool = False
    decoded_count: int = 0
    lost_packets: int = 0

    def read(self, rates: Sequence[int], frames: Iterable[Any] | None = None) -> dict[int, Samples]:
        """Decode until `length` seconds are complete or the file ends.

        Args:
            rates: Sampling rates to resample to, in Hz.
            frames: Frames (`av.AudioFrame`) decoded elsewhere; None: decode the stream's packets.

        Returns:
            Sampling rate → mono samples in [-1, 1], shape (n,), float32, n ≤ length · rate.

        Raises:
            DamageError: After a seek, the audio begins after the clip's start.
        """
        tracks = [_Track(rate, self.start, round(self.length * rate), self.demuxer.has_seeked) for rate in set(rates)]
        for frame in self._decode() if frames is None else frames:
            for track in tracks:
                track.add(frame, GAP_THRESHOLD_AFTER_LOSS if self.lost_packets else GAP_THRESHOLD)
            if all(track.full for track in tracks):
                break
        self.has_gaps = any(track.has_gaps for track in tracks)
        # Packets that cannot be decoded at the end of the stream become silence, too.
        end = self.demuxer.end_time(self.stream) - self.start if self.lost_packets else Fraction(0)
        return {track.rate: track.finish(end) for track in tracks}

    def check_complete(self, length: Fraction) -> None:
        """Reject audio that ends before the length in the file's header.

        Args:
            length: Seconds that were decoded.

        Raises:
            ClipError: `truncated`.
        """
        end = self.start + length
        if length < self.length and is_truncated(self.stream, self.demuxer, end, end):
            seconds = float(end - start_time(self.stream))
            raise ClipError(
                "truncated",
                f"the audio ends after {seconds:.2f} s, but its header promises more: copy or download it again",
            )

    def _decode(self) -> Iterator[Any]:
        context = self.stream.codec_context
        context.thread_count = 1
        context.thread_type = "NONE"
        for packet in chain(self.demuxer.packets(self.stream), (None,)):
            try:
                frames = context.decode(packet)
            except av.error.EOFError:
                frames = []
            except (av.error.FFmpegError, ValueError):
                # A seek may land within an audio frame, so errors before the first decoded frame are no damage then.
                self.lost_packets += bool(self.decoded_count) or not self.demuxer.has_seeked
                continue
            self.decoded_count += len(frames)
            yield from frames


class _Track:
    """A clip's audio at one sampling rate: contiguous segments at their places, with silence between them.

    Args:
        rate: Samples per second.
        start: The clip's start, in seconds of the stream's clock.
        samples: Number of samples of the whole clip.
        has_seeked: Reading began in the middle of the file.

    Attributes:
        has_gaps: Silence was inserted for a part that the file does not hold.
        full: No more frames are needed.
    """

    def __init__(self, rate: int, start: Fraction, samples: int, has_seeked: bool) -> None:
        self.rate, self.has_gaps, self.full = rate, False, False
        self._start, self._has_seeked = start, has_seeked
        self._samples = np.zeros(samples, np.float32)
        self._written = 0
        self._segment: _Segment | None = None

    def add(self, frame: Any, gap_threshold: float) -> None:
        """Add a frame unless the track is full. A jump of more than `gap_threshold` seconds starts a new segment."""
        if self.full:
            return
        segment = self._segment
        jump = math.inf if segment is None else segment.jump_to(frame)
        if segment is None or abs(jump) > gap_threshold or not segment.has_same_format(frame):
            if segment is not None:
                self._written = segment.write(self._samples, self._written)
                self.has_gaps |= jump > GAP_THRESHOLD
            begin = self._start if frame.pts is None else frame.pts * frame.time_base
            if segment is None and begin - self._start > GAP_THRESHOLD:
                if self._has_seeked:
                    raise DamageError  # the seek landed too late: there may be audio before
                self.has_gaps = True
            segment = self._segment = _Segment(frame, round((begin - self._start) * self.rate), self.rate)
        segment.push(frame)
        self.full = segment.position + segment.pushed * self.rate // segment.rate > self._samples.size

    def finish(self, end: Fraction) -> Samples:
        """Return the samples so far, extended by silence up to `end` seconds from the clip's start."""
        if self._segment is not None:
            self._written = self._segment.write(self._samples, self._written)
        self._written = max(self._written, min(self._samples.size, round(end * self.rate)))
        return self._samples[: self._written]


class _Segment:
    """Audio without gaps, resampled and mixed to mono by libswresample.

    The channels are mixed by libswresample's own weights, scaled so that full scale stays full scale.

    Args:
        first: The first frame.
        position: Index in the clip's output at which the segment begins; may be negative.
        out_rate: Samples per second of the output.

    Attributes:
        pushed: Number of input samples pushed so far.
        rate: Samples per second of the input.
    """

    def __init__(self, first: Any, position: int, out_rate: int) -> None:
        self.position, self.pushed, self.rate = position, 0, first.sample_rate
        self._first_pts, self._time_base = first.pts or 0, first.time_base
        self._format = (first.format.name, first.layout.name)
        self._graph = av.filter.Graph()
        names = {"sample_fmt": self._format[0], "channel_layout": self._format[1]}
        source = self._graph.add("abuffer", sample_rate=str(self.rate), time_base=str(self._time_base), **names)
        options = f"{out_rate}:rematrix_maxval=1.0:out_chlayout=mono:out_sample_fmt=flt"
        resampler, sink = self._graph.add("aresample", options), self._graph.add("abuffersink")
        self._graph.link_nodes(source, resampler, sink).configure()
        self._graph.set_audio_frame_size(out_rate)

    def has_same_format(self, frame: Any) -> bool:
        """Return whether a frame has the sampling rate, sample format and channel layout of this segment."""
        return frame.sample_rate == self.rate and (frame.format.name, frame.layout.name) == self._format

    def jump_to(self, frame: Any) -> float:
        """Return the seconds from the end of the pushed samples to the start of `frame`; negative if they overlap."""
        if frame.pts is None:
            return 0.0
        ticks = frame.pts - self._first_pts
        return float(ticks * self._time_base.numerator / self._time_base.denominator - self.pushed / self.rate)

    def push(self, frame: Any) -> None:
        """Append a frame."""
        self._graph.push(frame)
        self.pushed += frame.samples

    def write(self, out: Samples, written: int) -> int:
        """Resample the pushed frames and write them into `out`, but not before index `written`. Ends the segment.

        Returns:
            The number of samples of `out` that are now written.
        """
        self._graph.push(None)
        position = self.position
        while position < out.size:
            try:
                data = self._graph.pull().to_ndarray()[0]
            except (av.error.EOFError, av.error.BlockingIOError):
                break
            begin, end = max(position, written), min(position + data.size, out.size)
            if end > begin:
                out[begin:end] = data[begin - position : end - position]
                written = end
            position += data.size
        return written
