"""Randomness by counter: a draw is a function of (seed, epoch, view, index, name), not of the batch it stands in.

The finaliser of splitmix64 mixes the five into 64 bits in wrapping int64 arithmetic, so uniform draws are the same bits
on every device. Shapes: B samples, K draws of each.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.checks import expect

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: consecutive counters land far apart
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(x: int) -> int:
    for shift, factor in _MIX:
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return x


def _mix_(x: Tensor) -> Tensor:
    """splitmix64's finaliser, in place; `>>` on int64 copies the sign, which the mask takes away again."""
    for shift, factor in _MIX:
        high = x >> shift
        high &= (1 << (64 - shift)) - 1
        x ^= high
        if factor != 1:
            x *= _signed(factor)
    return x


@lru_cache(maxsize=4096)
def _key(seed: int, epoch: int, view: int, name: str) -> int:
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    for part in (seed, epoch, view):
        key = _mix_int((key + _STEP * ((part & _MASK) + 1)) & _MASK)
    return key


@dataclass(frozen=True)
class Rng:
    """Draws that depend on these three numbers, a sample's index and a name alone.

    Args:
        seed: of the run.
        epoch: pass over the data.
        view: which view of the sample.

    Notes: uniform draws are the same bits on every device; normal draws agree up to the rounding of log, cos and sin.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    >>> rng, index = Rng(seed=1), torch.tensor([7, 8])
    >>> bool((rng.uniform(index, "flip")[1:] == rng.uniform(index[1:], "flip")).all())
    True
    """

    seed: int = 0
    epoch: int = 0
    view: int = 0

    def at(self, *, epoch: int | None = None, view: int | None = None) -> Rng:
        """The same seed at another epoch, another view, or both."""
        return replace(self, epoch=self.epoch if epoch is None else epoch, view=self.view if view is None else view)

    def uniform(self, index: Int[Tensor, " B"], name: str, count: int = 1) -> Float[Tensor, "B K"]:
        """Draws from [0, 1) in steps of 2^-24.

        Args:
            index: stable numbers of the samples [B].
            name: what the draw is for; other names give independent draws.
            count: draws a sample, K; the first ones do not depend on how many there are.

        Returns:
            [B, K] float32 on the device of `index`.
        """
        return _unit(self._bits(index, name, count), 40)

    def normal(self, index: Int[Tensor, " B"], name: str, count: int = 1) -> Float[Tensor, "B K"]:
        """Standard normal draws, two from each 64 bits by Box and Muller; arguments as for `uniform`."""
        bits = self._bits(index, name, (count + 1) // 2)
        radius = _unit(bits, 40).add_(2.0**-25).log_().mul_(-2).sqrt_()
        angle = _unit(bits, 16).mul_(2 * math.pi)
        pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
        return pairs.flatten(1)[:, :count]

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A torch generator seeded by (seed, epoch, view, name), for draws that belong to no sample."""
        return torch.Generator(device).manual_seed(_key(self.seed, self.epoch, self.view, name) >> 1)

    def _bits(self, index: Tensor, name: str, count: int) -> Tensor:
        whole = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool)
        expect(whole, "index", "integers", index.dtype, TypeError)
        expect(index.ndim == 1, "index", "shape [B]", tuple(index.shape))
        expect(count >= 1, "count", "1 or more", count)
        step = _signed(_STEP)
        row = _mix_(index.to(torch.int64) * step + _signed(_key(self.seed, self.epoch, self.view, name)))
        column = torch.arange(1, count + 1, dtype=torch.int64, device=index.device) * step
        return _mix_(row[:, None] + column)


def _unit(bits: Tensor, shift: int) -> Tensor:
    """The 24 bits from `shift` on as a float32 in [0, 1)."""
    return ((bits >> shift) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)
