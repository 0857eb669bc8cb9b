"""The processes of test_parallel: one alone, two ranks, four ranks; each trains under every modulation.

Run as a script: `parallel_worker.py FOLDER PORT2 PORT4`, with the ports of the stores where two and four ranks meet.
What came out is FOLDER/WORLD-RANK.json. The ranks are forked, so that torch is imported once; when one fails, the
others are ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.multiprocessing import start_processes
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bmlpipe.train.distributed.group import ProcessInfo, all_equal, process_group, unequal_tensors
from bmlpipe.train.models.fusion import make_fusion
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation import OGM, OPM, Modulation, Rule
from bmlpipe.train.modulation.rules.dropouts import Dropout, EvolutionalDropout
from bmlpipe.train.modulation.rules.moddrop import ModDrop
from bmlpipe.train.modulation.rules.ogm import OGMStar
from bmlpipe.train.modulation.scores import unimodal_logits, unimodal_scores

NAMES = ("audio", "visual")
STEPS = 8
GLOBAL_BATCH = 16
RULES: dict[str, tuple[Rule, ...]] = {
    "none": (),
    "opm": (OPM(),),
    "ogm": (OGM(),),
    "opm+ogm": (OPM(), OGM()),
    "same step": (OPM(same_step=True, p_exe=0.7, rescale=True), OGM(form="cvpr", parameters="convolutions")),
    "batch unit": (OPM(unit="batch"), OGM(noise="damped")),
    "inputs": (OPM(target="input"), OGM(apply="lr")),
    "inputs of batches": (OPM(target="input", unit="batch"), OGMStar(apply="lr", form="constant")),
    "moddrop": (ModDrop(),),
    "dropout": (Dropout(), OGMStar()),
    "evolutional": (EvolutionalDropout(),),
}


class OwnNoise(Rule):
    """The fault that `all_equal` is there to find: noise from each rank's own generator."""

    def backward(self, encoders: Any, step: Any) -> None:
        """Add numbers that no other rank draws."""
        for encoder in encoders.values():
            for parameter in encoder.parameters():
                parameter.grad.add_(torch.randn_like(parameter))


def train(process: ProcessInfo, rules: tuple[Rule, ...], micro: int = 1) -> dict[str, Any]:
    """A few steps on this rank's share of each global batch."""
    torch.manual_seed(0)
    encoders = {m: nn.Sequential(nn.Flatten(1, 2), nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten()) for m in NAMES}
    model = MultimodalModel(encoders, make_fusion("concat", dict.fromkeys(NAMES, 64), 3))
    wrapped = DistributedDataParallel(model) if process.world_size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    modulation = Modulation(NAMES, *rules, seed=3)
    data = torch.Generator().manual_seed(1)
    torch.manual_seed(process.rank)  # from here on the ranks' own generators differ
    rows, extras = [], []
    for index in range(STEPS):
        labels = torch.randint(3, (GLOBAL_BATCH,), generator=data)
        inputs = {m: torch.randn(GLOBAL_BATCH, 1, 1, 6, 6, generator=data) for m in NAMES}
        inputs["audio"][torch.arange(GLOBAL_BATCH), 0, 0, :, labels] += 2
        ids = torch.arange(GLOBAL_BATCH) + GLOBAL_BATCH * index
        optimizer.zero_grad()
        mine = torch.arange(GLOBAL_BATCH)[process.rank :: process.world_size]
        loss = torch.zeros(())
        parts = mine.chunk(micro)
        for part in parts:

            def feature_hook(features: Any, part: Any = part, labels: Any = labels, ids: Any = ids) -> Any:
                alone = unimodal_scores(unimodal_logits(model.head, features), labels[part])
                return modulation.forward(features, alone, ids[part])

            seen = modulation.inputs({m: value[part] for m, value in inputs.items()}, ids[part])
            loss = cross_entropy(wrapped(seen, feature_hook), labels[part])
            if part is parts[-1]:
                modulation.reduce(torch.stack([loss, torch.tensor(float(process.rank))]))
            (loss / micro).backward()
        modulation.backward(model.encoders)
        modulation.update(optimizer.step, model.encoders)
        rows.append({name: value.item() for name, value in modulation.telemetry().items()})
        extras.append(modulation.extra.tolist())
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {
        "rows": rows,
        "extras": extras,
        "parameters": parameters.tolist(),
        "sha256": hashlib.sha256(parameters.numpy().tobytes()).hexdigest(),
        "all_equal": all_equal(model),
        "differing": unequal_tensors(model),
    }


def rank_main(rank: int, world: int, port: str, folder: Path) -> None:
    """Everything that test_parallel looks at, of one rank."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with process_group("cpu", timeout=timedelta(seconds=30)) as process:
        result: dict[str, Any] = {
            "process": [process.rank, process.world_size, process.local_rank, str(process.device)]
        }
        result |= {name: train(process, rules) for name, rules in RULES.items()}
        result["accumulated"] = train(process, RULES["opm+ogm"], micro=2)
        result["own noise"] = train(process, (OwnNoise(),))
        layer = nn.BatchNorm1d(3)
        if process.rank == 1:
            layer.running_mean[1] = -0.0  # equal to 0.0, but not bitwise
        result["buffers"] = unequal_tensors(layer)
        result["group"] = torch.distributed.is_initialized()
    result["group after"] = torch.distributed.is_initialized()
    (folder / f"{world}-{rank}.json").write_text(json.dumps(result))


def main(folder: Path, ports: dict[int, str]) -> None:
    """One world after the other."""
    for world, port in ports.items():
        start_processes(rank_main, (world, port, folder), nprocs=world, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]), {1: "", 2: sys.argv[2], 4: sys.argv[3]})
