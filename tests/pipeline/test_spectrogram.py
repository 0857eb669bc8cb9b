"""Spectrogram presets: the libraries or equations that define them, their shapes and their rounding."""

import numpy as np
import pytest

from bmlpipe.pipeline.front_ends.presets import PRESETS
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions, fit, log_spectrogram, windows


def natural(seconds, seed=0):
    """Sound at 16 kHz with a falling spectrum, loud and quiet parts, and a tone."""
    random = np.random.default_rng(seed)
    time = np.arange(16000 * seconds) / 16000
    noise = np.cumsum(random.normal(size=time.size)) * 0.002
    noise -= noise.mean()
    sound = noise * (0.2 + np.sin(time) ** 2) + 0.2 * np.sin(2 * np.pi * 440 * time) * (time % 2 < 1)
    return np.clip(sound, -1, 1).astype(np.float32)


def natural_at(preset, seconds=10):
    rate = PRESETS[preset].rate
    return np.resize(natural(seconds * 2), rate * seconds)


def tone(frequency, rate=16000, seconds=10):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(rate * seconds) / rate)).astype(np.float32)


def scipy_spectrogram(samples):
    """Front end of VGGSound by its paper, computed by SciPy in float64."""
    from scipy.signal import spectrogram

    _, _, power = spectrogram(samples.astype(np.float64), 16000, nperseg=512, noverlap=353)
    logs = np.log(power + 1e-7)
    return (logs - logs.mean()) / (logs.std() + 1e-9)


@pytest.mark.parametrize(
    "samples", [natural(10), natural(3, 1), tone(1000), 1e-4 * natural(10), np.clip(natural(10) * 20, -1, 1)]
)
def test_vggsound_equals_the_spectrogram_of_scipy(samples):
    ours = log_spectrogram(samples)
    assert ours.dtype == np.float32
    assert np.abs(ours - scipy_spectrogram(samples)).max() < 1e-4


def test_rounding_to_float16_is_as_stated():
    exact = log_spectrogram(natural(10))
    error = np.abs(exact - exact.astype(np.float16))
    assert error.mean() < 2e-4
    assert (error <= np.maximum(np.abs(exact), 2**-10) * 2**-11).all()
    decibel = log_spectrogram(natural(10), "log-mel")
    assert np.abs(decibel - decibel.astype(np.float16)).max() <= 2**-5
    for preset in PRESETS.keys() - {"vggsound", "log-mel", "mfcc"}:
        values = log_spectrogram(natural_at(preset), preset)
        assert values.min() >= -16.2
        assert values.max() <= 8
        assert np.abs(values - values.astype(np.float16)).mean() < 1.5e-3
        assert np.abs(values - values.astype(np.float16)).max() <= 2**-7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "arguments"),
    [
        ("magnitude", {"n_fft": 512, "hop_length": 159, "center": False}),
        ("cvpr-cremad", {"n_fft": 512, "hop_length": 353, "pad_mode": "constant"}),
        ("cvpr-vggsound", {"n_fft": 256, "hop_length": 128, "pad_mode": "constant"}),
    ],
)
def test_magnitudes_equal_those_of_librosa(preset, arguments):
    from librosa import stft

    samples = natural_at(preset)
    ours = log_spectrogram(samples, preset)
    theirs = np.abs(stft(samples.astype(np.float64), **arguments))
    assert ours.shape == theirs.shape
    assert np.abs(np.exp(ours) - theirs).max() < 1e-5 * theirs.max()
    loud = theirs > 1e-2  # below, the logarithm magnifies the rounding of float32
    assert np.abs(ours - np.log(theirs + 1e-7))[loud].max() < 1e-3


@pytest.mark.slow
def test_reflection_padding_of_older_librosa_differs_only_at_the_ends():
    """librosa before 0.9 pads by reflection; the docstring of the presets states the difference."""
    from librosa import stft

    for preset, hop in (("cvpr-cremad", 353), ("cvpr-vggsound", 128)):
        samples = natural_at(preset, 3)
        window = PRESETS[preset].window
        old = np.log(np.abs(stft(samples.astype(np.float64), n_fft=window, hop_length=hop, pad_mode="reflect")) + 1e-7)
        loud = old > np.log(1e-2)
        differs = ((np.abs(log_spectrogram(samples, preset) - old) > 1e-2) & loud).any(axis=0)
        assert set(np.flatnonzero(differs)) <= {0, old.shape[1] - 1}
        assert differs.any()


def mel_bank(samples):
    """Log mel filter bank of Kaldi by its definition, window by window and bin by bin, in float64."""
    count = (samples.size - 400) // 160 + 1
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    step = (mel_scale(8000) - mel_scale(20)) / 129
    values = np.empty((128, count))
    for column in range(count):
        window = samples[160 * column : 160 * column + 400].astype(np.float64)
        window = window - window.mean()
        window = np.array([window[i] - 0.97 * window[max(i - 1, 0)] for i in range(400)]) * taper
        power = np.abs(np.fft.fft(np.pad(window, (0, 112)))) ** 2
        for row in range(128):
            left = mel_scale(20) + row * step
            energy = 0.0
            for number in range(256):
                mel = mel_scale(31.25 * number)
                if left < mel < left + 2 * step:
                    energy += (1 - abs(mel - left - step) / step) * power[number]
            values[row, column] = np.log(max(energy, np.finfo(np.float32).eps))
    return values


def mel_scale(hertz):
    return 1127 * np.log(1 + hertz / 700)


def test_kaldi_fbank_equals_its_definition():
    samples = natural(1)[:2000]
    ours = log_spectrogram(samples, "kaldi-fbank")
    assert ours.shape == (128, 11)
    assert np.abs(ours - mel_bank(samples)).max() < 2e-3
    assert (ours[3] == np.float32(np.log(2.0**-23))).all()  # between two FFT bins


@pytest.mark.parametrize("scale", [1.0, 1e-2])
def test_kaldi_fbank_equals_that_of_kaldi_native_fbank(scale):
    """kaldi-native-fbank is an independent port of Kaldi's C++ code; torchaudio is tested against it too."""
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = 128
    options.energy_floor = 0
    samples = scale * natural(3)
    bank = knf.OnlineFbank(options)
    bank.accept_waveform(16000, samples.tolist())
    bank.input_finished()
    theirs = np.stack([bank.get_frame(column) for column in range(bank.num_frames_ready)], axis=1)
    ours = log_spectrogram(samples, "kaldi-fbank")
    assert ours.shape == theirs.shape == (128, 298)
    assert np.abs(ours - theirs).max() < 1e-2
    assert np.sqrt(((ours - theirs) ** 2).mean()) < 1e-3


def slaney_hertz(mel):
    """Slaney's mel scale (Auditory Toolbox): 200/3 Hz per mel up to 1 kHz, then a factor of 6.4 in 27 mels."""
    return 200 / 3 * mel if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def decibels(samples):
    """128 log-mel bins by their definition, window by window and bin by bin, in float64."""
    highest = 15 + 27 * np.log(8) / np.log(6.4)
    corners = [slaney_hertz(mel) for mel in np.linspace(0, highest, 130)]
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    padded = np.pad(samples.astype(np.float64), 512)
    power = np.stack(
        [
            np.abs(np.fft.rfft(padded[160 * column : 160 * column + 1024] * taper)) ** 2
            for column in range(samples.size // 160 + 1)
        ],
        axis=1,
    )
    values = np.empty((128, power.shape[1]))
    for row in range(128):
        left, middle, right = corners[row : row + 3]
        energy = 0.0
        for number in range(513):
            hertz = 15.625 * number
            if left < hertz < right:
                height = (hertz - left) / (middle - left) if hertz < middle else (right - hertz) / (right - middle)
                energy = energy + 2 / (right - left) * height * power[number]
        values[row] = 10 * np.log10(np.maximum(energy, 1e-10))
    return np.maximum(values, values.max() - 80)


@pytest.mark.parametrize("samples", [natural(2), 1e-3 * natural(1, 1), tone(1000, seconds=1), np.zeros(16000)])
def test_log_mel_equals_its_definition(samples):
    samples = samples.astype(np.float32)
    assert np.abs(log_spectrogram(samples, "log-mel") - decibels(samples)).max() < 1e-3


def test_mfccs_are_the_cosine_transform_of_log_mel():
    samples = natural(2)
    number, row = np.arange(40)[:, None], np.arange(128)
    cosines = np.sqrt(2 / 128) * np.cos(np.pi * number * (row + 0.5) / 128)
    cosines[0] /= np.sqrt(2)
    assert np.abs(log_spectrogram(samples, "mfcc") - cosines @ decibels(samples)).max() < 1e-3


@pytest.mark.parametrize("preset", ["log-mel", "mfcc"])
def test_stored_mel_values_do_not_depend_on_threads(preset):
    """A matrix product in float32 would depend on them, because its sums are grouped by thread."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    stored = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads):
            stored.append(log_spectrogram(natural(10), preset).astype(np.float16))
    assert np.array_equal(*stored)


@pytest.mark.parametrize(
    ("preset", "bins", "columns"),
    [
        ("vggsound", 257, {10: 1004, 3: 299}),
        ("magnitude", 257, {10: 1004, 3: 299}),
        ("cvpr-cremad", 257, {10: 625, 3: 188}),
        ("cvpr-vggsound", 129, {10: 1251, 5: 626, 3: 376}),
        ("kaldi-fbank", 128, {10: 998, 3: 298}),
        ("log-mel", 128, {10: 1001, 3: 301}),
        ("mfcc", 40, {10: 1001, 3: 301}),
    ],
)
def test_shapes_and_types_of_all_presets(preset, bins, columns):
    for seconds, count in columns.items():
        values = log_spectrogram(natural_at(preset, seconds), preset)
        assert values.shape == (bins, count) == (bins, windows(PRESETS[preset].rate * seconds, preset))
        assert values.flags.c_contiguous
        assert values.dtype == np.float32


@pytest.mark.parametrize(
    ("preset", "bins"),
    [
        ("vggsound", (32, 128, 23)),
        ("magnitude", (32, 128, 23)),
        ("cvpr-cremad", (23, 93, 23)),
        ("cvpr-vggsound", (16, 64, 12)),
        ("kaldi-fbank", (43, 96, 34)),
        ("log-mel", (42, 99, 30)),
    ],
)
def test_a_tone_is_in_its_bin_only_at_the_right_sample_rate(preset, bins):
    def peak(samples):
        return int(log_spectrogram(samples, preset).mean(axis=1).argmax())

    rate = PRESETS[preset].rate
    assert peak(tone(1000, rate)) == bins[0]
    assert peak(tone(4000, rate)) == bins[1]
    assert peak(tone(1000, rate=22050)) == bins[2]  # a wrong sample rate moves the peak


def test_silence_is_finite():
    assert np.array_equal(log_spectrogram(np.zeros(48000, np.float32)), np.zeros((257, 299)))
    assert (log_spectrogram(np.zeros(48000, np.float32), "log-mel") == -100).all()
    for preset in PRESETS.keys() - {"vggsound", "log-mel", "mfcc"}:
        floor = np.log(np.float32(2.0**-23 if preset == "kaldi-fbank" else 1e-7))
        assert (log_spectrogram(np.zeros(48000, np.float32), preset) == floor).all()


def test_fit_tiles_cuts_and_clips():
    ramp = np.linspace(-2, 2, 20_000, dtype=np.float32)
    tiled = fit(ramp, 48_000)
    assert tiled.size == 48_000
    assert tiled.dtype == np.float32
    assert np.array_equal(tiled[20_000:40_000], np.clip(ramp, -1, 1))
    assert np.array_equal(tiled[40_000:], np.clip(ramp, -1, 1)[:8000])
    assert np.array_equal(fit(ramp, 16_000), np.clip(ramp, -1, 1)[:16_000])


def test_invalid_values_are_refused():
    with pytest.raises(ValueError, match="preset"):
        SpectrogramOptions("mel")
    with pytest.raises(ValueError, match="window"):
        log_spectrogram(np.zeros(511, np.float32))


def test_parameters_include_all_that_changes_the_values():
    assert SpectrogramOptions().parameters(10) != SpectrogramOptions().parameters(3)
    assert len({str(SpectrogramOptions(preset).parameters(10)) for preset in PRESETS}) == len(PRESETS)
    assert SpectrogramOptions().parameters(10) == {
        "version": 1,
        "preset": "vggsound",
        "rate": 16000,
        "window": 512,
        "hop": 159,
        "seconds": 10,
        "floor": 1e-7,
        "dtype": "float16",
    }  # as in version 0.1.0, so that its features stay valid
