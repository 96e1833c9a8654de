"""Focal contrast: its oracles, the value by loops, shards.

Legend: V views, B batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import FocalSupCon, focal, focal_supcon, info_nce, supcon
from objectives.sharding import PARTS, over_parts

F64 = torch.float64
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def stored(z: Tensor, labels: Tensor, gamma: float, t: float, candidates: bool) -> Tensor:
    u = normalize(z.flatten(0, 1), dim=1)
    y, losses = labels.repeat(len(z)), []
    for i in range(len(u)):
        e = torch.exp(u @ u[i] / t)
        p = e / (e.sum() - e[i])
        own = [j for j in range(len(u)) if j != i and y[j] == y[i]]
        total = sum(-((1 - p[j]) ** gamma) * torch.log(p[j]) for j in own)
        losses.append(total / (len(u) if candidates else max(1, len(own))) + 0 * e[i])
    return torch.stack(losses)


@pytest.mark.parametrize("tile", [0, 3, None])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("average", ["positives", "candidates"])
@pytest.mark.parametrize("num_views", [1, 2])
def test_equals_loops(num_views: int, average: str, gamma: float, tile: int | None) -> None:
    z = draw(num_views, 7, 4).requires_grad_()
    expected = stored(z, LABELS, gamma, 0.3, average == "candidates")
    found = focal_supcon(
        z, LABELS, gamma=gamma, temperature=0.3, average=average, reduction="none", tile=tile
    )  # fmt: skip
    torch.testing.assert_close(found, expected)
    counted = 14 if num_views == 2 else 5
    mean = focal_supcon(z, LABELS, gamma=gamma, temperature=0.3, average=average, tile=tile)
    torch.testing.assert_close(mean, expected.sum() / counted)
    torch.testing.assert_close(
        torch.autograd.grad(mean, z), torch.autograd.grad(expected.sum() / counted, z)
    )  # fmt: skip


@pytest.mark.oracle("core_tuning", 1)
@pytest.mark.parametrize("num_views", [1, 2])
def test_without_the_factor_it_is_supcon(num_views: int) -> None:
    z = draw(num_views, 7, 4)
    torch.testing.assert_close(focal_supcon(z, LABELS, gamma=0.0), supcon(z, LABELS, temperature=0.07))


@pytest.mark.oracle("core_tuning", 2)
def test_it_lies_between_zero_and_supcon() -> None:
    z = draw(2, 7, 4)
    for gamma in (0.5, 1.0, 3.0):
        each = focal_supcon(z, LABELS, gamma=gamma, temperature=0.3, reduction="none")
        assert (each >= 0).all()
        assert (each <= supcon(z, LABELS, temperature=0.3, reduction="none")).all()
    far = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=F64)
    assert float(focal_supcon(far, torch.tensor([0, 0, 1, 1]), temperature=0.05)) < 1e-30


def test_one_positive_needs_no_matrix() -> None:
    a, b = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
    each = info_nce(a, b, in_batch=True, reduction="none")
    p = torch.exp(-each)
    torch.testing.assert_close(focal(each, 2.0), -((1 - p) ** 2) * torch.log(p))
    torch.testing.assert_close(focal(each, 0.0), each)
    held = focal(each, 2.0, detach=True)
    torch.testing.assert_close(
        torch.autograd.grad(held.sum(), a, retain_graph=True),
        torch.autograd.grad(each, a, grad_outputs=(1 - p.detach()) ** 2, retain_graph=True),
    )
    pairs = focal_supcon(torch.stack([a, b]), torch.arange(6), gamma=2.0, temperature=0.2, reduction="none")
    whole = torch.cat([a, b])
    one = focal(supcon([a, b], temperature=0.2, reduction="none"), 2.0)
    assert len(pairs) == len(whole)
    torch.testing.assert_close(pairs, one)


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], num_views: int) -> None:
    z = draw(num_views, 7, 4).requires_grad_()
    whole = focal_supcon(z, LABELS)
    parts = over_parts(
        sizes,
        lambda rows, offset: focal_supcon(
            z[:, rows], LABELS[rows], gathered=(z, LABELS), offset=offset, with_stats=True
        ),
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


def test_derivatives() -> None:
    z, t = draw(5, 3).requires_grad_(), torch.tensor(0.5, dtype=F64, requires_grad=True)
    for tile in (0, 2):
        assert torch.autograd.gradcheck(
            lambda z, t, tile=tile: focal_supcon(z, LABELS[:5], gamma=1.5, temperature=t, tile=tile), (z, t)
        )  # fmt: skip


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cold_and_extreme_rows_are_finite(dtype: torch.dtype, gamma: float) -> None:
    opposite = torch.cat([torch.ones(4, 4), -torch.ones(3, 4)])
    for rows in (torch.ones(7, 4), draw(7, 4), torch.zeros(7, 4), opposite):
        z = rows.to(dtype).requires_grad_()
        loss = focal_supcon(z, torch.tensor([0, 0, 0, 0, 1, 1, 1]), gamma=gamma, temperature=0.01)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_module() -> None:
    module, z = FocalSupCon(2.0, 0.3, learnable_temperature=True), draw(7, 4).float()
    torch.testing.assert_close(module(z, LABELS), focal_supcon(z, LABELS, gamma=2.0, temperature=0.3))
    module(z, LABELS).backward()
    assert module.tau.log_value.grad is not None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gamma": -1.0}, "gamma: expected a finite number of 0 or more"),
        ({"average": "all"}, "average: expected one of"),
        ({"reduction": "max"}, "reduction: expected one of"),
        ({"labels": LABELS[:3]}, r"labels: expected labels of shape \[7\]"),
        ({"labels": torch.arange(7)}, "positives: expected at least one anchor with a positive"),
        ({"tile": -1}, "tile: expected None or 0 or more"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        focal_supcon(**{"z": draw(7, 4), "labels": LABELS} | arguments)
