"""HMLC as a system: its forms give the objective's losses, masks are fitted between epochs, bad input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from images.vectors import batch, forward, make
from nearfar.data import ArraySource, Data, unique_paths
from nearfar.method import Progress
from nearfar.objectives import hmce, hmlc, supcon
from nearfar.plugin import load_recipe
from nearfar_images import pipeline
from nearfar_images.data import SUPERCLASSES, superclasses
from nearfar_images.methods.hmlc import mean_cosine
from nearfar_images.systems.hmlc import HMLCConfig

PATH = torch.tensor([[0, 0], [0, 1], [0, 1], [0, 0], [1, 2], [1, 2], [1, 3]])


def raw() -> dict[str, Tensor]:
    return batch(7) | {"path": PATH}


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_attention(gate: Any) -> None:
    method = make(HMLCConfig(gate=gate, distinct=0.5, temperature=0.2))
    z, _, terms = forward(method, raw())
    scores = torch.stack([head(z) for head in method.attention])
    masks = scores.sigmoid() if gate == "sigmoid" else 128 * scores.softmax(-1)
    expected = hmlc(z, PATH, masks, temperature=0.2, balanced=[True, False])
    cosine = torch.nn.functional.cosine_similarity(masks[0], masks[1], dim=-1).mean()
    torch.testing.assert_close(terms.total, expected + 0.5 * cosine)
    torch.testing.assert_close(mean_cosine(masks), cosine)
    assert terms.counts["hmlc"] == 14


@pytest.mark.oracle("hmlc", 1)
def test_without_masks_it_is_a_sum_of_supcons() -> None:
    z, _, terms = forward(make(HMLCConfig(form="none", balanced=False)), raw())
    each = [supcon(z, PATH[:, h], temperature=0.1) for h in (0, 1)]
    torch.testing.assert_close(terms.total, (each[0] + each[1]) / 2)
    z, _, terms = forward(make(HMLCConfig(form="none", level_weight="finest")), raw())
    torch.testing.assert_close(terms.total, each[1])


def test_hmce() -> None:
    z, _, terms = forward(make(HMLCConfig(form="hmce")), raw())
    torch.testing.assert_close(terms.total, hmce(z, PATH, temperature=0.1))


def test_the_mixture_is_fitted_after_the_warm_up() -> None:
    method = make(HMLCConfig(form="mixture", warmup=2, every=2, samples=50))
    z, targets, terms = forward(method, raw())
    torch.testing.assert_close(terms.total, hmlc(z, PATH, temperature=0.1, balanced=[True, False]))
    for step in range(3):
        moved = {**raw(), "image": batch(7, step=step)["image"] + 4 * torch.eye(8)[PATH[:, 1]]}
        z, targets, _ = forward(method, moved)
        method.after_update({"embedding": z.transpose(0, 1)}, targets, Progress())
    assert len(method.samples) == 21
    kept = method.samples.view("embedding")[-7:]
    torch.testing.assert_close(kept, torch.nn.functional.normalize(z[0], dim=1))
    changes = []
    for epoch in range(5):
        before = method.masks.clone()
        if epoch == 3:
            method.masks.fill_(1.0)
            before = method.masks.clone()
        method.on_epoch(SimpleNamespace(progress=Progress(epoch=epoch)))
        changes.append(not torch.equal(before, method.masks))
    assert changes == [False, False, True, False, True]
    assert set(method.masks.unique().tolist()) == {0.0, 1.0}
    assert (method.masks.sum(1) >= 128 // 8).all()
    _, _, terms = forward(method, raw())
    z, *_ = forward(method, raw())
    torch.testing.assert_close(terms.total, hmlc(z, PATH, method.masks, temperature=0.1, balanced=[True, False]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0"),
        ({"levels": 0}, "method.levels: expected 1 or more"),
        ({"warmup": 0}, "method.warmup: expected 1 or more"),
        ({"distinct": -1.0}, "method.distinct: expected 0 or more"),
        ({"distinct": 1.0, "form": "none"}, "method.distinct: expected 0 without attention"),
        ({"form": "hmce", "level_weight": "finest"}, "method.level_weight: expected 'uniform' with form 'hmce'"),
        ({"key_encoder": "ema"}, "method.key_encoder: expected 'shared'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HMLCConfig(**options)


def test_levels_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="method.levels: expected 2, those of data.levels, received 3"):
        forward(make(HMLCConfig(levels=3)), raw())
    source = ArraySource(np.zeros((256, 8, 8), np.uint8), np.arange(256) % 2, name="toy")
    with pytest.raises(ValueError, match="data.levels: expected what gives samples a path, received none in toy"):
        pipeline.train(load_recipe("images/hmlc"), data=Data(source, source))


def test_superclasses_of_cifar100() -> None:
    names = sorted(name for members in SUPERCLASSES.values() for name in members.split())
    assert (len(names), len(set(names)), len(SUPERCLASSES)) == (100, 100, 20)
    found = superclasses([names.index("rose"), names.index("tank")], names)
    assert found.tolist() == ["flowers", "vehicles 2"]
    every = superclasses(np.arange(100), names)
    ids = unique_paths(np.stack([np.unique(every, return_inverse=True)[1], np.arange(100)], 1))
    assert np.bincount(ids[:, 0]).tolist() == [5] * 20
