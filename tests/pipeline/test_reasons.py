"""Texts of reasons and flags: complete, and the same in the program and in docs/reasons.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from bmlpipe.pipeline.front_ends.quality import MEASURED_IN
from bmlpipe.pipeline.store.reasons import FLAGS, REASONS

ROOT = Path(__file__).resolve().parents[2]


def table(title: str) -> dict[str, list[str]]:
    """Return the table below a heading of docs/reasons.md: code → the other cells of its row."""
    text = (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_documentation_has_the_texts_of_the_program() -> None:
    reasons = {code: (status, cause, remedy) for code, (status, cause, _, remedy) in table("Reasons").items()}
    assert reasons == REASONS
    assert {flag: meaning for flag, (meaning, _) in table("Flags").items()} == FLAGS


def test_every_reason_and_flag_in_the_source_has_a_text() -> None:
    reasons, flags = set(), set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = ast.unparse(node.func)
                if name == "ClipError":
                    reasons.add(node.args[0].value)
                elif name.endswith("flags.add"):
                    flags.add(node.args[0].value)
            for keyword in getattr(node, "keywords", ()):
                if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant):
                    reasons.add(keyword.value.value)
    assert len(reasons | flags) > 20
    assert {"truncated", "timeout"} <= reasons <= REASONS.keys()
    assert {"audio_gap", "still_video"} <= flags
    assert flags == FLAGS.keys()
    assert MEASURED_IN.keys() <= FLAGS.keys()
    retries = {code for reason in REASONS.values() for code in re.findall(r"--retry-failed=(\w+)", reason.remedy)}
    assert retries <= REASONS.keys()
