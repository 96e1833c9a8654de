"""Regression between views: a loop over pairs, closed forms, still targets, parts of a batch.

Legend: V views, W target views, B batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.contrast import Stats
from nearfar.objectives import Regression, alignment, regression
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def by_loops(prediction: Tensor, target: Tensor, form: str, all_pairs: bool) -> np.ndarray:
    p, t = prediction.detach().numpy(), target.detach().numpy()
    losses = np.zeros(p.shape[1])
    for i in range(p.shape[1]):
        pairs = []
        for v in range(len(p)):
            for w in range(len(t)):
                if v == w and not all_pairs:
                    continue
                cosine = p[v, i] @ t[w, i] / np.linalg.norm(p[v, i]) / np.linalg.norm(t[w, i])
                pairs.append(2 - 2 * cosine if form == "mse" else -cosine)
        losses[i] = np.mean(pairs)
    return losses


@pytest.mark.parametrize("form", ["mse", "cosine"])
@pytest.mark.parametrize(
    ("num", "num_targets", "all_pairs"),
    [(2, 2, False), (3, 3, False), (5, 2, False), (2, 1, False), (1, 2, True), (3, 3, True)],
)
def test_equals_loops(num: int, num_targets: int, all_pairs: bool, form: str) -> None:
    p, t = draw(num, 4, 3), draw(num_targets, 4, 3, seed=1)
    expected = torch.from_numpy(by_loops(p, t, form, all_pairs))
    options: dict[str, Any] = {"form": form, "all_pairs": all_pairs}
    torch.testing.assert_close(regression(p, t, reduction="none", **options), expected)
    torch.testing.assert_close(regression(p, t, reduction="sum", **options), expected.sum())
    torch.testing.assert_close(regression(p, t, **options), expected.mean())
    torch.testing.assert_close(Regression(form, all_pairs=all_pairs)(p, t), expected.mean())


def test_closed_forms() -> None:
    z = draw(2, 5, 3)
    same = z[:1].expand(2, 5, 3)
    torch.testing.assert_close(regression(same, same), torch.tensor(0.0, dtype=F64))
    torch.testing.assert_close(regression(same, -same), torch.tensor(4.0, dtype=F64))
    torch.testing.assert_close(regression(same, same, form="cosine"), torch.tensor(-1.0, dtype=F64))
    torch.testing.assert_close(regression(z, z), alignment(z[0], z[1]))  # the squared distance of unit vectors
    torch.testing.assert_close(regression(z, z), 2 + 2 * regression(z, z, form="cosine"))


def test_laws() -> None:
    p, t = draw(3, 5, 4), draw(3, 5, 4, seed=1)
    turn = torch.linalg.qr(draw(4, 4, seed=2))[0]
    order = torch.tensor([3, 1, 4, 0, 2])
    whole = regression(p, t)
    scale = torch.linspace(0.1, 7, 15, dtype=F64).view(3, 5, 1)
    for same in (regression(p[:, order], t[:, order]), regression(p @ turn, t @ turn), regression(p * scale, t),
                 regression(p.flip(0), t.flip(0))):  # fmt: skip
        torch.testing.assert_close(same, whole)
    assert not torch.isclose(regression(p, t.flip(1)), whole)


def test_targets_stand_still() -> None:
    p, t = draw(2, 4, 3).requires_grad_(), draw(2, 4, 3, seed=1).requires_grad_()
    grads = torch.autograd.grad(regression(p, t), (p, t), allow_unused=True)
    assert grads[1] is None
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close((grads[0] * p).sum(-1), torch.zeros(2, 4, dtype=F64))  # orthogonal to each row
    z = draw(2, 4, 3).requires_grad_()  # one tensor on both sides: half of the gradient of a full square
    (still,) = torch.autograd.grad(regression(z, z), z)
    (full,) = torch.autograd.grad(alignment(z[0], z[1]), z)
    torch.testing.assert_close(2 * still, full)


@pytest.mark.parametrize("sizes", PARTS)
def test_parts_equal_the_whole(sizes: list[int]) -> None:
    p, t = draw(2, 7, 3).requires_grad_(), draw(2, 7, 3, seed=1)
    parts = over_parts(sizes, lambda rows, _: (regression(p[:, rows], t[:, rows]), Stats(len(p[0, rows]), 0, None)))
    whole = regression(p, t)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, p), torch.autograd.grad(whole, p))


def test_derivatives_and_extremes() -> None:
    t = draw(2, 4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda p: regression(p, t), (draw(3, 4, 3).requires_grad_(),))
    for dtype in (torch.float16, torch.bfloat16):
        p = (1e4 * draw(2, 4, 3)).to(dtype).requires_grad_()
        loss = regression(p, 1e-6 * p.detach())
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(p.grad).all()
    zero = torch.zeros(2, 4, 3, requires_grad=True)
    regression(zero, zero).backward()
    assert torch.equal(zero.grad, torch.zeros(2, 4, 3))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"prediction": draw(4, 3)}, r"prediction: expected shape \[V, B, D\]"),
        ({"prediction": draw(2, 0, 3), "target": draw(2, 0, 3)}, "prediction: expected shape"),
        ({"target": draw(2, 4, 2)}, r"target: expected shape \[W, 4, 3\]"),
        ({"target": draw(3, 4, 3)}, "target: expected at most 2 views"),
        ({"prediction": draw(1, 4, 3), "target": draw(1, 4, 3)}, "prediction: expected 2 or more views"),
        ({"form": "l2"}, "form: expected one of 'mse', 'cosine'"),
        ({"reduction": "max"}, "reduction: expected one of"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        regression(**{"prediction": draw(2, 4, 3), "target": draw(2, 4, 3)} | arguments)
    with pytest.raises(TypeError, match="target: expected floating point"):
        regression(draw(2, 4, 3), torch.ones(2, 4, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="form: expected one of"):
        Regression("l2")
