"""A worker process keeps the memory that one clip frees, and reuses it for the next clip."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.worker import extract_batch

if sys.argv[2] == "worker":
    extract_batch([], ExtractionRequest((FrameOptions(),)), Path(sys.argv[1]), Path(sys.argv[1]))

def clip():
    parts = [np.zeros(1 << 20, np.uint8) for _ in range(32)]
    for part in parts:
        part[::4096] = 1

clip()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    clip()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(folder: Path, process: str) -> int:
    """Count the page faults of eight allocations of 32 MiB, after a first such allocation."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}  # as Dask sets it for its workers
    command = [sys.executable, "-c", PROGRAM, str(folder), process]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the allocator of glibc can be set to keep freed memory"
)
def test_a_worker_reuses_the_memory_of_one_clip_for_the_next(tmp_path: Path) -> None:
    pages = 8 * (32 << 20) // 4096
    assert page_faults(tmp_path, "worker") < pages / 100
    assert page_faults(tmp_path, "other") > pages / 2  # without the setting, the system takes the memory back
