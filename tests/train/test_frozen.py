"""A frozen tower says the same all through training: no gradient, no dropout, no batch statistics, no step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nearfar.batch import Batch
from nearfar.config import EvaluateConfig, OptimiserConfig, TrainerConfig
from nearfar.data import Data
from nearfar.method import Engine, Progress
from nearfar.train import Trainer
from toys import Toy, Vectors


class Towers(Toy):
    """A tower with everything that training mode changes, below an encoder that learns."""

    outputs = ("default", "tower")

    def __init__(self) -> None:
        super().__init__(dropout=0.1, centre=True)
        self.tower = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8))
        self.modes: list[tuple[bool, ...]] = []

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        self.modes.append((self.encoder.training, *(module.training for module in self.tower.modules())))
        x = torch.cat([self.tower(view.data) for view in batch["views"]])
        return {"embedding": self.encoder(x).unflatten(0, (2, -1)).transpose(0, 1)}

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        x = self.tower(batch["x"])
        return x if output == "tower" else self.encoder(x)


def fit(output: Path, method: Towers, *, resume: bool = False, callbacks: Any = (), **changes: Any) -> Trainer:
    """Two epochs of five steps, with scores after each, which switch the method to evaluation and back."""
    options: dict[str, Any] = {
        "epochs": 2, "batch_size": 8, "evaluate_every": 1, "log_every": 1, "progress": False, "device": "cpu",
        "output": str(output),
    } | changes  # fmt: skip
    trainer = Trainer(
        method, Data(train=Vectors(40), test=Vectors(15, seed=3)), TrainerConfig(**options),
        optimiser=OptimiserConfig(lr=0.05, weight_decay=0.1, freeze=("tower",)), callbacks=callbacks,
        evaluate=EvaluateConfig(num_neighbours=3, per_class=2, few_label_draws=2),
    )  # fmt: skip
    trainer.fit(resume)
    return trainer


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"cache": 3}], ids=["plain", "accumulate", "cache"])
def test_nothing_of_it_moves_and_every_module_stays_in_eval_mode(tmp_path: Path, changes: dict[str, int]) -> None:
    method = Towers()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    trainer = fit(tmp_path / "run", method, **changes)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("tower."), name
    assert all(p.grad is None for p in method.tower.parameters())
    held = {id(p) for p in method.tower.parameters()}
    stepped = {id(p) for one in trainer.engine.optimisers.values() for g in one.param_groups for p in g["params"]}
    assert not held & stepped
    if "cache" not in changes:  # whose probe tries the encoder in other modes
        assert set(method.modes) == {(True, *[False] * 5)}
    else:
        assert not any(any(modes[1:]) for modes in method.modes)
        assert (True, *[False] * 5) in method.modes


def test_its_features_are_those_it_had(tmp_path: Path) -> None:
    method = Towers().eval()
    x = Vectors(40).x
    with torch.no_grad():
        before = method.tower(x)
    trainer = fit(tmp_path / "run", method)
    features, _ = trainer.features("tower")
    assert torch.equal(features, before)
    assert torch.equal(method.tower.train(False)(x), before)


def test_a_resumed_run_freezes_it_again(tmp_path: Path) -> None:
    def stop(trainer: Trainer, row: dict[str, Any]) -> None:
        if trainer.step == 7:
            raise RuntimeError("stopped")

    method, other = Towers(), Towers()
    before = {name: value.clone() for name, value in method.tower.state_dict().items()}
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path / "run", method, callbacks=[stop])
    assert not torch.equal(other.tower[0].weight, before["0.weight"])  # those of the checkpoint count
    fit(tmp_path / "run", other, resume=True)
    assert len(other.modes) == 5
    assert set(other.modes) == {(True, *[False] * 5)}
    for name, value in other.tower.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_method_with_its_own_update_meets_the_same_modes(tmp_path: Path) -> None:
    class Own(Towers):
        cache = "no: it makes its own updates"

        def update(self, batch: Batch, engine: Engine) -> Any:
            z = self.encode(batch)
            terms = self.loss(z, batch, {}, engine.progress)
            engine.backward(terms)
            engine.step()
            self.after_update(z, {}, engine.progress)
            return terms

        def on_epoch(self, engine: Engine) -> None:
            engine.features()  # switches to evaluation and back

        def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
            super().after_update({"embedding": z["embedding"].detach()}, targets, progress)

    method = Own()
    before = method.tower[1].running_mean.clone()
    fit(tmp_path / "run", method)
    assert set(method.modes) == {(True, *[False] * 5)}
    assert torch.equal(method.tower[1].running_mean, before)


def test_a_frozen_key_encoder_keeps_its_statistics() -> None:
    from nearfar.batch import View
    from nearfar.config import ContrastConfig, HeadConfig, ImageViewConfig
    from nearfar.methods import Contrast
    from nearfar.models import ConvNet
    from nearfar.views import ImageViews

    views = ImageViews(ImageViewConfig(), size=8, channels=1)
    config = ContrastConfig(loss="info_nce", key_encoder="frozen", head=HeadConfig(dim=8))
    method = Contrast(config, ConvNet(1, width=4, dim=8), views).train()
    assert method.teacher is not None
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    batch = {"index": torch.arange(8), "views": [View(torch.randn(8, 1, 8, 8)) for _ in range(2)]}
    method.targets(batch, Progress())
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())
