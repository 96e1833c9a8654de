"""Group whitening: its moments, numpy's eigenvectors, batch normalisation, permutations, gradients, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nearfar.objectives import whiten
from nearfar.whitening import GroupWhitening, group_count, group_whiten, inverse_root

F64 = torch.float64
each_engine = pytest.mark.parametrize("engine", ["eigh", "cholesky", "newton"])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixed(num: int, dim: int, seed: int = 0) -> Tensor:
    """Correlated channels with a mean."""
    return draw(num, dim, seed=seed) @ draw(dim, dim, seed=seed + 1) + 3 * draw(dim, seed=seed + 2)


def order_of(dim: int, seed: int) -> Tensor:
    return torch.randperm(dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.oracle("whitenedcse", 1)
@pytest.mark.parametrize(
    ("engine", "eps", "num_steps"), [("eigh", 1e-5, 5), ("cholesky", 1e-9, 5), ("newton", 1e-9, 40)]
)
def test_each_group_has_mean_0_and_covariance_1(engine: str, eps: float, num_steps: int) -> None:
    x, order = mixed(64, 24), order_of(24, 3)
    y = group_whiten(x, 4, order=order, engine=engine, eps=eps, num_steps=num_steps)
    for group in order.split(6):
        part = y[:, group].numpy()
        assert np.abs(part.mean(0)).max() < 1e-10
        assert np.abs(part.T @ part / 64 - np.eye(6)).max() < 1e-4
    other = y[:, order[:6]].T @ y[:, order[6:12]] / 64
    assert other.abs().max() > 0.05, "channels of different groups stay correlated"


@pytest.mark.oracle("whitenedcse", 2)
def test_one_group_is_zca_whatever_the_order() -> None:
    x = mixed(64, 6)
    centred = x.numpy() - x.numpy().mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / 64)
    expected = centred @ vectors @ np.diag(values**-0.5) @ vectors.T
    y = group_whiten(x, 1)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-9)
    torch.testing.assert_close(group_whiten(x, 1, order=order_of(6, 1)), y)
    factor = np.linalg.cholesky(centred.T @ centred / 64 + 1e-5 * np.eye(6))
    np.testing.assert_allclose(
        group_whiten(x, 1, engine="cholesky").numpy(), np.linalg.solve(factor, centred.T).T, atol=1e-9
    )
    # `whiten` divides by n - 1
    torch.testing.assert_close(y, whiten(x, form="zca", eps=0.0) * (64 / 63) ** 0.5)


@pytest.mark.oracle("whitenedcse", 3)
def test_groups_of_one_channel_are_batch_normalisation() -> None:
    x = mixed(32, 5)
    expected = nn.BatchNorm1d(5, affine=False, eps=1e-14).double()(x)
    torch.testing.assert_close(group_whiten(x, 5), expected)
    torch.testing.assert_close(group_whiten(x, 5, order=order_of(5, 2)), expected)


@pytest.mark.oracle("whitenedcse", 4)
@each_engine
def test_other_groups_give_other_rows(engine: str) -> None:
    x = mixed(64, 12)
    one, again, other = (group_whiten(x, 3, order=order_of(12, seed), engine=engine) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 0.1
    torch.testing.assert_close(
        group_whiten(x, 3, order=torch.arange(12), engine=engine), group_whiten(x, 3, engine=engine)
    )
    plain = whiten(draw(64, 12), eps=0.0) * (64 / 63) ** 0.5  # covariance 1 to begin with
    found = group_whiten(plain + 2, 3, order=order_of(12, 1), engine=engine, eps=1e-9, num_steps=40)
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=0)


@pytest.mark.oracle("whitenedcse", 5)
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_shift_and_scale_are_taken_out(groups: int) -> None:
    x, order = mixed(40, 6), order_of(6, 4)
    y = group_whiten(x, groups, order=order)
    torch.testing.assert_close(group_whiten(x + draw(6, seed=9), groups, order=order), y)
    torch.testing.assert_close(group_whiten(7.5 * x, groups, order=order), y)


@pytest.mark.oracle("whitenedcse", 6)
@each_engine
def test_derivatives(engine: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    for x in (mixed(8, 4), mixed(8, 4)[:3]):  # of three rows a floor or eps decides two directions
        eps = 1e-2
        assert torch.autograd.gradcheck(
            lambda x, eps=eps: group_whiten(x, 2, order=order, engine=engine, eps=eps), (x.requires_grad_(),)
        )
    rows = mixed(9, 4, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, rows: group_whiten(x, 2, rows=rows, engine=engine), (mixed(3, 4).requires_grad_(), rows)
    )


def test_a_root_with_a_floor_has_a_gradient_on_both_sides_of_it() -> None:
    turn = torch.linalg.qr(draw(5, 5))[0]
    matrix = turn @ torch.diag(torch.tensor([2.0, 2.0, 0.7, 1e-3, 2e-3], dtype=F64)) @ turn.T

    def root(x: Tensor) -> Tensor:
        return inverse_root((x + x.T) / 2, 0.01)

    values = torch.linalg.eigvalsh(root(matrix))
    torch.testing.assert_close(values, torch.tensor([0.5**0.5, 0.5**0.5, 0.7**-0.5, 10.0, 10.0], dtype=F64))
    assert torch.autograd.gradcheck(root, (matrix.requires_grad_(),))
    with pytest.raises(ValueError, match="expected a covariance with an inverse"):
        inverse_root(torch.zeros(2, 2))


def test_a_singular_covariance_stays_finite() -> None:
    for engine in ("eigh", "cholesky", "newton"):
        for x in (torch.ones(4, 6), draw(3, 6).float(), draw(8, 6).float() * 1e4):
            x.requires_grad_()
            y = group_whiten(x, 1, engine=engine)
            y.square().mean().backward()
            assert torch.isfinite(y).all()
            assert torch.isfinite(x.grad).all()
    simplex = group_whiten(draw(4, 9), 1, eps=1e-9)  # any four rows in nine channels become the same shape
    other = group_whiten(draw(4, 9, seed=5), 1, eps=1e-9)
    torch.testing.assert_close(simplex @ simplex.T, other @ other.T, atol=1e-6, rtol=0)


def test_newton_comes_nearer_with_every_step() -> None:
    x = mixed(64, 6)
    exact = group_whiten(x, 1, eps=1e-9)
    errors = [
        float((group_whiten(x, 1, engine="newton", eps=1e-9, num_steps=n) - exact).norm()) for n in (1, 5, 10, 20)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


def test_statistics_of_other_rows() -> None:
    rows, x = mixed(50, 6), mixed(7, 6, seed=8)
    whole = group_whiten(torch.cat([rows, x]), 3, rows=rows, order=order_of(6, 0))
    torch.testing.assert_close(whole[:50], group_whiten(rows, 3, order=order_of(6, 0)))
    torch.testing.assert_close(whole[50:], group_whiten(x, 3, rows=rows, order=order_of(6, 0)))


def test_half_precision_and_autocast_do_not_matter() -> None:
    x = mixed(32, 6).float()
    y = group_whiten(x, 2)
    assert y.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(group_whiten(x, 2), y)
    assert torch.equal(group_whiten(x.bfloat16(), 2), group_whiten(x.bfloat16().float(), 2))


@pytest.mark.parametrize(
    ("dim", "num", "expected"), [(768, 128, 12), (768, 2, 768), (16, 8, 4), (6, 64, 1), (10, 7, 5)]
)
def test_groups_by_the_number_of_rows(dim: int, num: int, expected: int) -> None:
    assert group_count(dim, num) == expected
    if num > 2:
        assert dim / expected <= num / 2
    if dim < 100:
        x = mixed(num, dim)
        torch.testing.assert_close(group_whiten(x, 0), group_whiten(x, expected))


def test_the_module() -> None:
    x, order = mixed(32, 6), order_of(6, 0)
    module = GroupWhitening(3, engine="cholesky", eps=1e-3)
    torch.testing.assert_close(module(x, order), group_whiten(x, 3, order=order, engine="cholesky", eps=1e-3))
    torch.testing.assert_close(module(x[:5], None, x), group_whiten(x[:5], 3, rows=x, engine="cholesky", eps=1e-3))
    assert torch.equal(module.eval()(x, order), x)
    assert not list(module.parameters())


def test_bad_input() -> None:
    x = mixed(8, 6)
    for call, told in (
        (lambda: group_whiten(x, 4), "groups: expected a divisor of the 6 channels"),
        (lambda: group_whiten(x[:1], 2), "x: expected 2 or more rows"),
        (lambda: group_whiten(x, 2, order=torch.zeros(6, dtype=torch.int64)), "order: expected a permutation of 6"),
        (lambda: group_whiten(x, 2, order=torch.arange(5)), "order: expected a permutation of 6"),
        (lambda: group_whiten(x, 2, rows=x[:, :5]), r"rows: expected shape \[M, 6\]"),
        (lambda: group_whiten(x, 2, engine="qr"), "engine: expected one of 'eigh', 'cholesky', 'newton'"),
        (lambda: group_whiten(x, 2, eps=0.0), "eps: expected a finite number > 0"),
        (lambda: group_whiten(x, 2, engine="newton", num_steps=0), "num_steps: expected 1 or more"),
        (lambda: GroupWhitening(-1), "groups: expected 0 or more"),
        (lambda: GroupWhitening(engine="qr"), "engine: expected one of"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    with pytest.raises(TypeError, match="x: expected floating point"):
        group_whiten(torch.ones(4, 4, dtype=torch.int64).to(torch.complex64))
