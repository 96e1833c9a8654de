"""What a discriminator pays, against sums written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nearfar.objectives import discriminator


def logits(num: int, seed: int = 0) -> Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def against(a: list[float], b: list[float]) -> float:
    away = sum(math.exp(x) for x in b)
    return sum(-math.log(math.exp(x) / (math.exp(x) + away)) for x in a) / len(a)


@pytest.mark.oracle("pcl_sr", 5)
def test_the_dual_loss() -> None:
    real, fake = logits(5), logits(7, 1)
    r, f = real.tolist(), fake.tolist()
    expected = against(r, f) + against([-x for x in f], [-x for x in r])
    assert float(discriminator(real, fake)) == pytest.approx(expected)
    # exchanging the sides and their signs is the same
    torch.testing.assert_close(discriminator(-fake, -real), discriminator(real, fake))
    assert float(discriminator(real + 50, fake - 50)) == pytest.approx(0, abs=1e-9)
    zeros = torch.zeros(9)
    assert float(discriminator(zeros, zeros)) == pytest.approx(2 * math.log(1 + 9))


def test_the_other_forms() -> None:
    real, fake = logits(5), logits(7, 1)
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    cross_entropy = functional.binary_cross_entropy_with_logits
    expected = {
        "bce": cross_entropy(real, ones) + cross_entropy(fake, zeros),
        "lsgan": functional.mse_loss(real, ones) + functional.mse_loss(fake, zeros),
        "relativistic": cross_entropy(real - fake.mean(), ones) + cross_entropy(fake - real.mean(), zeros),
    }
    for form, value in expected.items():
        torch.testing.assert_close(discriminator(real, fake, form=form), value)


@pytest.mark.parametrize("form", ["dual", "bce", "lsgan", "relativistic"])
def test_gradients_and_parts_of_a_batch(form: str) -> None:
    real, fake = logits(4).requires_grad_(), logits(6, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda r, f: discriminator(r, f, form=form), (real, fake))
    parts = [
        discriminator(real[i::2], fake[i::2], form=form, all_real=real, all_fake=fake) for i in range(2)
    ]  # fmt: skip
    torch.testing.assert_close(sum(parts) / 2, discriminator(real, fake, form=form))


def test_extremes_are_finite() -> None:
    for form in ("dual", "bce", "lsgan", "relativistic"):
        loss = discriminator(torch.full((3,), -1e4), torch.full((3,), 1e4), form=form)
        assert torch.isfinite(loss)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="form: expected one of 'dual', 'bce', 'lsgan', 'relativistic'"):
        discriminator(logits(3), logits(3), form="wgan")
    with pytest.raises(ValueError, match=r"fake: expected 1 or more logits, shape \[N\], received \(0,\)"):
        discriminator(logits(3), logits(3)[:0])
