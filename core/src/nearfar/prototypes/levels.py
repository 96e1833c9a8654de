"""Which features of an embedding tell which level of a hierarchy apart: a mixture over features.

Legend: N rows, D features, H levels, C classes of a level.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.checks import expect
from nearfar.prototypes.mixture import gaussian_mixture

EPS = 1e-6


@torch.no_grad()
def between_ratio(z: Float[Tensor, "N D"], ids: Int[Tensor, "N H"]) -> Float[Tensor, "D H"]:
    """Share of every feature's variance that lies between the classes of each level.

    F_dh = 1 - sum_c n_c Var(z_d | c) / (N Var(z_d)); 0 for a feature that does not vary.

    Args:
        z: rows.
        ids: classes of every level, integers of 0 or more, column 0 the coarsest.
    """
    x = z.double()
    x = x - x.mean(0)
    total = x.square().sum(0)
    columns = []
    for label in ids.T:
        member = torch.nn.functional.one_hot(label.long()).to(x)
        mean = member.T @ x / member.sum(0).clamp(min=1)[:, None]
        columns.append((member.sum(0)[:, None] * mean.square()).sum(0) / total.clamp(min=1e-300))
    return torch.stack(columns, 1).to(z.dtype)


@torch.no_grad()
def level_masks(
    z: Float[Tensor, "N D"], ids: Int[Tensor, "N H"], *, least: int = 0, seed: int = 0
) -> Float[Tensor, "H D"]:
    """Assigns every feature to the level that it serves, by a Gaussian mixture over features.

    A feature is the vector of log-odds of its `between_ratio` on every level. A mixture with a component a level is
    fitted to the features that some level tells apart better than chance, (C - 1) / (N - 1); components go to the
    levels so that the sum of their mean ratios on their own level is largest; every feature follows its most probable
    component.

    Args:
        z: embeddings of N samples, N above the number of classes.
        ids: classes of every level, column 0 the coarsest.
        least: features of a level at least, which then shares them; 0: D / (4 H), but one in any case.
        seed: of the fit.

    Returns:
        Zeros and ones. Where too few features tell levels apart to fit a mixture, each level gets as many features,
        those that stand out on it the most.

    Raises:
        ValueError: shapes that do not fit, fewer than two rows.

    Notes: runs in float64 on the CPU; O(N D H).

    Source: after Ott, Vysotskaya, Sun, Servadei, Wille, "Feature Identification for Hierarchical Contrastive Learning",
        2025, whose construction was not read: a proposal with the properties that the abstract states.
    """
    expect(z.ndim == 2 and len(z) >= 2, "z", "shape [N, D], N >= 2", tuple(z.shape))
    expect(ids.ndim == 2 and len(ids) == len(z) and ids.shape[1] >= 1, "ids", f"shape [{len(z)}, H]", tuple(ids.shape))
    dim, levels = z.shape[1], ids.shape[1]
    expect(dim >= levels, "z", f"{levels} features or more, one a level", dim)
    ratio_DH = between_ratio(z.cpu(), ids.cpu()).double().clamp(EPS, 1 - EPS)
    odds_DH = ratio_DH.logit()
    chance_H = torch.tensor([len(level.unique()) - 1 for level in ids.cpu().T]).double() / (len(z) - 1)
    told = (ratio_DH > 2 * chance_H).any(1)
    probability_DH = _components(odds_DH, ratio_DH, told, seed) if len(odds_DH[told].unique(dim=0)) > levels else None
    if probability_DH is None:
        probability_DH = _even(odds_DH)
    masks_HD = torch.nn.functional.one_hot(probability_DH.argmax(1), levels).T.double()
    for h in range(levels):
        missing = (least or max(1, dim // (4 * levels))) - int(masks_HD[h].sum())
        if missing > 0:
            rank = probability_DH[:, h] + ratio_DH[:, h] * EPS  # equally improbable ones by their ratio
            masks_HD[h, rank.masked_fill(masks_HD[h] > 0, -1.0).topk(missing).indices] = 1.0
    return masks_HD.to(z)


def _components(odds_DH: Tensor, ratio_DH: Tensor, told: Tensor, seed: int) -> Tensor:
    """Probability of every level for every feature."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.exceptions import ConvergenceWarning

    levels = odds_DH.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fit that still moves assigns features all the same
        fit = gaussian_mixture(odds_DH[told], levels, regularisation=1e-3, num_restarts=4, seed=seed)
    probability = fit.posterior(odds_DH)
    share = fit.posterior(odds_DH[told])
    mean_MH = (share.T @ ratio_DH[told]) / share.sum(0).clamp(min=1e-12)[:, None]
    component, level = linear_sum_assignment(-mean_MH.numpy())
    return probability[:, component[level.argsort()]]


def _even(odds_DH: Tensor) -> Tensor:
    """As many features a level, those whose ratio on it stands out the most; coarse levels choose first."""
    dim, levels = odds_DH.shape
    probability, free = torch.zeros_like(odds_DH), torch.ones(dim, dtype=torch.bool)
    for h in range(levels):
        others = [k for k in range(levels) if k != h]
        stands_out = odds_DH[:, h] - (odds_DH[:, others].mean(1) if others else 0)
        num = dim // levels if h < levels - 1 else int(free.sum())
        chosen = stands_out.masked_fill(~free, -torch.inf).topk(num).indices
        probability[chosen, h], free[chosen] = 1.0, False
    return probability
