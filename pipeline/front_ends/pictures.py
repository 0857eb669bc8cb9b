"""The pictures of a clip → frames, optical flow and RGB differences at its instants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bmlpipe.pipeline.front_ends.features import Flow, Frames, RgbDiff
from bmlpipe.pipeline.front_ends.flow import FlowOptions, encode_fields, estimator
from bmlpipe.pipeline.front_ends.flow_images import FlowImages
from bmlpipe.pipeline.front_ends.frames import FrameOptions, Scaler, encode
from bmlpipe.pipeline.front_ends.quality import PictureMeter
from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions, encode_differences
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.video import Pick, Pictures, Shot, Window, check_complete, pick


def visual_features(
    pictures: Pictures,
    window: Window,
    frames: FrameOptions | None,
    flow: FlowOptions | None,
    rgb_diff: RgbDiffOptions | None,
    flags: set[str],
    media: dict[str, Any],
    *,
    video: Path,
    decode: Callable[[Pictures, Window, int], Iterator[Shot]] | None = None,
) -> tuple[Frames | None, Flow | None, RgbDiff | None]:
    """Decode a clip's pictures once and make the features asked for.

    Args:
        pictures: The video, nothing read of it yet.
        window: The clip.
        frames: How to store frames; None: not wanted.
        flow: How to compute optical flow; None: not wanted.
        rgb_diff: How to store RGB differences; None: not wanted.
        flags: Flags (docs/reasons.md) are added here.
        media: What is measured of the pictures (`quality`) is added here.
        video: The file, whose ready-made flow images are looked for.
        decode: Decodes the pictures, with so many after each instant's; None: all of them are decoded.

    Raises:
        ClipError: The clip cannot be used.
        DamageError: See `Pictures.strict`, `pick` and `needed_shots`.
    """
    after = max(flow.stack if flow else 0, rgb_diff.stack if rgb_diff else 0)
    decoded = decode(pictures, window, after) if decode else None
    aspect = pictures.stream.sample_aspect_ratio
    scaler = Scaler(frames.short_side, aspect) if frames else None
    grey = Scaler(flow.short_side, aspect) if flow else None
    colour = Scaler(rgb_diff.short_side, aspect) if rgb_diff else None
    images = FlowImages(flow.images, video) if flow and flow.images else None
    estimate = estimator(flow.algorithm) if flow and not images else None
    quality = PictureMeter()
    jpegs: list[bytes] = []
    fields: list[tuple[tuple[bytes, bytes], ...]] = []
    differences: list[tuple[bytes, ...]] = []
    times: list[float] = []
    flow_times: list[float] = []
    difference_times: list[float] = []
    size = flow_size = difference_size = (0, 0)
    for chosen in pick(pictures, window, after, decoded):
        _check_whole(pictures, window, chosen)
        times.append(pictures.seconds(chosen.shown.tick, window))
        quality.add(chosen.shown.frame)
        if chosen.late:
            flags.add("late_video")
        if frames and scaler:
            planes = scaler.planes(chosen.shown.frame)
            size = planes.luma.shape
            jpegs.append(encode(planes, frames.quality))
        if flow and grey:
            shots, moved = chosen.window(flow.stack)
            if estimate:
                luma = [grey.luma(shot.frame) for shot in shots]
                flow_size = luma[0].shape
                fields.append(encode_fields(luma, estimate, flow.bound, flow.quality))
            elif images:
                fields.append(images.fields(chosen.number - shots.index(chosen.shown), flow.stack))
                flow_size = images.size
            flow_times.append(pictures.seconds(shots[0].tick, window))
            if moved:
                flags.add("flow_window_moved")
        if rgb_diff and colour:
            shots, moved = chosen.window(rgb_diff.stack)
            coloured = [colour.planes(shot.frame) for shot in shots]
            difference_size = coloured[0].luma.shape
            differences.append(encode_differences(coloured, rgb_diff.quality))
            difference_times.append(pictures.seconds(shots[0].tick, window))
            if moved:
                flags.add("rgb_diff_window_moved")
    check_complete(pictures, window, len(times))
    if images and pictures.lost:
        raise ClipError("damaged_video", "pictures cannot be decoded, so that flow images cannot be told apart")
    if images and window.instants is None:  # every picture was decoded
        images.check_count(pictures.count)
    if not pictures.strict:  # a strict decode met an error, which the decoder may now have concealed
        flags.add("damaged_video")
    if pictures.mended:
        flags.add("mended_times")
    if window.instants is not None and len(times) < window.instants:
        flags.add("short_video")
    media["pictures"] = quality.result()
    return (
        Frames(tuple(jpegs), tuple(times), *size) if frames else None,
        Flow(tuple(fields), tuple(flow_times), *flow_size, flow.bound) if flow else None,
        RgbDiff(tuple(differences), tuple(difference_times), *difference_size) if rgb_diff else None,
    )


def _check_whole(pictures: Pictures, window: Window, chosen: Pick) -> None:
    """Refuse an instant whose picture, or one of the pictures needed after it, could not be decoded."""
    instant = pictures.tick(window, chosen.instant)
    first, last = chosen.shots[0].tick, max(instant, chosen.shots[-1].tick)
    if any(first < tick <= last for tick in pictures.lost):
        raise ClipError("damaged_video", f"the picture shown at {chosen.instant} s of the clip cannot be decoded")
    if chosen.late and chosen.instant > 0:
        late = float((chosen.shown.tick - pictures.tick(window, 0)) * pictures.stream.time_base)
        raise ClipError("late_video", f"the first decodable picture comes {late:.2f} s after the clip's start")
