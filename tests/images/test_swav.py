"""SwAV's method around vectors and small images: loss, prototypes, queue, crops of two sizes.

Legend: V views, B samples, D embedding, K prototypes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from images import vectors
from nearfar.config import DataInfo, HeadConfig, ImageViewConfig
from nearfar.method import Progress
from nearfar.models import ConvNet
from nearfar.plugin import load_recipe
from nearfar.prototypes import swapped_prediction
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar.views import ImageViews
from nearfar_images.systems.swav import SwAVConfig

HEAD = HeadConfig(layers=2, hidden=12, dim=6, norm="none")
NOW = Progress(steps=10)


def config(**options: Any) -> SwAVConfig:
    return SwAVConfig(**{"num_prototypes": 5, "head": HEAD} | options)


@pytest.mark.parametrize("options", [{}, {"num_assigned": 1}, {"eps": 0.1, "temperature": 0.2, "num_iterations": 7}])
def test_loss_is_the_objective_of_the_embeddings(options: dict[str, Any]) -> None:
    method = vectors.make(config(**options), num_views=3)
    z_VBD, _, terms = vectors.forward(method, vectors.batch())
    torch.testing.assert_close(z_VBD.norm(dim=-1), torch.ones(3, 6))
    scores = z_VBD @ method.prototypes.T
    torch.testing.assert_close(terms.total, swapped_prediction(scores, **options))
    assert terms.counts == {"swapped": 6.0}


def test_the_share_of_used_prototypes_is_logged() -> None:
    method = vectors.make(config(num_prototypes=4, temperature=0.01))
    z = {"embedding": torch.eye(6)[:4, None].repeat(1, 2, 1)}
    method.prototypes.data.copy_(torch.eye(6)[:4])
    assert float(method.loss(z, {}, {}, NOW).logs["prototype_entropy"]) == pytest.approx(1, abs=1e-5)
    z = {"embedding": torch.eye(6)[:1, None].repeat(4, 2, 1)}
    assert float(method.loss(z, {}, {}, NOW).logs["prototype_entropy"]) == pytest.approx(0, abs=1e-5)


def test_prototypes_are_unit_vectors_after_every_update() -> None:
    method = vectors.make(config())
    torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(5))
    direction = method.prototypes.detach().clone()
    with torch.no_grad():
        method.prototypes.mul_(torch.arange(1.0, 6.0)[:, None])
        method.after_update({}, {}, NOW)
    torch.testing.assert_close(method.prototypes.detach(), direction)


def test_prototypes_hold_still_at_first_and_the_encoder_does_not() -> None:
    method = vectors.make(config(freeze_steps=3))
    for step, held in ((0, True), (2, True), (3, False)):
        method.zero_grad()
        vectors.forward(method, vectors.batch())[2].total.backward()
        method.on_gradients(Progress(step, steps=10))
        assert (method.prototypes.grad is None) == held
        assert all(p.grad is not None for p in method.encoder.parameters())


def test_queue_is_collected_late_and_counts_when_full() -> None:
    method = vectors.make(config(code_queue=12, code_queue_start=1, num_assigned=2), num_views=3)
    kept = []
    for step in range(4):
        progress = Progress(step, epoch=min(step, 1), steps=10)
        raw = vectors.batch(6, step=step)
        z_VBD, targets, terms = vectors.forward(method, raw, progress)
        scores = z_VBD @ method.prototypes.T
        queue = () if step < 3 else tuple(torch.cat([z[v] for z in kept]) @ method.prototypes.T for v in range(2))
        torch.testing.assert_close(terms.total, swapped_prediction(scores, queue=queue))
        with torch.no_grad():
            method.after_update({"embedding": z_VBD.transpose(0, 1).detach()}, targets, progress)
        if step:
            kept.append(z_VBD.detach())
        assert len(method.former) == 6 * min(len(kept), 2)
    assert abs(float((terms.total - swapped_prediction(scores)).detach())) > 1e-4
    assert not any(name.startswith("former") for name, _ in method.named_parameters())


def crops(**options: Any) -> tuple[Any, dict[str, Any]]:
    """SwAV on images with two global and three local views of half their size."""
    torch.manual_seed(0)
    views = ImageViews(ImageViewConfig(local_views=3, jitter=0.0), size=16, channels=1)
    made = config(head=dataclasses.replace(HEAD, norm="batch"), **options)
    method = made.build(DataInfo(num_samples=9, shape=(1, 16, 16)), ConvNet(1, width=4, dim=8), views)
    image = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8)
    return method, {"image": image, "index": torch.arange(6)}


def test_crops_of_two_sizes_share_the_head_and_small_ones_only_predict() -> None:
    method, raw = crops()
    viewed = method.views(raw, Rng(0))
    z = method.encode(viewed)
    features = [method.encoder(torch.cat([view.data for view in part]))
                for part in (viewed["views"][:2], viewed["views"][2:])]  # fmt: skip
    whole = normalize(method.head(torch.cat(features)), dim=-1).unflatten(0, (5, 6))
    torch.testing.assert_close(z["embedding"].transpose(0, 1), whole)
    loss = method.loss(z, viewed, {}, NOW).total
    swapped = {"embedding": z["embedding"][:, [0, 1, 4, 2, 3]]}
    torch.testing.assert_close(method.loss(swapped, viewed, {}, NOW).total, loss)
    mixed = {"embedding": z["embedding"][:, [2, 1, 0, 3, 4]]}
    assert abs(float((method.loss(mixed, viewed, {}, NOW).total - loss).detach())) > 1e-4


def test_the_contract_with_small_crops_and_a_queue() -> None:
    method, raw = crops(code_queue=6)
    check_method(method, raw)


def test_recipes_are_the_papers() -> None:
    large, small = load_recipe("images/swav_imagenet"), load_recipe("images/swav_imagenet_256")
    assert large.optimiser.lr * large.trainer.batch_size / 256 == pytest.approx(4.8)
    assert small.optimiser.lr * small.optimiser.final_lr == pytest.approx(6e-4)
    assert (large.method.num_prototypes, large.method.head.dim, large.method.code_queue) == (3000, 128, 0)
    assert (small.method.code_queue, small.method.code_queue_start, small.method.freeze_steps) == (3840, 15, 5005)
    assert (large.views.local_views, large.views.local_size, large.views.local_scale) == (6, 96, (0.05, 0.14))


def test_bad_input_is_refused() -> None:
    for name, value, expected in (
        ("num_prototypes", 1, "2 or more"), ("num_assigned", 0, "1 or more"), ("code_queue", -1, "0 or more"),
        ("eps", 0.0, "a finite number > 0"), ("temperature", -1.0, "a finite number > 0"),
        ("key_encoder", "ema", "'shared'"), ("predictor", HeadConfig(), "'none'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"method\.{name}.*: expected {expected}, received"):
            config(**{name: value})
    with pytest.raises(ValueError, match=r"views\.num_views: expected 2 or more, local ones included, received 1"):
        vectors.forward(vectors.make(config(num_assigned=1), num_views=1), vectors.batch())
    method, raw = crops(num_assigned=3)
    with pytest.raises(ValueError, match=r"views\.num_views: expected 3 or more, which are assigned .* received 2"):
        method.encode(method.views(raw, Rng()))
    method = vectors.make(config(code_queue=5))
    z_VBD, targets, _ = vectors.forward(method, vectors.batch())
    with pytest.raises(ValueError, match=r"method\.code_queue: expected the batch of 6 or more, received 5"):
        method.after_update({"embedding": z_VBD.transpose(0, 1).detach()}, targets, NOW)
