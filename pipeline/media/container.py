"""One media file: opened so that nothing else can be, and its packets."""

from __future__ import annotations

import math
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging
from av.container import InputContainer

from bmlpipe.pipeline.media.errors import ClipError, DamageError

# Demuxers of single files. Playlists, scripts, image sequences and everything else that opens further files is left
# out, and no protocol is allowed: the opened file object is all that libavformat ever reads.
FORMATS = (
    "mov,matroska,avi,flv,live_flv,mpeg,mpegts,mpegvideo,h264,hevc,m4v,ivf,obu,asf,ogg,rm,dv,mxf,nut,swf,gif,"
    "yuv4mpegpipe,3g2,amr,aac,mp3,flac,wav,w64,caf,aiff,au,ac3,eac3"
)

_SIGNATURES = (
    b"\x1aE\xdf\xa3",
    b"FLV",
    b"\x00\x00\x01\xba",
    b"\x00\x00\x01\xb3",
    b"OggS",
    b"0&\xb2u",
    b"RIFF",
    b"\x47",
)
_SCANNED = ("matroska", "flv", "live_flv", "avi", "ogg", "asf")  # formats that are read on behind a damaged part
_errors_before: ContextVar[int] = ContextVar("FFmpeg's errors before the file was opened", default=0)
_GEN_PTS = 1  # AVFMT_FLAG_GENPTS, which PyAV sets: it invents times that AVI files do not have

#: A part of the declared length that may be missing before a file counts as cut off, in seconds.
TRUNCATED = Fraction(1, 2)


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open a media file for reading; nothing but this file is ever opened.

    Raises:
        ClipError: `unreadable_file`, `empty_file`, `not_media` or `damaged_container`.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe or a device would wait, or do something
            raise ClipError("unreadable_file", f"{path} is no file, but a folder, a pipe, a socket or a device")
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise ClipError("unreadable_file", f"{path}: {error}") from error
    with file, ExitStack() as counted:
        try:
            head = file.read(12)
            file.seek(0)
            if not head:
                raise ClipError("empty_file", f"{path} holds no bytes: copy or download it again")
            counted.enter_context(_errors_counted())
            options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
            container = av.open(file, mode="r", options=options, metadata_errors="replace")
        except av.error.FFmpegError as error:
            known = head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide") or head.startswith(_SIGNATURES)
            if known and not isinstance(error, av.error.ArgumentError):
                raise ClipError("damaged_container", f"{path} is cut off or damaged: {error.strerror}") from error
            raise ClipError("not_media", f"{path} is not a video in one of the accepted containers") from error
        except OSError as error:
            raise ClipError("unreadable_file", f"{path}: {error}") from error
        with container:
            container.flags = int(container.flags) & ~_GEN_PTS
            yield container


@contextmanager
def _errors_counted() -> Iterator[None]:
    """Count FFmpeg's error messages: demuxers that skip what they cannot read say so in no other way."""
    level = av.logging.get_level()
    if level is None:
        av.logging.set_level(av.logging.FATAL)  # errors are counted then, but not passed on
    token = _errors_before.set(av.logging.get_last_error()[0])
    try:
        yield
    finally:
        _errors_before.reset(token)
        av.logging.set_level(level)


class Demuxer:
    """Reads the packets of a container once, in file order, and hands them out by stream.

    Attributes:
        damaged: The demuxer met an error.
        holes: It went on behind a part that it could not read: packets may be missing.
        sought: Reading began somewhere in the middle.
    """

    def __init__(self, container: InputContainer, wanted: list[Any]) -> None:
        self._errors = _errors_before.get()  # opening has read ahead
        self.damaged = self.holes = False
        self._ends: dict[int, int] = {}  # stream → latest end of a packet, in its ticks
        self.sought = False
        self._container = container
        self._queues: dict[int, deque[Any]] = {stream.index: deque() for stream in wanted}
        streams = [stream for stream in container.streams if stream.type in ("video", "audio")]
        self._source = container.demux(*streams)
        self._places = {stream.index: _places(stream) for stream in wanted if container.format.name == "avi"}

    def end(self, stream: Any) -> Fraction:
        """Latest end of a packet of a stream read so far, in seconds of its clock."""
        return Fraction(self._ends.get(stream.index, 0) * stream.time_base)

    def seek(self, stream: Any, time: Fraction) -> Fraction:
        """Go on from a key frame at or before a time, in seconds from the stream's start; returns it in its clock.

        Raises:
            DamageError: The file cannot be sought in.
        """
        try:
            self._container.seek(math.floor((zero(stream) + time) / stream.time_base), stream=stream)
        except (av.error.FFmpegError, OSError) as error:
            raise DamageError from error
        self.sought = True
        return zero(stream) + time

    def packets(self, stream: Any) -> Iterator[Any]:
        """Yield the packets of a stream in decoding order, reading on in the file as needed."""
        queue = self._queues[stream.index]
        while queue or self._read():
            if queue:
                yield queue.popleft()

    def _read(self) -> bool:
        try:
            packet = self._next()
        except av.error.FFmpegError:
            packet, self.damaged = None, True
        except OSError as error:  # from the file itself, not from FFmpeg
            raise ClipError("unreadable_file", f"reading failed in the middle of the file: {error}") from error
        if packet is None:
            return False
        if self._skipped() or not self._placed(packet):
            self.damaged = self.holes = True
        if packet.size:  # AVI has empty packets for dropped frames; PyAV ends with one that means "flush"
            time = packet.pts if packet.pts is not None else packet.dts
            index = packet.stream_index
            if time is not None:
                self._ends[index] = max(self._ends.get(index, 0), time + (packet.duration or 0))
            if index in self._queues:
                self._queues[index].append(packet)
        return True

    def _next(self) -> Any:
        """The next packet, None at the end. MPEG-TS tells of lost parts by a warning, and marks not every packet."""
        if self._container.format.name != "mpegts":
            return next(self._source, None)
        level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
        av.logging.set_level(av.logging.WARNING)
        av.logging.set_skip_repeated(False)
        try:
            with av.logging.Capture() as said:
                packet = next(self._source, None)
        finally:
            av.logging.set_level(level)
            av.logging.set_skip_repeated(skip)
        for _, _, text in said:
            if text.startswith("Packet corrupt"):
                self.damaged = True
                self.holes |= any(f"stream = {index}," in text for index in self._queues)
        return packet

    def _skipped(self) -> bool:
        """Whether the demuxer has spoken of an error since last asked."""
        before = self._errors
        self._errors, last = av.logging.get_last_error()
        name = self._container.format.name
        return name.startswith(_SCANNED) and self._errors != before and last is not None and last[1] == name

    def _placed(self, packet: Any) -> bool:
        """Whether a packet of an AVI file is where its index has one, if there is one that fits the first packet.

        AVI files hold no times: a lost packet would move all that follow it.
        """
        places = self._places.get(packet.stream_index)
        if not places or not packet.size or packet.pos in places:
            return True
        if not self._ends and not self.sought:
            places.clear()  # an index of another kind
        return not places


def _places(stream: Any) -> set[int]:
    """Positions of a stream's packets by the index of an AVI file, which counts from their 8-byte headers."""
    return {entry.pos + 8 for entry in stream.index_entries}


def zero(stream: Any) -> Fraction:
    """When a stream starts, in seconds of its own clock."""
    return Fraction((stream.start_time or 0) * stream.time_base)


def missing_end(stream: Any, demuxer: Demuxer, end: Fraction, needed: Fraction) -> bool:
    """Whether a stream that ended at `end` (seconds of its clock) should have gone on beyond `needed` by its header."""
    container = stream.container
    name = container.format.name
    declared = None
    if name.startswith("mov") or name == "avi":
        ticks = max(stream.duration or 0, stream.frames if name == "avi" else 0)  # AVI counts frames in ticks
        declared = zero(stream) + ticks * stream.time_base if ticks else None
    elif name.startswith(("matroska", "flv")) and container.duration:
        # These state the length of the whole file only: it is cut off if every stream ends early.
        declared = Fraction(container.duration + (container.start_time or 0), av.time_base)
        end = max(end, *(demuxer.end(other) for other in container.streams if other.type in ("video", "audio")))
    return declared is not None and declared - TRUNCATED > max(end, needed)
