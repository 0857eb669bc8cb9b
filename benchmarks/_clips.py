"""Data of the loader benchmarks: clips of ten images and ten seconds of sound, in shards and in loose files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import simplejpeg
import soundfile

from bmlpipe.shards.sample import Sample
from bmlpipe.shards.writer import ShardWriter

FRAMES, RATE, HOP = 10, 16000, 159
OWN_RATE = 44100  # sampling rate of the sound in videos, Hz
SMALL, LARGE = (256, 340), (360, 640)  # height and width of frames in shards, and in videos


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Make an image with a spectrum like that of photographs: amplitude ∝ 1 / frequency^1.7, most of it luma."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    waves = rng.normal(size=(2, 3, *frequency.shape)) / frequency**1.7
    planes = np.fft.irfft2(waves[0] + 1j * waves[1], (height, width))
    y, cb, cr = planes / planes.std(axis=(1, 2), keepdims=True) * np.array([45, 15, 15])[:, None, None]
    rgb = np.stack([y + 1.4 * cr, y - 0.34 * cb - 0.71 * cr, y + 1.77 * cb], axis=2)
    return np.clip(128 + rgb, 0, 255).astype(np.uint8)


def encode(picture: np.ndarray) -> bytes:
    """Encode an image as extraction stores it, with the quality that is also OpenCV's default."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 95, colorspace="RGB", colorsubsampling="420")


def spectrogram(sound: np.ndarray) -> np.ndarray:
    """Compute the spectrogram of ten seconds of sound: (257, 1004), float32."""
    return np.log(np.abs(librosa.stft(sound, n_fft=512, hop_length=HOP, center=False)) + 1e-7)


def make_set(folder: Path, clips: int, loose: int) -> None:
    """Write the clips to `shards/`, and the first `loose` clips also to `small/` and `large/`, one folder per clip.

    `small/` has the same JPEGs as the shards, `large/` has JPEGs of the size of the video. Beside the JPEGs of a clip
    are `16k.wav` and, in `large/`, `own.wav` with the sampling rate of the video; both are stereo.
    """
    rng = np.random.default_rng(0)
    small, large = ([texture(rng, *size) for _ in range(40)] for size in (SMALL, LARGE))
    features: dict[str, dict[str, Any]] = {"frames": {}, "spectrogram": {}}
    with ShardWriter(
        folder / "shards", dataset="folder", classes=["a", "b"], features=features, samples_per_shard=32
    ) as writer:
        for number in range(clips):
            key = f"clip{number:05d}"
            jpegs = [encode(_moved(small, number + i, rng)) for i in range(FRAMES)]
            sound = (0.1 * rng.normal(size=10 * RATE)).astype(np.float32)
            file = io.BytesIO()
            np.save(file, spectrogram(sound).astype(np.float16, order="C"))
            members = {f"frame_{i:03d}.jpg": jpeg for i, jpeg in enumerate(jpegs)}
            members["spectrogram.npy"] = file.getvalue()
            times = {"times": [float(second) for second in range(FRAMES)], "height": SMALL[0], "width": SMALL[1]}
            meta = {"id": key, "label": "a", "split": "train", "start": 0.0, "duration": 10.0, "frames": times}
            writer.write("train", Sample(key, number % 2, members, meta))
            if number < loose:
                frames = [encode(_moved(large, number + i, rng)) for i in range(FRAMES)]
                _write_files(folder / "small" / key, jpegs, {"16k.wav": (sound, RATE)})
                own = (0.1 * rng.normal(size=10 * OWN_RATE)).astype(np.float32)
                _write_files(folder / "large" / key, frames, {"16k.wav": (sound, RATE), "own.wav": (own, OWN_RATE)})


def _moved(textures: list[np.ndarray], number: int, rng: np.random.Generator) -> np.ndarray:
    return np.roll(textures[number % len(textures)], rng.integers(0, 200, 2), axis=(0, 1))


def _write_files(clip: Path, jpegs: list[bytes], sounds: dict[str, tuple[np.ndarray, int]]) -> None:
    clip.mkdir(parents=True)
    for number, jpeg in enumerate(jpegs):
        (clip / f"{number:05d}.jpg").write_bytes(jpeg)
    for name, (sound, rate) in sounds.items():
        soundfile.write(clip / name, np.stack([sound, sound], axis=1), rate)
