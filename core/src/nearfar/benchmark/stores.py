"""The vote of nearest neighbours, and a step of the queue of former keys, in each library.

Legend: Q queries, K bank, D embedding.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.benchmark.cases import OURS
from nearfar.benchmark.subject import Subject, expect_close
from nearfar.evaluate import predict
from nearfar.memory import Queue

TEMPERATURE = 0.1


def knn(*, libraries: Sequence[str], bank: int, queries: int, dim: int, classes: int, k: int) -> Subject:
    """Votes weighted by exp(cosine / temperature) over unit rows around the centre of their class."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, classes, (bank + queries,), generator=generator)
    centre = torch.randn(classes, dim, generator=generator)
    x = normalize(centre[label] + 2 * torch.randn(len(label), dim, generator=generator), dim=1)
    bank_x, bank_y, query_x = x[:bank], label[:bank], x[bank:]
    steps: dict[str, Callable[[], Tensor]] = {}
    for library in libraries:
        if library == OURS:
            steps[library] = lambda: predict(bank_x, bank_y, query_x, k=k, weights="softmax", temperature=TEMPERATURE)
        else:
            vote = importlib.import_module("lightly.utils.benchmarking.knn").knn_predict
            steps[library] = lambda vote=vote: vote(query_x, bank_x.T, bank_y, classes, k, TEMPERATURE)[:, 0]

    def compare() -> dict[str, float]:
        first, *others = [step() for step in steps.values()]
        apart = max(float((first != other).double().mean()) for other in others)
        expect_close("the share of queries with another prediction", apart, 0.01)  # sums may tie
        return {"other_predictions": apart}

    return Subject(steps=steps, compare=compare)


def queue(*, libraries: Sequence[str], size: int, batch: int, dim: int) -> Subject:
    """Reads all rows of a full queue, then writes a batch."""
    rows, key = (_unit(num, dim, seed) for seed, num in enumerate((size, batch)))
    steps: dict[str, Callable[[], Any]] = {}
    banks: dict[str, Callable[[], Tensor]] = {}
    for library in libraries:
        if library == OURS:
            ours = Queue(size, key=dim)
            ours.push(key=rows)

            def step(ours: Queue = ours) -> None:
                ours.view("key")
                ours.push(key=key)

            steps[library], banks[library] = step, lambda ours=ours: ours.view("key")
        else:
            theirs = importlib.import_module("lightly.models.modules.memory_bank").MemoryBankModule(size=(size, dim))
            theirs.bank.copy_(rows)
            steps[library] = lambda theirs=theirs: theirs(key, update=True)
            banks[library] = lambda theirs=theirs: theirs.bank

    def compare() -> dict[str, float]:
        for one in steps.values():
            one()
        first, *others = [bank() for bank in banks.values()]
        apart = max(float((first - other).abs().max()) for other in others)
        expect_close("the bank after a step", apart, 0.0)
        return {"bank": apart}

    return Subject(steps=steps, compare=compare)


def _unit(num: int, dim: int, seed: int) -> Tensor:
    return normalize(torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)), dim=1)
