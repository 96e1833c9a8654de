"""W-MSE: whitening against scipy, the loss against loops, its invariances, conditioning, refusals.

Legend: V views, N samples, D embedding, I rounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from nearfar.objectives import WMSE, whiten, wmse

F64 = torch.float64
each_form = pytest.mark.parametrize("form", ["cholesky", "zca"])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def white(x: np.ndarray, form: str, eps: float) -> np.ndarray:
    covariance = (1 - eps) * np.cov(x, rowvar=False) + eps * np.eye(x.shape[1])
    if form == "zca":
        root = np.real(scipy.linalg.sqrtm(np.linalg.inv(covariance)))
    else:
        root = np.linalg.inv(np.linalg.cholesky(covariance))
    return (x - x.mean(0)) @ root.T


def by_loops(z: Tensor, cuts: list[list[int]], form: str, eps: float) -> float:
    x, losses = z.detach().numpy(), []
    for rows in cuts:
        parts = [white(view[rows], form, eps) for view in x]
        parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
        for i in range(len(rows)):
            losses.append(np.mean([2 - 2 * parts[v][i] @ parts[w][i] for v in range(len(x)) for w in range(v)]))
    return float(np.mean(losses))


@each_form
def test_whitened_rows_are_uncorrelated(form: str) -> None:
    x = draw(2, 30, 4) @ draw(4, 4, seed=1) + 5
    y = whiten(x, form=form, eps=0.0)
    for part, source in zip(y.numpy(), x.numpy(), strict=True):
        np.testing.assert_allclose(np.cov(part, rowvar=False), np.eye(4), atol=1e-10)
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-10)
        np.testing.assert_allclose(part, white(source, form, 0.0), atol=1e-8)


@each_form
@pytest.mark.parametrize("num_views", [2, 3])
def test_equals_loops(num_views: int, form: str) -> None:
    z = draw(num_views, 12, 3) + draw(1, 12, 3, seed=1)
    order = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(k)) for k in range(2)])
    options: dict[str, Any] = {"form": form, "eps": 0.01}
    everything = [list(range(12))]
    assert float(wmse(z, **options)) == pytest.approx(by_loops(z, everything, form, 0.01), rel=1e-9)
    halves = [list(range(6)), list(range(6, 12))]
    assert float(wmse(z, size=6, **options)) == pytest.approx(by_loops(z, halves, form, 0.01), rel=1e-9)
    uneven = [list(range(6)), list(range(6, 12))]  # 12 // 5 sub-batches, no row left over
    assert float(wmse(z, size=5, **options)) == pytest.approx(by_loops(z, uneven, form, 0.01), rel=1e-9)
    cuts = [part.tolist() for rows in order for part in rows.split(4)]
    found = WMSE(4, **options)(*z, order=order)
    assert float(found) == pytest.approx(by_loops(z, cuts, form, 0.01), rel=1e-9)
    eleven = z[:, :11]  # sub-batches of 6 and 5
    cuts = [list(range(6)), list(range(6, 11))]
    assert float(wmse(eleven, size=5, **options)) == pytest.approx(by_loops(eleven, cuts, form, 0.01), rel=1e-9)


@each_form
def test_laws(form: str) -> None:
    z = draw(2, 10, 3)
    order = torch.tensor([4, 2, 9, 0, 1, 3, 8, 7, 6, 5])
    options: dict[str, Any] = {"form": form, "eps": 0.0}
    whole = wmse(z, **options)
    for same in (wmse(z[:, order], **options), wmse(z.flip(0), **options), wmse(7 * z + 3, **options)):
        torch.testing.assert_close(same, whole)
    torch.testing.assert_close(wmse(z[0], z[0] * 4 - 1, **options), torch.zeros((), dtype=F64), atol=1e-9, rtol=0)
    turn = torch.linalg.qr(draw(3, 3, seed=2))[0]
    turned = wmse(z @ turn, **options)
    assert torch.isclose(turned, whole) == (form == "zca")


def test_any_linear_map_of_a_view_is_undone_up_to_a_rotation() -> None:
    z = draw(10, 3)
    lower = torch.tensor([[2.0, 0.0, 0.0], [1.0, 3.0, 0.0], [-1.0, 0.5, 0.7]], dtype=F64)
    torch.testing.assert_close(whiten(z @ lower.t(), eps=0.0), whiten(z, eps=0.0))  # Cholesky factors multiply


@each_form
def test_derivatives(form: str) -> None:
    assert torch.autograd.gradcheck(lambda z: wmse(z, form=form, size=4), (draw(2, 8, 3).requires_grad_(),))


def test_zca_has_a_gradient_where_eigenvalues_are_equal() -> None:
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=F64)
    z = corners.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: whiten(z, form="zca", eps=0.0), (z,))


def test_condition() -> None:
    z = draw(2, 20, 3) * torch.tensor([1.0, 10.0, 0.1], dtype=F64)
    worst = max(np.linalg.cond(0.99 * np.cov(x.numpy(), rowvar=False) + 0.01 * np.eye(3)) for x in z)
    loss, stats = wmse(z, eps=0.01, with_stats=True)
    assert float(stats.condition) == pytest.approx(worst, rel=1e-9)
    assert stats.num_blocks == 2
    torch.testing.assert_close(loss, wmse(z, eps=0.01))
    assert wmse(z, size=10, with_stats=True)[1].num_blocks == 4
    collapsed = wmse(torch.ones(2, 9, 3), with_stats=True)[1]
    assert float(collapsed.condition) == pytest.approx(1.0)  # nothing but the identity's share


@each_form
def test_extremes(form: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        line = torch.linspace(-1e4, 1e4, 16)[:, None].expand(16, 4)  # one direction alone, far from 0
        z = torch.stack([line, line.flip(0)]).to(dtype).requires_grad_()
        loss = wmse(z, form=form)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((draw(2, 3, 3),), {}, "size: expected more rows in a sub-batch than the 3 features, received 3"),
        ((draw(2, 12, 3),), {"size": 3}, "size: expected more rows"),
        ((draw(2, 12, 3),), {"size": -1}, "size: expected 0 or more"),
        ((draw(1, 12, 3),), {}, "views: expected 2 or more views"),
        ((draw(2, 12, 3),), {"form": "pca"}, "form: expected one of 'cholesky', 'zca'"),
        ((draw(2, 12, 3),), {"eps": 1.0}, r"eps: expected a number in \[0, 1\)"),
        ((draw(2, 12, 3),), {"order": torch.arange(12)}, r"order: expected shape \[I, 12\]"),
        ((draw(2, 12, 3),), {"order": torch.zeros(1, 12, dtype=torch.long)}, "order: expected permutations"),
        ((torch.zeros(2, 12, 3),), {"eps": 0.0}, "views: expected a covariance with an inverse"),
        ((torch.zeros(2, 12, 3),), {"eps": 0.0, "form": "zca"}, "views: expected a covariance with an inverse"),
    ],
)
def test_refuses(arguments: tuple[Tensor, ...], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        wmse(*arguments, **options)


def test_whiten_refuses() -> None:
    with pytest.raises(ValueError, match="x: expected shape"):
        whiten(draw(3, 3))
    with pytest.raises(ValueError, match="form: expected one of"):
        WMSE(form="pca")
