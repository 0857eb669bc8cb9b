"""Memory of batches is reused, and never while a part of it is in use, within and between processes."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bmlpipe.train.data import shared_memory as buffers
from bmlpipe.train.data.shared_memory import Allocate, MemoryPool, SharedMemoryDataset

SHM = Path("/dev/shm")
SHAPE = (64, 250)  # of 4-byte numbers: more than a page
Arrays = dict[str, np.ndarray]


def load(items: Sequence[int], allocate: Allocate) -> Arrays:
    """A batch whose every number says which it is."""
    if items[0] < 0:
        raise ValueError("a damaged sample")
    large = allocate("large", (len(items), *SHAPE), np.int32)
    large[:] = np.array(items).reshape(-1, 1, 1)
    return {"number": np.array(items), "large": large}


def finish(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def whole(batch: dict[str, torch.Tensor]) -> bool:
    """Whether a batch still holds what was loaded."""
    return bool((batch["large"] == batch["number"][:, None, None]).all())


def arrived(workers: SharedMemoryDataset, items: Sequence[int]) -> dict[str, torch.Tensor]:
    """A batch as the training process gets it, without a worker between."""
    make, parts = workers.__getitems__(items).__reduce__()
    return make(*parts)  # type: ignore[no-any-return]


def private() -> Callable[[list[int]], dict[str, torch.Tensor]]:
    blocks = MemoryPool(3)
    return lambda items: finish(load(items, blocks.array))


def shared() -> Callable[[list[int]], dict[str, torch.Tensor]]:
    workers = SharedMemoryDataset(load, finish, keep=3)
    return lambda items: arrived(workers, items)


@pytest.fixture(params=[private, shared], ids=["private", "shared"])
def loaded(request: pytest.FixtureRequest) -> Callable[[list[int]], dict[str, torch.Tensor]]:
    made: Callable[[list[int]], dict[str, torch.Tensor]] = request.param()
    return made


Loaded = Callable[[list[int]], dict[str, torch.Tensor]]


def test_memory_is_reused_as_soon_as_nothing_refers_to_it(loaded: Loaded) -> None:
    places = set()
    for number in range(20):
        batch = loaded([number, number])
        assert whole(batch)
        places.add(batch["large"].data_ptr())
    assert len(places) == 2  # one is held while the next is made


@pytest.mark.parametrize(
    "part",
    [
        lambda batch: batch["large"][1:2, 3],
        lambda batch: batch["large"].permute(2, 1, 0).numpy()[5:],
        lambda batch: batch["large"].view(torch.uint8).flatten()[7:],
        lambda batch: memoryview(batch["large"].numpy()),
        lambda batch: batch["large"].detach(),
    ],
    ids=["slice", "array", "view", "buffer", "detached"],
)
def test_a_reference_to_any_part_keeps_the_memory(loaded: Loaded, part: Callable[[Any], Any]) -> None:
    held = part(loaded([7, 7]))
    gc.collect()
    before = np.asarray(held).copy()
    others = [loaded([100 + n, 100 + n]) for n in range(10)]
    assert np.array_equal(np.asarray(held), before)
    assert all(map(whole, others))


def test_tensors_saved_by_autograd_are_not_overwritten(loaded: Loaded) -> None:
    factor = torch.ones(1, requires_grad=True)
    product = (factor * loaded([3, 3])["large"]).sum()
    for number in range(5):
        loaded([number, number])
    product.backward()
    assert factor.grad is not None
    assert factor.grad.item() == 3 * 2 * np.prod(SHAPE)


def test_all_batches_may_be_kept_but_the_pool_stays_bounded(loaded: Loaded) -> None:
    batches = [loaded([number, -number + 50]) for number in range(12)]
    assert all(map(whole, batches))
    assert len({batch["large"].data_ptr() for batch in batches}) == 12
    kept = {batch["large"].data_ptr() for batch in batches[:3]}
    del batches
    again = [loaded([number, number]) for number in range(3)]
    assert {batch["large"].data_ptr() for batch in again} == kept


def test_sizes_may_change_from_batch_to_batch() -> None:
    blocks = MemoryPool(2)
    for count in (4, 3, 4, 1, 9, 4, 9, 1):
        batches = [finish(load([number] * count, blocks.array)) for number in range(3)]
        assert all(map(whole, batches))
        assert len(blocks._blocks) <= 2
    few = finish(load([1], blocks.array))
    assert all(len(block) < 4 * few["large"].nbytes for block in blocks._blocks if block[0])  # no large one for a small


def test_a_batch_that_fails_frees_its_memory() -> None:
    def failing(items: Sequence[int], allocate: Allocate) -> Arrays:
        load([items[0]], allocate)
        raise ValueError("a damaged sample")

    workers = SharedMemoryDataset(failing, finish, keep=3)
    for _ in range(3):
        with pytest.raises(ValueError, match="damaged"):
            workers.__getitems__([1])
    assert [int(block[0]) for block in workers._pool._blocks] == [0]


def test_copies_of_a_pool_start_empty() -> None:
    blocks = MemoryPool(3)
    held = blocks.array("large", (3,), np.uint8)
    copy = pickle.loads(pickle.dumps(blocks))
    assert not np.shares_memory(copy.array("large", (3,), np.uint8), held)


def test_a_forked_process_frees_nothing_that_its_parent_uses() -> None:
    blocks = MemoryPool(3, shared=True)
    batch = finish(load([5], blocks.array))
    place = batch["large"].data_ptr()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as in a worker: the threads of the parent are not here
        del batch
        gc.collect()
        blocks.take((1, *SHAPE), np.int32).fill_(9)  # and it takes none of its parent's
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert blocks._blocks[0][0] == 1
    assert finish(load([6], blocks.array))["large"].data_ptr() != place
    assert whole(batch)


def test_too_little_shared_memory_is_an_error_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(buffers.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 4, 5))
    workers = SharedMemoryDataset(load, finish, keep=3)
    with pytest.raises(
        RuntimeError, match=r"/dev/shm has 5 bytes left, .* takes 128064: .*--shm-size.* fewer --workers"
    ):
        workers.__getitems__([1, 2])


# ----- with worker processes -----


def loader(count: int, **options: Any) -> DataLoader[dict[str, torch.Tensor]]:
    batches = [[number, number + 1] for number in range(count)] + [[count]]  # the last one is smaller
    workers = SharedMemoryDataset(load, finish, keep=4)
    return DataLoader(
        workers, batch_sampler=batches, collate_fn=_as_it_is, **({"num_workers": 2, "timeout": 60} | options)
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def wait_until(holds: Callable[[], bool], message: str) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, message
        time.sleep(0.05)


def left_files() -> set[Path]:
    """Shared memory of torch whose process has ended: `torch_<pid>_…`. Other tests may be running beside this one."""
    return {file for file in SHM.glob("torch_*") if not Path(f"/proc/{file.name.split('_')[1]}").exists()}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Neither shared memory nor descriptors are left behind."""

    def descriptors() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    next(iter(loader(3)))  # what multiprocessing keeps for good
    files, count = left_files(), descriptors()
    yield
    wait_until(lambda: descriptors() <= count, "descriptors were left open")
    wait_until(lambda: left_files() <= files, "shared memory was left behind")


@pytest.mark.usefixtures("nothing_left")
def test_batches_from_workers_are_intact_whether_kept_or_not() -> None:
    count = 60
    held, numbers = [], []
    for number, batch in enumerate(loader(count)):
        assert whole(batch)
        numbers.append(batch["number"].tolist())
        if number % 7 == 0:
            held.append(batch)
    assert numbers == [[number, number + 1] for number in range(count)] + [[count]]
    assert all(map(whole, held))


@pytest.mark.usefixtures("nothing_left")
def test_a_loader_can_stop_early_and_start_again() -> None:
    again, held = loader(30, persistent_workers=True), []
    for _ in range(4):
        for number, batch in enumerate(again):
            assert batch["number"].tolist() == [number, number + 1]
            assert whole(batch)
            held = [*held[-3:], batch]
            if number == 9:
                break
    assert all(map(whole, held))
    del again, held, batch


@pytest.mark.slow
def test_a_killed_worker_ends_the_loop_and_leaves_nothing_behind() -> None:
    """In a process of its own: torch raises its error in whatever that process does when the signal arrives."""
    code = f"""
import multiprocessing, os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_shared_memory import loader, whole
coming = iter(loader(500))
held = [next(coming) for _ in range(3)]
assert all(map(whole, held))
os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
held += list(coming)
"""
    files = left_files()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert any(error in done.stderr for error in ("RuntimeError", "OSError", "EOFError", "ConnectionResetError"))
    wait_until(lambda: left_files() <= files, "shared memory was left behind")


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_an_error_in_a_worker_is_raised_here() -> None:
    options = {"batch_sampler": None, "num_workers": 1, "timeout": 60}
    damaged = DataLoader(
        SharedMemoryDataset(load, finish, keep=4), collate_fn=_as_it_is, **(options | {"batch_sampler": [[-1]]})
    )
    with pytest.raises(ValueError, match="a damaged sample"):
        list(damaged)
    del damaged


@pytest.mark.slow
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_may_be_spawned(context: str) -> None:
    assert all(map(whole, list(loader(12, multiprocessing_context=context))))


@pytest.mark.slow
def test_file_system_sharing_works_too(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
torch.multiprocessing.set_sharing_strategy("file_system")
from test_shared_memory import loader, whole
places = set()
for batch in loader(40):
    assert whole(batch)
held = list(loader(20))
assert all(map(whole, held))
"""
    files = left_files()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    wait_until(lambda: left_files() <= files, "shared memory was left behind")  # torch's own process removes it


def test_messages_between_processes_hold_no_arrays() -> None:
    sent = SharedMemoryDataset(load, finish, keep=2).__getitems__(list(range(100)))
    assert len(ForkingPickler.dumps(sent)) < 3000 < 100 * 4 * np.prod(SHAPE)
