"""Readers of the official annotation formats, tested with small files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bmlpipe.manifests.datasets import DATASETS, read_manifest
from bmlpipe.manifests.readers import kinetics_sounds
from bmlpipe.manifests.readers.kinetics_sounds import parse_key
from bmlpipe.manifests.schema import ManifestError
from bmlpipe.manifests.splits import ValidationSplit

VGGSOUND = '-Qowmc0P9ic,34,"playing bass drum",test\n_a_b_c-d_12,0,"bird chirping, tweeting",train\n'


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def ids(manifest) -> list[tuple[str, str, str]]:
    return [(clip.id, clip.split, clip.label) for clip in manifest.clips]


# --- text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_give_the_same_clips(tmp_path: Path, encoding: str, line_end: str) -> None:
    path = write(tmp_path / "vggsound.csv", VGGSOUND.replace("\n", line_end), encoding)
    assert ids(read_manifest("vggsound", path)) == [
        ("-Qowmc0P9ic_000034", "test", "playing bass drum"),
        ("_a_b_c-d_12_000000", "train", "bird chirping, tweeting"),
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"aaaaaaaaaaa,1,caf\xe9,train\n", r"line 1: byte 0xe9 is not utf-8"),
        (b"aaaaaaaaaaa,1,x,train\nb\0,1,x,train\n", r"line 2: .*NUL"),
        (b'aaaaaaaaaaa,1,x,train\nbbbbbbbbbbb,1,"x,train\nccccccccccc,1,x,train\n', r"line 2: .*quotes"),
        (b"aaaaaaaaaaa,1,bird chirping, tweeting,train\n", r"line 1: the row has 5 columns"),
        (b"aaaaaaaaaaa,1,x,train\n#NAME?,1,x,train\n", r"line 2: '#NAME\?','1' must be a YouTube id"),
        (b"aaaaaaaaaaa,1,x,train\nbbbbbbbbbbb,1.5,x,train\n", r"line 2: .*whole seconds"),
        (b"aaaaaaaaaaa,1,x,training\n", r"line 1: split is 'training'"),
        (b"aaaaaaaaaaa,1,,train\n", r"line 1: the label is empty"),
        (b"\n\n", r"vggsound.csv contains no clips"),
    ],
)
def test_a_faulty_vggsound_file_is_refused_with_the_line(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "vggsound.csv"
    path.write_bytes(raw)
    with pytest.raises(ManifestError, match=message):
        read_manifest("vggsound", path)


# --- VGGSound


def test_vggsound_classes_are_the_sorted_labels_of_all_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "any.csv", VGGSOUND + "zzzzzzzzzzz,5,airplane,test\n")
    assert read_manifest("vggsound", path).classes == ("airplane", "bird chirping, tweeting", "playing bass drum")


def test_a_vggsound_header_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "vggsound.csv", "# YouTube ID,start seconds,label,train/test split\n" + VGGSOUND)
    assert len(read_manifest("vggsound", path).clips) == 2


def test_a_repeated_vggsound_row_is_dropped_and_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "vggsound.csv", VGGSOUND + VGGSOUND)
    manifest = read_manifest("vggsound", path)
    assert len(manifest.clips) == 2
    assert "2 repeated rows dropped, the first at vggsound.csv, line 3" in manifest.notes


def test_contradictory_vggsound_rows_are_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "vggsound.csv", VGGSOUND + "-Qowmc0P9ic,34,yodelling,test\n")
    with pytest.raises(ManifestError, match=r"line 3: .*contradicts vggsound.csv, line 1: label 'yodelling'"):
        read_manifest("vggsound", path)


@pytest.mark.parametrize("given", [".", "train.csv", "test.csv"])
def test_one_vggsound_list_per_split_gives_the_same_clips(tmp_path: Path, given: str) -> None:
    write(tmp_path / "train.csv", '_a_b_c-d_12_000000.mp4,"bird chirping, tweeting"\r\n')
    write(tmp_path / "test.csv", "-Qowmc0P9ic_000034.mp4,playing bass drum\r\n")
    table = read_manifest("vggsound", write(tmp_path / "vgg" / "vggsound.csv", VGGSOUND))
    manifest = read_manifest("vggsound", tmp_path / given)
    assert set(manifest.clips) == set(table.clips)
    assert manifest.classes == table.classes


def test_a_vggsound_list_with_two_columns_must_be_named_after_its_split(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "-Qowmc0P9ic_000034.mp4,playing bass drum\n")
    with pytest.raises(ManifestError, match=r"list.csv .*one of train.csv, val.csv, test.csv"):
        read_manifest("vggsound", path)


def test_a_vggsound_clip_in_train_and_test_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.csv", "-Qowmc0P9ic_000034.mp4,playing bass drum\n")
    with pytest.raises(ManifestError, match=r"test.csv, line 1: .*train.csv, line 1: split 'test' and 'train'"):
        read_manifest("vggsound", tmp_path)


def test_vggsound_clips_of_one_video_stay_together(tmp_path: Path) -> None:
    rows = [f"video{video:06d},{start},x,train" for video in range(60) for start in (0, 10, 20)]
    manifest = read_manifest("vggsound", write(tmp_path / "vggsound.csv", "\n".join(rows)))
    parts: dict[str, set[str]] = {}
    for clip in manifest.clips:
        parts.setdefault(clip.id[:11], set()).add(clip.split)
    assert all(len(splits) == 1 for splits in parts.values())
    assert manifest.counts() == {"train": 162, "val": 18, "test": 0}
    assert any("18 of 180 training clips become the validation split" in note for note in manifest.notes)


# --- Kinetics-Sounds


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("--4-0ihtnBU_000058_000068", ("--4-0ihtnBU", 58, 68)),
        ("-C52lVsuJvg_33", ("-C52lVsuJvg", 33, None)),
        ("abcd_123456_000005", ("abcd_123456", 5, None)),  # an id that ends in digits
        ("a_1_000001_000001_000011", ("a_1_000001", 1, 11)),
        ("no-start", None),
        ("../../etc_1", None),
    ],
)
def test_kinetics_keys_are_parsed_from_the_right(key: str, parts: tuple[str, int, int | None] | None) -> None:
    assert parse_key(key) == parts


def kinetics_json(tmp_path: Path, database: object, labels: object = kinetics_sounds.CLASSES) -> Path:
    return write(tmp_path / "ks.json", json.dumps({"labels": labels, "database": database}))


def test_both_kinetics_formats_give_the_same_classes(tmp_path: Path) -> None:
    document = kinetics_json(
        tmp_path / "json",
        {
            "--4-0ihtnBU_000058_000068": {"subset": "training", "label": "dribbling_basketball"},
            "-74csnCOiUs_0": {"subset": "testing", "label": "playing_keyboard"},
            "-C52lVsuJvg_33": {"subset": "validation", "label": "bowling"},
        },
    )
    write(tmp_path / "my_train.txt", "--4-0ihtnBU_000058_000068,10,4\r\n")
    write(tmp_path / "my_test.txt", "-74csnCOiUs_0,10,14\r\n")
    from_json = read_manifest("kinetics-sounds", document)
    from_text = read_manifest("kinetics-sounds", tmp_path / "my_train.txt")
    assert from_json.classes == from_text.classes == kinetics_sounds.CLASSES
    assert from_json.counts() == {"train": 1, "val": 1, "test": 1}
    assert from_text.clips == from_json.clips[:2]
    assert read_manifest("kinetics-sounds", tmp_path).clips == from_text.clips
    assert read_manifest("kinetics-sounds", tmp_path / "json").clips == from_json.clips


def test_the_order_of_labels_in_kinetics_json_is_kept(tmp_path: Path) -> None:
    path = kinetics_json(tmp_path, {"aaaaaaaaaaa_1": {"subset": "testing", "label": "z"}}, ["z", "a"])
    assert read_manifest("kinetics-sounds", path).classes == ("z", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected"),
        ('{"labels": ["a"], "database": ', "not a JSON file .*line 1"),
        ("[" * 100_000, "not a JSON file"),
        ('{"labels": ["a", "a"], "database": {}}', "different class names"),
        ('{"labels": ["a", 1], "database": {}}', "different class names"),
        ('{"labels": ["a"], "database": {"x": {"subset": "testing", "label": "a"}}}', "key 'x' must be"),
        ('{"labels": ["a"], "database": {"x_1": {"subset": ["testing"], "label": "a"}}}', "subset of 'x_1'"),
        ('{"labels": ["a"], "database": {"x_1": {"subset": "testing", "label": "b"}}}', "label of 'x_1' is 'b'"),
        ('{"labels": ["a"], "database": {"x_1": null}}', "subset of 'x_1' is None"),
        ('{"labels": ["a"], "database": {"x_1": {}, "x_1": {"label": "a"}}}', "key 'x_1' occurs twice"),
    ],
)
def test_a_faulty_kinetics_json_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_manifest("kinetics-sounds", write(tmp_path / "ks.json", text))


@pytest.mark.parametrize("line", ["-74csnCOiUs_0,10,31", "-74csnCOiUs_0,10", "-74csnCOiUs,10,3", "-74csnCOiUs_0,10,-1"])
def test_a_faulty_kinetics_list_is_refused_with_the_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(ManifestError, match=r"my_train.txt, line 2: "):
        read_manifest("kinetics-sounds", write(tmp_path / "my_train.txt", f"-94aaaaaaaa_0,10,3\n{line}\n"))


# --- CREMA-D


def cremad(tmp_path: Path) -> Path:
    emotions = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
    rows = [f"{actor}_IEO_{emotion}_XX,{emotion}" for actor in range(1001, 1021) for emotion in emotions]
    write(tmp_path / "train.csv", "\r\n".join(rows), "utf-8-sig")
    write(tmp_path / "test.csv", "1041_ITH_SAD_X,SAD\r\n")
    return tmp_path


def test_cremad_classes_have_the_official_order_and_actors_are_groups(tmp_path: Path) -> None:
    manifest = read_manifest("cremad", cremad(tmp_path))
    assert manifest.classes == ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
    first = manifest.clips[0]
    assert (first.id, first.label, first.group) == ("1001_IEO_NEU_XX", "NEU", "1001")
    assert manifest.counts() == {"train": 108, "val": 12, "test": 1}
    assert manifest.clips == read_manifest("cremad", tmp_path / "train.csv").clips


def test_cremad_validation_by_actor_is_an_option(tmp_path: Path) -> None:
    by_actor = read_manifest("cremad", cremad(tmp_path), validation=ValidationSplit(by_group=True))
    val = {clip.group for clip in by_actor.clips if clip.split == "val"}
    assert len(val) == 2
    assert not val & {clip.group for clip in by_actor.clips if clip.split == "train"}
    mixed = read_manifest("cremad", tmp_path)
    val = {clip.group for clip in mixed.clips if clip.split == "val"}
    assert val & {clip.group for clip in mixed.clips if clip.split == "train"}


@pytest.mark.parametrize("line", ["1001_IEO_NEU_XX,HAPPY", "1001_IEO_NEU_XX", "1001,NEU", "../1001_IEO_NEU_XX,NEU"])
def test_a_faulty_cremad_list_is_refused_with_the_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(ManifestError, match=r"train.csv, line 1: "):
        read_manifest("cremad", write(tmp_path / "train.csv", line))


# --- UCF-101


def ucf101(tmp_path: Path, train: str = "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n") -> Path:
    write(tmp_path / "classInd.txt", "1 Archery\r\n2 HandstandPushups\r\n")
    groups = [f"Archery/v_Archery_g{group:02d}_c{clip:02d}.avi 1" for group in range(8, 26) for clip in range(1, 6)]
    write(tmp_path / "trainlist02.txt", train + "\r\n".join(groups))
    write(tmp_path / "testlist02.txt", "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n")
    return tmp_path


def test_the_class_of_a_ucf101_clip_comes_from_its_folder(tmp_path: Path) -> None:
    manifest = read_manifest("ucf101", ucf101(tmp_path), fold=2)
    assert manifest.classes == ("Archery", "HandstandPushups")
    first, last = manifest.clips[0], manifest.clips[-1]
    assert (first.id, first.label, first.group) == (
        "v_HandStandPushups_g08_c01",
        "HandstandPushups",
        "HandstandPushups_g08",
    )
    assert (last.split, last.label) == ("test", "HandstandPushups")
    assert last.path == "HandstandPushups/v_HandStandPushups_g01_c01.avi"


def test_ucf101_three_reads_the_lists_of_ucf101(tmp_path: Path) -> None:
    folder = ucf101(tmp_path)
    assert read_manifest("ucf101-three", folder, fold=2) == read_manifest("ucf101", folder, fold=2)
    with pytest.raises(ManifestError, match="ucf101-three, give the folder of classInd"):
        read_manifest("ucf101-three", tmp_path / "gone")


def test_ucf101_validation_takes_whole_groups(tmp_path: Path) -> None:
    clips = read_manifest("ucf101", ucf101(tmp_path), fold=2).clips
    val = {clip.group for clip in clips if clip.split == "val"}
    assert len(val) == 2  # 10 of 90 clips, close to the share of 9
    assert not val & {clip.group for clip in clips if clip.split == "train"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Archery/v_Archery_g08_c01.avi 2", "Archery is class 1 in classInd.txt, not 2"),
        ("Fishing/v_Fishing_g08_c01.avi 1", "folder 'Fishing' is not a class"),
        ("../v_Archery_g08_c01.avi 1", "folder '..' is not a class"),
        ("Archery/clip.avi 1", "must be <class>/v_<class>"),
    ],
)
def test_a_faulty_ucf101_list_is_refused_with_the_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ManifestError, match=rf"trainlist02.txt, line 1: .*{message}"):
        read_manifest("ucf101", ucf101(tmp_path, line + "\n"), fold=2)


def test_incomplete_ucf101_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"trainlist01.txt cannot be read"):
        read_manifest("ucf101", ucf101(tmp_path), fold=1)
    with pytest.raises(ManifestError, match="fold is 4"):
        read_manifest("ucf101", tmp_path, fold=4)
    write(tmp_path / "classInd.txt", "1 Archery\n3 HandstandPushups\n")
    with pytest.raises(ManifestError, match=r"classInd.txt, line 2: .*must be '2 "):
        read_manifest("ucf101", tmp_path, fold=2)


# --- all datasets


def test_unusable_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="'imagenet': must be one of vggsound, kinetics-sounds"):
        read_manifest("imagenet", tmp_path)
    with pytest.raises(ManifestError, match=r"vggsound needs annotations: give vggsound\.csv"):
        read_manifest("vggsound", None)
    with pytest.raises(ManifestError, match=r"nothing.csv, which does not exist"):
        read_manifest("cremad", tmp_path / "nothing.csv")
    path = write(tmp_path / "my_train.txt", "-94aaaaaaaa_0,10,3\n")
    with pytest.raises(ManifestError, match="have no groups"):
        read_manifest("kinetics-sounds", path, validation=ValidationSplit(by_group=True))


def test_an_official_validation_split_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "vggsound.csv", VGGSOUND + "aaaaaaaaaaa,1,x,val\nbbbbbbbbbbb,1,x,train\n")
    manifest = read_manifest("vggsound", path)
    assert [clip.id for clip in manifest.clips if clip.split == "val"] == ["aaaaaaaaaaa_000001"]
    assert not any("moved to one" in note for note in manifest.notes)


def test_datasets_state_the_papers_settings() -> None:
    assert list(DATASETS) == ["vggsound", "kinetics-sounds", "cremad", "ucf101", "ucf101-three", "folder"]
    assert {name: dataset.seconds for name, dataset in DATASETS.items()} == {
        "vggsound": 10,
        "kinetics-sounds": 10,
        "cremad": 3,
        "ucf101": None,
        "ucf101-three": None,
        "folder": 10,
    }
    assert [dataset.train_frames for dataset in DATASETS.values()] == [3, 3, 1, 3, 3, 3]
    assert [name for name, dataset in DATASETS.items() if dataset.pretrained] == ["ucf101", "ucf101-three"]
    assert DATASETS["ucf101"].modalities == ("visual", "flow")
    assert DATASETS["ucf101-three"].modalities == ("visual", "flow", "rgb_diff")
    assert DATASETS["ucf101-three"].kinds == ("frames", "flow", "rgb_diff")


def test_every_official_annotation_states_its_origin() -> None:
    assert [name for name, dataset in DATASETS.items() if not dataset.origin.startswith("https://")] == ["folder"]


def test_importing_the_datasets_loads_no_heavy_package() -> None:
    heavy = {"numpy", "pandas", "sklearn", "torch"}
    code = f"import sys, bmlpipe.manifests.datasets; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
