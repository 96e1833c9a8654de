"""The iterations of k-means from given centroids, and what they find.

Legend: N rows of this process, D features, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.distributed import reduce_sum
from nearfar.prototypes._rows import Rows, add_rows_, nearest
from nearfar.prototypes.repair import mend

CHUNK = 1 << 14
"""rows of one block of differences"""


@dataclass
class Lloyd:
    """The iterations, with what stays the same in all of them."""

    rows: Rows
    num: int
    spherical: bool
    num_iterations: int
    tolerance: float
    batch_size: int | None
    min_size: int
    far: bool

    def whole(self, centroid: Tensor) -> tuple[Tensor, int]:
        """Lloyd's iterations, from and to centroids; and how many there were."""
        limit = self.tolerance * self.variance()
        for turn in range(self.num_iterations):
            label, _ = nearest(self.rows.x, centroid)
            sums, counts = self.sums(self.rows.x, label)
            if int(counts.min()) < self.min_size:
                label = mend(self.rows.x, label, centroid, self.min_size, self.far)
                sums, counts = self.sums(self.rows.x, label)
            new = self.centre(sums / counts[:, None], centroid)
            moved = float((new - centroid).square().sum())
            centroid = new
            if moved <= limit:
                return centroid, turn + 1
        return centroid, self.num_iterations

    def batches(self, centroid: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """Minibatches: each cluster moves towards its share of the batch by a step of 1 / rows seen so far."""
        assert self.batch_size is not None  # the caller looked
        limit, seen = self.tolerance * self.variance(), torch.zeros(self.num, device=centroid.device)
        steps = -(-self.rows.total // self.batch_size)
        for turn in range(self.num_iterations):
            before = centroid
            order = torch.randperm(self.rows.total, generator=generator) - self.rows.first
            for chosen in order.split(self.batch_size)[:steps]:
                mine = chosen[(chosen >= 0) & (chosen < len(self.rows.x))].to(centroid.device)
                x = self.rows.x[mine]
                sums, counts = self.sums(x, nearest(x, centroid)[0])
                seen += counts
                step = (sums - counts[:, None] * centroid) / seen.clamp(min=1)[:, None]
                centroid = self.centre(centroid + step, centroid)
            if float((centroid - before).square().sum()) <= limit:
                return centroid, turn + 1
        return centroid, self.num_iterations

    def finish(self, centroid: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """(centroids, labels, sizes, inertia), after a last repair."""
        x = self.rows.x
        label, distance = nearest(x, centroid)
        sums, size = self.sums(x, label)
        if int(size.min()) < self.min_size:
            label = mend(x, label, centroid, self.min_size, self.far)
            sums, size = self.sums(x, label)
            centroid = self.centre(sums / size[:, None], centroid)
            parts = zip(x.split(CHUNK), label.split(CHUNK), strict=True)
            distance = torch.cat([(rows - centroid[to]).square().sum(1) for rows, to in parts])
        inertia = distance.double().sum()
        return centroid, label, size.long(), float(reduce_sum(inertia) if self.far else inertia)

    def sums(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Sum [K, D] and number [K] of the rows of every cluster, over all processes."""
        total = add_rows_(x.new_zeros(self.num, x.shape[1]), label, x)
        count = torch.bincount(label, minlength=self.num).to(x.dtype)
        if not self.far:
            return total, count
        both = reduce_sum(torch.cat([total, count[:, None]], dim=1))
        return both[:, :-1], both[:, -1]

    def centre(self, mean_KD: Tensor, before_KD: Tensor) -> Tensor:
        """Centroids from means: their directions where spherical; where rows cancel out the former one stays."""
        if not self.spherical:
            return mean_KD
        length = mean_KD.norm(dim=1, keepdim=True)
        return torch.where(length > 1e-12, mean_KD / length.clamp(min=1e-12), before_KD)

    def variance(self) -> float:
        """Mean variance of a feature over all rows."""
        sums = self.rows.x.new_zeros(2, self.rows.x.shape[1], dtype=torch.float64)
        for rows in self.rows.x.split(CHUNK):
            sums += torch.stack([rows.double().sum(0), rows.double().square().sum(0)])
        mean, square = (reduce_sum(sums) if self.far else sums) / self.rows.total
        return float((square - mean.square()).clamp(min=0).mean())
