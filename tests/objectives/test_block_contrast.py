"""Block contrast: the oracles of its theory on a finite world, by enumeration.

Legend: B batch, D embedding, K blocks of negatives, C classes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.objectives import BlockContrast, block_contrast, info_nce

F64 = torch.float64
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)
LOSSES: list[dict[str, Any]] = [{"loss": "hinge"}, {"loss": "logistic", "bits": True}]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def unsupervised(f: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The exact loss of a world [C, M, D] with one negative, and its parts with other and with equal classes."""
    num, size, _ = f.shape
    tau = PRIOR.square().sum()
    other, equal = torch.zeros((), dtype=F64), torch.zeros((), dtype=F64)
    points = list(itertools.product(range(size), repeat=3))
    x, y, n = (torch.tensor(column) for column in zip(*points, strict=True))
    for c, d in itertools.product(range(num), range(num)):
        mean = block_contrast(f[c, x], f[c, y], f[d, n].unsqueeze(1), **options)
        weight = PRIOR[c] * PRIOR[d]
        if c == d:
            equal = equal + weight / tau * mean
        else:
            other = other + weight / (1 - tau) * mean
    return (1 - tau) * other + tau * equal, other, equal


def supervised(f: Tensor, **options: Any) -> Tensor:
    """The mean classifier's exact loss over tasks of two classes."""
    mean, total, weight = f.mean(1), torch.zeros((), dtype=F64), 0.0
    for c, d in itertools.permutations(range(len(f)), 2):
        w = float(PRIOR[c] * PRIOR[d])
        task = block_contrast(f[c], mean[c].expand_as(f[c]), mean[d].expand_as(f[c]).unsqueeze(1), **options)
        total, weight = total + w * task, weight + w
    return total / weight


@pytest.mark.oracle("curl_theory", 1)
@pytest.mark.parametrize("options", LOSSES)
def test_the_bound_on_the_supervised_loss(options: dict[str, Any]) -> None:
    tau = PRIOR.square().sum()
    for seed in range(20):
        f = draw(4, 3, 3, seed=seed) * (0.3 + seed / 10)
        whole = unsupervised(f, **options)[0]
        assert supervised(f, **options) <= (whole - tau) / (1 - tau) + 1e-12


@pytest.mark.oracle("curl_theory", 2)
@pytest.mark.parametrize("options", LOSSES)
def test_no_gap_where_classes_are_points(options: dict[str, Any]) -> None:
    f = draw(4, 1, 3).expand(4, 3, 3)
    _, other, equal = unsupervised(f, **options)
    torch.testing.assert_close(other, supervised(f, **options))
    torch.testing.assert_close(equal, torch.ones((), dtype=F64))


@pytest.mark.oracle("curl_theory", 4)
@pytest.mark.parametrize("options", LOSSES)
def test_blocks_lower_the_loss(options: dict[str, Any]) -> None:
    f = draw(2, 3, 3)
    losses = []
    for block in (1, 2):
        sets = list(itertools.product(range(3), repeat=block))
        triples = list(itertools.product(range(3), sets, sets))
        anchor = torch.stack([f[0, i] for i, _, _ in triples])
        positive = torch.stack([f[0, list(p)] for _, p, _ in triples])
        negative = torch.stack([f[1, list(n)] for _, _, n in triples]).unsqueeze(1)
        losses.append(float(block_contrast(anchor, positive, negative, **options)))
        if block == 1:
            plain = block_contrast(anchor, positive[:, 0], negative[:, :, 0], **options)
            assert losses[0] == pytest.approx(float(plain))
    assert losses[1] < losses[0]


def test_values_and_relations() -> None:
    f, p, n = draw(5, 4), draw(5, 2, 4, seed=1), draw(5, 3, 2, 4, seed=2)
    v = torch.stack([f[i] @ (p[i].mean(0) - n[i, k].mean(0)) for i in range(5) for k in range(3)]).view(5, 3)
    torch.testing.assert_close(block_contrast(f, p, n, reduction="none"), torch.log(1 + torch.exp(-v).sum(1)))
    torch.testing.assert_close(
        block_contrast(f, p, n, loss="hinge", reduction="sum"), (1 - v).clamp_min(0).amax(1).sum()
    )
    torch.testing.assert_close(block_contrast(f, p, n, bits=True), block_contrast(f, p, n) / math.log(2))
    assert float(block_contrast(0 * f, p, n[:, :1], bits=True)) == pytest.approx(1)
    q, key, queue = (
        torch.nn.functional.normalize(draw(*shape, seed=s), dim=-1) for s, shape in enumerate([(5, 4)] * 2 + [(6, 4)])
    )
    found = block_contrast(q, key, queue.expand(5, 6, 4))
    torch.testing.assert_close(found, info_nce(q, key, queue, temperature=1.0))


def test_derivatives_and_extremes() -> None:
    inputs = tuple(draw(*shape).requires_grad_() for shape in ((4, 3), (4, 2, 3), (4, 3, 2, 3)))
    assert torch.autograd.gradcheck(block_contrast, inputs)
    for dtype in (torch.float16, torch.bfloat16):
        f = (200 * draw(4, 3)).to(dtype).requires_grad_()
        for name in ("logistic", "hinge"):
            loss = block_contrast(f, -f.detach(), f.detach().unsqueeze(1), loss=name)
            (grad,) = torch.autograd.grad(loss, f)
            assert torch.isfinite(loss)
            assert torch.isfinite(grad).all()


def test_module() -> None:
    f, p, n = draw(5, 4), draw(5, 4, seed=1), draw(5, 3, 4, seed=2)
    torch.testing.assert_close(BlockContrast("hinge")(f, p, n), block_contrast(f, p, n, loss="hinge"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"loss": "square"}, "loss: expected one of"),
        ({"loss": "hinge", "bits": True}, "bits: expected False with loss='hinge'"),
        ({"positive": draw(4, 3)}, r"positive: expected shape \[5, 4\] or \[5, P, 4\]"),
        ({"negative": draw(5, 4)}, r"negative: expected shape \[5, K, 4\] or \[5, K, P, 4\]"),
        ({"negative": draw(5, 0, 4)}, "negative: expected shape"),
        ({"reduction": "max"}, "reduction: expected one of"),
        ({"anchor": draw(4)}, r"anchor: expected shape \[B, D\]"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        block_contrast(**{"anchor": draw(5, 4), "positive": draw(5, 4), "negative": draw(5, 2, 4)} | arguments)
