"""Products of tiles: both libraries give the same, and what decides between them."""

import pytest
import torch

from nearfar import _products
from nearfar._products import LONG, by_onednn, outer
from nearfar._tiles import block
from nearfar.objectives import clip

needs = pytest.mark.skipif(_products.onednn() is None, reason="this build of torch has no oneDNN product")


@needs
@pytest.mark.parametrize("alpha", [1.0, 14.3])
def test_the_product_is_torchs(alpha: float) -> None:
    a, c = torch.randn(37, LONG), torch.randn(53, LONG)
    made = outer(a, c, alpha)
    assert made is not None
    torch.testing.assert_close(made, alpha * a @ c.T, rtol=1e-5, atol=1e-4)


@needs
def test_rows_of_a_larger_matrix_may_be_multiplied() -> None:
    a, c = torch.randn(90, LONG), torch.randn(80, 2 * LONG)[:, ::2]
    made = outer(a[10:50], c[3:70], 1.0)
    assert made is not None
    torch.testing.assert_close(made, a[10:50] @ c[3:70].T, rtol=1e-5, atol=1e-4)


def test_short_rows_and_other_types_stay_with_torch() -> None:
    assert not by_onednn(torch.randn(4, LONG - 1))
    assert not by_onednn(torch.randn(4, LONG, dtype=torch.float64))
    assert not by_onednn(torch.randn(4, LONG).bfloat16())
    assert outer(torch.randn(4, 8), torch.randn(4, 8), 1.0) is None


@needs
def test_a_user_who_turns_onednn_off_is_heard() -> None:
    x = torch.randn(4, LONG)
    assert by_onednn(x)
    torch._C._set_mkldnn_enabled(False)  # what torch.backends.mkldnn.flags does, which also warns of Intel's GPUs
    try:
        assert not by_onednn(x)
    finally:
        torch._C._set_mkldnn_enabled(True)


def test_an_asked_tile_is_square() -> None:
    assert block(torch.randn(4, LONG), 96) == (96, 96)


@pytest.mark.parametrize("num", [700, 2300])
def test_both_libraries_give_one_loss_and_gradient(monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    """Rows beyond one tile's height and columns beyond its width."""
    found = []
    for product in (_products.onednn(), None):
        monkeypatch.setattr(_products, "onednn", lambda product=product: product)
        torch.manual_seed(0)
        x, y = (torch.randn(num, LONG, requires_grad=True) for _ in range(2))
        loss = clip(x, y, temperature=0.07)
        loss.backward()
        found.append((loss.detach(), x.grad, y.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
