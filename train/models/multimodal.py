"""The multimodal model: one encoder per modality, an optional intermediate fusion between them, and a fusion head."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from bmlpipe.train.models.encoders.staged_encoder import require_staged, run_stages_jointly


class MultimodalModel(nn.Module):
    """Encoders, a fusion head and, optionally, an intermediate fusion.

    Args:
        encoders: Modality → encoder, (B, T, C, H, W) → (B, D_m).
        head: {m: (B, D_m)} → (B, K).
        intermediate: Intermediate fusion (`bmlpipe.train.models.intermediate`), called after the stages of the
            encoders. Its parameters belong to no encoder. None: the encoders run independently.

    Raises:
        OptionError: An intermediate fusion of encoders that are not staged.
    """

    def __init__(
        self, encoders: Mapping[str, nn.Module], head: nn.Module, intermediate: nn.Module | None = None
    ) -> None:
        super().__init__()
        if intermediate is not None:
            require_staged(encoders, type(intermediate).__name__)
        self.encoders = nn.ModuleDict(encoders)
        self.head = head
        self.intermediate = intermediate

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        feature_hook: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> Tensor:
        """Compute the logits of a batch.

        Args:
            inputs: {m: (B, T, C, H, W)}, floating point.
            feature_hook: Receives the features {m: (B, D_m)} and returns those that the head gets. A modulation
                measures scores and drops features here, inside the forward pass that DistributedDataParallel wraps.

        Returns:
            (B, K).
        """
        features = self.encode(inputs)
        if feature_hook is not None:
            features = feature_hook(features)
        logits: Tensor = self.head(features)
        return logits

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode a batch, with any intermediate fusion: {m: (B, T, C, H, W)} → {m: (B, D_m)}."""
        if self.intermediate is None:
            return {m: encoder(inputs[m]) for m, encoder in self.encoders.items()}
        return run_stages_jointly(dict(self.encoders.items()), inputs, self.intermediate)  # type: ignore[arg-type]


def freeze_batch_norm(model: nn.Module) -> None:
    """Put every batch norm into evaluation mode: running statistics are used and not updated.

    The affine parameters are still trained.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
