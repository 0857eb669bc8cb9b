"""Decode only what the wanted pictures need: H.264, by the packets' own headers.

Two kinds of packets need not be decoded, and leaving them out changes no other picture:

- pictures that no other refers to (`nal_ref_idc` 0 in every NAL unit; ITU-T H.264, 7.4.1) and that are not wanted;
- what follows the last wanted picture of a group of pictures, up to the next IDR picture (NAL type 5), before which
  nothing is referred to. A mere key frame will not do: in open groups and intra refresh, later pictures reach back.

Which pictures are wanted follows from the packets' presentation times by the same rule as in a full decode. Anything
unusual (another codec, missing or odd times, fields, new parameter sets on the way) means a full decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

from bmlpipe.pipeline.media.errors import DamageError
from bmlpipe.pipeline.media.video import Pictures, Shot, Window, pick

_SLICE, _IDR, _SEI, _SPS, _PPS, _DELIMITER, _FILLER = 1, 5, 6, 7, 8, 9, 12  # ITU-T H.264, table 7-1
_REORDER = 16
_HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}  # 7.3.2.1.1
_PASSIVE = {_SLICE, _SEI, _DELIMITER, _FILLER}


def needed_shots(pictures: Pictures, window: Window, after: int = 0) -> Iterator[Shot]:
    """The pictures of a clip in display order, as by decoding it whole; those not needed come without their frame.

    Args:
        pictures: The video, nothing read of it yet.
        window: The clip.
        after: Pictures needed after the one shown at each instant.

    Raises:
        DamageError: A wanted picture did not come out, or out of order: decode the clip whole.
    """
    packets = pictures.demuxer.packets(pictures.stream)
    length_size = _length_size(pictures.stream)
    if pictures.stream.codec_context.name != "h264" or window.instants is None or length_size is None:
        yield from pictures.decode(packets)
        return
    ahead = _read_ahead(packets, pictures.tick(window, window.instants - 1), after)
    units = [_units(packet, length_size) for packet in ahead]
    if not _regular(ahead, units, pictures.stream):
        yield from pictures.decode(chain(ahead, packets))
        return
    visible = [packet for packet in ahead if not packet.is_discard]
    display = sorted(Shot(packet.pts, None) for packet in visible)
    end = max(((packet.pts, packet.pts + (packet.duration or pictures.step)) for packet in visible), default=(0, 0))[1]
    pictures.end = end
    wanted = {shot.tick for one in pick(pictures, window, after, display) for shot in (one.shown, *one.shots)}
    needed = _needed(ahead, units, wanted)
    pictures.skipped = sum(not send for send in needed[: len(needed) - needed[::-1].index(True)])
    known = iter(display)
    for shot in pictures.decode(packet for packet, send in zip(ahead, needed) if send):
        for other in known:
            if other.tick == shot.tick:
                break
            _let_pass(other, wanted)
            yield other
        else:
            raise DamageError
        yield shot
    for other in known:
        _let_pass(other, wanted)
        yield other
    pictures.end = end


def _let_pass(shot: Shot, wanted: set[int]) -> None:
    if shot.tick in wanted:
        raise DamageError


class _Unit(NamedTuple):
    """A NAL unit: its reference importance (0: nothing refers to it), its type, and its bytes if a parameter set."""

    importance: int
    type: int
    content: bytes


def _read_ahead(packets: Iterator[Any], last: int, after: int) -> list[Any]:
    """Packets from here on until every picture up to tick `last`, and `after` + 1 beyond it, must be among them.

    At most 16 pictures are decoded before another that is shown before them (max_num_reorder_frames, E.2.1).
    """
    ahead: list[Any] = []
    beyond = 0
    for packet in packets:
        ahead.append(packet)
        beyond += packet.pts is not None and packet.pts > last
        if packet.pts is None or beyond > _REORDER + after + 1:
            break
    return ahead


def _length_size(stream: Any) -> int | None:
    """Bytes of the length before each NAL unit (avcC), 0 for start codes (Annex B), None if it cannot be told."""
    extradata = stream.codec_context.extradata or b""
    if extradata[:1] == b"\x01":
        return (extradata[4] & 3) + 1 if len(extradata) > 6 else None
    return 0 if extradata.startswith((b"\x00\x00\x01", b"\x00\x00\x00\x01")) else None


def _units(packet: Any, length_size: int) -> list[_Unit]:
    """The NAL units of a packet; none if it is not a clean sequence of them."""
    data = bytes(packet)
    found = []
    for begin, end in _bounds_avcc(data, length_size) if length_size else _bounds_annex_b(data):
        if end > len(data) or begin >= end or data[begin] & 0x80:
            return []
        kind = data[begin] & 31
        content = data[begin:end] if kind in (_SPS, _PPS) else b""
        found.append(_Unit(data[begin] >> 5 & 3, kind, content))
    return found


def _bounds_avcc(data: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(data):
        begin = at + length_size
        at = begin + int.from_bytes(data[at:begin], "big")
        yield begin, at


def _bounds_annex_b(data: bytes) -> Iterator[tuple[int, int]]:
    begin = data.find(b"\x00\x00\x01")
    if begin < 0 or data[:begin].strip(b"\x00"):
        yield 0, 0  # not Annex B
        return
    while begin >= 0:
        following = data.find(b"\x00\x00\x01", begin + 3)
        end = len(data) if following < 0 else following
        yield begin + 3, begin + 3 + len(data[begin + 3 : end].rstrip(b"\x00"))
        begin = following


def _regular(ahead: list[Any], units: list[list[_Unit]], stream: Any) -> bool:
    """Whether these are frames (not fields) with proper times and NAL units, under one set of parameters."""
    if not ahead or not all(units) or any(packet.pts is None for packet in ahead):
        return False
    order = {tick: rank for rank, tick in enumerate(sorted(packet.pts for packet in ahead))}
    if len(order) < len(ahead) or any(number - order[packet.pts] > _REORDER for number, packet in enumerate(ahead)):
        return False  # times that repeat or jump back
    if any(packet.is_corrupt or packet.has_sidedata("new_extradata") for packet in ahead):
        return False
    in_band = [tuple(unit.content for unit in found if unit.content) for found in units]
    if len({sets for sets in in_band if sets}) > 1:
        return False  # another set further on might be left out with its packet
    extradata = stream.codec_context.extradata or b""
    sps = [unit for sets in in_band for unit in sets if unit[0] & 31 == _SPS] + _extradata_sps(extradata)
    return bool(sps) and all(_frames_only(unit) for unit in set(sps))


def _is_idr(units: list[_Unit]) -> bool:
    return any(unit.type == _IDR for unit in units)


def _needed(ahead: list[Any], units: list[list[_Unit]], wanted: set[int]) -> list[bool]:
    """Which packets to decode, in decoding order."""
    needed = [False] * len(ahead)
    useful = False  # a wanted picture follows before the next IDR picture
    for number in reversed(range(len(ahead))):
        here = ahead[number].pts in wanted and not ahead[number].is_discard
        useful |= here
        disposable = all(unit.importance == 0 and unit.type in _PASSIVE for unit in units[number])
        needed[number] = here or (useful and not disposable)
        if _is_idr(units[number]):
            useful = False
    needed[0] = True  # it carries the encoder's own notes, by which the decoder knows old encoders' faults
    return needed


def _extradata_sps(extradata: bytes) -> list[bytes]:
    """Sequence parameter sets of an avcC record or of Annex B extradata."""
    if extradata[:1] != b"\x01":
        units = [extradata[begin:end] for begin, end in _bounds_annex_b(extradata) if end > begin]
        return [unit for unit in units if unit[0] & 31 == _SPS]
    found, at = [], 6
    for _ in range(extradata[5] & 31):
        size = int.from_bytes(extradata[at : at + 2], "big")
        found.append(extradata[at + 2 : at + 2 + size])
        at += 2 + size
    return found


class _Bits:
    """Reads bits, most significant first.

    Raises:
        IndexError: Nothing is left.
    """

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise IndexError
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def skip(self, *sizes: int) -> None:
        """Skip fields of so many bits each; 0: an Exp-Golomb code."""
        for size in sizes:
            self.take(size) if size else self.golomb()

    def golomb(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _frames_only(sps: bytes) -> bool:
    """`frame_mbs_only_flag` of a sequence parameter set (ITU-T H.264, 7.3.2.1.1); False if it cannot be read."""
    bits = _Bits(sps[1:].replace(b"\x00\x00\x03", b"\x00\x00"))
    try:
        profile = bits.take(8)
        bits.skip(16, 0)  # constraints and level; id
        if profile in _HIGH_PROFILES:
            if bits.golomb() == 3:  # chroma_format_idc
                bits.skip(1)
            bits.skip(0, 0, 1)  # bit depths; transform bypass
            if bits.take(1):
                return False  # scaling matrices: rare, and not worth reading
        bits.skip(0)  # log2_max_frame_num
        order = bits.golomb()  # pic_order_cnt_type
        if order == 0:
            bits.skip(0)
        elif order == 1:
            bits.skip(1, 0, 0)
            bits.skip(*[0] * bits.golomb())
        bits.skip(0, 1, 0, 0)  # reference frames; gaps allowed; width; height
        return bits.take(1) == 1
    except IndexError:
        return False
