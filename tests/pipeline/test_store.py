"""The feature store: features are read as written, damage is noticed, and a failed write leaves the old file."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bmlpipe.pipeline.front_ends.features import ArrayFeature, ClipFeatures, Feature, FlacSound, JpegSeries
from bmlpipe.pipeline.media.source_file import SourceFile
from bmlpipe.pipeline.store.errors import StoreError, StoreWriteError
from bmlpipe.pipeline.store.feature_file import FeatureStore, StoredClip
from bmlpipe.shards.sample import digest


def pictures(count: int, seed: int = 0) -> tuple[bytes, ...]:
    random = np.random.default_rng(seed)
    return tuple(random.bytes(100 + 37 * number) for number in range(count))


def stored(clip_id: str = "clip", *, flow: bool = True) -> StoredClip:
    images, times = pictures(12), (0.0, 1.0, 1.9)
    values = np.random.default_rng(2).normal(size=(257, 299)).astype(np.float16)
    found: dict[str, Feature] = {
        "frames": JpegSeries(pictures(3, 1), (0.0, 0.96, 2 / 3), 256, 340),
        "spectrogram": ArrayFeature(values),
    }
    if flow:
        found["flow"] = JpegSeries(images, times, 256, 341, {"stack": 2, "bound": 20.0})
        found["rgb_diff"] = JpegSeries(images[:6], times, 256, 342, {"stack": 2})
        found["waveform"] = FlacSound(images[6])
    media = {"fps": 29.97, "container": "mov", "duration_s": None}
    features = ClipFeatures(found, ("late_video", "short_audio"), media)
    kinds = list(found)
    return StoredClip(
        id=clip_id,
        clip=(1.25, None),
        sources=(SourceFile("a.mp4", 10, 1_700_000_000_123_456_789, "0" * 64), SourceFile("a.wav", 5, 7, "1" * 64)),
        parameters={kind: {"version": 1, "seconds": 3, "name": kind} for kind in kinds},
        features=features,
        software={kind: {"av": "18.1.0"} for kind in kinds},
    )


def same(one: StoredClip, other: StoredClip) -> bool:
    """Compare two stored clips, including the values of the spectrogram."""
    left, right = (dict(item.features.features) for item in (one, other))
    arrays = [features.pop("spectrogram", None) for features in (left, right)]
    if all(isinstance(array, ArrayFeature) for array in arrays):
        arrays = [(array.values.dtype, array.values.tobytes()) for array in arrays]
    bare = [
        dataclasses.replace(item, features=dataclasses.replace(item.features, features=features))
        for item, features in ((one, left), (other, right))
    ]
    return bare[0] == bare[1] and arrays[0] == arrays[1]


@pytest.mark.parametrize("flow", [True, False])
def test_features_are_read_exactly_as_written(tmp_path: Path, flow: bool) -> None:
    store, written = FeatureStore(tmp_path), stored(flow=flow)
    store.write(written)
    back = store.read("clip")
    assert same(back, written)
    assert "spectrogram" in back.features.features
    assert back.features["spectrogram"].values.dtype == np.float16
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".h5"]


def test_single_kinds_and_provenance_alone_can_be_read(tmp_path: Path) -> None:
    store, written = FeatureStore(tmp_path), stored()
    store.write(written)
    provenance = store.read("clip", ())
    assert provenance.features == ClipFeatures(flags=written.features.flags, media=written.features.media)
    assert (provenance.parameters, provenance.sources, provenance.software, provenance.clip) == (
        written.parameters,
        written.sources,
        written.software,
        written.clip,
    )
    flow = store.read("clip", ["flow"]).features
    assert flow["flow"] == written.features["flow"]
    assert list(flow.features) == ["flow"]
    assert store.read("clip", ["waveform"]).features["waveform"] == written.features["waveform"]
    assert store.read("clip", ["rgb_diff"]).features["rgb_diff"] == written.features["rgb_diff"]


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=300))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_clip_id_can_be_stored(tmp_path: Path, clip_id: str) -> None:
    store = FeatureStore(tmp_path)
    small = StoredClip(
        clip_id, (0.0, 3.5), (), {"frames": {}}, ClipFeatures({"frames": JpegSeries((b"x",), (0.0,), 1, 1)})
    )
    store.write(small)
    assert store.path(clip_id).is_relative_to(tmp_path / "clips")
    assert store.read(clip_id).id == clip_id
    assert store.read(clip_id).clip == (0.0, 3.5)


def test_the_file_records_sources_parameters_and_software_as_json(tmp_path: Path) -> None:
    store, written = FeatureStore(tmp_path), stored()
    store.write(written)
    with h5py.File(store.path("clip")) as file:
        assert json.loads(file.attrs["source"])[0]["sha256"] == "0" * 64
        assert json.loads(file["flow"].attrs["parameters"]) == written.parameters["flow"]
        assert file["flow"].attrs["parameters_sha256"].decode() == digest(written.parameters["flow"])
        assert json.loads(file["flow"].attrs["software"]) == {"av": "18.1.0"}


def test_equal_features_give_equal_files(tmp_path: Path) -> None:
    one, other = FeatureStore(tmp_path / "one"), FeatureStore(tmp_path / "other")
    one.write(stored())
    other.write(stored())
    assert one.path("clip").read_bytes() == other.path("clip").read_bytes()


def test_damage_gives_a_store_error_and_never_other_features(tmp_path: Path) -> None:
    store, written = FeatureStore(tmp_path), stored()
    store.write(written)
    path, random = store.path("clip"), np.random.default_rng(0)
    whole = path.read_bytes()
    noticed = 0
    for position in random.integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            back = store.read("clip")
        except StoreError:
            noticed += 1
        else:
            assert same(back, written), f"damage of byte {position} changed the features without an error"
    assert noticed > 150
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="extract again"):
            store.read("clip")


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    with pytest.raises(StoreError, match="is missing: run bmlpipe extract"):
        store.read("clip")
    store.write(stored(flow=False))
    with pytest.raises(StoreError, match="holds frames, spectrogram but not flow"):
        store.read("clip", ["frames", "flow"])
    with h5py.File(store.path("clip"), "r+") as file:
        file.attrs["version"] = 99
    with pytest.raises(StoreError, match="version 99"):
        store.read("clip")


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    """A limit of the file size stands in for a full disk: writing fails in the middle of a file."""
    store, written = FeatureStore(tmp_path), stored()
    store.write(written)
    program = """
import resource, signal, sys
from pathlib import Path
from tests_store import stored
from bmlpipe.pipeline.store.errors import StoreWriteError
from bmlpipe.pipeline.store.feature_file import FeatureStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    FeatureStore(Path(sys.argv[1])).write(stored())
except StoreWriteError as error:
    print(error)
    sys.exit(7)
"""
    helper = tmp_path / "path"
    helper.mkdir()
    shutil.copy(__file__, helper / "tests_store.py")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(helper)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "cannot be written" in done.stdout
    assert "run the same command again" in done.stdout
    assert not list(tmp_path.rglob("*.writing"))
    assert same(store.read("clip"), written)


def test_a_folder_that_cannot_be_created_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "clips").write_text("a file where the folder should be")
    with pytest.raises(StoreWriteError, match="cannot be written"):
        FeatureStore(tmp_path).write(stored())


def test_only_temporary_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.write(stored())
    leftover = store.path("clip").with_name("clip.h5.0123abcd.writing")
    leftover.write_bytes(b"half")
    store.remove_leftovers()
    assert not leftover.exists()
    assert store.read("clip").id == "clip"


def test_sources_are_compared_by_content(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    known = SourceFile.of(path)
    assert known.sha256 == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # sha256sum's
    assert known.same_content(path)
    os.utime(path, ns=(0, 0))  # another time, so the hash decides
    assert known.same_content(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))
    assert not known.same_content(path)
    path.write_bytes(b"three")
    assert not known.same_content(path)
    # Another file of equal size and time, as archives without times contain them.
    other = tmp_path / "b.mp4"
    other.write_bytes(b"two")
    os.utime(other, ns=(known.mtime_ns, known.mtime_ns))
    assert not known.same_content(other)
    with pytest.raises(OSError, match="gone"):
        known.same_content(tmp_path / "gone")
