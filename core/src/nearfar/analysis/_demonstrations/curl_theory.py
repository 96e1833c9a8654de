"""Digits with pairs of one class: the number of negatives and the size of blocks, and whether the bound holds.

Legend: N digits, D pixels, B anchors, K negatives, P points of a block.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from nearfar.analysis.curl_theory import contrastive_loss, supervised_loss
from nearfar.checks import expect_choice
from nearfar.objectives import block_contrast

# arm -> (negatives, points of a block); untrained is measured as the first
ARMS = {
    "negatives_1": (1, 1),
    "negatives_4": (4, 1),
    "negatives_10": (10, 1),
    "negatives_50": (50, 1),
    "block_5": (1, 5),
    "untrained": (1, 1),
}
STEPS, QUICK_STEPS = 300, 30
BATCH = 128
HELD_OUT = 450


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from nearfar.data.digits import digits

    source = digits(channels=1)
    pixels = torch.stack([torch.as_tensor(source[i]["image"]) for i in range(len(source))])
    return pixels.flatten(1).double() / 255, torch.as_tensor(source.labels).long()


def demonstrate_arm(arm: str, seed: int, quick: bool) -> dict[str, float]:
    """A small network trained on pairs of one class, with the arm's negatives and block.

    Args:
        arm: of ARMS.
        seed: of split, network and pairs.
        quick: a tenth of the steps.

    Returns:
        In bits, on the training digits as the whole world: `loss` of contrast as trained, its `bound` on what it
        bounds, `sup_mu` of the mean classifier on those tasks, and their difference `slack`, which theory holds at 0
        or above; and the two-way `accuracy` on held-out digits of the classifier by training means.
    """
    expect_choice("arm", arm, ARMS)
    x, y = _digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[HELD_OUT:], order[:HELD_OUT]
    num_negatives, block = ARMS[arm]
    network = _network(seed)
    if arm != "untrained":
        _train(network, x[train], y[train], num_negatives, block, QUICK_STEPS if quick else STEPS, seed)
    with torch.no_grad():
        f_train, f_test = network(x[train]), network(x[test])
    found = contrastive_loss(
        f_train,
        y[train],
        num_negatives=num_negatives,
        block=block,
        draws=5_000 if quick else 50_000,
        limit=1_000_000,
        seed=seed,
    )
    return {
        "loss": found.loss,
        "bound": found.bound,
        "sup_mu": found.mean_classifier,
        "slack": found.bound - found.mean_classifier,
        "sup_mu_2way": supervised_loss(f_train, y[train], num_fitted=1).mean_classifier,
        "accuracy": _accuracy(f_train, y[train], f_test, y[test]),
    }


def _network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).double()


def _train(network: nn.Module, x: Tensor, y: Tensor, num_negatives: int, block: int, steps: int, seed: int) -> None:
    """Every step embeds all digits once and draws classes and points as the theory does."""
    generator = torch.Generator().manual_seed(seed)
    order = y.argsort(stable=True)
    x, count = x[order], y.bincount()
    start = count.cumsum(0) - count
    prior = count.double() / len(y)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)

    def points(c: Tensor) -> Tensor:
        return start[c] + (torch.rand(c.shape, generator=generator, dtype=torch.float64) * count[c]).long()

    for _ in range(steps):
        c = torch.multinomial(prior, BATCH * (1 + num_negatives), replacement=True, generator=generator)
        own, others = c[:BATCH], c[BATCH:].view(BATCH, num_negatives)
        f = network(x)
        loss = block_contrast(
            f[points(own)],
            f[points(own[:, None].expand(BATCH, block))],
            f[points(others[..., None].expand(BATCH, num_negatives, block))],
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _accuracy(train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor) -> float:
    """Share of (test digit, other class) pairs in which the digit's own training mean scores higher."""
    means = torch.stack([train[train_y == c].mean(0) for c in range(10)])
    score = test @ means.t()
    own = score.gather(1, test_y[:, None])
    right = (own > score).double() + (own == score).double() / 2
    return float((right.sum(1) - 0.5).mean() / 9)  # a class against itself is the half taken out
