"""Encoders: one modality's input to one feature vector per sample."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.models.encoders.cnn4 import CNN4
    from bmlpipe.train.models.encoders.registry import make_encoder
    from bmlpipe.train.models.encoders.resnet18 import ResNet18, load_imagenet
    from bmlpipe.train.models.encoders.staged_encoder import StagedEncoder

__all__ = ["CNN4", "ResNet18", "StagedEncoder", "load_imagenet", "make_encoder"]

__getattr__ = lazy_exports(
    __name__,
    {
        "cnn4": ["CNN4"],
        "registry": ["make_encoder"],
        "resnet18": ["ResNet18", "load_imagenet"],
        "staged_encoder": ["StagedEncoder"],
    },
)
