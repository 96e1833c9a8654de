"""Multi-label self-supervision by loops: labels, loss, gradient, and the order of both dictionaries.

Legend: B batch, N entries, D embedding, F features.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, normalize

from nearfar.objectives import MultiLabel, multi_label, nearest_labels

F64 = torch.float64
B, N, D, F = 4, 9, 5, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def cosines(x: Tensor, y: Tensor) -> Tensor:
    return cosine_similarity(x[:, None], y[None], dim=2)


@pytest.mark.oracle("mls", 1)
def test_one_positive_is_the_own_entry_and_the_loss_that_of_sigmoids() -> None:
    feature, entries, own = draw(B, F), draw(N, F, seed=1), torch.tensor([3, 8, 0, 5])
    labels = nearest_labels(feature, entries, 1, own)
    assert labels.nonzero()[:, 1].tolist() == own.tolist()
    z, q = draw(B, D, seed=2), draw(N, D, seed=3)
    loss = multi_label(z, q, labels, temperature=0.3, bias=-1.0)
    p, total = cosines(z, q) / 0.3 - 1, 0.0
    for i in range(B):
        for j in range(N):
            yes = 1 / (1 + math.exp(-float(p[i, j])))
            total -= math.log(yes) if j == own[i] else math.log(1 - yes)
    assert float(loss) == pytest.approx(total / (B * N), abs=1e-12)


@pytest.mark.oracle("mls", 2)
@pytest.mark.parametrize("num", [1, 3, N - 1])
def test_labels_are_the_nearest_and_own_is_one_of_them(num: int) -> None:
    feature, entries, own = draw(B, F), draw(N, F, seed=1), torch.tensor([3, 8, 0, 5])
    plain, forced = nearest_labels(feature, entries, num), nearest_labels(feature, entries, num, own)
    assert plain.sum(1).tolist() == forced.sum(1).tolist() == [num] * B
    assert not plain.requires_grad
    assert bool(forced[torch.arange(B), own].all())
    for i, row in enumerate(cosines(feature, entries)):
        order = row.argsort(descending=True).tolist()
        assert set(plain[i].nonzero().flatten().tolist()) == set(order[:num])
        rest = [j for j in order if j != own[i]][: num - 1]
        assert set(forced[i].nonzero().flatten().tolist()) == {int(own[i]), *rest}


@pytest.mark.oracle("mls", 2)
def test_gradient_of_a_logit() -> None:
    q = normalize(draw(N, D, seed=3), dim=1)
    labels = nearest_labels(draw(B, F), draw(N, F, seed=1), 3)
    z = draw(B, D, seed=2).requires_grad_()
    entries = q.clone().requires_grad_()
    multi_label(z, entries, labels, temperature=0.5, reduction="sum").backward()
    assert entries.grad is None
    p = (normalize(z, dim=1) @ q.T / 0.5).detach().requires_grad_()
    (expected,) = torch.autograd.grad(normalize(z, dim=1) @ q.T / 0.5, z, (p.sigmoid() - labels.double()) / N)
    torch.testing.assert_close(z.grad, expected)


@pytest.mark.oracle("mls", 3)
def test_both_dictionaries_stand_in_one_order() -> None:
    feature, features, z, q = draw(B, F), draw(N, F, seed=1), draw(B, D, seed=2), draw(N, D, seed=3)
    order = torch.randperm(N)
    loss = multi_label(z, q, nearest_labels(feature, features, 3))
    torch.testing.assert_close(multi_label(z, q[order], nearest_labels(feature, features[order], 3)), loss)
    assert abs(float(multi_label(z, q[order], nearest_labels(feature, features, 3)) - loss)) > 1e-3


@pytest.mark.oracle("mls", 4)
def test_an_infinite_temperature_gives_log_2() -> None:
    labels = nearest_labels(draw(B, F), draw(N, F, seed=1), 3)
    assert float(multi_label(draw(B, D), draw(N, D, seed=3), labels, temperature=1e9)) == pytest.approx(math.log(2))


@pytest.mark.oracle("mls", 5)
@pytest.mark.parametrize("weight", [1.0, 2.5, 40.0])
def test_weights_are_those_of_torch(weight: float) -> None:
    labels = nearest_labels(draw(B, F), draw(N, F, seed=1), 2)
    z, q = draw(B, D, seed=2), draw(N, D, seed=3)
    expected = binary_cross_entropy_with_logits(
        cosines(z, q) / 0.1 + 0.3, labels.double(), pos_weight=torch.tensor(weight, dtype=F64)
    )
    loss = MultiLabel(0.1, bias=0.3, positive_weight=weight)(z, q, labels)
    torch.testing.assert_close(loss, expected)
    each = multi_label(z, q, labels, temperature=0.1, bias=0.3, positive_weight=weight, reduction="none")
    torch.testing.assert_close(each.mean(), expected)


def test_ties_go_to_the_first_entries() -> None:
    labels = nearest_labels(torch.ones(2, F), torch.ones(N, F) * torch.arange(1, N + 1)[:, None], 3)
    assert labels.nonzero()[:, 1].tolist() == [0, 1, 2] * 2


def test_half_precision_and_extreme_temperatures_stay_finite() -> None:
    z = draw(B, D).bfloat16().requires_grad_()
    labels = nearest_labels(draw(B, F).bfloat16(), draw(N, F, seed=1).bfloat16(), 3)
    loss = multi_label(z, draw(N, D, seed=3).bfloat16(), labels, temperature=1e-3)
    loss.backward()
    assert loss.dtype == torch.float32
    assert z.grad is not None
    assert bool(loss.isfinite())
    assert bool(z.grad.isfinite().all())


def test_what_is_not_a_number_reaches_the_loss() -> None:
    labels = nearest_labels(draw(B, F), draw(N, F, seed=1), 3)
    z = draw(B, D)
    z[1, 0] = torch.nan
    assert bool(multi_label(z, draw(N, D, seed=3), labels).isnan())


def test_bad_input_is_refused() -> None:
    feature, entries = draw(B, F), draw(N, F, seed=1)
    labels = nearest_labels(feature, entries, 3)
    for num in (0, N):
        with pytest.raises(ValueError, match=f"num_positives: expected a number from 1 to {N - 1}, received {num}"):
            nearest_labels(feature, entries, num)
    with pytest.raises(ValueError, match=r"own: expected shape \[4\], received \(2,\)"):
        nearest_labels(feature, entries, 2, torch.arange(2))
    with pytest.raises(ValueError, match=r"dictionary: expected shape \[N, 6\], received \(9, 5\)"):
        nearest_labels(feature, draw(N, D), 2)
    with pytest.raises(ValueError, match=r"feature: expected shape \[B, D\], B of 1 or more"):
        nearest_labels(feature[:0], entries, 2)
    zero = entries.clone()
    zero[4] = 0
    with pytest.raises(ValueError, match=r"dictionary: expected rows that are not zero, received zeros in rows \[4\]"):
        nearest_labels(feature, zero, 2)
    z, q = draw(B, D), draw(N, D, seed=3)
    with pytest.raises(ValueError, match=r"labels: expected bool \(4, 9\), received torch.bool \(4, 8\)"):
        multi_label(z, q, labels[:, :8])
    with pytest.raises(ValueError, match=r"labels: expected bool \(4, 9\), received torch.float32"):
        multi_label(z, q, labels.float())
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0, received 0"):
        multi_label(z, q, labels, temperature=0)
    with pytest.raises(ValueError, match="positive_weight: expected a finite number > 0"):
        MultiLabel(positive_weight=0.0)
    with pytest.raises(ValueError, match="reduction: expected one of 'mean', 'sum', 'none', received 'max'"):
        multi_label(z, q, labels, reduction="max")
