"""Features of one clip: frames, sound and flow of whole files and of spans, with their flags and reasons."""

from fractions import Fraction

import numpy as np
import pytest

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions
from bmlpipe.pipeline.media.audio import AudioDecoder
from bmlpipe.pipeline.media.container import Demuxer, open_media, start_time

FRAMES = FrameOptions(short_side=80)
SOUND = SpectrogramOptions()


def samples(path, length=10, start=0.0, rate=16000):
    with open_media(path) as container:
        stream = container.streams.best("audio")
        sound = AudioDecoder(stream, Demuxer(container, [stream]), start_time(stream) + start, Fraction(length))
        return sound.read([rate])[rate]


def numbers(features, frame_number):
    return [frame_number(jpeg) for jpeg in features["frames"].jpegs]


def test_one_clip_gives_frames_sound_and_flow(make_clip, frame_number, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=10, fps=30)
    features = extract_clip(clip, ExtractionRequest((FRAMES, SOUND, FlowOptions(short_side=80))))
    assert numbers(features, frame_number) == [30 * t for t in range(10)]
    assert features["frames"].times == tuple(float(t) for t in range(10))
    assert features["spectrogram"].values.shape == (257, 1004)
    assert features["spectrogram"].values.dtype == np.float16
    assert features["spectrogram"].values.astype(np.float32).mean(axis=1).argmax() == 32
    assert len(features["flow"].jpegs) == 20
    assert features.flags == ()
    measured = {"pictures", "sound"}  # see test_quality.py
    assert measured < features.media.keys()
    assert {name: value for name, value in features.media.items() if name not in measured} == {
        "container": "mov,mp4,m4a,3gp,3g2,mj2",
        "duration_s": 10.0,
        "video_codec": "h264",
        "pix_fmt": "yuv420p",
        "width": 112,
        "height": 80,
        "fps": 30.0,
        "pixel_aspect": "1",
        "rotation": 0,
        "audio_codec": "aac",
        "sample_rate": 44100,
        "channels": 2,
    }


def test_each_feature_is_the_same_alone_and_together(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4")
    together = extract_clip(clip, ExtractionRequest((FRAMES, SOUND, FlowOptions(short_side=80)), 3))
    assert extract_clip(clip, ExtractionRequest((FRAMES,), 3))["frames"] == together["frames"]
    alone = extract_clip(clip, ExtractionRequest((SOUND,), 3))["spectrogram"]
    assert np.array_equal(alone.values, together["spectrogram"].values)
    assert extract_clip(clip, ExtractionRequest((FlowOptions(short_side=80),), 3))["flow"] == together["flow"]


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_sound_of_any_rate_and_layout_keeps_pitch_level_and_length(make_clip, tmp_path, rate, channels):
    clip = make_clip(
        tmp_path / "clip.mkv", codec=None, audio_codec="pcm_s16le", audio_rate=rate, channels=channels, seconds=3
    )
    sound = samples(clip, 3)
    assert abs(sound.size - 48000) <= 2
    spectrum = np.abs(np.fft.rfft(sound[8000:40000]))
    assert abs(spectrum.argmax() * 0.5 - 1000) < 1
    assert 0.45 < np.abs(sound[8000:40000]).max() < 0.55  # the tone is at 0.5 in every channel


def test_sound_equals_that_of_the_ffmpeg_program(make_clip, tmp_path):
    import ffmpeg
    import imageio_ffmpeg

    clip = make_clip(tmp_path / "clip.mp4", seconds=3, tone=700)
    command = ffmpeg.input(str(clip)).output("pipe:", format="f32le", ac=1, ar=16000)
    out, _ = command.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), capture_stdout=True, capture_stderr=True)
    theirs = np.frombuffer(out, np.float32)
    ours = samples(clip, 3)
    length = min(ours.size, theirs.size)
    assert length > 47000
    scale = (ours[:length] @ theirs[:length]) / (theirs[:length] @ theirs[:length])
    assert np.abs(ours[:length] - scale * theirs[:length])[800:-800].max() < 1e-3


def test_short_sound_is_tiled_and_silence_is_flagged(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=3)
    features = extract_clip(clip, ExtractionRequest((SOUND,)))
    assert features.flags == ("short_audio",)
    assert features["spectrogram"].values.shape == (257, 1004)
    assert features["spectrogram"].values.astype(np.float32).mean(axis=1).argmax() == 32
    silent = make_clip(tmp_path / "silent.mp4", seconds=3, tone=0)
    features = extract_clip(silent, ExtractionRequest((SOUND,), 3))
    assert features.flags == ("silent_audio",)
    assert not features["spectrogram"].values.any()


def test_sound_that_starts_late_keeps_its_time(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", seconds=3, audio_start=1.0, audio_seconds=2.0)
    features = extract_clip(clip, ExtractionRequest((SOUND,), 3))
    tone = features["spectrogram"].values[32].astype(np.float32)
    assert tone[:90].max() < tone[110:].min()
    assert features.flags == ("audio_gap",)


def test_a_small_offset_of_the_sound_is_ignored(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", seconds=3, audio_start=0.06)
    features = extract_clip(clip, ExtractionRequest((SOUND,), 3))
    assert features.flags == ()
    assert features["spectrogram"].values[32, :5].astype(np.float32).min() > 1


def test_sound_is_read_from_a_separate_file(make_clip, clip_error, tmp_path):
    clip = make_clip(tmp_path / "clip.flv", seconds=3, audio_codec=None)
    sound = make_clip(
        tmp_path / "clip.wav", codec=None, seconds=3, audio_codec="pcm_s16le", tone=2000, audio_rate=48000
    )
    features = extract_clip(clip, ExtractionRequest((FRAMES, SOUND), 3), audio=sound)
    assert features["spectrogram"].values.astype(np.float32).mean(axis=1).argmax() == 64
    assert features.media["audio_container"] == "wav"
    assert features.media["sample_rate"] == 48000
    assert clip_error(clip, SOUND, audio=tmp_path / "none.wav").reason == "unreadable_file"
    assert clip_error(clip, SOUND, audio=clip).reason == "missing_audio"


def test_each_preset_gets_the_sound_at_its_own_sample_rate(make_clip, tmp_path):
    """One decode serves a preset of another rate and a waveform at 16 kHz."""
    clip = make_clip(tmp_path / "clip.mp4", seconds=3, tone=2000)
    for preset, shape, row in (("cvpr-cremad", (257, 188), 46), ("cvpr-vggsound", (129, 376), 32)):
        options = SpectrogramOptions(preset)
        features = extract_clip(clip, ExtractionRequest((options, WaveformOptions()), 3))
        values = features["spectrogram"].values.astype(np.float32)
        assert values.shape == shape
        assert values.mean(axis=1).argmax() == row
        assert np.array_equal(values, extract_clip(clip, ExtractionRequest((options,), 3))["spectrogram"].values)
        assert features["waveform"] == extract_clip(clip, ExtractionRequest((WaveformOptions(),), 3))["waveform"]
    sound, other = samples(clip, 3), samples(clip, 3, rate=22050)
    assert abs(other.size / 22050 - sound.size / 16000) < 2e-4
    spectrum = np.abs(np.fft.rfft(other[2205:46305]))
    assert spectrum.argmax() == 4000  # bins of 0.5 Hz


def test_a_missing_stream_fails_only_the_features_that_need_it(make_clip, clip_error, tmp_path):
    mute = make_clip(tmp_path / "mute.mp4", audio_codec=None)
    blind = make_clip(tmp_path / "blind.mp4", codec=None)
    assert clip_error(mute, SOUND).reason == "missing_audio"
    assert clip_error(mute, FRAMES, SOUND).reason == "missing_audio"
    assert len(extract_clip(mute, ExtractionRequest((FRAMES,)))["frames"].jpegs) == 3
    assert clip_error(blind, FRAMES).reason == "missing_video"
    assert clip_error(blind, FlowOptions()).reason == "missing_video"
    assert list(extract_clip(blind, ExtractionRequest((SOUND,))).features) == ["spectrogram"]


CONTAINERS = {
    "mp4": {},
    "mkv": {},
    "flv": {},
    "ts": {},
    "mpg": {"codec": "mpeg2video", "audio_codec": "mp2"},
    "webm": {"codec": "libvpx", "audio_codec": "libopus", "audio_rate": 48000},
    "avi": {"codec": "mpeg4", "audio_codec": "libmp3lame"},
}


@pytest.mark.parametrize("gop", [12, 250])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_spans_of_longer_files(make_clip, frame_number, tmp_path, suffix, gop):
    """A span gives the same frames and sound as reading the file from its beginning."""
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=9, gop=gop, **CONTAINERS[suffix])
    whole = [frame_number(jpeg) for jpeg in extract_clip(clip, ExtractionRequest((FRAMES,), 9))["frames"].jpegs]
    late = 1 if suffix == "avi" else 0  # FFmpeg's AVI writer puts an empty packet after the first frame
    assert whole == [max(25 * t - late, 0) for t in range(9)]
    for start in (0.52, 2.0, 4.36):
        features = extract_clip(clip, ExtractionRequest((FRAMES, SOUND), 3), start=start, duration=3.0)
        assert numbers(features, frame_number) == [round(25 * start) + 25 * t - late for t in range(3)]
        assert features.flags == ()
        assert features["frames"].times == pytest.approx((0, 1, 2), abs=0.002)
    whole_sound, part = samples(clip, 9), samples_from(clip, 4.36, 3)
    begin = round(4.36 * 16000)  # containers round the time of sound to a millisecond or better
    shifts = [np.abs(part - whole_sound[begin + lag : begin + lag + part.size]).max() for lag in range(-16, 17)]
    assert min(shifts) < 0.12


def samples_from(path, start, length):
    """Decode the sound of a span, after a seek to one second before it."""
    with open_media(path) as container:
        stream = container.streams.best("audio")
        demuxer = Demuxer(container, [stream])
        demuxer.seek(stream, Fraction(repr(start)) - 1)
        return AudioDecoder(stream, demuxer, start_time(stream) + Fraction(repr(start)), Fraction(length)).read(
            [16000]
        )[16000]


def test_a_decimal_start_is_exact(make_clip, frame_number, tmp_path):
    """At 25 fps, 0.28 s is frame 7, although no binary number equals 0.28."""
    clip = make_clip(tmp_path / "clip.mp4", seconds=3)
    for number in range(1, 50):
        features = extract_clip(clip, ExtractionRequest((FRAMES,), 1), start=number / 25)
        assert numbers(features, frame_number) == [number]


def test_the_duration_limits_the_clip(make_clip, clip_error, frame_number, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=9)
    features = extract_clip(clip, ExtractionRequest((FRAMES, SOUND), 10), start=1, duration=2.5)
    assert numbers(features, frame_number) == [25, 50, 75]
    assert features.flags == ("short_audio",)  # 2.5 s of sound, tiled to 10 s
    assert clip_error(clip, FRAMES, start=20, seconds=3).reason == "start_past_end"
    assert clip_error(clip, SOUND, start=20, seconds=3).reason == "missing_audio"
    assert extract_clip(clip, ExtractionRequest((FRAMES,), 5), start=7).flags == ("short_video",)


def test_invalid_spans_are_refused(tmp_path):
    path = tmp_path / "clip.mp4"
    for wrong in ({"start": -1.0}, {"start": float("nan")}, {"duration": 0.0}):
        with pytest.raises(OptionError, match="must be"):
            extract_clip(path, ExtractionRequest((FRAMES,)), **wrong)


@pytest.mark.real
@pytest.mark.slow
def test_every_real_clip_gives_features_or_the_expected_reason(real_data, clip_error):
    clips = real_data / "clips"
    expected = {
        "corrupted.mp4": "damaged_video",
        "broken.mp4": "damaged_container",
    }
    mute = {"test.mp4", "video_90.mov", "corrupted.mp4"}
    for clip in sorted(clips.glob("*/*")):
        sound = [] if clip.name in mute else [SOUND]
        if clip.name in expected:
            assert clip_error(clip, FrameOptions(), *sound).reason == expected[clip.name]
            continue
        features = extract_clip(clip, ExtractionRequest((FrameOptions(), *sound, FlowOptions())))
        count = min(10, -int(-features.media["duration_s"] // 1))
        assert abs(len(features["frames"].jpegs) - count) <= 1
        assert min(features["frames"].height, features["frames"].width) == 256
        assert len(features["flow"].times) == len(features["frames"].times)
        assert set(features.flags) <= {"short_video", "short_audio", "flow_window_moved"}
        if clip.parent.name == "vggsound":
            assert len(features["frames"].jpegs) == 10
            assert features.flags == ()
    for name in mute - {"corrupted.mp4"}:
        assert clip_error(next(clips.glob(f"*/{name}")), SOUND).reason == "missing_audio"


def test_a_worker_imports_only_what_it_needs():
    import subprocess
    import sys

    code = "import sys, bmlpipe.pipeline.extraction.clip\n"
    code += "print({'cv2', 'scipy', 'librosa', 'soundfile', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
