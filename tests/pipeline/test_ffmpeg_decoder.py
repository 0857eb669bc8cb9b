"""The ffmpeg program as decoder: it gives the same frames, times and sound as PyAV."""

import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

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
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
from bmlpipe.shards.kinds import KINDS

pytestmark = pytest.mark.usefixtures("no_ffmpeg_left")

#: Change of the tone within half a sample: older versions of ffmpeg round Matroska's milliseconds differently.
HALF_A_SAMPLE = 0.12
FRAMES, SOUND = FrameOptions(short_side=64), SpectrogramOptions()


def programs():
    """Return the ffmpeg program of imageio-ffmpeg, and that of the system if there is one."""
    found = [FFmpeg()]
    on_path = shutil.which("ffmpeg")
    return found if on_path in (None, found[0].program().path) else [*found, FFmpeg(on_path)]


PROGRAMS = [pytest.param(ffmpeg, id=Path(ffmpeg.program().path).name[:12]) for ffmpeg in programs()]


def compare(clip, ffmpeg, *, seconds=10, start=0.0, duration=None, **front_ends):
    """Extract features with both decoders, check that they are equal, and return those of ffmpeg."""
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
    """Return the largest difference of samples at the best shift within ±1 ms, the rounding of times in containers."""
    end = min(ours.size, theirs.size) - 600
    middle = ours[600:end]
    return min(np.abs(middle - theirs[600 + lag : end + lag]).max() for lag in range(-16, 17))


# ----- frames -----


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
        ),  # has times for some packets only
        ("avi", {"codec": "mpeg4", "options": {"bf": "2"}, "audio_codec": "libmp3lame"}),
        ("mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
    ],
)
def test_frames_flow_and_rgb_differences_equal_those_of_pyav(make_clip, tmp_path, suffix, options, ffmpeg):
    clip = make_clip(tmp_path / f"clip.{suffix}", **{"seconds": 2.5, "size": (112, 80), **options})
    flow, difference = FlowOptions(short_side=64), RgbDiffOptions(short_side=64)
    features = compare(clip, ffmpeg, seconds=3, frames=FRAMES, flow=flow, rgb_diff=difference)
    assert len(features["frames"].jpegs) == 3


def test_a_variable_frame_rate_and_a_long_last_frame(make_clip, frame_number, tmp_path):
    times = [Fraction(ms, 1000) for ms in (0, 40, 999, 1000, 1001, 3500, 4999, 5000)]
    clip = make_clip(tmp_path / "clip.mp4", times=times, audio_codec=None)
    features = compare(clip, FFmpeg(), seconds=10, frames=FRAMES)
    assert [frame_number(jpeg) for jpeg in features["frames"].jpegs] == [0, 3, 4, 4, 5, 7]
    assert compare(clip, FFmpeg(), seconds=None, frames=FRAMES)["frames"] == features["frames"]


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_spans_of_longer_files_equal_those_of_pyav(make_clip, tmp_path, suffix, ffmpeg):
    codec = {"codec": "mpeg4", "audio_codec": "libmp3lame"} if suffix == "avi" else {}
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=7, gop=50, **codec)
    for start in (0.52, 3.36):
        compare(clip, ffmpeg, start=start, duration=2.5, seconds=3, frames=FRAMES, flow=FlowOptions(short_side=64))
    ours, theirs = samples(clip, start=3.36, length=2)[0], samples(clip, ffmpeg, start=3.36, length=2)[0]
    assert ours.size == theirs.size == 32000
    assert difference(ours, theirs) < (1e-3 if ffmpeg == FFmpeg() else HALF_A_SAMPLE)


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
def test_a_video_that_changes_its_size(make_clip, concatenate, frame_number, tmp_path, ffmpeg):
    """ffmpeg scales later frames to the size of the first itself, so their JPEGs differ in bytes but not in content."""
    sizes = [(112, 80), (224, 160)]
    parts = [make_clip(tmp_path / f"{w}.ts", seconds=2, size=(w, h), audio_codec=None) for w, h in sizes]
    joined = concatenate(parts, tmp_path / "joined.ts")
    ours = extract_clip(joined, ExtractionRequest((FRAMES,), 4))
    theirs = extract_clip(joined, ExtractionRequest((FRAMES,), 4, ffmpeg=ffmpeg))
    assert theirs["frames"].times == ours["frames"].times
    assert theirs["frames"].jpegs[:2] == ours["frames"].jpegs[:2]
    assert [frame_number(jpeg) for jpeg in theirs["frames"].jpegs] == [0, 25, 0, 25]


def test_a_codec_that_only_the_program_can_decode(make_clip, clip_error, tmp_path):
    """PyAV has no decoder for AVS2."""
    clip, program = tmp_path / "clip.mkv", FFmpeg().program().path
    command = f"{program} -v quiet -f lavfi -i testsrc2=size=128x96:rate=25:duration=3 -c:v libxavs2 -bf 0 {clip}"
    if subprocess.run(command.split(), check=False, stdout=subprocess.DEVNULL).returncode:
        pytest.skip(f"{program} has no encoder for AVS2")
    assert clip_error(clip, FRAMES, seconds=3).reason == "decoder_error"
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
    # FFmpeg 9 removes the encoder's padding, FFmpeg 8 keeps it.
    assert abs(ours.size - theirs.size) <= 1024 * 16000 // rate
    assert difference(ours, theirs) < (1e-3 if ffmpeg == FFmpeg() else HALF_A_SAMPLE)
    assert (one.lost_packets, one.has_gaps) == (other.lost_packets, other.has_gaps) == (0, False)


def test_audio_that_starts_late_keeps_its_time(make_clip, tmp_path):
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
def test_damaged_audio_becomes_silence_and_a_flag(make_clip, break_audio, tmp_path, ffmpeg):
    clip = make_clip(tmp_path / "clip.mp4", seconds=5)
    break_audio(clip, slice(60, 90))
    for seconds in (4, 5):  # a part of the file, and all of it
        features = compare(clip, ffmpeg, seconds=seconds, frames=FRAMES, spectrogram=SOUND)
        assert "damaged_audio" in features.flags
        assert "damaged_video" not in features.flags
        tone = features["spectrogram"].values[32].astype(np.float32)
        assert tone[160:200].max() < tone[20:120].min()
        assert tone[250:].min() > tone[160:200].max()


# ----- damage -----


def break_frames(clip, numbers):
    """Overwrite the packets of some frames, by their number in presentation order, with zeros."""
    with open_media(clip) as container:
        packets = sorted((packet.pts, packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    data = bytearray(clip.read_bytes())
    for number in numbers:
        _, at, size = packets[number]
        data[at + 4 : at + size] = bytes(size - 4)
    clip.write_bytes(bytes(data))


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
def test_a_damaged_video_fails_with_the_message_of_ffmpeg(make_clip, clip_error, tmp_path, ffmpeg):
    clip = make_clip(tmp_path / "clip.mp4", seconds=3, gop=1, audio_codec=None)
    break_frames(clip, [10])
    error = clip_error(clip, FRAMES, seconds=3, ffmpeg=ffmpeg)
    assert error.reason == "damaged_video"
    assert "h264" in error.message
    broken = make_clip(tmp_path / "broken.mp4", seconds=3, gop=1, audio_codec=None)
    break_frames(broken, range(75))
    assert clip_error(broken, FRAMES, seconds=3, ffmpeg=ffmpeg).reason == "decoder_error"


@pytest.mark.parametrize("ffmpeg", PROGRAMS)
def test_damage_after_the_last_frame_needed_is_ignored(make_clip, tmp_path, ffmpeg):
    clip = make_clip(tmp_path / "clip.mp4", seconds=6, gop=1, audio_codec=None)
    whole = extract_clip(clip, ExtractionRequest((FRAMES,), 2))
    break_frames(clip, [100])
    assert extract_clip(clip, ExtractionRequest((FRAMES,), 2, ffmpeg=ffmpeg)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mpg"])
def test_damage_never_gives_other_frames_than_pyav(make_clip, damaged_copies, tmp_path, suffix):
    codec = {"codec": "mpeg2video"} if suffix == "mpg" else {}
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=4, audio_codec=None, gop=25, **codec)
    unflagged = 0
    for damaged in damaged_copies(clip.read_bytes(), suffix):
        clip.write_bytes(damaged)
        try:
            theirs = extract_clip(clip, ExtractionRequest((FRAMES,), 4, ffmpeg=FFmpeg()))
        except ClipError:
            continue
        assert theirs == extract_clip(clip, ExtractionRequest((FRAMES,), 4))
        unflagged += not theirs.flags
    assert unflagged < 20


@pytest.mark.real
@pytest.mark.slow
def test_real_clips_equal_those_of_pyav(real_data, clip_error):
    ffmpeg = FFmpeg()
    mute, equal = {"test.mp4", "video_90.mov"}, 0
    for clip in sorted((real_data / "clips").glob("*/*")):
        if clip.name in ("broken.mp4", "corrupted.mp4"):
            ours, theirs = clip_error(clip, FRAMES), clip_error(clip, FRAMES, ffmpeg=ffmpeg)
            assert ours.reason == theirs.reason
            continue
        compare(clip, ffmpeg, frames=FRAMES)
        if clip.name not in mute:
            (ours, _), (theirs, _) = samples(clip), samples(clip, ffmpeg)
            assert abs(ours.size - theirs.size) < 400
            assert difference(ours, theirs) < 2e-3
        equal += 1
    assert equal >= 24
