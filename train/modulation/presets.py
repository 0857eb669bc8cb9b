"""Published settings by name: the paper's, and those of the two releases of its authors where they differ.

The releases also choose the best epoch on the test split. No preset does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published setting.

    Attributes:
        options: Training option (`bmlpipe train --help`) → value.
        rules: Name of a modulation → its options.
        summation_gamma: Share γ of its own bias in each modality's score, for the fusion `sum`; None: the whole bias.
    """

    options: Mapping[str, Any]
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    summation_gamma: float | None = None

    def gamma(self, fusion: str, modalities: int) -> tuple[float, ...] | None:
        """Return γ of each modality (Eq. 6) if the setting fixes it for this fusion, else None.

        Args:
            fusion: Name of the fusion.
            modalities: Number of modalities M.
        """
        if fusion != "sum" or self.summation_gamma is None:
            return None
        return (self.summation_gamma,) * modalities


_PAPER = {
    "discrepancy": "ratio",
    "optimizer": "sgd",
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "lr_step": 0,
    "batch_size": 32,
}

_RELEASED_OGM = {"form": "cvpr", "parameters": "convolutions"}

PRESETS: dict[str, Preset] = {
    # Sec. 3 and 4.1: the defaults of the options and of the rules.
    "paper": Preset(options=_PAPER),
    # The release drops by the ρ of the same step, which for an input takes a second pass through the encoders. Here the
    # ρ of the last step is used.
    "tpami-release": Preset(
        options={**_PAPER, "optimizer": "adamw", "lr": 5e-5, "weight_decay": 0.01, "lr_step": 40, "lr_gamma": 0.1},
        rules={
            "opm": {"unit": "batch", "target": "input", "p_exe": 0.7, "rescale": True, "epochs": (6, None)},
            "ogm": {**_RELEASED_OGM, "noise": "off", "epochs": (0, 61)},
            "ogm-star": {"parameters": "convolutions", "noise": "off", "epochs": (0, 61)},
            "ogm-ge": {"noise": "off", "epochs": (0, 61)},
        },
        summation_gamma=0.5,
    ),
    # OGM-GE: the factor k in the form of 2022, on convolutions, in epochs 0 to 50; noise for every encoder.
    "cvpr2022-release": Preset(
        options=_PAPER,
        rules={"ogm": {**_RELEASED_OGM, "epochs": (0, 51)}, "ogm-ge": {"epochs": (0, 51)}},
        summation_gamma=0.5,
    ),
}
"""Name → preset: the paper's setting, and those of its released code."""
