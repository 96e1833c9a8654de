"""The hardest candidates, bands of hardness, draws by hardness: against loops and closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from nearfar.contrast import contrast
from nearfar.memory import Queue, others
from nearfar.negatives import between, choose, distance_weights, draw, hardest, quantile_band, semi_hard


def cosines(anchor: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    return F.normalize(anchor, dim=1) @ F.normalize(candidate, dim=1).T


@pytest.mark.oracle("moco_dual_view", 5)
@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 24])
def test_hardest_equals_a_sort(monkeypatch: pytest.MonkeyPatch, skip: int, masked: bool, chunk: int) -> None:
    monkeypatch.setattr(choose, "CHUNK", chunk)
    anchor, candidate = torch.randn(9, 6), 3 * torch.randn(40, 6)
    allowed = torch.rand(9, 40) > 0.3 if masked else None
    found = hardest(anchor, candidate, 5, allowed=allowed, skip=skip)
    for row, similarity in enumerate(cosines(anchor, candidate)):
        order = [i for i in similarity.argsort(descending=True).tolist() if allowed is None or allowed[row, i]]
        assert found.index[row].tolist() == order[skip : skip + 5]
        assert torch.allclose(found.similarity[row], similarity[found.index[row]], atol=1e-6)


@pytest.mark.oracle("mochi", 3)
def test_hardest_has_no_gradient_and_ignores_lengths_and_autocast() -> None:
    anchor, candidate = torch.randn(4, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    found = hardest(anchor, candidate, 6)
    assert not found.similarity.requires_grad
    scaled = hardest(7 * anchor, candidate * torch.rand(30, 1).add(0.1), 6)
    assert torch.equal(found.index, scaled.index)
    with torch.autocast("cpu"):
        assert torch.equal(hardest(anchor, candidate, 6).similarity, found.similarity)
    half = hardest(anchor.half(), candidate.half(), 6)
    assert half.similarity.dtype == torch.float32
    assert torch.allclose(half.similarity, found.similarity, atol=2e-3)
    assert hardest(anchor.double(), candidate.double(), 6).similarity.dtype == torch.float64


@pytest.mark.oracle("moco_dual_view", 1)
@pytest.mark.oracle("moco_dual_view", 3)
def test_top_n_of_a_queue_approaches_the_full_loss_from_below() -> None:
    queue, temperature = Queue(64, key=8, id=(0, torch.long)), 0.2
    queue.push(key=torch.randn(64, 8), id=torch.arange(64))
    query, key, targets = torch.randn(5, 8), torch.randn(5, 8), torch.arange(5)
    own = torch.eye(5, dtype=torch.bool)
    bank = queue.view("key")

    def loss(num: int) -> float:
        found = hardest(query, bank, num)
        return float(contrast(query, key, targets=targets, denominator=own, per_anchor=bank[found.index],
                              temperature=temperature))  # fmt: skip

    full = float(contrast(query, key, targets=targets, denominator=own, extra=(bank,), temperature=temperature))
    values = [loss(num) for num in (1, 4, 16, 48, 64)]
    assert all(a < b for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(full, abs=1e-5)
    index = torch.tensor([3, 9, 60, 7, 1])
    found = hardest(query, bank, 63, allowed=others(index, queue.view("id")))
    assert all(int(i) not in row for i, row in zip(index, found.index.tolist(), strict=True))


def test_bands() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7], [0.2, 0.2, 0.2, 0.8, 0.1]])
    assert between(similarity, 0.3, 0.7).tolist() == [[False, False, True, True, False], [False] * 5]
    assert between(similarity, high=0.8).tolist() == [[False, True, True, True, True], [True, True, True, False, True]]
    assert quantile_band(similarity, high=0.8).tolist() == [
        [False, True, True, True, True],
        [True, True, True, False, True],
    ]
    assert quantile_band(similarity, low=0.4, high=0.6).tolist() == [
        [False, False, True, False, False],
        [False, True, False, False, False],  # of equal ones by place
    ]
    positive = torch.tensor([0.6, 0.25])
    assert semi_hard(similarity, positive, 0.3).tolist() == [
        [False, False, True, False, False],
        [True, True, True, False, True],
    ]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.9), (0.25, 0.5), (0.05, 0.95)])
def test_quantile_band_equals_a_sorted_slice(low: float, high: float) -> None:
    similarity, allowed = torch.randn(20, 33), torch.rand(20, 33) > 0.4
    kept = quantile_band(similarity, low, high, allowed=allowed)
    for row in range(20):
        order = [i for i in similarity[row].argsort().tolist() if allowed[row, i]]
        n = len(order)
        assert kept[row].nonzero().flatten().tolist() == sorted(order[round(low * n) : round(high * n)])
    assert torch.equal(
        quantile_band(similarity, low, high), quantile_band(similarity, low, high, allowed=allowed | True)
    )


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_distance_weights_make_distances_equally_frequent(dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(200_000, dim, dtype=torch.float64, generator=generator), dim=1)
    similarity = x[:1] @ x[1:].T
    weight = distance_weights(similarity, dim, nearest=0.8, farthest=1.3).exp()[0]
    distance = (2 - 2 * similarity[0]).sqrt()
    bins = torch.bucketize(distance, torch.linspace(0.8, 1.3, 6, dtype=torch.float64))  # 1 to 5 lie between
    masses = torch.stack([weight[bins == b].sum() for b in range(1, 6)])
    assert (masses / masses.mean() - 1).abs().max() < 0.15
    assert weight[distance >= 1.3].sum() == 0
    near = distance < 0.8
    if near.any():
        assert torch.allclose(weight[near], weight[near][:1])  # as if they stood at 0.8


def test_draws_are_successive_and_repeat_with_their_generator() -> None:
    weights = torch.tensor([1.0, 2.0, 0.0, 3.0])
    drawn = draw(weights.log().expand(6000, 4), 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, draw(weights.log().expand(6000, 4), 2, generator=torch.Generator().manual_seed(0)))
    statistic = 0.0
    for a, b in itertools.permutations((0, 1, 3), 2):
        expected = 6000 * float(weights[a] / 6 * weights[b] / (6 - weights[a]))
        count = int(((drawn[:, 0] == a) & (drawn[:, 1] == b)).sum())
        statistic += (count - expected) ** 2 / expected
    assert statistic < 20.5  # 5 degrees of freedom, p = 0.001: so nothing of weight 0 either


@pytest.mark.oracle("interclr", 3)
def test_semi_hard_pool_without_the_own_label() -> None:
    query, bank = torch.randn(6, 5), torch.randn(80, 5)
    label, stored = torch.randint(0, 4, (6,)), torch.randint(0, 4, (80,))
    allowed = label[:, None] != stored
    pool = hardest(query, bank, 20, allowed=allowed)
    chosen = pool.index.gather(1, draw(torch.zeros(6, 20), 7, generator=torch.Generator().manual_seed(0)))
    for row in range(6):
        order = [i for i in cosines(query, bank)[row].argsort(descending=True).tolist() if allowed[row, i]]
        assert pool.index[row].tolist() == order[:20]
        assert set(chosen[row].tolist()) <= set(order[:20])
        assert len(set(chosen[row].tolist())) == 7
        assert (stored[chosen[row]] != label[row]).all()


def test_bad_input_is_named() -> None:
    anchor, candidate, similarity = torch.randn(2, 3), torch.randn(5, 3), torch.randn(2, 5)
    allowed = torch.tensor([[True] * 5, [True, True, False, False, False]])
    with pytest.raises(ValueError, match="num \\+ skip: expected at most the 2 candidates .* received 3"):
        hardest(anchor, candidate, 2, allowed=allowed, skip=1)
    with pytest.raises(ValueError, match="num \\+ skip: expected at most the 5 candidates .* received 6"):
        hardest(anchor, candidate, 6)
    with pytest.raises(ValueError, match="num: expected 1 or more, received 0"):
        hardest(anchor, candidate, 0)
    with pytest.raises(ValueError, match="skip: expected 0 or more, received -1"):
        hardest(anchor, candidate, 1, skip=-1)
    with pytest.raises(ValueError, match="low, high: expected low < high"):
        between(similarity, 0.5, 0.5)
    with pytest.raises(ValueError, match="low, high: expected shares, 0 <= low < high <= 1"):
        quantile_band(similarity, 0.5, 1.5)
    with pytest.raises(ValueError, match="margin: expected a number > 0, received 0"):
        semi_hard(similarity, similarity[:, 0], 0.0)
    with pytest.raises(ValueError, match="dim: expected 2 or more, received 1"):
        distance_weights(similarity, 1)
    with pytest.raises(ValueError, match="nearest, farthest: expected 0 < nearest < farthest <= 2"):
        distance_weights(similarity, 8, nearest=1.5)
    with pytest.raises(ValueError, match="num: expected a number from 1 to 2"):
        draw(allowed.float().log(), 3)
    with pytest.raises(ValueError, match="log_weight: expected no NaN"):
        draw(torch.full((1, 2), math.nan), 1)
