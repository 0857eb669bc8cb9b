"""The demo: a small data set of real video files, made on the spot, taken the whole way.

Each clip shows one of scikit-learn's handwritten digits (real handwriting, 8 × 8 pixels) drifting among clutter, and
sounds the telephone keypad's tone of that digit in noise. Sound is easy to learn and pictures are hard, and the tones
of the test split are fainter than those that are trained on: it shows when a model has learnt to rely on sound alone.
The data is synthetic; its numbers say nothing about any real task.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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

SECONDS, FPS, SIZE, RATE = 3, 10, 64, 16_000

_MARK = "made-by-bmlpipe-demo.txt"

# The keypad's tones (ITU-T Q.23): a low and a high frequency a key, in Hz.
_LOW, _HIGH = (697, 770, 852, 941), (1209, 1336, 1477)
_TONES = {0: (_LOW[3], _HIGH[1]), **{d: (_LOW[(d - 1) // 3], _HIGH[(d - 1) % 3]) for d in range(1, 10)}}


class DemoError(BmlpipeError):
    """A step of the demo failed."""


@dataclass(frozen=True)
class Plan:
    """One clip to be made: its file, digit, split, and the number of the handwriting it shows."""

    file: str
    digit: int
    split: str
    image: int


def start_afresh(folder: Path) -> None:
    """Make the demo's folder, or empty the one of an earlier demo.

    Raises:
        DemoError: The folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).is_file():
            raise DemoError(f"{folder} is not empty and not a demo's: choose another --out, nothing was changed")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).write_text("Made by `bmlpipe demo`, which replaces this folder when it runs again.\n")


def plan_clips(targets: Sequence[int], counts: dict[str, int], seed: int = 0) -> list[Plan]:
    """Choose handwritings for each split; no handwriting is in two of them.

    Args:
        targets: Digit of each handwriting.
        counts: Split → number of clips.
        seed: Seed of the choice.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    splits = [split for split, count in counts.items() for _ in range(count)]
    return [
        Plan(f"{targets[image]}/{split}-{number:04d}.mp4", int(targets[image]), split, int(image))
        for number, (split, image) in enumerate(zip(splits, order))
    ]


def draw(images: npt.NDArray[np.float64], plan: Plan, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The pictures of a clip, (frames, SIZE, SIZE): the digit on a path that bounces, among pieces of others."""
    frames = SECONDS * FPS
    canvas = np.zeros((frames, SIZE, SIZE))
    room = SIZE - 24
    path = (random.uniform(0, room, 2) + np.arange(frames)[:, None] * random.uniform(-1.5, 1.5, 2)) % (2 * room)
    corners = np.round(np.minimum(path, 2 * room - path)).astype(int)
    for _ in range(5):
        other = np.kron(images[random.integers(len(images))], np.ones((3, 3)))
        piece = other[random.integers(0, 13) :, random.integers(0, 13) :][:11, :11]
        row, column = random.integers(0, SIZE - 11, 2)
        canvas[:, row : row + 11, column : column + 11] = piece
    digit = np.kron(images[plan.image], np.ones((3, 3)))
    for frame, (row, column) in zip(canvas, corners):
        part = frame[row : row + 24, column : column + 24]
        np.maximum(part, digit, out=part)
    noisy = canvas * 11 + random.normal(40, 12, canvas.shape)
    return np.asarray(noisy.clip(0, 255), dtype=np.uint8)


#: Split → range of the tones' amplitude; the noise's standard deviation is 0.15.
_LOUDNESS = {"train": (0.03, 0.1), "val": (0.03, 0.1), "test": (0.01, 0.025)}


def sound(digit: int, split: str, random: np.random.Generator) -> npt.NDArray[np.int16]:
    """The keypad tone of a digit at a random loudness, under noise; SECONDS long at RATE."""
    time = np.arange(SECONDS * RATE) / RATE
    tone = sum(np.sin(2 * np.pi * frequency * time + random.uniform(0, 6.28)) for frequency in _TONES[digit])
    mixed = random.uniform(*_LOUDNESS[split]) * tone + random.normal(0, 0.15, len(time))
    return np.asarray(mixed.clip(-1, 1) * 32767, dtype=np.int16)


def make_clip(images: npt.NDArray[np.float64], plan: Plan, folder: Path, seed: int = 0) -> None:
    """Write one clip as H.264 and AAC in an MP4 file.

    Raises:
        DemoError: ffmpeg failed; the message holds what it said.
    """
    random = np.random.default_rng([seed, plan.image])
    pictures, samples = draw(images, plan, random), sound(plan.digit, plan.split, random)
    path = folder / plan.file
    path.parent.mkdir(parents=True, exist_ok=True)
    track = path.with_suffix(".wav")
    with wave.open(str(track), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    video = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="gray", s=f"{SIZE}x{SIZE}", r=FPS)
    out = ffmpeg.output(
        video, ffmpeg.input(str(track)), str(path), vcodec="libx264", pix_fmt="yuv420p", acodec="aac", threads=1
    )
    arguments = ffmpeg.compile(out, cmd=imageio_ffmpeg.get_ffmpeg_exe(), overwrite_output=True)
    done = subprocess.run(arguments, input=pictures.tobytes(), capture_output=True, check=False)
    track.unlink()
    if done.returncode:
        raise DemoError(f"ffmpeg could not write {path}: {done.stderr.decode(errors='replace')[-500:]}")


def make_clips(folder: Path, counts: dict[str, int], progress: Callable[[], None], seed: int = 0) -> Path:
    """Make all clips and their annotation, `clips.csv` (path, label, split); returns the annotation's path."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    plans = plan_clips(digits.target.tolist(), counts, seed)

    def make(plan: Plan) -> None:
        make_clip(digits.images, plan, folder, seed)
        progress()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, plans))
    annotation = folder / "clips.csv"
    write_csv(annotation, [["path", "label", "split"], *([plan.file, str(plan.digit), plan.split] for plan in plans)])
    return annotation


def commands(out: Path, annotation: Path, *, epochs: int, processes: int) -> list[list[str]]:
    """The commands from clips to two trained models, as a user types them."""
    features, shards = str(out / "features"), str(out / "shards")
    training = [
        *("torchrun", "--standalone", "--nproc-per-node", str(processes), "-m", "bmlpipe.train.run"),
        *("--dataset", "folder", "--shards", shards, "--encoder", "cnn4", "--image-size", str(SIZE)),
        *("--augment", "none", "--epochs", str(epochs), "--batch-size", "32", "--lr", "0.01", "--workers", "1"),
    ]
    return [
        [
            *("bmlpipe", "extract", "--dataset", "folder", "--videos", str(annotation.parent)),
            *(
                "--annotations",
                str(annotation),
                "--seconds",
                str(SECONDS),
                "--short-side",
                str(SIZE),
                "--out",
                features,
            ),
        ],
        ["bmlpipe", "shard", "--dataset", "folder", "--features", features, "--out", shards],
        ["bmlpipe", "verify", shards],
        [*training, "--modulation", "none", "--out", str(out / "runs" / "none")],
        [*training, "--modulation", "opm", "--out", str(out / "runs" / "opm")],
        ["bmlpipe", "report", str(out / "runs" / "none"), str(out / "runs" / "opm"), "--out", str(out / "report.png")],
    ]


#: How each command's program is started with the interpreter that runs the demo.
_PROGRAMS = {"bmlpipe": ["-m", "bmlpipe.pipeline.cli"], "torchrun": ["-m", "torch.distributed.run"]}


def run_command(words: Sequence[str]) -> None:
    """Run one of `commands`.

    Raises:
        DemoError: It failed.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # one thread a training process, unless told otherwise
    done = subprocess.run([sys.executable, *_PROGRAMS[words[0]], *words[1:]], env=environment, check=False)
    if done.returncode:
        raise DemoError(f"exit status {done.returncode} of: {' '.join(words)}")
