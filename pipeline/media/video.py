"""Decode a video with PyAV: its pictures with exact times, and those shown at whole seconds.

All times are exact: rational seconds, or integer ticks of the stream's time base. A stream's time zero is its start.
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

from bmlpipe.pipeline.media.container import Demuxer, missing_end, zero
from bmlpipe.pipeline.media.errors import ClipError, DamageError


class Window:
    """The stretch of a file that is one clip, in exact seconds.

    Attributes:
        start: From the file's beginning to the clip's.
        length: None: to the end of the file.
        seconds: Instants at most, and the length of the sound; None: every instant.
        instants: Instants that there should be; None: as many as there are.
    """

    def __init__(self, start: float = 0.0, duration: float | None = None, seconds: int | None = None) -> None:
        self.start = Fraction(repr(float(start)))  # the decimal number that was written, not its binary neighbour
        self.length = None if duration is None else Fraction(repr(float(duration)))
        self.seconds = seconds
        limits = [
            limit for limit in (seconds, None if self.length is None else math.ceil(self.length)) if limit is not None
        ]
        self.instants = min(limits) if limits else None


class Shot(NamedTuple):
    """One picture: the tick at which it is first shown, and its frame (an `av.VideoFrame`); None: not decoded."""

    tick: int
    frame: Any


@dataclass
class Pictures:
    """The video of a clip, decoded in display order.

    Attributes:
        stream: The video stream.
        demuxer: Where its packets come from.
        strict: Raise `DamageError` at the first sign of damage; else go on as far as possible and note it.
        lost: Ticks of pictures that could not be decoded, or not wholly.
        mended: Times ran backwards and were replaced.
        end: Tick at which the last picture so far ends.
        count: Pictures decoded so far.
        skipped: Packets left out before the last one decoded.
        rotation: Degrees, counter-clockwise, by which the file asks to turn its pictures.
    """

    stream: Any
    demuxer: Demuxer
    strict: bool = True
    lost: list[int] = field(default_factory=list)
    mended: bool = False
    end: int = 0
    count: int = 0
    skipped: int = 0
    rotation: int = 0

    @property
    def step(self) -> int:
        """Ticks from picture to picture at the nominal rate, 1 where it is unknown."""
        rate = self.stream.average_rate
        return max(1, round(1 / (rate * self.stream.time_base))) if rate else 1

    def tick(self, window: Window, instant: int) -> int:
        """The last tick not after an instant of a clip, in whole seconds from its start."""
        base: Fraction = self.stream.time_base
        return math.floor((zero(self.stream) + window.start + instant) / base)

    def seconds(self, tick: int, window: Window) -> float:
        """A tick as seconds from a clip's start."""
        return float(tick * self.stream.time_base - zero(self.stream) - window.start)

    def __iter__(self) -> Iterator[Shot]:
        return self.decode(self.demuxer.packets(self.stream))

    def decode(self, packets: Iterable[Any]) -> Iterator[Shot]:
        """Decode packets, in decoding order, to pictures in display order.

        Raises:
            DamageError: A packet cannot be decoded, if `strict`.
            ClipError: `decoder_error`.
        """
        context = self.stream.codec_context
        context.thread_count = 1
        context.thread_type = "NONE"
        if self.strict:
            context.options = {"err_detect": "explode"}
        by_dts = self.stream.container.format.name == "avi"  # AVI holds no presentation times: shown as they come out
        step = self.step
        first = last = delay = None
        for packet in chain(packets, (None,)):
            if first is None and packet is not None:
                first = packet.dts
            for frame in self._decode(packet):
                self.count += 1
                tick = frame.pts
                if by_dts or tick is None:
                    tick = frame.dts
                    if tick is not None and by_dts:
                        delay = tick - (first or 0) if delay is None else delay
                        tick -= delay
                if tick is None:
                    tick = (self.stream.start_time or 0) if last is None else last + step
                if last is not None and tick <= last:
                    self.mended = True
                    tick = last + step
                if frame.is_corrupt:
                    self._note(tick)
                    continue
                if self.demuxer.holes and (self.strict or (last is not None and 2 * (tick - last) > 3 * step)):
                    self._note(tick - 1)  # packets may be missing: before this picture, there were others
                if last is None:
                    self.rotation = frame.rotation
                last, self.end = tick, tick + (frame.duration or step)
                yield Shot(tick, frame)

    def _decode(self, packet: Any) -> list[Any]:
        """Decode a packet; None takes out what the decoder still holds."""
        tick = None if packet is None else packet.dts if packet.pts is None else packet.pts
        if packet is not None and packet.is_corrupt:
            self._note(tick)
        try:
            return list(self.stream.codec_context.decode(packet))
        except av.error.EOFError:
            return []
        except (av.error.FFmpegError, ValueError) as error:
            if not self.count and not isinstance(error, av.error.InvalidDataError):
                name = self.stream.codec_context.name
                raise ClipError("decoder_error", f"the {name} decoder refused the stream: {error}") from error
            self._note(tick)
            return []

    def _note(self, tick: int | None) -> None:
        if self.strict:
            raise DamageError
        if tick is not None:
            self.lost.append(tick)


class Pick(NamedTuple):
    """What is shown at one instant.

    Attributes:
        instant: Whole seconds from the clip's start.
        shown: The picture shown at the instant.
        shots: That picture and the `after` pictures that follow it; fewer follow: the last `after` + 1 pictures.
        number: Pictures that come before the one shown, from where reading began.
        late: The first picture comes after the instant.
        moved: Fewer than `after` pictures follow.
    """

    instant: int
    shown: Shot
    shots: tuple[Shot, ...]
    number: int
    late: bool
    moved: bool

    def window(self, after: int) -> tuple[tuple[Shot, ...], bool]:
        """`shots` and `moved` as they would be for a smaller `after`."""
        begin = min(self.shots.index(self.shown), len(self.shots) - 1 - after)
        return self.shots[begin : begin + after + 1], self.shots[begin] != self.shown


def pick(pictures: Pictures, window: Window, after: int = 0, shots: Iterable[Shot] | None = None) -> Iterator[Pick]:
    """Pick the picture shown at each whole second of a clip: the last one whose time is not after it.

    Stops decoding with the last picture needed. Holds `after` + 2 pictures, more only while windows overlap.

    Args:
        pictures: The video.
        window: The clip.
        after: Pictures that must follow in each window.
        shots: The pictures in display order; None: `pictures`, decoded whole.

    Raises:
        ClipError: `no_frames` or `too_few_frames` (fewer than `after` + 1 pictures in all).
        DamageError: The pictures were sought for and begin after the first instant; or see `Pictures.strict`.
    """
    held: deque[Shot] = deque()  # pictures number `count - len(held)` to `count - 1`
    pending: deque[tuple[int, int, bool]] = deque()  # instants whose window is not complete: instant, number, late
    count = instant = 0
    limit = window.instants
    target = pictures.tick(window, 0)

    def made(instant: int, number: int, late: bool) -> Pick:
        base = count - len(held)
        begin = min(number, count - 1 - after) - base
        shots = tuple(held[index] for index in range(begin, begin + after + 1))
        return Pick(instant, held[number - base], shots, number, late, moved=begin < number - base)

    for shot in pictures if shots is None else shots:
        while shot.tick > target and (limit is None or instant < limit):
            if not count and pictures.demuxer.sought:
                raise DamageError  # the seek went too far
            pending.append((instant, max(count - 1, 0), count == 0))
            instant += 1
            target = pictures.tick(window, instant)
        held.append(shot)
        count += 1
        while pending and count > pending[0][1] + after:
            yield made(*pending.popleft())
        if limit is not None and instant == limit and not pending:
            return
        needed = min(pending[0][1] if pending else count - 1, count - 1 - after)
        while count - len(held) < needed:
            held.popleft()
    while (limit is None or instant < limit) and count and pictures.tick(window, instant) < pictures.end:
        pending.append((instant, count - 1, False))
        instant += 1
    if not count:
        if pictures.demuxer.sought:
            raise DamageError  # no key frame from there on: there may be one before
        raise ClipError("no_frames", "not one picture of the video stream can be decoded")
    if pending and count <= after:
        raise ClipError("too_few_frames", f"the clip has {count} decodable pictures, {after + 1} are needed")
    while pending:
        yield made(*pending.popleft())


def check_complete(pictures: Pictures, window: Window, instants: int) -> None:
    """Refuse a clip whose file ends before what its header promises, so that instants are missing.

    Raises:
        ClipError: `truncated`, or `start_past_end` where the clip begins after the video's end.
    """
    if instants == window.instants:
        return
    stream = pictures.stream
    base = stream.time_base
    if missing_end(stream, pictures.demuxer, pictures.end * base, (zero(stream) + window.start + instants)):
        end = float(pictures.end * base - zero(stream))
        raise ClipError(
            "truncated", f"the video ends after {end:.2f} s, its header promises more: copy or download it again"
        )
    if not instants:
        end = float(pictures.end * base - zero(stream))
        raise ClipError(
            "start_past_end", f"the clip begins at {float(window.start):g} s, the video ends after {end:.2f} s"
        )
