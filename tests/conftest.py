"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips and official annotations; skips where there is none."""
    named = os.environ.get("BMLPIPE_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "clips" / "manifest.csv").is_file():
        pytest.skip(f"no real clips at {folder}: set BMLPIPE_TEST_DATA to a folder with clips/ and annotations/")
    return folder
