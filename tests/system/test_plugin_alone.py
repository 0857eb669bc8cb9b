"""The modulation library works in an environment with PyTorch and NumPy only, after `pip install --no-deps .`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Dependencies of bmlpipe that the modulation library does not need.
OTHERS = (
    "av click cv2 dask distributed h5py librosa matplotlib orjson rich scipy simplejpeg sklearn soundfile "
    "webdataset yaml"
)

SETUP = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

torch.manual_seed(0)
epochs, classes = 2, 3
encoders = nn.ModuleDict({"audio": nn.Linear(5, 4), "visual": nn.Linear(7, 4)})

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, classes)

    def forward(self, features):
        return self.linear(torch.cat([features["audio"], features["visual"]], dim=1))

head = Head()
optimizer = torch.optim.SGD([*encoders.parameters(), *head.parameters()], lr=0.1)
loader = [
    ({"audio": torch.randn(6, 5), "visual": torch.randn(6, 7)}, torch.randint(classes, (6,)), torch.arange(6) + 6 * i)
    for i in range(4)
]
"""

CHECKS = """
import sys
from importlib.util import find_spec

from bmlpipe.train.modulation import MODULATIONS, PRESETS, make_modulation, optimizer_advice, row_advice

assert balance.index == 8, balance.index
row = {name: float(value) for name, value in balance.telemetry().items()}
assert 0 < row["rho/audio"] and row["grad_norm/visual"] > 0, row
assert row_advice(row, balance) == [] and optimizer_advice(balance, optimizer) is None
for preset in PRESETS:
    for name in MODULATIONS:
        make_modulation(name, ("audio", "visual"), preset=preset)
others = OTHERS.split()
assert not [name for name in others if name in sys.modules or find_spec(name)]
print(sorted({name.split(".")[1] for name in sys.modules if name.startswith("bmlpipe.")}))
print(__import__("bmlpipe.train.modulation.modulation", fromlist=["x"]).__file__)
"""


def closure(*names: str) -> set[str]:
    """Return these distributions and all that they require, without extras, if they are installed."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        try:
            required = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # required on another platform
        if name not in found:
            found.add(name)
            waiting += [re.match(r"[\w.-]+", line).group() for line in required if "extra ==" not in line]  # type: ignore[union-attr]
    return found


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The interpreter of a virtual environment with PyTorch, NumPy and their requirements only."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    scheme = sysconfig.get_paths("venv" if "venv" in sysconfig.get_scheme_names() else None, vars={"base": str(folder)})
    packages = Path(scheme["purelib"])
    for name in closure("torch", "numpy", "setuptools"):
        here = distribution(name)
        for top in {file.parts[0] for file in here.files or []} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(here.locate_file(top))).resolve())
    return Path(scheme["scripts"]) / "python"


@pytest.mark.slow
def test_the_readmes_loop_runs_with_torch_and_numpy_alone(environment: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("manifests", "shards", "pipeline", "train"):  # a copy: setuptools leaves folders behind
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet", "--no-deps", "--no-index"]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run([*run, "--no-build-isolation", str(source)], check=True, cwd=tmp_path, env=clean)

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (loop,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "Modulation(" in block)
    program = f"OTHERS = {OTHERS!r}\n{SETUP}\n{loop}\n{CHECKS}"
    done = subprocess.run(
        [environment, "-c", program], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rooms, file = done.stdout.splitlines()
    assert rooms == "['manifests', 'train']"
    assert Path(file).is_relative_to(tmp_path / "environment")
