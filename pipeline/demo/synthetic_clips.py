"""Synthetic audio-visual clips: handwritten digits that drift among clutter, with the digit's keypad tone in noise.

The handwriting is real (scikit-learn's digits, 8 × 8 pixels), everything else is drawn. The tone is easy to classify
and the picture is hard, and the tones of the test split are fainter than those of the training split: a model that has
learnt to rely on sound alone fails there. Results on these clips say nothing about any real task.
"""

from __future__ import annotations

import subprocess
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.manifests.common.tables import write_csv

#: Length of a clip in seconds, frames per second, side of a frame in pixels, audio samples per second.
SECONDS, FPS, SIZE, RATE = 3, 10, 64, 16_000

# Tones of the telephone keypad (ITU-T Q.23): each key has a low and a high frequency, in Hz.
_LOW, _HIGH = (697, 770, 852, 941), (1209, 1336, 1477)
_TONES = {0: (_LOW[3], _HIGH[1]), **{d: (_LOW[(d - 1) // 3], _HIGH[(d - 1) % 3]) for d in range(1, 10)}}

_AMPLITUDES = {"train": (0.03, 0.1), "val": (0.03, 0.1), "test": (0.01, 0.025)}  # split → range of a tone's amplitude
_NOISE = 0.15  # standard deviation

_SCALE = 3  # pixels per pixel of the handwriting
_DIGIT = 8 * _SCALE  # side of a digit, in pixels
_CLUTTER = 11  # side of a piece of clutter, in pixels


class DemoError(BmlpipeError):
    """A step of the demo failed."""


@dataclass(frozen=True)
class DemoClip:
    """One clip of the demo.

    Attributes:
        file: Its path below the folder of clips.
        digit: The digit shown and sounded, 0 to 9.
        split: The split.
        image: Index of the handwriting shown.
    """

    file: str
    digit: int
    split: str
    image: int


def assign_clips(digits: Sequence[int], counts: dict[str, int], seed: int = 0) -> list[DemoClip]:
    """Assign random handwritings to the splits, each handwriting to one clip at most.

    Args:
        digits: The digit of each handwriting.
        counts: Split → number of clips.
        seed: Seed of the assignment.
    """
    order = np.random.default_rng(seed).permutation(len(digits))
    splits = [split for split, count in counts.items() for _ in range(count)]
    return [
        DemoClip(f"{digits[image]}/{split}-{number:04d}.mp4", int(digits[image]), split, int(image))
        for number, (split, image) in enumerate(zip(splits, order))
    ]


def render_frames(images: npt.NDArray[np.float64], image: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw the frames of a clip: a digit moves on a straight path, reflected at the edges, over pieces of other digits.

    Args:
        images: All handwritings, (n, 8, 8), 0 to 16.
        image: Index of the handwriting that moves.
        random: Draws the path, the clutter and the noise.

    Returns:
        Grey levels, (SECONDS · FPS, SIZE, SIZE).
    """
    frames = np.zeros((SECONDS * FPS, SIZE, SIZE))
    room = SIZE - _DIGIT
    start, velocity = random.uniform(0, room, 2), random.uniform(-1.5, 1.5, 2)
    path = (start + np.arange(len(frames))[:, None] * velocity) % (2 * room)
    corners = np.round(np.minimum(path, 2 * room - path)).astype(int)
    for _ in range(5):
        other = _enlarge(images[random.integers(len(images))])
        begin = random.integers(0, 13), random.integers(0, 13)
        piece = other[begin[0] :, begin[1] :][:_CLUTTER, :_CLUTTER]
        row, column = random.integers(0, SIZE - _CLUTTER, 2)
        frames[:, row : row + _CLUTTER, column : column + _CLUTTER] = piece
    digit = _enlarge(images[image])
    for frame, (row, column) in zip(frames, corners):
        part = frame[row : row + _DIGIT, column : column + _DIGIT]
        np.maximum(part, digit, out=part)
    noisy = frames * 11 + random.normal(40, 12, frames.shape)
    return np.asarray(noisy.clip(0, 255), dtype=np.uint8)


def render_audio(digit: int, split: str, random: np.random.Generator) -> npt.NDArray[np.int16]:
    """Make the keypad tone of a digit at a random amplitude, in noise; shape (SECONDS · RATE,)."""
    time = np.arange(SECONDS * RATE) / RATE
    tone = sum(np.sin(2 * np.pi * frequency * time + random.uniform(0, 6.28)) for frequency in _TONES[digit])
    mixed = random.uniform(*_AMPLITUDES[split]) * tone + random.normal(0, _NOISE, len(time))
    return np.asarray(mixed.clip(-1, 1) * 32767, dtype=np.int16)


def write_clip(images: npt.NDArray[np.float64], clip: DemoClip, folder: Path, seed: int = 0) -> None:
    """Write one clip as H.264 and AAC in an MP4 file.

    Args:
        images: All handwritings, (n, 8, 8).
        clip: The clip.
        folder: The folder of clips.
        seed: Seed of all that is random in the clip.

    Raises:
        DemoError: ffmpeg failed; the message contains its error output.
    """
    random = np.random.default_rng([seed, clip.image])
    frames = render_frames(images, clip.image, random)
    samples = render_audio(clip.digit, clip.split, random)
    path = folder / clip.file
    path.parent.mkdir(parents=True, exist_ok=True)
    track = path.with_suffix(".wav")
    with wave.open(str(track), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    video = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="gray", s=f"{SIZE}x{SIZE}", r=FPS)
    output = ffmpeg.output(
        video, ffmpeg.input(str(track)), str(path), vcodec="libx264", pix_fmt="yuv420p", acodec="aac", threads=1
    )
    command = ffmpeg.compile(output, cmd=imageio_ffmpeg.get_ffmpeg_exe(), overwrite_output=True)
    done = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
    track.unlink()
    if done.returncode:
        raise DemoError(f"ffmpeg could not write {path}: {done.stderr.decode(errors='replace')[-500:]}")


def write_clips(folder: Path, counts: dict[str, int], on_clip: Callable[[], None], seed: int = 0) -> Path:
    """Write all clips and their annotation.

    Args:
        folder: The folder of clips.
        counts: Split → number of clips.
        on_clip: Called after each clip.
        seed: Seed of the data set.

    Returns:
        Path of the annotation, `clips.csv` with the columns path, label and split.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    clips = assign_clips(digits.target.tolist(), counts, seed)

    def write(clip: DemoClip) -> None:
        write_clip(digits.images, clip, folder, seed)
        on_clip()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, clips))
    annotation = folder / "clips.csv"
    write_csv(annotation, [["path", "label", "split"], *([clip.file, str(clip.digit), clip.split] for clip in clips)])
    return annotation


def _enlarge(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.kron(image, np.ones((_SCALE, _SCALE))), dtype=np.float64)
