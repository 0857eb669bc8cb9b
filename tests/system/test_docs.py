"""The documentation: links, names of modules and files, and the build of its site."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "reference").glob("*.md")])


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(
        r"^#+ +(.*?) *$", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_relative_link_has_a_target() -> None:
    offenders, count = [], 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", target):
                continue
            count += 1
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            if not path.exists():
                offenders.append(f"{page.relative_to(ROOT)}: {target} does not exist")
            elif anchor and path.suffix == ".md" and anchor not in anchors(path):
                offenders.append(f"{page.relative_to(ROOT)}: {target} has no such heading")
    assert count > 50
    assert not offenders, "\n".join(offenders)


def test_modules_and_files_named_in_the_documentation_exist() -> None:
    offenders = []
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        text = page.read_text(encoding="utf-8")
        paths = re.findall(r"\b(?:manifests|shards|pipeline|train|benchmarks|tests|docker)/[\w/.-]*\w\.\w+\b", text)
        modules = re.findall(r"\bbmlpipe(?:\.\w+)+", text)
        wrong = [name for name in paths if not (ROOT / name).exists()]
        wrong += [name for name in modules if not resolves(name)]
        offenders += [f"{page.relative_to(ROOT)}: {name}" for name in dict.fromkeys(wrong)]
    assert not offenders, "\n".join(offenders)


def resolves(name: str) -> bool:
    """Return whether a dotted name is a module, a name in a module or class, or a group of entry points."""
    if name in {f"bmlpipe.{group}" for group in ("encoders", "fusions", "intermediate_fusions", "modulations")}:
        return True
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_lists_all_public_names(tmp_path: Path) -> None:
    if importlib.util.find_spec("zensical") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("zensical and mkdocstrings are not installed: pip install '.[docs]'")
    docs = tmp_path / "docs"
    docs.mkdir()
    for path in (ROOT / "docs").rglob("*"):
        if path.is_file() and not {"_site", ".cache"} & set(path.parts):
            copy = docs / path.relative_to(ROOT / "docs")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (tmp_path / ".typing" / "bmlpipe").mkdir(parents=True)
    for package in ("manifests", "shards", "pipeline", "train"):
        (tmp_path / ".typing" / "bmlpipe" / package).symlink_to(ROOT / package)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "mkdocs.yml"],
        cwd=docs,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    undocumented = []
    for package in ("manifests", "shards", "pipeline", "train", "train.modulation"):
        page = docs / "_site" / "reference" / package.rpartition(".")[2] / "index.html"
        text, names = page.read_text(encoding="utf-8"), importlib.import_module(f"bmlpipe.{package}").__all__
        undocumented += [f"{package}.{name}" for name in names if f'id="bmlpipe.{package}.{name}"' not in text]
    assert not undocumented
