"""The multimodal model: one encoder a modality and a fusion head."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn


class MultimodalModel(nn.Module):
    """Encoders and a head.

    Args:
        encoders: Modality → encoder, (B, T, C, H, W) → (B, D_m).
        head: {m: (B, D_m)} → (B, K).
    """

    def __init__(self, encoders: Mapping[str, nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.head = head

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        between: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> Tensor:
        """Logits of a batch.

        Args:
            inputs: {m: (B, T, C, H, W)}, floating.
            between: Sees the features {m: (B, D_m)} and returns those that the head gets. A modulation reads scores
                and drops features here, inside the forward pass that DistributedDataParallel wraps.

        Returns:
            (B, K).
        """
        features = self.encode(inputs)
        if between is not None:
            features = between(features)
        logits: Tensor = self.head(features)
        return logits

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{m: (B, T, C, H, W)} → {m: (B, D_m)}."""
        return {m: encoder(inputs[m]) for m, encoder in self.encoders.items()}
