"""Poly-view contrast: the oracles, shards, memory.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.contrast import Stats, contrast
from nearfar.objectives import PolyView, information_bound, nt_xent, poly_view
from objectives.sharding import PARTS, over_parts
from objectives.storage import largest

F64 = torch.float64
FORMS = ("geometric", "arithmetic", "sufficient")
EACH = pytest.mark.parametrize("form", FORMS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def loops(z: Tensor, t: Any, form: str, normalize_average: bool = False) -> Tensor:
    """The loss of every anchor, view after view, one exponential at a time."""
    num_views, num, _ = z.shape
    u = normalize(z, dim=2)
    mean = torch.stack([(u.sum(0) - u[v]) / (num_views - 1) for v in range(num_views)])
    if normalize_average:
        mean = normalize(mean, dim=2)
    target = mean if form == "sufficient" else u
    losses = []
    for a in range(num_views):
        for i in range(num):
            others = [j for j in range(num) if j != i]
            rest = torch.stack([torch.exp(u[a, i] @ target[g, j] / t) for j in others for g in range(num_views)]).sum()
            if form == "sufficient":
                own = torch.exp(u[a, i] @ mean[a, i] / t)
                losses.append(-torch.log(own / (own + rest)))
                continue
            own = torch.stack([torch.exp(u[a, i] @ u[b, i] / t) for b in range(num_views) if b != a])
            share = own / (own + rest)
            losses.append(-share.log().mean() if form == "geometric" else -share.mean().log())
    return torch.stack(losses)


@pytest.mark.oracle("poly_view", 5)
@pytest.mark.parametrize("tile", [None, 2])
@EACH
def test_equals_loops(form: str, tile: int | None) -> None:
    z = draw(3, 3, 4).requires_grad_()
    t = torch.tensor(0.4, dtype=F64, requires_grad=True)
    found = poly_view(z, form=form, temperature=t, reduction="none", tile=tile)
    expected = loops(z, t, form)
    torch.testing.assert_close(found, expected)
    weight = torch.arange(1.0, 10.0, dtype=F64)
    torch.testing.assert_close(
        torch.autograd.grad((found * weight).sum(), (z, t)), torch.autograd.grad((expected * weight).sum(), (z, t))
    )


def test_the_average_may_be_of_unit_length() -> None:
    z = draw(3, 4, 3)
    found = poly_view(z, form="sufficient", temperature=0.4, normalize_average=True, reduction="none")
    torch.testing.assert_close(found, loops(z, 0.4, "sufficient", True))


@pytest.mark.oracle("poly_view", 5)
@EACH
def test_order_and_rotation_do_not_matter(form: str) -> None:
    z = draw(3, 5, 4)
    turn = torch.linalg.qr(draw(4, 4, seed=1))[0]
    for other in (z[[2, 0, 1]], z[:, [3, 1, 4, 0, 2]], z @ turn):
        torch.testing.assert_close(poly_view(other, form=form), poly_view(z, form=form))


@pytest.mark.oracle("poly_view", 1)
@EACH
def test_two_views_are_nt_xent(form: str) -> None:
    z = draw(2, 6, 4).requires_grad_()
    found, expected = poly_view(z, form=form), nt_xent(z)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z))


@pytest.mark.oracle("poly_view", 2)
def test_arithmetic_is_never_above_geometric() -> None:
    for seed in range(5):
        z = draw(4, 5, 3, seed=seed)
        low, high = (poly_view(z, form=form, reduction="none") for form in ("arithmetic", "geometric"))
        assert (low < high).all()
    z = draw(1, 5, 3).expand(4, -1, -1)  # all shares of an anchor coincide
    torch.testing.assert_close(poly_view(z, form="arithmetic"), poly_view(z, form="geometric"))


@pytest.mark.oracle("poly_view", 3)
@pytest.mark.parametrize(("num_views", "num"), [(2, 3), (3, 2), (4, 5)])
@EACH
def test_identical_embeddings(form: str, num_views: int, num: int) -> None:
    found = poly_view(torch.ones(num_views, num, 3, dtype=F64), form=form)
    assert float(found) == pytest.approx(math.log(1 + num_views * (num - 1)), rel=1e-12)
    assert information_bound(found, num, num_views) == pytest.approx(0, abs=1e-12)


@pytest.mark.oracle("poly_view", 4)
@pytest.mark.parametrize(("num_views", "num"), [(2, 4), (3, 4), (5, 3)])
def test_aligned_views_make_all_forms_one(num_views: int, num: int) -> None:
    z = draw(1, num, 4).expand(num_views, -1, -1)
    losses = [float(poly_view(z, form=form, temperature=0.3)) for form in FORMS]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)


def test_geometric_is_a_contrast_of_each_positive() -> None:
    z = draw(3, 5, 4)
    labels = torch.arange(5).repeat(3)
    expected = contrast(z.flatten(0, 1), labels=labels, positives="each", directions="self", temperature=0.2)
    torch.testing.assert_close(poly_view(z, temperature=0.2), expected)


@pytest.mark.parametrize("sizes", PARTS)
@EACH
def test_shards_equal_the_whole(form: str, sizes: list[int]) -> None:
    z = draw(3, 7, 4).requires_grad_()
    whole = poly_view(z, form=form)

    def part(rows: slice, offset: int) -> tuple[Tensor, Stats]:
        return poly_view(z[:, rows], form=form, gathered=z, offset=offset, with_stats=True)

    parts = over_parts(sizes, part)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


@EACH
def test_gradcheck_and_reductions(form: str) -> None:
    z = draw(3, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: poly_view(x, form=form, temperature=0.4, tile=3), z)
    each = poly_view(z, form=form, reduction="none")
    torch.testing.assert_close(poly_view(z, form=form), each.mean())
    torch.testing.assert_close(poly_view(*z, form=form, reduction="sum"), each.sum())


def test_large_batches_equal_stored_logits() -> None:
    z, t, num = draw(3, 600, 8).requires_grad_(), 0.3, 600
    u = normalize(z, dim=2)
    sample = torch.arange(num).repeat(3)
    mean = (u.sum(0) - u) / 2
    for form in FORMS:
        target = (mean if form == "sufficient" else u).flatten(0, 1)
        logits = (u.flatten(0, 1) @ target.t() / t).masked_fill(sample[:, None] == sample, -math.inf)
        rest = torch.logsumexp(logits, 1).view(3, num)
        if form == "sufficient":
            expected = torch.nn.functional.softplus(rest - (u * mean).sum(2) / t).mean()
        else:
            s = torch.stack([torch.stack([(u[a] * u[b]).sum(1) / t for b in range(3) if b != a]) for a in range(3)])
            log_share = torch.nn.functional.logsigmoid(s - rest[:, None])
            each = log_share.mean(1) if form == "geometric" else torch.logsumexp(log_share, 1) - math.log(2)
            expected = -each.mean()
        found = poly_view(z, form=form, temperature=t)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, z), torch.autograd.grad(expected, z, retain_graph=True)
        )  # fmt: skip


@EACH
def test_no_matrix_is_stored(form: str) -> None:
    z = draw(3, 600, 8).float().requires_grad_()
    assert 64 * 64 <= largest(lambda: poly_view(z, form=form, tile=64).backward()) <= 1800 * 1800 / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@EACH
def test_extremes_are_finite(form: str, dtype: torch.dtype) -> None:
    for rows in (torch.ones(6, 4), torch.zeros(6, 4), torch.cat([torch.ones(3, 4), -torch.ones(3, 4)])):
        z = torch.stack([rows, rows, -rows]).to(dtype).requires_grad_()
        loss = poly_view(z, form=form, temperature=0.01)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_module_learns_its_temperature() -> None:
    module, z = PolyView("sufficient", 0.2, learnable_temperature=True, normalize_average=True), draw(3, 5, 3).float()
    expected = poly_view(z, form="sufficient", temperature=0.2, normalize_average=True)
    torch.testing.assert_close(module(z), expected)
    module(z).backward()
    assert module.tau.log_value.grad is not None


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: poly_view(draw(2, 1, 3)), "views: expected 2 or more samples"),
        (lambda: poly_view(draw(1, 4, 3)), "views: expected 2 or more views, received 1"),
        (lambda: poly_view(draw(2, 4, 3), form="mean"), "form: expected one of"),
        (lambda: poly_view(draw(2, 4, 3), temperature=-1.0), "temperature: expected a finite number > 0"),
        (lambda: poly_view(draw(2, 4, 3), reduction="max"), "reduction: expected one of"),
        (lambda: PolyView("mean"), "form: expected one of"),
        (lambda: information_bound(1.0, 1, 2), "num_samples: expected 2 or more"),
        (lambda: information_bound(1.0, 2, 1), "num_views: expected 2 or more"),
    ],
)
def test_refuses(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
