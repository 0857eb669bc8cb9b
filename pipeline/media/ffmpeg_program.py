"""Find an ffmpeg program, check it, and run it on one stream of a file to get raw frames with their exact times.

The frames come through a pipe in the NUT format, which keeps time bases unchanged. The program can open no file but the
one named: its demuxers are limited to `container.ALLOWED_FORMATS`, and the only input protocol is `file`.
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
from bmlpipe.pipeline.media.container import ALLOWED_FORMATS
from bmlpipe.pipeline.media.errors import ClipError, DamageError

# NUT stores no negative times, so all times are shifted by this many numerators of the time base, in seconds.
_SHIFT_PERIODS = 100_000
_MAX_MESSAGE = 400  # characters of ffmpeg's error output that are passed on


class FFmpegError(BmlpipeError):
    """No ffmpeg program on this machine meets the requirements. The message states the cause and the remedy."""


class InstalledFFmpeg(NamedTuple):
    """A working ffmpeg program: its path and the version that it reports."""

    path: str
    version: str


@dataclass(frozen=True)
class FFmpeg:
    """An ffmpeg program as decoder.

    Attributes:
        path: The program. None: that of imageio-ffmpeg, or else the one on PATH; with `hwaccel`, the first of these
            that supports it.
        hwaccel: Hardware acceleration by ffmpeg's name (cuda, vaapi, qsv …); None: software decoding.
        cpu_limit: CPU seconds after which the program ends itself; 0: no limit.

    Raises:
        OptionError: `hwaccel` or `cpu_limit` is out of range.
    """

    path: str | None = None
    hwaccel: str | None = None
    cpu_limit: int = 0

    def __post_init__(self) -> None:
        if self.hwaccel is not None and not re.fullmatch("[a-z][a-z0-9_]*", self.hwaccel):
            raise OptionError(
                f"hwaccel is {self.hwaccel!r}: must be a name that `ffmpeg -hwaccels` lists, such as cuda"
            )
        if self.cpu_limit < 0:
            raise OptionError(f"cpu_limit is {self.cpu_limit} s: must be 0 or more")

    def program(self) -> InstalledFFmpeg:
        """Find the program on this machine. The result is cached.

        Raises:
            FFmpegError: There is none, it is older than 5.1, or it lacks the acceleration or its device.
        """
        return _find(self.path, self.hwaccel)

    def software(self) -> dict[str, str]:
        """Describe this decoder for a feature's provenance."""
        hardware = f", hwaccel {self.hwaccel}" if self.hwaccel else ""
        return {"decoder": f"ffmpeg {self.program().version}{hardware}"}

    def command(
        self, path: Path, stream: int, output: dict[str, Any], *, exit_on_error: bool, seek_time: Fraction | None = None
    ) -> list[str]:
        """Build the command line that decodes one stream of a file to standard output.

        Args:
            path: The file.
            stream: Index of the stream in the file.
            output: ffmpeg's output options; `upright=True` in addition rotates the frames as the file requests.
            exit_on_error: Stop at the first error.
            seek_time: Seek to the last key frame at or before this time, in seconds of the file's clock.
        """
        import ffmpeg

        options = dict(output)
        arguments: dict[str, Any] = {"nostdin": None, "v": "error", "copyts": None, "threads": 1}
        arguments |= {"protocol_whitelist": "file", "format_whitelist": ALLOWED_FORMATS}
        if not options.pop("upright", False):
            arguments["noautorotate"] = None
        if exit_on_error:
            arguments |= {"xerror": None, "err_detect:v": "explode"}
        if self.hwaccel:
            arguments["hwaccel"] = self.hwaccel
        if self.cpu_limit:
            arguments["timelimit"] = self.cpu_limit
        if seek_time is not None and seek_time > 0:
            milliseconds = math.floor(seek_time * 1000)
            arguments |= {"noaccurate_seek": None, "seek_timestamp": 1, "ss": f"{milliseconds / 1000:.3f}"}
        options |= {"f": "nut", "avoid_negative_ts": "disabled", "flush_packets": 1}
        source = ffmpeg.input(f"file:{path}", **arguments)[str(stream)]
        command: list[str] = ffmpeg.compile(source.output("pipe:1", **options), cmd=self.program().path)
        return command

    def frames(
        self,
        path: Path,
        stream: Any,
        output: dict[str, Any],
        *,
        exit_on_error: bool,
        seek_time: Fraction | None = None,
        channel_layout: str | None = None,
    ) -> Generator[Any, None, None]:
        """Decode one stream of a file.

        Args:
            path: The file.
            stream: The stream (`av.Stream` of the file).
            output: As for `command`.
            exit_on_error: As for `command`.
            seek_time: As for `command`.
            channel_layout: Channel layout of the audio.

        Yields:
            Frames (`av.VideoFrame`, `av.AudioFrame`) whose `pts` and `time_base` are in the file's clock.

        Raises:
            ClipError: `decoder_error` (no such program or device) or `timeout`.
            DamageError: The program failed or, without `exit_on_error`, reported an error. Frames may have been yielded
                before.
        """
        offset = _SHIFT_PERIODS * stream.time_base.numerator if stream.type == "video" else _SHIFT_PERIODS
        try:
            options = output | {"output_ts_offset": offset}
            command = self.command(path, stream.index, options, exit_on_error=exit_on_error, seek_time=seek_time)
            with _running(command) as (process, error_file):
                yield from _read_frames(process.stdout, offset, channel_layout)
                status = process.wait()
                errors = _error_output(error_file)
        except (FFmpegError, OSError) as error:
            raise ClipError("decoder_error", str(error)) from error
        if status == -signal.SIGXCPU:
            raise ClipError("timeout", f"ffmpeg took more than {self.cpu_limit} s of CPU time for the {stream.type}")
        if status < 0:
            raise ClipError("decoder_error", f"ffmpeg was ended by signal {-status}: {errors}")
        if status or (errors and not exit_on_error):
            raise DamageError(errors or f"ffmpeg exited with status {status}")


@contextmanager
def _running(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Run a command that is killed at the end of the block at the latest.

    Yields:
        The process, and the file that receives its error output.
    """
    with (
        tempfile.TemporaryFile() as error_file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=error_file,
            bufsize=0,  # a read must return the bytes available, not wait for the full amount
        ) as process,
    ):
        try:
            yield process, error_file
        finally:
            process.kill()


def _read_frames(pipe: Any, offset: int, channel_layout: str | None) -> Iterator[Any]:
    """Read the frames of a NUT stream up to its end, or to where it is cut off."""
    no_probing = {"probesize": "32", "analyzeduration": "0", "fpsprobesize": "0", "protocol_whitelist": "none"}
    try:
        with av.open(pipe, format="nut", options=no_probing) as container:
            stream = container.streams[0]
            stream.codec_context.thread_type = "NONE"
            if channel_layout is not None:
                stream.codec_context.layout = channel_layout
            for frame in container.decode(stream):
                frame.pts -= round(offset / frame.time_base)
                yield frame
    except av.error.FFmpegError:
        return  # the output is empty or cut off: the program's exit status says why


def _error_output(file: IO[bytes]) -> str:
    file.seek(0)
    text = _one_line(file.read(1 << 16))
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]} …"


def _one_line(messages: bytes) -> str:
    """Join messages to one line without memory addresses, so that the same error has the same text."""
    return " ".join(re.sub(" @ 0x[0-9a-f]+", "", messages.decode("utf-8", "replace")).split())


@lru_cache
def _find(path: str | None, hwaccel: str | None) -> InstalledFFmpeg:
    reasons = []
    for candidate in [path] if path is not None else _candidates():
        try:
            return InstalledFFmpeg(candidate, _version(candidate, hwaccel))
        except FFmpegError as error:
            reasons.append(f"{candidate}: {error}")
    option = f" with --hwaccel {hwaccel}" if hwaccel else ""
    raise FFmpegError(
        f"no ffmpeg program works here{option} ({'; '.join(reasons) or 'none found'}): name one by --ffmpeg PATH"
    )


def _candidates() -> list[str]:
    import imageio_ffmpeg

    try:
        found = [imageio_ffmpeg.get_ffmpeg_exe()]
    except RuntimeError:
        found = []
    on_path = shutil.which("ffmpeg")
    return found if on_path is None or on_path in found else [*found, on_path]


def _version(program: str, hwaccel: str | None) -> str:
    """Ask a program for its version, and check that it is 5.1 or newer (by -fps_mode) and opens its device."""
    device = ["-init_hw_device", hwaccel] if hwaccel else []
    command = [program, "-v", "error", *device, "-fps_mode", "passthrough", "-version"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise FFmpegError(str(error)) from error
    first = done.stdout.decode("utf-8", "replace").split("\n")[0]
    if done.returncode or not first.startswith("ffmpeg version "):
        output = _one_line(done.stderr or done.stdout)
        raise FFmpegError(output[:_MAX_MESSAGE] or f"it exited with status {done.returncode}")
    return first.removeprefix("ffmpeg version ").split(" Copyright")[0]
