"""Selection of the frames shown at whole seconds; the number drawn into each test frame identifies it."""

import hashlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bmlpipe.pipeline.front_ends.frames import Scaler
from bmlpipe.pipeline.media.container import Demuxer, open_media
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.video import ClipSpan, VideoDecoder, select_frames_at_instants

NTSC, FILM = Fraction(30000, 1001), Fraction(24000, 1001)


def select(path, *, start=0.0, duration=None, seconds=10, lookahead=0, strict=True):
    with open_media(path) as container:
        stream = container.streams.best("video")
        decoder = VideoDecoder(stream, Demuxer(container, [stream]), raise_on_damage=strict)
        chosen = list(select_frames_at_instants(decoder, ClipSpan(start, duration, seconds), lookahead))
        decoder.position = container.streams.video.index(stream)
        return chosen, decoder


def luma(frame):
    return Scaler(min(frame.height, frame.width)).luma(frame)


def numbers(chosen, frame_number):
    return [frame_number(luma(one.shown.image)) for one in chosen]


@pytest.mark.parametrize("fps", [FILM, 25, NTSC, 30, 50, 60])
def test_ten_seconds_give_ten_instants_at_every_frame_rate(make_clip, frame_number, tmp_path, fps):
    clip = make_clip(tmp_path / "clip.mp4", seconds=10, fps=fps, audio_codec=None, gop=250)
    chosen, _ = select(clip)
    assert numbers(chosen, frame_number) == [int(t * Fraction(fps)) for t in range(10)]
    assert [one.instant for one in chosen] == [*range(10)]


CONTAINERS = {
    "mp4": {},
    "mkv": {},
    "mov": {"codec": "mpeg4", "options": {"bf": "2"}},
    "flv": {},
    "ts": {},
    "mpg": {"codec": "mpeg2video", "audio_codec": "mp2"},
    "webm": {"codec": "libvpx", "audio_codec": "libopus", "audio_rate": 48000},
    "avi": {"codec": "mpeg4", "audio_codec": "libmp3lame"},
}


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_frames_equal_those_of_an_ffmpeg_decode(make_clip, ffmpeg_frames, tmp_path, suffix):
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=3.5, **CONTAINERS[suffix])
    compare_with_ffmpeg(clip, ffmpeg_frames)


def compare_with_ffmpeg(clip, ffmpeg_frames, start=0.0):
    chosen, decoder = select(clip, start=start, strict=False)
    frames = ffmpeg_frames(clip, decoder.position)
    begin = frames[0][0] + Fraction(repr(start))
    assert chosen
    for one in chosen:
        expected = [digest for time, digest in frames if time <= begin + one.instant][-1]
        assert hashlib.md5(one.shown.image.to_ndarray(format="yuv420p").tobytes()).hexdigest() == expected, one.instant


def test_at_a_variable_rate_each_frame_is_shown_until_the_next(make_clip, frame_number, tmp_path):
    times = [Fraction(ms, 1000) for ms in (0, 40, 999, 1000, 1001, 3500, 4999, 5000)]
    clip = make_clip(tmp_path / "clip.mp4", times=times, audio_codec=None)
    chosen, _ = select(clip)
    assert numbers(chosen, frame_number) == [0, 3, 4, 4, 5, 7]


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_instants_are_counted_from_the_start_of_the_stream(make_clip, frame_number, tmp_path, suffix):
    clip = make_clip(tmp_path / f"clip.{suffix}", video_start=1.4, audio_start=1.4)
    chosen, _ = select(clip)
    assert numbers(chosen, frame_number) == [0, 25, 50]
    assert not any(one.late for one in chosen)


def test_a_clip_that_ends_early_repeats_no_frame(make_clip, frame_number, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=3.04)
    assert numbers(select(clip)[0], frame_number) == [0, 25, 50, 75]
    assert numbers(select(make_clip(tmp_path / "whole.mp4", seconds=3.0))[0], frame_number) == [0, 25, 50]
    assert numbers(select(clip, seconds=None)[0], frame_number) == [0, 25, 50, 75]


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("gop", [12, 250])
def test_decoding_stops_after_the_last_frame_needed(make_clip, tmp_path, suffix, gop):
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=8, gop=gop, **CONTAINERS[suffix])
    chosen, decoder = select(clip, seconds=2)
    assert len(chosen) == 2
    assert 26 <= decoder.decoded_count <= 26 + 17  # codecs reorder at most 16 frames


def test_lookahead_frames_are_consecutive(make_clip, frame_number, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=2.12)  # 53 frames
    chosen, _ = select(clip, lookahead=4)
    shown = [[frame_number(luma(frame.image)) for frame in one.frames] for one in chosen]
    assert shown == [[0, 1, 2, 3, 4], [25, 26, 27, 28, 29], [48, 49, 50, 51, 52]]
    assert [one.moved for one in chosen] == [False, False, True]
    assert numbers(chosen, frame_number) == [0, 25, 50]


def test_lookahead_frames_may_overlap(make_clip, frame_number, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=5, fps=2, audio_codec=None)
    chosen, _ = select(clip, lookahead=5)
    shown = [[frame_number(luma(frame.image)) for frame in one.frames] for one in chosen]
    assert shown == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7], *[[4, 5, 6, 7, 8, 9]] * 3]


def test_a_clip_shorter_than_the_lookahead_fails(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=0.12)
    with pytest.raises(ClipError) as caught:
        select(clip, lookahead=3)
    assert caught.value.reason == "too_few_frames"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.mp4", b"hello, this is not a video\n" * 40, "not_media"),
        ("empty.mp4", b"", "empty_file"),
        ("zeros.mp4", bytes(50_000), "not_media"),
        ("header.mp4", b"\x00\x00\x00\x14ftypisom\x00\x00\x02\x00mp41\x00\x00\x00\x08mdat", "damaged_container"),
        ("subtitle.mp4", b"1\n00:00:01,000 --> 00:00:02,000\nhello\n", "not_media"),
    ],
)
def test_a_file_that_is_not_media_fails_with_its_reason(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ClipError) as caught:
        select(path)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "concat.mp4", "concat.txt", "show.mpd"])
def test_a_playlist_opens_no_other_file(make_clip, tmp_path, name):
    target = make_clip(tmp_path / "target.ts")
    text = {
        "list": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{target}'\n",
        "show": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        f"<Representation><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    }
    path = tmp_path / name
    path.write_text(text[path.stem])
    with pytest.raises(ClipError) as caught:
        select(path)
    assert caught.value.reason == "not_media"


def test_a_file_that_cannot_be_read_fails(tmp_path):
    for path in (tmp_path, tmp_path / "absent.mp4", Path("nul\0byte.mp4")):
        with pytest.raises(ClipError) as caught:
            select(path)
        assert caught.value.reason == "unreadable_file"


def test_files_with_unusual_names_are_read(make_clip, tmp_path):
    plain = make_clip(tmp_path / "plain.mp4", seconds=1)
    for name in (
        "-dash.mp4",
        " space.mp4",
        "quo\"te's.mp4",
        "new\nline.mp4",
        "ünïcode.mp4",
        "http:colon.mp4",
        "%03d.mp4",
    ):
        odd = tmp_path / name
        odd.write_bytes(plain.read_bytes())
        assert len(select(odd)[0]) == 1


@pytest.mark.real
@pytest.mark.slow
def test_frames_of_real_clips_equal_those_of_an_ffmpeg_decode(real_data, ffmpeg_frames):
    compared = 0
    for clip in sorted((real_data / "clips").glob("*/*")):
        if clip.name in ("broken.mp4", "corrupted.mp4"):
            continue
        compare_with_ffmpeg(clip, ffmpeg_frames)
        compared += 1
    assert compared >= 24


@pytest.mark.real
def test_frames_of_a_span_equal_those_of_an_ffmpeg_decode(real_data, ffmpeg_frames):
    compare_with_ffmpeg(real_data / "clips/vggsound/0nib7bMm8BA_15000_25000.mp4", ffmpeg_frames, start=3.37)


def test_scaled_luma_is_full_range(make_clip, tmp_path):
    chosen, _ = select(make_clip(tmp_path / "clip.mp4", seconds=2))
    levels = luma(chosen[1].shown.image)
    drawn = np.sort(levels[:40].ravel())
    assert 15 < drawn[50] < 45  # drawn with level 30
    assert 205 < drawn[-50] < 235  # drawn with level 220
