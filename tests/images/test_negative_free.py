"""BYOL, SimSiam, Barlow Twins, VICReg and W-MSE through their recipes, each against its equation by hand.

Legend: V views, B batch, D embedding.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from images.vectors import batch, forward, make
from nearfar import plugin
from nearfar.config import ContrastConfig, HeadConfig
from nearfar.method import Progress
from nearfar.methods import Contrast
from nearfar.objectives import regression
from nearfar.objectives.wmse import whiten
from nearfar.rng import Rng

SMALL = HeadConfig(hidden=12, dim=6, norm="layer")


def method(slug: str, **changes: Any) -> Contrast:
    """A recipe's method with heads that suit vectors."""
    found = plugin.load("images").recipe(slug).method
    predictor = {"predictor": SMALL} if found.predictor.kind != "none" else {}
    return make(dataclasses.replace(found, **{"head": SMALL} | predictor | changes))


def pay(method: Contrast, z_VBD: Tensor, **further: Tensor) -> Tensor:
    """The loss of given embeddings."""
    z = {"embedding": z_VBD.transpose(0, 1)} | further
    return method.loss(z, batch(z_VBD.shape[1]), {}, Progress()).total.double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(dim: int = 4) -> Tensor:
    """2 dim rows whose features are uncorrelated, with mean 0 and variance 1 over n."""
    q = torch.linalg.qr(draw(dim, dim))[0] * math.sqrt(dim)
    return torch.cat([q, -q])


# -- BYOL --------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("byol", 1)
def test_byol_is_the_square_between_unit_vectors() -> None:
    byol = method("byol")
    with torch.no_grad():
        for p in byol.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    z_VBD, targets, terms = forward(byol, batch())
    key_VBD, total = targets["key"].transpose(0, 1), 0.0
    for v, w in ((0, 1), (1, 0)):
        for said, key in zip(z_VBD[v], key_VBD[w], strict=True):
            total += (said / said.norm() - key / key.norm()).square().sum()
    torch.testing.assert_close(terms.total, total / 12)
    assert terms.counts == {"contrast": 6.0}


@pytest.mark.oracle("byol", 2)
def test_byols_teacher_is_a_moving_average_that_slows_down() -> None:
    byol = method("byol", momentum=0.9)
    names = [name for name, _ in byol.teacher.module.named_parameters()]
    start = {n: p.detach().clone().double() for n, p in byol.teacher.module.named_parameters()}
    expected, steps = dict(start), 6
    for step in range(steps):
        fraction = step / steps
        momentum = 1 - 0.1 * (math.cos(math.pi * fraction) + 1) / 2
        with torch.no_grad():
            for p in (*byol.encoder.parameters(), *byol.head.parameters()):
                p.add_(torch.randn_like(p))
        student = dict(torch.nn.Sequential(byol.encoder, byol.head).named_parameters())
        expected = {n: momentum * expected[n] + (1 - momentum) * student[n].detach() for n in names}
        byol.after_update({}, {}, Progress(step=step, steps=steps, fraction=fraction))
    for n, p in byol.teacher.module.named_parameters():
        torch.testing.assert_close(p.double(), expected[n], rtol=1e-5, atol=1e-6)
        assert not torch.equal(p.double(), start[n])
    before = byol.state_dict()["teacher.module.0.0.weight"].clone()
    byol.after_update({}, {}, Progress(step=9, steps=9, fraction=1.0))
    assert torch.equal(byol.state_dict()["teacher.module.0.0.weight"], before)


@pytest.mark.oracle("byol", 3)
def test_byols_gradient_goes_to_the_student_alone() -> None:
    byol = method("byol")
    _, targets, terms = forward(byol, batch())
    terms.total.backward()
    assert not targets["key"].requires_grad
    assert all(p.grad is None for p in byol.teacher.parameters())
    for part in (byol.encoder, byol.head, byol.predictor):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    named = {id(p) for p in byol.optimisers()["main"]}
    assert not named & {id(p) for p in byol.teacher.parameters()}


@pytest.mark.oracle("byol", 4)
@pytest.mark.parametrize(("angle", "expected"), [(0, 0.0), (90, 2.0), (180, 4.0)])
def test_byol_is_known_at_three_angles(angle: float, expected: float) -> None:
    turn = math.radians(angle)
    said = torch.tensor([[math.cos(turn), math.sin(turn)]]) * torch.tensor([[0.1], [2.0], [30.0]])
    key = torch.tensor([5.0, 0.0]).expand(3, 2, 2)
    z = {"embedding": torch.stack([said, said], 1)}
    loss = method("byol").loss(z, batch(3), {"key": key}, Progress()).total
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=0, atol=1e-6)


# -- SimSiam -----------------------------------------------------------------------------------------------------------


def siamese(simsiam: Contrast) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, projections [V, B, D] and the loss."""
    viewed = simsiam.views(batch(), Rng(0))
    z = simsiam.encode(viewed)
    loss = simsiam.loss(z, viewed, {}, Progress()).total
    return z["embedding"].transpose(0, 1), z["projection"].transpose(0, 1), loss


@pytest.mark.oracle("simsiam", 1)
def test_simsiam_is_minus_the_cosine_both_ways() -> None:
    said, target, loss = siamese(method("simsiam"))
    total = 0.0
    for v, w in ((0, 1), (1, 0)):
        for p, z in zip(said[v], target[w], strict=True):
            total -= p @ z / (p.norm() * z.norm())
    torch.testing.assert_close(loss, total / 12)


@pytest.mark.oracle("simsiam", 2)
def test_simsiams_gradient_stops_at_the_target() -> None:
    simsiam = method("simsiam")
    parameters = [*simsiam.encoder.parameters(), *simsiam.head.parameters(), *simsiam.predictor.parameters()]
    said, target, loss = siamese(simsiam)
    found = torch.autograd.grad(loss, parameters, retain_graph=True)

    def by_hand(target: Tensor) -> tuple[Tensor, ...]:
        cosine = (normalize(said, dim=2) * normalize(target.flip(0), dim=2)).sum(2)
        return torch.autograd.grad(-cosine.mean(), parameters, retain_graph=True)

    for one, other in zip(found, by_hand(target.detach().clone()), strict=True):
        torch.testing.assert_close(one, other)
    flowing = by_hand(target)
    assert any(not torch.allclose(one, other, atol=1e-4) for one, other in zip(found, flowing, strict=True))


@pytest.mark.oracle("simsiam", 3)
def test_collapse_is_simsiams_minimum() -> None:
    one = torch.randn(6).expand(2, 5, 6)
    loss = pay(method("simsiam"), one, projection=one.transpose(0, 1))
    torch.testing.assert_close(loss, -torch.ones_like(loss))


@pytest.mark.oracle("simsiam", 4)
def test_simsiam_is_half_of_byol_less_one() -> None:
    said, target, loss = siamese(method("simsiam"))
    torch.testing.assert_close(loss, regression(said, target, form="mse") / 2 - 1)


# -- Barlow Twins ------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("barlow", 1)
def test_barlow_is_a_loop_over_correlations() -> None:
    z = draw(2, 9, 4)
    total = 0.0
    for d in range(4):
        for e in range(4):
            c = np.corrcoef(z[0, :, d].numpy(), z[1, :, e].numpy())[0, 1]
            total += (1 - c) ** 2 if d == e else 0.0051 * c**2
    assert float(pay(method("barlow"), z)) == pytest.approx(total, rel=1e-4)
    scaled = method("barlow_imagenet")
    assert float(pay(scaled, z)) == pytest.approx(0.024 * total, rel=1e-4)


@pytest.mark.oracle("barlow", 2)
def test_barlow_at_its_best_and_after_collapse() -> None:
    z = orthogonal()
    assert float(pay(method("barlow"), torch.stack([z, z]))) == pytest.approx(0, abs=1e-6)
    same = draw(4).expand(2, 9, 4)
    assert float(pay(method("barlow"), same)) == pytest.approx(4, abs=1e-6)


@pytest.mark.oracle("barlow", 3)
def test_barlow_does_not_see_shift_and_scale() -> None:
    z = 3 * draw(2, 9, 4)
    expected = pay(method("barlow"), z)
    other = torch.stack([z[0] * torch.tensor([1.0, 2, 3, 5]) + draw(4, seed=1), z[1] * 4 - 7])
    torch.testing.assert_close(pay(method("barlow"), other), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pay(method("barlow"), z.flip(0)), expected)


@pytest.mark.oracle("barlow", 4)
def test_a_turned_sign_costs_four() -> None:
    z = orthogonal()
    turned = z * torch.tensor([1.0, -1, 1, 1])
    assert float(pay(method("barlow"), torch.stack([z, turned]))) == pytest.approx(4, abs=1e-3)


# -- VICReg ------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("vicreg", 1)
def test_vicreg_is_three_loops() -> None:
    z = 0.8 * draw(2, 7, 4)
    invariance = sum(float((z[0, n, d] - z[1, n, d]) ** 2) for n in range(7) for d in range(4)) / 28
    variance = covariance = 0.0
    for view in z:
        c = np.cov(view.numpy().T, ddof=1)
        variance += sum(max(0.0, 1 - math.sqrt(c[d, d] + 1e-4)) for d in range(4)) / 4
        covariance += sum(c[d, e] ** 2 for d in range(4) for e in range(4) if d != e) / 4
    # the authors' code halves the hinge over both views; covariances of both are added
    assert float(pay(method("vicreg"), z)) == pytest.approx(25 * invariance + 25 * variance / 2 + covariance, rel=1e-5)


@pytest.mark.oracle("vicreg", 2)
def test_vicreg_after_collapse() -> None:
    same = draw(4).expand(2, 9, 4)
    assert float(pay(method("vicreg"), same)) == pytest.approx(25 * (1 - 0.01), rel=1e-5)


@pytest.mark.oracle("vicreg", 3)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_vicreg_at_its_best(scale: float) -> None:
    z = scale * orthogonal()
    assert float(pay(method("vicreg"), torch.stack([z, z]))) == pytest.approx(0, abs=1e-4)


@pytest.mark.oracle("vicreg", 4)
def test_vicreg_sees_a_shift_between_views_alone() -> None:
    z, shift = draw(2, 9, 4), draw(4, seed=2)
    expected = pay(method("vicreg"), z)
    torch.testing.assert_close(pay(method("vicreg"), z + shift), expected, rtol=1e-5, atol=1e-5)
    base = orthogonal()
    apart = pay(method("vicreg"), torch.stack([base, base + shift]))
    torch.testing.assert_close(apart, 25 * shift.square().mean(), rtol=1e-5, atol=1e-4)


# -- W-MSE -------------------------------------------------------------------------------------------------------------


def wmse_method(**options: Any) -> Contrast:
    found = plugin.load("images").recipe("wmse").method
    whitening = dataclasses.replace(found.wmse, **{"size": 6} | options)
    return method("wmse", head=dataclasses.replace(SMALL, dim=3), wmse=whitening)


@pytest.mark.oracle("wmse", 1)
@pytest.mark.parametrize("rounds", [1, 3])
def test_wmse_by_numpy(rounds: int) -> None:
    wmse = wmse_method(rounds=rounds)
    viewed = wmse.views(batch(12), Rng(0))
    z = wmse.encode(viewed)
    found = wmse.loss(z, viewed, {}, Progress()).total
    values, total = z["embedding"].detach().double().numpy(), 0.0
    for order in np.argsort(viewed["parts"].numpy(), axis=0).T:
        for rows in (order[:6], order[6:]):
            white = []
            for view in range(2):
                x = values[rows, view] - values[rows, view].mean(0)
                c = 0.999 * np.cov(x.T, ddof=1) + 0.001 * np.eye(3)
                w = np.linalg.solve(np.linalg.cholesky(c), x.T).T
                white.append(w / np.linalg.norm(w, axis=1, keepdims=True))
            total += (2 - 2 * (white[0] * white[1]).sum(1)).sum() / 12
    assert found.item() == pytest.approx(total / rounds, rel=1e-4)


@pytest.mark.oracle("wmse", 2)
@pytest.mark.parametrize("form", ["cholesky", "zca"])
def test_parts_are_white(form: str) -> None:
    x = draw(5, 20, 4) @ draw(4, 4, seed=1)  # five parts
    for part in whiten(x, form=form, eps=1e-6):
        assert part.mean(0).abs().max() < 1e-10
        np.testing.assert_allclose(np.cov(part.numpy().T, ddof=1), np.eye(4), atol=1e-4)


@pytest.mark.oracle("wmse", 3)
def test_wmse_does_not_see_shift_and_scale() -> None:
    wmse = wmse_method(eps=0.0, size=0)
    z = draw(2, 12, 3)
    viewed = {"index": torch.arange(12), "parts": torch.rand(12, 1)}

    def loss(z_VBD: Tensor) -> Tensor:
        return wmse.loss({"embedding": z_VBD.transpose(0, 1)}, viewed, {}, Progress()).total

    moved = torch.stack([z[0] * torch.tensor([1.0, 2, 5]) + draw(3, seed=1), 3 * z[1]])
    torch.testing.assert_close(loss(moved), loss(z))


@pytest.mark.oracle("wmse", 4)
def test_what_cannot_be_whitened_is_refused() -> None:
    few = {"index": torch.arange(3), "parts": torch.rand(3, 1)}
    with pytest.raises(ValueError, match="size: expected more rows in a sub-batch than the 3 features, received 3"):
        wmse_method().loss({"embedding": torch.randn(3, 2, 3)}, few, {}, Progress())
    many = {"index": torch.arange(12), "parts": torch.rand(12, 1)}
    line = (torch.randn(12, 2, 1) * torch.ones(3)).double()
    with pytest.raises(ValueError, match="views: expected a covariance with an inverse"):
        wmse_method(eps=0.0).loss({"embedding": line}, many, {}, Progress())
    assert torch.isfinite(wmse_method().loss({"embedding": line}, many, {}, Progress()).total)


# -- their recipes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["byol", "simsiam", "barlow", "vicreg", "wmse"])
def test_no_last_bias_whose_gradient_is_rounding(slug: str) -> None:
    """What follows takes the mean of the embedding out, so that a bias could learn nothing."""
    module = plugin.load("images").module(slug)
    for make_recipe in module.RECIPES.values():
        found = make_recipe().method
        assert isinstance(found, ContrastConfig)
        assert found.head.last_norm or not found.head.last_bias
    assert f"{slug}_digits" in module.RECIPES


def test_the_papers_settings() -> None:
    recipes = plugin.load("images")
    byol = recipes.recipe("byol_imagenet")
    assert (byol.method.momentum, byol.method.momentum_end) == (0.996, 1.0)
    assert (byol.method.head.hidden, byol.method.head.dim) == (4096, 256)
    assert byol.optimiser.lr * byol.trainer.batch_size / 256 == pytest.approx(3.2)
    assert (byol.views.solarize, byol.views.saturation, byol.views.hue) == (0.1, 0.2, 0.1)
    simsiam = recipes.recipe("simsiam_imagenet")
    assert simsiam.optimiser.lr * simsiam.trainer.batch_size / 256 == pytest.approx(0.1)
    assert (simsiam.method.head.layers, simsiam.method.predictor.hidden, simsiam.method.head.dim) == (3, 512, 2048)
    barlow, vicreg = recipes.recipe("barlow_imagenet"), recipes.recipe("vicreg_imagenet")
    assert barlow.method.barlow.off_diagonal == 0.0051
    assert barlow.method.head == vicreg.method.head
    weights = vicreg.method.vicreg
    assert (weights.invariance, weights.variance, weights.covariance) == (25, 25, 1)
    wmse = recipes.recipe("wmse_cifar")
    assert (wmse.method.wmse.size, wmse.method.head.dim, wmse.views.num_views) == (128, 64, 4)
