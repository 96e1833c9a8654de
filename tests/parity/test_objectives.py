"""Values and gradients of the objectives beside those of other libraries.

Legend: B batch, D embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import clip, dcl, nt_xent, supcon

pytestmark = pytest.mark.parity

Loss = Callable[[Tensor, Tensor], Tensor]
TILES = (0, 5)


def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(0))
    return draw[0].clone().requires_grad_(), draw[1].clone().requires_grad_()


def agree(ours: Loss, theirs: Loss) -> None:
    """Equal to 1e-5, also in the gradient of both inputs."""
    a, b = inputs()
    found, expected = ours(a, b), theirs(a, b)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    got, want = (torch.autograd.grad(x, (a, b), allow_unused=True) for x in (found, expected))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_lightly_nt_xent(temperature: float, tile: int) -> None:
    loss = pytest.importorskip("lightly.loss")
    agree(lambda a, b: nt_xent(a, b, temperature=temperature, tile=tile), loss.NTXentLoss(temperature))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_lightly_dcl(temperature: float, tile: int) -> None:
    loss = pytest.importorskip("lightly.loss")
    agree(lambda a, b: dcl(a, b, temperature=temperature, tile=tile), loss.DCLLoss(temperature))

    def weighted(a: Tensor, b: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="To copy construct from a tensor")
            return loss.DCLWLoss(temperature, sigma=0.5)(a, b)

    agree(lambda a, b: dcl(a, b, temperature=temperature, vmf_sigma=0.5, tile=tile), weighted)


@pytest.mark.parametrize("tile", TILES)
def test_pytorch_metric_learning_supcon(tile: int) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2, 1, 0, 3, 3])
    theirs = losses.SupConLoss(temperature=0.1)
    agree(lambda a, b: supcon(a + b, labels, tile=tile), lambda a, b: theirs(a + b, labels))
    both = labels.repeat(2)
    agree(lambda a, b: supcon([a, b], labels, tile=tile), lambda a, b: theirs(torch.cat([a, b]), both))


@pytest.mark.parametrize("tile", TILES)
def test_pytorch_metric_learning_nt_xent(tile: int) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    theirs = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.1))
    agree(lambda a, b: nt_xent(a, b, tile=tile), lambda a, b: theirs(a, b))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_open_clip(scale: float, tile: int) -> None:
    theirs = pytest.importorskip("open_clip.loss").ClipLoss()
    agree(
        lambda a, b: clip(a, b, scale=scale, tile=tile),
        lambda a, b: theirs(normalize(a, dim=1), normalize(b, dim=1), scale),
    )
