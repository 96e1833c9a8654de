"""The linear laboratory: what spectral contrast keeps of data made of known features, in closed form.

Legend: N samples, D dimensions, P width of the embedding, K features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearfar.analysis._factors import Array, Factors, Sample
from nearfar.checks import expect, expect_positive

RANK = 1e-10
"""eigenvalues of the second moment below this share of the largest count as zero"""
TIE = 1e-7
"""eigenvalues nearer than this are one"""


@dataclass(frozen=True)
class Moments:
    """What the loss knows of its data: `second` = E[x x'] of augmented samples, `positive` = E[x x+'] of pairs."""

    second: Array
    positive: Array

    def __post_init__(self) -> None:
        square = self.second.ndim == 2 and self.second.shape[0] == self.second.shape[1]
        expect(square, "second", "shape [D, D]", self.second.shape)
        expect(
            self.positive.shape == self.second.shape, "positive", f"shape {self.second.shape}", self.positive.shape
        )  # fmt: skip


def population(factors: Factors, beta: float) -> Moments:
    """Moments of the joint loss beta SCL + (1 - beta) UCL over all data there could be.

    Positives of SCL are augmentations of any two samples of a class, those of UCL two augmentations of a sample:
    E[x x+'] = beta E_c[m_c m_c'] + (1 - beta) E_x[a(x) a(x)'] with class means m_c and mean augmentations a(x).

    Args:
        factors: of the data.
        beta: share of the supervised loss in [0, 1].
    """
    expect(0 <= beta <= 1, "beta", "a number in [0, 1]", beta)
    num, left = len(factors.strengths), factors.strengths * factors.kept
    second = np.zeros((factors.dim, factors.dim))
    second[range(num), range(num)] = factors.strengths**2
    own = np.zeros_like(second)
    own[range(num), range(num)] = left**2
    for matrix in (second, own):
        matrix[0, 1] = matrix[1, 0] = factors.correlation * left[0] * left[1]
    second += (factors.noise**2 + factors.augment_noise**2) * np.eye(factors.dim)
    own += factors.noise**2 * np.eye(factors.dim)
    mean = np.zeros(factors.dim)
    mean[:2] = left[0], factors.correlation * left[1]
    return Moments(second, beta * np.outer(mean, mean) + (1 - beta) * own)


def empirical(sample: Sample, beta: float) -> Moments:
    """The same of the samples at hand, over all their augmentations.

    Raises:
        ValueError: beta outside [0, 1], or samples of a single class.
    """
    expect(0 <= beta <= 1, "beta", "a number in [0, 1]", beta)
    label, factors = sample.label, sample.factors
    expect(bool(0 < label.sum() < len(label)), "sample", "both classes", f"class {label[0]} alone")
    mean = sample.mean_augmentation()
    own = mean.T @ mean / len(mean)
    second, num = own.copy(), len(factors.strengths)
    second[range(num), range(num)] += (1 - factors.kept**2) * factors.strengths**2  # turned signs are independent
    second += factors.augment_noise**2 * np.eye(factors.dim)
    by_class = [(np.mean(label == c), mean[label == c].mean(0)) for c in (0, 1)]
    supervised = sum((share * np.outer(m, m) for share, m in by_class), np.zeros_like(own))
    return Moments(second, beta * supervised + (1 - beta) * own)


def spectral_loss(weight: Array, moments: Moments) -> float:
    """L(W) = -2 tr(A G) + tr(S G S G) of f(x) = W x, with G = W'W, A = E[x x+'], S = E[x x'].

    That is -2 E[f(x) . f(x+)] + E[(f(x) . f(x-))^2], the spectral contrastive loss.

    Args:
        weight: W [P, D].
        moments: A and S.
    """
    pairs = weight @ moments.second @ weight.T
    return float(-2 * np.trace(weight @ moments.positive @ weight.T) + np.sum(pairs * pairs))


def spectral_gradient(weight: Array, moments: Moments) -> Array:
    """dL/dW = 2 W (-2 A + 2 S G S), [P, D], with A made symmetric."""
    positive = (moments.positive + moments.positive.T) / 2
    through = weight @ moments.second
    return 4 * ((through @ weight.T) @ through - weight @ positive)


@dataclass(frozen=True)
class Minimiser:
    """The minimiser of least norm: `weight` [P, D], `eigenvalues` of M in falling order, and its `loss`."""

    weight: Array
    eigenvalues: Array
    loss: float


def minimiser(moments: Moments, width: int) -> Minimiser:
    """The W [P, D] of least norm among those of least loss.

    S^(1/2) G S^(1/2) = [M]_P with M = S^(+1/2) A S^(+1/2), the best positive approximation of rank P, and G = 0 off the
    span of S. Where eigenvalues tie at the border of rank P, those directions of the tie are kept whose tr(S^+ P) is
    least: the ones of largest variance. The least loss is -sum_{i <= P} max(lambda_i, 0)^2.

    Args:
        moments: A and S.
        width: P.

    Raises:
        ValueError: width below 1, data that are zero.

    Notes:
        Three eigendecompositions of [D, D] in float64. Eigenvalues of S below 1e-10 of its largest count as zero.
    """
    expect(width >= 1, "width", "1 or more", width)
    variance, axes = np.linalg.eigh(moments.second)
    expect_positive("moments: largest variance", float(variance[-1]))
    inside = variance > RANK * variance[-1]
    root = axes[:, inside] / np.sqrt(variance[inside])  # S^(+1/2) in the span's own coordinates, [D, R]
    positive = root.T @ ((moments.positive + moments.positive.T) / 2) @ root
    value, vector = np.linalg.eigh(positive)
    value, vector = value[::-1], vector[:, ::-1]
    chosen = np.zeros((0, len(value)))
    for first, last in _ties(value):
        room = width - len(chosen)
        if room <= 0 or value[first] <= TIE:
            break
        block = vector[:, first:last]
        if last - first > room:
            cost = block.T @ (block / variance[inside][:, None])  # of S^+ within the tie, least first
            block = block @ np.linalg.eigh(cost)[1][:, :room]
        chosen = np.vstack([chosen, np.sqrt(value[first]) * block.T])
    weight = np.zeros((width, len(moments.second)))
    weight[: len(chosen)] = chosen @ root.T
    return Minimiser(weight, value, -float(np.sum(np.maximum(value[:width], 0.0) ** 2)))


def _ties(value: Array) -> Iterator[tuple[int, int]]:
    """First and past-last number of every run of equal values, which fall."""
    first = 0
    for last in range(1, len(value) + 1):
        if last == len(value) or value[first] - value[last] > TIE:
            yield first, last
            first = last


@dataclass(frozen=True)
class Descent:
    """Where gradient descent came: `weight` [P, D], the `losses` on the way, and the norm of the last gradient."""

    weight: Array
    losses: tuple[float, ...]
    gradient: float


def descend(moments: Moments, width: int, *, num_steps: int = 2000, scale: float = 1e-3, seed: int = 0) -> Descent:
    """Gradient descent from weights drawn from N(0, scale^2), which follows the gradient flow.

    Args:
        moments: A and S.
        width: P.
        num_steps: of length 1/(8 max variance), which the curvature at a minimiser allows.
        scale: of the initial weights; the smaller, the nearer to the minimiser of least norm it ends.
        seed: of the initial weights.
    """
    expect(width >= 1, "width", "1 or more", width)
    expect(num_steps >= 1, "num_steps", "1 or more", num_steps)
    expect_positive("scale", scale)
    weight = scale * np.random.default_rng(seed).standard_normal((width, len(moments.second)))
    rate = 1 / (8 * float(np.linalg.eigvalsh(moments.second)[-1]))
    losses = []
    for step in range(num_steps):
        if step % max(num_steps // 100, 1) == 0:
            losses.append(spectral_loss(weight, moments))
        weight = weight - rate * spectral_gradient(weight, moments)
    losses.append(spectral_loss(weight, moments))
    return Descent(weight, tuple(losses), float(np.linalg.norm(spectral_gradient(weight, moments))))


def feature_weights(weight: Array, factors: Factors, second: Array) -> Array:
    """How much of an embedding each feature is: |W e_k| a_k / |W S^(1/2)|, [K]; 0 where W is zero."""
    total = math.sqrt(max(float(np.trace(weight @ second @ weight.T)), 0.0))
    found = np.linalg.norm(weight[:, : len(factors.strengths)], axis=0) * factors.strengths
    return found / total if total > 0 else np.zeros_like(found)


def suppression(weights: Array, number: int = 0) -> float:
    """1 - w_k / max w: 0 where feature `number` is the strongest of the embedding, 1 where it is gone."""
    top = float(weights.max())
    return 1 - float(weights[number]) / top if top > 0 else 1.0


def subclass_share(z: Array, label: NDArray[np.int64], subclass: NDArray[np.int64]) -> float:
    """Share of the variance between subclasses' means that lies within classes: 0 where they have collapsed.

    sum_cs n_cs |m_cs - m_c|^2 / sum_cs n_cs |m_cs - m|^2

    Args:
        z: embeddings [N, P].
        label: class of every row.
        subclass: of every row; the same number in two classes is two subclasses.

    Raises:
        ValueError: one class, or no class with two subclasses.
    """
    pairs, index = np.unique(np.stack([label, subclass], 1), axis=0, return_inverse=True)
    owner = pairs[:, 0]
    classes, counts = np.unique(owner, return_counts=True)
    expect(len(classes) >= 2, "label", "2 classes or more", len(classes))
    expect(bool((counts > 1).any()), "subclass", "a class with 2 subclasses or more", "one in every class")
    num = np.bincount(index.ravel()).astype(float)
    mean = np.stack([z[index.ravel() == k].mean(0) for k in range(len(pairs))])
    around = {c: num[owner == c] @ mean[owner == c] / num[owner == c].sum() for c in classes}
    within = sum(n * np.sum((m - around[c]) ** 2) for n, m, c in zip(num, mean, owner, strict=True))
    total = float(num @ np.sum((mean - num @ mean / num.sum()) ** 2, axis=1))
    return float(within) / total if total > 0 else 0.0
