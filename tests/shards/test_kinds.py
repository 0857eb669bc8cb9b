"""The tables of feature kinds and targets."""

from __future__ import annotations

import pytest

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.shards.index import SAMPLE_DTYPE
from bmlpipe.shards.kinds import KINDS, MODALITY_KIND, Storage, kind_named, kind_of, ordered
from bmlpipe.shards.targets import CLASS, TARGETS


@pytest.mark.parametrize("name", KINDS)
def test_every_member_name_identifies_its_kind(name: str) -> None:
    members = KINDS[name].members(instants=12, stack=3 if "{step" in KINDS[name].member else 1)
    assert len(set(members)) == len(members)
    assert {kind_of(member) for member in members} == {name}
    assert all("." not in member.partition(".")[2] for member in members)  # WebDataset splits at the first dot


def test_the_members_of_format_version_1() -> None:
    assert KINDS["frames"].members(2) == ["frame_000.jpg", "frame_001.jpg"]
    assert KINDS["spectrogram"].members(2) == ["spectrogram.npy"]
    assert KINDS["waveform"].members() == ["waveform.flac"]
    assert KINDS["flow"].members(1, stack=2) == [
        "flow_000_00_x.jpg",
        "flow_000_00_y.jpg",
        "flow_000_01_x.jpg",
        "flow_000_01_y.jpg",
    ]
    assert KINDS["rgb_diff"].members(2, stack=2) == [
        "rgb_diff_000.jpg",
        "rgb_diff_000_01.jpg",
        "rgb_diff_001.jpg",
        "rgb_diff_001_01.jpg",
    ]


def test_mirroring_changes_the_sign_of_horizontal_flow_only() -> None:
    changing = [member for kind in KINDS.values() for member in kind.members() if kind.changes_sign(member)]
    assert changing == ["flow_000_00_x.jpg"]


def test_the_table_of_kinds_is_consistent() -> None:
    for kind in KINDS.values():
        assert kind.is_pictures == (kind.source == "pictures") == (kind.storage is Storage.JPEG) == bool(kind.meta)
        assert kind.picture_channels in (1, 3)
        assert (kind.colourspace == "RGB") == (kind.picture_channels == 3)
    assert dict(MODALITY_KIND) == {
        "visual": "frames",
        "audio": "spectrogram",
        "flow": "flow",
        "rgb_diff": "rgb_diff",
    }


def test_an_unknown_kind_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match="did you mean frames"):
        kind_named("frame")
    with pytest.raises(OptionError, match="choose among frames, spectrogram"):
        ordered(["frames", "smell"])


def test_the_class_is_stored_as_a_number_in_sample_and_index() -> None:
    assert list(TARGETS) == ["class"]
    assert (CLASS.member, CLASS.encode(12)) == ("cls", b"12")
    assert SAMPLE_DTYPE[CLASS.field].str == CLASS.dtype
    assert SAMPLE_DTYPE.itemsize == 88
    assert [CLASS.in_range(value, 3) for value in (-1, 0, 2, 3)] == [False, True, True, False]
