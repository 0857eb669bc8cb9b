"""Skip the H.264 packets that the selected frames do not need, judged by the packets' own headers.

Two kinds of packets can be skipped without changing any other frame:

- pictures that no other picture refers to (`nal_ref_idc` is 0 in every NAL unit; ITU-T H.264, 7.4.1) and that are not
  selected;
- everything after the last selected picture of a group of pictures, up to the next IDR picture (NAL unit type 5), since
  no picture refers across an IDR picture. Other key frames do not qualify: with open groups and intra refresh, later
  pictures refer to earlier ones.

The selected pictures follow from the packets' presentation times by the same rule as in a full decode. Anything unusual
(another codec, missing or irregular times, interlaced fields, parameter sets that change) leads to a full decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from bmlpipe.pipeline.media.errors import DamageError
from bmlpipe.pipeline.media.h264_bitstream import (
    DELIMITER,
    FILLER,
    IDR_SLICE,
    SEI,
    SLICE,
    NalUnit,
    extradata_sps,
    has_frames_only,
    is_sps,
    length_field_size,
    nal_units,
)
from bmlpipe.pipeline.media.video import ClipSpan, TimedFrame, VideoDecoder, select_frames_at_instants

#: Largest number of pictures decoded before one that is displayed before them (max_num_reorder_frames; E.2.1).
MAX_REORDER = 16

_SKIPPABLE = {SLICE, SEI, DELIMITER, FILLER}


def decode_needed_frames(decoder: VideoDecoder, span: ClipSpan, lookahead: int = 0) -> Iterator[TimedFrame]:
    """Yield all frames of a clip in display order, as a full decode does, but decode only those that are needed.

    Frames that are not needed come with `image` None.

    Args:
        decoder: The video, of which nothing has been read yet.
        span: The clip's span.
        lookahead: Number of frames needed after the frame shown at each instant.

    Raises:
        DamageError: A needed frame was not decoded, or came out of order: decode the clip in full.
    """
    packets = decoder.demuxer.packets(decoder.stream)
    length_size = length_field_size(decoder.stream)
    if decoder.stream.codec_context.name != "h264" or span.instants is None or length_size is None:
        yield from decoder.decode(packets)
        return
    ahead = _read_ahead(packets, decoder.pts_at(span, span.instants - 1), lookahead)
    units = [nal_units(packet, length_size) for packet in ahead]
    if not _is_regular(ahead, units, decoder.stream):
        yield from decoder.decode(chain(ahead, packets))
        return
    visible = [packet for packet in ahead if not packet.is_discard]
    display = sorted(TimedFrame(packet.pts, None) for packet in visible)
    ends = ((packet.pts, packet.pts + (packet.duration or decoder.frame_duration)) for packet in visible)
    end_pts = max(ends, default=(0, 0))[1]
    decoder.end_pts = end_pts
    selected = selected_pts(decoder, span, lookahead, display)
    needed = _needed(ahead, units, selected)
    decoder.skipped_packets = sum(not is_needed for is_needed in needed[: len(needed) - needed[::-1].index(True)])
    expected = iter(display)
    for frame in decoder.decode(packet for packet, is_needed in zip(ahead, needed) if is_needed):
        for skipped in expected:
            if skipped.pts == frame.pts:
                break
            if skipped.pts in selected:
                raise DamageError
            yield skipped
        else:
            raise DamageError
        yield frame
    for skipped in expected:
        if skipped.pts in selected:
            raise DamageError
        yield skipped
    decoder.end_pts = end_pts


def selected_pts(decoder: VideoDecoder, span: ClipSpan, lookahead: int, display: list[TimedFrame]) -> set[int]:
    """Return the presentation times of the frames that are selected from `display`, the frames in display order."""
    selections = select_frames_at_instants(decoder, span, lookahead, display)
    return {frame.pts for selection in selections for frame in (selection.shown, *selection.frames)}


def _read_ahead(packets: Iterator[Any], last: int, lookahead: int) -> list[Any]:
    """Read packets up to the tick `last` in display order, and far enough for `lookahead` + 1 pictures after it."""
    ahead: list[Any] = []
    beyond = 0
    for packet in packets:
        ahead.append(packet)
        beyond += packet.pts is not None and packet.pts > last
        if packet.pts is None or beyond > MAX_REORDER + lookahead + 1:
            break
    return ahead


def _is_regular(packets: list[Any], units: list[list[NalUnit]], stream: Any) -> bool:
    """Return whether the packets are frames (not fields) with regular times and NAL units, under one parameter set."""
    if not packets or not all(units) or any(packet.pts is None for packet in packets):
        return False
    rank = {pts: number for number, pts in enumerate(sorted(packet.pts for packet in packets))}
    if len(rank) < len(packets) or any(
        number - rank[packet.pts] > MAX_REORDER for number, packet in enumerate(packets)
    ):
        return False  # presentation times that repeat or jump back
    if any(packet.is_corrupt or packet.has_sidedata("new_extradata") for packet in packets):
        return False
    in_band = [tuple(unit.parameter_set for unit in found if unit.parameter_set) for found in units]
    if len({sets for sets in in_band if sets}) > 1:
        return False  # a later parameter set could be skipped together with its packet
    sps = [unit for sets in in_band for unit in sets if is_sps(unit)]
    sps += extradata_sps(stream.codec_context.extradata or b"")
    return bool(sps) and all(has_frames_only(unit) for unit in set(sps))


def _needed(packets: list[Any], units: list[list[NalUnit]], selected: set[int]) -> list[bool]:
    """Return whether each packet, in decoding order, must be decoded."""
    needed = [False] * len(packets)
    precedes_selected = False  # a selected picture follows before the next IDR picture
    for number in reversed(range(len(packets))):
        is_selected = packets[number].pts in selected and not packets[number].is_discard
        precedes_selected |= is_selected
        skippable = all(unit.ref_idc == 0 and unit.type in _SKIPPABLE for unit in units[number])
        needed[number] = is_selected or (precedes_selected and not skippable)
        if any(unit.type == IDR_SLICE for unit in units[number]):
            precedes_selected = False
    needed[0] = True  # it carries the encoder's own notes, by which the decoder recognises the bugs of old encoders
    return needed
