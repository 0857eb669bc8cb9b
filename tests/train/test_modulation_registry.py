"""The notation of modulations, their names and options, and the presets."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.modulation import MODULATIONS, OGM, OPM, PRESETS, OGMStar, Rule, make_modulation
from bmlpipe.train.modulation.notation import parse

NAMES = ("audio", "visual")


# Notation


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("none", []),
        (" ", []),
        ("opm", [("opm", {})]),
        ("opm + ogm", [("opm", {}), ("ogm", {})]),
        ("ogm-star()", [("ogm-star", {})]),
        (
            "opm( p_exe=0.7,epochs=6: ) + ogm(alpha=1, noise=off, epochs=:50)",
            [("opm", {"p_exe": 0.7, "epochs": (6, None)}), ("ogm", {"alpha": 1, "noise": "off", "epochs": (0, 50)})],
        ),
        ("opm(rescale=True,same_step=false,lam=1e-3)", [("opm", {"rescale": True, "same_step": False, "lam": 1e-3})]),
    ],
)
def test_the_notation_is_parsed(text: str, terms: list[tuple[str, dict[str, Any]]]) -> None:
    found = parse(text)
    assert found == terms
    assert [[type(value) for value in options.values()] for _, options in found] == [
        [type(value) for value in options.values()] for _, options in terms
    ]


REFUSED = "opm ogm|+opm|opm+|opm(|opm)|opm(q_base)|opm(=1)|opm(q_base=)|opm(a b=1)|opm(a=1,a=2)|opm+opm|opm((a=1))|1opm"


@pytest.mark.parametrize("text", REFUSED.split("|"))
def test_invalid_notation_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="modulation") as refused:
        parse(text)
    assert repr(text) in str(refused.value)


# Names and options


def test_names_make_rules() -> None:
    for name, rules in {"none": (), "opm": (OPM(),), "ogm": (OGM(),), "opm+ogm": (OPM(), OGM())}.items():
        modulation = make_modulation(name, NAMES, seed=5, form="difference")
        assert (modulation.rules, modulation.seed, modulation.form) == (rules, 5, "difference")


def test_options_stand_in_brackets() -> None:
    modulation = make_modulation(
        "opm(q_base=0.1, unit=batch, epochs=6:, p_exe=0.7, same_step=true) + ogm(alpha=0.2, epochs=:50, apply=lr)",
        NAMES,
    )
    assert modulation.rules == (
        OPM(q_base=0.1, unit="batch", epochs=(6, None), p_exe=0.7, same_step=True),
        OGM(alpha=0.2, epochs=(0, 50), apply="lr"),
    )
    assert make_modulation("ogm-star(form=constant)", NAMES).rules == (OGMStar(form="constant"),)


def test_ogm_ge_is_the_form_of_2022() -> None:
    (rule,) = make_modulation("ogm-ge(alpha=0.3, noise=damped, epochs=0:50)", NAMES).rules
    assert rule == OGM(form="cvpr", parameters="convolutions", alpha=0.3, noise="damped", epochs=(0, 50))
    with pytest.raises(ValueError, match="ogm-ge has no option 'form'; it has: alpha, apply, epochs, noise"):
        make_modulation("ogm-ge(form=paper)", NAMES)


@pytest.mark.parametrize("name", MODULATIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_name_makes_a_rule_under_every_preset(name: str, preset: str) -> None:
    (rule,) = make_modulation(name, NAMES, preset=preset).rules
    assert isinstance(rule, Rule)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("opm+ogmm", {}, r"'ogmm' in 'opm\+ogmm'; known: none, .*, ogm, ogm-ge, ogm-star, opm$"),
        ("opm(qbase=0.3)", {}, "opm has no option 'qbase'; it has: .*, q_base"),
        ("opm(alpha=0.3)", {}, "opm has no option 'alpha'; it has: epochs, lam"),
        ("ogm(alpha=-1)", {}, "alpha must be"),
        ("opm(same_step=off)", {}, "same_step must be true or false"),
        ("opm(epochs=5)", {}, "epochs must be a pair"),
        ("opm", {"preset": "tpami"}, "unknown preset 'tpami'; known: paper, tpami-release, cvpr2022-release"),
    ],
)
def test_unknown_names_and_options_are_refused(text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_modulation(text, NAMES, **options)
    with pytest.raises(ValueError, match="balances two or more modalities"):
        make_modulation("opm", ["audio"])


def test_names_and_options_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)
    assert {"none", *MODULATIONS} <= set(listed)
    options = text[text.index("## Options") : text.index("**Presets**")]
    for rule in (OPM, OGM, OGMStar):
        for item in dataclasses.fields(rule):
            assert re.search(rf"\b{item.name}=", options), (rule, item.name)


# Presets


def test_the_paper_preset_is_the_default() -> None:
    for text in ("opm+ogm", "ogm-star", "ogm-ge"):
        assert make_modulation(text, NAMES, preset="paper").rules == make_modulation(text, NAMES).rules
    defaults = {item.name: item.default for item in dataclasses.fields(TrainConfig)}
    assert {name: defaults[name] for name in PRESETS["paper"].options} == PRESETS["paper"].options
    assert (OPM().q_base, OPM().lam, OGM().alpha, OGM().noise) == (0.5, 0.5, 0.8, "all")


def test_the_presets_of_the_releases() -> None:
    """The table of differences, row by row."""
    (opm,) = make_modulation("opm", NAMES, preset="tpami-release").rules
    assert opm == OPM(unit="batch", target="input", p_exe=0.7, rescale=True, epochs=(6, None))
    options = PRESETS["tpami-release"].options
    (ogm,) = make_modulation("ogm(alpha=0.3)", NAMES, preset="tpami-release").rules
    assert ogm == OGM(alpha=0.3, form="cvpr", parameters="convolutions", noise="off", epochs=(0, 61))
    assert (options["optimizer"], options["lr"], options["weight_decay"]) == ("adamw", 5e-5, 0.01)
    assert (options["lr_step"], options["lr_gamma"]) == (40, 0.1)
    opm_2022, ogm_2022 = make_modulation("opm+ogm", NAMES, preset="cvpr2022-release").rules
    assert opm_2022 == OPM()
    assert ogm_2022 == OGM(form="cvpr", parameters="convolutions", epochs=(0, 51))
    assert make_modulation("ogm-ge", NAMES, preset="cvpr2022-release").rules == (ogm_2022,)
    # given options override the preset
    (own,) = make_modulation("opm(target=feature, epochs=0:)", NAMES, preset="tpami-release").rules
    assert own == OPM(unit="batch", p_exe=0.7, rescale=True)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("fusion", ["concat", "sum", "film"])
def test_a_preset_holds_options_of_a_run(preset: str, fusion: str) -> None:
    fields = {item.name for item in dataclasses.fields(TrainConfig)}
    assert PRESETS[preset].options.keys() <= fields
    halved = fusion == "sum" and preset != "paper"
    assert PRESETS[preset].gamma(fusion, 3) == ((0.5, 0.5, 0.5) if halved else None)
