"""The notation of modulations."""

from __future__ import annotations

from typing import Any

import pytest

from bmlpipe.train.modulation.notation import parse


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
def test_what_is_written_is_read(text: str, terms: list[tuple[str, dict[str, Any]]]) -> None:
    found = parse(text)
    assert found == terms
    assert [[type(value) for value in options.values()] for _, options in found] == [
        [type(value) for value in options.values()] for _, options in terms
    ]


REFUSED = "opm ogm|+opm|opm+|opm(|opm)|opm(q_base)|opm(=1)|opm(q_base=)|opm(a b=1)|opm(a=1,a=2)|opm+opm|opm((a=1))|1opm"


@pytest.mark.parametrize("text", REFUSED.split("|"))
def test_what_cannot_be_read_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="modulation") as refused:
        parse(text)
    assert repr(text) in str(refused.value)
