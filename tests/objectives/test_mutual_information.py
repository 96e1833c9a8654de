"""Variational bounds on information: against stored scores, against exact tables, between each other.

Legend: B batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from nearfar.objectives import (
    MutualInformation,
    gaussian_information,
    info_nce,
    mutual_information,
    spectral,
)
from nearfar.objectives.mutual_information import BOUNDS
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def stored(t: Tensor, bound: str, share: float = 0.5, log_baseline: Any = 1.0) -> Tensor:
    """The bound of every anchor from the matrix of scores."""
    num = len(t)
    off = ~torch.eye(num, dtype=torch.bool)

    def q(x: Tensor) -> Tensor:
        return torch.where(off, x, 0.0).sum(1) / (num - 1)

    p, e = t.diagonal(), q(torch.exp(t))
    base = (1 - share) * torch.exp(torch.as_tensor(log_baseline, dtype=F64))
    mean = torch.exp(t).mean(1)
    return {
        "info_nce": p - mean.log(),
        "donsker_varadhan": p - e.mean().log(),
        "nwj": p - q(torch.exp(t - 1)),
        "interpolated": 1 + p - torch.log(share * mean + base) - e / (share * e + base),
        "jensen_shannon": -softplus(-p) - q(softplus(t)),
        "chi_square": p - q(t**2) / 2 - 0.5,
        "hellinger": 1 - torch.exp(-p) - q(torch.expm1(t)),
    }[bound]


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("bound", BOUNDS)
def test_equals_stored_scores(bound: str, tile: int) -> None:
    a, b = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    t = torch.tensor(2.0, dtype=F64, requires_grad=True)
    expected = -stored(a @ b.t() / t, bound).mean()
    found = mutual_information(a, b, bound=bound, temperature=t, tile=tile)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (a, b, t)), torch.autograd.grad(expected, (a, b, t)))


def test_relations() -> None:
    a, b = draw(7, 4), draw(7, 4, seed=1)
    found = mutual_information(a, b, bound="info_nce", temperature=0.2, normalize=True)
    torch.testing.assert_close(found, info_nce(a, b, in_batch=True) - math.log(7))
    for share, bound in ((0.0, "nwj"), (1.0, "info_nce")):
        between = mutual_information(a, b, bound="interpolated", share=share)
        torch.testing.assert_close(between, mutual_information(a, b, bound=bound))
    torch.testing.assert_close(mutual_information(a, b, bound="chi_square"), spectral(a, b) / 2 + 0.5)
    base = draw(7, seed=2).requires_grad_()
    loss = mutual_information(a, b, bound="interpolated", share=0.3, log_baseline=base)
    torch.testing.assert_close(loss, -stored(a @ b.t(), "interpolated", 0.3, base).mean())
    assert (torch.autograd.grad(loss, base)[0] != 0).all()


INFORMATION = {
    "donsker_varadhan": lambda p, q: (p * (p / q).log()).sum(),
    "nwj": lambda p, q: (p * (p / q).log()).sum(),
    "jensen_shannon": lambda p, q: (
        (p * torch.log(2 * p / (p + q)) + q * torch.log(2 * q / (p + q))).sum() - math.log(4)
    ),
    "chi_square": lambda p, q: ((p / q - 1) ** 2 * q).sum() / 2,
    "hellinger": lambda p, q: ((p.sqrt() - q.sqrt()) ** 2).sum(),
}
BEST = {
    "donsker_varadhan": torch.log,
    "nwj": lambda r: 1 + torch.log(r),
    "jensen_shannon": torch.log,
    "chi_square": lambda r: r,
    "hellinger": lambda r: torch.log(r) / 2,
}


@pytest.mark.oracle("crl_framework", 5)
@pytest.mark.oracle("sufficient_statistics", 1)
@pytest.mark.parametrize("bound", INFORMATION)
def test_the_best_score_reaches_the_information_of_a_table(bound: str) -> None:
    """A batch that holds every cell of a 2 x 2 table by its frequency; the score of a cell is a product of one-hots."""
    counts = torch.tensor([[260, 140], [60, 340]])
    table = counts.double() / counts.sum()
    product = table.sum(1, keepdim=True) * table.sum(0)
    rows, columns = (x.flatten() for x in torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij"))
    row, column = rows.repeat_interleave(counts.flatten()), columns.repeat_interleave(counts.flatten())
    exact = float(INFORMATION[bound](table, product))
    scores = BEST[bound](table / product)
    found = -float(mutual_information(scores[row], torch.eye(2, dtype=F64)[column], bound=bound))
    assert found == pytest.approx(exact, abs=3e-3)  # pairs i != j are all but independent
    for seed in range(5):
        other = scores + 0.3 * draw(2, 2, seed=seed)
        worse = -float(mutual_information(other[row], torch.eye(2, dtype=F64)[column], bound=bound))
        assert worse < exact + 3e-3


@pytest.mark.oracle("sufficient_statistics", 4)
@pytest.mark.oracle("crl_framework", 5)
def test_info_nce_stays_below_log_n_and_the_information() -> None:
    table = torch.tensor([[0.4, 0.1], [0.15, 0.35]], dtype=F64)
    product = table.sum(1, keepdim=True) * table.sum(0)
    score = (table / product).log()
    exact = float((table * score).sum())
    values = []
    for num in (2, 3, 4, 6):  # every batch by enumeration, weighted by its probability
        total = 0.0
        cells = torch.cartesian_prod(*[torch.arange(4)] * num)
        x, y = cells // 2, cells % 2
        weight = table[x, y].prod(1)
        s = score[x[:, :1].expand(-1, num), y]
        total = float((weight * (s[:, 0] - torch.logsumexp(s, 1) + math.log(num))).sum())
        shifted = s + 5.0
        again = float((weight * (shifted[:, 0] - torch.logsumexp(shifted, 1) + math.log(num))).sum())
        assert again == pytest.approx(total)
        batch = -float(mutual_information(score[x[5]], torch.eye(2, dtype=F64)[y[5]], bound="info_nce"))
        assert batch <= math.log(num) + 1e-12
        values.append(total)
        assert total <= min(exact, math.log(num))
    assert values == sorted(values)


@pytest.mark.oracle("sufficient_statistics", 2)
def test_gaussian_information() -> None:
    variance, noise = torch.tensor([4.0, 1.0, 0.25], dtype=F64), 0.7
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(4000, 9, generator=generator, dtype=F64)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.t() @ white / len(white))).t()  # exactly white
    x = white[:, :3] * variance.sqrt()
    a, b = x + noise * white[:, 3:6], x + noise * white[:, 6:]
    rho = variance / (variance + noise**2)
    torch.testing.assert_close(gaussian_information(a, b), -0.5 * torch.log(1 - rho**2).sum())
    turned = a @ draw(3, 3, seed=1)
    torch.testing.assert_close(gaussian_information(turned, b), gaussian_information(a, b))
    lost = gaussian_information(a, b) - gaussian_information(a[:, :2], b)
    torch.testing.assert_close(lost, -0.5 * torch.log(1 - rho[2] ** 2))
    assert torch.autograd.gradcheck(gaussian_information, (a[:20].clone().requires_grad_(), b[:20]))


@pytest.mark.parametrize("bound", [name for name in BOUNDS if name != "donsker_varadhan"])
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], bound: str) -> None:
    a, b = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_()
    whole = mutual_information(a, b, bound=bound)
    parts = over_parts(
        sizes,
        lambda rows, offset: mutual_information(
            a[rows], b[rows], bound=bound, gathered=b, offset=offset, with_stats=True
        ),
    )
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, (a, b)), torch.autograd.grad(whole, (a, b)))


@pytest.mark.parametrize("bound", [name for name in BOUNDS if name != "jensen_shannon"])
def test_derivatives(bound: str) -> None:
    a, b = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: mutual_information(a, b, bound=bound, tile=0), (a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bound", BOUNDS)
def test_equal_and_zero_rows_are_finite(bound: str, dtype: torch.dtype) -> None:
    for rows in (torch.ones(6, 4), draw(6, 4), torch.zeros(6, 4)):
        a = rows.to(dtype).requires_grad_()
        loss = mutual_information(a, rows.to(dtype), bound=bound, normalize=True, temperature=0.1)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(a.grad).all()


def test_module() -> None:
    module, a, b = MutualInformation("nwj", 2.0, learnable_temperature=True), draw(5, 4).float(), draw(5, 4).float()
    torch.testing.assert_close(module(a, b), mutual_information(a, b, bound="nwj", temperature=2.0))
    module(a, b).backward()
    assert module.tau.log_value.grad is not None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"bound": "renyi"}, "bound: expected one of"),
        ({"share": 1.5}, r"share: expected a number in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        (
            {"bound": "donsker_varadhan", "gathered": draw(7, 4)},
            "gathered: expected none with bound='donsker_varadhan'",
        ),
        ({"a": draw(1, 4), "b": draw(1, 4)}, "a: expected 2 or more rows"),
        ({"b": draw(6, 4)}, "b: expected the shape of a"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        mutual_information(**{"a": draw(7, 4), "b": draw(7, 4)} | arguments)


def test_gaussian_refuses() -> None:
    with pytest.raises(ValueError, match="covariances that are not singular"):
        gaussian_information(draw(7, 2), torch.zeros(7, 2, dtype=F64))
    with pytest.raises(ValueError, match=r"b: expected shape \[7, E\]"):
        gaussian_information(draw(7, 2), draw(6, 2))
    with pytest.raises(ValueError, match="ridge: expected a number of 0 or more"):
        gaussian_information(draw(7, 2), draw(7, 2), ridge=-1.0)
