"""The multimodal model: one encoder a modality, perhaps an exchange between them, and a fusion head."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from bmlpipe.train.models.encoders.stages import run_together, staged


class MultimodalModel(nn.Module):
    """Encoders and a head, and what happens between the encoders' stages.

    Args:
        encoders: Modality → encoder, (B, T, C, H, W) → (B, D_m).
        head: {m: (B, D_m)} → (B, K).
        exchange: Intermediate fusion (`intermediate`), called after the encoders' stages; its parameters are
            its own and belong to no encoder. None: the encoders do not know of each other.

    Raises:
        OptionError: An exchange between encoders that are not made of stages.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], head: nn.Module, exchange: nn.Module | None = None) -> None:
        super().__init__()
        if exchange is not None:
            staged(encoders, type(exchange).__name__)
        self.encoders = nn.ModuleDict(encoders)
        self.head = head
        self.exchange = exchange

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
        """{m: (B, T, C, H, W)} → {m: (B, D_m)}, after any exchange."""
        if self.exchange is None:
            return {m: encoder(inputs[m]) for m, encoder in self.encoders.items()}
        return run_together(dict(self.encoders.items()), inputs, self.exchange)  # type: ignore[arg-type]


def freeze_batch_norm(model: nn.Module) -> None:
    """Use the running statistics and leave them; the affine parameters go on training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
