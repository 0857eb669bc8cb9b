"""Damaged files: no wrong features without an error or a flag, and damage elsewhere does no harm."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.media.container import Demuxer, open_media
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
from bmlpipe.pipeline.media.video import ClipSpan, VideoDecoder, select_frames_at_instants

pytestmark = pytest.mark.slow

FRAMES = FrameOptions(short_side=80)
SOUND = SpectrogramOptions()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "flv"])
def test_a_truncated_file_fails_unless_the_requested_part_is_complete(make_clip, clip_error, tmp_path, suffix):
    options = {"movflags": "faststart"} if suffix == "mp4" else None
    codecs = {"codec": "mpeg4", "audio_codec": "libmp3lame"} if suffix == "avi" else {}
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=6, container_options=options, **codecs)
    data = clip.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: len(data) // 2])
    assert clip_error(cut, FRAMES).reason == "truncated"
    assert clip_error(cut, SOUND).reason == "truncated"
    assert len(extract_clip(cut, ExtractionRequest((FRAMES,), 2))["frames"].jpegs) == 2


def test_an_mp4_truncated_before_its_index_is_a_damaged_container(make_clip, clip_error, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4")
    clip.write_bytes(clip.read_bytes()[:20_000])
    assert clip_error(clip, FRAMES).reason == "damaged_container"


CAVLC = {"options": {"x264-params": "cabac=0"}}
DAMAGED = {  # file name: options of the clip, and whether its codec detects all damage (docs/reasons.md)
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
def test_damage_never_gives_a_wrong_frame_without_a_flag(make_clip, damaged_copies, ffmpeg_frames, tmp_path, name):
    """A damaged file gives an error, a flag, or the frames of the undamaged file.

    Codecs without redundancy (CABAC, HEVC, VP9) can decode a damaged stream as a valid one. Only such a stream gives
    other frames without a flag, and they equal those of a full decode by ffmpeg.
    """
    options, noticed = DAMAGED[name]
    clip = make_clip(tmp_path / name, seconds=4, audio_codec=None, gop=25, **options)
    whole = extract_clip(clip, ExtractionRequest((FRAMES,), 4))["frames"]
    outcomes = {"failed": 0, "flagged": 0, "same": 0, "changed": 0}
    for damaged in damaged_copies(clip.read_bytes(), name):
        clip.write_bytes(damaged)
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
        assert outcomes["changed"] <= 1, outcomes  # containers do not protect the times in their headers


def shown_planes(path):
    """Return each instant and the MD5 of the frame shown there, by a full decode that tolerates damage."""
    with open_media(path) as container:
        stream = container.streams.best("video")
        decoder = VideoDecoder(stream, Demuxer(container, [stream]), raise_on_damage=False)
        return [
            (one.instant, hashlib.md5(one.shown.image.to_ndarray(format="yuv420p").tobytes()).hexdigest())
            for one in select_frames_at_instants(decoder, ClipSpan(0, None, 4))
        ]


@pytest.mark.parametrize("decoder", [None, FFmpeg()], ids=["pyav", "ffmpeg"])
@pytest.mark.parametrize("suffix", ["avi", "mkv", "flv", "ts"])
def test_a_missing_frame_is_noticed(make_clip, tmp_path, suffix, decoder):
    """No decoder can notice it, since every frame is a key frame, but the container and its index show it."""
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
        found = set(extract_clip(clip, ExtractionRequest((FRAMES,), 4, ffmpeg=decoder)).flags)
    except ClipError as error:
        found = {error.reason}
    assert found & {"damaged_container", "damaged_video", "truncated"}


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damage_matters_only_in_the_frames_that_are_needed(make_clip, clip_error, tmp_path, codec):
    """Every frame is a key frame of one packet, so damage stays in one frame."""
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

    assert clip_error(damaged(25), FRAMES, seconds=3).reason == "damaged_video"
    flow = FlowOptions(short_side=80)  # needs frame 26 too
    assert clip_error(damaged(26), flow, seconds=3).reason == "damaged_video"
    for number in (24, 26):
        features = extract_clip(damaged(number), ExtractionRequest((FRAMES,), 3))
        assert features["frames"] == extract_clip(clip, ExtractionRequest((FRAMES,), 3))["frames"]
        assert features.flags == (("damaged_video",) if codec == "mpeg4" else ())  # H.264: it is skipped


def test_damaged_sound_becomes_silence_and_a_flag(make_clip, break_audio, clip_error, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", codec=None, seconds=4, audio_codec="aac")
    break_audio(clip, slice(60, 90))
    features = extract_clip(clip, ExtractionRequest((SOUND,), 4))
    assert "damaged_audio" in features.flags
    tone = features["spectrogram"].values[32].astype(np.float32)
    assert tone[160:200].max() < tone[20:120].min()
    assert tone[250:].min() > tone[160:200].max()
    break_audio(clip, slice(2, None))
    assert clip_error(clip, SOUND, seconds=4).reason == "damaged_audio"


def test_a_read_error_in_the_middle_of_a_file_is_an_unreadable_file(make_clip, clip_error, tmp_path, monkeypatch):
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
    assert clip_error(clip, FRAMES).reason == "unreadable_file"


def test_frames_of_an_extreme_aspect_ratio_fail(make_clip, clip_error, tmp_path):
    clip = make_clip(tmp_path / "clip.mkv", codec="ffv1", size=(2048, 2), seconds=0.2, audio_codec=None)
    assert clip_error(clip, FRAMES).reason == "decoder_error"
