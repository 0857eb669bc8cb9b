"""The ffmpeg program as a decoder: its command line, unusable programs, hardware by name, and the command's options."""

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner

from bmlpipe.pipeline.cli import main
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg, FFmpegError

pytestmark = pytest.mark.usefixtures("no_ffmpeg_left")

FRAMES, SOUND = FrameOptions(short_side=64), SpectrogramOptions()


def test_the_program_is_found_and_its_version_is_read():
    path, version = FFmpeg().program()
    assert os.access(path, os.X_OK)
    assert FFmpeg(path).software() == {"decoder": f"ffmpeg {version}"}
    assert FFmpeg(path).program() == (path, version)


def script(path, text):
    """Write a shell script that stands in for the ffmpeg program, and return its path."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


VERSION = 'case "$*" in *-version*) echo "ffmpeg version 7.7-fake Copyright"; exit 0;; esac'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo Unrecognized option fps_mode >&2; exit 1", "fps_mode"),  # as FFmpeg before 5.1
        ("exit 0", "status 0"),
        ("echo hello", "hello"),
    ],
)
def test_an_unusable_program_is_refused_with_its_message(tmp_path, text, message):
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
def test_a_failure_of_the_program_fails_the_clip(make_clip, clip_error, tmp_path, text, reason, message):
    clip = make_clip(tmp_path / "clip.mp4", seconds=2)
    error = clip_error(clip, FRAMES, seconds=2, ffmpeg=FFmpeg(script(tmp_path / "ffmpeg", f"{VERSION}\n{text}")))
    assert error.reason == reason
    assert message in error.message


def test_hwaccel_is_in_the_command_line_and_the_parameters(make_clip, clip_error, tmp_path):
    """A script in place of ffmpeg records its arguments, so no such hardware is needed."""
    clip = make_clip(tmp_path / "clip.mp4", seconds=1)
    fake = FFmpeg(script(tmp_path / "ffmpeg", f'{VERSION}\necho "$*" > {tmp_path}/arguments; exit 1'), hwaccel="cuda")
    assert clip_error(clip, FRAMES, seconds=1, ffmpeg=fake).reason == "decoder_error"
    arguments = (tmp_path / "arguments").read_text()
    assert "-hwaccel cuda " in arguments[: arguments.index(" -i ")]
    assert "format=yuv420p|yuvj420p|nv12|" in arguments
    assert fake.software() == {"decoder": "ffmpeg 7.7-fake, hwaccel cuda"}
    plain = ExtractionRequest((FRAMES, SOUND), 3)
    assert replace(plain, ffmpeg=FFmpeg()).sha256 == plain.sha256  # software decoders give equal features
    accelerated = replace(plain, ffmpeg=fake)
    assert accelerated.parameters["frames"]["hwaccel"] == "cuda"
    assert accelerated.parameters["spectrogram"] == plain.parameters["spectrogram"]
    for wrong in ("", "cuda:0", "-x", "CUDA", "a b"):
        with pytest.raises(ValueError, match="hwaccel"):
            FFmpeg(hwaccel=wrong)


def test_an_unavailable_hwaccel_is_named(make_clip, clip_error, tmp_path):
    missing = FFmpeg(hwaccel="d3d11va")  # exists on Windows only
    with pytest.raises(FFmpegError, match="--hwaccel d3d11va"):
        missing.program()
    clip = make_clip(tmp_path / "clip.mp4", seconds=1)
    error = clip_error(clip, FRAMES, seconds=1, ffmpeg=missing)
    assert error.reason == "decoder_error"
    assert "d3d11va" in error.message


def test_the_command_line_permits_a_single_local_file(tmp_path):
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


# ----- bmlpipe extract --decoder ffmpeg -----


@pytest.fixture
def videos(make_clip, tmp_path):
    folder = tmp_path / "videos" / "some class"
    folder.mkdir(parents=True)
    make_clip(folder / "-clip.mp4", seconds=3)
    return folder.parent


def extract(videos, out, *words):
    base = ["extract", "--dataset", "folder", "--videos", str(videos), "--out", str(out), "--workers", "0"]
    return CliRunner().invoke(main, [*base, "--seconds", "3", "--kinds", "frames,spectrogram", *words])


def test_an_extraction_with_ffmpeg_gives_the_same_features_and_records_its_decoder(videos, tmp_path):
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
def test_invalid_options_are_refused_before_anything_is_written(videos, tmp_path, words, status, message):
    result = extract(videos, tmp_path / "out", *words)
    assert result.exit_code == status
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
