"""The waveform: quantisation, decoding by FFmpeg, and the spectrogram computed from it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.spectrogram import Floats, SpectrogramOptions, log_spectrogram
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions, encode_waveform, quantise


def decoded(flac: bytes) -> Floats:
    """Decode by FFmpeg, independently of the encoder, libFLAC."""
    with av.open(io.BytesIO(flac)) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.format.name, stream.rate, stream.channels) == (
            "flac",
            "s16",
            16000,
            1,
        )
        blocks = [frame.to_ndarray()[0] for frame in container.decode(stream)]
    return np.concatenate(blocks).astype(np.float32) / 32768


def noise(count: int = 48_000) -> Floats:
    return np.clip(np.random.default_rng(0).normal(size=count) * 0.3, -1, 1).astype(np.float32)


def test_decoding_returns_the_quantised_samples() -> None:
    samples = noise()
    flac = encode_waveform(samples)
    assert flac.startswith(b"fLaC")
    assert len(flac) < 2 * samples.size
    back = decoded(flac)
    assert np.array_equal(back * 32768, quantise(samples))
    below = samples <= 1 - 2**-16
    assert np.abs(back - samples)[below].max() <= 2**-16
    assert np.abs(back - samples).max() <= 2**-15
    assert encode_waveform(samples) == flac


@pytest.mark.parametrize("count", [1, 100, 4095, 16_000, 160_000])
def test_the_number_of_samples_is_kept(count: int) -> None:
    assert decoded(encode_waveform(noise(count))).size == count


def test_quantisation_rounds_half_to_even_and_saturates() -> None:
    values = np.array([0, 1, -1, 0.5, 2**-16, 3 * 2**-16, -(2**-15)], np.float32)
    assert quantise(values).tolist() == [0, 32767, -32768, 16384, 0, 2, -1]


def test_waveform_and_spectrogram_of_a_clip_come_from_the_same_sound(
    make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_clip(tmp_path / "clip.mp4", seconds=3)
    features = extract_clip(path, ExtractionRequest((SpectrogramOptions(), WaveformOptions()), 5))
    assert features.features.keys() == {"spectrogram", "waveform"}
    assert features.flags == ("short_audio",)
    samples = decoded(features["waveform"].flac)
    assert samples.size == 80_000  # 3 s, tiled to 5 s
    assert any(np.array_equal(samples[period:], samples[:-period]) for period in range(47_000, 50_000))
    recomputed = log_spectrogram(samples)
    assert np.abs(recomputed - features["spectrogram"].values.astype(np.float32)).max() < 0.02
    alone = extract_clip(path, ExtractionRequest((WaveformOptions(),), 5))
    assert alone["waveform"] == features["waveform"]
    assert "spectrogram" not in alone.features
    assert decoded(extract_clip(path, ExtractionRequest((WaveformOptions(),), 2))["waveform"].flac).size == 32_000  # type: ignore[union-attr]


def test_sound_from_a_separate_file_has_a_waveform(make_clip: Callable[..., Path], tmp_path: Path) -> None:
    video = make_clip(tmp_path / "clip.flv", seconds=1, audio_codec=None)
    sound = make_clip(tmp_path / "clip.wav", codec=None, seconds=1, audio_codec="pcm_s16le", tone=2000)
    found = extract_clip(video, ExtractionRequest((WaveformOptions(),), 1), audio=sound)["waveform"]
    assert found is not None
    spectrum = np.abs(np.fft.rfft(decoded(found.flac)))
    assert spectrum.argmax() == 2000


def test_a_waveform_needs_a_length_in_seconds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--seconds"):
        extract_clip(tmp_path / "clip.mp4", ExtractionRequest((WaveformOptions(),), None))
    assert WaveformOptions().parameters(3) != WaveformOptions().parameters(10)


@pytest.mark.real
def test_the_spectrogram_of_the_waveform_is_within_the_stated_error(real_data: Path) -> None:
    for path in sorted(real_data.glob("clips/vggsound/*.mp4"))[:3]:
        features = extract_clip(path, ExtractionRequest((SpectrogramOptions(), WaveformOptions())))
        error = log_spectrogram(decoded(features["waveform"].flac)) - features["spectrogram"].values.astype(np.float32)
        assert np.abs(error).max() < 1.3e-3 + 3.9e-3  # of 16-bit samples and of float16
