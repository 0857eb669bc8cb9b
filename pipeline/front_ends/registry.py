"""All front ends, by feature kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.front_end import FrontEndOptions
from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions

_TABLE: dict[str, type[FrontEndOptions]] = {
    options.kind: options
    for options in (FrameOptions, SpectrogramOptions, FlowOptions, RgbDiffOptions, WaveformOptions)
}

FRONT_ENDS: Mapping[str, type[FrontEndOptions]] = MappingProxyType(_TABLE)
"""Feature kind → class of the options of its front end."""
