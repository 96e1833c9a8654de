"""Circle loss and multi-similarity loss by loops, shards.

Legend: V views, B batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import Circle, MultiSimilarity, circle, multi_similarity
from objectives.sharding import PARTS, over_parts

F64 = torch.float64
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])
Loss = Callable[..., Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def circle_of(s_p: Tensor, s_n: Tensor, relaxation: float = 0.25, scale: float = 80.0) -> Tensor:
    m = relaxation
    near = torch.exp(scale * (s_n.detach() + m).clamp_min(0) * (s_n - m)).sum()
    far = torch.exp(-scale * (1 + m - s_p.detach()).clamp_min(0) * (s_p - (1 - m))).sum()
    return torch.log(1 + near * far)


def multi_of(
    s_p: Tensor, s_n: Tensor, alpha: float = 2.0, beta: float = 50.0, threshold: float = 0.5,
    mining: float | None = 0.1,
) -> Tensor:  # fmt: skip
    if mining is not None:
        s_p, s_n = s_p[s_p < s_n.max() + mining], s_n[s_n > s_p.min() - mining]
    far = torch.log(1 + torch.exp(-alpha * (s_p - threshold)).sum()) / alpha
    return far + torch.log(1 + torch.exp(beta * (s_n - threshold)).sum()) / beta


def listed(each: Loss, z: Tensor, options: dict[str, Any]) -> Tensor:
    u, y, losses = normalize(z.flatten(0, 1), dim=1), LABELS.repeat(len(z)), []
    for i in range(len(u)):
        s = u @ u[i]
        p = [j for j in range(len(u)) if j != i and y[j] == y[i]]
        losses.append(each(s[p], s[y != y[i]], **options) if p else 0 * s.sum())
    return torch.stack(losses)


CASES: list[tuple[Loss, Loss, dict[str, Any]]] = [
    (circle, circle_of, {}), (circle, circle_of, {"relaxation": 0.4, "scale": 10.0}),
    (multi_similarity, multi_of, {}), (multi_similarity, multi_of, {"mining": None}),
    (multi_similarity, multi_of, {"alpha": 1.0, "beta": 5.0, "threshold": 0.2, "mining": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize("tile", [0, 4])
@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize(("loss", "each", "options"), CASES)
def test_equals_loops(loss: Loss, each: Loss, options: dict[str, Any], num_views: int, tile: int) -> None:
    z = draw(num_views, 7, 4).requires_grad_()
    expected = listed(each, z, options)
    torch.testing.assert_close(loss(z, LABELS, reduction="none", tile=tile, **options), expected)
    found, stats = loss(z, LABELS, tile=tile, with_stats=True, **options)
    counted = 5 if num_views == 1 else 14
    assert stats[:2] == (counted, 7 * num_views - counted)
    torch.testing.assert_close(found, expected.sum() / counted)
    torch.testing.assert_close(loss(z, LABELS, reduction="sum", tile=tile, **options), expected.sum())
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected.sum() / counted, z))


@pytest.mark.parametrize("loss", [circle, multi_similarity])
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], loss: Loss) -> None:
    z = draw(7, 4).requires_grad_()
    whole = loss(z, LABELS)
    parts = over_parts(
        sizes,
        lambda rows, offset: loss(z[rows], LABELS[rows], gathered=(z, LABELS), offset=offset, with_stats=True),
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


def test_derivatives() -> None:
    z = draw(7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: multi_similarity(z, LABELS, tile=0), (z,))
    assert torch.autograd.gradcheck(lambda z: multi_similarity(z, LABELS, tile=3), (z,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("loss", "options"), [(circle, {"scale": 256.0}), (multi_similarity, {"beta": 200.0})])
def test_extreme_rows_are_finite(loss: Loss, options: dict[str, Any], dtype: torch.dtype) -> None:
    opposite = torch.cat([torch.ones(4, 4), -torch.ones(3, 4)])
    for rows in (torch.ones(7, 4), draw(7, 4), torch.zeros(7, 4), opposite):
        z = rows.to(dtype).requires_grad_()
        value = loss(z, LABELS, **options)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(z.grad).all()


def test_modules() -> None:
    z = draw(7, 4).float()
    torch.testing.assert_close(Circle(0.4, 10.0)(z, LABELS), circle(z, LABELS, relaxation=0.4, scale=10.0))
    torch.testing.assert_close(MultiSimilarity(1.0)(z, LABELS), multi_similarity(z, LABELS, alpha=1.0))


@pytest.mark.parametrize(
    ("loss", "arguments", "match"),
    [
        (circle, {"relaxation": 1.0}, r"relaxation: expected a number in \(0, 1\)"),
        (circle, {"scale": 0.0}, "scale: expected a finite number > 0"),
        (circle, {"reduction": "max"}, "reduction: expected one of"),
        (circle, {"labels": torch.zeros(7).long()}, "labels: expected two classes"),
        (multi_similarity, {"alpha": -1.0}, "alpha: expected a finite number > 0"),
        (multi_similarity, {"beta": 0.0}, "beta: expected a finite number > 0"),
        (multi_similarity, {"mining": -0.1}, "mining: expected None or a number of 0 or more"),
        (multi_similarity, {"labels": torch.arange(7)}, "labels: expected two classes, and two embeddings of one"),
    ],
)
def test_refuses(loss: Loss, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        loss(**{"z": draw(7, 4), "labels": LABELS} | arguments)
