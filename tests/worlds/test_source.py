"""A world as a source for the loader, the trainer and the image plugin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nearfar.batch import Batch, Ragged, collate
from nearfar.config import TrainerConfig
from nearfar.data import Loader, Source, Subset, labels_of
from nearfar.rng import Rng
from nearfar.samplers import Shuffle
from nearfar.train import Trainer
from nearfar.worlds import Factors, Joint, Scenes
from toys import Toy

WORLD = Scenes(Factors(num=(1, 3)))
SOURCE = WORLD.source(60, seed=3, label=("colour", "shape"), fields=("boxes", "caption", "mask_object", "relations"))


def test_it_is_a_source() -> None:
    assert isinstance(SOURCE, Source)
    assert len(SOURCE) == 60
    assert SOURCE.shape == (3, 64, 64)
    assert SOURCE.num_classes == len(SOURCE.class_names) == 64
    assert SOURCE.class_names[9] == "orange square"
    assert "scene 7" in SOURCE.path(7)


def test_labels_name_the_largest_thing() -> None:
    batch = WORLD.sample(60, seed=3)
    for i in range(60):
        k = int(batch["radius"][i].argmax())
        name = f"{WORLD.factors.colours[batch['colour'][i][k]]} {WORLD.factors.shapes[batch['shape'][i][k]]}"
        assert SOURCE.class_names[SOURCE.labels[i]] == name
        assert SOURCE[i]["label"] == SOURCE.labels[i]


@pytest.mark.parametrize(
    ("label", "names"),
    [(("background",), ("black", "grey", "white")), (("num",), ("0", "1", "2", "3")), (("size",), ("small", "large"))],
)
def test_labels_may_be_any_factor(label: tuple[str, ...], names: tuple[str, ...]) -> None:
    source = WORLD.source(40, label=label)
    assert source.class_names == names
    batch = WORLD.sample(40)
    if label != ("size",):
        assert np.array_equal(source.labels, batch[label[0]].numpy())
    assert set(source.labels.tolist()) <= set(range(len(names)))


def test_without_labels() -> None:
    source = WORLD.source(5, label=())
    assert source.labels is None
    assert source.num_classes == 0
    assert set(source[0]) == {"index", "image"}


def test_many_at_once_equal_single_samples() -> None:
    for positions in ([4, 30, 4], [7], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]):
        batch, single = SOURCE.batch(np.array(positions)), collate([SOURCE[i] for i in positions])
        assert batch.keys() == single.keys()
        for name, value in batch.items():
            if isinstance(value, Ragged):
                assert torch.equal(value.values, single[name].values)
                assert torch.equal(value.shapes, single[name].shapes)
            elif isinstance(value, torch.Tensor):
                assert torch.equal(value, single[name])
            else:
                assert value == single[name]


def test_a_loader_reads_it() -> None:
    loader = Loader(SOURCE, Shuffle(60, 16, seed=0, drop_last=True))
    seen = []
    for batch in loader.epoch(0):
        assert batch["image"].shape == (16, 3, 64, 64)
        assert torch.equal(batch["label"], labels_of(SOURCE, batch["index"]))
        seen += batch["index"].tolist()
    assert len(set(seen)) == len(seen) == 48
    part = Subset(SOURCE, np.arange(10, 20))
    assert np.array_equal(part.labels, SOURCE.labels[10:20])


class Coarse(Toy):
    """The toy method on the colours of four quarters of a picture."""

    def views(self, batch: Batch, rng: Rng) -> Batch:
        quarters = F.adaptive_avg_pool2d(batch["image"].float() / 255, 2).flatten(1)
        return super().views({**batch, "x": quarters[:, :8]}, rng)

    def features(self, batch: Batch, output: str = "default") -> torch.Tensor:
        quarters = F.adaptive_avg_pool2d(batch["image"].float() / 255, 2).flatten(1)
        return super().features({**batch, "x": quarters[:, :8]}, output)


def test_the_trainer_trains_on_it(tmp_path: Path) -> None:
    config = TrainerConfig(epochs=2, batch_size=16, output=str(tmp_path), device="cpu", progress=False)
    run = Trainer(Coarse(), WORLD.source(48, label=("background",)), config).fit()
    assert run.status["step"] == 6
    assert run.metrics


def test_fingerprints_tell_worlds_apart() -> None:
    factors = WORLD.factors
    tail = Scenes(factors, Joint(factors).long_tail("shape", 10))
    prints = {
        WORLD.source(60, seed=3).fingerprint(), WORLD.source(60, seed=4).fingerprint(),
        WORLD.source(61, seed=3).fingerprint(), tail.source(60, seed=3).fingerprint(), SOURCE.fingerprint(),
    }  # fmt: skip
    assert len(prints) == 5
    assert Scenes(Factors(num=(1, 3))).source(60, seed=3).fingerprint() == WORLD.source(60, seed=3).fingerprint()


def test_a_source_refuses() -> None:
    with pytest.raises(ValueError, match="label: expected one of .*did you mean 'shape'"):
        WORLD.source(5, label=("shap",))
    with pytest.raises(ValueError, match="fields: expected one of"):
        WORLD.source(5, fields=("box",))
    with pytest.raises(ValueError, match="n: expected 0 or more"):
        WORLD.source(-1)
    with pytest.raises(IndexError, match="sample: expected a number from 0 to 59, received 60"):
        SOURCE[60]
