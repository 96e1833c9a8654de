"""Draws against their distributions, an independent reference in whole numbers, and each other."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from nearfar.rng import Rng

MASK = (1 << 64) - 1


def reference_bits(rng: Rng, index: int, name: str, k: int) -> int:
    """The same 64 bits in Python's unbounded integers."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    step = 0x9E3779B97F4A7C15
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    for part in (rng.seed, rng.epoch, rng.view):
        key = mix((key + step * ((part & MASK) + 1)) & MASK)
    return mix((mix((index * step + key) & MASK) + step * (k + 1)) & MASK)


@pytest.mark.parametrize("rng", [Rng(), Rng(3, 7, 1), Rng(-5, 2), Rng((1 << 63) + 9)])
def test_uniform_equals_reference(rng: Rng) -> None:
    index = torch.tensor([0, 1, -4, 123456789, (1 << 62) + 5])
    drawn = rng.uniform(index, "crop", 3)
    expected = [[(reference_bits(rng, i, "crop", k) >> 40) * 2.0**-24 for k in range(3)] for i in index.tolist()]
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == expected


def test_normal_equals_box_muller_of_the_reference_bits() -> None:
    rng, index = Rng(1, 2, 3), torch.tensor([5, 6])
    expected = []
    for i in index.tolist():
        row = []
        for k in range(2):
            bits = reference_bits(rng, i, "noise", k)
            radius = math.sqrt(-2 * math.log((bits >> 40) * 2.0**-24 + 2.0**-25))
            angle = 2 * math.pi * ((bits >> 16) & 0xFFFFFF) * 2.0**-24
            row += [radius * math.cos(angle), radius * math.sin(angle)]
        expected.append(row[:3])
    torch.testing.assert_close(rng.normal(index, "noise", 3), torch.tensor(expected), atol=2e-6, rtol=1e-5)


def kolmogorov(cdf: torch.Tensor) -> float:
    """sqrt(n) times the largest gap between the empirical distribution and a uniform one; above 1.95 at p = 0.001."""
    x = cdf.flatten().double().sort().values
    n = len(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum((steps[1:] - x).max(), (x - steps[:-1]).max())) * math.sqrt(n)


@pytest.mark.parametrize(("rows", "count"), [(200_000, 1), (1000, 200), (10, 20_000)])
def test_distributions(rows: int, count: int) -> None:
    index = torch.arange(rows)
    u, z = Rng(11).uniform(index, "u", count), Rng(11).normal(index, "z", count)
    assert u.shape == z.shape == (rows, count)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert kolmogorov(u) < 1.95
    assert kolmogorov(torch.special.ndtr(z.double())) < 1.95


def test_every_bit_is_fair() -> None:
    whole = (Rng(2).uniform(torch.arange(1 << 17), "bits")[:, 0] * (1 << 24)).long()
    for bit in range(24):
        share = ((whole >> bit) & 1).double().mean()
        assert abs(float(share) - 0.5) < 4 * 0.5 / math.sqrt(len(whole)), bit


def chi_square(x: torch.Tensor, y: torch.Tensor, bins: int = 16) -> float:
    """Standard score of the chi-square statistic of pairs in a square of bins."""
    cells = torch.bincount(((x * bins).long() * bins + (y * bins).long()).flatten(), minlength=bins**2)
    expected = x.numel() / bins**2
    degrees = bins**2 - 1
    return float((((cells - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((Rng(), "a"), (Rng(), "b")),
        ((Rng(), "a"), (Rng(seed=1), "a")),
        ((Rng(), "a"), (Rng(epoch=1), "a")),
        ((Rng(), "a"), (Rng(view=1), "a")),
        ((Rng(epoch=1), "a"), (Rng(view=1), "a")),
        ((Rng(seed=1), "a"), (Rng(epoch=1), "a")),
    ],
)
def test_draws_for_other_purposes_are_independent(one: tuple[Rng, str], other: tuple[Rng, str]) -> None:
    index = torch.arange(100_000)
    x, y = (rng.uniform(index, name)[:, 0] for rng, name in (one, other))
    assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 4 / math.sqrt(len(x))
    assert abs(chi_square(x, y)) < 4


@pytest.mark.parametrize("lag", [1, 2, 64])
def test_neighbouring_samples_and_columns_are_independent(lag: int) -> None:
    u = Rng(5).uniform(torch.arange(1000), "a", 200)
    assert abs(chi_square(u[lag:], u[:-lag])) < 4
    assert abs(chi_square(u[:, lag:], u[:, :-lag])) < 4
    z = Rng(5).normal(torch.arange(1000), "a", 200)
    assert abs(float((z[:, lag:] * z[:, :-lag]).mean())) < 4 / math.sqrt(z.numel())


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_a_draw_does_not_depend_on_its_batch(kind: str) -> None:
    draw = getattr(Rng(4, 1, 1), kind)
    index = torch.tensor([9, 2, 77, 31, 1000])
    together = draw(index, "x", 7)
    assert torch.equal(draw(index.flip(0), "x", 7), together.flip(0))
    assert torch.equal(draw(index[2:3], "x", 7), together[2:3])
    assert torch.equal(draw(index, "x", 4), together[:, :4])
    assert torch.equal(draw(index.int(), "x", 7), together)


def test_at_changes_only_what_it_names() -> None:
    assert Rng(1, 2, 3).at(view=5) == Rng(1, 2, 5)
    assert Rng(1, 2, 3).at(epoch=0) == Rng(1, 0, 3)
    assert Rng(1, 2, 3).at() == Rng(1, 2, 3)


def test_generator_is_reproducible_and_named() -> None:
    def first(rng: Rng, name: str) -> float:
        return float(torch.rand(1, generator=rng.generator(name), dtype=torch.float64))

    assert first(Rng(1), "init") == first(Rng(1), "init")
    assert len({first(Rng(1), "init"), first(Rng(1), "order"), first(Rng(2), "init"), first(Rng(1, 1), "init")}) == 4


def test_bad_input_is_refused() -> None:
    with pytest.raises(TypeError, match=r"index: expected integers, received torch\.float32"):
        Rng().uniform(torch.zeros(3), "a")
    with pytest.raises(TypeError, match=r"index: expected integers, received torch\.bool"):
        Rng().normal(torch.zeros(3, dtype=torch.bool), "a")
    with pytest.raises(ValueError, match=r"index: expected shape \[B\], received \(1, 2\)"):
        Rng().uniform(torch.zeros(1, 2, dtype=torch.long), "a")
    with pytest.raises(ValueError, match="count: expected 1 or more, received 0"):
        Rng().uniform(torch.arange(2), "a", 0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_uniform_draws_are_the_same_bits_on_cuda() -> None:
    index = torch.arange(1000)
    assert torch.equal(Rng(1).uniform(index.cuda(), "a", 9).cpu(), Rng(1).uniform(index, "a", 9))
    torch.testing.assert_close(Rng(1).normal(index.cuda(), "a", 9).cpu(), Rng(1).normal(index, "a", 9))
