"""Two worlds in which sufficiency is known: Gaussian views with a linear encoder, and documents in halves.

Legend: N samples, D coordinates, P width of the encoder, V words, H words of a half, T topics.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from nearfar.analysis.sufficient_statistics import (
    augmentation_error,
    gaussian_sufficiency,
    prediction_gap,
    sufficiency,
)
from nearfar.checks import expect_choice
from nearfar.objectives import mutual_information

DIM, WIDTH, BATCH, STEPS, EARLY = 20, 5, 256, 800, 40
VARIANCE = torch.logspace(math.log10(4.0), math.log10(0.05), DIM, dtype=torch.float64)
# arm -> (noise of a view, share of the steps)
GAUSSIAN = {
    "untrained": (0.7, 0.0),
    "early": (0.7, EARLY / STEPS),
    "trained": (0.7, 1.0),
    "weak_augmentation": (0.2, 1.0),
    "strong_augmentation": (2.0, 1.0),
}
TOPICS = {"topics_1": 1, "topics_2": 2, "topics_4": 4, "topics_8": 8}
NUM_TRUE, NUM_WORDS, HALF = 4, 6, 4


def demonstrate_arm(arm: str, seed: int, quick: bool) -> dict[str, float]:
    """One encoder in one of the worlds.

    Args:
        arm: of GAUSSIAN or TOPICS.
        seed: of samples and encoder.
        quick: fewer steps, in the same proportions.

    Returns:
        `sufficiency` in nats, 0 for a sufficient statistic; the `information` of the views and the `kept` share of it;
        `error`, squared, of predicting a target from the code, relative to its variance; `augmentation`, the part of
        that which views lose whatever the encoder.
    """
    expect_choice("arm", arm, [*GAUSSIAN, *TOPICS])
    if arm in TOPICS:
        return _topics(TOPICS[arm], seed, quick)
    noise, share = GAUSSIAN[arm]
    return _gaussian(noise, round(share * (STEPS // 8 if quick else STEPS)), seed)


def _gaussian(noise: float, steps: int, seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)

    def draw(num: int) -> tuple[Tensor, Tensor, Tensor]:
        """(x, z1, z2)."""
        x = torch.randn(num, DIM, generator=generator, dtype=torch.float64) * VARIANCE.sqrt()
        noises = noise * torch.randn(2, num, DIM, generator=generator, dtype=torch.float64)
        return x, x + noises[0], x + noises[1]

    w1, w2 = (
        (torch.randn(WIDTH, DIM, generator=generator, dtype=torch.float64) / math.sqrt(DIM)).requires_grad_()
        for _ in range(2)
    )
    optimiser = torch.optim.Adam([w1, w2], lr=0.02)
    for _ in range(steps):
        _, z1, z2 = draw(BATCH)
        a, b = z1 @ w1.t(), z2 @ w2.t()
        # Minus half a squared distance, as a product: the family that holds the true log ratio of Gaussians.
        a = torch.cat([a, torch.ones_like(a[:, :1])], 1)
        b = torch.cat([b, -b.square().sum(1, keepdim=True) / 2], 1)
        optimiser.zero_grad()
        mutual_information(a, b, bound="info_nce").backward()
        optimiser.step()
    w1 = w1.detach()
    found = gaussian_sufficiency(VARIANCE, noise, w1)
    target = torch.ones(DIM, dtype=torch.float64)
    scale = float((target.square() * VARIANCE).sum())
    x, z, _ = draw(4000)
    return {
        "sufficiency": found.gap,
        "information": found.information,
        "kept": found.kept / found.information,
        "error": _ridge_error(z @ w1.t(), x @ target) / scale,
        "augmentation": augmentation_error(VARIANCE, noise, target) / scale,
    }


def _ridge_error(code: Tensor, y: Tensor) -> float:
    """Mean squared error of ridge regression, fitted on one half and tested on the other."""
    half = len(y) // 2
    a, b = code[:half], code[half:]
    weight = torch.linalg.solve(a.t() @ a + torch.eye(a.shape[1], dtype=a.dtype), a.t() @ y[:half])
    return float((b @ weight - y[half:]).square().mean())


@cache
def _bags() -> tuple[Tensor, Tensor]:
    """Every bag of H words as counts [n, V], and the logarithm of its number of orders."""
    bags = list(combinations_with_replacement(range(NUM_WORDS), HALF))
    count = torch.stack([torch.tensor(bag).bincount(minlength=NUM_WORDS) for bag in bags]).double()
    return count, math.lgamma(HALF + 1) - torch.lgamma(count + 1).sum(1)


def _topics(num_topics: int, seed: int, quick: bool) -> dict[str, float]:
    """Documents of one topic each, cut in halves; the code is the likeliest of the topics learnt from documents."""
    generator = torch.Generator().manual_seed(seed)
    word = torch.rand(NUM_TRUE, NUM_WORDS, generator=generator, dtype=torch.float64).square() + 0.02
    word = word / word.sum(1, keepdim=True)
    count, orders = _bags()
    half = torch.exp(count @ word.log().t() + orders[:, None])  # p(bag | topic), [n, T]
    table = half @ half.t() / NUM_TRUE
    topic = torch.randint(NUM_TRUE, (200 if quick else 2000,), generator=generator)
    drawn = torch.multinomial(half.t()[topic], 2, replacement=True, generator=generator)
    learnt, log_prior = _fit(count[drawn].sum(1), num_topics, generator)
    code = (count @ learnt.t() + log_prior).argmax(1)
    found = sufficiency(table, code)
    # What the other half says of the first topic, which the encoder has to predict.
    target = half[:, 0] / half.sum(1)
    first = table.sum(1)
    mean = float(first @ target)
    best = table @ target / first
    whole = float(first @ (target - mean).square())
    left = float(first @ (target.square() - best.square()))  # of the target, whatever the encoder
    return {
        "sufficiency": found.gap,
        "information": found.information,
        "kept": found.kept / found.information,
        "error": (left + prediction_gap(table, code, target)) / whole,
        "augmentation": left / whole,
    }


def _fit(documents: Tensor, num_topics: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Log probabilities of words [T, V] and of topics [T], by expectation maximisation of a mixture of multinomials."""
    share = torch.rand(len(documents), num_topics, generator=generator, dtype=torch.float64) + 0.1
    share = share / share.sum(1, keepdim=True)
    word = prior = share  # replaced below
    for _ in range(200):
        word = share.t() @ documents + 0.1
        word = (word / word.sum(1, keepdim=True)).log()
        prior = (share.sum(0) + 0.1).log() - math.log(len(documents) + 0.1 * num_topics)
        share = torch.softmax(documents @ word.t() + prior, 1)
    return word, prior
