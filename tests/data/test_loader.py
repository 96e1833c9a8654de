"""The same batches for every number of workers, from any start, over any number of processes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.pictures import classes
from nearfar.batch import Batch, Ragged, size
from nearfar.data import ArraySource, ImageFolder, Loader, Source, Subset, Wrapped, digits, memory_map
from nearfar.samplers import Sequential, Shuffle


class Noisy:
    """A dataset with random transforms from all three generators."""

    targets = tuple(i % 3 for i in range(23))

    def __len__(self) -> int:
        return 23

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        draws = [random.randrange(256), int(np.random.randint(256)), int(torch.randint(256, ()))]  # noqa: NPY002
        return np.array([draws], dtype=np.uint8), i % 3


def equal(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            if isinstance(one[name], Ragged):
                assert torch.equal(one[name].values, two[name].values)
                assert torch.equal(one[name].shapes, two[name].shapes)
            else:
                assert torch.equal(one[name], two[name])


def sources(tmp_path: Path) -> dict[str, Source]:
    ragged = ImageFolder(classes(tmp_path / "ragged", num=10, sizes=True))
    return {
        "wrapped": Wrapped(Noisy()),
        "array": ArraySource(np.random.default_rng(0).integers(0, 256, (23, 4, 4), dtype=np.uint8), np.arange(23) % 3),
        "files": ragged,
        "mapped": memory_map(ragged, memory_gb=1.0, cache=str(tmp_path / "cache")),
        "subset": Subset(Subset(ragged, np.arange(19)), np.arange(17)[::-1]),
    }


@pytest.mark.parametrize("name", ["wrapped", "array", "files", "mapped", "subset"])
def test_workers_change_nothing(tmp_path: Path, name: str) -> None:
    source = sources(tmp_path)[name]
    sampler = Shuffle(len(source), 5, seed=1, drop_last=False)
    alone, helped = Loader(source, sampler), Loader(source, sampler, workers=2)
    for epoch in (0, 3):
        equal(list(alone.epoch(epoch)), list(helped.epoch(epoch)))
    equal(list(alone.epoch(3, start=2)), list(helped.epoch(3, start=2)))


def test_mapped_and_files_agree(tmp_path: Path) -> None:
    made = sources(tmp_path)
    sampler = Shuffle(20, 6, drop_last=False)
    equal(list(Loader(made["mapped"], sampler).epoch(0)), list(Loader(made["files"], sampler).epoch(0)))


@pytest.mark.parametrize("name", ["wrapped", "array", "files"])
def test_start_continues_the_epoch(tmp_path: Path, name: str) -> None:
    source = sources(tmp_path)[name]
    loader = Loader(source, Shuffle(len(source), 4, seed=2), seed=7)
    whole = list(loader.epoch(1))
    for start in range(len(whole) + 1):
        equal(list(loader.epoch(1, start)), whole[start:])


@pytest.mark.parametrize(("world", "batch"), [(2, 5), (3, 7), (4, 23)])
def test_parts_of_all_processes_make_the_global_batch(world: int, batch: int) -> None:
    source, sampler = Wrapped(Noisy()), Shuffle(23, batch, seed=4, drop_last=False)
    whole = list(Loader(source, sampler).epoch(2))
    parts = [list(Loader(source, sampler, rank=rank, world=world).epoch(2)) for rank in range(world)]
    for number, one in enumerate(whole):
        sizes = [size(part[number]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        for name in one:
            assert torch.equal(torch.cat([part[number][name] for part in parts]), one[name])


@pytest.mark.parametrize("name", ["wrapped", "array", "files"])
def test_a_part_without_samples_has_the_fields(tmp_path: Path, name: str) -> None:
    source = sources(tmp_path)[name]
    batches = list(Loader(source, Sequential(len(source), len(source) - 1), rank=1, world=2).epoch(0))
    assert [size(batch) for batch in batches] == [(len(source) - 1) // 2, 0]
    assert batches[1].keys() == batches[0].keys()
    assert batches[1]["label"].shape == (0,)
    assert batches[1]["image"].dtype == torch.uint8 if isinstance(batches[1]["image"], torch.Tensor) else True


def test_index_is_that_of_the_whole_source() -> None:
    source = digits()
    positions = np.arange(100, 300)
    batch = next(Loader(Subset(source, positions), Sequential(200, 50)).epoch(0))
    assert batch["index"].tolist() == list(range(100, 150))
    assert source.labels is not None
    assert batch["label"].tolist() == source.labels[100:150].tolist()


def test_epochs_and_seeds_differ() -> None:
    source = Wrapped(Noisy())
    seen: dict[tuple[int, int], Any] = {}
    for seed in range(2):
        loader = Loader(source, Sequential(23, 23), seed=seed)
        for epoch in range(2):
            batch = next(loader.epoch(epoch))
            assert torch.equal(next(loader.epoch(epoch))["image"], batch["image"])
            seen[seed, epoch] = batch["image"].numpy().tobytes()
    assert len(set(seen.values())) == 4
    orders = [torch.cat([b["index"] for b in Loader(source, Shuffle(23, 5)).epoch(epoch)]).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_generators_of_the_main_process_stay(request: pytest.FixtureRequest, workers: int) -> None:
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    list(Loader(Wrapped(Noisy()), Shuffle(23, 5), workers=workers).epoch(0))
    if not request.config.getoption("jaxtyping_packages"):  # its checks draw from this generator
        assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_an_epoch_may_be_left() -> None:
    batches = Loader(Wrapped(Noisy()), Shuffle(23, 2), workers=2).epoch(0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_bugs_of_a_dataset_pass_through(workers: int) -> None:
    class Broken(Noisy):
        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):  # whose traceback is still held here
        next(Loader(Wrapped(Broken()), Sequential(23, 5), workers=workers).epoch(0))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers: expected 0 or more"),
        ({"seed": -1}, "seed: expected 0 or more"),
        ({"max_bad_share": 2.0}, r"max_bad_share: expected a number in \[0, 1\], received 2.0"),
        ({"rank": 2, "world": 2}, "rank: expected a number from 0 to 1, received 2"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(digits(), Sequential(1797, 5), **options)


def test_refuses_an_empty_source() -> None:
    with pytest.raises(ValueError, match="source: expected at least one sample, received digits with none"):
        Loader(Subset(digits(), np.zeros(0, int)), Sequential(1, 1))


INTERRUPTED = """
import signal, time
import numpy as np
from nearfar.data import Loader, Wrapped
from nearfar.samplers import Sequential

class Slow:
    def __len__(self): return 4000
    def __getitem__(self, i):
        time.sleep(0.02)
        return np.zeros((4, 4), np.uint8)

batches = Loader(Wrapped(Slow()), Sequential(4000, 4), workers=2).epoch(0)
next(batches)
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
print("ready", flush=True)
while not asked: next(batches)
for _ in range(10): next(batches)
try:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("went on", flush=True)  # within the try: the answer can come before the next line
    for batch in batches: pass
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_interrupts_are_for_the_main_process_to_answer() -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for wanted in ("ready\n", "went on\n"):  # a trainer finishes its step first; then a second Ctrl-C
            assert process.stdout.readline() == wanted
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "stopped\n", "")
