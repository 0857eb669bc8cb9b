"""An ffmpeg program: found, checked, and run over one stream of a file; its raw frames come with their exact times.

They come through a pipe as NUT, which keeps time bases as they are. The program may open the one file and nothing else:
the demuxers are those of `container.FORMATS`, and the only protocol of the input is `file`.
"""

from __future__ import annotations

import math
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import av
import av.error

from bmlpipe.manifests.common.errors import BmlpipeError, OptionError
from bmlpipe.pipeline.media.container import FORMATS
from bmlpipe.pipeline.media.errors import ClipError, DamageError

_PERIODS = 100_000  # NUT holds no negative times: all are moved up by so many numerators of the time base, in seconds
_WORDS = 400  # characters of ffmpeg's own message that are passed on


class FFmpegError(BmlpipeError):
    """No ffmpeg program can do what is asked for; the message says why and what to do."""


class Program(NamedTuple):
    """An ffmpeg program that works: its path, and the version that it names."""

    path: str
    version: str


@dataclass(frozen=True)
class FFmpeg:
    """Which ffmpeg program decodes, and how.

    Attributes:
        path: The program; None: that of imageio-ffmpeg, else the one on PATH; with `hwaccel`, the first that has it.
        hwaccel: Hardware acceleration by ffmpeg's name (cuda, vaapi, qsv …); None: software.
        cpu_limit: CPU seconds after which a run ends itself; 0: never.
    """

    path: str | None = None
    hwaccel: str | None = None
    cpu_limit: int = 0

    def __post_init__(self) -> None:
        if self.hwaccel is not None and not re.fullmatch("[a-z][a-z0-9_]*", self.hwaccel):
            raise OptionError(f"hwaccel is {self.hwaccel!r}: must be a name that `ffmpeg -hwaccels` lists, as cuda")
        if self.cpu_limit < 0:
            raise OptionError(f"cpu_limit is {self.cpu_limit}: must be 0 or more seconds")

    def program(self) -> Program:
        """The program on this machine.

        Raises:
            FFmpegError: There is none, it is older than 5.1, or it has not the acceleration or its device.
        """
        return _find(self.path, self.hwaccel)

    def software(self) -> dict[str, str]:
        """What a feature's provenance says of this decoder."""
        hardware = f", hwaccel {self.hwaccel}" if self.hwaccel else ""
        return {"decoder": f"ffmpeg {self.program().version}{hardware}"}

    def command(
        self, path: Path, stream: int, output: dict[str, Any], *, strict: bool, since: Fraction | None = None
    ) -> list[str]:
        """The command line that decodes one stream of a file to standard output.

        Args:
            path: The file.
            stream: Index of the stream in the file.
            output: Options of the output, `upright=True` among them: turn the pictures as the file asks.
            strict: End with the first error.
            since: Seek to a key frame at or before this time, in seconds of the file's clock.
        """
        import ffmpeg

        options = dict(output)
        given: dict[str, Any] = {"nostdin": None, "v": "error", "copyts": None, "threads": 1}
        given |= {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        if not options.pop("upright", False):
            given["noautorotate"] = None
        if strict:
            given |= {"xerror": None, "err_detect:v": "explode"}
        if self.hwaccel:
            given["hwaccel"] = self.hwaccel
        if self.cpu_limit:
            given["timelimit"] = self.cpu_limit
        if since is not None and since > 0:
            given |= {"noaccurate_seek": None, "seek_timestamp": 1, "ss": f"{math.floor(since * 1000) / 1000:.3f}"}
        options |= {"f": "nut", "avoid_negative_ts": "disabled", "flush_packets": 1}
        source = ffmpeg.input(f"file:{path}", **given)[str(stream)]
        line: list[str] = ffmpeg.compile(source.output("pipe:1", **options), cmd=self.program().path)
        return line

    def frames(
        self,
        path: Path,
        stream: Any,
        output: dict[str, Any],
        *,
        strict: bool,
        since: Fraction | None = None,
        layout: str | None = None,
    ) -> Generator[Any, None, None]:
        """Decode one stream of a file; `pts` and `time_base` of the frames are in the file's clock.

        Args:
            path: The file.
            stream: The stream (`av.Stream` of the file).
            output: See `command`.
            strict: End with the first error.
            since: See `command`.
            layout: Channel layout of the sound.

        Raises:
            ClipError: `decoder_error` (no such program or device), `timeout`.
            DamageError: The program ended with an error or, if not `strict`, spoke of one; frames have come out.
        """
        offset = _PERIODS * stream.time_base.numerator if stream.type == "video" else _PERIODS
        try:
            options = output | {"output_ts_offset": offset}
            command = self.command(path, stream.index, options, strict=strict, since=since)
            with _running(command) as (process, words):
                yield from _read(process.stdout, offset, layout)
                status = process.wait()
                said = _said(words)
        except (FFmpegError, OSError) as error:
            raise ClipError("decoder_error", str(error)) from error
        if status == -signal.SIGXCPU:
            raise ClipError("timeout", f"ffmpeg took more than {self.cpu_limit} s of CPU time on the {stream.type}")
        if status < 0:
            raise ClipError("decoder_error", f"ffmpeg was ended by signal {-status}: {said}")
        if status or (said and not strict):
            raise DamageError(said or f"ffmpeg ended with status {status}")


@contextmanager
def _running(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A process, ended with the block at the latest, and the file that takes its messages."""
    with (
        tempfile.TemporaryFile() as words,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            bufsize=0,  # a read must return what is there, not wait until it is as much as asked for
        ) as process,
    ):
        try:
            yield process, words
        finally:
            process.kill()


def _read(pipe: Any, offset: int, layout: str | None) -> Iterator[Any]:
    """Frames of a NUT stream, as far as it goes."""
    hurry = {"probesize": "32", "analyzeduration": "0", "fpsprobesize": "0", "protocol_whitelist": "none"}
    try:
        with av.open(pipe, format="nut", options=hurry) as container:
            stream = container.streams[0]
            stream.codec_context.thread_type = "NONE"
            if layout is not None:
                stream.codec_context.layout = layout
            for frame in container.decode(stream):
                frame.pts -= round(offset / frame.time_base)
                yield frame
    except av.error.FFmpegError:
        return  # nothing came, or its end is cut off: the program's status tells


def _said(words: IO[bytes]) -> str:
    words.seek(0)
    text = _plain(words.read(1 << 16))
    return text if len(text) <= _WORDS else f"{text[:_WORDS]} …"


def _plain(words: bytes) -> str:
    """Messages on one line, without addresses, so that the same fault has the same text."""
    return " ".join(re.sub(" @ 0x[0-9a-f]+", "", words.decode("utf-8", "replace")).split())


@lru_cache
def _find(path: str | None, hwaccel: str | None) -> Program:
    faults = []
    for candidate in [path] if path is not None else _candidates():
        try:
            return Program(candidate, _version(candidate, hwaccel))
        except FFmpegError as error:
            faults.append(f"{candidate}: {error}")
    wanted = f" with --hwaccel {hwaccel}" if hwaccel else ""
    raise FFmpegError(f"no ffmpeg program works here{wanted} ({'; '.join(faults) or 'none found'}): give --ffmpeg PATH")


def _candidates() -> list[str]:
    import imageio_ffmpeg

    try:
        found = [imageio_ffmpeg.get_ffmpeg_exe()]
    except RuntimeError:
        found = []
    on_path = shutil.which("ffmpeg")
    return found if on_path is None or on_path in found else [*found, on_path]


def _version(program: str, hwaccel: str | None) -> str:
    """What the program calls itself; it is 5.1 or newer (the first with -fps_mode), and its device can be opened."""
    device = ["-init_hw_device", hwaccel] if hwaccel else []
    command = [program, "-v", "error", *device, "-fps_mode", "passthrough", "-version"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise FFmpegError(str(error)) from error
    first = done.stdout.decode("utf-8", "replace").split("\n")[0]
    if done.returncode or not first.startswith("ffmpeg version "):
        said = _plain(done.stderr or done.stdout)
        raise FFmpegError(said[:_WORDS] or f"it ended with status {done.returncode}")
    return first.removeprefix("ffmpeg version ").split(" Copyright")[0]
