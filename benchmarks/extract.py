"""CPU time of extracting a clip (user + system, children included), beside that of other methods.

The program makes its own clips (10 s, 340 × 256, H.264 with B-frames, AAC; groups of 250 and of 12 pictures). Then it
runs these methods in alternating rounds:

- `ffmpeg -threads 1 -f null`, which decodes everything and discards it;
- PyAV, which decodes everything and discards it;
- typical preprocessing scripts: ffmpeg to WAV, OpenCV reading every frame and keeping ten, librosa's STFT;
- bmlpipe: ten frames, the spectrogram and the HDF5 file, and the same with optical flow (DIS, one field per instant).

Each method has its own process, so that no method profits from caches or allocator settings of another one. A ratio is
the cost of the other method over that of bmlpipe in the same round (`with_flow_vs_without`: cost with flow over cost
without); median and range over the rounds are printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import av
import ffmpeg
import imageio_ffmpeg
from _measure import cpu, ratios, show, write

from bmlpipe.manifests.locate import Source
from bmlpipe.manifests.schema import Clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.task import ClipTask
from bmlpipe.pipeline.extraction.worker import extract_batch
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.media.container import Demuxer, open_media
from bmlpipe.pipeline.media.h264_skip import decode_needed_frames
from bmlpipe.pipeline.media.video import ClipSpan, VideoDecoder, select_frames_at_instants

STATIC = imageio_ffmpeg.get_ffmpeg_exe()
SYSTEM = shutil.which("ffmpeg") or STATIC
SCENES = ("mandelbrot=size=340x256:rate={rate}", "testsrc2=size=340x256:rate={rate}")

WITHOUT_FLOW = ExtractionRequest((FrameOptions(), SpectrogramOptions()), 10)
WITH_FLOW = ExtractionRequest((FrameOptions(), SpectrogramOptions(), FlowOptions()), 10)


def make_clips(folder: Path, count: int, gop: int) -> list[Path]:
    """Make clips of moving scenes with a little noise, and a tone in noise."""
    clips = []
    for number in range(count):
        rate = (25, 30, 30000 / 1001)[number % 3]
        scene = ffmpeg.input(SCENES[number % 2].format(rate=rate), f="lavfi", t=10)
        scene = scene.filter("rotate", a=f"0.05*sin({0.5 + number % 5}*t)").filter("noise", alls=6, allf="t")
        sound = ffmpeg.input(f"sine=frequency={300 + 40 * number}:sample_rate=44100", f="lavfi", t=10)
        noise = ffmpeg.input("anoisesrc=amplitude=0.1:sample_rate=44100", f="lavfi", t=10)
        path = folder / f"gop{gop}_{number:02d}.mp4"
        encoder = {"vcodec": "libx264", "crf": 23, "g": gop, "pix_fmt": "yuv420p", "acodec": "aac", "ac": 2}
        mixed = ffmpeg.filter([sound, noise], "amix")
        ffmpeg.output(scene, mixed, str(path), **encoder).run(cmd=STATIC, quiet=True, overwrite_output=True)
        clips.append(path)
    return clips


def ffmpeg_null(clip: Path, binary: str) -> None:
    """Decode all of a clip with an ffmpeg program."""
    command = [binary, "-nostdin", "-v", "error", "-threads", "1", "-i", str(clip), "-f", "null", "-"]
    subprocess.run(command, check=True)


def pyav_null(clip: Path) -> None:
    """Decode all of a clip with PyAV."""
    with av.open(str(clip)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0, audio=0):
            packet.decode()


def typical_script(clip: Path, out: Path) -> None:
    """Extract as preprocessing scripts of the field do."""
    import cv2
    import librosa
    import numpy as np

    wav = out / "sound.wav"
    command = [SYSTEM, "-nostdin", "-v", "error", "-y", "-i", str(clip), "-vn", "-ac", "1", "-ar", "16000", str(wav)]
    subprocess.run(command, check=True)
    video = cv2.VideoCapture(str(clip))
    rate, number = video.get(cv2.CAP_PROP_FPS), 0
    while True:
        there, picture = video.read()
        if not there:
            break
        if number % round(rate) == 0:
            cv2.imwrite(str(out / f"{number:04d}.jpg"), picture)
        number += 1
    sound, _ = librosa.load(wav, sr=16000)
    np.save(out / "sound.npy", np.log(np.abs(librosa.stft(sound, n_fft=512, hop_length=159)) + 1e-7))


def bmlpipe(clip: Path, out: Path, request: ExtractionRequest) -> None:
    """Extract as a worker of bmlpipe does."""
    task = ClipTask(Clip(id=clip.stem, split="train", label="a"), Source(clip))
    (row,) = extract_batch([task], request, out, clip.parent)
    if row.status != "ok":
        raise RuntimeError(f"{clip}: {row.reason}: {row.message}")


def skipped_share(clips: list[Path]) -> float:
    """Fraction of the pictures that bmlpipe does not decode."""
    skipped = total = 0
    for clip in clips:
        with open_media(clip) as container:
            stream = container.streams.best("video")
            pictures, span = VideoDecoder(stream, Demuxer(container, [stream])), ClipSpan(0, None, 10)
            for _ in select_frames_at_instants(pictures, span, 0, decode_needed_frames(pictures, span)):
                pass
            skipped += stream.frames - pictures.decoded_count
            total += stream.frames
    return skipped / total


def cost(work: Callable[[Path], None], clips: list[Path]) -> float:
    """CPU seconds per clip."""
    before = cpu()
    for clip in clips:
        work(clip)
    return (cpu() - before) / len(clips)


def versions() -> dict[str, str]:
    """Versions of the two ffmpeg programs."""
    return {
        name: subprocess.run([binary, "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
        for name, binary in (("ffmpeg", SYSTEM), ("ffmpeg_static", STATIC))
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the machine and the ratios")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=6, help="number of clips per group length")
    options = parser.parse_args()
    if options.rounds < 1 or options.clips < 1:
        parser.error("--rounds and --clips must be 1 or more")
    costs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as processes:
        folder = Path(name)
        sets = {f"gop{gop}": make_clips(folder, options.clips, gop) for gop in (250, 12)}
        for label, clips in sets.items():
            print(f"{label}: {skipped_share(clips):.0%} of the pictures are not decoded")
        out = folder / "out"
        ways: dict[str, Callable[[Path], None]] = {
            "ffmpeg -f null": partial(ffmpeg_null, binary=SYSTEM),
            "ffmpeg -f null (static)": partial(ffmpeg_null, binary=STATIC),
            "PyAV, decode all": pyav_null,
            "typical script": partial(typical_script, out=out / "field"),
            "bmlpipe": partial(bmlpipe, out=out / "without", request=WITHOUT_FLOW),
            "bmlpipe with flow": partial(bmlpipe, out=out / "with", request=WITH_FLOW),
        }
        spawn = multiprocessing.get_context("spawn")
        own = {way: processes.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for way in ways}
        for number in range(options.rounds + 1):
            (out / "field").mkdir(parents=True)
            for label, clips in sets.items():
                for way, work in ways.items():
                    spent = own[way].submit(cost, work, clips).result()
                    if number:  # the first round warms up: imports, caches
                        costs.setdefault(f"{label} {way}", []).append(spent)
            shutil.rmtree(out)
    show("CPU milliseconds per clip", costs, 1e3, 1)
    pairs = {
        "vs_ffmpeg_null_gop250": ("gop250 ffmpeg -f null", "gop250 bmlpipe"),
        "vs_ffmpeg_null_gop12": ("gop12 ffmpeg -f null", "gop12 bmlpipe"),
        "vs_ffmpeg_static_null_gop250": ("gop250 ffmpeg -f null (static)", "gop250 bmlpipe"),
        "vs_ffmpeg_static_null_gop12": ("gop12 ffmpeg -f null (static)", "gop12 bmlpipe"),
        "vs_pyav_null_gop250": ("gop250 PyAV, decode all", "gop250 bmlpipe"),
        "vs_field": ("gop250 typical script", "gop250 bmlpipe"),
        "with_flow_vs_without": ("gop250 bmlpipe with flow", "gop250 bmlpipe"),
    }
    write(options.json, ratios(costs, pairs), "av", programs=versions())


if __name__ == "__main__":
    main()
