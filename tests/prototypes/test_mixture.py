"""Gaussian mixtures: parameters that made the data, densities by hand."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from nearfar.prototypes import Mixture, gaussian_mixture


def fitted(covariance: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, Mixture]:
    x = torch.cat([torch.randn(300, 2) * torch.tensor([0.5, 1.0]), torch.randn(100, 2) + 8]).to(dtype)
    return x, gaussian_mixture(x, 2, covariance=covariance)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "shared", "spherical"])
def test_posterior_and_likelihood_follow_from_the_parameters(covariance: str) -> None:
    x, found = fitted(covariance)
    spread = found.covariance
    full = {
        "full": lambda m: spread[m],
        "diagonal": lambda m: spread[m].diag(),
        "shared": lambda m: spread,
        "spherical": lambda m: spread[m] * torch.eye(2, dtype=x.dtype),
    }[covariance]
    joint = torch.stack([MultivariateNormal(found.mean[m], full(m)).log_prob(x) + found.weight[m].log()
                         for m in range(2)], dim=1)  # fmt: skip
    torch.testing.assert_close(found.posterior(x), joint.softmax(1), atol=1e-9, rtol=1e-6)
    assert found.log_likelihood == pytest.approx(float(joint.logsumexp(1).mean()), rel=1e-9)
    assert found.converged


def test_it_finds_what_made_the_rows() -> None:
    x, found = fitted("diagonal")
    order = found.weight.argsort(descending=True)
    torch.testing.assert_close(found.weight[order], torch.tensor([0.75, 0.25], dtype=x.dtype))
    torch.testing.assert_close(found.mean[order], torch.stack([x[:300].mean(0), x[300:].mean(0)]), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        found.covariance[order], torch.stack([x[:300].var(0, unbiased=False), x[300:].var(0, unbiased=False)]),
        atol=1e-3, rtol=0,
    )  # fmt: skip
    label = found.posterior(x).argmax(1)
    assert len(label[:300].unique()) == 1
    assert len(label[300:].unique()) == 1
    assert torch.equal(gaussian_mixture(x, 2, seed=0).mean, found.mean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_types(dtype: torch.dtype) -> None:
    x, found = fitted("diagonal", dtype)
    assert found.mean.dtype == torch.float32
    assert bool(found.posterior(x).isfinite().all())
    torch.testing.assert_close(found.posterior(x).sum(1), torch.ones(400))


def test_complaints() -> None:
    x = torch.randn(5, 2)
    with pytest.raises(
        ValueError, match="num_components: expected a number from 1 to 5, the rows there are, received 6"
    ):
        gaussian_mixture(x, 6)
    with pytest.raises(ValueError, match="covariance: expected one of 'full', 'diagonal', 'shared', 'spherical'"):
        gaussian_mixture(x, 2, covariance="tied")
    with pytest.raises(ValueError, match="x: expected finite features"):
        gaussian_mixture(x / 0, 2)
    for name, value in (("regularisation", 0.0), ("num_iterations", 0), ("num_restarts", 0)):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            gaussian_mixture(x, 2, **{name: value})
    with pytest.raises(ValueError, match="x: expected width 2, received 1"):
        fitted("diagonal")[1].posterior(x[:, :1])
