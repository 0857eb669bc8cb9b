"""Captions of inspected samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bmlpipe.pipeline.inspection.samples import InspectedSample


def sample_title(meta: Mapping[str, Any]) -> str:
    """Join class, split and id of a sample, for its heading."""
    return " · ".join(printable(str(meta[part])) for part in ("label", "split", "id") if meta.get(part))


def source_line(sample: InspectedSample) -> str:
    """Describe the origin of a sample in one line: source, span, streams and key."""
    meta = sample.meta
    parts = (printable(sample.source), describe_span(meta), describe_media(meta), f"key {sample.key}")
    return " · ".join(filter(None, parts))


def describe_media(meta: Mapping[str, Any]) -> str:
    """Describe the source's streams, for example `h264 480 × 360, 30 fps; aac 44.1 kHz stereo`."""
    media, parts = meta.get("media") or {}, []
    if "video_codec" in media:
        rate = f", {media['fps']:.4g} fps" if media.get("fps") else ""
        parts.append(f"{media['video_codec']} {media['width']} × {media['height']}{rate}")
    if "audio_codec" in media:
        channels = {1: "mono", 2: "stereo"}.get(media["channels"], f"{media['channels']} channels")
        parts.append(f"{media['audio_codec']} {media['sample_rate'] / 1000:g} kHz {channels}")
    return "; ".join(parts)


def describe_span(meta: Mapping[str, Any]) -> str:
    """Describe the part of its source that a sample covers; empty if it is the whole file."""
    start, duration = meta.get("start") or 0.0, meta.get("duration")
    if not start and duration is None:
        return ""
    return f"from {start:g} s" + ("" if duration is None else f", {duration:g} s long")


def printable(text: str) -> str:
    """Make text encodable: file names may hold bytes that are not valid characters."""
    return text.encode("utf-8", "replace").decode()
