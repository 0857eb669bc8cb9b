"""What the process that gives out the work needs for manifests of a million and of ten million rows.

Each size in a process of its own, twice: `absent`, a `vggsound.csv` of which 200 clips have a (tiny, undecodable) file
and the others none, is read, planned and run to its ledger, then planned and run again as a second run does; `present`,
for which every clip has such a file, is read and planned. Memory is the growth of the resident set over what importing
costs, at its peak; `read` is the peak while the annotation is read, `plan` that of all. Seconds are CPU time, of one
reading and of one plan (with its run, for `absent`).

Ratios `million_vs_ten_thousand_bytes` and `…_seconds`, `ten_million_vs_million_bytes` and `…_seconds`: a row's share of
the larger manifest ÷ of the smaller one. Ten million rows take minutes and 4 GB of memory; `--quick` leaves them out.
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

#: Rows of the manifest whose clips all have a file.
ALL_PRESENT = 100_000


def peak() -> int:
    """Bytes of the resident set at its largest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(rows: int, present: int) -> dict[str, float]:
    """Read, plan, run where most clips are absent, and plan again, in this process."""
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


def in_a_process(rows: int, present: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--rows", str(rows), "--present", str(present)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    what = "present" if present == rows else "absent"
    print(
        f"{rows:9} rows, {what:7}: {found['plan_bytes']:6.0f} bytes at the peak; "
        f"{1e6 * found['read_seconds']:5.1f} µs a row to read, {1e6 * found['plan_seconds']:5.1f} µs to plan"
    )
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="leave out the ten million rows")
    parser.add_argument("--rows", type=int, help="measure this size here, and print JSON")
    parser.add_argument("--present", type=int, default=PRESENT, help="clips that have a file, with --rows")
    options = parser.parse_args()
    if options.rows:
        print(json.dumps(measure(options.rows, min(options.rows, options.present))))
        return
    sizes = (SMALL, LARGE) if options.quick else (SMALL, LARGE, HUGE)
    absent = {rows: in_a_process(rows, PRESENT) for rows in sizes}
    present = in_a_process(ALL_PRESENT, ALL_PRESENT)
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
