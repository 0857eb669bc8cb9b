"""From decoded pictures and sound to features."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.front_ends.features import ArrayFeature, ClipFeatures, Feature, FlacSound, JpegSeries
    from bmlpipe.pipeline.front_ends.flow import FlowOptions
    from bmlpipe.pipeline.front_ends.frames import FrameOptions
    from bmlpipe.pipeline.front_ends.front_end import FrontEndOptions, PictureFrontEnd, PictureOptions, SoundOptions
    from bmlpipe.pipeline.front_ends.presets import PRESETS
    from bmlpipe.pipeline.front_ends.registry import FRONT_ENDS
    from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions
    from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions, log_spectrogram
    from bmlpipe.pipeline.front_ends.waveform import WaveformOptions

__all__ = [
    "FRONT_ENDS",
    "PRESETS",
    "ArrayFeature",
    "ClipFeatures",
    "Feature",
    "FlacSound",
    "FlowOptions",
    "FrameOptions",
    "FrontEndOptions",
    "JpegSeries",
    "PictureFrontEnd",
    "PictureOptions",
    "RgbDiffOptions",
    "SoundOptions",
    "SpectrogramOptions",
    "WaveformOptions",
    "log_spectrogram",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "features": ["ArrayFeature", "ClipFeatures", "Feature", "FlacSound", "JpegSeries"],
        "flow": ["FlowOptions"],
        "frames": ["FrameOptions"],
        "front_end": ["FrontEndOptions", "PictureFrontEnd", "PictureOptions", "SoundOptions"],
        "presets": ["PRESETS"],
        "registry": ["FRONT_ENDS"],
        "rgb_diff": ["RgbDiffOptions"],
        "spectrogram": ["SpectrogramOptions", "log_spectrogram"],
        "waveform": ["WaveformOptions"],
    },
)
