"""The spectrogram computed in training equals that of extraction, and SciPy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import spectrogram

from bmlpipe.pipeline.front_ends.spectrogram import log_spectrogram
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions, encode_waveform, quantise
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train.config.parsing import parse
from bmlpipe.train.data.dataset import ClipDataset
from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.data.sampler import BatchItem
from bmlpipe.train.data.spectrogram import LogSpectrogram
from bmlpipe.train.distributed.group import ProcessInfo
from bmlpipe.train.evaluation.loaded_run import load_run
from bmlpipe.train.run import train
from bmlpipe.train.runs import checkpoint
from bmlpipe.train.runs.folder import METRICS_FILE
from bmlpipe.train.runs.journal_reader import read_rows

KINDS = {"audio": "waveform"}


def tone(label: int, number: int) -> np.ndarray:
    """A second of a tone in noise, its pitch that of its class."""
    times = np.arange(16_000) / 16_000
    noise = np.random.default_rng(number).normal(size=times.size)
    return (0.3 * np.sin(2 * np.pi * 500 * (label + 1) * times) + 0.05 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def of_sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that hold nothing but sound, of three classes."""
    out = tmp_path_factory.mktemp("sound") / "shards"
    features = {"waveform": WaveformOptions().parameters(1)}
    with ShardWriter(out, dataset="folder", classes=list("abc"), features=features) as writer:
        for split, count in (("train", 48), ("val", 12), ("test", 12)):
            for number in range(count):
                members = {"waveform.flac": encode_waveform(tone(number % 3, number))}
                writer.write(split, Sample(f"{split}-{number:03d}", number % 3, members, {"id": f"{split}{number}"}))
    return out


def sounds(seconds: int) -> torch.Tensor:
    """A tone in noise, a sweep, and faint noise, as 16-bit levels."""
    random, times = np.random.default_rng(0), np.arange(16_000 * seconds) / 16_000
    waves = [
        0.4 * np.sin(2 * np.pi * 1000 * times) + 0.05 * random.normal(size=times.size),
        0.9 * np.sin(2 * np.pi * (100 + 300 * times) * times),
        1e-3 * random.normal(size=times.size),
    ]
    return torch.from_numpy(np.rint(np.stack(waves) * 32_767).clip(-32_768, 32_767).astype(np.int16))


@pytest.mark.parametrize(("seconds", "windows"), [(10, 1004), (3, 299)])
def test_values_equal_those_of_extraction(seconds: int, windows: int) -> None:
    levels = sounds(seconds)
    made = LogSpectrogram()(levels)
    assert made.shape == (3, 1, 257, windows)
    assert made.dtype == torch.float32
    for row, level in zip(made[:, 0].numpy(), levels.numpy(), strict=True):
        np.testing.assert_allclose(row, log_spectrogram((level / 32_768).astype(np.float32)), atol=2e-3)


def test_values_equal_those_of_scipy() -> None:
    levels = sounds(3)[:1]
    _, _, density = spectrogram(levels[0].numpy() / 32_768, 16_000, nperseg=512, noverlap=353)
    logs = np.log(density + 1e-7)
    np.testing.assert_allclose(LogSpectrogram()(levels)[0, 0].numpy(), (logs - logs.mean()) / logs.std(), atol=2e-3)


def test_silence_gives_zeros() -> None:
    assert not LogSpectrogram()(torch.zeros(2, 48_000, dtype=torch.int16)).any()


def test_autocast_does_not_reduce_its_precision() -> None:
    levels = sounds(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = LogSpectrogram()(levels)
    torch.testing.assert_close(made, LogSpectrogram()(levels), rtol=0, atol=0)


def test_the_loader_returns_the_stored_samples(of_sound: Path) -> None:
    data = ClipDataset(of_sound, ["audio"], kinds=KINDS, frames=1, image_size=16, augment=False, seed=0)
    batch = data.__getitems__([BatchItem(-1, 0), BatchItem(-1, 1)])
    labels = [int(sample.key[-3:]) for sample in (ShardReader(of_sound)[number] for number in (0, 1))]
    assert batch["audio"].dtype == torch.int16
    assert batch["audio"].shape == (2, 1, 16_000)
    for row, number in zip(batch["audio"][:, 0].numpy(), labels, strict=True):
        np.testing.assert_array_equal(row, quantise(tone(number % 3, number)))


def test_the_normaliser_computes_the_spectrogram() -> None:
    levels = sounds(3)
    values = Normaliser(["audio"], {}, kinds=KINDS)({"audio": levels[:, None]})["audio"]
    assert values.shape == (3, 1, 1, 257, 299)
    torch.testing.assert_close(values[:, 0], LogSpectrogram()(levels))


def test_an_error_names_the_sample_with_damaged_sound(of_sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ClipDataset(of_sound, ["audio"], kinds=KINDS, frames=1, image_size=16, augment=False, seed=0)
    sample = data.reader[0]
    broken = type(sample)(sample.key, sample.label, {"waveform.flac": memoryview(b"fLaC, but not really")})
    monkeypatch.setattr(type(data.reader), "__getitem__", lambda reader, number: broken)
    with pytest.raises(ShardError, match=f"sample {sample.key}: its waveform is not FLAC"):
        data[BatchItem(-1, 0)]


def test_an_error_about_shards_without_sound_says_what_to_extract(toy_shards: Path) -> None:
    with pytest.raises(ShardError, match=r"modality audio needs waveform.*--kinds .*waveform"):
        ClipDataset(toy_shards, ["audio"], kinds=KINDS, frames=1, image_size=16, augment=False, seed=0)


@pytest.mark.slow
def test_a_run_on_sound_alone_learns_and_resumes(of_sound: Path, tmp_path: Path) -> None:
    options = {"modalities": "audio", "audio": "waveform", "encoder": "cnn4", "epochs": 4, "batch_size": 8, "lr": 0.02}
    options |= {"shards": str(of_sound), "out": str(tmp_path / "run"), "workers": 0, "tensorboard": False}
    assert train(parse({**options, "device": "cpu"}, "test").resolved()) == 0
    row = read_rows(tmp_path / "run" / METRICS_FILE)[-1]
    assert row["split"] == "test"
    assert row["accuracy"] > 0.9
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    again = load_run(best, ProcessInfo(0, 1, 0, torch.device("cpu"))).predict("test")
    assert (again.logits.argmax(1) == again.labels).mean() == row["accuracy"]
    assert not any("sound" in name for name in checkpoint.load(best)["normaliser"])
