"""One clip → features: policies, flags and reasons, stretches of longer files, damage."""

import hashlib
import random
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
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
from bmlpipe.pipeline.media.video import ClipSpan, VideoDecoder, select_frames_at_instants

FRAMES = FrameOptions(short_side=80)
SOUND = SpectrogramOptions()


def samples(path, length=10, start=0.0, rate=16000):
    with open_media(path) as container:
        stream = container.streams.best("audio")
        sound = AudioDecoder(stream, Demuxer(container, [stream]), start_time(stream) + start, Fraction(length))
        return sound.read([rate])[rate]


def numbers(features, frame_number):
    return [frame_number(jpeg) for jpeg in features["frames"].jpegs]


def failure(clip, *, seconds=10, ffmpeg=None, audio=None, start=0.0, duration=None, **front_ends):
    request = ExtractionRequest(tuple(front_ends.values()), seconds, ffmpeg)
    with pytest.raises(ClipError) as caught:
        extract_clip(clip, request, audio=audio, start=start, duration=duration)
    return caught.value.reason


def test_everything_from_one_clip(make_clip, frame_number, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=10, fps=30)
    features = extract_clip(clip, ExtractionRequest((FRAMES, SOUND, FlowOptions(short_side=80))))
    assert numbers(features, frame_number) == [30 * t for t in range(10)]
    assert features["frames"].times == tuple(float(t) for t in range(10))
    assert features["spectrogram"].values.shape == (257, 1004)
    assert features["spectrogram"].values.dtype == np.float16
    assert features["spectrogram"].values.astype(np.float32).mean(axis=1).argmax() == 32
    assert len(features["flow"].jpegs) == 20
    assert features.flags == ()
    measured = {"pictures", "sound"}  # test_quality.py
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


def test_each_feature_alone_is_the_same_as_together(make_clip, tmp_path):
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


def test_sound_is_that_of_ffmpeg(make_clip, tmp_path):
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


def test_short_sound_is_tiled_and_silence_flagged(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=3)
    features = extract_clip(clip, ExtractionRequest((SOUND,)))
    assert features.flags == ("short_audio",)
    assert features["spectrogram"].values.shape == (257, 1004)
    assert features["spectrogram"].values.astype(np.float32).mean(axis=1).argmax() == 32
    silent = make_clip(tmp_path / "silent.mp4", seconds=3, tone=0)
    features = extract_clip(silent, ExtractionRequest((SOUND,), 3))
    assert features.flags == ("silent_audio",)
    assert not features["spectrogram"].values.any()


def test_late_sound_keeps_its_place(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", seconds=3, audio_start=1.0, audio_seconds=2.0)
    features = extract_clip(clip, ExtractionRequest((SOUND,), 3))
    tone = features["spectrogram"].values[32].astype(np.float32)
    assert tone[:90].max() < tone[110:].min()
    assert features.flags == ("audio_gap",)


def test_small_offsets_of_sound_are_none(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", seconds=3, audio_start=0.06)
    features = extract_clip(clip, ExtractionRequest((SOUND,), 3))
    assert features.flags == ()
    assert features["spectrogram"].values[32, :5].astype(np.float32).min() > 1


def test_sound_from_its_own_file(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.flv", seconds=3, audio_codec=None)
    sound = make_clip(
        tmp_path / "clip.wav", codec=None, seconds=3, audio_codec="pcm_s16le", tone=2000, audio_rate=48000
    )
    features = extract_clip(clip, ExtractionRequest((FRAMES, SOUND), 3), audio=sound)
    assert features["spectrogram"].values.astype(np.float32).mean(axis=1).argmax() == 64
    assert features.media["audio_container"] == "wav"
    assert features.media["sample_rate"] == 48000
    assert failure(clip, audio=tmp_path / "none.wav", spectrogram=SOUND) == "unreadable_file"
    assert failure(clip, audio=clip, spectrogram=SOUND) == "missing_audio"


def test_each_preset_hears_the_sound_at_its_own_rate(make_clip, tmp_path):
    """Also beside a waveform at 16 kHz, from one decode of the sound."""
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
    assert spectrum.argmax() == 4000  # of 2 s


def test_missing_streams(make_clip, tmp_path):
    mute = make_clip(tmp_path / "mute.mp4", audio_codec=None)
    blind = make_clip(tmp_path / "blind.mp4", codec=None)
    assert failure(mute, spectrogram=SOUND) == "missing_audio"
    assert failure(mute, frames=FRAMES, spectrogram=SOUND) == "missing_audio"
    assert len(extract_clip(mute, ExtractionRequest((FRAMES,)))["frames"].jpegs) == 3
    assert failure(blind, frames=FRAMES) == "missing_video"
    assert failure(blind, flow=FlowOptions()) == "missing_video"
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
def test_stretches_of_longer_files(make_clip, frame_number, tmp_path, suffix, gop):
    """The same pictures as by reading the file from its beginning, and the tone that sounds there."""
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=9, gop=gop, **CONTAINERS[suffix])
    whole = [frame_number(jpeg) for jpeg in extract_clip(clip, ExtractionRequest((FRAMES,), 9))["frames"].jpegs]
    late = 1 if suffix == "avi" else 0  # lavf's AVI writer puts an empty packet after the first picture
    assert whole == [max(25 * t - late, 0) for t in range(9)]
    for start in (0.52, 2.0, 4.36):
        features = extract_clip(clip, ExtractionRequest((FRAMES, SOUND), 3), start=start, duration=3.0)
        assert numbers(features, frame_number) == [round(25 * start) + 25 * t - late for t in range(3)]
        assert features.flags == ()
        assert features["frames"].times == pytest.approx((0, 1, 2), abs=0.002)
    whole_sound, part = samples(clip, 9), samples_from(clip, 4.36, 3)
    begin = round(4.36 * 16000)  # containers give the time of sound to a millisecond or better
    shifts = [np.abs(part - whole_sound[begin + lag : begin + lag + part.size]).max() for lag in range(-16, 17)]
    assert min(shifts) < 0.12


def samples_from(path, start, length):
    with open_media(path) as container:
        stream = container.streams.best("audio")
        demuxer = Demuxer(container, [stream])
        demuxer.seek(stream, Fraction(repr(start)) - 1)
        return AudioDecoder(stream, demuxer, start_time(stream) + Fraction(repr(start)), Fraction(length)).read(
            [16000]
        )[16000]


def test_a_start_need_not_be_a_binary_number(make_clip, frame_number, tmp_path):
    """0.28 s is picture 7 at 25 a second, although the binary number next to 0.28 is a little more or less."""
    clip = make_clip(tmp_path / "clip.mp4", seconds=3)
    for number in range(1, 50):
        features = extract_clip(clip, ExtractionRequest((FRAMES,), 1), start=number / 25)
        assert numbers(features, frame_number) == [number]


def test_the_duration_limits_the_clip(make_clip, frame_number, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=9)
    features = extract_clip(clip, ExtractionRequest((FRAMES, SOUND), 10), start=1, duration=2.5)
    assert numbers(features, frame_number) == [25, 50, 75]
    assert features.flags == ("short_audio",)  # 2.5 s of sound, tiled to 10 s
    assert failure(clip, start=20, seconds=3, frames=FRAMES) == "start_past_end"
    assert failure(clip, start=20, seconds=3, spectrogram=SOUND) == "missing_audio"
    assert extract_clip(clip, ExtractionRequest((FRAMES,), 5), start=7).flags == ("short_video",)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "flv"])
def test_a_file_that_is_cut_off(make_clip, tmp_path, suffix):
    options = {"movflags": "faststart"} if suffix == "mp4" else None
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=6, container_options=options, **CONTAINERS[suffix])
    data = clip.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: len(data) // 2])
    assert failure(cut, frames=FRAMES) == "truncated"
    assert failure(cut, spectrogram=SOUND) == "truncated"
    assert len(extract_clip(cut, ExtractionRequest((FRAMES,), 2))["frames"].jpegs) == 2  # the part asked for is there


def test_an_mp4_cut_before_its_header(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4")
    clip.write_bytes(clip.read_bytes()[:20_000])
    assert failure(clip, frames=FRAMES) == "damaged_container"


CAVLC = {"options": {"x264-params": "cabac=0"}}
DAMAGED = {  # name: the file, and whether its codec notices damage anywhere (docs/reasons.md)
    "h264-cavlc.mp4": (CAVLC, True),
    "h264-cavlc.mkv": (CAVLC, True),
    "h264-cavlc.flv": (CAVLC, True),
    "h264-cavlc.ts": (CAVLC, True),
    "mpeg4.mp4": ({"codec": "mpeg4"}, True),
    "mpeg2.mpg": ({"codec": "mpeg2video"}, True),
    "h264-cabac.mp4": ({}, False),
    "h264-cabac.ts": ({}, False),
    "hevc.mkv": ({"codec": "libx265", "options": {"x265-params": "log-level=none"}}, False),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}, False),
    "mpeg4.avi": ({"codec": "mpeg4"}, False),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_never_gives_a_wrong_picture_silently(make_clip, ffmpeg_frames, tmp_path, name):
    """Parts are overwritten, zeroed or cut out: an error, a flag, or the very pictures of the undamaged file.

    Where a codec has no redundancy (CABAC, HEVC, VP9), a changed stream can be a legal one. Only what is a legal stream
    passes without a flag: the picture is what a full decode by ffmpeg shows at the instant.
    """
    options, noticed = DAMAGED[name]
    clip = make_clip(tmp_path / name, seconds=4, audio_codec=None, gop=25, **options)
    data, chance = clip.read_bytes(), random.Random(name)
    whole = extract_clip(clip, ExtractionRequest((FRAMES,), 4))["frames"]
    outcomes = {"failed": 0, "flagged": 0, "same": 0, "changed": 0}
    for number in range(24):
        damaged = bytearray(data)
        at, size = chance.randrange(len(data) // 20, len(data) - 2000), (24, 512, 188)[number % 3]
        damaged[at : at + size] = (chance.randbytes(size), bytes(size), b"")[number % 3]
        clip.write_bytes(bytes(damaged))
        try:
            features = extract_clip(clip, ExtractionRequest((FRAMES,), 4))
        except ClipError:
            outcomes["failed"] += 1
            continue
        if features.flags:
            outcomes["flagged"] += 1
            continue
        if features["frames"] == whole:
            outcomes["same"] += 1
            continue
        outcomes["changed"] += 1
        assert len(features["frames"].jpegs) == 4
        reference = ffmpeg_frames(clip)
        for instant, digest in shown_planes(clip):
            assert digest == [md5 for time, md5 in reference if time <= reference[0][0] + instant][-1]
    assert outcomes["failed"] + outcomes["flagged"] >= 4, outcomes
    if noticed:
        assert outcomes["changed"] <= 1, outcomes  # a time in a container's header is not protected either


def shown_planes(path):
    """Instant and the MD5 of the picture shown there, decoded whole and leniently."""
    with open_media(path) as container:
        stream = container.streams.best("video")
        pictures = VideoDecoder(stream, Demuxer(container, [stream]), raise_on_damage=False)
        return [
            (one.instant, hashlib.md5(one.shown.image.to_ndarray(format="yuv420p").tobytes()).hexdigest())
            for one in select_frames_at_instants(pictures, ClipSpan(0, None, 4))
        ]


@pytest.mark.parametrize("decoder", [None, FFmpeg()], ids=["pyav", "ffmpeg"])
@pytest.mark.parametrize("suffix", ["avi", "mkv", "flv", "ts"])
def test_a_picture_cut_out_of_the_file_is_missed(make_clip, tmp_path, suffix, decoder):
    """Every picture can be decoded by itself, so no decoder notices: container and index do."""
    codec = {"codec": "mpeg4"} if suffix in ("avi", "mkv") else {}
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=4, audio_codec=None, gop=1, **codec)
    whole = extract_clip(clip, ExtractionRequest((FRAMES,), 4, ffmpeg=decoder))
    assert whole.flags == ()
    with open_media(clip) as container:
        packets = [(packet.pos, packet.size, bytes(packet)) for packet in container.demux(video=0) if packet.size]
    data = clip.read_bytes()
    position, size, content = packets[40]
    begin, end = (position, position + 564) if suffix == "ts" else (data.index(content), data.index(content) + size)
    clip.write_bytes(data[:begin] + data[end:])
    try:
        said = set(extract_clip(clip, ExtractionRequest((FRAMES,), 4, ffmpeg=decoder)).flags)
    except ClipError as error:
        said = {error.reason}
    assert said & {"damaged_container", "damaged_video", "truncated"}


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damage_counts_where_it_matters(make_clip, tmp_path, codec):
    """Pictures of one packet each, none depending on another: the damage is just where it is put."""
    clip = make_clip(tmp_path / "clip.mp4", seconds=3, audio_codec=None, gop=1, codec=codec)
    with open_media(clip) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        places = {round(float(packet.pts * packet.time_base) * 25): (packet.pos, packet.size) for packet in packets}
    data = clip.read_bytes()

    def damaged(number):
        at, size = places[number]
        path = tmp_path / "damaged.mp4"
        path.write_bytes(data[: at + 4] + bytes(size - 4) + data[at + size :])
        return path

    assert failure(damaged(25), seconds=3, frames=FRAMES) == "damaged_video"
    assert failure(damaged(26), seconds=3, flow=FlowOptions(short_side=80)) == "damaged_video"  # flow's next picture
    for number in (24, 26):
        features = extract_clip(damaged(number), ExtractionRequest((FRAMES,), 3))
        assert features["frames"] == extract_clip(clip, ExtractionRequest((FRAMES,), 3))["frames"]
        assert features.flags == (("damaged_video",) if codec == "mpeg4" else ())  # H.264: it is not decoded at all


def test_damaged_sound_becomes_silence_and_a_flag(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", codec=None, seconds=4, audio_codec="aac")
    with open_media(clip) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    damaged = bytearray(clip.read_bytes())
    for at, size in places[60:90]:
        damaged[at : at + size] = b"\xff" * size
    clip.write_bytes(bytes(damaged))
    features = extract_clip(clip, ExtractionRequest((SOUND,), 4))
    assert "damaged_audio" in features.flags
    tone = features["spectrogram"].values[32].astype(np.float32)
    assert tone[160:200].max() < tone[20:120].min()
    assert tone[250:].min() > tone[160:200].max()
    for at, size in places[2:]:
        damaged[at : at + size] = b"\xff" * size
    clip.write_bytes(bytes(damaged))
    assert failure(clip, seconds=4, spectrogram=SOUND) == "damaged_audio"


def test_arguments_are_checked(tmp_path):
    path = tmp_path / "clip.mp4"
    for wrong in ({"start": -1.0}, {"start": float("nan")}, {"duration": 0.0}):
        with pytest.raises(OptionError, match="must be"):
            extract_clip(path, ExtractionRequest((FRAMES,)), **wrong)


@pytest.mark.real
@pytest.mark.slow
def test_every_real_clip_gives_features_or_a_fitting_reason(real_data):
    clips = real_data / "clips"
    expected = {
        "corrupted.mp4": "damaged_video",
        "broken.mp4": "damaged_container",
    }
    mute = {"test.mp4", "video_90.mov", "corrupted.mp4"}
    for clip in sorted(clips.glob("*/*")):
        sound = {} if clip.name in mute else {"spectrogram": SOUND}
        if clip.name in expected:
            assert failure(clip, frames=FrameOptions(), **sound) == expected[clip.name]
            continue
        features = extract_clip(clip, ExtractionRequest((FrameOptions(), *sound.values(), FlowOptions())))
        count = min(10, -int(-features.media["duration_s"] // 1))
        assert abs(len(features["frames"].jpegs) - count) <= 1
        assert min(features["frames"].height, features["frames"].width) == 256
        assert len(features["flow"].times) == len(features["frames"].times)
        assert set(features.flags) <= {"short_video", "short_audio", "flow_window_moved"}
        if clip.parent.name == "vggsound":
            assert len(features["frames"].jpegs) == 10
            assert features.flags == ()
    for name in mute - {"corrupted.mp4"}:
        assert failure(next(clips.glob(f"*/{name}")), spectrogram=SOUND) == "missing_audio"


def test_every_reason_and_flag_is_documented():
    import re
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    documented = set(re.findall(r"`([a-z_]+)`", (root / "docs" / "reasons.md").read_text(encoding="utf-8")))
    sources = [path.read_text(encoding="utf-8") for path in (root / "pipeline").rglob("*.py")]
    used = {
        code for text in sources for code in re.findall(r'(?:ClipError\(|flags\.add\(|reason=)\s*"([a-z_]+)"', text)
    }
    assert len(used) > 20
    assert used <= documented, used - documented


def test_a_worker_imports_only_what_it_needs():
    import subprocess
    import sys

    code = "import sys, bmlpipe.pipeline.extraction.clip\n"
    code += "print({'cv2', 'scipy', 'librosa', 'soundfile', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_disk_that_fails_in_the_middle(make_clip, tmp_path, monkeypatch):
    from pathlib import Path

    clip = make_clip(tmp_path / "clip.mkv", seconds=8, size=(320, 240))
    real_open = Path.open

    class Failing:
        def __init__(self, file):
            self.file, self.name = file, file.name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def read(self, size):
            if self.file.tell() > 60_000:
                raise OSError(5, "Input/output error")
            return self.file.read(size)

        def seek(self, *where):
            return self.file.seek(*where)

        def tell(self):
            return self.file.tell()

    monkeypatch.setattr(Path, "open", lambda path, *args, **kwargs: Failing(real_open(path, *args, **kwargs)))
    assert clip.stat().st_size > 90_000
    assert failure(clip, frames=FRAMES) == "unreadable_file"


def test_pictures_of_impossible_shape(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", codec="ffv1", size=(2048, 2), seconds=0.2, audio_codec=None)
    assert failure(clip, frames=FRAMES) == "decoder_error"
