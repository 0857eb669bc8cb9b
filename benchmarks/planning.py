"""Memory and CPU time of planning an extraction, for manifests of up to ten million rows.

Each size is measured in its own process. In the case `absent`, 200 clips of a `vggsound.csv` have a (tiny, undecodable)
file and the other clips have none: the annotation is read, planned and extracted to its ledger, then planned and
extracted again, as in a second run. In the case `present`, every clip has such a file: the annotation is read and
planned. Memory is the growth of the peak of the resident set since the libraries were imported: `read` is the peak
while the annotation is read, `plan` the peak of everything. Seconds are CPU time of reading once, and of planning once
(with the extraction, in the case `absent`).

The ratios `million_vs_ten_thousand_bytes` and `…_seconds`, `ten_million_vs_million_bytes` and `…_seconds` compare the
cost per row of the larger manifest with that of the smaller one. Ten million rows take minutes and 4 GB of memory;
`--quick` leaves them out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from _measure import machine

from bmlpipe.manifests.common.locks import exclusive_folder
from bmlpipe.manifests.datasets import read_manifest
from bmlpipe.pipeline.extraction.plan import make_plan
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.run import run_extraction
from bmlpipe.pipeline.front_ends.frames import FrameOptions

SMALL, LARGE, HUGE, PRESENT = 10_000, 1_000_000, 10_000_000, 200

NAMES = {SMALL: "ten_thousand", LARGE: "million", HUGE: "ten_million"}

#: Number of rows of the manifest whose clips all have a file.
ALL_PRESENT = 100_000


def peak() -> int:
    """Peak of the resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(rows: int, present: int) -> dict[str, float]:
    """Read once and plan twice in this process, with an extraction if clips are absent; returns costs per row."""
    request = ExtractionRequest((FrameOptions(),), 10)
    with tempfile.TemporaryDirectory() as name:
        videos, out, annotation = Path(name) / "videos", Path(name) / "out", Path(name) / "vggsound.csv"
        videos.mkdir()
        for number in range(present):
            (videos / f"clip{number:07d}_000030.mp4").write_bytes(b"x")
        with annotation.open("w") as file:
            for number in range(rows):
                file.write(f"clip{number:07d},30,class {number % 309},{'test' if number % 13 == 0 else 'train'}\n")
        before, begun = peak(), time.process_time()
        manifest = read_manifest("vggsound", annotation)
        read, planned = peak(), time.process_time()
        for _ in range(2):
            with exclusive_folder(out, "extraction"):
                plan = make_plan(manifest, videos, out, request)
                if present == rows:
                    continue
                counts = run_extraction(plan, workers=0)
            if counts != {"absent": rows - present, "failed": present}:
                raise RuntimeError(f"unexpected ledger: {counts}")
        return {
            "read_bytes": (read - before) / rows,
            "read_seconds": (planned - begun) / rows,
            "plan_bytes": (peak() - before) / rows,
            "plan_seconds": (time.process_time() - planned) / 2 / rows,
        }


def measure_in_new_process(rows: int, present: int) -> dict[str, float]:
    """Run `measure` in a new process, and print the result."""
    command = [sys.executable, __file__, "--rows", str(rows), "--present", str(present)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    what = "present" if present == rows else "absent"
    print(
        f"{rows:9} rows, {what:7}: {found['plan_bytes']:6.0f} bytes per row at the peak; "
        f"{1e6 * found['read_seconds']:5.1f} µs per row to read, {1e6 * found['plan_seconds']:5.1f} µs to plan"
    )
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--quick", action="store_true", help="leave out the ten million rows")
    parser.add_argument("--rows", type=int, help="measure one size in this process, and print JSON")
    parser.add_argument("--present", type=int, default=PRESENT, help="number of clips that have a file, with --rows")
    options = parser.parse_args()
    if options.rows:
        print(json.dumps(measure(options.rows, min(options.rows, options.present))))
        return
    sizes = (SMALL, LARGE) if options.quick else (SMALL, LARGE, HUGE)
    absent = {rows: measure_in_new_process(rows, PRESENT) for rows in sizes}
    present = measure_in_new_process(ALL_PRESENT, ALL_PRESENT)
    ratios = {
        f"{NAMES[larger]}_vs_{NAMES[smaller]}_{what}": absent[larger][f"plan_{what}"] / absent[smaller][f"plan_{what}"]
        for smaller, larger in pairwise(sizes)
        for what in ("bytes", "seconds")
    }
    for ratio, value in ratios.items():
        print(f"{ratio:34} {value:5.2f}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        rows = {**{f"absent_{count}": one for count, one in absent.items()}, f"present_{ALL_PRESENT}": present}
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
