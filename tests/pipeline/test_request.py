"""Extraction requests: valid lengths and kinds, and the order of the kinds."""

from __future__ import annotations

from typing import Any

import pytest

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.registry import FRONT_ENDS
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions
from bmlpipe.shards.kinds import KINDS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((FrameOptions(),), 0), "seconds is 0"),
        (((SpectrogramOptions(),), None), "give --seconds"),
        (((WaveformOptions(),), None), "give --seconds"),
        (((), 10), "no feature kind"),
        (((FrameOptions(), FrameOptions()), 10), "frames is named twice"),
    ],
)
def test_an_invalid_request_is_refused_when_it_is_created(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ExtractionRequest(*arguments)


def test_a_request_lists_its_kinds_in_the_order_of_the_table() -> None:
    request = ExtractionRequest((WaveformOptions(), FlowOptions(), FrameOptions()), 3)
    assert request.kinds == tuple(request.parameters) == ("frames", "flow", "waveform")
    assert request.only({"flow"}).kinds == ("flow",)
    assert set(FRONT_ENDS) == set(KINDS)
