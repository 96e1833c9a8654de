"""Training steps a second beside lightly: the same encoder, heads, views and batch, in one process.

    python benchmarks/steps.py                       all systems that lightly has too, written to results/steps.json
    python benchmarks/steps.py --systems simclr,byol --rounds 5 --no-write

Ours is the trainer's whole update (loss, gradient, clipping, optimiser, teacher, queue). Lightly's is the loop of its
own examples around copies of the same encoder and heads: its losses, memory bank, prototypes and momentum update, with
torch's AdamW. Both are given the same views, made beforehand; making views is timed by views.py. Run it on a machine
that does nothing else.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from common import interleaved, metadata, write
from torch import Tensor, nn

from nearfar.batch import collate
from nearfar.config import DataConfig, EncoderConfig, OptimiserConfig, TrainerConfig
from nearfar.method import Method
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.train.engine import Engine
from nearfar_images.data import open_images
from nearfar_images.pipeline import build

BATCH, SIDE, STEPS, THREADS = 256, 32, 1000, 2
RATE, DECAY = 1e-3, 1e-4


def ours(slug: str) -> tuple[Method, dict[str, Any], Callable[[], None]]:
    """The method of a system, a batch with its views, and one update of the trainer's."""
    recipe = load_recipe(f"images/{slug}")
    optimiser = OptimiserConfig(name="adamw", lr=RATE, weight_decay=DECAY)
    config = TrainerConfig(batch_size=BATCH, epochs=1)
    recipe = dataclasses.replace(
        recipe,
        data=DataConfig(source="digits", image_size=SIDE, channels=1),
        encoder=EncoderConfig(name="convnet", width=32, dim=128),
        optimiser=optimiser,
        trainer=config,
    )
    data, method = build(recipe, open_images(recipe.data))
    method.train()
    samples = collate([data.train[i] for i in range(BATCH)])
    batch = method.views(samples, Rng(0))
    engine = Engine(
        Accelerator(cpu=True), method, config, optimiser, steps=STEPS, steps_per_epoch=STEPS,
        features=lambda *_, **__: None,  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    return method, batch, lambda: engine.minimize(method, batch) and None


class Theirs:
    """Lightly's training loops, as its examples write them, around copies of the same encoder and heads."""

    def __init__(self, method: Any, batch: dict[str, Any]) -> None:
        from lightly.models.utils import deactivate_requires_grad

        self.encoder = copy.deepcopy(method.encoder).train()
        self.head = copy.deepcopy(method.head).train()
        self.predictor = copy.deepcopy(method.predictor).train()
        self.slow_encoder, self.slow_head = copy.deepcopy(self.encoder), copy.deepcopy(self.head)
        deactivate_requires_grad(self.slow_encoder)
        deactivate_requires_grad(self.slow_head)
        self.views = [view.data for view in batch["views"]]
        self.config = method.config
        self.dim = method.head.dim

    def step(self, loss: Callable[[], Tensor], *more: nn.Module) -> Callable[[], None]:
        trained = nn.ModuleList([self.encoder, self.head, self.predictor, *more])
        optimiser = torch.optim.AdamW(trained.parameters(), lr=RATE, weight_decay=DECAY)

        def run() -> None:
            value = loss()
            value.backward()
            optimiser.step()
            optimiser.zero_grad()

        return run

    def z(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

    def pair(self, criterion: nn.Module) -> Callable[[], None]:
        return self.step(lambda: criterion(self.z(self.views[0]), self.z(self.views[1])))

    def simclr(self) -> Callable[[], None]:
        from lightly.loss import NTXentLoss

        return self.pair(NTXentLoss(temperature=0.1))

    def dcl(self) -> Callable[[], None]:
        from lightly.loss import DCLLoss

        return self.pair(DCLLoss(temperature=0.1))

    def barlow(self) -> Callable[[], None]:
        from lightly.loss import BarlowTwinsLoss

        return self.pair(BarlowTwinsLoss())

    def vicreg(self) -> Callable[[], None]:
        from lightly.loss import VICRegLoss

        return self.pair(VICRegLoss())

    def _follow(self, momentum: float) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(self.encoder, self.slow_encoder, m=momentum)
        update_momentum(self.head, self.slow_head, m=momentum)

    def moco(self) -> Callable[[], None]:
        from lightly.loss import NTXentLoss
        from lightly.models.utils import batch_shuffle, batch_unshuffle

        criterion = NTXentLoss(temperature=0.1, memory_bank_size=(self.config.queue, self.dim))

        def loss() -> Tensor:
            self._follow(self.config.momentum)
            if not self.config.symmetric:
                return one_way(*self.views[:2])
            return 0.5 * (one_way(*self.views[:2]) + one_way(self.views[1], self.views[0]))

        def one_way(first: Tensor, second: Tensor) -> Tensor:
            query = self.z(first)
            with torch.no_grad():
                keys, order = batch_shuffle(second)
                key = batch_unshuffle(self.slow_head(self.slow_encoder(keys)), order)
            return criterion(query, key)

        return self.step(loss)

    def byol(self) -> Callable[[], None]:
        from lightly.loss import NegativeCosineSimilarity

        criterion = NegativeCosineSimilarity()

        def loss() -> Tensor:
            self._follow(self.config.momentum)
            p = [self.predictor(self.z(x)) for x in self.views]
            with torch.no_grad():
                z = [self.slow_head(self.slow_encoder(x)) for x in self.views]
            return 0.5 * (criterion(p[0], z[1]) + criterion(p[1], z[0]))

        return self.step(loss)

    def swav(self) -> Callable[[], None]:
        from lightly.loss import SwaVLoss
        from lightly.models.modules import SwaVPrototypes

        criterion, prototypes = SwaVLoss(), SwaVPrototypes(self.dim, self.config.num_prototypes, 1)
        high = [i for i, x in enumerate(self.views) if x.shape[-1] == self.views[0].shape[-1]]
        turn = iter(range(1, 1 << 30))

        def loss() -> Tensor:
            prototypes.normalize()
            now = next(turn)
            scores = [prototypes(nn.functional.normalize(self.z(x), dim=1), now) for x in self.views]
            low = [score for i, score in enumerate(scores) if i not in high]
            return criterion([scores[i] for i in high], low)

        return self.step(loss, prototypes)


SYSTEMS = ("simclr", "moco", "dcl", "swav", "byol", "barlow", "vicreg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    rows = {}
    for slug in options.systems.split(","):
        torch.manual_seed(0)
        method, batch, update = ours(slug)
        other = getattr(Theirs(method, batch), slug)()
        times = interleaved({"nearfar": update, "lightly": other}, options.rounds)
        ratio = times["lightly"]["median_ms"] / times["nearfar"]["median_ms"]
        rows[slug] = {**times, "times_as_fast": ratio}
        mine, its = times["nearfar"]["median_ms"], times["lightly"]["median_ms"]
        print(f"{slug:8s} nearfar {mine:7.1f} ms, lightly {its:7.1f} ms: {ratio:.2f}x", flush=True)
    if not options.no_write:
        setting = {"batch": BATCH, "side": SIDE, "encoder": "convnet, width 32", "rounds": options.rounds}
        print(write("steps", {"setting": setting, "systems": rows, "environment": metadata(("lightly",))}))


if __name__ == "__main__":
    main()
