"""Write, index, read and verify shards."""

from __future__ import annotations

import json
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from bmlpipe.shards import spec
from bmlpipe.shards.index import read_index
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.spec import Sample, ShardError, key_of
from bmlpipe.shards.verify import verify
from bmlpipe.shards.writer import ShardWriter

FEATURES = {"frames": {"short_side": 8, "version": 1}, "spectrogram": {"preset": "test", "version": 1}}


def sample(number: int) -> Sample:
    random = np.random.default_rng(number)
    members = {spec.frame_member(i): random.bytes(200 + 100 * i + number) for i in range(3)}
    members[spec.SPECTROGRAM_MEMBER] = random.bytes(1024)
    return Sample(f"-clip_{number:03d}", number % 4, members, {"id": f"-clip.{number:03d}", "flags": []})


def write(out: Path, numbers: dict[str, range], per_shard: int = 5) -> Path:
    with ShardWriter(
        out, dataset="test", classes=["a", "b", "c", "d"], features=FEATURES, samples_per_shard=per_shard, seed=3
    ) as writer:
        for split, chosen in numbers.items():
            for number in chosen:
                writer.write(split, sample(number))
    return out


SPLITS = {"train": range(12), "val": range(12, 14), "test": range(14, 20)}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write(tmp_path / "shards", SPLITS)


def test_written_shards_are_listed_split_by_split(shards: Path) -> None:
    index = read_index(shards)
    assert [(s.file, s.samples) for s in index.shards] == [
        ("train-000000.tar", 5),
        ("train-000001.tar", 5),
        ("train-000002.tar", 2),
        ("val-000000.tar", 2),
        ("test-000000.tar", 5),
        ("test-000001.tar", 1),
    ]
    assert index.split_range("val") == range(12, 14)
    assert index.classes == ("a", "b", "c", "d")
    assert list(verify(shards)) == []


def test_reading_gives_back_what_was_written(shards: Path) -> None:
    reader = ShardReader(shards)
    assert len(reader) == 20
    for number in (19, 0, 7):
        stored, written = reader[number], sample(number)
        assert (stored.key, stored.label) == (written.key, written.label)
        assert {name: bytes(stored.members[name]) for name in written.members} == written.members
        assert stored.meta["id"] == f"-clip.{number:03d}"
    reader.close()


def test_the_stock_webdataset_reader_reads_the_shards(shards: Path) -> None:
    urls = sorted(str(path) for path in shards.glob("train-*.tar"))
    stock = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [item["__key__"] for item in stock] == [f"-clip_{n:03d}" for n in range(12)]
    assert [int(item["cls"]) for item in stock] == [n % 4 for n in range(12)]
    assert stock[7]["frame_002.jpg"] == sample(7).members["frame_002.jpg"]


def test_the_bytes_are_those_of_plain_ustar_and_the_same_every_time(shards: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again", SPLITS)
    for path in shards.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    with tarfile.open(shards / "train-000000.tar") as tar:
        members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.type, m.mode) for m in members} == {(0, 0, 0, tarfile.REGTYPE, 0o644)}
        assert not tar.pax_headers
        assert [m.name for m in members[:6]] == sorted(m.name for m in members[:6])


def test_an_exception_leaves_the_old_set_and_no_rest(shards: Path) -> None:
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    with (
        pytest.raises(RuntimeError, match="disk"),
        ShardWriter(shards, dataset="test", classes=["a"], features={}) as writer,
    ):
        writer.write("train", sample(0))
        raise RuntimeError("disk")
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
    assert [path.name for path in shards.parent.iterdir()] == ["shards"]


def test_a_set_is_replaced_as_a_whole_and_the_rest_of_a_killed_run_is_swept(shards: Path) -> None:
    killed = shards.parent / ".shards.writing-0123abcd"
    killed.mkdir()
    (killed / "train-000000.tar").write_bytes(b"half")
    write(shards, {"train": range(3)})
    assert sorted(path.name for path in shards.iterdir()) == ["index.json", "samples.npy", "train-000000.tar"]
    assert [path.name for path in shards.parent.iterdir()] == ["shards"]


def test_a_folder_that_is_no_set_of_shards_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(ShardError, match="not a set of shards"):
        write(tmp_path, {"train": range(2)})
    assert (tmp_path / "thesis.tex").read_text() == "important"


def test_the_writer_refuses_what_a_reader_would_get_wrong(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="twice"):
        write(tmp_path / "a", {"train": range(2), "val": range(1, 3)})
    with (
        pytest.raises(ShardError, match="split by split"),
        ShardWriter(tmp_path / "b", dataset="d", classes=["a"], features={}) as writer,
    ):
        for split, number in (("train", 0), ("val", 1), ("train", 2)):
            writer.write(split, sample(number))


@given(st.text(min_size=1), st.text(min_size=1))
def test_keys_are_safe_and_tell_ids_apart(one: str, other: str) -> None:
    for key in (key_of(one), key_of(other)):
        assert len(key) <= 64
        assert not set(key) & set("./\\ \0\n")
    assert (key_of(one) == key_of(other)) == (one == other)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_is_found_and_its_place_named(shards: Path) -> None:
    path = shards / "train-000001.tar"
    whole, index = path.read_bytes(), read_index(shards)
    for at in range(0, len(whole), 331):
        flip(path, at)
        faults = list(verify(shards))
        assert faults, f"byte {at}"
        inside = [r["key"].decode() for r in index.samples[5:10] if r["offset"] <= at < r["offset"] + r["length"]]
        assert {fault.shard for fault in faults} == {"train-000001.tar"}
        if inside:
            assert inside[0] in {fault.key for fault in faults}, f"byte {at}"
        path.write_bytes(whole)
    assert list(verify(shards)) == []


def test_a_flipped_bit_in_a_member_names_the_member(shards: Path) -> None:
    path = shards / "val-000000.tar"
    with tarfile.open(path) as tar:
        member = tar.getmember("-clip_012.spectrogram.npy")
    flip(path, member.offset_data + 700)
    assert [(f.shard, f.key, f.member) for f in verify(shards)] == [("val-000000.tar", "-clip_012", "spectrogram.npy")]


def test_truncation_at_every_block_is_found(shards: Path) -> None:
    path = shards / "train-000002.tar"
    whole = path.read_bytes()
    for size in range(0, len(whole), 512):
        path.write_bytes(whole[:size])
        faults = list(verify(shards))
        assert faults, f"cut at {size}"
        assert {fault.shard for fault in faults} == {"train-000002.tar"}


def drop_modality(shards: Path) -> None:
    with ShardWriter(shards, dataset="test", classes=["a", "b", "c", "d"], features=FEATURES) as writer:
        whole = sample(0)
        frames = {name: data for name, data in whole.members.items() if "frame" in name}
        writer.write("train", Sample(whole.key, whole.label, frames, whole.meta))


def swap_shards(shards: Path) -> None:
    one, other = shards / "train-000000.tar", shards / "train-000001.tar"
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def foreign_index(shards: Path) -> None:
    other = write(shards.parent / "other", {"train": range(1, 13), "val": range(13, 15), "test": range(15, 21)})
    (shards / "samples.npy").write_bytes((other / "samples.npy").read_bytes())


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda s: (s / "test-000001.tar").unlink(), "is missing"),
        (lambda s: (s / "extra.tar").write_bytes(b""), "is not in the index"),
        (drop_modality, "has no spectrogram"),
        (swap_shards, "another sample stands here"),
        (foreign_index, "SHA-256"),
    ],
)
def test_verify_says_what_is_wrong(shards: Path, harm: Callable[[Path], object], expected: str) -> None:
    harm(shards)
    assert any(expected in fault.message for fault in verify(shards))


def test_damage_never_reaches_training(shards: Path) -> None:
    index = read_index(shards)
    flip(shards / "train-000000.tar", int(index.samples[2]["offset"]) + 900)
    reader = ShardReader(shards)
    assert reader[1].key == "-clip_001"
    with pytest.raises(ShardError, match=r"train-000000.tar, key -clip_002"):
        reader[2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "did not finish"),
        ("{", "damaged"),
        ("[]", "not an index"),
        ('{"format": "bmlpipe-shards", "version": 99}', "version 99"),
        ('{"format": "bmlpipe-shards", "version": 1}', "damaged"),
    ],
)
def test_an_index_that_is_not_one_is_refused_with_a_remedy(shards: Path, content: str | None, expected: str) -> None:
    (shards / "index.json").unlink()
    if content is not None:
        (shards / "index.json").write_text(content)
    with pytest.raises(ShardError, match=expected):
        read_index(shards)


def test_an_index_with_another_samples_file_is_refused(shards: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"train": range(3)})
    (shards / "samples.npy").write_bytes((other / "samples.npy").read_bytes())
    with pytest.raises(ShardError, match="do not belong together"):
        read_index(shards)


def test_a_samples_file_with_python_objects_is_not_unpickled(shards: Path) -> None:
    np.save(shards / "samples.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ShardError, match="damaged"):
        read_index(shards)


def test_a_reader_can_be_sent_to_another_process(shards: Path) -> None:
    reader = ShardReader(shards)
    assert reader[3].label == 3
    copy = pickle.loads(pickle.dumps(reader))
    assert copy[6].key == "-clip_006"


def test_the_json_lists_every_member_with_its_checksum(shards: Path) -> None:
    stored = ShardReader(shards)[4]
    listed = json.loads(bytes(stored.members["json"]))["members"]
    assert listed == {name: [len(data), zlib.crc32(data)] for name, data in sample(4).members.items()}
