"""Objectives without negatives beside those of lightly: values and gradients.

Legend: V views, B batch, D embedding, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nearfar.objectives import (
    barlow,
    centred_softmax,
    masked_distillation,
    regression,
    self_distillation,
    update_centre,
    vicreg,
    wmse,
)

pytestmark = pytest.mark.parity

Loss = Callable[[Tensor, Tensor], Tensor]


def inputs(num: int = 12, dim: int = 6) -> tuple[Tensor, Tensor]:
    draw = torch.randn(2, num, dim, generator=torch.Generator().manual_seed(0))
    return draw[0].clone().requires_grad_(), (0.7 * draw[0] + draw[1]).clone().requires_grad_()


def agree(ours: Loss, theirs: Loss, **shape: int) -> None:
    """Equal to 1e-5, also in the gradient of both inputs."""
    a, b = inputs(**shape)
    found, expected = ours(a, b), theirs(a, b)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    got, want = (torch.autograd.grad(x, (a, b)) for x in (found, expected))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [6, 20])
def test_barlow(dim: int) -> None:
    loss = pytest.importorskip("lightly.loss")
    agree(lambda a, b: barlow(a, b, off_diagonal=5e-3), loss.BarlowTwinsLoss(), dim=dim)


@pytest.mark.parametrize("dim", [6, 20])
def test_vicreg(dim: int) -> None:
    loss = pytest.importorskip("lightly.loss")
    agree(vicreg, loss.VICRegLoss(), dim=dim)


def test_regression() -> None:
    theirs = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()

    def symmetric(a: Tensor, b: Tensor) -> Tensor:
        return (theirs(a, b.detach()) + theirs(b, a.detach())) / 2

    agree(lambda a, b: regression(torch.stack([a, b]), torch.stack([a, b]), form="cosine"), symmetric)
    agree(lambda a, b: regression(torch.stack([a, b]), torch.stack([a, b])), lambda a, b: 2 + 2 * symmetric(a, b))


@pytest.mark.parametrize("num_views", [2, 5])
def test_self_distillation_and_its_centre(num_views: int) -> None:
    theirs = pytest.importorskip("lightly.loss").DINOLoss(6, warmup_teacher_temp_epochs=1)
    draw = torch.Generator().manual_seed(1)
    centre = torch.zeros(6)
    for _ in range(3):
        student = torch.randn(num_views, 12, 6, generator=draw).requires_grad_()
        teacher = torch.randn(2, 12, 6, generator=draw)
        found = self_distillation(student, centred_softmax(teacher, centre))
        expected = theirs(list(teacher), list(student))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(found, student), torch.autograd.grad(expected, student))
        centre = update_centre(centre, teacher.mean((0, 1)))
        torch.testing.assert_close(centre, theirs.center.flatten())


def test_masked_distillation() -> None:
    theirs = pytest.importorskip("lightly.loss").IBOTPatchLoss(6)
    draw = torch.Generator().manual_seed(1)
    mask = torch.rand(5, 4, 4, generator=draw) < 0.4
    mask[2] = False
    student = torch.randn(int(mask.sum()), 6, generator=draw).requires_grad_()
    teacher = torch.randn(int(mask.sum()), 6, generator=draw)
    found = masked_distillation(student, centred_softmax(teacher, torch.zeros(6)), mask.flatten(1))
    expected = theirs(teacher, student, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(found, student), torch.autograd.grad(expected, student))


def test_wmse() -> None:
    module = pytest.importorskip("lightly.loss.wmse_loss")
    whitening = module.Whitening2d(6, track_running_stats=False, eps=0.01)
    agree(lambda a, b: wmse(a, b, eps=0.01), lambda a, b: module.norm_mse_loss(whitening(a), whitening(b)), num=20)
