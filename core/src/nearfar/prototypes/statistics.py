"""Mean and covariance of every class, kept while rows stream by.

Legend: C classes, N rows of this process, D features, W sources that are merged.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.distributed import gather, reduce_sum
from nearfar.prototypes._rows import add_rows_

CHUNK = 1 << 14
"""rows whose deviations are held at once"""


class ClassStatistics(nn.Module):
    """Streaming mean and covariance a class, exact or with exponential forgetting.

    With n_b rows of a class in a batch, their mean m_b and (biased) covariance S_b, and n rows before:

        a = n_b / (n + n_b)    (exact)    or    a = 1 - momentum, 1 at first sight    (forgetting)
        S <- (1 - a) S + a S_b + a (1 - a) (m - m_b)(m - m_b)^T,    m <- (1 - a) m + a m_b

    Args:
        num_classes: C.
        dim: D.
        covariance: "diagonal" keeps [C, D], "full" [C, D, D], "none" the mean alone.
        momentum: share of the old statistics that stays at every batch with rows of the class, in [0, 1); None: exact.
        ignore: a label that is left out.

    Attributes:
        count: int64 [C], rows seen.
        mean: [C, D], zero for classes never seen.
        covariance: biased (divided by the rows), zero for classes never seen; absent with covariance="none".

    Raises:
        ValueError: no class, no feature, an unknown covariance, momentum outside [0, 1).

    Notes:
        Statistics are buffers, in the state dict, without gradient, in fp32 (call `.double()` for more). Batches are
        read twice, so that a mean far from zero costs no precision. An update costs O(N D), O(N D^2) if full.

    Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The American Statistician 1983.
    """

    count: Tensor
    mean: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        covariance: str = "diagonal",
        momentum: float | None = None,
        ignore: int = 255,
    ) -> None:
        super().__init__()
        expect(num_classes >= 1, "num_classes", "1 or more", num_classes)
        expect(dim >= 1, "dim", "1 or more", dim)
        expect_choice("covariance", covariance, ("diagonal", "full", "none"))
        expect(momentum is None or 0 <= momentum < 1, "momentum", "None or a number in [0, 1)", momentum)
        self.num_classes, self.dim, self.form, self.momentum, self.ignore = (
            num_classes,
            dim,
            covariance,
            momentum,
            ignore,
        )
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("mean", torch.zeros(num_classes, dim))
        shape = {"diagonal": (num_classes, dim), "full": (num_classes, dim, dim), "none": None}[covariance]
        self.register_buffer("covariance", None if shape is None else torch.zeros(shape))

    @property
    def seen(self) -> Tensor:
        """Which classes had a row, bool [C]."""
        return self.count > 0

    @torch.no_grad()
    def update(self, x: Float[Tensor, "N D"], label: Int[Tensor, " N"], *, distributed: bool = False) -> None:
        """Takes in a batch; one without rows of any class changes nothing.

        Args:
            x: rows [N, D]; N may be 0.
            label: classes [N] from 0 to C - 1, or `ignore`.
            distributed: take in the batches of all processes at once, so that the statistics are equal everywhere. A
                collective.

        Raises:
            ValueError: other shapes; labels outside the classes, rows that are not finite (on every process).
        """
        expect(x.ndim == 2 and x.shape[1] == self.dim, "x", f"shape [N, {self.dim}]", tuple(x.shape))
        expect(tuple(label.shape) == (len(x),), "label", f"shape {(len(x),)}", tuple(label.shape))
        with no_autocast(x.device):
            kept = label != self.ignore
            x, label = x.detach()[kept], label[kept].long()
            outside = (label < 0) | (label >= self.num_classes)
            counted = torch.bincount(label[~outside], minlength=self.num_classes)
            mine = torch.cat([counted, torch.stack([outside.sum(), (~x.isfinite()).any(1).sum()])])
            every = reduce_sum(mine) if distributed else mine
            count, (num_outside, num_bad) = every[:-2], every[-2:].tolist()
            expect(num_outside == 0, "label", f"classes from 0 to {self.num_classes - 1}, or {self.ignore}",
                   f"{num_outside} others")  # fmt: skip
            expect(num_bad == 0, "x", "finite rows", f"{num_bad} with nan or inf")
            mean, covariance = self._batch(x, label, count, distributed)
            self._mix(count, mean, covariance)

    def merge(self, other: ClassStatistics) -> None:
        """Takes in the statistics of other rows, as if they had been seen here; weighs by counts, also with momentum.

        Raises:
            ValueError: another number of classes or features, or another covariance.
        """
        ours, theirs = ((s.num_classes, s.dim, s.form) for s in (self, other))
        expect(ours == theirs, "other", f"statistics of (classes, features, covariance) {ours}", theirs)
        with torch.no_grad():
            self._pool(*(torch.stack([a, b.to(a)]) for a, b in zip(self._state(), other._state(), strict=True)))

    @torch.no_grad()
    def merge_processes(self) -> None:
        """Merges what every process has seen on its own, once, after updates without `distributed`. A collective."""
        self._pool(*(gather(part[None], grad=False) for part in self._state()))

    def clear(self) -> None:
        """Forgets everything."""
        for part in self._state():
            part.zero_()

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, dim={self.dim}, covariance={self.form!r}, momentum={self.momentum}"

    def _state(self) -> list[Tensor]:
        return [part for part in (self.count, self.mean, self.get_buffer("covariance") if self._tracks else None)
                if part is not None]  # fmt: skip

    @property
    def _tracks(self) -> bool:
        return self.form != "none"

    def _batch(self, x: Tensor, label: Tensor, count: Tensor, far: bool) -> tuple[Tensor, Tensor | None]:
        """Mean and biased covariance of the batch, 0 for classes without a row."""
        number = count.clamp(min=1).to(self.mean)[:, None]
        mean = torch.zeros_like(self.mean)
        for rows, to in zip(x.split(CHUNK), label.split(CHUNK), strict=True):
            add_rows_(mean, to, rows.to(mean))
        mean = (reduce_sum(mean) if far else mean) / number
        rest = torch.zeros_like(mean)  # what rounding left of the mean
        square = torch.zeros_like(self.get_buffer("covariance")) if self._tracks else None
        for rows, to in zip(x.split(CHUNK), label.split(CHUNK), strict=True):
            off = rows.to(mean) - mean[to]
            add_rows_(rest, to, off)
            if self.form == "diagonal":
                add_rows_(square, to, off.square())  # type: ignore[arg-type]
            elif square is not None:
                for c in to.unique().tolist():
                    part = off[to == c]
                    square[c] += part.T @ part
        rest = (reduce_sum(rest) if far else rest) / number
        if square is not None:
            square = (reduce_sum(square) if far else square) / (number if square.ndim == 2 else number[..., None])
            square = (square - self._outer(rest)).clamp(min=0) if square.ndim == 2 else square - self._outer(rest)
        return mean + rest, square

    def _outer(self, x: Tensor) -> Tensor:
        """x x^T of every row, or its diagonal."""
        return x.square() if self.form == "diagonal" else x[..., :, None] * x[..., None, :]

    def _mix(self, count: Tensor, mean: Tensor, covariance: Tensor | None) -> None:
        number = count.to(self.mean)
        if self.momentum is None:
            share = number / (self.count + count).clamp(min=1)
        else:
            share = torch.where(self.seen, 1 - self.momentum, 1.0).to(number) * (count > 0)
        share = share[:, None]
        apart = mean - self.mean
        if covariance is not None:
            old, wide = self.get_buffer("covariance"), share if covariance.ndim == 2 else share[..., None]
            old.copy_((1 - wide) * old + wide * covariance + wide * (1 - wide) * self._outer(apart))
        self.mean.add_(share * apart)
        self.count.add_(count)

    def _pool(self, count: Tensor, mean: Tensor, covariance: Tensor | None = None) -> None:
        """The statistics of W sources [W, C, ...] together."""
        total = count.sum(0)
        share = (count / total.clamp(min=1)).to(mean)[..., None]
        pooled = (share * mean).sum(0)
        if covariance is not None:
            wide = share if covariance.ndim == 3 else share[..., None]
            spread = (wide * (covariance + self._outer(mean - pooled))).sum(0)
            self.get_buffer("covariance").copy_(spread)
        self.mean.copy_(pooled)
        self.count.copy_(total)
