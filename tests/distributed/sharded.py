"""What the tests of sharding train: toys in double precision and the systems on small pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def whole_state(method: nn.Module) -> dict[str, Tensor]:
    state = method.state_dict()
    return {name: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() for name, v in state.items()}


def fit(
    method: Any, output: str, *, num: int = 37, test: int = 0, optimiser: dict[str, Any] | None = None,
    callbacks: tuple[Any, ...] = (), resume: bool = False, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Three steps, the last of an uneven batch; the whole state, the metrics, and what this process holds."""
    from nearfar import distributed
    from nearfar.config import OptimiserConfig, TrainerConfig
    from nearfar.data import Data, without_test
    from nearfar.train import Trainer
    from toys import Vectors

    config = TrainerConfig(**{
        "epochs": 1, "batch_size": 16, "drop_last": False, "log_every": 1, "evaluate_every": 1, "progress": False,
        "device": "cpu", "output": output,
    } | options)  # fmt: skip
    source = Vectors(num)
    data = Data(train=source, test=Vectors(test, seed=3)) if test else without_test(source)
    trainer = Trainer(
        method, data, config, optimiser=OptimiserConfig(**{"lr": 0.02} | (optimiser or {})), callbacks=callbacks
    )
    run = trainer.fit(resume)
    rows = [row for row in run.metrics if "loss" in row]
    held = [distributed.local(p) for p in method.parameters()]
    states = [s for o in trainer.engine.optimisers.values() for values in o.state.values() for s in values.values()]
    return {
        "state": whole_state(method),
        "loss": [row["loss"] for row in rows],
        "norm": [row["gradient_norm"] for row in rows],
        "scores": {n: s["value"] for n, s in run.scores.get("after", {}).items()},
        "parameter_bytes": sum(p.numel() * p.element_size() for p in held),
        "optimiser_bytes": sum(distributed.local(s).numel() * s.element_size() for s in states if s.ndim),
    }


def toy(**options: Any) -> Any:
    """A toy in double precision, so that processes agree to rounding; a head and a temperature in the loss alone."""
    from nearfar import distributed
    from nearfar.batch import Batch, View
    from nearfar.method import Progress, Terms
    from nearfar.objectives import NTXent
    from toys import Toy

    class Double(Toy):
        def __init__(self) -> None:
            super().__init__(centre=True, **options)
            self.head = nn.Linear(8, 7)  # rows that do not divide among processes
            self.objective = NTXent(temperature=0.3, learnable_temperature=True)
            self.double()

        def views(self, batch: Batch, rng: Any) -> Batch:
            batch = super().views(batch, rng)
            return {**batch, "views": [View(view.data.double()) for view in batch["views"]]}

        def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Any, progress: Progress) -> Terms:
            z_BVD = self.head(z["embedding"])
            gathered, offset = None, 0
            if distributed.world() > 1:
                gathered = distributed.gather(z_BVD).transpose(0, 1)
                offset = distributed.offset(len(z_BVD))
            z_VBD = z_BVD.transpose(0, 1)
            loss, stats = self.objective(z_VBD, gathered=gathered, offset=offset, with_stats=True)
            return Terms().add("contrast", loss, count=stats.num_anchors)

        def features(self, batch: Batch, output: str = "default") -> Tensor:
            return self.encoder(batch["x"].double())

    torch.manual_seed(0)
    return Double()


class Holds(nn.Module):
    """Mixed into a method: its first layer is held in the first step, its last one moves half as fast."""

    def on_gradients(self, progress: Any) -> None:
        first, last = self.encoder[0].weight, self.encoder[4].weight
        if progress.step == 0:
            first.grad = None
        last.grad.mul_(0.5)


def holding() -> Any:
    method = toy()
    method.__class__ = type("Holding", (Holds, type(method)), {})
    return method


def own_update() -> Any:
    """Two optimisers, an update of its own, and work over the whole data before each epoch."""
    method = toy()

    class OwnUpdate(type(method)):  # type: ignore[misc]
        def optimisers(self) -> Any:
            return {"main": self.encoder.parameters(), "rest": [*self.head.parameters(), *self.objective.parameters()]}

        def on_epoch(self, engine: Any) -> None:
            self.centre.copy_(engine.features()[0].mean(0))

        def update(self, batch: Any, engine: Any) -> Any:
            _, terms = engine.call("terms", batch, {}, engine.progress)
            engine.backward(terms)
            engine.step("main")
            engine.step("rest")
            return terms

    method.__class__ = OwnUpdate
    return method


def poisoned() -> Any:
    """A loss that is not finite in the second step."""
    method = toy()

    class Poisoned(type(method)):  # type: ignore[misc]
        def loss(self, z: Any, batch: Any, targets: Any, progress: Any) -> Any:
            terms = super().loss(z, batch, targets, progress)
            if progress.step == 1:
                terms.values = {name: value * float("nan") for name, value in terms.values.items()}
            return terms

    method.__class__ = Poisoned
    return method


LARS = {"name": "lars", "lr": 0.5, "trust": 0.1, "weight_decay": 0.1}
TOYS: dict[str, dict[str, Any]] = {
    "adamw, clipped, evaluated": {"clip_norm": 0.5, "test": 15},
    "lars": {"optimiser": LARS},
    "sgd, rates by layer, frozen": {
        "optimiser": {"name": "sgd", "lr": 0.1, "layer_decay": 0.5, "freeze": ("encoder.0",), "nesterov": True},
        "clip_norm": 0.1,
    },
    "cache": {"cache": 3, "clip_norm": 0.5},
}

SYSTEMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "simclr, batch norm": ("simclr", {"learnable_temperature": True}, {}),
    "simclr, group norm": ("simclr", {"learnable_temperature": True, "head": "layer"}, {"norm": "group"}),
    "simclr, transformer": ("simclr", {"head": "layer"}, {"name": "tiny-vit", "dim": 16}),
    "supcon": ("supcon", {}, {}),
    "moco": ("moco", {"queue": 20, "momentum": 0.5}, {}),
    "moco, transformer": ("moco", {"queue": 20, "momentum": 0.5}, {"name": "tiny-vit", "dim": 16}),
}


def image_system(case: str, output: str, **options: Any) -> dict[str, Any]:
    """Three steps of a system on small pictures, the last of an uneven batch."""
    from catalogue.test_conformance import images, small
    from nearfar.train import Trainer
    from nearfar_images import pipeline

    slug, changes, encoder = SYSTEMS[case]
    recipe = small(slug, output, **options)
    if "head" in changes:
        changes = changes | {"head": dataclasses.replace(recipe.method.head, norm=changes["head"])}
    recipe = dataclasses.replace(
        recipe,
        method=dataclasses.replace(recipe.method, **changes),
        encoder=dataclasses.replace(recipe.encoder, **encoder),
    )
    data, method = pipeline.build(recipe, images())
    data = dataclasses.replace(data, test=images(0).test)
    run = Trainer(method, data, recipe.trainer, optimiser=recipe.optimiser).fit()
    return {"state": whole_state(method), "loss": [row["loss"] for row in run.metrics if "loss" in row]}


def train_all(folder: str, parallel: str) -> dict[str, Any]:
    """Every case whose numbers do not depend on the number of processes."""
    torch.set_num_threads(1)
    found = {name: fit(toy(), f"{folder}/{name}", parallel=parallel, **options) for name, options in TOYS.items()}
    found["on_gradients"] = fit(holding(), f"{folder}/holding", parallel=parallel)
    found["own update"] = fit(own_update(), f"{folder}/own", parallel=parallel)
    found["not finite"] = fit(poisoned(), f"{folder}/poisoned", parallel=parallel)
    for case in SYSTEMS:
        found[case] = image_system(case, f"{folder}/{case}", parallel=parallel)
    return found
