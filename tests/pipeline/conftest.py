"""Fixtures for the tests of pipeline: failed clips, damaged and concatenated files, and the command line."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from click.testing import CliRunner, Result

from bmlpipe.pipeline.cli import main
from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.front_end import FrontEndOptions
from bmlpipe.pipeline.media.container import open_media
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg


@pytest.fixture(scope="session")
def bmlpipe() -> Callable[..., Result]:
    """A function that runs the command `bmlpipe`; unexpected exceptions keep their traceback."""

    def run(*words: object) -> Result:
        result = CliRunner().invoke(main, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def clip_error() -> Callable[..., ClipError]:
    """A function that extracts features of a clip, expects a failure and returns its error."""

    def extract(
        clip: Path,
        *front_ends: FrontEndOptions,
        seconds: int | None = 10,
        ffmpeg: FFmpeg | None = None,
        **source: object,
    ) -> ClipError:
        with pytest.raises(ClipError) as caught:
            extract_clip(clip, ExtractionRequest(front_ends, seconds, ffmpeg), **source)  # type: ignore[arg-type]
        return caught.value

    return extract


@pytest.fixture
def no_ffmpeg_left() -> Iterator[None]:
    """Fail the test if an ffmpeg process is still running after it."""
    yield
    left = [child for child in psutil.Process().children() if "ffmpeg" in child.name()]
    assert not left


@pytest.fixture(scope="session")
def concatenate() -> Callable[[Sequence[Path], Path], Path]:
    """A function that copies the video packets of MPEG-TS files of 2 s, one after the other, into one file."""

    def copy(parts: Sequence[Path], out: Path) -> Path:
        with av.open(str(out), "w") as target:
            stream = None
            for number, part in enumerate(parts):
                with av.open(str(part)) as source:
                    stream = stream or target.add_stream_from_template(source.streams.video[0])
                    for packet in source.demux(video=0):
                        pts, dts, shift = packet.pts, packet.dts, 180_000 * number  # 2 s of the 90 kHz clock
                        if packet.size and pts is not None and dts is not None:
                            packet.pts, packet.dts = pts + shift, dts + shift
                            packet.stream = stream
                            target.mux(packet)
        return out

    return copy


@pytest.fixture(scope="session")
def damaged_copies() -> Callable[[bytes, str], Iterator[bytes]]:
    """A function that yields 24 copies of a file's bytes with one place overwritten, zeroed or cut out."""

    def damage(data: bytes, seed: str) -> Iterator[bytes]:
        chance = random.Random(seed)
        for number in range(24):
            damaged = bytearray(data)
            at, size = chance.randrange(len(data) // 20, len(data) - 2000), (24, 512, 188)[number % 3]
            damaged[at : at + size] = (chance.randbytes(size), bytes(size), b"")[number % 3]
            yield bytes(damaged)

    return damage


@pytest.fixture(scope="session")
def break_audio() -> Callable[[Path, slice], None]:
    """A function that overwrites some audio packets of an MP4 file."""

    def overwrite(clip: Path, packets: slice) -> None:
        with open_media(clip) as container:
            found = [(packet.pos or 0, packet.size) for packet in container.demux(audio=0) if packet.size]
        data = bytearray(clip.read_bytes())
        for at, size in found[packets]:
            data[at : at + size] = b"\xff" * size
        clip.write_bytes(data)

    return overwrite


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """A function that writes a Matroska file of H.264 frames (luma, full range, 8 fps) and 16-bit mono sound (16 kHz).

    Samples of the sound beyond ±1 are clipped, as by a recorder.
    """

    def write(path: Path, pictures: Sequence[npt.NDArray[np.uint8]], sound: npt.NDArray[np.float64]) -> Path:
        rate = 16_000
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=8, options={"crf": "23"})
            video.height, video.width = pictures[0].shape
            video.pix_fmt = "yuvj420p"
            video.codec_context.thread_count = 1
            audio = container.add_stream("pcm_s16le", rate=rate, layout="mono")
            for number, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(
                    format="yuvj420p", dst_color_range=2
                )
                frame.pts, frame.time_base = number, Fraction(1, 8)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            levels = np.rint(np.clip(sound, -1, 1) * 32767).astype(np.int16)[None]
            whole = av.AudioFrame.from_ndarray(levels, format="s16", layout="mono")
            whole.sample_rate, whole.pts, whole.time_base = rate, 0, Fraction(1, rate)
            container.mux(audio.encode(whole))
            container.mux(audio.encode(None))
        return path

    return write
