"""Video and audio files: demux, decode, and say what is wrong with them."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.media.container import open_media
    from bmlpipe.pipeline.media.errors import ClipError
    from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg
    from bmlpipe.pipeline.media.source_file import SourceFile
    from bmlpipe.pipeline.media.video import ClipSpan

__all__ = ["ClipError", "ClipSpan", "FFmpeg", "SourceFile", "open_media"]

__getattr__ = lazy_exports(
    __name__,
    {
        "container": ["open_media"],
        "errors": ["ClipError"],
        "ffmpeg_program": ["FFmpeg"],
        "source_file": ["SourceFile"],
        "video": ["ClipSpan"],
    },
)
