"""The second decoder: an ffmpeg program gives the same frames, times and audio as PyAV."""

import os
import random
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from bmlpipe.pipeline.cli import main
from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions
from bmlpipe.pipeline.media.audio import AudioDecoder
from bmlpipe.pipeline.media.container import Demuxer, open_media, start_time
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.ffmpeg_decoder import read_audio_with_ffmpeg
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg, FFmpegError
from bmlpipe.shards.kinds import KINDS

HALF_A_SAMPLE = 0.12  # of the tone: older versions round Matroska's milliseconds otherwise
FRAMES, SOUND = FrameOptions(short_side=64), SpectrogramOptions()


def programs():
    """The ffmpeg program of imageio-ffmpeg, and that of the system if there is one."""
    found = [FFmpeg()]
    on_path = shutil.which("ffmpeg")
    return found if on_path in (None, found[0].program().path) else [*found, FFmpeg(on_path)]


PROGRAMS = [pytest.param(ffmpeg, id=Path(ffmpeg.program().path).name[:12]) for ffmpeg in programs()]


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    left = [child for child in psutil.Process().children() if "ffmpeg" in child.name()]
    assert not left


def failure(clip, *, seconds=10, ffmpeg=None, audio=None, start=0.0, duration=None, **front_ends):
    request = ExtractionRequest(tuple(front_ends.values()), seconds, ffmpeg)
    with pytest.raises(ClipError) as caught:
        extract_clip(clip, request, audio=audio, start=start, duration=duration)
    return caught.value


def compare(clip, ffmpeg, *, seconds=10, start=0.0, duration=None, **front_ends):
    request = ExtractionRequest(tuple(front_ends.values()), seconds)
    ours = extract_clip(clip, request, start=start, duration=duration)
    theirs = extract_clip(clip, replace(request, ffmpeg=ffmpeg), start=start, duration=duration)
    assert pictures_of(theirs) == pictures_of(ours)
    assert (theirs.flags, theirs.media) == (ours.flags, ours.media)
    return theirs


def pictures_of(clip):
    return {kind: feature for kind, feature in clip.features.items() if KINDS[kind].is_pictures}


def samples(path, ffmpeg=None, length=10, start=0.0, rate=16000):
    with open_media(path) as container:
        stream = container.streams.best("audio")
        sound = AudioDecoder(
            stream, Demuxer(container, [stream]), start_time(stream) + Fraction(repr(start)), Fraction(length)
        )
        found = sound.read([rate]) if ffmpeg is None else read_audio_with_ffmpeg(ffmpeg, path, sound, [rate])
        return found[rate], sound


def difference(ours, theirs):
    """Largest difference of samples, at the best shift within the container's rounding of times (±1 ms)."""
    end = min(ours.size, theirs.size) - 600
    middle = ours[600:end]
    return min(np.abs(middle - theirs[600 + lag : end + lag]).max() for lag in range(-16, 17))


# ----- pictures -----


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", {"size": (113, 81), "pix_fmt": "yuv444p"}),  # odd sizes
        (
            "mp4",
            {"options": {"bf": "3", "x264-params": "keyint=12:open-gop=1"}, "video_start": 1.4, "audio_start": 1.4},
        ),
        ("mkv", {"fps": Fraction(30000, 1001), "pix_fmt": "yuv420p10le"}),
        ("mkv", {"codec": "libx265", "options": {"x265-params": "log-level=none"}, "pix_fmt": "yuv422p10le"}),
        ("mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "rotation": 90}),
        ("mov", {"rotation": -90, "fps": Fraction(24000, 1001)}),
        (
            "webm",
            {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}, "audio_codec": "libopus", "audio_rate": 48000},
        ),
        ("flv", {"codec": "flv"}),
        ("ts", {"gop": 250, "codec": "mpeg2video"}),
        ("mpg", {"codec": "mpeg1video", "options": {"bf": "2"}, "audio_codec": "mp2"}),
        (
            "avi",
            {"codec": "mpeg1video", "options": {"bf": "2"}, "audio_codec": "libmp3lame"},
        ),  # some times, mostly none
        ("avi", {"codec": "mpeg4", "options": {"bf": "2"}, "audio_codec": "libmp3lame"}),
        ("mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
    ],
)
def test_frames_flow_and_rgb_differences_equal_those_of_pyav(make_clip, tmp_path, suffix, options, ffmpeg):
    clip = make_clip(tmp_path / f"clip.{suffix}", **{"seconds": 2.5, "size": (112, 80), **options})
    flow, difference = FlowOptions(short_side=64), RgbDiffOptions(short_side=64)
    features = compare(clip, ffmpeg, seconds=3, frames=FRAMES, flow=flow, rgb_diff=difference)
    assert len(features["frames"].jpegs) == 3


def test_a_variable_rate_and_a_long_last_frame(make_clip, frame_number, tmp_path):
    times = [Fraction(ms, 1000) for ms in (0, 40, 999, 1000, 1001, 3500, 4999, 5000)]
    clip = make_clip(tmp_path / "clip.mp4", times=times, audio_codec=None)
    features = compare(clip, FFmpeg(), seconds=10, frames=FRAMES)
    assert [frame_number(jpeg) for jpeg in features["frames"].jpegs] == [0, 3, 4, 4, 5, 7]
    assert compare(clip, FFmpeg(), seconds=None, frames=FRAMES)["frames"] == features["frames"]


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_spans_of_longer_files(make_clip, tmp_path, suffix, ffmpeg):
    codec = {"codec": "mpeg4", "audio_codec": "libmp3lame"} if suffix == "avi" else {}
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=7, gop=50, **codec)
    for start in (0.52, 3.36):
        compare(clip, ffmpeg, start=start, duration=2.5, seconds=3, frames=FRAMES, flow=FlowOptions(short_side=64))
    ours, theirs = samples(clip, start=3.36, length=2)[0], samples(clip, ffmpeg, start=3.36, length=2)[0]
    assert ours.size == theirs.size == 32000
    assert difference(ours, theirs) < (1e-3 if ffmpeg == FFmpeg() else HALF_A_SAMPLE)


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
def test_a_video_that_changes_its_size(make_clip, frame_number, tmp_path, ffmpeg):
    """ffmpeg scales later frames to the first frame's size before we do: the same picture, but not the same bytes."""
    sizes, joined, copy = [(112, 80), (224, 160)], tmp_path / "joined.ts", None
    parts = [make_clip(tmp_path / f"{w}.ts", seconds=2, size=(w, h), audio_codec=None) for w, h in sizes]
    with av.open(str(joined), "w") as target:
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                copy = copy or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + 180_000 * number, packet.dts + 180_000 * number
                        packet.stream = copy
                        target.mux(packet)
    ours = extract_clip(joined, ExtractionRequest((FRAMES,), 4))
    theirs = extract_clip(joined, ExtractionRequest((FRAMES,), 4, ffmpeg=ffmpeg))
    assert theirs["frames"].times == ours["frames"].times
    assert theirs["frames"].jpegs[:2] == ours["frames"].jpegs[:2]
    assert [frame_number(jpeg) for jpeg in theirs["frames"].jpegs] == [0, 25, 0, 25]


def test_a_codec_that_pyav_does_not_know(make_clip, tmp_path):
    """AVS2: PyAV has no decoder for it."""
    clip, program = tmp_path / "clip.mkv", FFmpeg().program().path
    command = f"{program} -v quiet -f lavfi -i testsrc2=size=128x96:rate=25:duration=3 -c:v libxavs2 -bf 0 {clip}"
    if subprocess.run(command.split(), check=False, stdout=subprocess.DEVNULL).returncode:
        pytest.skip(f"{program} has no encoder for AVS2")
    assert failure(clip, seconds=3, frames=FRAMES).reason == "decoder_error"
    features = extract_clip(clip, ExtractionRequest((FRAMES,), 3, ffmpeg=FFmpeg()))
    assert len(features["frames"].jpegs) == 3


# ----- sound -----


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
@pytest.mark.parametrize(
    ("suffix", "codec", "rate", "channels"),
    [
        ("wav", "pcm_u8", 8000, 1),
        ("mkv", "pcm_s16le", 22050, 6),
        ("mkv", "pcm_f64le", 44100, 2),
        ("mkv", "flac", 96000, 2),
        ("mp4", "aac", 44100, 6),
        ("webm", "libopus", 48000, 2),
        ("avi", "libmp3lame", 44100, 1),
        ("mkv", "ac3", 48000, 6),
        ("ts", "mp2", 32000, 2),
    ],
)
def test_audio_equals_that_of_pyav(make_clip, tmp_path, suffix, codec, rate, channels, ffmpeg):
    clip = make_clip(
        tmp_path / f"clip.{suffix}", codec=None, audio_codec=codec, audio_rate=rate, channels=channels, seconds=2
    )
    (ours, one), (theirs, other) = samples(clip), samples(clip, ffmpeg)
    assert abs(ours.size - theirs.size) <= 1024 * 16000 // rate  # FFmpeg 9 cuts the encoder's padding off, 8 does not
    assert difference(ours, theirs) < (1e-3 if ffmpeg == FFmpeg() else HALF_A_SAMPLE)
    assert (one.lost_packets, one.has_gaps) == (other.lost_packets, other.has_gaps) == (0, False)


def test_audio_lies_on_the_same_time_line(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", seconds=3, audio_start=1.0, audio_seconds=2.0)
    for options in (SOUND, WaveformOptions()):
        ours = extract_clip(clip, ExtractionRequest((options,), 3))
        theirs = extract_clip(clip, ExtractionRequest((options,), 3, FFmpeg()))
        assert theirs.flags == ours.flags == ("audio_gap",)
    tone = (
        extract_clip(clip, ExtractionRequest((SOUND,), 3, ffmpeg=FFmpeg()))["spectrogram"].values[32].astype(np.float32)
    )
    assert tone[:90].max() < tone[110:].min()


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
def test_damaged_audio_becomes_silence_and_a_flag(make_clip, tmp_path, ffmpeg):
    clip = make_clip(tmp_path / "clip.mp4", seconds=5)
    with open_media(clip) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    damaged = bytearray(clip.read_bytes())
    for at, size in places[60:90]:
        damaged[at : at + size] = b"\xff" * size
    clip.write_bytes(bytes(damaged))
    for seconds in (4, 5):  # the file goes on behind what is wanted, or not
        features = compare(clip, ffmpeg, seconds=seconds, frames=FRAMES, spectrogram=SOUND)
        assert "damaged_audio" in features.flags
        assert "damaged_video" not in features.flags
        tone = features["spectrogram"].values[32].astype(np.float32)
        assert tone[160:200].max() < tone[20:120].min()
        assert tone[250:].min() > tone[160:200].max()


# ----- damage -----


def break_packets(clip, numbers):
    with open_media(clip) as container:
        packets = sorted((packet.pts, packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    data = bytearray(clip.read_bytes())
    for number in numbers:
        _, at, size = packets[number]
        data[at + 4 : at + size] = bytes(size - 4)
    clip.write_bytes(bytes(data))


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
def test_a_damaged_video_fails_with_the_message_of_ffmpeg(make_clip, tmp_path, ffmpeg):
    clip = make_clip(tmp_path / "clip.mp4", seconds=3, gop=1, audio_codec=None)
    break_packets(clip, [10])
    error = failure(clip, seconds=3, frames=FRAMES, ffmpeg=ffmpeg)
    assert error.reason == "damaged_video"
    assert "h264" in error.message
    broken = make_clip(tmp_path / "broken.mp4", seconds=3, gop=1, audio_codec=None)
    break_packets(broken, range(75))
    assert failure(broken, seconds=3, frames=FRAMES, ffmpeg=ffmpeg).reason == "decoder_error"


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
def test_damage_after_the_last_frame_needed_is_ignored(make_clip, tmp_path, ffmpeg):
    clip = make_clip(tmp_path / "clip.mp4", seconds=6, gop=1, audio_codec=None)
    whole = extract_clip(clip, ExtractionRequest((FRAMES,), 2))
    break_packets(clip, [100])
    assert extract_clip(clip, ExtractionRequest((FRAMES,), 2, ffmpeg=ffmpeg)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mpg"])
def test_damage_never_gives_other_frames_than_pyav(make_clip, tmp_path, suffix):
    codec = {"codec": "mpeg2video"} if suffix == "mpg" else {}
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=4, audio_codec=None, gop=25, **codec)
    data, chance, silent = clip.read_bytes(), random.Random(suffix), 0
    for number in range(24):
        damaged = bytearray(data)
        at, size = chance.randrange(len(data) // 20, len(data) - 2000), (24, 512, 188)[number % 3]
        damaged[at : at + size] = (chance.randbytes(size), bytes(size), b"")[number % 3]
        clip.write_bytes(bytes(damaged))
        try:
            theirs = extract_clip(clip, ExtractionRequest((FRAMES,), 4, ffmpeg=FFmpeg()))
        except ClipError:
            continue
        assert theirs == extract_clip(clip, ExtractionRequest((FRAMES,), 4))
        silent += not theirs.flags
    assert silent < 20


# ----- the program -----


def test_the_program_is_found_and_named():
    path, version = FFmpeg().program()
    assert os.access(path, os.X_OK)
    assert FFmpeg(path).software() == {"decoder": f"ffmpeg {version}"}
    assert FFmpeg(path).program() == (path, version)


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


VERSION = 'case "$*" in *-version*) echo "ffmpeg version 7.7-fake Copyright"; exit 0;; esac'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo Unrecognized option fps_mode >&2; exit 1", "fps_mode"),  # older than 5.1
        ("exit 0", "status 0"),
        ("echo hello", "hello"),
    ],
)
def test_an_unusable_program_is_rejected_with_the_reason(tmp_path, text, message):
    with pytest.raises(FFmpegError, match=message):
        FFmpeg(script(tmp_path / "ffmpeg", text)).program()
    with pytest.raises(FFmpegError, match="No such file"):
        FFmpeg(str(tmp_path / "none")).program()


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        ("kill -s XCPU $$", "timeout", "CPU time"),
        ("echo 'out of order' >&2; exit 3", "damaged_video", "out of order"),
        ("head -c 5000 /dev/zero; exit 0", "no_frames", "no picture"),
        ("kill -9 $$", "decoder_error", "signal 9"),
    ],
)
def test_failures_of_the_program(make_clip, tmp_path, text, reason, message):
    clip = make_clip(tmp_path / "clip.mp4", seconds=2)
    error = failure(clip, seconds=2, frames=FRAMES, ffmpeg=FFmpeg(script(tmp_path / "ffmpeg", f"{VERSION}\n{text}")))
    assert error.reason == reason
    assert message in error.message


def test_hardware_by_name(make_clip, tmp_path):
    """Without hardware: the command line, the features' parameters, and the error."""
    clip = make_clip(tmp_path / "clip.mp4", seconds=1)
    fake = FFmpeg(script(tmp_path / "ffmpeg", f'{VERSION}\necho "$*" > {tmp_path}/said; exit 1'), hwaccel="cuda")
    assert failure(clip, seconds=1, frames=FRAMES, ffmpeg=fake).reason == "decoder_error"
    said = (tmp_path / "said").read_text()
    assert "-hwaccel cuda " in said[: said.index(" -i ")]
    assert "format=yuv420p|yuvj420p|nv12|" in said
    assert fake.software() == {"decoder": "ffmpeg 7.7-fake, hwaccel cuda"}
    plain = ExtractionRequest((FRAMES, SOUND), 3)
    assert replace(plain, ffmpeg=FFmpeg()).sha256 == plain.sha256  # software decoders give the same features
    hard = replace(plain, ffmpeg=fake)
    assert hard.parameters["frames"]["hwaccel"] == "cuda"
    assert hard.parameters["spectrogram"] == plain.parameters["spectrogram"]
    for wrong in ("", "cuda:0", "-x", "CUDA", "a b"):
        with pytest.raises(ValueError, match="hwaccel"):
            FFmpeg(hwaccel=wrong)


def test_missing_hardware(make_clip, tmp_path):
    missing = FFmpeg(hwaccel="d3d11va")  # Windows only
    with pytest.raises(FFmpegError, match="--hwaccel d3d11va"):
        missing.program()
    clip = make_clip(tmp_path / "clip.mp4", seconds=1)
    error = failure(clip, seconds=1, frames=FRAMES, ffmpeg=missing)
    assert error.reason == "decoder_error"
    assert "d3d11va" in error.message


def test_the_command_line_allows_one_file_only(tmp_path):
    line = FFmpeg(cpu_limit=7).command(
        Path("-clip.mp4"), 2, {"c:v": "rawvideo"}, exit_on_error=True, seek_time=Fraction(7, 3)
    )
    before = line[: line.index("-i")]
    assert line[line.index("-i") + 1] == "file:-clip.mp4"
    assert before[before.index("-protocol_whitelist") + 1] == "file"
    assert "concat" not in before[before.index("-format_whitelist") + 1].split(",")
    assert "hls" not in before[before.index("-format_whitelist") + 1].split(",")
    assert before[before.index("-ss") + 1] == "2.333"
    assert before[before.index("-timelimit") + 1] == "7"
    assert "-nostdin" in before
    assert line[-1] == "pipe:1"


# ----- the command -----


@pytest.fixture
def videos(make_clip, tmp_path):
    folder = tmp_path / "videos" / "some class"
    folder.mkdir(parents=True)
    make_clip(folder / "-clip.mp4", seconds=3)
    return folder.parent


def extract(videos, out, *words):
    base = ["extract", "--dataset", "folder", "--videos", str(videos), "--out", str(out), "--workers", "0"]
    return CliRunner().invoke(main, [*base, "--seconds", "3", "--kinds", "frames,spectrogram", *words])


def test_an_extraction_with_ffmpeg_is_the_same_and_records_its_decoder(videos, tmp_path):
    from bmlpipe.pipeline.store.feature_file import FeatureStore
    from bmlpipe.pipeline.store.ledger import read_ledger

    one, other = tmp_path / "one", tmp_path / "other"
    result = extract(videos, one)
    assert result.exit_code == 0, result.output
    result = extract(videos, other, "--decoder", "ffmpeg", "--ffmpeg", FFmpeg().program().path)
    assert result.exit_code == 0, result.output
    (row,) = read_ledger(other)
    ours, theirs = FeatureStore(one).read(row.id), FeatureStore(other).read(row.id)
    assert theirs.features["frames"] == ours.features["frames"]
    assert theirs.parameters == ours.parameters
    assert theirs.software["frames"] == {**ours.software["frames"], **FFmpeg().software()}


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--hwaccel", "cuda"], 2, "--decoder ffmpeg"),
        (["--decoder", "ffmpeg", "--hwaccel", "CUDA"], 2, "must be a name"),
        (["--decoder", "ffmpeg", "--hwaccel", "d3d11va"], 1, "no ffmpeg program works here"),
        (["--decoder", "ffmpeg", "--ffmpeg", "/bin/true"], 1, "no ffmpeg program works here"),
    ],
)
def test_options_are_checked_before_anything_is_done(videos, tmp_path, words, status, message):
    result = extract(videos, tmp_path / "out", *words)
    assert result.exit_code == status
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.real
@pytest.mark.slow
def test_real_clips(real_data):
    ffmpeg = FFmpeg()
    mute, equal = {"test.mp4", "video_90.mov"}, 0
    for clip in sorted((real_data / "clips").glob("*/*")):
        if clip.name in ("broken.mp4", "corrupted.mp4"):
            ours, theirs = failure(clip, frames=FRAMES), failure(clip, frames=FRAMES, ffmpeg=ffmpeg)
            assert ours.reason == theirs.reason
            continue
        compare(clip, ffmpeg, frames=FRAMES)
        if clip.name not in mute:
            (ours, _), (theirs, _) = samples(clip), samples(clip, ffmpeg)
            assert abs(ours.size - theirs.size) < 400
            assert difference(ours, theirs) < 2e-3
        equal += 1
    assert equal >= 24
