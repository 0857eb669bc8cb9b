"""What the examples share: real data of two modalities, a model of plain modules, and the figures to compare.

The data are scikit-learn's handwritten digits (1,797 images of 8 × 8 pixels) in two views: `pixels`, the image itself,
and `spectrum`, the amplitudes of its Fourier transform, which are almost as informative but are learnt later. In joint
training the pixels dominate and the branch of the spectrum learns little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

from bmlpipe.train.modulation import Modulation, unimodal_logits

MODALITIES = ("pixels", "spectrum")
FIRST_TEST = 1200  # the images are in the order of their writers, so the test split is by other writers


class Digits(Dataset[dict[str, Tensor]]):
    """One split of the digits. An item is {pixels, spectrum, labels, ids}; a vector of indices gives a batch.

    Attributes:
        views: {m: (N, D_m)}, float32.
        labels: (N,), int64.
    """

    def __init__(self, split: str) -> None:
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32)
        views = {"pixels": images.flatten(1), "spectrum": torch.fft.rfft2(images).abs().flatten(1)}
        views = {m: (x - x[:FIRST_TEST].mean(dim=0)) / x[:FIRST_TEST].std() for m, x in views.items()}
        part = slice(None, FIRST_TEST) if split == "train" else slice(FIRST_TEST, None)
        self.views = {m: x[part] for m, x in views.items()}
        self.labels = torch.tensor(data.target)[part]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, ids: int | Tensor) -> dict[str, Tensor]:
        views = {m: x[ids] for m, x in self.views.items()}
        return {**views, "labels": self.labels[ids], "ids": torch.as_tensor(ids)}


class Head(nn.Module):
    """A linear layer on the concatenated features. The scores of the modalities are read from it by zero-out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32 * len(MODALITIES), 10)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{m: (B, 32)} → (B, 10)."""
        logits: Tensor = self.linear(torch.cat([features[m] for m in MODALITIES], dim=1))
        return logits


class TwoViews(nn.Module):
    """An encoder per view and a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoders = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(d, 32), nn.ReLU()) for m, d in zip(MODALITIES, (64, 40), strict=True)}
        )
        self.head = Head()

    def encode(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{m: (B, D_m)} → {m: (B, 32)}."""
        return {m: encoder(batch[m]) for m, encoder in self.encoders.items()}


@torch.no_grad()
def figures(model: TwoViews, balance: Modulation, rows: Sequence[Tensor]) -> dict[str, float]:
    """Accuracy on the test split, joint and of each branch alone, and the means of what the modulation did.

    Args:
        model: The trained model.
        balance: Its modulation.
        rows: `balance.row` of every step.

    Returns:
        Accuracies as fractions; ρ and k of the pixels and their dropped samples per step, averaged over the run.
    """
    test = Digits("test")
    features = model.encode(test.views)
    logits = {"accuracy": model.head(features), **unimodal_logits(model.head, features)}
    found = {name: (value.argmax(dim=1) == test.labels).double().mean().item() for name, value in logits.items()}
    mean = dict(zip(balance.columns, torch.stack(list(rows)).mean(dim=0).tolist(), strict=True))
    return found | {name: mean[f"{name}/pixels"] for name in ("rho", "k", "dropped")}


def show(runs: Mapping[str, Mapping[str, float]]) -> None:
    """Print the figures of several runs as a table, one row per run."""
    columns = list(next(iter(runs.values())))
    lines = ["".join(f"{text:>10}" for text in ("", *columns))]
    for name, run in runs.items():
        lines.append("".join(f"{text:>10}" for text in (name, *(f"{run[column]:.3f}" for column in columns))))
    print("\n".join(lines))  # noqa: T201
