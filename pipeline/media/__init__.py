"""Video and audio files: demuxing, decoding, and errors of damaged files."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.media.audio import AudioDecoder
    from bmlpipe.pipeline.media.container import Demuxer, open_media
    from bmlpipe.pipeline.media.errors import ClipError
    from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg, FFmpegError
    from bmlpipe.pipeline.media.h264_skip import decode_needed_frames
    from bmlpipe.pipeline.media.source_file import SourceFile
    from bmlpipe.pipeline.media.video import (
        ClipSpan,
        SelectedFrames,
        TimedFrame,
        VideoDecoder,
        select_frames_at_instants,
    )

__all__ = [
    "AudioDecoder",
    "ClipError",
    "ClipSpan",
    "Demuxer",
    "FFmpeg",
    "FFmpegError",
    "SelectedFrames",
    "SourceFile",
    "TimedFrame",
    "VideoDecoder",
    "decode_needed_frames",
    "open_media",
    "select_frames_at_instants",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "audio": ["AudioDecoder"],
        "container": ["Demuxer", "open_media"],
        "errors": ["ClipError"],
        "ffmpeg_program": ["FFmpeg", "FFmpegError"],
        "h264_skip": ["decode_needed_frames"],
        "source_file": ["SourceFile"],
        "video": ["ClipSpan", "SelectedFrames", "TimedFrame", "VideoDecoder", "select_frames_at_instants"],
    },
)
