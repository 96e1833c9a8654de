"""Gaussian mixtures, fitted by scikit-learn.

Legend: N rows, D features, M components.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.prototypes._rows import checked

FORMS = {"full": "full", "diagonal": "diag", "shared": "tied", "spherical": "spherical"}


@dataclass(frozen=True)
class Mixture:
    """A fitted Gaussian mixture; tensors in the type and on the device of the rows it was fitted to.

    Args:
        weight: [M], sum 1.
        mean: [M, D].
        covariance: [M, D, D] full, [M, D] diagonal, [D, D] shared, [M] spherical.
        log_likelihood: mean over the rows, in nats.
        converged: whether the fit stood still before its last iteration.
        estimator: scikit-learn's own object.
    """

    weight: Tensor
    mean: Tensor
    covariance: Tensor
    log_likelihood: float
    converged: bool
    estimator: Any = field(repr=False)

    def posterior(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N M"]:
        """Probability of every component for every row; rows sum to 1."""
        rows = checked("x", x, normalize=False, distributed=False).x
        expect(x.shape[1] == self.mean.shape[1], "x", f"width {self.mean.shape[1]}", x.shape[1])
        return torch.from_numpy(self.estimator.predict_proba(rows.double().cpu().numpy())).to(rows)


def gaussian_mixture(
    x: Float[Tensor, "N D"],
    num_components: int,
    *,
    covariance: str = "diagonal",
    regularisation: float = 1e-6,
    num_iterations: int = 100,
    tolerance: float = 1e-3,
    num_restarts: int = 1,
    seed: int = 0,
) -> Mixture:
    """Fits a mixture of Gaussians by expectation maximisation from k-means.

    p(x) = sum_m weight_m N(x; mean_m, covariance_m)

    Args:
        x: rows [N, D].
        num_components: M, at most N.
        covariance: "full", "diagonal", "shared" (one full matrix for all) or "spherical".
        regularisation: added to variances; in squared units of the features.
        num_iterations: most iterations; scikit-learn warns where they do not suffice.
        tolerance: stop when the mean log likelihood rises by less.
        num_restarts: starts; the most likely wins.
        seed: of the starts.

    Returns:
        Mixture.

    Raises:
        ValueError: more components than rows, rows that are not finite, an unknown covariance.

    Notes:
        Runs in float64 on the CPU, O(N M D) an iteration, O(N M D^2) for full and shared.
    """
    from sklearn.mixture import GaussianMixture

    expect_choice("covariance", covariance, FORMS)
    expect_positive("regularisation", regularisation)
    expect(num_iterations >= 1, "num_iterations", "1 or more", num_iterations)
    expect(num_restarts >= 1, "num_restarts", "1 or more", num_restarts)
    rows = checked("x", x, normalize=False, distributed=False).x
    expect(1 <= num_components <= len(rows), "num_components", f"a number from 1 to {len(rows)}, the rows there are",
           num_components)  # fmt: skip
    fit = GaussianMixture(
        num_components, covariance_type=FORMS[covariance], reg_covar=regularisation, max_iter=num_iterations,
        tol=tolerance, n_init=num_restarts, random_state=seed,
    )  # fmt: skip
    data = rows.double().cpu().numpy()
    fit.fit(data)
    weight, mean, spread = (torch.from_numpy(part).to(rows) for part in (fit.weights_, fit.means_, fit.covariances_))
    return Mixture(weight, mean, spread, float(fit.score(data)), bool(fit.converged_), fit)
