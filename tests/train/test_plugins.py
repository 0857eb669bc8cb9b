"""Entry points of other packages, with real distributions made by the tests."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bmlpipe.manifests.common.plugins import PluginError, Registry
from bmlpipe.train.models.encoders.registry import make_encoder
from bmlpipe.train.models.fusion import make_fusion
from bmlpipe.train.modulation import OPM, make_modulation
from bmlpipe.train.modulation.scores import unimodal_logits

GROUP = "bmlpipe.modulations"
NAMES = ("audio", "visual")

MODULE = """
from dataclasses import dataclass
from torch import nn
from bmlpipe.train.modulation import Rule

@dataclass(frozen=True, kw_only=True)
class Quieten(Rule):
    strength: float = 0.5
    alpha: float = 0.1

    def forward(self, features, step):
        return {m: feature * self.strength for m, feature in features.items()}

class Encoder(nn.Linear):
    def __init__(self, modality, channels):
        super().__init__(channels, 4)
        self.feature_dim = 4

class Head(nn.Module):
    def __init__(self, dims, classes):
        super().__init__()
        self.own = nn.Linear(sum(dims.values()), classes)
        self.modalities = tuple(dims)

    def forward(self, features):
        import torch
        return self.own(torch.cat([features[m] for m in self.modalities], dim=1))

not_callable = 5

def no_rule():
    return 5
"""

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lay a distribution with one module and entry points of a group onto the path; returns the module's name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def lay(distribution: str, entries: dict[str, str], *, group: str = GROUP, text: str = MODULE) -> str:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{attribute}" for name, attribute in entries.items()]
        with (info / "entry_points.txt").open("a") as file:
            file.write("\n".join([f"[{group}]", *lines, ""]))
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()
        return module

    return lay


def test_a_modulation_of_another_package(install: Install) -> None:
    module = install("quiet-package", {"quieten": "Quieten"})
    assert make_modulation("opm", NAMES).rules == (OPM(),)
    assert module not in sys.modules  # it was not used
    modulation = make_modulation("opm + quieten(strength=0.25, alpha=0.9)", NAMES)
    assert modulation.rules[0] == OPM()
    assert (modulation.rules[1].strength, modulation.rules[1].alpha) == (0.25, 0.9)
    out = modulation.forward({m: torch.ones(2, 3) for m in NAMES}, {m: torch.ones(2) for m in NAMES}, torch.arange(2))
    assert out["audio"].unique().tolist() == [0.25]
    with pytest.raises(ValueError, match="quieten has no option 'weakness'; it has: alpha, strength"):
        make_modulation("quieten(weakness=1)", NAMES)
    with pytest.raises(ValueError, match=r"known: none, .*ogm, .*quieten"):
        make_modulation("quietn", NAMES)


def test_encoders_and_fusions_of_another_package(install: Install) -> None:
    install("encoding-package", {"their-encoder": "Encoder"}, group="bmlpipe.encoders")
    install("fusing-package", {"their-fusion": "Head"}, group="bmlpipe.fusions")
    assert make_encoder("their-encoder", "audio", channels=3).feature_dim == 4
    head = make_fusion("their-fusion", {"audio": 2, "visual": 3}, 5)
    logits = unimodal_logits(head, {"audio": torch.ones(1, 2), "visual": torch.ones(1, 3)})
    assert {m: tuple(value.shape) for m, value in logits.items()} == {"audio": (1, 5), "visual": (1, 5)}


def test_plugins_are_imported_only_when_they_are_used(install: Install) -> None:
    module = install("lazy-package", {"theirs": "Quieten"})
    table = Registry(GROUP, {"ours": "builtins:dict"})
    assert list(table) == ["ours", "theirs"]
    assert len(table) == 2
    assert "theirs" in table
    assert "unknown" not in table
    assert table["ours"] is dict
    assert module not in sys.modules
    assert table["theirs"].__name__ == "Quieten"
    assert module in sys.modules
    with pytest.raises(KeyError):
        table["unknown"]


def test_clashing_names_are_refused(install: Install) -> None:
    install("first-package", {"mine": "Quieten"})
    assert "mine" in Registry(GROUP, {})
    with pytest.raises(PluginError, match=r"first_package:Quieten of first-package .* itself uses \(builtins:dict\)"):
        list(Registry(GROUP, {"mine": "builtins:dict"}))
    install("second-package", {"mine": "Quieten"})
    with pytest.raises(PluginError, match="both register 'mine'") as refused:
        list(Registry(GROUP, {}))
    for name in ("first", "second"):
        assert f"{name}_package:Quieten of {name}-package" in str(refused.value)


@pytest.mark.parametrize(
    ("entry", "text", "message"),
    [
        ("Missing", MODULE, r"AttributeError: module 'bad_package' has no attribute 'Missing'"),
        ("Quieten", "import a_module_that_is_nowhere", "No module named 'a_module_that_is_nowhere'"),
        ("not_callable", MODULE, "which is not callable: 5"),
        ("no_rule", MODULE, "'bad' makes 5, which is not a bmlpipe.train.modulation.Rule"),
    ],
)
def test_an_error_names_the_package_of_a_broken_plugin(install: Install, entry: str, text: str, message: str) -> None:
    install("bad-package", {"bad": entry}, text=text)
    install("good-package", {"good": "Quieten"})
    assert make_modulation("good", NAMES).rules[0].strength == 0.5  # the other is not loaded
    with pytest.raises(PluginError, match=message) as refused:
        make_modulation("bad", NAMES)
    assert entry == "no_rule" or f"bad_package:{entry} of bad-package" in str(refused.value)
