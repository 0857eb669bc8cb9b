"""Skipping of H.264 packets: exactly the frames of a full decode, from fewer packets."""

from fractions import Fraction

import av
import numpy as np
import pytest

from bmlpipe.pipeline.media.container import Demuxer, open_media
from bmlpipe.pipeline.media.errors import ClipError, DamageError
from bmlpipe.pipeline.media.h264_bitstream import extradata_sps, has_frames_only
from bmlpipe.pipeline.media.h264_skip import decode_needed_frames
from bmlpipe.pipeline.media.video import ClipSpan, VideoDecoder, select_frames_at_instants


def shown(path, *, skip, start=0.0, duration=None, seconds=10, lookahead=0):
    """Return the instant, times and bytes of each selection, and the number of skipped packets."""
    span = ClipSpan(start, duration, seconds)
    with open_media(path) as container:
        stream = container.streams.best("video")
        decoder = VideoDecoder(stream, Demuxer(container, [stream]))
        frames = decode_needed_frames(decoder, span, lookahead) if skip else None
        found = []
        for one in select_frames_at_instants(decoder, span, lookahead, frames):
            planes = tuple((frame.pts, frame.image.to_ndarray().tobytes()) for frame in (one.shown, *one.frames))
            found.append((one.instant, planes, one.late, one.moved))
        return found, decoder.skipped_packets


def compare(path, **span):
    """Check that skipping selects the frames of a full decode, and return the number of skipped packets."""
    full, none = shown(path, skip=False, **span)
    ours, skipped = shown(path, skip=True, **span)
    assert none == 0
    assert ours == full
    return skipped


STRUCTURES = {  # parameters of x264, and whether any packet of the first GOPs can be skipped
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
def test_frames_equal_those_of_a_full_decode_for_every_gop_structure(make_clip, tmp_path, structure, suffix):
    parameters, prunable = STRUCTURES[structure]
    options = {"x264-params": parameters, "profile": "baseline"} if structure == "no-b" else {"x264-params": parameters}
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=5, gop=250, options=options, audio_codec=None, size=(128, 96))
    skipped = compare(clip, seconds=5)
    compare(clip, seconds=10)
    compare(clip, seconds=4)
    compare(clip, seconds=3, lookahead=1)
    compare(clip, seconds=10, lookahead=4)
    compare(clip, start=1.32, duration=2.5, seconds=3, lookahead=1)
    assert (skipped > 0) == prunable


@pytest.mark.parametrize("suffix", ["mkv", "flv", "mov"])
@pytest.mark.parametrize("rate", [Fraction(30000, 1001), 10, 2])
def test_frames_equal_those_of_a_full_decode_for_other_containers_and_rates(make_clip, tmp_path, suffix, rate):
    clip = make_clip(tmp_path / f"clip.{suffix}", seconds=6, fps=rate, gop=250, audio_codec=None)
    skipped = compare(clip, seconds=4)
    compare(clip, seconds=10, lookahead=2)
    assert (skipped > 0) == (rate > 2)


def test_frames_equal_those_of_a_full_decode_at_a_variable_rate(make_clip, tmp_path):
    chance = np.random.default_rng(0)
    times = [Fraction(int(ms), 1000) for ms in np.cumsum(chance.integers(5, 400, 60))]
    clip = make_clip(tmp_path / "clip.mp4", times=times, gop=250, audio_codec=None)
    assert compare(clip, seconds=10) > 0
    compare(clip, seconds=10, lookahead=3)


def test_most_packets_of_short_gops_are_skipped(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=10, gop=12, audio_codec=None)
    assert compare(clip) > 150  # of 250


@pytest.mark.parametrize("codec", ["mpeg4", "libx265", "libvpx-vp9"])
def test_other_codecs_are_decoded_in_full(make_clip, tmp_path, codec):
    clip = make_clip(tmp_path / "clip.mkv", seconds=2, codec=codec, audio_codec=None)
    assert compare(clip, seconds=2) == 0


@pytest.mark.parametrize("keep_from", [7, 30, 61])
def test_a_stream_cut_within_a_gop_gives_the_same_frames_or_is_rejected(make_clip, tmp_path, keep_from):
    """The stream begins in the middle of an open GOP, where its first packets may not be decodable."""
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
    assert outcomes[1] in (outcomes[0], DamageError)  # a DamageError leads to a full decode


def test_changing_parameter_sets_lead_to_a_full_decode(make_clip, concatenate, tmp_path):
    """The parameter sets of the second stream must not be skipped with the end of the first."""
    parts = [
        make_clip(tmp_path / f"{number}.ts", seconds=2, gop=250, audio_codec=None, options=options, size=(128, 96))
        for number, options in enumerate([{"x264-params": "ref=1"}, {"x264-params": "ref=5:bframes=5:cabac=0"}])
    ]
    joined = concatenate(parts, tmp_path / "joined.ts")
    assert compare(joined, seconds=4) == 0
    assert len(shown(joined, skip=True, seconds=4)[0]) == 4


def test_interlaced_streams_are_recognised():
    """x264 writes the sequence parameter sets of progressive and of interlaced streams."""
    for interlaced in (False, True):
        context = av.CodecContext.create("libx264", "w")
        context.width, context.height, context.pix_fmt, context.time_base = 128, 96, "yuv420p", Fraction(1, 25)
        context.options = {"x264-params": f"interlaced={int(interlaced)}:annexb=0"}
        context.flags |= 1 << 22  # global header
        context.open()
        (sps,) = extradata_sps(bytes(context.extradata))
        assert has_frames_only(sps) is not interlaced


@pytest.mark.parametrize("data", [b"", b"\x67", b"\x67\xff\xff", bytes(20)])
def test_a_broken_parameter_set_does_not_count_as_progressive(data):
    assert not has_frames_only(data)


@pytest.mark.real
@pytest.mark.slow
def test_frames_of_real_clips_equal_those_of_a_full_decode(real_data):
    skipped = {}
    for clip in sorted((real_data / "clips").glob("*/*")):
        if clip.name in ("broken.mp4", "corrupted.mp4"):
            continue
        skipped[clip.name] = compare(clip, seconds=10)
        if clip.name != "video_90.mov":
            compare(clip, seconds=5, lookahead=1)
    assert sum(count > 0 for count in skipped.values()) >= 12, skipped
