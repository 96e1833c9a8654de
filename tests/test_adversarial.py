"""Losses of two networks that play against each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nearfar.adversarial import least_squares, r1
from nearfar.objectives import discriminator


def test_least_squares() -> None:
    scores = torch.tensor([[0.5, -1.0], [2.0, 1.0]], dtype=torch.float64)
    assert float(least_squares(scores, 1)) == pytest.approx((0.25 + 4 + 1 + 0) / 4)
    assert float(least_squares(scores, 0)) == pytest.approx((0.25 + 1 + 4 + 1) / 4)
    real, fake = torch.randn(7), torch.randn(5)
    both = least_squares(real, 1) + least_squares(fake, 0)
    torch.testing.assert_close(both, discriminator(real, fake, form="lsgan"))
    assert least_squares(scores.half(), 1).dtype == torch.float32
    with pytest.raises(ValueError, match="scores: expected one or more"):
        least_squares(torch.zeros(0, 1), 1)


def test_r1_of_a_known_function() -> None:
    """D(x) = w . x^2 has the slope 2 w x; the penalty's own gradient in w is 4 w x^2."""

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.square() @ self.w

    net, x = Quadratic(), torch.randn(4, 3, dtype=torch.float64)
    found = r1(net, x)
    torch.testing.assert_close(found, 0.5 * (2 * net.w * x).square().sum(1).mean())
    found.backward()
    torch.testing.assert_close(net.w.grad, (4 * net.w * x.square()).mean(0).detach())
    assert not x.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(r1(net, x), found.detach())
    with pytest.raises(ValueError, match="real: expected one or more samples"):
        r1(net, x[:0])
