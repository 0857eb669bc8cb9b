"""Verification finds all damage to a set of shards and locates it."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.index import read_index, write_index
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.verify.compare import verify
from bmlpipe.shards.writer import ShardWriter

FEATURES = {"frames": {"short_side": 8, "version": 1}, "spectrogram": {"preset": "test", "version": 1}}
TRAIN0, TRAIN1, VAL = "train-000000.tar", "train-000001.tar", "val-000000.tar"


def sample(number: int, size: int = 300) -> Sample:
    random = np.random.default_rng(number)
    members = {f"frame_{i:03d}.jpg": random.bytes(size + 100 * i + number) for i in range(3)}
    members["spectrogram.npy"] = random.bytes(size)
    return Sample(f"k{number:02d}", number % 4, members, {"id": f"{number}", "frames": {"times": [0.0, 1.0, 2.0]}})


def write(out: Path, splits: dict[str, list[Sample]], per_shard: int = 3) -> Path:
    with ShardWriter(
        out, dataset="test", classes=list("abcd"), features=FEATURES, samples_per_shard=per_shard
    ) as writer:
        for split, chosen in splits.items():
            for one in chosen:
                writer.write(split, one)
    return out


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of train with samples k00 to k02 and k03 to k05, and one of val with k06 and k07."""
    return write(tmp_path / "shards", {"train": [sample(n) for n in range(6)], "val": [sample(n) for n in range(6, 8)]})


def rows(shards: Path, **options: int) -> list[tuple[str, str, str]]:
    return [(fault.shard, fault.key, fault.member) for fault in verify(shards, **options)]


def write_at(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def flips(path: Path, places: range) -> Iterator[int]:
    """Flip one bit of each of these bytes in turn, a different bit for adjacent bytes, and restore it."""
    whole = path.read_bytes()
    for at in places:
        write_at(path, at, bytes([whole[at] ^ 1 << at % 8]))
        yield at
        write_at(path, at, whole[at : at + 1])


@pytest.mark.slow
def test_a_flipped_bit_in_any_byte_is_found(tmp_path: Path) -> None:
    """The bytes are those of headers, contents, padding, the end of the archive and both index files."""
    members = {"frame_000.jpg": b"picture", "spectrogram.npy": b"sound"}
    shards = write(tmp_path / "s", {"train": [Sample("k1", 2, members, {"id": "1"})]})
    record = read_index(shards).samples[0]
    with tarfile.open(shards / TRAIN0) as tar:
        owner = {at: m.name for m in tar for at in range(m.offset, m.offset_data + 512)}
    for path in sorted(shards.iterdir()):
        for at in flips(path, range(path.stat().st_size)):
            faults = list(verify(shards))
            assert faults, f"byte {at} of {path.name}"
            assert path.name in {fault.shard for fault in faults}, f"byte {at} of {path.name}"
            if path.suffix == ".tar" and at < record["length"]:
                assert {fault.key for fault in faults} == {"k1"}, f"byte {at}"
                if not owner[at].endswith("json"):  # damage to the list of members may look like damage to one of them
                    assert [f"k1.{fault.member}" for fault in faults] == [owner[at]], f"byte {at}"
    assert list(verify(shards)) == []


def test_a_flipped_bit_names_shard_key_and_member(shards: Path) -> None:
    path = shards / TRAIN1
    with tarfile.open(path) as tar:
        owner = {at: m.name for m in tar for at in range(m.offset, m.offset_data + -(-m.size // 512) * 512)}
    for at in flips(path, range(0, path.stat().st_size, 173)):
        found = rows(shards)
        assert {shard for shard, _, _ in found} == {TRAIN1}, f"byte {at}"
        name = owner.get(at, ".")
        if name.endswith("json"):
            assert {key for _, key, _ in found} == {name.split(".")[0]}, f"byte {at}"
        else:
            assert [f"{key}.{member}" for _, key, member in found] == [name], f"byte {at}"


def test_truncation_at_any_block_is_found_with_the_first_key(shards: Path) -> None:
    path, records = shards / TRAIN1, read_index(shards).samples[3:6]
    whole = path.read_bytes()
    ends = (records["offset"] + records["length"]).tolist()
    for size in [*range(0, len(whole), 512), 1, 511, 700, len(whole) - 1]:
        path.write_bytes(whole[:size])
        found = rows(shards)
        assert found, f"cut at {size}"
        assert {shard for shard, _, _ in found} == {TRAIN1}
        keys = [key for key, end in zip(("k03", "k04", "k05"), ends, strict=True) if size < end]
        named = {key for _, key, _ in found if key}
        assert set(keys[:1]) <= named <= set(keys[:2]), f"cut at {size}"


def repack(path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes] | list[tuple[str, bytes]]]) -> None:
    """Rewrite a shard with changed members, and keep the index."""
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    changed = change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in changed.items() if isinstance(changed, dict) else changed:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def without(*prefixes: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda members: {name: data for name, data in members.items() if not name.startswith(prefixes)}


def add_sorted(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda members: dict(sorted({**members, name: b"1"}.items()))


def swap_contents(members: dict[str, bytes]) -> dict[str, bytes]:
    one, other = "k04.frame_000.jpg", "k04.frame_001.jpg"
    return {**members, one: members[other], other: members[one]}


def swap_places(members: dict[str, bytes]) -> list[tuple[str, bytes]]:
    items = list(members.items())
    items[1], items[2] = items[2], items[1]
    return items


def scatter(members: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return [*((n, d) for n, d in members.items() if n != "k03.spectrogram.npy"), *list(members.items())[5:6]]


def twice(members: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return [*members.items(), *((n, d) for n, d in members.items() if n.startswith("k03."))]


def member_twice(members: dict[str, bytes]) -> list[tuple[str, bytes]]:
    items = list(members.items())
    return [*items[:2], *items[1:]]


def other_order(members: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return sorted(members.items(), key=lambda item: (-int(item[0][1:3]), item[0].split(".")[1]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("k04."), [("k04", "", "is missing")]),
        (without("k03.", "k04."), [("k03", "", "is missing"), ("k04", "", "is missing")]),
        (without("k04.frame_001"), [("k04", "frame_001.jpg", "is missing")]),
        (without("k04.cls"), [("k04", "cls", "is missing")]),
        (without("k04.json"), [("k04", "json", "is missing")]),
        (swap_contents, [("k04", f"frame_00{n}.jpg", "not those that were written") for n in (0, 1)]),
        (swap_places, [("k03", "frame_000.jpg", "out of order")]),
        (scatter, [("k03", "spectrogram.npy", "is apart from the other members")]),
        (twice, [("k03", "", "occurs 2 times in this shard")]),
        (member_twice, [("k03", "frame_000.jpg", "occurs twice")]),
        (lambda m: {**m, "k99.cls": b"1"}, [("k99", "", "is not among")]),
        (
            lambda m: dict(sorted({**m, "k05.depth.png": b"1"}.items())),
            [("k05", "depth.png", "not in the sample's own list")],
        ),
        (lambda m: {**m, "k03.cls": b"1"}, [("k03", "cls", "is '1', the index states 3 of 4")]),
        (other_order, [(key, "", "begins at byte") for key in ("k03", "k05")]),
    ],
)
def test_faults_in_a_shard_are_named(
    shards: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], expected: list[tuple[str, str, str]]
) -> None:
    if change is other_order:  # needs samples of equal length: a shifted offset alone is not a fault
        write(shards, {"train": [dataclasses.replace(sample(0), key=f"k{n:02d}") for n in range(6)]})
    repack(shards / TRAIN1, change)
    found = [fault for fault in verify(shards) if fault.key]
    assert {fault.shard for fault in found} == {TRAIN1}
    assert [(f.key, f.member) for f in found] == [(key, member) for key, member, _ in expected]
    for fault, (_, _, message) in zip(found, expected, strict=True):
        assert message in fault.message


def swap_files(shards: Path) -> None:
    (shards / TRAIN0).rename(shards / "0")
    (shards / TRAIN1).rename(shards / TRAIN0)
    (shards / "0").rename(shards / TRAIN1)


def swap_in_index(shards: Path) -> None:
    index = read_index(shards)
    one, other, last = index.shards
    write_index(shards, dataclasses.replace(index, samples=np.array(index.samples), shards=(other, one, last)))


def edit_index(shards: Path) -> None:
    path = shards / "index.json"
    path.write_text(path.read_text().replace('"dataset": "test"', '"dataset": "Test"'))


def other_records(shards: Path) -> None:
    samples = np.array(read_index(shards).samples)
    samples["label"][4] = 3
    np.save(shards / "samples.npy", samples)


def index_of_others(shards: Path) -> None:
    others = write(
        shards.parent / "o", {"train": [sample(n) for n in range(1, 7)], "val": [sample(n) for n in range(7, 9)]}
    )
    for name in ("index.json", "samples.npy"):
        shutil.copy(others / name, shards / name)


@pytest.mark.parametrize(
    ("damage", "expected", "message"),
    [
        (lambda s: (s / VAL).unlink(), [(VAL, "", "")], "is missing"),
        (lambda s: (s / "x.tar").touch(), [("x.tar", "", "")], "is not in the index"),
        (lambda s: (s / "old").mkdir(), [("old", "", "")], "is not in the index"),
        (swap_files, [(TRAIN0, "", ""), (TRAIN1, "", "")], "files were swapped"),
        (swap_in_index, [(TRAIN1, "", ""), (TRAIN0, "", "")], "belong"),
        (edit_index, [("index.json", "", "")], "not the one that it states"),
        (other_records, [("samples.npy", "", "")], "SHA-256"),
        (lambda s: (s / "samples.npy").write_bytes(b"x" * 832), [("samples.npy", "", "")], "damaged"),
        (lambda s: (s / "samples.npy").unlink(), [("samples.npy", "", "")], "damaged"),
        (lambda s: (s / TRAIN0).open("ab").write(bytes(512)), [(TRAIN0, "", "")], "bytes, the index states"),
        (lambda s: (s / TRAIN0).open("ab").write(b"more"), [(TRAIN0, "", "")] * 2, ""),
    ],
)
def test_faults_of_the_files_are_named(
    shards: Path, damage: Callable[[Path], object], expected: list[tuple[str, str, str]], message: str
) -> None:
    damage(shards)
    assert rows(shards) == expected
    assert all(message in fault.message for fault in verify(shards))


def test_the_index_of_another_set_is_detected(shards: Path) -> None:
    index_of_others(shards)
    found = rows(shards)
    assert {shard for shard, _, _ in found} == {TRAIN0, TRAIN1, VAL}
    assert {(TRAIN0, "k00", ""), (TRAIN0, "k03", ""), (VAL, "k08", "")} <= set(found)


def test_a_folder_without_an_index_cannot_be_verified(shards: Path) -> None:
    (shards / "index.json").unlink()
    with pytest.raises(ShardError, match="not a set of shards"):
        rows(shards)


def test_hidden_files_are_ignored(shards: Path) -> None:
    (shards / ".DS_Store").touch()
    assert rows(shards) == []


def test_an_index_without_its_hash_is_damaged(shards: Path) -> None:
    path = shards / "index.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert rows(shards) == [("index.json", "", "")]


def test_members_omitted_by_the_writer_are_found_despite_valid_checksums(tmp_path: Path) -> None:
    whole, silent, short = sample(0), sample(1), sample(2)
    silent = dataclasses.replace(silent, members={n: d for n, d in silent.members.items() if "frame" in n})
    short = dataclasses.replace(short, members={n: d for n, d in short.members.items() if n != "frame_001.jpg"})
    wrong = dataclasses.replace(sample(3), label=7)
    shards = write(tmp_path / "s", {"train": [whole, silent, short, wrong]}, per_shard=10)
    assert rows(shards) == [(TRAIN0, "k01", ""), (TRAIN0, "k02", "frame_001.jpg"), (TRAIN0, "k03", "cls")]
    messages = [fault.message for fault in verify(shards)]
    assert messages[0] == "has no spectrogram, which the index states"
    assert messages[1] == "is missing: the sample states that it has 3 frames"


def test_a_key_that_occurs_twice_in_the_index_is_named_in_each_shard(shards: Path) -> None:
    index = read_index(shards)
    samples = np.array(index.samples)
    samples["key"][4] = b"k00"
    write_index(shards, dataclasses.replace(index, samples=samples))
    repack(shards / TRAIN1, lambda m: {name.replace("k04", "k00"): data for name, data in m.items()})
    found = [fault for fault in verify(shards) if "occurs 2 times in the index" in fault.message]
    assert [(fault.shard, fault.key) for fault in found] == [(TRAIN0, "k00"), (TRAIN1, "k00")]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_burst_of_damage_is_found(shards: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(shards.iterdir())))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    burst = data.draw(st.binary(min_size=1, max_size=2000))
    damaged = whole[:at] + burst + whole[at + (len(burst) if data.draw(st.booleans()) else 0) :]
    path.write_bytes(damaged)
    try:
        found = rows(shards)
    finally:
        path.write_bytes(whole)
    assert (path.name in {file for file, _, _ in found}) == (damaged != whole)


def test_any_number_of_workers_finds_the_same_faults_in_the_same_order(shards: Path) -> None:
    for name in (TRAIN0, TRAIN1, VAL):
        write_at(shards / name, 700, b"harm")
    counted: list[int] = []
    expected = list(verify(shards, counted.append))
    assert len(expected) == 3
    assert counted == [3, 3, 2]
    assert list(verify(shards, workers=4)) == expected
    first = next(verify(shards, workers=2))  # the caller may stop early
    assert first == expected[0]


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    shards = write(tmp_path / "s", {"train": [sample(n, size=200_000) for n in range(20)]}, per_shard=20)
    assert (shards / TRAIN0).stat().st_size > 16e6
    assert rows(shards) == []
    tracemalloc.start()
    assert rows(shards) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6
