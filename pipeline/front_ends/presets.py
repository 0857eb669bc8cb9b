"""The table of spectrogram presets. It imports nothing, so that the command line can list the names quickly."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Layout(NamedTuple):
    """The position of the windows of a spectrogram in the sound.

    Attributes:
        rate: Sampling rate in Hz.
        window: Length of a window in samples.
        hop: Samples from the start of one window to the start of the next.
        centred: Window t is centred on sample t · hop, and the sound is continued by zeros; False: windows lie inside
            the sound, and window t begins at sample t · hop.
    """

    rate: int
    window: int
    hop: int
    centred: bool = False


PRESETS: Mapping[str, Layout] = MappingProxyType(
    {
        "vggsound": Layout(16_000, 512, 159),
        "magnitude": Layout(16_000, 512, 159),
        "cvpr-cremad": Layout(22_050, 512, 353, centred=True),
        "cvpr-vggsound": Layout(16_000, 256, 128, centred=True),
        "kaldi-fbank": Layout(16_000, 400, 160),
        "log-mel": Layout(16_000, 1024, 160, centred=True),
        "mfcc": Layout(16_000, 1024, 160, centred=True),
    }
)
"""Name → layout. `bmlpipe.pipeline.front_ends.spectrogram` describes what each preset computes."""
