"""The time and memory that modulation adds to a training step of two ResNet-18 encoders, audio and visual.

On CUDA the batch is 32, with 257 × 1004 spectrograms and three 224 × 224 frames. On the CPU it is 16, on one thread,
with 257 × 299 spectrograms and one 224 × 224 frame (the sizes of CREMA-D). All variants of the step run in turn in one
process on one model. Their order rotates, and the learning rate is 0, so every step starts from the same weights. The
plain step does not use bmlpipe's modulation at all. Two ratios are measured per variant:

- `step`: time of its step over that of the plain step of the same round, as CPU time or by CUDA events;
- `own`: 1 + the time inside the modulation (scores, forward, backward) over the rest of the same step. A machine's
  speed drifts from step to step but not within a step, so this ratio is the more precise one where the difference is
  about 1 %. It does not include what a modulation causes elsewhere (the gradient of a dropped feature).

Medians are printed with a 95 % interval of the median (order statistics, as in the sign test). `released_way` follows
the first published code of the method: a loop over samples with `.item()` for the scores, and noise with the standard
deviation of `.item()` for each convolution.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _measure import machine
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bmlpipe.train.models.encoders.resnet18 import ResNet18
from bmlpipe.train.models.fusion import make_fusion
from bmlpipe.train.modulation import OGM, OPM, Modulation
from bmlpipe.train.modulation.scores import unimodal_logits, unimodal_scores

MODALITIES = ("audio", "visual")
CLASSES = 31
WAYS: dict[str, tuple[Any, ...]] = {
    "opm": (OPM(),),
    "ogm": (OGM(),),
    "opm_ogm": (OPM(), OGM()),
    "ogm_noise_off": (OGM(noise="off"),),
}
NOISE_TARGET = {"cpu": 1.03, "cuda": 1.01}


class Bench:
    """One model, one batch, and each variant of the training step."""

    def __init__(self, device: torch.device) -> None:
        big = device.type == "cuda"
        self.device, self.batch = device, 32 if big else 16
        self.shapes = {"audio": (1, 1, 257, 1004 if big else 299), "visual": (3 if big else 1, 3, 224, 224)}
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({"audio": ResNet18(1), "visual": ResNet18(3)}).to(device)
        self.head = make_fusion("concat", dict.fromkeys(MODALITIES, 512), CLASSES).to(device)
        self.inputs = {m: torch.randn(self.batch, *shape, device=device) for m, shape in self.shapes.items()}
        self.labels = torch.randint(CLASSES, (self.batch,), device=device)
        self.ids = torch.arange(self.batch, device=device)
        parameters = [*self.encoders.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
        self.modulations = {way: Modulation(MODALITIES, *rules, seed=0) for way, rules in WAYS.items()}
        self.steps: dict[str, Callable[[], None]] = {"plain": self.plain, "released_way": self.released}
        self.steps |= {way: lambda way=way: self.modulated(self.modulations[way]) for way in WAYS}
        self.marks: list[tuple[str, Any]] = []

    def encode(self) -> dict[str, Tensor]:
        """{m: (B, 512)}."""
        return {m: encoder(self.inputs[m]) for m, encoder in self.encoders.items()}

    def plain(self) -> None:
        """Run the step without modulation."""
        loss = cross_entropy(self.head(self.encode()), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def modulated(self, balance: Modulation) -> None:
        """Run the step with modulation."""
        features = self.encode()
        with self.own():
            alone = unimodal_scores(unimodal_logits(self.head, features), self.labels)
            features = balance.forward(features, alone, self.ids)
        loss = cross_entropy(self.head(features), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        with self.own():
            balance.backward(self.encoders)
        self.optimizer.step()

    def released(self) -> None:
        """Run the step with OGM as in the first published code of the method."""
        features = self.encode()
        loss = cross_entropy(self.head(features), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        with self.own():
            logits = self.head.split_logits({m: feature.detach() for m, feature in features.items()})
            sums = dict.fromkeys(MODALITIES, 0.0)
            for m in MODALITIES:
                for i in range(self.batch):
                    sums[m] += torch.softmax(logits[m], dim=1)[i][self.labels[i]].item()
            for m, other in (MODALITIES, MODALITIES[::-1]):
                ratio = sums[m] / sums[other]
                k = 1 - math.tanh(0.8 * (ratio - 1)) if ratio > 1 else 1.0
                for parameter in self.encoders[m].parameters():
                    if parameter.ndim == 4:
                        noise = torch.zeros_like(parameter.grad).normal_(0, parameter.grad.std().item() + 1e-8)
                        parameter.grad = parameter.grad * k + noise
        self.optimizer.step()

    @contextmanager
    def own(self) -> Any:
        """Mark the time that is spent in the modulation."""
        self.mark("in")
        yield
        self.mark("out")

    def mark(self, what: str) -> None:
        """Record the CPU time of this process, or an event in the CUDA stream."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((what, event))
        else:
            self.marks.append((what, time.process_time()))

    def time(self, way: str) -> tuple[float, float]:
        """Run one step; returns its milliseconds, and the part of them inside the modulation."""
        self.marks = []
        self.mark("begin")
        self.steps[way]()
        self.mark("end")
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        gaps = [
            (one[0], one[1].elapsed_time(two[1]) if self.device.type == "cuda" else 1e3 * (two[1] - one[1]))
            for one, two in zip(self.marks, self.marks[1:])
        ]
        return sum(gap for _, gap in gaps), sum(gap for what, gap in gaps if what == "in")

    def memory(self) -> dict[str, float]:
        """Device memory of a step without and with OPM + OGM, in MB.

        On CUDA this is the peak of the allocator. On the CPU it is counted. Without modulation it is the weights,
        gradients, momentum and the tensors that autograd keeps. With modulation it is the same, or the allocations of
        the modulation where they are larger, because in the backward stage the graph has been freed already.
        `allocated` is the sum of all allocations of the modulation, as if it freed none of them.
        """
        if self.device.type == "cuda":
            peaks = []
            for way in ("plain", "opm_ogm"):
                torch.cuda.reset_peak_memory_stats()
                self.steps[way]()
                torch.cuda.synchronize()
                peaks.append(torch.cuda.max_memory_allocated() / 1e6)
            return {"without_mb": peaks[0], "with_mb": peaks[1], "ratio": peaks[1] / peaks[0]}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        balance = self.modulations["opm_ogm"]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = self.encode()
            with Allocations() as forward:
                features = balance.forward(
                    features, unimodal_scores(unimodal_logits(self.head, features), self.labels), self.ids
                )
            loss = cross_entropy(self.head(features), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        with Allocations() as backward:
            balance.backward(self.encoders)
        own = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state = 3 * sum(parameter.nbytes for parameter in own)
        for tensor in own:
            kept.pop(tensor.untyped_storage().data_ptr(), None)
        activations = sum(kept.values())
        without = state + activations
        peak = max(without + forward.bytes, state + backward.bytes)
        return {
            "without_mb": without / 1e6,
            "with_mb": peak / 1e6,
            "ratio": peak / without,
            "allocated_mb": (forward.bytes + backward.bytes) / 1e6,
        }

    def synchronisations(self) -> int | None:
        """Number of synchronisations with the device in a step with OPM + OGM; None on the CPU."""
        if self.device.type != "cuda":
            return None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            self.steps["opm_ogm"]()
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(one.message) for one in caught)


class Allocations(TorchDispatchMode):
    """Sums the bytes of all storages that are allocated while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compare the storages of inputs and outputs."""
        result = func(*args, **(kwargs or {}))
        before = {storage.data_ptr() for storage in _storages((args, kwargs))}
        self.bytes += sum(storage.nbytes() for storage in _storages(result) if storage.data_ptr() not in before)
        return result


def _storages(tree: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def summary(values: list[float]) -> dict[str, float]:
    """The median and its 95 % interval by order statistics (fewer than 6 values: their range)."""
    ordered, count = sorted(values), len(values)
    outside = 0
    while 2 * sum(math.comb(count, i) for i in range(outside + 1)) <= 0.05 * 2**count:
        outside += 1
    first = max(0, outside - 1)
    return {"median": statistics.median(ordered), "low": ordered[first], "high": ordered[count - 1 - first]}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the machine and the ratios")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help="default: 9 on the CPU, 60 on CUDA")
    options = parser.parse_args()
    device = torch.device(options.device)
    rounds = options.rounds or (60 if device.type == "cuda" else 9)
    torch.set_num_threads(1)
    bench = Bench(device)
    ways = list(bench.steps)
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(-5 if device.type == "cuda" else -1, rounds):
        shift = number % len(ways)
        for way in ways[shift:] + ways[:shift]:
            measured = bench.time(way)
            if number >= 0:  # the first rounds warm up
                taken[way].append(measured)
    plain = statistics.median(step for step, _ in taken["plain"])
    limits = dict.fromkeys(WAYS, NOISE_TARGET[device.type]) | {"opm": 1.01, "ogm_noise_off": 1.01}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    where = machine("torch") | {"device": name, "threads": torch.get_num_threads()}
    print(f"{where}\nplain step: {plain:.0f} ms, batch {bench.batch}, {bench.shapes}, {rounds} rounds")
    print("median and 95 % interval; the time of the modulation itself does not depend on the batch size")
    print(f"\n{'with ÷ without':14} {'step':>6} {'95 %':>15} {'own':>8} {'95 %':>17} {'own ms':>8}  target")
    ratios = {}
    for way in ["opm", "ogm", "opm_ogm", "ogm_noise_off", "released_way"]:
        step = summary([one / other for (one, _), (other, _) in zip(taken[way], taken["plain"], strict=True)])
        own = summary([1 + mine / (whole - mine) for whole, mine in taken[way]])
        milliseconds = statistics.median(mine for _, mine in taken[way])
        ratios[way] = {**step, "own": own, "own_ms": milliseconds}
        verdict = ""
        if way in limits:
            met = own["high"] <= limits[way] and step["low"] <= limits[way]
            ratios[way] |= {"target": limits[way], "met": met}
            verdict = f"≤ {limits[way]} {'met' if met else 'NOT MET'}"
        print(
            f"{way:14} {step['median']:6.3f} {step['low']:7.3f}–{step['high']:.3f} "
            f"{own['median']:8.4f} {own['low']:8.4f}–{own['high']:.4f} {milliseconds:8.1f}  {verdict}"
        )
    memory, waits = bench.memory(), bench.synchronisations()
    met = memory["ratio"] <= 1.01
    print(f"\nmemory per step: {memory} (≤ 1.01 {'met' if met else 'NOT MET'})")
    print(f"synchronisations per step: {'not measured, no GPU' if waits is None else waits}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        found = {"machine": where, "batch": bench.batch, "shapes": bench.shapes, "plain_ms": plain}
        found |= {"rounds": rounds, "ratios": ratios, "memory": memory, "synchronisations": waits}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
