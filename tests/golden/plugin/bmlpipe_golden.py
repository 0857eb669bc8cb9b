"""A plug-in with an encoder so small that its checkpoint can be stored. It uses torch only."""

from torch import Tensor, nn


class Tiny(nn.Module):
    """One convolution, batch norm and a global mean: (B, T, C, H, W) → (B, 8)."""

    feature_dim = 8

    def __init__(self, modality: str, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 8, 5, stride=4)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.convolution(x.flatten(0, 1))).relu()
        return maps.mean((2, 3)).unflatten(0, x.shape[:2]).mean(1)
