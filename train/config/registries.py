"""The names of the networks that an option can choose, and where each is made. No network is imported here.

`--help` lists these names, plug-ins included, without importing torch.
"""

from __future__ import annotations

from bmlpipe.manifests.common.plugins import Registry

_ENCODERS = "bmlpipe.train.models.encoders.registry"
_FUSION = "bmlpipe.train.models.fusion"
_INTERMEDIATE = "bmlpipe.train.models.intermediate"

#: Makers of an encoder from (modality, channels). Those of staged encoders also take the keyword `all_stages`.
ENCODERS = Registry(
    "bmlpipe.encoders",
    {"resnet18": f"{_ENCODERS}:resnet18", "cnn4": f"{_ENCODERS}:cnn4", "tsm18": f"{_ENCODERS}:tsm18"},
)

#: Makers of a fusion head from (dims, classes). They may take the keywords `classifier_layers` and `stage_channels`.
FUSIONS = Registry(
    "bmlpipe.fusions",
    {
        "concat": f"{_FUSION}.registry:concatenation",
        "sum": f"{_FUSION}.linear:Summation",
        "film": f"{_FUSION}.conditional:FiLM",
        "gated": f"{_FUSION}.conditional:Gated",
        "lowrank": f"{_FUSION}.lowrank:LowRank",
        "centralnet": f"{_FUSION}.centralnet:CentralNet",
    },
)

#: Makers of an intermediate fusion from {modality: channels after each stage}.
INTERMEDIATE_FUSIONS = Registry(
    "bmlpipe.intermediate_fusions",
    {"mmtm": f"{_INTERMEDIATE}:MMTM", "attention": f"{_INTERMEDIATE}:CrossModalAttention"},
)
