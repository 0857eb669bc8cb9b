"""What the process that gives out the work needs for a manifest of a million rows, next to one of ten thousand.

Each size in a process of its own: a manifest of VGGSound's form, of which some clips have a (tiny, undecodable) file
and the others none; plan it, run it to its ledger, and plan it again as a second run does. Memory is the growth of the
resident set over what importing costs, at its peak.

Ratio `million_vs_ten_thousand_bytes` and `…_seconds`: a row's share of the larger manifest ÷ of the smaller one.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bmlpipe.manifests.schema import Clip, Manifest
from bmlpipe.pipeline.extract import claimed, make_plan, run
from bmlpipe.pipeline.frames import FrameOptions
from bmlpipe.pipeline.work import Recipe

SMALL, LARGE, PRESENT = 10_000, 1_000_000, 200


def peak() -> int:
    """Bytes of the resident set at its largest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(rows: int) -> dict[str, float]:
    """Plan, run, plan again, in this process."""
    recipe = Recipe(10, FrameOptions())
    with tempfile.TemporaryDirectory() as name:
        videos, out = Path(name) / "videos", Path(name) / "out"
        videos.mkdir()
        for number in range(PRESENT):
            (videos / f"clip{number:07d}_000030.mp4").write_bytes(b"x")
        before, begun = peak(), time.perf_counter()
        clips = [
            Clip(f"clip{number:07d}_000030", "train", f"class {number % 309}", start=0.0, duration=10.0)
            for number in range(rows)
        ]
        manifest = Manifest("vggsound", tuple(sorted({clip.label for clip in clips})), clips)
        for _ in range(2):
            with claimed(out):
                counts = run(make_plan(manifest, videos, out, recipe), workers=0)
            if counts != {"absent": rows - PRESENT, "failed": PRESENT}:
                raise RuntimeError(f"unexpected ledger: {counts}")
        return {"bytes": (peak() - before) / rows, "seconds": (time.perf_counter() - begun) / 2 / rows}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rows", type=int, help="measure this size here, and print JSON")
    options = parser.parse_args()
    if options.rows:
        print(json.dumps(measure(options.rows)))
        return
    found = {}
    for rows in (SMALL, LARGE):
        command = [sys.executable, __file__, "--rows", str(rows)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[rows] = json.loads(done.stdout)
        one = found[rows]
        print(f"{rows:8} rows: {one['bytes']:6.0f} bytes at the peak and {1e6 * one['seconds']:5.1f} µs a row")
    ratios = {f"million_vs_ten_thousand_{what}": found[LARGE][what] / found[SMALL][what] for what in found[SMALL]}
    for ratio, value in ratios.items():
        print(f"{ratio:34} {value:5.2f}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"rows": {str(rows): one for rows, one in found.items()}, "ratios": ratios}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
