"""The examples in docs/examples: modulation in other training loops, on scikit-learn's digits."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bmlpipe.train.distributed.group import ProcessInfo
from bmlpipe.train.modulation import OGM, OPM

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
STEPS_PER_EPOCH = 38  # 1,200 samples by 32


@pytest.fixture(autouse=True, scope="module")
def _one_thread_and_the_examples_folder() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))
    torch.set_num_threads(threads)


def example(name: str, *needs: str) -> Any:
    for need in needs:
        pytest.importorskip(need, reason=f"docs/examples/{name}.py needs the package {need}")
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def plain_runs() -> dict[str, dict[str, float]]:
    return example("plain_loop").main()


def assert_balanced(runs: dict[str, dict[str, float]]) -> None:
    joint, balanced = runs["joint"], runs["balanced"]
    assert joint["rho"] > 3
    assert balanced["rho"] < 1.6
    assert balanced["spectrum"] > joint["spectrum"] + 0.4  # the weaker branch
    assert balanced["accuracy"] > joint["accuracy"]
    assert (joint["k"], joint["dropped"]) == (1, 0)
    assert balanced["k"] < 0.9
    assert balanced["dropped"] > 3


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def norm(parameters: Any) -> float:
    return torch.cat([p.grad.flatten() for p in parameters]).norm().item()


@pytest.mark.slow
def test_modulation_balances_a_plain_loop(plain_runs: dict[str, dict[str, float]]) -> None:
    assert_balanced(plain_runs)


@pytest.mark.slow
def test_a_plain_loop_resumes_bit_for_bit() -> None:
    plain_loop = example("plain_loop")
    undisturbed, first, second = (plain_loop.Training(OPM(), OGM()) for _ in range(3))
    for number in range(3):
        undisturbed.epoch(number)
    first.epoch(0)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for number in (1, 2):
        second.epoch(number)
    assert torch.equal(torch.stack(second.rows), torch.stack(undisturbed.rows[STEPS_PER_EPOCH:]))
    assert same(second.model, undisturbed.model)
    forgetful = plain_loop.Training(OPM(), OGM())
    forgetful.load_state_dict({name: value for name, value in first.state_dict().items() if name != "balance"})
    forgetful.epoch(1)
    assert not torch.equal(torch.stack(forgetful.rows), torch.stack(second.rows[:STEPS_PER_EPOCH]))


@pytest.mark.slow
def test_a_lightning_module_gives_the_results_of_the_plain_loop(plain_runs: dict[str, dict[str, float]]) -> None:
    assert example("lightning_module", "lightning").main() == plain_runs


@pytest.mark.slow
def test_a_lightning_module_accumulates_clips_after_modulating_and_resumes(tmp_path: Path) -> None:
    module_of = example("lightning_module", "lightning")

    class Watched(module_of.Balanced):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(OPM(), OGM())
            self.norms: list[float] = []

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx % 2:  # .grad still holds the gradient of the last update
                self.norms.append(norm(self.parameters()))

    def fit(module: Any, epochs: int, checkpoint: Path | None = None) -> Any:
        trainer = module_of.lightning.Trainer(
            max_epochs=epochs,
            accumulate_grad_batches=2,
            gradient_clip_val=0.3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, module_of.loader(), ckpt_path=checkpoint)
        return trainer

    undisturbed, first, second = (Watched() for _ in range(3))
    fit(undisturbed, 2)
    assert undisturbed.balance.index == STEPS_PER_EPOCH
    clipped = [one for one in undisturbed.norms if one > 0.2999]
    assert len(clipped) > 5
    assert max(clipped) < 0.3001  # noise added after clipping would exceed the limit
    fit(first, 1).save_checkpoint(tmp_path / "one.ckpt")
    fit(second, 2, tmp_path / "one.ckpt")
    assert torch.equal(torch.stack(second.rows), torch.stack(undisturbed.rows[STEPS_PER_EPOCH // 2 :]))
    assert same(second, undisturbed)


@pytest.mark.slow
def test_modulation_balances_a_hugging_face_trainer() -> None:
    assert_balanced(example("huggingface_trainer", "transformers", "accelerate").main())


@pytest.mark.slow
def test_a_hugging_face_trainer_accumulates_clips_after_modulating_and_resumes(tmp_path: Path) -> None:
    module = example("huggingface_trainer", "transformers", "accelerate")
    norms = []

    class Watch(module.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            norms.append(norm(kwargs["model"].parameters()))

    def trained(out: str, steps: int, resume: str | None = None) -> tuple[nn.Module, Tensor]:
        trainer, callback = module.make_trainer(
            tmp_path / out,
            OPM(),
            OGM(),
            max_steps=steps,
            gradient_accumulation_steps=2,
            save_strategy="steps",
            save_steps=25,  # in the middle of the second epoch
        )
        callback.max_norm = 0.3
        trainer.add_callback(Watch())
        trainer.train(resume_from_checkpoint=resume)
        assert callback.balance.index == steps
        return trainer.model, torch.stack(callback.rows)

    model, rows = trained("one", 30)
    clipped = [one for one in norms if one > 0.2999]
    assert len(clipped) > 5
    assert max(clipped) < 0.3001
    dropped = dict(zip(model.balance.columns, rows.sum(dim=0).tolist(), strict=True))["dropped/pixels"]
    assert dropped > 0
    again, last_rows = trained("one", 30, resume=str(tmp_path / "one" / "checkpoint-25"))
    assert torch.equal(last_rows, rows[25:])
    assert same(again, model)
    with pytest.raises(ValueError, match=r"max_grad_norm is 1\.0"):
        module.make_trainer(tmp_path / "two", OGM(), max_steps=1, max_grad_norm=1.0)[0].train()


@pytest.mark.slow
def test_two_ranks_give_the_results_of_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(EXAMPLES / "ddp.py"), "--epochs", "2", "--save", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "2 ranks" in done.stdout
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first["rows"], second["rows"])
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    model, rows = example("ddp").train(ProcessInfo(0, 1, 0, torch.device("cpu")), 2)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(first["model"][name], value, rtol=1e-4, atol=1e-5)
    journal = dict(zip(model.balance.columns, torch.stack(rows).unbind(dim=1), strict=True))
    for column, (name, values) in enumerate(journal.items()):
        exact = name.startswith("dropped")
        torch.testing.assert_close(first["rows"][:, column], values, rtol=0 if exact else 1e-4, atol=0)
    assert journal["dropped/pixels"].sum() > 0
    assert journal["k/pixels"].min() < 1
