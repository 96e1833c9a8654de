"""Decoupled uniformity: the centroids of samples' views spread out, near ones together where prior knowledge says so.

Legend: B batch, N gathered batch, V views, D embedding, Q prior.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._similarity import accumulation, normalize
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import Stats
from nearfar.objectives._shared import Place, gather_views, stack
from nearfar.objectives.align_uniform import log_mean_gaussian


@eager
def decoupled_uniformity(
    *views: Any,
    prior: Tensor | None = None,
    kernel: str = "rbf",
    sigma: float | str | None = None,
    ridge: float | None = 0.01,
    t: float = 2.0,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Uniformity of the mean of each sample's views; it aligns them too, since only views that agree have a long mean.

    With m_i = mean_v z_iv / |z_iv| and, where there is a prior, K its kernel matrix and m <- (K + r I)^-1 K m:

    L = log( 2/(B (B - 1)) sum_{i < j} exp(-t |m_i - m_j|^2) )

    Args:
        *views: z0 [B, D], z1 [B, D], ...; or one tensor [V, B, D].
        prior: what is known of the samples [N, Q] or [N], of all N with `gathered`; samples alike in it share their
            centroids. Gets no gradient.
        kernel: "rbf", exp(-|a - b|^2 / (2 sigma^2)), or "cosine".
        sigma: width of the rbf in the prior's units, or "median" for the median distance; must be given with "rbf".
            (100 for features of a generative model, 20 for attributes of birds and 10 for those of radiographs were
            used.)
        ridge: r > 0, lambda in the paper; None: 1/sqrt(N).
        t: sharpness of the Gaussian; the authors' text leaves it out (t = 1), their code has 2.
        gathered: views [V, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        tile: side of a tile; None chooses.
        with_stats: also return Stats, whose number is that of the local samples.

    Returns:
        The loss, or (loss, Stats): 0 collapsed, at least -2 t N/(N - 1).

    Raises:
        ValueError: one sample alone, a prior of other rows or not finite, a missing sigma, a ridge or t not above zero.

    Notes:
        Centroids keep their length. With one view nothing aligns: it is `uniformity`, and a warning says so. The mean
        stands inside the logarithm, so over processes every one computes the whole from what was gathered (the authors'
        code takes the loss of each device). Without a prior memory is O(N D + tile) and the cost 8 N^2 D FLOP. A prior
        is smoothed by a Cholesky factor in float64: N x N for "rbf", or Q x Q where the cosine kernel has fewer
        dimensions than samples. First derivatives only.

    Relations:
        `uniformity` with one view; `centroid_alignment` tells how well the views agree.

    Example:
        >>> import torch
        >>> from nearfar.objectives import decoupled_uniformity
        >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> round(float(decoupled_uniformity(z, z)), 4)  # two points 2 apart: -2 * 4
        -8.0

    Source: Dufumier, Barbano, Louiset, Duchesnay, Gori, "Integrating Prior Knowledge in Contrastive Learning with
    Kernel", ICML 2023.
    """
    expect_positive("t", t)
    z, num_views = stack("views", views[0] if len(views) == 1 else views, least=1)
    expect(z.is_floating_point(), "views", "floating point", z.dtype, TypeError)
    if num_views == 1:
        warnings.warn("decoupled_uniformity: one view has nothing to align with", stacklevel=2)
    every = z if gathered is None else gather_views(gathered, num_views)
    num_all = len(every) // num_views
    Place(num_views, len(z) // num_views, num_all, offset, z.device)  # checks that local rows are among the gathered
    expect(num_all > 1, "views", "2 or more samples", num_all)
    with no_autocast(z.device):
        centroid = _centroids(every, num_views)
        if prior is not None:
            expect(len(prior) == num_all, "prior", f"{num_all} rows, one a sample", len(prior))
            centroid = smooth(centroid, prior, kernel=kernel, sigma=sigma, ridge=ridge)
        loss = log_mean_gaussian(centroid, t, tile)
    return (loss, Stats(len(z) // num_views, 0, None)) if with_stats else loss


def smooth(
    centroid: Tensor, prior: Tensor, *, kernel: str = "rbf", sigma: float | str | None = None,
    ridge: float | None = 0.01,
) -> Tensor:  # fmt: skip
    """(K + r I)^-1 K m: centroids m mixed over samples whose prior is alike, an estimate of their conditional mean.

    Args:
        centroid: m [N, D].
        prior: [N, Q] or [N].
        kernel: "rbf" or "cosine".
        sigma: width of the rbf, or "median".
        ridge: r > 0; None: 1/sqrt(N).

    Returns:
        [N, D]; gradient flows to the centroids alone.

    Raises:
        ValueError: a prior that is not finite or of other rows, a missing sigma, a ridge not above zero.
    """
    expect_choice("kernel", kernel, ("rbf", "cosine"))
    num = len(centroid)
    expect(prior.ndim in (1, 2) and len(prior) == num, "prior", f"shape [{num}, Q] or [{num}]", tuple(prior.shape))
    known = prior.detach().to(torch.float64).reshape(num, -1)
    expect(bool(torch.isfinite(known).all()), "prior", "finite values", "some that are not")
    strength = num**-0.5 if ridge is None else ridge
    expect_positive("ridge", strength)
    m = centroid.to(torch.float64)
    if kernel == "cosine":
        factor = normalize(known)
        if factor.shape[1] < num:  # F (F'F + r I)^-1 F' = (F F' + r I)^-1 F F'
            mixed = factor @ _solve(factor.t() @ factor, strength, factor.t() @ m)
            return mixed.to(centroid.dtype)
        matrix = factor @ factor.t()
    else:
        expect(sigma is not None, "sigma", "a number or 'median' with kernel='rbf'", sigma)
        expect(sigma == "median" or not isinstance(sigma, str), "sigma", "a number or 'median'", sigma)
        squared = _squared_distances(known)
        width = _median(squared) if sigma == "median" else float(sigma)  # type: ignore[arg-type]
        expect_positive("sigma", width)
        matrix = torch.exp(squared / (-2 * width**2))
    return _solve(matrix, strength, matrix @ m).to(centroid.dtype)


def _solve(matrix: Tensor, ridge: float, right: Tensor) -> Tensor:
    shifted = matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.cholesky_solve(right, torch.linalg.cholesky(shifted))


def median_distance(prior: Tensor) -> float:
    """Median distance between different rows of a prior [N, Q] or [N], a width for its kernel.

    Raises:
        ValueError: one row alone, or more than half of all pairs the same.
    """
    expect(len(prior) > 1, "prior", "2 or more rows", len(prior))
    return _median(_squared_distances(prior.detach().double().reshape(len(prior), -1)))


def _squared_distances(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    length = centred.square().sum(1)
    return (length[:, None] + length - 2 * centred @ centred.t()).clamp_min_(0).fill_diagonal_(0)


def _median(squared: Tensor) -> float:
    upper = torch.triu_indices(len(squared), len(squared), 1, device=squared.device)
    median = float(squared[upper[0], upper[1]].median()) ** 0.5
    expect(median > 0, "prior", "rows of which at least half of the pairs differ", "a median distance of 0")
    return median


def standardise(prior: Tensor) -> Tensor:
    """Columns of a prior [N, Q] or [N] with mean 0 and deviation 1, so that one width suits all; constant ones: 0."""
    known = prior.detach().double().reshape(len(prior), -1)
    deviation = known.std(0, correction=0)
    centred = known - known.mean(0)
    constant = deviation <= 1e-12 * known.abs().amax(0)
    return torch.where(constant, 0.0, centred / torch.where(constant, 1.0, deviation))


def centroid_alignment(*views: Any) -> Tensor:
    """-mean_i |m_i|^2 of the centroids of unit views: -1 where every sample's views agree, near 0 where they do not.

    Args:
        *views: as `decoupled_uniformity`.
    """
    z, num_views = stack("views", views[0] if len(views) == 1 else views, least=1)
    return -_centroids(z, num_views).square().sum(1).mean()


def _centroids(flat: Tensor, num_views: int) -> Tensor:
    unit = normalize(flat.to(accumulation(flat)))
    return unit.unflatten(0, (num_views, -1)).mean(0)


class DecoupledUniformity(nn.Module):
    """`decoupled_uniformity` as a Module; see there.

    Args:
        t: sharpness of the Gaussian.
        kernel: "rbf" or "cosine", of a prior given with the views.
        sigma: width of the rbf, or "median".
        ridge: strength of the smoothing; None: 1/sqrt(N).
        tile: see `decoupled_uniformity`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, t: float = 2.0, *, kernel: str = "rbf", sigma: float | str | None = None, ridge: float | None = 0.01,
        tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        expect_positive("t", t)
        expect_choice("kernel", kernel, ("rbf", "cosine"))
        self.t, self.kernel, self.sigma, self.ridge, self.tile = t, kernel, sigma, ridge, tile

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of the views; `prior` and further options as `decoupled_uniformity`."""
        return decoupled_uniformity(
            *views, t=self.t, kernel=self.kernel, sigma=self.sigma, ridge=self.ridge, tile=self.tile, **options
        )  # fmt: skip
