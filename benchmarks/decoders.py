"""CPU time per image of JPEG decoders, at full size and scaled down.

The images have 340 × 256 pixels, quality 95 and 4:2:0 subsampling. The decoders run in alternating rounds, on one
thread. All of them use libjpeg-turbo, which can scale by n/8 while it decodes (in PIL by `draft`; OpenCV offers 1/2,
1/4 and 1/8). A ratio is the cost over that of simplejpeg decoding the whole image to RGB.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from _clips import SMALL, encode, texture
from _measure import cpu, ratios, show, write
from PIL import Image

HEIGHT, WIDTH = SMALL


def simplejpeg_scaled(eighths: int) -> Callable[[bytes], np.ndarray]:
    """Make a function that decodes to `eighths`/8 of the size."""
    least = {"min_height": -(-HEIGHT * eighths // 8), "min_width": -(-WIDTH * eighths // 8), "min_factor": 1}
    return lambda jpeg: simplejpeg.decode_jpeg(jpeg, "RGB", **least)


def opencv(flag: int) -> Callable[[bytes], np.ndarray]:
    """Make a function that decodes with a flag of `cv2.imdecode`."""
    return lambda jpeg: cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag)


def pil(jpeg: bytes) -> np.ndarray:
    """Decode the whole image."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def pil_draft(jpeg: bytes) -> np.ndarray:
    """Decode to half the size."""
    image = Image.open(io.BytesIO(jpeg))
    image.draft("RGB", (WIDTH // 2, HEIGHT // 2))
    return np.asarray(image)


WAYS: dict[str, Callable[[bytes], np.ndarray]] = {
    "simplejpeg": simplejpeg_scaled(8),
    **{f"simplejpeg_{eighths}_8": simplejpeg_scaled(eighths) for eighths in (7, 6, 5, 4, 3, 2, 1)},
    "simplejpeg_fast_dct": lambda jpeg: simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=True),
    "opencv": opencv(cv2.IMREAD_COLOR_BGR),
    "opencv_4_8": opencv(cv2.IMREAD_REDUCED_COLOR_2),
    "pil": pil,
    "pil_4_8": pil_draft,
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the machine and the ratios")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pictures", type=int, default=100)
    options = parser.parse_args()
    if options.rounds < 1 or options.pictures < 1:
        parser.error("--rounds and --pictures must be 1 or more")
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    jpegs = [encode(texture(rng, HEIGHT, WIDTH)) for _ in range(options.pictures)]
    print(f"{np.mean([len(jpeg) for jpeg in jpegs]) / 1000:.1f} kB per image")
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(options.rounds + 1):
        for way, decode in WAYS.items():
            before = cpu()
            for jpeg in jpegs:
                decode(jpeg)
            if number:  # the first round warms up
                costs[way].append((cpu() - before) / len(jpegs))
    show("CPU microseconds per image", costs, scale=1e6, digits=0)
    found = ratios(costs, {way: (way, "simplejpeg") for way in WAYS if way != "simplejpeg"})
    write(options.json, found, "numpy", "opencv-contrib-python-headless", "pillow", "simplejpeg")


if __name__ == "__main__":
    main()
