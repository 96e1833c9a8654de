"""One prototype a class that follows the mean of its rows.

Legend: C classes, N rows of this process, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.distributed import reduce_sum
from nearfar.prototypes._rows import add_rows_


class Prototypes(nn.Module):
    """Class prototypes as exponential moving averages, with a flag for those that exist.

        p_c <- mean_c at first sight, else m^t p_c + (1 - m^t) mean_c

    with mean_c over the rows of class c in a batch, t = 1 a batch or, for step="sample", the number of those rows.

        prototypes = Prototypes(num_classes, 128, momentum=0.999, step="sample")
        loss = cross_entropy(prototypes.similarity(z) / temperature, label)
        prototypes.update(z, label, distributed=True)    # after the loss that read them

    Args:
        num_classes: C.
        dim: D.
        momentum: m in [0, 1], or a function of the number of updates so far that gives it.
        normalize: scale prototypes to unit length after every update.
        step: what one step of the average takes in, "batch" or "sample". For "sample" the rows of a batch count as
            taken one after another, up to their order, which then does not matter.
        ignore: a label that is left out.

    Attributes:
        vector: [C, D], zero for classes never seen.
        seen: bool [C].
        num_updates: int64 [].

    Raises:
        ValueError: no class, no feature, an unknown step, momentum outside [0, 1].

    Notes:
        Buffers, in the state dict, without gradient. `update` replaces tensors instead of writing into them, so a loss
        that read them may still be backpropagated after it.
    """

    vector: Tensor
    seen: Tensor
    num_updates: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        momentum: float | Callable[[int], float] = 0.99,
        normalize: bool = True,
        step: str = "batch",
        ignore: int = 255,
    ) -> None:
        super().__init__()
        expect(num_classes >= 1, "num_classes", "1 or more", num_classes)
        expect(dim >= 1, "dim", "1 or more", dim)
        expect_choice("step", step, ("batch", "sample"))
        if not callable(momentum):
            _expect_momentum(momentum)
        self.num_classes, self.dim, self.momentum = num_classes, dim, momentum
        self.normalize, self.step, self.ignore = normalize, step, ignore
        self.register_buffer("vector", torch.zeros(num_classes, dim))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(
        self,
        x: Float[Tensor, "N D"],
        label: Int[Tensor, " N"],
        *,
        momentum: float | None = None,
        distributed: bool = False,
    ) -> None:
        """One step towards the class means of a batch; classes without a row stay.

        Args:
            x: rows [N, D], averaged as they are; N may be 0.
            label: classes [N] from 0 to C - 1, or `ignore`.
            momentum: instead of the Module's own.
            distributed: means over the rows of all processes, so that prototypes are equal everywhere. A collective.

        Raises:
            ValueError: other shapes; momentum outside [0, 1]; labels outside the classes, rows that are not finite (on
                every process).
        """
        expect(x.ndim == 2 and x.shape[1] == self.dim, "x", f"shape [N, {self.dim}]", tuple(x.shape))
        expect(tuple(label.shape) == (len(x),), "label", f"shape {(len(x),)}", tuple(label.shape))
        if momentum is None:
            momentum = self.momentum(int(self.num_updates)) if callable(self.momentum) else self.momentum
        _expect_momentum(momentum)
        with no_autocast(x.device):
            kept = label != self.ignore
            x, label = x.detach()[kept].to(self.vector), label[kept].long()
            outside = (label < 0) | (label >= self.num_classes)
            bad = torch.stack([outside.sum(), (~x.isfinite()).any(1).sum()]).double()
            x, label = x[~outside], label[~outside]
            total = add_rows_(torch.zeros_like(self.vector), label, x)
            count = torch.bincount(label, minlength=self.num_classes).to(x)
            if distributed:
                bad, both = reduce_sum(bad), reduce_sum(torch.cat([total, count[:, None]], dim=1))
                total, count = both[:, :-1], both[:, -1]
            num_outside, num_bad = bad.long().tolist()
            expect(num_outside == 0, "label", f"classes from 0 to {self.num_classes - 1}, or {self.ignore}",
                   f"{num_outside} others")  # fmt: skip
            expect(num_bad == 0, "x", "finite rows", f"{num_bad} with nan or inf")
            present = count > 0
            mean = total / count.clamp(min=1)[:, None]
            kept_share = momentum**count if self.step == "sample" else torch.full_like(count, momentum)
            mixed = mean + (kept_share * self.seen)[:, None] * (self.vector - mean)
            new = F.normalize(mixed, dim=1) if self.normalize else mixed
            self.vector = torch.where(present[:, None], new, self.vector)
            self.seen = self.seen | present
            self.num_updates = self.num_updates + 1

    def similarity(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Cosine of every row to every prototype, -inf for classes never seen; gradients flow to `x` alone."""
        expect(x.ndim == 2 and x.shape[1] == self.dim, "x", f"shape [N, {self.dim}]", tuple(x.shape))
        with no_autocast(x.device):
            cosine = F.normalize(x.to(self.vector.dtype), dim=1) @ F.normalize(self.vector, dim=1).T
            return cosine.masked_fill(~self.seen, -torch.inf)

    def clear(self) -> None:
        """Forgets every prototype."""
        for name in ("vector", "seen", "num_updates"):
            setattr(self, name, torch.zeros_like(getattr(self, name)))

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, dim={self.dim}, momentum={self.momentum}, step={self.step!r}"


def _expect_momentum(momentum: float) -> None:
    expect(0 <= momentum <= 1, "momentum", "a number in [0, 1]", momentum)
