"""Spectrograms against the libraries that define them."""

import numpy as np
import pytest

from bmlpipe.pipeline.spectrogram import SpectrogramOptions, fit, log_spectrogram, windows


def natural(seconds, seed=0):
    """Sound with a falling spectrum, loud and quiet parts, and a tone."""
    random = np.random.default_rng(seed)
    time = np.arange(16000 * seconds) / 16000
    noise = np.cumsum(random.normal(size=time.size)) * 0.002
    noise -= noise.mean()
    sound = noise * (0.2 + np.sin(time) ** 2) + 0.2 * np.sin(2 * np.pi * 440 * time) * (time % 2 < 1)
    return np.clip(sound, -1, 1).astype(np.float32)


def tone(frequency, rate=16000, seconds=10):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(rate * seconds) / rate)).astype(np.float32)


def scipys(samples):
    """VGGSound's front end as METHOD states it, by scipy in float64."""
    from scipy.signal import spectrogram

    _, _, power = spectrogram(samples.astype(np.float64), 16000, nperseg=512, noverlap=353)
    logs = np.log(power + 1e-7)
    return (logs - logs.mean()) / (logs.std() + 1e-9)


@pytest.mark.parametrize(
    "samples", [natural(10), natural(3, 1), tone(1000), 1e-4 * natural(10), np.clip(natural(10) * 20, -1, 1)]
)
def test_vggsound_is_scipys_spectrogram(samples):
    ours = log_spectrogram(samples)
    assert ours.dtype == np.float32
    assert np.abs(ours - scipys(samples)).max() < 1e-4


def test_rounding_to_float16_is_as_stated():
    exact = log_spectrogram(natural(10))
    error = np.abs(exact - exact.astype(np.float16))
    assert error.mean() < 2e-4
    assert (error <= np.maximum(np.abs(exact), 2**-10) * 2**-11).all()
    magnitude = log_spectrogram(natural(10), "magnitude")
    assert magnitude.min() >= -16.2
    assert magnitude.max() <= 5.6
    assert np.abs(magnitude - magnitude.astype(np.float16)).max() <= 2**-7


@pytest.mark.slow
def test_magnitude_is_librosas():
    from librosa import stft

    samples = natural(10)
    ours = log_spectrogram(samples, "magnitude")
    theirs = np.abs(stft(samples.astype(np.float64), n_fft=512, hop_length=159, center=False))
    assert np.abs(np.exp(ours) - theirs).max() < 1e-5 * theirs.max()
    loud = theirs > 1e-2  # below, the rounding of float32 shows in the logarithm
    assert np.abs(ours - np.log(theirs + 1e-7))[loud].max() < 1e-3


@pytest.mark.parametrize("preset", ["vggsound", "magnitude"])
@pytest.mark.parametrize(("seconds", "columns"), [(10, 1004), (3, 299)])
def test_shapes(preset, seconds, columns):
    values = log_spectrogram(natural(seconds), preset)
    assert values.shape == (257, columns) == (257, windows(16000 * seconds))
    assert values.flags.c_contiguous


@pytest.mark.parametrize("preset", ["vggsound", "magnitude"])
def test_a_tone_falls_into_its_bin_and_only_at_the_right_rate(preset):
    def peak(samples):
        return int(log_spectrogram(samples, preset).mean(axis=1).argmax())

    assert peak(tone(1000)) == 32
    assert peak(tone(4000)) == 128
    assert peak(tone(1000, rate=22050)) == 23  # sound at 22,050 Hz taken for 16,000 Hz would show


def test_silence_is_finite():
    assert np.array_equal(log_spectrogram(np.zeros(48000, np.float32)), np.zeros((257, 299)))


def test_fit_tiles_cuts_and_clips():
    ramp = np.linspace(-2, 2, 20_000, dtype=np.float32)
    tiled = fit(ramp, 3)
    assert tiled.size == 48_000
    assert tiled.dtype == np.float32
    assert np.array_equal(tiled[20_000:40_000], np.clip(ramp, -1, 1))
    assert np.array_equal(tiled[40_000:], np.clip(ramp, -1, 1)[:8000])
    assert np.array_equal(fit(ramp, 1), np.clip(ramp, -1, 1)[:16_000])


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="preset"):
        SpectrogramOptions("mel")
    with pytest.raises(ValueError, match="window"):
        log_spectrogram(np.zeros(511, np.float32))


def test_parameters_name_what_changes_the_values():
    assert SpectrogramOptions().parameters(10) != SpectrogramOptions().parameters(3)
    assert SpectrogramOptions().parameters(10) != SpectrogramOptions("magnitude").parameters(10)
