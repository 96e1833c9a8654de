"""The conformance check must catch what it promises to catch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.batch import Batch, View, collate
from nearfar.method import Progress, Terms
from nearfar.testing import check_method
from toys import Toy, Vectors


@pytest.fixture
def batch() -> Batch:
    source = Vectors(12)
    return collate([source[i] for i in range(12)])


@pytest.mark.parametrize("options", [{}, {"dropout": 0.2}, {"norm": "batch"}, {"centre": True}])
def test_an_honest_method_passes(batch: Batch, options: dict) -> None:
    torch.manual_seed(0)
    check_method(Toy(**options), batch)


class Liar(Toy):
    def __init__(self) -> None:
        super().__init__(norm="batch")
        self.cache = "exact"


class Blamer(Toy):
    """Batch normalisation is not the only thing that mixes its samples."""

    def __init__(self) -> None:
        super().__init__(norm="batch")

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        z = super().encode(batch)["embedding"]
        return {"embedding": z - 0.5 * z.mean(0)}


class Writer(Toy):
    def __init__(self) -> None:
        super().__init__(centre=True)

    def loss(self, z: Any, batch: Batch, targets: Any, progress: Progress) -> Terms:
        self.centre.add_(1)
        return super().loss(z, batch, targets, progress)


class Global(Toy):
    def views(self, batch: Batch, rng: Any) -> Batch:
        return {**batch, "views": [View(batch["x"] + torch.randn_like(batch["x"])) for _ in range(2)]}


class Contextual(Toy):
    def views(self, batch: Batch, rng: Any) -> Batch:
        return {**batch, "views": [View(batch["x"] - batch["x"].mean(0)) for _ in range(2)]}


class Forgetful(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(())

    def loss(self, z: dict[str, Tensor], batch: Batch, targets: Any, progress: Progress) -> Terms:
        return Terms().add("x", z["embedding"].pow(2).mean() * self.scale)

    def after_update(self, z: Any, targets: Any, progress: Progress) -> None:
        self.scale = self.scale + 1

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self.scale = torch.ones(())
        return super().load_state_dict(*args, **kwargs)


class Idle(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Liar, "cache is not exact"),
        (Blamer, "cache is not exact"),
        (Writer, "encode and loss change"),
        (Global, "two calls with the same randomness differ"),
        (Contextual, "depends on its batch"),
        (Forgetful, "a copy loaded from it gives another loss"),
        (Idle, "no gradient reaches .*unused"),
    ],
)
def test_a_broken_promise_is_named(batch: Batch, method: type[Toy], message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=message):
        check_method(method(), batch)
