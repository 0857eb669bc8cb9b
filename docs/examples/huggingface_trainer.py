"""OPM and OGM with the Hugging Face Trainer: two lines in the forward pass of the model, and a callback.

    pip install transformers accelerate
    python docs/examples/huggingface_trainer.py

The Trainer calls `on_pre_optimizer_step` once per optimiser step, after the last accumulated batch, with unscaled
gradients, but after its own clipping. Gradients must be clipped after they are modulated, so `max_grad_norm` of the
TrainingArguments is 0 and the callback clips. Pass an optimiser: the default one, AdamW, cancels the factor of OGM.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from digits import MODALITIES, Digits, TwoViews, figures, show
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bmlpipe.train.modulation import OGM, OPM, Modulation, Rule, unimodal_logits, unimodal_scores


class Balanced(TwoViews):
    """The model, with the modulation between the encoders and the head during training."""

    def __init__(self, balance: Modulation) -> None:
        super().__init__()
        self.balance = balance

    def forward(self, pixels: Tensor, spectrum: Tensor, labels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """The loss and the logits, in the form that the Trainer expects."""
        features = self.encode({"pixels": pixels, "spectrum": spectrum})
        if self.training:
            alone = unimodal_scores(unimodal_logits(self.head, features), labels)
            features = self.balance.forward(features, alone, ids)
        logits = self.head(features)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class ModulationCallback(TrainerCallback):
    """Modulates gradients, then clips them. Saves and restores the state of the modulation with each checkpoint.

    Args:
        balance: The modulation of the model.
        encoders: Modality → encoder.
        max_norm: Norm to which all gradients together are clipped.
    """

    def __init__(self, balance: Modulation, encoders: nn.ModuleDict, max_norm: float = 5.0) -> None:
        self.balance, self.encoders, self.max_norm = balance, encoders, max_norm
        self.rows: list[Tensor] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the state that was saved with the checkpoint of this step."""
        if args.max_grad_norm:
            raise ValueError(
                f"max_grad_norm is {args.max_grad_norm}: the Trainer would clip before the gradients are modulated. "
                "Set it to 0 and pass max_norm to ModulationCallback"
            )
        if state.global_step:
            self.balance.load_state_dict(torch.load(self._file(args, state), weights_only=True))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the modulation the number of the epoch, which is a fraction when a run resumes within an epoch."""
        self.balance.epoch = int(state.epoch or 0)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Modulate the gradients once per step, then clip them."""
        self.balance.backward(self.encoders)
        nn.utils.clip_grad_norm_(kwargs["model"].parameters(), self.max_norm)
        self.rows.append(self.balance.row)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the state of the modulation, which is the same on all ranks."""
        if state.is_world_process_zero:
            torch.save(self.balance.state_dict(), self._file(args, state))

    @staticmethod
    def _file(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir, f"checkpoint-{state.global_step}", "modulation.pt")


def make_trainer(out: Path, *rules: Rule, **arguments: Any) -> tuple[Trainer, ModulationCallback]:
    """Make a Trainer for the digits; `arguments` go to TrainingArguments."""
    balance = Modulation(MODALITIES, *rules, seed=0)
    model = Balanced(balance)
    callback = ModulationCallback(balance, model.encoders)
    options = {
        "num_train_epochs": 8,
        "per_device_train_batch_size": 32,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = Trainer(
        model,
        TrainingArguments(str(out), **(options | arguments)),
        train_dataset=Digits("train"),
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), None),
        callbacks=[callback],
    )
    return trainer, callback


def main() -> dict[str, dict[str, float]]:
    """Train without and with modulation, and compare both."""
    runs = {}
    for name, rules in {"joint": (), "balanced": (OPM(), OGM())}.items():
        with tempfile.TemporaryDirectory() as out:
            trainer, callback = make_trainer(Path(out), *rules)
            trainer.train()
        runs[name] = figures(trainer.model, callback.balance, callback.rows)
    show(runs)
    return runs


if __name__ == "__main__":
    main()
