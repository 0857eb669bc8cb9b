"""Pruned decoding gives the very pictures of a full decode, and does leave packets out."""

from fractions import Fraction

import av
import numpy as np
import pytest

from bmlpipe.pipeline.media.container import Demuxer, open_media
from bmlpipe.pipeline.media.errors import ClipError, DamageError
from bmlpipe.pipeline.media.h264_bitstream import extradata_sps, has_frames_only
from bmlpipe.pipeline.media.h264_skip import decode_needed_frames
from bmlpipe.pipeline.media.video import VideoDecoder, Window, select_frames_at_instants


def shown(path, *, skip, start=0.0, duration=None, seconds=10, after=0):
    """What is picked: instant, time and bytes of each picture; and how many packets were left out."""
    window = Window(start, duration, seconds)
    with open_media(path) as container:
        stream = container.streams.best("video")
        pictures = VideoDecoder(stream, Demuxer(container, [stream]))
        shots = decode_needed_frames(pictures, window, after) if skip else None
        found = []
        for one in select_frames_at_instants(pictures, window, after, shots):
            planes = tuple((frame.pts, frame.image.to_ndarray().tobytes()) for frame in (one.shown, *one.frames))
            found.append((one.instant, planes, one.late, one.moved))
        return found, pictures.skipped_packets


def compare(path, **window):
    full, none = shown(path, skip=False, **window)
    ours, skipped = shown(path, skip=True, **window)
    assert none == 0
    assert ours == full
    return skipped


STRUCTURES = {  # x264's parameters, and whether there is something to leave out within the first GOPs
    "default": ("keyint=250", True),
    "short-gops": ("keyint=12:scenecut=0", True),
    "pyramid-strict": ("keyint=60:bframes=5:b-pyramid=strict:b-adapt=0", True),
    "pyramid-none": ("keyint=60:bframes=5:b-pyramid=none:b-adapt=0", True),
    "many-b": ("keyint=250:bframes=16:b-adapt=2:ref=16", True),
    "open-gop": ("keyint=12:open-gop=1:bframes=3:b-adapt=0:scenecut=0", True),
    "intra-refresh": ("keyint=25:intra-refresh=1", True),
    "intra-refresh-no-b": ("keyint=25:intra-refresh=1:bframes=0", False),
    "no-b": ("keyint=250:bframes=0", False),
    "no-b-short-gops": ("keyint=10:bframes=0:scenecut=0", True),
    "all-intra": ("keyint=1", True),
    "slices": ("keyint=50:slices=4", True),
    "sliced-threads": ("keyint=50:sliced-threads=1:threads=2", True),
    "weighted": ("keyint=50:weightp=2:weightb=1:direct=auto", True),
    "mbaff": ("keyint=50:interlaced=1", False),
    "fake-interlaced": ("keyint=50:fake-interlaced=1", False),
    "repeat-headers": ("keyint=20:repeat-headers=1:aud=1", True),
}


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_gop_structure_in_both_packet_forms(make_clip, tmp_path, structure, suffix):
    parameters, prunable = STRUCTURES[structure]
    options = {"x264-params": parameters, "profile": "baseline"} if structure == "no-b" else {"x264-params": parameters}
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=5, gop=250, options=options, audio_codec=None, size=(128, 96))
    skipped = compare(clip, seconds=5)
    compare(clip, seconds=10)
    compare(clip, seconds=4)
    compare(clip, seconds=3, after=1)
    compare(clip, seconds=10, after=4)
    compare(clip, start=1.32, duration=2.5, seconds=3, after=1)
    assert (skipped > 0) == prunable


@pytest.mark.parametrize("suffix", ["mkv", "flv", "mov"])
@pytest.mark.parametrize("rate", [Fraction(30000, 1001), 10, 2])
def test_other_containers_and_rates(make_clip, tmp_path, suffix, rate):
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=6, fps=rate, gop=250, audio_codec=None)
    skipped = compare(clip, seconds=4)
    compare(clip, seconds=10, after=2)
    assert (skipped > 0) == (rate > 2)


def test_a_variable_rate(make_clip, tmp_path):
    chance = np.random.default_rng(0)
    times = [Fraction(int(ms), 1000) for ms in np.cumsum(chance.integers(5, 400, 60))]
    clip = make_clip(tmp_path / "clip.mp4", times=times, gop=250, audio_codec=None)
    assert compare(clip, seconds=10) > 0
    compare(clip, seconds=10, after=3)


def test_most_of_a_clip_of_short_gops_is_left_out(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=10, gop=12, audio_codec=None)
    assert compare(clip) > 150  # of 250


@pytest.mark.parametrize("codec", ["mpeg4", "libx265", "libvpx-vp9"])
def test_other_codecs_are_decoded_whole(make_clip, tmp_path, codec):
    clip = make_clip(tmp_path / "clip.mkv", seconds=2, codec=codec, audio_codec=None)
    assert compare(clip, seconds=2) == 0


@pytest.mark.parametrize("keep_from", [7, 30, 61])
def test_streams_cut_anywhere(make_clip, tmp_path, keep_from):
    """Packets copied from the middle of an open-GOP stream: the beginning may not be decodable, in either way alike."""
    options = {"x264-params": "keyint=25:open-gop=1:bframes=3:b-adapt=0"}
    whole = make_clip(tmp_path / "whole.mp4", seconds=6, gop=250, options=options, audio_codec=None)
    cut = tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in [packet for packet in source.demux(stream) if packet.size][keep_from:]:
            packet.stream = copy
            target.mux(packet)
    outcomes = []
    for skip in (False, True):
        try:
            outcomes.append(shown(cut, skip=skip, seconds=4)[0])
        except (DamageError, ClipError) as error:
            outcomes.append(type(error))
    assert outcomes[1] in (outcomes[0], DamageError)  # refused at worst: then the file is decoded whole


def test_parameter_sets_that_change_on_the_way(make_clip, tmp_path):
    """Two streams one after the other: what the second needs is not left out with the end of the first."""
    parts = [
        make_clip(tmp_path / f"{number}.ts", seconds=2, gop=250, audio_codec=None, options=options, size=(128, 96))
        for number, options in enumerate([{"x264-params": "ref=1"}, {"x264-params": "ref=5:bframes=5:cabac=0"}])
    ]
    joined = tmp_path / "joined.ts"
    with av.open(str(joined), "w") as target:
        copy = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.size:
                        packet.pts += 180_000 * number
                        packet.dts += 180_000 * number
                        packet.stream = copy
                        target.mux(packet)
    assert compare(joined, seconds=4) == 0
    assert len(shown(joined, skip=True, seconds=4)[0]) == 4


def test_fields_are_recognised():
    """Sequence parameter sets of frames and of fields, as x264 writes them."""
    for interlaced in (False, True):
        context = av.CodecContext.create("libx264", "w")
        context.width, context.height, context.pix_fmt, context.time_base = 128, 96, "yuv420p", Fraction(1, 25)
        context.options = {"x264-params": f"interlaced={int(interlaced)}:annexb=0"}
        context.flags |= 1 << 22  # global header
        context.open()
        (sps,) = extradata_sps(bytes(context.extradata))
        assert has_frames_only(sps) is not interlaced


@pytest.mark.parametrize("data", [b"", b"\x67", b"\x67\xff\xff", bytes(20)])
def test_broken_parameter_sets_mean_a_full_decode(data):
    assert not has_frames_only(data)


@pytest.mark.real
@pytest.mark.slow
def test_real_clips(real_data):
    skipped = {}
    for clip in sorted((real_data / "clips").glob("*/*")):
        if clip.name in ("broken.mp4", "corrupted.mp4"):
            continue
        skipped[clip.name] = compare(clip, seconds=10)
        if clip.name != "video_90.mov":
            compare(clip, seconds=5, after=1)
    assert sum(count > 0 for count in skipped.values()) >= 12, skipped
