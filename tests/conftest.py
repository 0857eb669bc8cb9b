"""Fixtures that several test files share."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips and official annotations; skips the test if there is none."""
    named = os.environ.get("BMLPIPE_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "clips" / "manifest.csv").is_file():
        pytest.skip(f"no real clips at {folder}: set BMLPIPE_TEST_DATA to a folder with clips/ and annotations/")
    return folder


@pytest.fixture(scope="session")
def toy_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 96, 24 and 25 samples of 4 classes: audio (257 × 40) is easy to learn, visual (4 × 40 × 48) hard."""
    import io

    import simplejpeg

    from bmlpipe.shards.sample import Sample
    from bmlpipe.shards.writer import ShardWriter

    out = tmp_path_factory.mktemp("toy") / "shards"
    features = {"frames": {"short_side": 40}, "spectrogram": {"preset": "toy"}}
    features |= {"flow": {"stack": 1}, "rgb_diff": {"stack": 1}}
    random = np.random.default_rng(0)
    with ShardWriter(out, dataset="folder", classes=list("abcd"), features=features, samples_per_shard=20) as writer:
        for split, count in (("train", 96), ("val", 24), ("test", 25)):
            for number in range(count):
                label = number % 4
                sound = random.normal(size=(257, 40)).astype(np.float16)
                sound[60 * label : 60 * label + 30] += 1.5
                pixels = random.integers(0, 200, (4, 40, 48, 3)).astype(np.uint8)
                pixels[:, 10 * label : 10 * label + 8, 4:44] += 30
                file = io.BytesIO()
                np.save(file, sound)
                members = {
                    f"frame_{i:03d}.jpg": simplejpeg.encode_jpeg(image, 95, colorspace="RGB")
                    for i, image in enumerate(pixels)
                }
                members["spectrogram.npy"] = file.getvalue()
                for i, image in enumerate(pixels):
                    for axis in "xy":
                        grey = np.ascontiguousarray(image[..., :1])
                        members[f"flow_{i:03d}_00_{axis}.jpg"] = simplejpeg.encode_jpeg(grey, 95, colorspace="GRAY")
                for i, image in enumerate(pixels):
                    change = np.clip(128 + (pixels[(i + 1) % 4].astype(int) - image) / 2, 0, 255).astype(np.uint8)
                    members[f"rgb_diff_{i:03d}.jpg"] = simplejpeg.encode_jpeg(change, 95, colorspace="RGB")
                size = {"times": [0.0, 1.0, 2.0, 3.0], "height": 40, "width": 48}
                meta = {"id": f"{split}{number}", "label": "abcd"[label], "frames": size}
                meta |= {"flow": {**size, "bound": 20}, "rgb_diff": size}
                writer.write(split, Sample(f"{split}-{number:03d}", label, members, meta))
        writer.statistics = {
            "frames": {"mean": [105.0] * 3, "std": [58.0] * 3},
            "spectrogram": {"mean": [0.2], "std": [1.1]},
            "flow": {"mean": [105.0, 105.0], "std": [58.0, 58.0]},
            "rgb_diff": {"mean": [128.0] * 3, "std": [41.0] * 3},
        }
    return out


# ----- programs -----


@pytest.fixture(scope="session")
def run_on_terminal() -> Callable[..., str]:
    """A function that runs a Python program on a terminal of 200 columns, checks its status and returns its output."""

    def run(program: str, status: int = 0) -> str:
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"}
        process = subprocess.Popen([sys.executable, "-c", program], stderr=theirs, stdout=theirs, env=environment)
        os.close(theirs)
        text = b""
        try:
            while True:
                try:
                    piece = os.read(ours, 4096)
                except OSError:  # the other end is closed
                    break
                if not piece:
                    break
                text += piece
            assert process.wait(60) == status
        finally:
            process.kill()
            os.close(ours)
        return text.decode()

    return run


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """A function that waits until a condition holds.

    It fails after `seconds`, or when `process`, which should bring the condition about, has ended. `log` returns the
    message of the failure.
    """

    def wait(
        condition: Callable[[], object],
        process: Any = None,
        *,
        seconds: float = 60.0,
        log: Callable[[], object] | None = None,
    ) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert process is None or process.poll() is None, log() if log else process.communicate()
            assert time.monotonic() < end, log() if log else f"the condition does not hold after {seconds} s"
            time.sleep(0.01)

    return wait


# ----- small clips -----

_BITS = 16  # bits of the frame number that is drawn into each frame, as 8 columns and 2 rows of blocks


def _draw(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Draw a frame (luma, 0–255) whose upper half encodes its number and whose lower half moves to the right."""
    picture = np.full((height, width), 128, np.uint8)
    for bit in range(_BITS):
        row, column = divmod(bit, 8)
        top, left = row * height // 4, column * width // 8
        picture[top : top + height // 4, left : left + width // 8] = 220 if number >> bit & 1 else 30
    texture = np.random.default_rng(0).integers(40, 210, (height // 8 + 1, width // 4 + 1), np.uint8)
    texture = texture.repeat(4, axis=0).repeat(4, axis=1)[: height - height // 2, :width]
    picture[height // 2 :] = np.roll(texture, 2 * number, axis=1)
    return picture


def _frame_number(luma: npt.NDArray[np.uint8]) -> int:
    height, width = luma.shape
    number = 0
    for bit in range(_BITS):
        row, column = divmod(bit, 8)
        top, left = (2 * row + 1) * height // 8, (2 * column + 1) * width // 16
        number |= int(luma[top - 1 : top + 2, left - 1 : left + 2].mean() > 125) << bit
    return number


@pytest.fixture(scope="session")
def frame_number() -> Callable[[bytes | npt.NDArray[np.uint8]], int]:
    """A function that reads the number of a frame that `make_clip` drew, from a JPEG or a luma plane."""

    def read(picture: bytes | npt.NDArray[np.uint8]) -> int:
        if isinstance(picture, bytes):
            import simplejpeg

            picture = simplejpeg.decode_jpeg(picture, colorspace="GRAY")[..., 0]
        return _frame_number(picture)

    return read


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    """A function that writes a small video file; see `_make_clip` for its arguments."""
    return _make_clip


@pytest.fixture(scope="session")
def make_clips() -> Callable[..., None]:
    """A function that writes `count` copies of one clip, 0.mp4, 1.mp4 …; it takes further arguments of `_make_clip`."""

    def make(folder: Path, count: int, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        first = _make_clip(folder / "0.mp4", **options)
        for number in range(1, count):
            shutil.copy(first, folder / f"{number}.mp4")

    return make


@contextmanager
def _scheduling_policy_kept() -> Iterator[None]:
    """Restore the scheduling policy of this thread: run by root, SVT-AV1 sets the highest real-time priority.

    Processes that are started later would inherit it, and could starve others while they wait in a loop.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _make_clip(
    path: Path,
    *,
    seconds: float = 3.0,
    fps: Fraction | float = 25,
    size: tuple[int, int] = (112, 80),
    codec: str | None = "libx264",
    gop: int = 12,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    times: Sequence[Fraction] | None = None,
    rotation: int = 0,
    audio_codec: str | None = "aac",
    audio_rate: int = 44100,
    channels: int = 2,
    tone: float = 1000.0,
    audio_seconds: float | None = None,
    audio_start: float = 0.0,
    video_start: float = 0.0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a clip of numbered frames (`frame_number` reads them), with a tone at half of full scale in every channel.

    Args:
        path: File; its suffix determines the container.
        seconds: Duration.
        fps: Frames per second.
        size: Width and height in pixels.
        codec: Video encoder; None writes no video.
        gop: Maximum number of frames from one key frame to the next.
        options: Options of the encoder.
        pix_fmt: Pixel format given to the encoder.
        times: Presentation times in seconds, instead of `seconds` and `fps`, for a variable rate.
        rotation: Counter-clockwise rotation in the display matrix, in degrees.
        audio_codec: Audio encoder; None writes no audio.
        audio_rate: Sampling rate in Hz.
        channels: Number of channels: 1, 2 or 6.
        tone: Frequency in Hz; 0 for silence.
        audio_seconds: Duration of the audio; None for that of the video.
        audio_start: Start of the audio in seconds.
        video_start: Start of the video in seconds.
        container_options: Options of the muxer.
    """
    rate = Fraction(fps).limit_denominator(1001)
    with _scheduling_policy_kept(), av.open(str(path), "w", options=dict(container_options or {})) as container:
        if codec is not None:
            video = container.add_stream(codec, rate=rate, options=dict(options or {}))
            video.width, video.height = size
            video.pix_fmt = pix_fmt
            video.gop_size = gop
            video.codec_context.thread_count = 1
            base = Fraction(1, 1000) if times is not None else 1 / rate
            video.codec_context.time_base = base
            if rotation:
                video.set_display_rotation(rotation)
        if audio_codec is not None:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
            audio = container.add_stream(audio_codec, rate=audio_rate, layout=layout)
        if codec is not None:
            shown = times if times is not None else [number / rate for number in range(round(seconds * rate))]
            for number, time in enumerate(shown):
                frame = av.VideoFrame.from_ndarray(_draw(number, *size), format="gray").reformat(format=pix_fmt)
                frame.pts = round((time + Fraction(video_start)) / base)
                frame.time_base = base
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio_codec is not None:
            count = round((audio_seconds if audio_seconds is not None else seconds) * audio_rate)
            wave = 0.5 * np.sin(2 * np.pi * tone * np.arange(count) / audio_rate)
            fifo = av.AudioResampler(
                audio.format, layout, audio_rate, frame_size=audio.codec_context.frame_size or 1024
            )
            sound = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(np.tile(wave.astype(np.float32), (channels, 1))), format="fltp", layout=layout
            )
            sound.sample_rate = audio_rate
            sound.pts, sound.time_base = round(audio_start * audio_rate), Fraction(1, audio_rate)
            for frame in [*fifo.resample(sound), *fifo.resample(None)]:
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


@pytest.fixture(scope="session")
def ffmpeg_frames() -> Callable[..., list[tuple[Fraction, str]]]:
    """A function that decodes a video fully by the ffmpeg program: time in seconds and MD5 of the planes of each frame.

    `form` is the pixel format of these planes; None for that of the decoder.
    """

    def read(path: Path, stream: int = 0, form: str | None = "yuv420p") -> list[tuple[Fraction, str]]:
        import ffmpeg
        import imageio_ffmpeg

        command = ffmpeg.input(str(path), noautorotate=None, threads=1)[f"v:{stream}"].output(
            "pipe:",
            format="framemd5",
            fps_mode="passthrough",
            copyts=None,
            **{"enc_time_base:v": "demux"} | ({"pix_fmt": form} if form else {}),
        )
        out, _ = command.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), capture_stdout=True, capture_stderr=True)
        frames, base = [], Fraction(1)
        for line in out.decode().splitlines():
            if line.startswith("#tb 0:"):
                base = Fraction(line.split(":")[1].strip())
            elif line and not line.startswith("#"):
                values = [value.strip() for value in line.split(",")]
                frames.append((int(values[2]) * base, values[5]))
        return frames

    return read
