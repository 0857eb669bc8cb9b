"""Both ways of partial decoding give the frames of a full decode by ffmpeg, for codecs, GOPs, rates and containers.

The planes are compared before JPEG compression. The numbers drawn into the frames verify the instants.
"""

import hashlib
import os
import random
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest

from bmlpipe.pipeline.front_ends.frames import Scaler
from bmlpipe.pipeline.media.container import Demuxer, open_media
from bmlpipe.pipeline.media.ffmpeg_decoder import decode_with_ffmpeg
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
from bmlpipe.pipeline.media.h264_skip import decode_needed_frames
from bmlpipe.pipeline.media.video import ClipSpan, VideoDecoder, select_frames_at_instants

pytestmark = pytest.mark.slow

QUIET = {"x265-params": "log-level=none"}
FAST = {"deadline": "realtime", "cpu-used": "8"}
CODECS = {  # encoder, its options, containers
    "h264": ("libx264", {"bf": "2"}, ("mp4", "mkv", "mov", "flv", "ts", "avi")),
    "h264-no-b": ("libx264", {"bf": "0"}, ("mp4", "mkv", "flv", "avi")),
    "h264-open-gop": ("libx264", {"bf": "3", "x264-params": "open-gop=1:b-pyramid=normal"}, ("mp4", "ts")),
    "hevc": ("libx265", QUIET, ("mp4", "mkv", "ts", "mov")),
    "vp9": ("libvpx-vp9", FAST, ("webm", "mkv", "mp4")),
    "vp8": ("libvpx", FAST, ("webm",)),
    "av1": ("libsvtav1", {"preset": "12"}, ("mp4", "mkv", "webm")),
    "mpeg4": ("mpeg4", {"bf": "2"}, ("mp4", "avi", "mkv", "mov")),
    "mpeg1": ("mpeg1video", {"bf": "2"}, ("mpg", "ts", "avi")),
    "mpeg2": ("mpeg2video", {"bf": "2"}, ("mpg", "ts", "mkv")),
    "flv1": ("flv", {}, ("flv", "avi")),
    "mjpeg": ("mjpeg", {}, ("avi", "mov", "mkv")),
}
RATES = [Fraction(24000, 1001), 25, Fraction(30000, 1001), 30, 50, "variable"]
SECONDS = Fraction(23, 10)


def cases():
    """Yield each codec in each container, with up to three combinations of rate and GOP length."""
    turn = 0
    for codec, (_, _, suffixes) in CODECS.items():
        for suffix in suffixes:
            fixed = suffix in ("avi", "mpg") or codec in ("mpeg1", "mpeg2")
            rates = RATES[:-1] if fixed else RATES
            for gop in (12, 250) if codec in ("mpeg1", "mpeg2") else (12, 250, 1):
                turn += 1
                yield pytest.param(codec, suffix, rates[turn % len(rates)], gop, id=f"{codec}-{suffix}-{turn}")


def digest(frame):
    whole = hashlib.md5()
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        whole.update(rows[:, : plane.width].tobytes())
    return whole.hexdigest()


def picks(path, way, after=0):
    span = ClipSpan(0, None, 4)
    with open_media(path) as container:
        stream = container.streams.best("video")
        pictures = VideoDecoder(stream, Demuxer(container, [stream]))
        shots = way(path, pictures, span, after)
        return [
            (
                one.instant,
                pictures.seconds_from_start(one.shown.pts, span),
                digest(one.shown.image),
                one.late,
                one.moved,
            )
            if not after
            else [digest(frame.image) for frame in one.frames]
            for one in select_frames_at_instants(pictures, span, after, shots)
        ]


WAYS = {
    "pruned": lambda path, pictures, span, after: decode_needed_frames(pictures, span, after),
    "ffmpeg": lambda path, pictures, span, after: decode_with_ffmpeg(FFmpeg(), path, pictures, span, after),
}


@pytest.mark.parametrize(("codec", "suffix", "rate", "gop"), list(cases()))
def test_every_way_of_decoding_gives_the_frames_of_a_full_decode(
    make_clip, ffmpeg_frames, frame_number, tmp_path, codec, suffix, rate, gop
):
    encoder, options, _ = CODECS[codec]
    if rate == "variable":
        chance = random.Random(f"{codec} {suffix}")
        times = [Fraction(ms, 1000) for ms in accumulate(chance.randrange(5, 150) for _ in range(32))]
        timing = {"times": times}
    else:
        times = [number / Fraction(rate) for number in range(round(SECONDS * rate))]
        timing = {"seconds": SECONDS, "fps": rate}
    form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    clip = tmp_path / f"clip.{suffix}"
    make_clip(clip, codec=encoder, options=options, gop=gop, pix_fmt=form, audio_codec=None, **timing)
    full = picks(clip, lambda *_: None)
    assert len(full) == 3
    reference = ffmpeg_frames(clip, form=None)
    begin = reference[0][0]
    if (codec, suffix) != ("mpeg1", "avi"):  # ffmpeg's own output mixes two clocks there
        assert [one[2] for one in full] == [[md5 for time, md5 in reference if time <= begin + t][-1] for t in range(3)]
    digests = [md5 for _, md5 in reference]
    assert len(set(digests)) == len(times)
    shown = [max(number for number, time in enumerate(times) if time - times[0] <= t) for t in range(3)]
    assert [digests.index(one[2]) for one in full] == shown
    for way in WAYS.values():
        assert picks(clip, way) == full
    if gop == 12:
        windows = picks(clip, lambda *_: None, after=2)
        for way in WAYS.values():
            assert picks(clip, way, after=2) == windows


def numbers(path, way, frame_number, **span):
    span = ClipSpan(span.get("start", 0), span.get("duration"), 10)
    with open_media(path) as container:
        stream = container.streams.best("video")
        pictures = VideoDecoder(stream, Demuxer(container, [stream]))
        scaler = Scaler(80)
        return [
            frame_number(scaler.luma(one.shown.image))
            for one in select_frames_at_instants(pictures, span, 0, way(path, pictures, span, 0))
        ]


@pytest.mark.parametrize("way", ["full", *WAYS])
@pytest.mark.parametrize("structure", ["bf=3", "bf=0", "bf=3:open-gop=1", "bf=3:keyint=12"])
def test_an_edit_list_hides_the_frames_before_its_start(make_clip, frame_number, tmp_path, structure, way):
    """A stream copy that begins between key frames starts at the key frame, and its edit list hides these frames."""
    import ffmpeg
    import imageio_ffmpeg

    whole = make_clip(
        tmp_path / "whole.mp4", seconds=6, gop=50, options={"x264-params": structure}, size=(112, 80), audio_rate=48000
    )
    decode = WAYS.get(way, lambda *_: None)
    for begin, length in ((1.32, None), (2.2, 2.6), (0.48, 1.0)):
        cut = tmp_path / f"cut{begin}.mp4"
        options = {"t": length} if length else {}
        command = ffmpeg.input(str(whole), ss=begin).output(str(cut), c="copy", **options)
        command.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), capture_stdout=True, capture_stderr=True)
        shown = numbers(cut, decode, frame_number)
        count = -(-round((length or 6 - begin) * 25) // 25)
        assert shown[0] == round(begin * 25)
        assert shown[:count] == [round(begin * 25) + 25 * t for t in range(count)]
        assert count <= len(shown) <= count + 1  # a copy may keep frames beyond its end that other frames refer to
        assert numbers(cut, decode, frame_number, start=0.4, duration=0.5) == [round(begin * 25) + 10]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_a_clip_that_ends_early_repeats_no_frame(make_clip, frame_number, tmp_path, suffix, way):
    codec = {"codec": "mpeg4"} if suffix == "avi" else {}
    for seconds, expected in ((3.04, [0, 25, 50, 75]), (3.0, [0, 25, 50]), (0.04, [0])):
        clip = make_clip(tmp_path / f"{seconds}.{suffix}", seconds=seconds, audio_codec=None, **codec)
        assert numbers(clip, WAYS[way], frame_number) == expected


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="the system does not report scheduling policies")
def test_make_clip_restores_the_scheduling_policy(make_clip, tmp_path):
    before = os.sched_getscheduler(0)
    make_clip(tmp_path / "clip.mkv", codec="libsvtav1", options={"preset": "12"}, seconds=1)
    assert os.sched_getscheduler(0) == before
