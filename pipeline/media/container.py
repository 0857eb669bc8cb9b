"""Open one media file, without ever opening another, and read its packets."""

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

#: Demuxers that read a single file, by FFmpeg's names. Playlists, scripts, image sequences and all other formats that
#: open further files are left out, and no protocol is allowed, so libavformat reads only the file object it is given.
ALLOWED_FORMATS = (
    "mov,matroska,avi,flv,live_flv,mpeg,mpegts,mpegvideo,h264,hevc,m4v,ivf,obu,asf,ogg,rm,dv,mxf,nut,swf,gif,"
    "yuv4mpegpipe,3g2,amr,aac,mp3,flac,wav,w64,caf,aiff,au,ac3,eac3"
)

# The first bytes of known containers: a file that has them but cannot be opened is damaged, not of an unknown format.
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
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_RESYNCHRONISING_FORMATS = ("matroska", "flv", "live_flv", "avi", "ogg", "asf")  # demuxers that skip damaged parts
_errors_before_opening: ContextVar[int] = ContextVar("FFmpeg's error count before the file was opened", default=0)
_GEN_PTS = 1  # AVFMT_FLAG_GENPTS, set by PyAV: it invents presentation times, which AVI files do not have

#: How much shorter than its declared length a stream may be before it counts as truncated, in seconds.
TRUNCATION_TOLERANCE = Fraction(1, 2)


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open a media file for reading. No other file is ever opened.

    Raises:
        ClipError: `unreadable_file`, `empty_file`, `not_media` or `damaged_container`.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe or a device could block or have side effects
            raise ClipError("unreadable_file", f"{path} is not a regular file but a folder, pipe, socket or device")
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise ClipError("unreadable_file", f"{path}: {error}") from error
    with file, ExitStack() as stack:
        try:
            head = file.read(12)
            file.seek(0)
            if not head:
                raise ClipError("empty_file", f"{path} is empty: copy or download it again")
            stack.enter_context(_count_ffmpeg_errors())
            options = {"format_whitelist": ALLOWED_FORMATS, "protocol_whitelist": "none"}
            container = av.open(file, mode="r", options=options, metadata_errors="replace")
        except av.error.FFmpegError as error:
            known = head[4:8] in _MP4_BOXES or head.startswith(_SIGNATURES)
            if known and not isinstance(error, av.error.ArgumentError):
                raise ClipError("damaged_container", f"{path} is truncated or damaged: {error.strerror}") from error
            raise ClipError("not_media", f"{path} is not a media file in one of the accepted containers") from error
        except OSError as error:
            raise ClipError("unreadable_file", f"{path}: {error}") from error
        with container:
            container.flags = int(container.flags) & ~_GEN_PTS
            yield container


@contextmanager
def _count_ffmpeg_errors() -> Iterator[None]:
    """Make FFmpeg's error messages countable: it is the only sign that a demuxer has skipped a damaged part."""
    level = av.logging.get_level()
    if level is None:
        av.logging.set_level(av.logging.FATAL)  # at this level errors are counted but not printed
    token = _errors_before_opening.set(av.logging.get_last_error()[0])
    try:
        yield
    finally:
        _errors_before_opening.reset(token)
        av.logging.set_level(level)


class Demuxer:
    """A reader of the packets of a container, once and in file order, which hands them out per stream.

    Args:
        container: The file, opened by `open_media`.
        streams: The streams whose packets will be requested.

    Attributes:
        damaged: The demuxer met an error.
        packets_missing: The demuxer skipped a part that it could not read, so packets may be missing.
        has_seeked: Reading began in the middle of the file.
    """

    def __init__(self, container: InputContainer, streams: list[Any]) -> None:
        self.damaged = self.packets_missing = self.has_seeked = False
        self._errors = _errors_before_opening.get()  # opening a file may already read packets
        self._ends: dict[int, int] = {}  # stream index → latest end of a packet, in ticks
        self._container = container
        self._queues: dict[int, deque[Any]] = {stream.index: deque() for stream in streams}
        demuxed = [stream for stream in container.streams if stream.type in ("video", "audio")]
        self._source = container.demux(*demuxed)
        is_avi = container.format.name == "avi"
        self._positions = {stream.index: _indexed_positions(stream) for stream in streams if is_avi}

    def end_time(self, stream: Any) -> Fraction:
        """Return the latest end of a packet of `stream` read so far, in seconds of the stream's clock."""
        return Fraction(self._ends.get(stream.index, 0) * stream.time_base)

    def seek(self, stream: Any, time: Fraction) -> Fraction:
        """Seek to the last key frame of `stream` at or before `time`.

        Args:
            stream: The stream whose key frames are used.
            time: Seconds from the stream's start.

        Returns:
            The same time in seconds of the stream's clock.

        Raises:
            DamageError: The file does not support seeking.
        """
        target = start_time(stream) + time
        try:
            self._container.seek(math.floor(target / stream.time_base), stream=stream)
        except (av.error.FFmpegError, OSError) as error:
            raise DamageError from error
        self.has_seeked = True
        return target

    def packets(self, stream: Any) -> Iterator[Any]:
        """Yield the packets of a stream in decoding order; the file is read as far as needed."""
        queue = self._queues[stream.index]
        while queue or self._read_packet():
            if queue:
                yield queue.popleft()

    def _read_packet(self) -> bool:
        """Read one packet into its stream's queue; False at the end of the file."""
        try:
            packet = self._next_packet()
        except av.error.FFmpegError:
            packet, self.damaged = None, True
        except OSError as error:  # raised by the file object, not by FFmpeg
            raise ClipError("unreadable_file", f"reading failed in the middle of the file: {error}") from error
        if packet is None:
            return False
        if self._reported_error() or not self._is_at_indexed_position(packet):
            self.damaged = self.packets_missing = True
        if packet.size:  # AVI stores empty packets for dropped frames; PyAV ends with an empty one that means "flush"
            time = packet.pts if packet.pts is not None else packet.dts
            index = packet.stream_index
            if time is not None:
                self._ends[index] = max(self._ends.get(index, 0), time + (packet.duration or 0))
            if index in self._queues:
                self._queues[index].append(packet)
        return True

    def _next_packet(self) -> Any:
        """Demux the next packet; None at the end.

        The MPEG-TS demuxer reports lost packets by a warning only, and does not mark every packet concerned.
        """
        if self._container.format.name != "mpegts":
            return next(self._source, None)
        level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
        av.logging.set_level(av.logging.WARNING)
        av.logging.set_skip_repeated(False)
        try:
            with av.logging.Capture() as messages:
                packet = next(self._source, None)
        finally:
            av.logging.set_level(level)
            av.logging.set_skip_repeated(skip)
        for _, _, text in messages:
            if text.startswith("Packet corrupt"):
                self.damaged = True
                self.packets_missing |= any(f"stream = {index}," in text for index in self._queues)
        return packet

    def _reported_error(self) -> bool:
        """Return whether the demuxer has reported an error since the last call."""
        before = self._errors
        self._errors, last = av.logging.get_last_error()
        name = self._container.format.name
        return (
            name.startswith(_RESYNCHRONISING_FORMATS)
            and self._errors != before
            and last is not None
            and last[1] == name
        )

    def _is_at_indexed_position(self, packet: Any) -> bool:
        """Return whether a packet of an AVI file lies where the file's index says; True for all other formats.

        AVI files store no times, so one lost packet would shift all that follow. An index that does not match the very
        first packet is of another kind and is ignored.
        """
        positions = self._positions.get(packet.stream_index)
        if not positions or not packet.size or packet.pos in positions:
            return True
        if not self._ends and not self.has_seeked:
            positions.clear()
        return not positions


def _indexed_positions(stream: Any) -> set[int]:
    """Read the file positions of a stream's packets from an AVI file's index, which counts from 8-byte headers."""
    return {entry.pos + 8 for entry in stream.index_entries}


def start_time(stream: Any) -> Fraction:
    """Return the time at which a stream starts, in seconds of its own clock."""
    return Fraction((stream.start_time or 0) * stream.time_base)


def is_truncated(stream: Any, demuxer: Demuxer, end: Fraction, needed: Fraction) -> bool:
    """Return whether a stream ends earlier than both its header declares and the clip needs.

    Args:
        stream: A stream that was read to its end.
        demuxer: The demuxer that read it.
        end: Where the stream ended, in seconds of its clock.
        needed: How far the clip needs it, in seconds of its clock.
    """
    container = stream.container
    name = container.format.name
    declared = None
    if name.startswith("mov") or name == "avi":
        ticks = max(stream.duration or 0, stream.frames if name == "avi" else 0)  # AVI counts frames in ticks
        declared = start_time(stream) + ticks * stream.time_base if ticks else None
    elif name.startswith(("matroska", "flv")) and container.duration:
        # These declare the length of the whole file only: it is truncated if every stream ends early.
        declared = Fraction(container.duration + (container.start_time or 0), av.time_base)
        end = max(end, *(demuxer.end_time(other) for other in container.streams if other.type in ("video", "audio")))
    return declared is not None and declared - TRUNCATION_TOLERANCE > max(end, needed)
