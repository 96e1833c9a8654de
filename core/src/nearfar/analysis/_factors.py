"""Data made of known features: signs along directions, noise, and augmentations that turn signs.

A feature is a direction of the data, and here direction k is coordinate k, since the losses do not see a rotation.

Legend: N samples, D dimensions, K features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nearfar.checks import expect

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Data x = y a_c e_1 + s a_s e_2 + sum_k r_k a_k e_(2+k) + noise, with signs y (class), s (subclass) and r_k.

    Args:
        class_strength, subclass_strength: a_c, a_s >= 0.
        irrelevant: a_k of every feature that tells nothing of class and subclass.
        flips: probability, in [0, 1], that an augmentation turns the sign of each feature, class first; empty: none.
        dim: D, at least the number of features.
        noise: standard deviation of the noise in every dimension, drawn once a sample.
        augment_noise: that of noise which every augmentation draws anew.
        correlation: of y and s, in (-1, 1); 0: the subclass is balanced in every class.
    """

    class_strength: float = 1.0
    subclass_strength: float = 0.7
    irrelevant: tuple[float, ...] = (2.0,) * 5
    flips: tuple[float, ...] = ()
    dim: int = 200
    noise: float = 0.3 / math.sqrt(200)
    augment_noise: float = 0.0
    correlation: float = 0.0
    strengths: Array = field(init=False, repr=False, compare=False)
    kept: Array = field(init=False, repr=False, compare=False)
    """1 - 2 flip: what is left of each feature in the mean over augmentations"""

    def __post_init__(self) -> None:
        strengths = np.array([self.class_strength, self.subclass_strength, *self.irrelevant], dtype=float)
        expect(bool((strengths >= 0).all()), "strengths", "numbers of 0 or more", strengths.tolist())
        expect(self.dim >= len(strengths), "dim", f"{len(strengths)} or more, one a feature", self.dim)
        expect(
            len(self.flips) in (0, len(strengths)), "flips", f"none, or {len(strengths)}, one a feature", self.flips
        )  # fmt: skip
        expect(all(0 <= q <= 1 for q in self.flips), "flips", "probabilities", self.flips)
        for name in ("noise", "augment_noise"):
            expect(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        expect(abs(self.correlation) < 1, "correlation", "a number in (-1, 1)", self.correlation)
        object.__setattr__(self, "strengths", strengths)
        object.__setattr__(self, "kept", 1 - 2 * np.array(self.flips or (0.0,) * len(strengths)))

    def draw(self, num: int, seed: int = 0) -> Sample:
        """`num` samples before any augmentation."""
        expect(num >= 1, "num", "1 or more", num)
        rng = np.random.default_rng(seed)
        sign = rng.choice((-1.0, 1.0), (num, len(self.strengths)))
        same = rng.random(num) < (1 + self.correlation) / 2
        sign[:, 1] = np.where(same, sign[:, 0], -sign[:, 0])
        return Sample(self, sign, self.noise * rng.standard_normal((num, self.dim)))


@dataclass(frozen=True)
class Sample:
    """Samples of `Factors`: `sign` [N, K] of every feature and the `noise` [N, D] of each."""

    factors: Factors
    sign: Array
    noise: Array

    @property
    def x(self) -> Array:
        """The samples themselves, [N, D]."""
        return self._of(self.sign)

    @property
    def label(self) -> NDArray[np.int64]:
        """Class 0 or 1, [N]."""
        return (self.sign[:, 0] > 0).astype(np.int64)

    @property
    def subclass(self) -> NDArray[np.int64]:
        """The second feature as 0 or 1, [N]."""
        return (self.sign[:, 1] > 0).astype(np.int64)

    def augment(self, seed: int) -> Array:
        """One random augmentation of every sample, [N, D]."""
        rng = np.random.default_rng(seed)
        factors = self.factors
        turned = np.where(rng.random(self.sign.shape) < (1 - factors.kept) / 2, -self.sign, self.sign)
        return self._of(turned) + factors.augment_noise * rng.standard_normal(self.noise.shape)

    def mean_augmentation(self) -> Array:
        """The mean of every sample's augmentations, [N, D]."""
        return self._of(self.sign * self.factors.kept)

    def _of(self, sign: Array) -> Array:
        x = self.noise.copy()
        x[:, : sign.shape[1]] += sign * self.factors.strengths
        return x
