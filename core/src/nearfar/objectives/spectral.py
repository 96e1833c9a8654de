"""Spectral contrast: attraction by products, repulsion by their squares, in matrices of D x D alone.

Legend: B batch, N gathered batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nearfar import _similarity
from nearfar._similarity import accumulation
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import Stats
from nearfar.objectives._shared import reduced


def spectral(
    a: Tensor,
    b: Tensor,
    *,
    scale: float = 1.0,
    normalize: bool = False,
    own_pairs: bool = False,
    gathered: Tensor | None = None,
    offset: int = 0,
    reduction: str = "mean",
    with_stats: bool = False,
) -> Any:
    """Low-rank factorisation of the similarity of views: positives attract, all others repel by squared products.

    L = 1/B sum_i [ -2 a_i . b_i + mean_{j != i} (a_i . b_j)^2 ]

    Args:
        a, b: [B, D] each; row i of one belongs to row i of the other.
        scale: multiplies every product; with `normalize` the squared radius of the sphere.
        normalize: scale embeddings to unit length first.
        own_pairs: also square the pairs i = j, the expectation over independent draws from what is enumerated.
        gathered: b [N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's rows begin among the N gathered.
        reduction: "mean", "sum" or "none" ([B]).
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats). Its least value is -1/2 of the sum of squared singular values it can reach, not 0.

    Raises:
        ValueError: unequal shapes, one row alone unless own_pairs, a scale that is not positive.

    Notes:
        sum_j (a_i . b_j)^2 = a_i' (B'B) a_i: 4 (B + N) D^2 FLOP forward, memory O((B + N) D + D^2), in float32. No
        normalising bounds it: start with small embeddings.

    Relations:
        Up to a constant twice minus the chi-square bound of `mutual_information`, and a Barlow-like second moment.

    Example:
        >>> import torch
        >>> from nearfar.objectives import spectral
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> float(spectral(a, a + 0.5))  # -2 * 1.5 + 0.5^2
        -2.75

    Source: HaoChen, Wei, Gaidon, Ma, "Provable Guarantees for Self-Supervised Deep Learning with Spectral Contrastive
    Loss", NeurIPS 2021.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect_positive("scale", scale)
    rows = own_rows(a, b, gathered, offset)
    c = b if gathered is None else gathered
    num = len(c) - (not own_pairs)
    expect(num > 0, "a", "2 or more rows (or own_pairs)", len(a))
    with no_autocast(a.device):
        x, y = vectors(a, c, normalize)
        pair_B = scale * (x * y[rows]).sum(1)
        square_B = scale**2 * squares(x, y)
        loss_B = (square_B - (0 if own_pairs else pair_B.square())) / num - 2 * pair_B
    loss = reduced(loss_B, reduction)
    return (loss, Stats(len(a), 0, None)) if with_stats else loss


def squares(x: Tensor, y: Tensor) -> Tensor:
    """sum_j (x_i . y_j)^2 of every row, [B], from the second moment of y."""
    return ((x @ (y.t() @ y)) * x).sum(1)


def vectors(a: Tensor, c: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Both of the accumulation type, and of unit length where asked for."""
    kind = accumulation(a, c)
    x, y = a.to(kind), c.to(kind)
    return (_similarity.normalize(x), _similarity.normalize(y)) if normalize else (x, y)


def own_rows(a: Tensor, b: Tensor, gathered: Tensor | None, offset: int) -> Tensor:
    """The row of the candidates that belongs to each row of a."""
    expect(a.ndim == 2 and a.shape == b.shape and len(a) > 0, "b", f"the shape of a, {tuple(a.shape)}, B >= 1",
           tuple(b.shape))  # fmt: skip
    expect(gathered is not None or offset == 0, "offset", "0 without gathered", offset)
    if gathered is not None:
        expect(gathered.ndim == 2 and gathered.shape[1] == a.shape[1], "gathered", f"shape [N, {a.shape[1]}]",
               tuple(gathered.shape))  # fmt: skip
        last = len(gathered) - len(a)
        expect(0 <= offset <= last, "offset", f"0 to {last}, so that local rows are among the gathered", offset)
    return torch.arange(len(a), device=a.device) + offset


class Spectral(nn.Module):
    """`spectral` as a Module; see there.

    Args:
        scale: multiplies every product.
        normalize: scale embeddings to unit length first.
        own_pairs: also square the pairs i = j.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(self, scale: float = 1.0, *, normalize: bool = False, own_pairs: bool = False) -> None:
        super().__init__()
        expect_positive("scale", scale)
        self.options: dict[str, Any] = {"scale": scale, "normalize": normalize, "own_pairs": own_pairs}

    def forward(self, a: Tensor, b: Tensor, **options: Any) -> Any:
        """The loss; further options as `spectral`."""
        return spectral(a, b, **self.options, **options)
