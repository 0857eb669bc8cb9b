"""Read the structure of an H.264 stream: its NAL units and sequence parameter sets (ITU-T H.264, 7.3 and 7.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

# nal_unit_type (ITU-T H.264, table 7-1)
SLICE, IDR_SLICE, SEI, SPS, PPS, DELIMITER, FILLER = 1, 5, 6, 7, 8, 9, 12

_HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}  # 7.3.2.1.1
_START_CODE = b"\x00\x00\x01"


class NalUnit(NamedTuple):
    """A NAL unit.

    Attributes:
        ref_idc: `nal_ref_idc`; 0: no other picture refers to this one.
        type: `nal_unit_type`.
        parameter_set: The bytes of the unit if it is a parameter set, else empty.
    """

    ref_idc: int
    type: int
    parameter_set: bytes


def length_field_size(stream: Any) -> int | None:
    """Find out from its extradata how the NAL units of a stream are separated.

    Returns:
        Bytes of the length field before each unit (avcC), 0 for start codes (Annex B), None if it is unknown.
    """
    extradata = stream.codec_context.extradata or b""
    if extradata[:1] == b"\x01":
        return (extradata[4] & 3) + 1 if len(extradata) > 6 else None
    return 0 if extradata.startswith((_START_CODE, b"\x00" + _START_CODE)) else None


def nal_units(packet: Any, length_size: int) -> list[NalUnit]:
    """Split a packet into NAL units; empty if the packet is not a well-formed sequence of them.

    Args:
        packet: The packet (`av.Packet`).
        length_size: From `length_field_size`.
    """
    data = bytes(packet)
    units = []
    for begin, end in _bounds_avcc(data, length_size) if length_size else _bounds_annex_b(data):
        if end > len(data) or begin >= end or data[begin] & 0x80:
            return []
        kind = data[begin] & 31
        units.append(NalUnit(data[begin] >> 5 & 3, kind, data[begin:end] if kind in (SPS, PPS) else b""))
    return units


def _bounds_avcc(data: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < len(data):
        begin = end + length_size
        end = begin + int.from_bytes(data[end:begin], "big")
        yield begin, end


def _bounds_annex_b(data: bytes) -> Iterator[tuple[int, int]]:
    begin = data.find(_START_CODE)
    if begin < 0 or data[:begin].strip(b"\x00"):
        yield 0, 0  # not Annex B
        return
    while begin >= 0:
        following = data.find(_START_CODE, begin + 3)
        end = len(data) if following < 0 else following
        yield begin + 3, begin + 3 + len(data[begin + 3 : end].rstrip(b"\x00"))
        begin = following


def is_sps(unit: bytes) -> bool:
    """Return whether the bytes of a NAL unit are a sequence parameter set."""
    return unit[0] & 31 == SPS


def extradata_sps(extradata: bytes) -> list[bytes]:
    """Extract the sequence parameter sets of an avcC record or of Annex B extradata."""
    if extradata[:1] != b"\x01":
        units = [extradata[begin:end] for begin, end in _bounds_annex_b(extradata) if end > begin]
        return [unit for unit in units if is_sps(unit)]
    found, at = [], 6
    for _ in range(extradata[5] & 31):
        size = int.from_bytes(extradata[at : at + 2], "big")
        found.append(extradata[at + 2 : at + 2 + size])
        at += 2 + size
    return found


class _BitReader:
    """A reader of bits, most significant first.

    Raises:
        IndexError: The data has ended.
    """

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        if count > self._left:
            raise IndexError
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def skip(self, *sizes: int) -> None:
        """Skip fields of the given sizes in bits; a size of 0 stands for an Exp-Golomb code."""
        for size in sizes:
            self.read(size) if size else self.read_golomb()

    def read_golomb(self) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def has_frames_only(sps: bytes) -> bool:
    """Read `frame_mbs_only_flag` of a sequence parameter set (ITU-T H.264, 7.3.2.1.1); False if it is unreadable."""
    bits = _BitReader(sps[1:].replace(b"\x00\x00\x03", b"\x00\x00"))
    try:
        profile = bits.read(8)
        bits.skip(16, 0)  # constraint flags and level_idc; seq_parameter_set_id
        if profile in _HIGH_PROFILES:
            if bits.read_golomb() == 3:  # chroma_format_idc
                bits.skip(1)
            bits.skip(0, 0, 1)  # bit depths; transform bypass
            if bits.read(1):
                return False  # scaling matrices are rare, so they are not parsed
        bits.skip(0)  # log2_max_frame_num
        order = bits.read_golomb()  # pic_order_cnt_type
        if order == 0:
            bits.skip(0)
        elif order == 1:
            bits.skip(1, 0, 0)
            bits.skip(*[0] * bits.read_golomb())
        bits.skip(0, 1, 0, 0)  # max_num_ref_frames; gaps allowed; width; height
        return bits.read(1) == 1
    except IndexError:
        return False
