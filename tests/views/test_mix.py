"""mixup and CutMix: closed forms, the distribution of shares, and what a draw depends on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nearfar.batch import View
from nearfar.rng import Rng
from nearfar.views import Mixed, cutmix, mixup
from nearfar.views.mix import partners, symmetric_beta

Mix = Callable[..., Mixed]
each = pytest.mark.parametrize("mix", [mixup, cutmix])


def view(num: int = 6, side: int = 8) -> View:
    return View(torch.rand(num, 3, side, side + 2, generator=torch.Generator().manual_seed(num)))


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    draws = symmetric_beta(torch.arange(20000), Rng(1), alpha)
    assert bool(draws.isfinite().all())
    assert float(draws.min()) >= 0
    assert float(draws.max()) <= 1
    places = torch.linspace(0.001, 0.999, 99)  # nearer to 1 float32 rounds small alphas up to it
    found = (draws[:, None] <= places).double().mean(0)
    expected = torch.from_numpy(stats.beta(alpha, alpha).cdf(places.double().numpy()))
    assert float((found - expected).abs().max()) < 1.95 / 20000**0.5  # Kolmogorov and Smirnov at 0.1 %


def test_shares_stay_finite_for_any_alpha() -> None:
    for alpha in (1e-4, 1e-2, 1e4):
        draws = symmetric_beta(torch.arange(2000), Rng(2), alpha)
        assert bool((draws.isfinite() & (draws >= 0) & (draws <= 1)).all())
    assert float((symmetric_beta(torch.arange(2000), Rng(2), 1e4) - 0.5).abs().max()) < 0.05


def test_mixup_is_the_blend() -> None:
    source, index = view(), torch.arange(6)
    mixed = mixup(source, index, Rng(3), 0.5)
    for b in range(6):
        share, partner = float(mixed.share[b]), int(mixed.partner[b])
        expected = share * source.data[b] + (1 - share) * source.data[partner]
        torch.testing.assert_close(mixed.view.data[b], expected)


def test_cutmix_pastes_one_box_and_counts_its_pixels() -> None:
    source, index = view(40), torch.arange(40)
    mixed = cutmix(source, index, Rng(3))
    taken = (mixed.view.data == source.data[mixed.partner]).all(dim=1)
    own = (mixed.view.data == source.data).all(dim=1)
    assert bool((taken | own).all())
    torch.testing.assert_close(mixed.share, 1 - taken.float().mean(dim=(1, 2)))
    assert 0.3 < float(mixed.share.mean()) < 0.8
    for box in taken:
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns)  # a rectangle
        for line in (rows, columns):
            assert int(line.int().diff().abs().sum()) <= 2  # without gaps


def test_partners_are_one_circle() -> None:
    partner = partners(torch.arange(50), Rng(4))
    seen, row = [], 0
    for _ in range(50):
        seen.append(row)
        row = int(partner[row])
    assert sorted(seen) == list(range(50))
    assert partners(torch.tensor([9]), Rng(4)).tolist() == [0]


@each
def test_order_of_the_batch_does_not_matter(mix: Mix) -> None:
    source, index = view(12), torch.arange(12) * 5
    order = torch.randperm(12)
    whole = mix(source, index, Rng(1, 2, 1))
    shuffled = mix(View(source.data[order]), index[order], Rng(1, 2, 1))
    assert torch.equal(shuffled.view.data, whole.view.data[order])
    assert torch.equal(order[shuffled.partner], whole.partner[order])
    assert torch.equal(shuffled.share, whole.share[order])


@each
def test_draws_repeat_and_differ_by_seed_epoch_and_view(mix: Mix) -> None:
    source, index = view(12), torch.arange(12)
    first = mix(source, index, Rng(1)).view.data
    assert torch.equal(mix(source, index, Rng(1)).view.data, first)
    for other in (Rng(2), Rng(1, 1), Rng(1, 0, 1)):
        assert not torch.equal(mix(source, index, other).view.data, first)


@each
def test_the_source_and_its_geometry_stay(mix: Mix) -> None:
    source = view()
    before = source.data.clone()
    mixed = mix(source, torch.arange(6), Rng())
    assert torch.equal(source.data, before)
    assert mixed.view.geometry is source.geometry
    assert mixed.view.role == source.role


@each
def test_bad_input_is_refused(mix: Mix) -> None:
    with pytest.raises(ValueError, match="alpha: expected a finite number > 0, received 0"):
        mix(view(), torch.arange(6), Rng(), 0.0)
    with pytest.raises(ValueError, match=r"index: expected shape \[6\], received \(5,\)"):
        mix(view(), torch.arange(5), Rng())
    with pytest.raises(ValueError, match=r"view: expected float data \[B, C, H, W\], received torch.uint8"):
        mix(View(torch.zeros(6, 3, 8, 8, dtype=torch.uint8)), torch.arange(6), Rng())
