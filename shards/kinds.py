"""Feature kinds: their names, members, and the modality that reads each."""

from __future__ import annotations

import re

#: Feature kinds that a sample may have, in the order in which their members stand.
KINDS = ("frames", "spectrogram", "flow", "rgb_diff", "waveform")

#: Training modality → the feature kind that it is read from.
MODALITY_KIND = {"visual": "frames", "audio": "spectrogram", "flow": "flow", "rgb_diff": "rgb_diff"}

SPECTROGRAM_MEMBER = "spectrogram.npy"

WAVEFORM_MEMBER = "waveform.flac"


def frame_member(instant: int) -> str:
    """Member suffix of the frame at an instant: `frame_003.jpg`."""
    return f"frame_{instant:03d}.jpg"


def flow_member(instant: int, step: int, component: str) -> str:
    """Member suffix of one flow component: `flow_003_00_x.jpg`, the step-th field at the instant."""
    return f"flow_{instant:03d}_{step:02d}_{component}.jpg"


def rgb_diff_member(instant: int, step: int = 0) -> str:
    """Member suffix of an RGB difference: `rgb_diff_003.jpg`; of a stack's later steps `rgb_diff_003_01.jpg`."""
    return f"rgb_diff_{instant:03d}.jpg" if step == 0 else f"rgb_diff_{instant:03d}_{step:02d}.jpg"


def kind_of(member: str) -> str:
    """The feature kind that a member is of, by its suffix.

    >>> [kind_of(name) for name in ("frame_003.jpg", "flow_003_00_x.jpg", "rgb_diff_003.jpg", "spectrogram.npy", "cls")]
    ['frames', 'flow', 'rgb_diff', 'spectrogram', 'cls']
    """
    match = re.match(r"[a-z]+(_[a-z]+)*", member)
    stem = match.group() if match else member
    return "frames" if stem == "frame" else stem
