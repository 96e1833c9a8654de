"""Bags of visual words by loops, at both ends of their sharpness, and permuted.

Legend: B maps, U positions, D channels, K words.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nearfar.prototypes import bag_of_words, word_distances

F64 = torch.float64


def draw(num: int = 3, positions: int = 7, words: int = 5, dim: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num)
    position = torch.randn(num, positions, dim, generator=generator, dtype=F64)
    return position, torch.randn(words, dim, generator=generator, dtype=F64)


@pytest.mark.oracle("obow", 3)
def test_distances_are_those_of_cdist() -> None:
    position, word = draw()
    torch.testing.assert_close(word_distances(position, word), torch.cdist(position, word) ** 2)
    same = word_distances(position.float(), position[0].float())
    assert float(same.min()) >= 0  # rounding never makes one negative
    assert word_distances(position.bfloat16(), word.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_bags_by_loops(pool: str) -> None:
    position, word = draw()
    bag = bag_of_words(word_distances(position, word), sharpness=0.7, pool=pool)
    for b in range(3):
        codes = []
        for u in range(7):
            weights = [torch.exp(-0.7 * (position[b, u] - w).square().sum()) for w in word]
            codes.append([float(x / sum(weights)) for x in weights])
        pooled = [max(column) if pool == "max" else sum(column) / 7 for column in zip(*codes, strict=True)]
        expected = torch.tensor([x / sum(pooled) for x in pooled], dtype=F64)
        torch.testing.assert_close(bag[b], expected)


@pytest.mark.oracle("obow", 1)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_bags_are_distributions(hard: bool, pool: str) -> None:
    bag = bag_of_words(word_distances(*draw()), hard=hard, pool=pool)
    assert float(bag.min()) >= 0
    torch.testing.assert_close(bag.sum(1), torch.ones(3, dtype=F64))
    position, word = draw(positions=1)
    if hard:
        one = bag_of_words(word_distances(position, word), hard=True, pool=pool)
        assert torch.equal(one, torch.nn.functional.one_hot(torch.cdist(position, word)[:, 0].argmin(1), 5).double())


@pytest.mark.oracle("obow", 2)
def test_both_ends_of_sharpness() -> None:
    distance = word_distances(*draw())
    hard = bag_of_words(distance, hard=True)
    torch.testing.assert_close(bag_of_words(distance, sharpness=1e6), hard)
    for row, nearest in zip(hard, distance.argmin(2), strict=True):
        seen = nearest.unique()
        expected = torch.zeros(5, dtype=F64)
        expected[seen] = 1 / len(seen)
        torch.testing.assert_close(row, expected)
    torch.testing.assert_close(bag_of_words(distance, sharpness=1e-9), torch.full((3, 5), 0.2, dtype=F64))


@pytest.mark.oracle("obow", 4)
def test_permuted_words_permute_the_bags() -> None:
    position, word = draw()
    order = torch.randperm(5)
    bag = bag_of_words(word_distances(position, word), sharpness=torch.tensor(0.5))
    permuted = bag_of_words(word_distances(position, word[order]), sharpness=torch.tensor(0.5))
    torch.testing.assert_close(permuted, bag[:, order])


def test_bad_input_is_refused() -> None:
    position, word = draw()
    with pytest.raises(ValueError, match=r"position: expected shape \[B, U, D\], received \(7, 4\)"):
        word_distances(position[0], word)
    with pytest.raises(ValueError, match=r"word: expected shape \[K, 4\], received \(5, 3\)"):
        word_distances(position, word[:, :3])
    distance = word_distances(position, word)
    with pytest.raises(ValueError, match=r"distance: expected shape \[B, U, K\], U of 1 or more"):
        bag_of_words(distance[:, :0])
    with pytest.raises(ValueError, match="pool: expected one of 'max', 'mean', received 'sum'"):
        bag_of_words(distance, pool="sum")
    with pytest.raises(ValueError, match="sharpness: expected a number > 0, received 0"):
        bag_of_words(distance, sharpness=0.0)
