"""Writing and reading sets of shards."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.index import read_index
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import Sample, key_of
from bmlpipe.shards.verify.compare import verify
from bmlpipe.shards.writer import ShardWriter

FEATURES = {"frames": {"short_side": 8, "version": 1}, "spectrogram": {"preset": "test", "version": 1}}


def sample(number: int) -> Sample:
    random = np.random.default_rng(number)
    members = {f"frame_{i:03d}.jpg": random.bytes(200 + 100 * i + number) for i in range(3)}
    members["spectrogram.npy"] = random.bytes(1024)
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


def test_reading_returns_the_written_samples(shards: Path) -> None:
    reader = ShardReader(shards)
    assert len(reader) == 20
    for number in (19, 0, 7):
        stored, written = reader[number], sample(number)
        assert (stored.key, stored.label) == (written.key, written.label)
        assert {name: bytes(stored.members[name]) for name in written.members} == written.members
        assert stored.meta["id"] == f"-clip.{number:03d}"
    reader.close()


def test_webdataset_reads_the_shards(shards: Path) -> None:
    urls = sorted(str(path) for path in shards.glob("train-*.tar"))
    stock = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [item["__key__"] for item in stock] == [f"-clip_{n:03d}" for n in range(12)]
    assert [int(item["cls"]) for item in stock] == [n % 4 for n in range(12)]
    assert stock[7]["frame_002.jpg"] == sample(7).members["frame_002.jpg"]


def test_shards_are_plain_ustar_and_byte_identical_every_time(shards: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again", SPLITS)
    for path in shards.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    with tarfile.open(shards / "train-000000.tar") as tar:
        members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.type, m.mode) for m in members} == {(0, 0, 0, tarfile.REGTYPE, 0o644)}
        assert not tar.pax_headers
        assert [m.name for m in members[:6]] == sorted(m.name for m in members[:6])


def test_an_exception_keeps_the_old_set_and_leaves_no_other_files(shards: Path) -> None:
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    with (
        pytest.raises(RuntimeError, match="disk"),
        ShardWriter(shards, dataset="test", classes=["a"], features={}) as writer,
    ):
        writer.write("train", sample(0))
        raise RuntimeError("disk")
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
    assert [path.name for path in shards.parent.iterdir()] == ["shards"]


def test_a_set_is_replaced_as_a_whole_and_files_of_a_killed_run_are_removed(shards: Path) -> None:
    killed = shards.parent / ".shards.writing-0123abcd"
    killed.mkdir()
    (killed / "train-000000.tar").write_bytes(b"half")
    write(shards, {"train": range(3)})
    assert sorted(path.name for path in shards.iterdir()) == ["index.json", "samples.npy", "train-000000.tar"]
    assert [path.name for path in shards.parent.iterdir()] == ["shards"]


def test_a_folder_that_is_not_a_set_of_shards_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(ShardError, match="not a set of shards"):
        write(tmp_path, {"train": range(2)})
    assert (tmp_path / "thesis.tex").read_text() == "important"


def test_the_writer_refuses_repeated_keys_and_interleaved_splits(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="twice"):
        write(tmp_path / "a", {"train": range(2), "val": range(1, 3)})
    with (
        pytest.raises(ShardError, match="comes again"),
        ShardWriter(tmp_path / "b", dataset="d", classes=["a"], features={}) as writer,
    ):
        for split, number in (("train", 0), ("val", 1), ("train", 2)):
            writer.write(split, sample(number))


@given(st.text(min_size=1), st.text(min_size=1))
def test_keys_are_safe_and_distinguish_ids(one: str, other: str) -> None:
    for key in (key_of(one), key_of(other)):
        assert len(key) <= 64
        assert not set(key) & set("./\\ \0\n")
    assert (key_of(one) == key_of(other)) == (one == other)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_damaged_sample_is_refused(shards: Path) -> None:
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
def test_a_malformed_index_is_refused(shards: Path, content: str | None, expected: str) -> None:
    (shards / "index.json").unlink()
    if content is not None:
        (shards / "index.json").write_text(content)
    with pytest.raises(ShardError, match=expected):
        read_index(shards)


def test_an_index_with_another_samples_file_is_refused(shards: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"train": range(3)})
    (shards / "samples.npy").write_bytes((other / "samples.npy").read_bytes())
    with pytest.raises(ShardError, match="does not belong to"):
        read_index(shards)


def test_a_samples_file_with_python_objects_is_not_unpickled(shards: Path) -> None:
    np.save(shards / "samples.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ShardError, match="damaged"):
        read_index(shards)


def test_a_pickled_reader_reads_the_same_set(shards: Path) -> None:
    reader = ShardReader(shards)
    assert reader[3].label == 3
    copy = pickle.loads(pickle.dumps(reader))
    assert copy[6].key == "-clip_006"


def test_the_json_lists_every_member_with_its_checksum(shards: Path) -> None:
    stored = ShardReader(shards)[4]
    listed = json.loads(bytes(stored.members["json"]))["members"]
    assert listed == {name: [len(data), zlib.crc32(data)] for name, data in sample(4).members.items()}


def test_the_documented_format_suffices_to_read_a_set(shards: Path) -> None:
    """A set is read as docs/format.md describes, without bmlpipe."""
    text = (shards / "index.json").read_bytes()
    about = json.loads(text)
    assert (about["format"], about["version"], list(about)[-1]) == ("bmlpipe-shards", 1, "sha256")
    assert hashlib.sha256(text.replace(about["sha256"].encode(), b"0" * 64)).hexdigest() == about["sha256"]
    features = json.dumps(about["features"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(features.encode()).hexdigest() == about["features_sha256"]
    records = (shards / about["samples"]["file"]).read_bytes()
    assert hashlib.sha256(records).hexdigest() == about["samples"]["sha256"]
    samples = np.load(shards / "samples.npy")
    assert (len(samples), samples.itemsize, records[6:8]) == (about["samples"]["count"], 88, b"\x01\x00")
    assert records.endswith(samples.tobytes())
    first = 0
    for number, shard in enumerate(about["shards"]):
        whole, end = (shards / shard["file"]).read_bytes(), 0
        assert (len(whole), hashlib.sha256(whole).hexdigest()) == (shard["bytes"], shard["sha256"])
        for record in samples[first : first + shard["samples"]]:
            part = whole[record["offset"] :][: record["length"]]
            assert (record["shard"], record["offset"], zlib.crc32(part)) == (number, end, record["crc32"])
            end += int(record["length"])
            with tarfile.open(fileobj=io.BytesIO(part + bytes(1024))) as tar:
                members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
            key = record["key"].decode()
            assert list(members) == sorted(members)
            assert int(members.pop(f"{key}.cls")) == record["label"]
            listed = json.loads(members.pop(f"{key}.json"))["members"]
            assert {f"{key}.{name}": crc for name, (_, crc) in listed.items()} == {
                name: zlib.crc32(data) for name, data in members.items()
            }
        assert len(whole) % 10240 == 0
        assert len(whole) - end >= 1024
        assert not any(whole[end:])
        first += shard["samples"]


# ----- rewriting a set while it is read -----


def write_marked(out: Path, mark: str) -> None:
    """Write a set whose sizes do not depend on the mark, so that two sets differ only in their contents."""
    with ShardWriter(out, dataset="test", classes=["a"], features={}, samples_per_shard=2) as writer:
        for number in range(6):
            writer.write("train", Sample(f"k{number}", 0, {"frame_000.jpg": mark.encode() * 700}, {"id": mark}))


def test_a_reader_of_a_replaced_set_reads_the_old_set_or_fails(tmp_path: Path) -> None:
    out = tmp_path / "set"
    write_marked(out, "A")
    reader, state = ShardReader(out), pickle.dumps(ShardReader(out))
    assert reader[0].meta["id"] == "A"
    write_marked(out, "B")
    assert reader[1].meta["id"] == "A"  # from a shard that is still open
    for number in (2, 5):
        with pytest.raises(ShardError, match="overwritten or removed"):
            reader[number]
    with pytest.raises(ShardError, match="overwritten or removed"):
        pickle.loads(state)
    assert ShardReader(out)[2].meta["id"] == "B"
    write_marked(out, "A")
    assert pickle.loads(state)[5].meta["id"] == "A"  # the same bytes are the same set


def test_a_missing_file_of_a_set_is_reported(shards: Path) -> None:
    reader = ShardReader(shards)
    (shards / "val-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"val-000000.tar is missing"):
        reader[12]
    (shards / "index.json").unlink()
    with pytest.raises(ShardError, match="overwritten or removed"):
        reader[12]


def test_a_reader_never_sees_half_a_set_while_it_is_rewritten(tmp_path: Path) -> None:
    out = tmp_path / "set"
    write_marked(out, "00")
    writer = threading.Thread(target=lambda: [write_marked(out, f"{number:02d}") for number in range(1, 40)])
    writer.start()
    whole, errors = set[str](), list[str]()
    while writer.is_alive():
        reader = ShardReader(out)  # never fails
        try:
            marks = {reader[number].meta["id"] for number in range(6)}
        except ShardError as error:
            errors.append(str(error))
        else:
            assert len(marks) == 1
            whole |= marks
        reader.close()
    assert len(whole) > 1
    assert not [error for error in errors if "overwritten" not in error]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_writer_killed_between_its_two_renames_loses_nothing(shards: Path) -> None:
    whole = {path.name: path.read_bytes() for path in shards.iterdir()}
    old = shards.parent / ".shards.writing-0123abcd-old"
    shards.rename(old)
    with (
        pytest.raises(RuntimeError, match="again"),
        ShardWriter(shards, dataset="test", classes=["a"], features={}) as writer,
    ):
        writer.write("train", sample(0))
        raise RuntimeError("again")
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == whole
    assert [path.name for path in shards.parent.iterdir()] == ["shards"]


# ----- versions -----


def edit(folder: Path, **changes: object) -> None:
    """Change the index and update its hash, as another version of the program would."""
    path = folder / "index.json"
    content = {**json.loads(path.read_text()), **changes, "sha256": "0" * 64}
    text = json.dumps(content, indent=1)
    path.write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()))


def test_a_later_version_of_the_index_is_refused_before_its_contents_are_read(shards: Path) -> None:
    edit(shards, version=2, samples={"rows": 20}, shards="elsewhere", compression="zstd")
    with pytest.raises(ShardError, match=r"format version 2.* reads version 1"):
        read_index(shards)


def test_unknown_keys_of_the_index_are_ignored(shards: Path) -> None:
    edit(shards, comment="made on a Tuesday")
    assert len(ShardReader(shards)) == 20


def test_an_edited_index_is_refused(shards: Path) -> None:
    path = shards / "index.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(ShardError, match="SHA-256 is not the one that it states"):
        read_index(shards)
