"""Published settings by name: the paper's, and those of its authors' two releases where they differ.

One thing of the releases is not offered: choosing the epoch by the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published setting.

    Attributes:
        options: Options of a run (`python -m bmlpipe.train.run --help`) → values.
        rules: Name of a modulation → its options.
        summation_gamma: With summation, the share of its own bias that a modality's score gets; None: all of it.
    """

    options: Mapping[str, Any]
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    summation_gamma: float | None = None

    def of_run(self, fusion: str, modalities: int) -> dict[str, Any]:
        """The options of a run with this fusion, and `gamma` where the setting has one for it."""
        if fusion != "sum" or self.summation_gamma is None:
            return dict(self.options)
        return {**self.options, "gamma": (self.summation_gamma,) * modalities}


_PAPER = {
    "ratio": "ratio",
    "q_base": 0.5,
    "lam": 0.5,
    "alpha": 0.8,
    "noise": "all",
    "optimizer": "sgd",
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "lr_step": 0,
    "batch_size": 32,
}

_RELEASED_OGM = {"form": "cvpr", "parameters": "convolutions"}

PRESETS: dict[str, Preset] = {
    # Sec. 3 and 4.1; the rules' own defaults.
    "paper": Preset(options=_PAPER),
    # The release drops by the same step's ratio, which for an input takes a second pass through the encoders; here the
    # last step's drives it.
    "tpami-release": Preset(
        options={
            **_PAPER,
            "noise": "off",
            "optimizer": "adamw",
            "lr": 5e-5,
            "weight_decay": 0.01,
            "lr_step": 40,
            "lr_gamma": 0.1,
        },
        rules={
            "opm": {"unit": "batch", "target": "input", "p_exe": 0.7, "rescale": True, "epochs": (6, None)},
            "ogm": {**_RELEASED_OGM, "epochs": (0, 61)},
            "ogm-star": {"parameters": "convolutions", "epochs": (0, 61)},
            "ogm-ge": {"epochs": (0, 61)},
        },
        summation_gamma=0.5,
    ),
    # OGM-GE: k by the form of 2022, on convolutions, in epochs 0 to 50; noise for every encoder.
    "cvpr2022-release": Preset(
        options=_PAPER,
        rules={"ogm": {**_RELEASED_OGM, "epochs": (0, 51)}, "ogm-ge": {"epochs": (0, 51)}},
        summation_gamma=0.5,
    ),
}
