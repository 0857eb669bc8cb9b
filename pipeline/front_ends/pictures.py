"""One pass over the pictures of a clip, in which all front ends that read pictures make their features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bmlpipe.pipeline.front_ends.features import ClipFeatures
from bmlpipe.pipeline.front_ends.front_end import PictureOptions
from bmlpipe.pipeline.front_ends.quality import PictureQuality
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.video import (
    ClipSpan,
    SelectedFrames,
    TimedFrame,
    VideoDecoder,
    check_complete,
    select_frames_at_instants,
)

#: Decodes the pictures of a clip that are needed, given the number needed after the one shown at each instant.
DecodePictures = Callable[[VideoDecoder, ClipSpan, int], Iterator[TimedFrame]]


def make_picture_features(
    decoder: VideoDecoder,
    span: ClipSpan,
    path: Path,
    options: Sequence[PictureOptions],
    decode: DecodePictures | None = None,
) -> ClipFeatures:
    """Decode a clip's pictures once and make all features of pictures.

    Args:
        decoder: The video, of which nothing has been read yet.
        span: The clip's span.
        path: The video file.
        options: The front ends, in the order of the table of kinds.
        decode: Decodes the pictures that are needed; None: all pictures are decoded.

    Returns:
        The features, their flags, and `pictures` (measured quality) and `rotation` (degrees) in `media`.

    Raises:
        ClipError: The clip cannot be used.
        DamageError: See `VideoDecoder.raise_on_damage`, `select_frames_at_instants` and `decode_needed_frames`.
    """
    lookahead = max(option.lookahead for option in options)
    frames = decode(decoder, span, lookahead) if decode else None
    front_ends = {option.kind: option.start(decoder, span, path) for option in options}
    quality, flags, instants = PictureQuality(), set[str](), 0
    for selected in select_frames_at_instants(decoder, span, lookahead, frames):
        _check_decoded(decoder, span, selected)
        instants += 1
        quality.add(selected.shown.image)
        if selected.late:
            flags.add("late_video")
        for front_end in front_ends.values():
            front_end.add(selected)
    check_complete(decoder, span, instants)
    features = {kind: front_end.finish() for kind, front_end in front_ends.items()}
    if not decoder.raise_on_damage:  # an earlier, strict decode met an error, which the decoder may now have concealed
        flags.add("damaged_video")
    if decoder.timestamps_repaired:
        flags.add("mended_times")
    if span.instants is not None and instants < span.instants:
        flags.add("short_video")
    media = {"pictures": quality.result(), "rotation": decoder.rotation}
    return ClipFeatures(features, tuple(flags.union(*(front_end.flags for front_end in front_ends.values()))), media)


def _check_decoded(decoder: VideoDecoder, span: ClipSpan, selected: SelectedFrames) -> None:
    """Reject an instant at which the picture shown, or one of the pictures needed after it, could not be decoded."""
    instant = decoder.pts_at(span, selected.instant)
    first, last = selected.frames[0].pts, max(instant, selected.frames[-1].pts)
    if any(first < pts <= last for pts in decoder.lost_pts):
        raise ClipError("damaged_video", f"the picture shown at {selected.instant} s of the clip cannot be decoded")
    if selected.late and selected.instant > 0:
        late = float((selected.shown.pts - decoder.pts_at(span, 0)) * decoder.stream.time_base)
        raise ClipError("late_video", f"the first decodable picture comes {late:.2f} s after the clip's start")
