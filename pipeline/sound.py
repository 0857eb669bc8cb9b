"""The sound of a clip: decoded, mixed to mono, resampled to 16 kHz and laid out on the clip's time line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import av.error
import numpy as np

from bmlpipe.pipeline.container import DamageError, Demuxer, missing_end, zero
from bmlpipe.pipeline.features import ClipError
from bmlpipe.pipeline.spectrogram import RATE, Floats

#: A jump of the sound's clock larger than this is a gap and becomes silence, in seconds; smaller ones are rounding.
GAP = Fraction(1, 20)


@dataclass
class Sound:
    """The sound of a clip, up to `samples` samples.

    Attributes:
        stream: The audio stream.
        demuxer: Where its packets come from.
        begin: Clip's start, in seconds of the stream's clock.
        samples: Samples wanted, at 16 kHz.
        gaps: Silence stands for a part that the file does not hold.
        count: Frames decoded.
        lost: Packets that could not be decoded.
    """

    stream: Any
    demuxer: Demuxer
    begin: Fraction
    samples: int
    gaps: bool = False
    count: int = 0
    lost: int = 0
    _end: Fraction = Fraction(0)  # end of the last packet read, seconds of the stream's clock

    def read(self) -> Floats:
        """Decode until enough sound is there or the file ends: (n,) float32, n ≤ samples.

        Stereo and more channels are mixed by libswresample's own weights, scaled so that full scale stays full scale.
        """
        out = np.zeros(self.samples, np.float32)
        end = 0  # samples written
        resampler: Any = None
        key: Any = None
        at = 0  # where the next resampled sample goes
        clock = Fraction(0)  # where the next decoded frame should begin, seconds of the clip

        def write(frames: list[Any]) -> None:
            nonlocal at, end
            for frame in frames:
                data = frame.to_ndarray()[0]
                begin, stop = max(at, end, 0), min(at + data.size, out.size)
                if stop > begin:
                    out[begin:stop] = data[begin - at : stop - at]
                    end = stop
                at += data.size

        for frame in self._frames():
            time = clock if frame.pts is None else frame.pts * frame.time_base - self.begin
            form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is None or form != key or abs(time - clock) > GAP:
                if resampler is not None:
                    write(resampler.resample(None))
                elif self.demuxer.sought and time > GAP:
                    raise DamageError  # the seek went too far: earlier sound may be there
                self.gaps |= time - clock > GAP
                options = {"rematrix_maxval": "1.0"}
                resampler, key = av.AudioResampler(format="flt", layout="mono", rate=RATE, options=options), form
                at, clock = round(time * RATE), time
            clock += Fraction(frame.samples, frame.sample_rate)
            write(resampler.resample(frame))
            if end >= self.samples:
                break
        if resampler is not None and end < self.samples:
            write(resampler.resample(None))
        if self.lost:  # what cannot be decoded at the end is silence too
            end = max(end, min(self.samples, round((self._end - self.begin) * RATE)))
        return out[:end]

    def check_complete(self, samples: int) -> None:
        """Refuse sound that ends before what the file's header promises.

        Args:
            samples: How many samples there are.

        Raises:
            ClipError: `truncated`.
        """
        end = self.begin + Fraction(samples, RATE)
        if samples < self.samples and missing_end(self.stream, self.demuxer, end, end):
            got = float(end - zero(self.stream))
            raise ClipError(
                "truncated", f"the sound ends after {got:.2f} s, its header promises more: copy or download it again"
            )

    def _frames(self) -> Iterator[Any]:
        context = self.stream.codec_context
        context.thread_count = 1
        context.thread_type = "NONE"
        for packet in chain(self.demuxer.packets(self.stream), (None,)):
            if packet is not None and packet.pts is not None:
                self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            try:
                frames = context.decode(packet)
            except av.error.EOFError:
                frames = []
            except (av.error.FFmpegError, ValueError):
                self.lost += bool(self.count) or not self.demuxer.sought  # a seek may land within a sound frame
                continue
            self.count += len(frames)
            yield from frames
