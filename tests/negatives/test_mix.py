"""Mixed negatives: values against loops over the same draws, bounds, gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from nearfar.contrast import contrast
from nearfar.negatives import hardest, mix_pairs, mix_with_query, mochi


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss(query: torch.Tensor, key: torch.Tensor, bank: torch.Tensor, synthetic: torch.Tensor) -> torch.Tensor:
    own = torch.eye(len(query), dtype=torch.bool)
    return contrast(query, key, targets=torch.arange(len(query)), denominator=own, extra=(bank,), per_anchor=synthetic)


@pytest.mark.oracle("mochi", 1)
def test_no_mixtures_leave_the_loss_as_it_is() -> None:
    query, key, bank = torch.randn(4, 6), torch.randn(4, 6), torch.randn(20, 6)
    synthetic = mochi(query, bank, num_hardest=5, num_pairs=0, num_with_query=0)
    assert synthetic.shape == (4, 0, 6)
    own = torch.eye(4, dtype=torch.bool)
    plain = contrast(query, key, targets=torch.arange(4), denominator=own, extra=(bank,))
    assert torch.equal(loss(query, key, bank, synthetic), plain)


@pytest.mark.oracle("mochi", 2)
def test_mixtures_of_pairs_lie_between_two_chosen_ones() -> None:
    bank, index = 5 * torch.randn(30, 6), torch.randint(0, 30, (4, 9))
    mixed = mix_pairs(bank, index, 50, generator=generator())
    drawn = torch.rand(50, 3, 4, dtype=torch.float64, generator=generator())
    unit = F.normalize(bank, dim=1)
    for row, number in itertools.product(range(4), range(50)):
        first, second, share = drawn[number, :, row].tolist()
        one, two = unit[index[row, int(first * 9)]], unit[index[row, int(second * 9)]]
        assert torch.allclose(mixed[row, number], F.normalize(share * one + (1 - share) * two, dim=0), atol=1e-6)
    # Of similarities that are not negative a mixture is no easier than the easier one.
    bank = torch.rand(30, 6)
    query = torch.rand(4, 6)
    found = hardest(query, bank, 8)
    mixed = mix_pairs(bank, found.index, 200, generator=generator())
    similarity = (mixed * F.normalize(query, dim=1)[:, None]).sum(-1)
    assert (similarity >= found.similarity[:, -1:] - 1e-6).all()


@pytest.mark.oracle("mochi", 2)
@pytest.mark.parametrize("most", [0.5, 0.9])
def test_mixtures_with_the_query_are_harder_by_the_closed_form(most: float) -> None:
    query, bank, index = 3 * torch.randn(4, 6), torch.randn(30, 6), torch.randint(0, 30, (4, 9))
    mixed = mix_with_query(query, bank, index, 60, most=most, generator=generator())
    drawn = torch.rand(60, 2, 4, dtype=torch.float64, generator=generator()).permute(1, 2, 0)
    place, b = (drawn[0] * 9).long(), most * drawn[1]
    q = F.normalize(query.double(), dim=1)
    c = torch.einsum("bd,bsd->bs", q, F.normalize(bank.double(), dim=1)[index.gather(1, place)])
    similarity = torch.einsum("bd,bsd->bs", q, mixed.double())
    expected = (b + (1 - b) * c) / (b**2 + (1 - b) ** 2 + 2 * b * (1 - b) * c).sqrt()
    assert torch.allclose(similarity, expected, atol=1e-6)
    assert (similarity >= c - 1e-6).all()


@pytest.mark.oracle("mochi", 3)
def test_only_the_query_gets_a_gradient_and_mixtures_are_constants() -> None:
    query, key, bank = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (4, 4, 20))
    synthetic = mochi(query, bank, num_hardest=5, num_pairs=7, num_with_query=3, generator=generator())
    assert synthetic.shape == (4, 10, 6)
    assert synthetic.dtype == torch.float64
    assert not synthetic.requires_grad
    assert torch.allclose(synthetic.norm(dim=-1), torch.ones(4, 10, dtype=torch.float64))
    (grad,) = torch.autograd.grad(loss(query, key.detach(), bank.detach(), synthetic), query)
    q, k, n = F.normalize(query, dim=1), F.normalize(key.detach(), dim=1), F.normalize(bank.detach(), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ n.T, torch.einsum("bd,bsd->bs", q, synthetic)], dim=1) / 0.1
    (reference,) = torch.autograd.grad(F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)), query)
    assert torch.allclose(grad, reference)


@pytest.mark.oracle("mochi", 4)
def test_more_mixtures_keep_the_first_ones_and_raise_the_loss() -> None:
    query, key, bank = torch.randn(4, 6), torch.randn(4, 6), torch.randn(20, 6)
    index = hardest(query, bank, 6).index
    many = mix_pairs(bank, index, 12, generator=generator())
    hard = mix_with_query(query, bank, index, 12, generator=generator())
    for num in (1, 5):
        assert torch.equal(mix_pairs(bank, index, num, generator=generator()), many[:, :num])
        assert torch.equal(mix_with_query(query, bank, index, num, generator=generator()), hard[:, :num])
    for mixtures in (many, hard):
        values = [float(loss(query, key, bank, mixtures[:, :num])) for num in (0, 1, 5, 12)]
        assert all(a < b for a, b in itertools.pairwise(values))


@pytest.mark.oracle("mochi", 5)
def test_one_hardest_is_repeated() -> None:
    query, bank = torch.randn(4, 6), torch.randn(20, 6)
    mixed = mochi(query, bank, num_hardest=1, num_pairs=5, num_with_query=0, generator=generator())
    nearest = F.normalize(bank, dim=1)[hardest(query, bank, 1).index]
    assert torch.allclose(mixed, nearest.expand(4, 5, 6), atol=1e-6)


def test_candidates_that_are_not_allowed_never_enter() -> None:
    query, bank = torch.randn(1, 6), torch.randn(20, 6)
    bank[:, 5] = 0
    allowed = torch.ones(1, 20, dtype=torch.bool)
    allowed[0, hardest(query, bank, 4).index[0]] = False
    bank[~allowed[0], 5] = 1e-3  # a mark that a mixture would carry on
    options = {"num_hardest": 6, "num_pairs": 30, "num_with_query": 0}
    assert not mochi(query, bank, **options, allowed=allowed)[..., 5].any()
    assert mochi(query, bank, **options)[..., 5].any()


def test_antipodal_pairs_stay_finite() -> None:
    bank = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    mixed = mix_pairs(bank, torch.tensor([[0, 1]]), 1000, generator=generator())
    assert mixed.isfinite().all()


def test_numbers_given_stand_for_draws_row_by_row() -> None:
    query, bank, index = torch.randn(4, 6), torch.randn(30, 6), torch.randint(0, 30, (4, 9))
    pairs, hard = torch.rand(4, 7, 3), torch.rand(4, 7, 2)
    mixed = mix_pairs(bank, index, 7, uniform=pairs)
    unit = F.normalize(bank, dim=1)
    one, two = (unit[index[2, int(pairs[2, 5, k] * 9)]] for k in (0, 1))
    share = pairs[2, 5, 2]
    assert torch.allclose(mixed[2, 5], F.normalize(share * one + (1 - share) * two, dim=0), atol=1e-6)
    assert torch.equal(mix_pairs(bank, index[1:3], 4, uniform=pairs[1:3, :4]), mixed[1:3, :4])
    mixed = mix_with_query(query, bank, index, 7, uniform=hard)
    b, other = hard[0, 1, 1] / 2, unit[index[0, int(hard[0, 1, 0] * 9)]]
    expected = F.normalize(b * F.normalize(query[0], dim=0) + (1 - b) * other, dim=0)
    assert torch.allclose(mixed[0, 1], expected, atol=1e-6)


def test_bad_input_is_named() -> None:
    query, bank, index = torch.randn(2, 3), torch.randn(5, 3), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="num \\+ skip: expected at most the 5 candidates"):
        mochi(query, bank)
    with pytest.raises(ValueError, match="num_pairs, num_with_query: expected 0 or more"):
        mochi(query, bank, num_hardest=2, num_pairs=-1)
    with pytest.raises(ValueError, match="num: expected 0 or more, received -1"):
        mix_pairs(bank, index, -1)
    with pytest.raises(ValueError, match=r"uniform: expected shape \[2, 1, 3\], received \(2, 1, 2\)"):
        mix_pairs(bank, index, 1, uniform=torch.rand(2, 1, 2))
    with pytest.raises(ValueError, match="uniform: expected none beside generator"):
        mix_pairs(bank, index, 1, uniform=torch.rand(2, 1, 3), generator=generator())
    with pytest.raises(ValueError, match=r"most: expected a number in \(0, 1\), received 1.0"):
        mix_with_query(query, bank, index, 1, most=1.0)
