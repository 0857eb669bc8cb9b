"""The sound of a clip: decoded, mixed to mono, resampled (to 16 kHz) and laid out on the clip's time line."""

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

from bmlpipe.pipeline.front_ends.spectrogram import Floats
from bmlpipe.pipeline.media.container import Demuxer, missing_end, zero
from bmlpipe.pipeline.media.errors import ClipError, DamageError

#: A jump of the sound's clock larger than this is a gap and becomes silence, in seconds; smaller ones are rounding.
GAP = 0.05

#: The same, once packets have been lost: what follows must not move into their place.
SLIP = 0.005


@dataclass
class Sound:
    """The sound of a clip, `length` seconds of it at most.

    Attributes:
        stream: The audio stream.
        demuxer: Where its packets come from.
        begin: Clip's start, in seconds of the stream's clock.
        length: Seconds wanted.
        gaps: Silence stands for a part that the file does not hold.
        count: Frames decoded.
        lost: Packets that could not be decoded.
    """

    stream: Any
    demuxer: Demuxer
    begin: Fraction
    length: Fraction
    gaps: bool = False
    count: int = 0
    lost: int = 0

    def read(self, rates: Sequence[int], frames: Iterable[Any] | None = None) -> dict[int, Floats]:
        """Decode until enough sound is there or the file ends.

        Args:
            rates: Sampling rates wanted, in Hz.
            frames: The decoded sound, from another decoder; None: decode it here.

        Returns:
            Rate → (n,) float32, n ≤ length · rate.

        Raises:
            DamageError: The sound was sought for and begins after the clip's start.
        """
        tracks = [_Track(rate, self.begin, round(self.length * rate), self.demuxer.sought) for rate in set(rates)]
        for frame in self._frames() if frames is None else frames:
            for track in tracks:
                track.take(frame, SLIP if self.lost else GAP)
            if all(track.full for track in tracks):
                break
        self.gaps = any(track.gaps for track in tracks)
        # What cannot be decoded at the end is silence too.
        stop = self.demuxer.end(self.stream) - self.begin if self.lost else Fraction(0)
        return {track.rate: track.finish(stop) for track in tracks}

    def check_complete(self, length: Fraction) -> None:
        """Refuse sound that ends before what the file's header promises.

        Args:
            length: How many seconds there are.

        Raises:
            ClipError: `truncated`.
        """
        end = self.begin + length
        if length < self.length and missing_end(self.stream, self.demuxer, end, end):
            got = float(end - zero(self.stream))
            raise ClipError(
                "truncated", f"the sound ends after {got:.2f} s, its header promises more: copy or download it again"
            )

    def _frames(self) -> Iterator[Any]:
        context = self.stream.codec_context
        context.thread_count = 1
        context.thread_type = "NONE"
        for packet in chain(self.demuxer.packets(self.stream), (None,)):
            try:
                frames = context.decode(packet)
            except av.error.EOFError:
                frames = []
            except (av.error.FFmpegError, ValueError):
                self.lost += bool(self.count) or not self.demuxer.sought  # a seek may land within a sound frame
                continue
            self.count += len(frames)
            yield from frames


class _Track:
    """A clip's sound at one rate.

    Args:
        rate: Samples a second.
        begin: Clip's start, in seconds of the stream's clock.
        samples: Samples wanted.
        sought: Reading began somewhere in the middle.

    Attributes:
        gaps: Silence stands for a part that the file does not hold.
        full: There is enough.
    """

    def __init__(self, rate: int, begin: Fraction, samples: int, sought: bool) -> None:
        self.rate, self.gaps, self.full = rate, False, False
        self._begin, self._sought = begin, sought
        self._out = np.zeros(samples, np.float32)
        self._end = 0  # samples written
        self._run: _Run | None = None

    def take(self, frame: Any, tolerance: float) -> None:
        """Take a frame in, unless there is enough; a jump of more than `tolerance` seconds is a gap."""
        if self.full:
            return
        run = self._run
        jump = math.inf if run is None else run.jump(frame)
        if run is None or abs(jump) > tolerance or not run.takes(frame):
            if run is not None:
                self._end = run.write(self._out, self._end)
                self.gaps |= jump > GAP
            begin = self._begin if frame.pts is None else frame.pts * frame.time_base
            if run is None and begin - self._begin > GAP:
                if self._sought:
                    raise DamageError  # the seek went too far: earlier sound may be there
                self.gaps = True
            run = self._run = _Run(frame, round((begin - self._begin) * self.rate), self.rate)
        run.push(frame)
        self.full = run.at + run.taken * self.rate // run.rate > self._out.size

    def finish(self, stop: Fraction) -> Floats:
        """What was taken in, and silence up to `stop` seconds of the clip."""
        if self._run is not None:
            self._end = self._run.write(self._out, self._end)
        self._end = max(self._end, min(self._out.size, round(stop * self.rate)))
        return self._out[: self._end]


class _Run:
    """A stretch of sound without gaps, on its way through libswresample.

    Channels are mixed by libswresample's own weights, scaled so that full scale stays full scale.

    Args:
        first: Its first frame.
        at: Where it begins in the clip, in samples of the output; may be negative.
        out_rate: Samples a second of the output.

    Attributes:
        taken: Samples pushed so far.
        rate: Samples a second of what is pushed.
    """

    def __init__(self, first: Any, at: int, out_rate: int) -> None:
        self.at, self.taken, self.rate = at, 0, first.sample_rate
        self._begin, self._base = first.pts or 0, first.time_base
        self._form = (first.format.name, first.layout.name)
        self._graph = av.filter.Graph()
        names = {"sample_fmt": self._form[0], "channel_layout": self._form[1]}
        source = self._graph.add("abuffer", sample_rate=str(self.rate), time_base=str(self._base), **names)
        options = f"{out_rate}:rematrix_maxval=1.0:out_chlayout=mono:out_sample_fmt=flt"
        self._graph.link_nodes(
            source, self._graph.add("aresample", options), self._graph.add("abuffersink")
        ).configure()
        self._graph.set_audio_frame_size(out_rate)

    def takes(self, frame: Any) -> bool:
        """Whether a frame is of the form of the others."""
        return frame.sample_rate == self.rate and (frame.format.name, frame.layout.name) == self._form

    def jump(self, frame: Any) -> float:
        """How much later than the end of what was pushed a frame begins, in seconds."""
        if frame.pts is None:
            return 0.0
        return float((frame.pts - self._begin) * self._base.numerator / self._base.denominator - self.taken / self.rate)

    def push(self, frame: Any) -> None:
        """Take a frame."""
        self._graph.push(frame)
        self.taken += frame.samples

    def write(self, out: Floats, end: int) -> int:
        """Resample what was pushed into its place, not before `end`; returns the new end. Ends the run."""
        self._graph.push(None)
        at = self.at
        while at < out.size:
            try:
                data = self._graph.pull().to_ndarray()[0]
            except (av.error.EOFError, av.error.BlockingIOError):
                break
            begin, stop = max(at, end), min(at + data.size, out.size)
            if stop > begin:
                out[begin:stop] = data[begin - at : stop - at]
                end = stop
            at += data.size
        return end
