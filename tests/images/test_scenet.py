"""SCE-Net: the oracles, triplets, the Method, bad input.

Legend: B triplets, D embedding, M masks.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from images.vectors import batch, make
from nearfar.method import Progress
from nearfar.rng import Rng
from nearfar_images.methods.scenet import Conditions, triplets
from nearfar_images.systems.scenet import SCENetConfig

F64 = torch.float64


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def conditions(num: int = 3, **options: Any) -> Conditions:
    return Conditions(6, num, **options).double()


# -- oracle 1 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("scenet", 1)
def test_one_mask() -> None:
    made, a, b = conditions(1), draw(5, 6), draw(5, 6)
    w = made.weights(a, b)
    torch.testing.assert_close(w, torch.ones(5, 1, dtype=F64))
    mask = made.masks[0].relu()
    u = [F.normalize(x * mask, dim=1) for x in (a, b)]
    torch.testing.assert_close(made.masked(a)[:, 0], u[0])
    torch.testing.assert_close(made.distance(a, b, w), (u[0] - u[1]).norm(dim=1))


@pytest.mark.oracle("scenet", 1)
def test_a_mask_of_ones_is_a_plain_triplet_loss() -> None:
    terms, e, rows = losses(SCENetConfig(num_conditions=1), ones=True)
    u = F.normalize(e, dim=1)
    a, f, c = (u[part] for part in rows[:3])
    expected = ((a - c).norm(dim=1) - (a - f).norm(dim=1) + 0.2).relu().mean()
    torch.testing.assert_close(terms.values["triplet"], expected)
    torch.testing.assert_close(
        losses(SCENetConfig(conditions="none"))[0].values["triplet"], expected
    )  # without any mask


# -- oracle 2 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("scenet", 2)
def test_one_hot_weights_are_a_known_condition() -> None:
    made, a, b = conditions(), draw(5, 6), draw(5, 6)
    for c in range(3):
        with torch.no_grad():
            made.branch[2].weight.zero_()
            made.branch[2].bias.copy_(1000.0 * F.one_hot(torch.tensor(c), 3))
        mask = made.masks[c].relu()
        expected = (F.normalize(a * mask, dim=1) - F.normalize(b * mask, dim=1)).norm(dim=1)
        torch.testing.assert_close(made.distance(a, b, made.weights(a, b)), expected)


@pytest.mark.oracle("scenet", 2)
def test_the_known_form_takes_the_mask_of_the_notion() -> None:
    method = make(SCENetConfig(conditions="known", num_conditions=2))
    a, f, c = (torch.randn(4, 64) for _ in range(3))
    notion = torch.tensor([0, 1, 1, 0])
    d_far, d_close = method.distances(a, f, c, notion=notion)
    for i in range(4):
        mask = method.conditions.masks[notion[i]].relu()
        u = [F.normalize(x[i] * mask, dim=0) for x in (a, f, c)]
        assert d_far[i].item() == pytest.approx((u[0] - u[1]).norm().item(), rel=1e-4)
        assert d_close[i].item() == pytest.approx((u[0] - u[2]).norm().item(), rel=1e-4)


# -- oracle 3 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("scenet", 3)
@pytest.mark.parametrize("form", ["pair", "triplet"])
def test_weights_sum_to_one_and_length_does_not_count(form: Any) -> None:
    made = conditions(form=form)
    e = [draw(5, 6) for _ in range(2 if form == "pair" else 3)]
    w = made.weights(*e)
    torch.testing.assert_close(w.sum(1), torch.ones(5, dtype=F64))
    longer = [x * (0.1 + 5 * torch.rand(5, 1, dtype=F64)) for x in e]
    torch.testing.assert_close(made.weights(*longer), w)
    torch.testing.assert_close(made.masked(longer[0]), made.masked(e[0]))
    by_hand = made.branch(torch.cat([F.normalize(x, dim=1) for x in e], 1)).softmax(1)
    if form == "pair":
        by_hand = (by_hand + made.branch(torch.cat([F.normalize(x, dim=1) for x in e[::-1]], 1)).softmax(1)) / 2
    torch.testing.assert_close(w, by_hand)


# -- oracle 4 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("scenet", 4)
def test_pairs_are_symmetric() -> None:
    made, a, b = conditions(), draw(5, 6), draw(5, 6)
    torch.testing.assert_close(made.distance(a, b, made.weights(a, b)), made.distance(b, a, made.weights(b, a)))
    assert not bool(made.distance(a, a, made.weights(a, a)).any())


@pytest.mark.oracle("scenet", 4)
def test_equal_images_cost_the_margin() -> None:
    method = make(SCENetConfig(margin=0.3))
    e = torch.randn(1, 1, 64).expand(6, 1, -1).clone().requires_grad_()
    notions = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [1, 1]])
    given = {"path": notions, "draws": torch.rand(6, 3)}
    terms = method.loss({"embedding": e}, given, {}, Progress())
    assert terms.values["triplet"].item() == pytest.approx(0.3)
    terms.total.backward()
    assert bool(e.grad.isfinite().all())


# -- oracle 5 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("scenet", 5)
def test_masks_learn_in_positive_entries() -> None:
    made, a, b = conditions(), draw(5, 6), draw(5, 6)
    (made.distance(a, b, made.weights(a, b)).sum() + made.norm()).backward()
    positive = made.masks > 0
    assert bool((made.masks.grad[~positive] == 0).all())
    assert bool((made.masks.grad[positive] != 0).all())
    by_hand = sum(max(float(m), 0.0) for m in made.masks.detach().flatten()) / 3
    assert made.norm().item() == pytest.approx(by_hand)


def test_a_dead_mask_gives_zero_and_no_nan() -> None:
    made, a, b = conditions(), draw(5, 6).requires_grad_(), draw(5, 6)
    with torch.no_grad():
        made.masks[1] = -1.0
    assert not bool(made.masked(a)[:, 1].any())
    made.distance(a, b, made.weights(a, b)).sum().backward()
    assert bool(a.grad.isfinite().all())
    assert bool(made.masks.grad.isfinite().all())


def test_disjoint_masks() -> None:
    masks = Conditions(6, 3, masks="disjoint").masks.detach()
    torch.testing.assert_close(masks.sum(0), torch.full((6,), 1.2))
    assert (masks == 1).sum(1).tolist() == [2, 2, 2]


# -- triplets ---------------------------------------------------------------------------------------------------


def test_triplets_agree_and_differ_in_their_notion() -> None:
    notions = torch.stack([torch.randint(0, 3, (40,)), torch.randint(0, 5, (40,)), torch.zeros(40).long()], 1)
    own = torch.arange(20).repeat(2)
    seen = torch.zeros(3, dtype=torch.long)
    for _ in range(20):
        rows = triplets(notions, torch.rand(40, 3), own)
        value = [notions[part, rows.notion] for part in rows[:3]]
        assert torch.equal(value[0], value[2])
        assert bool((value[0] != value[1]).all())
        assert bool((own[rows.anchor] != own[rows.close]).all())
        seen += rows.notion.bincount(minlength=3)
    assert seen[2] == 0  # everybody agrees in the third
    assert seen[:2].min() > 150
    rows = triplets(torch.tensor([[0], [1], [0]]), torch.tensor([[0.5, 0.0, 0.99]] * 3), torch.arange(3))
    assert [part.tolist() for part in rows] == [[0, 2], [1, 1], [2, 0], [0, 0]]


def test_every_candidate_is_drawn_alike() -> None:
    notions = torch.tensor([[0], [0], [0], [0], [1], [1]])
    draws = torch.stack([torch.zeros(600), torch.rand(600), torch.linspace(0, 0.999, 600)], 1)
    close = torch.stack([triplets(notions, draws[i : i + 6], torch.arange(6)).close[:1] for i in range(594)])
    assert close.flatten().bincount(minlength=4).tolist()[1:] == pytest.approx([198, 198, 198], abs=5)


# -- the Method ---------------------------------------------------------------------------------------------------


def losses(config: SCENetConfig, ones: bool = False) -> tuple[Any, Tensor, Any]:
    """Terms of a batch, its embeddings, and the triplets."""
    torch.manual_seed(3)
    method = make(config)
    if ones:
        with torch.no_grad():
            method.conditions.masks.fill_(1.0)
    notions = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [0, 1], [1, 0], [0, 0]])
    made = method.views(batch(7) | {"path": notions}, Rng(0))
    torch.manual_seed(4)
    e = torch.randn(7, len(made["views"]), method.head.dim)
    terms = method.loss({"embedding": e}, made, {}, Progress())
    views = len(made["views"])
    draws = torch.cat([made["draws"][:, 3 * v : 3 * v + 3] for v in range(views)])
    return (
        terms,
        e.transpose(0, 1).flatten(0, 1),
        triplets(notions.repeat(views, 1), draws, torch.arange(7).repeat(views)),
    )


@pytest.mark.parametrize("form", ["pair", "triplet"])
def test_the_loss_is_the_sum_of_its_terms(form: Any) -> None:
    config = SCENetConfig(form=form, norm_weight=0.05, mask_weight=0.07)
    terms, e, rows = losses(config)
    torch.manual_seed(3)
    made = make(config).conditions
    a, f, c = (e[part] for part in rows[:3])
    w = [made.weights(a, f), made.weights(a, c)] if form == "pair" else [made.weights(a, f, c)] * 2
    d_far, d_close = made.distance(a, f, w[0]), made.distance(a, c, w[1])
    hinge = (d_close - d_far + 0.2).relu().mean()
    length = sum(math.sqrt(float(x.square().sum())) / math.sqrt(len(a)) for x in (a, f, c)) / 3
    mask = made.masks.relu().sum(1).mean()
    assert terms.total.item() == pytest.approx((hinge + 0.05 * length + 0.07 * mask).item(), rel=1e-5)
    assert terms.logs["accuracy"].item() == pytest.approx((d_far > d_close).float().mean().item())
    assert terms.counts["triplet"] == len(a)


def test_a_batch_without_triplets_costs_no_triplet() -> None:
    method = make(SCENetConfig())
    e = torch.randn(4, 1, 64, requires_grad=True)
    given = {"path": torch.zeros(4, 2).long(), "draws": torch.rand(4, 3)}
    terms = method.loss({"embedding": e}, given, {}, Progress())
    assert terms.values["triplet"].item() == 0
    terms.total.backward()
    assert not bool(e.grad.any())
    assert all(bool(p.grad.isfinite().all()) for p in method.conditions.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_conditions": 0}, "method.num_conditions: expected 1 or more"),
        ({"margin": -0.1}, "method.margin: expected 0 or more"),
        ({"notions": ""}, "method.notions: expected a field"),
        ({"conditions": "known", "form": "triplet"}, "method.form: expected 'pair'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCENetConfig(**options)


def test_what_does_not_fit_is_refused() -> None:
    method = make(SCENetConfig())
    a, given = torch.randn(4, 64), {"path": torch.arange(8).view(4, 2) % 2, "draws": torch.rand(4, 3)}
    with pytest.raises(ValueError, match=r"close: expected shape \(4, 64\), received \(3, 64\)"):
        method.distances(a, a, a[:3])
    with pytest.raises(ValueError, match="method.notions: expected a field of the batch"):
        method.loss({"embedding": a[:, None]}, {"draws": torch.rand(4, 3)}, {}, Progress())
    with torch.no_grad():
        method.conditions.masks.fill_(-1.0)
    with pytest.raises(ValueError, match="masks: expected a positive entry"):
        method.loss({"embedding": a[:, None]}, given, {}, Progress())
    known = make(SCENetConfig(conditions="known", num_conditions=1))
    with pytest.raises(ValueError, match="notion: expected one a triplet"):
        known.distances(a, a, a)
    with pytest.raises(ValueError, match="method.num_conditions: expected one a notion"):
        known.distances(a, a, a, notion=torch.tensor([0, 1, 0, 0]))
    with pytest.raises(ValueError, match="num_conditions: expected at most 6"):
        Conditions(6, 7, masks="disjoint")
    with pytest.raises(ValueError, match="e: expected the embeddings of a pair"):
        method.conditions.weights(a, a, a)
