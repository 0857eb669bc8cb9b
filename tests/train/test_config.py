"""Options: one dataclass, a file, flags; unknown options are refused."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from bmlpipe.manifests.places import PlaceError
from bmlpipe.shards.index import read_index
from bmlpipe.train.config.options import GROUPS, ConfigError, TrainConfig
from bmlpipe.train.config.parsing import parse, read_file
from bmlpipe.train.config.registries import ENCODERS, FUSIONS, INTERMEDIATE_FUSIONS
from bmlpipe.train.modulation import MODULATIONS, PRESETS
from bmlpipe.train.run import main

BASE = {"shards": "s", "out": "o", "dataset": "folder"}


def test_the_defaults_match_the_paper() -> None:
    config = parse(BASE, "test").resolved()
    assert (config.lr, config.momentum, config.batch_size) == (1e-3, 0.9, 32)
    assert (config.modulation, config.discrepancy, config.preset) == ("none", "ratio", "paper")
    assert config.resolved_modalities == ("audio", "visual")
    assert (config.frames, config.weights, config.image_size) == (3, "none", 224)


@pytest.mark.parametrize(
    ("dataset", "modalities", "frames", "weights"),
    [("cremad", ("audio", "visual"), 1, "none"), ("ucf101", ("visual", "flow"), 3, "imagenet")],
)
def test_the_setting_of_the_data_set_is_filled_in(
    dataset: str, modalities: tuple[str, ...], frames: int, weights: str
) -> None:
    config = parse({**BASE, "dataset": dataset}, "test").resolved()
    assert (config.resolved_modalities, config.frames, config.weights) == (modalities, frames, weights)


def test_the_paper_preset_is_the_defaults() -> None:
    options = PRESETS["paper"].options
    assert {name: getattr(TrainConfig(), name) for name in options} == options


def test_a_preset_fills_in_what_is_not_given() -> None:
    config = parse({**BASE, "preset": "tpami-release", "lr": 0.1, "modulation": "opm(p_exe=1)+ogm"}, "test").resolved()
    assert (config.optimizer, config.lr, config.weight_decay, config.lr_step, config.gamma) == (
        "adamw",
        0.1,
        0.01,
        40,
        None,
    )
    opm, ogm = config.make_modulation().rules
    assert (opm.p_exe, opm.unit, opm.rescale, opm.epochs) == (1, "batch", True, (6, None))
    assert (ogm.form, ogm.parameters, ogm.noise) == ("cvpr", "convolutions", "off")
    summed = parse({**BASE, "preset": "cvpr2022-release", "fusion": "sum"}, "test").resolved()
    assert summed.gamma == (0.5, 0.5)
    assert parse(summed.as_dict(), "again").resolved() == summed


def test_behind_an_intermediate_fusion_scores_take_the_whole_bias() -> None:
    """Zero-out of one linear layer is its split with γ = 1."""
    assert parse({**BASE, "intermediate": "mmtm"}, "test").resolved().gamma == (1, 1)
    assert parse({**BASE, "intermediate": "mmtm", "fusion": "film"}, "test").resolved().gamma is None
    assert parse({**BASE, "intermediate": "mmtm", "gamma": "0.5,0.5"}, "test").resolved().gamma == (0.5, 0.5)


def test_given_values_win_over_the_setting() -> None:
    config = parse({**BASE, "dataset": "ucf101", "frames": 5, "modalities": "visual"}, "test").resolved()
    assert (config.frames, config.resolved_modalities) == (5, ("visual",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epocs": 3}, "unknown option 'epocs'; did you mean 'epochs'"),
        ({"lr": "fast"}, "lr is 'fast': expected float"),
        ({"epochs": 2.5}, "epochs is 2.5: expected int"),
        ({"epochs": True}, "epochs is True"),
        ({"resume": "yes"}, "resume is 'yes': expected bool"),
        ({"modalities": 3}, "expected names"),
    ],
)
def test_values_of_the_wrong_type_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({**BASE, **values}, "recipe.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shard_weights": "1,2"}, "one number above 0 for each of s"),
        ({"shard_weights": "0"}, "one number above 0"),
        ({"modulation": "opmm"}, "unknown modulation 'opmm'"),
        ({"modulation": "opm(q=1)"}, "opm has no option 'q'"),
        ({"modulation": "ogm(noise=loud)"}, "noise must be one of all, damped, off"),
        ({"discrepancy": "quotient"}, "must be one of ratio, difference"),
        ({"fusion": "mix"}, "must be one of concat, sum"),
        ({"gamma": "1,0,0"}, "one number for each of audio, visual"),
        ({"gamma": "1,0", "fusion": "film"}, "concat with one classifier layer"),
        ({"gamma": "1,0", "classifier_layers": 2}, "concat with one classifier layer"),
        ({"preset": "mine"}, "must be one of paper, tpami-release"),
        ({"preset": "tpami-release", "dataset": "nowhere"}, "must be one of vggsound"),
        ({"accumulate": 0}, "at least 1"),
        ({"modalities": "audio,smell"}, "smell is unknown"),
        ({"modalities": "audio,audio"}, "only once"),
        ({"modalities": "audio", "modulation": "opm"}, "nothing to balance"),
        ({"encoder": "cnn4", "weights": "imagenet"}, "only resnet18"),
        ({"batch_size": 0}, "at least 1"),
        ({"lr": 0}, "above 0"),
    ],
)
def test_impossible_values_are_refused_with_their_remedy(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({**BASE, **values}, "test").resolved()


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(
        "dataset: folder\nshards: here\nout: there\nlr: 1e-2\nmodalities: [audio, visual]\n", encoding="utf-8"
    )
    config = parse({**read_file(file), "lr": 0.5}, str(file)).resolved()
    assert (config.lr, config.shards, config.resolved_modalities) == (0.5, ("here",), ("audio", "visual"))
    assert parse(config.as_dict(), "again").resolved() == config


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_file(file)


def test_every_option_is_a_flag_under_a_heading_with_a_help_text() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for item in dataclasses.fields(TrainConfig):
        assert f"--{item.name.replace('_', '-')}" in result.output
        assert item.metadata["help"].endswith(".")
    headings = re.findall(r"^(\S.*):$", result.output, re.MULTILINE)
    assert headings == [*GROUPS, "General options", "Examples"]


def test_help_lists_the_names_of_the_registries() -> None:
    text = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    for registry in (ENCODERS, FUSIONS, INTERMEDIATE_FUSIONS, MODULATIONS):
        assert ", ".join(registry) in text


def test_a_wrong_flag_ends_with_usage_and_status_2() -> None:
    result = CliRunner().invoke(main, ["--shards", "s", "--out", "o", "--batch-size", "0"])
    assert result.exit_code == 2
    assert "batch_size is 0" in result.output


# ----- places -----


def test_the_only_shards_and_their_data_set_are_the_default(toy_shards: Path, here: Path) -> None:
    shutil.copytree(toy_shards, here / "shards" / "toys")
    name = read_index(toy_shards).dataset
    config = parse({"modulation": "opm(p_exe=0.7)", "seed": 3}, "test").resolved()
    assert (config.shards, config.dataset) == (("shards/toys",), name)
    assert config.out == f"runs/{name}/opm-p_exe=0.7-seed3"
    with pytest.raises(ConfigError, match="no folder shards/cremad, only shards/toys"):
        parse({"dataset": "cremad"}, "test").resolved()
    shutil.copytree(toy_shards, here / "shards" / "others")
    with pytest.raises(PlaceError, match=r"shards/others, shards/toys.*--shards"):
        parse({}, "test").resolved()
    given = parse({"shards": "shards/toys", "dataset": "cremad", "out": "there"}, "test").resolved()
    assert (given.dataset, given.frames, given.out) == ("cremad", 1, "there")


def test_missing_shards_are_an_error_that_names_the_next_command(here: Path) -> None:
    with pytest.raises(PlaceError, match="bmlpipe shard"):
        parse({}, "test").resolved()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
