"""Streaming class statistics against those of all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.prototypes import ClassStatistics


def rows(num: int = 300, dim: int = 5, classes: int = 4) -> tuple[Tensor, Tensor]:
    label = torch.randint(0, classes, (num,))
    label[torch.rand(num) < 0.2] = 255
    return torch.randn(num, dim) * (1 + label[:, None] % 3) + label[:, None] % 7, label


def stream(statistics: ClassStatistics, x: Tensor, label: Tensor) -> ClassStatistics:
    at = 0
    for size in (1, 50, 0, 7, 100, len(x)):
        statistics.update(x[at : at + size], label[at : at + size])
        at += size
    return statistics


@pytest.mark.oracle("sepico", 2)
@pytest.mark.parametrize("covariance", ["diagonal", "full", "none"])
def test_chunks_equal_the_whole(covariance: str) -> None:
    x, label = rows()
    found = stream(ClassStatistics(5, 5, covariance=covariance), x, label)
    for c in range(4):
        part = x[label == c].double().numpy()
        assert int(found.count[c]) == len(part)
        np.testing.assert_allclose(found.mean[c], part.mean(0), atol=1e-5)
        if covariance == "diagonal":
            np.testing.assert_allclose(found.covariance[c], torch.from_numpy(part).var(0, unbiased=False), atol=1e-5)
        elif covariance == "full":
            np.testing.assert_allclose(found.covariance[c], np.cov(part.T, bias=True), atol=2e-5)
    assert (covariance == "none") == (found.covariance is None)
    assert found.seen.tolist() == [True] * 4 + [False]
    assert not found.mean[4].any()


def test_a_large_mean_costs_no_precision() -> None:
    x = torch.randn(2000, 3, dtype=torch.float64) + 1000
    found = ClassStatistics(1, 3)
    for part in x.split(300):
        found.update(part.float(), torch.zeros(len(part), dtype=torch.long))
    torch.testing.assert_close(
        found.covariance[0].double(), x.float().double().var(0, unbiased=False), rtol=1e-3, atol=0
    )


def test_many_rows_cost_the_mean_no_precision() -> None:
    x = torch.rand(100_000, 1) + 1000
    found = ClassStatistics(1, 1)
    found.update(x, torch.zeros(100_000, dtype=torch.long))
    assert found.mean.item() == pytest.approx(x.double().mean().item(), abs=2e-4)
    assert found.covariance.item() == pytest.approx(x.double().var().item(), rel=1e-3)


def test_merging_equals_seeing_everything() -> None:
    x, label = rows()
    for covariance in ("diagonal", "full", "none"):
        whole = stream(ClassStatistics(4, 5, covariance=covariance), x, label)
        first, second = ClassStatistics(4, 5, covariance=covariance), ClassStatistics(4, 5, covariance=covariance)
        first.update(x[:40], label[:40])
        second.update(x[40:], label[40:])
        first.merge(second)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(first.state_dict()[name], value, atol=1e-5, rtol=1e-5)


def test_forgetting() -> None:
    found = ClassStatistics(2, 1, momentum=0.75)
    batches = [torch.tensor([1.0, 3.0]), torch.tensor([6.0, 10.0]), torch.tensor([4.0])]
    mean = variance = None
    for batch in batches:
        found.update(batch[:, None], torch.zeros(len(batch), dtype=torch.long))
        m, v = float(batch.mean()), float(batch.var(unbiased=False))
        if mean is None or variance is None:
            mean, variance = m, v
        else:
            # the law of total variance for a mixture with weights 0.75 and 0.25
            variance = 0.75 * (variance + mean**2) + 0.25 * (v + m**2) - (0.75 * mean + 0.25 * m) ** 2
            mean = 0.75 * mean + 0.25 * m
    assert found.mean[0].item() == pytest.approx(mean, rel=1e-5)
    assert found.covariance[0].item() == pytest.approx(variance, rel=1e-5)
    assert found.count.tolist() == [5, 0]
    assert not found.covariance[1].any()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_state_comes_back(covariance: str) -> None:
    found = stream(ClassStatistics(4, 5, covariance=covariance), *rows())
    again = ClassStatistics(4, 5, covariance=covariance)
    again.load_state_dict(found.state_dict())
    x, label = rows()
    for one in (found, again):
        one.update(x, label)
    assert all(torch.equal(a, b) for a, b in zip(found.buffers(), again.buffers(), strict=True))
    found.clear()
    assert not any(bool(buffer.any()) for buffer in found.buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x, label = rows()
    found, wide = ClassStatistics(4, 5), ClassStatistics(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found.update(x.to(dtype), label)
    wide.update(x.to(dtype).float(), label)
    assert torch.equal(found.covariance, wide.covariance)
    assert bool(found.covariance.isfinite().all())


def test_no_gradient_is_kept() -> None:
    found = ClassStatistics(4, 5)
    x, label = rows()
    found.update(x.requires_grad_(), label)
    assert not found.mean.requires_grad


def test_complaints() -> None:
    with pytest.raises(ValueError, match="num_classes: expected 1 or more"):
        ClassStatistics(0, 3)
    with pytest.raises(ValueError, match="dim: expected 1 or more"):
        ClassStatistics(2, 0)
    with pytest.raises(ValueError, match="covariance: expected one of"):
        ClassStatistics(2, 3, covariance="diag")
    with pytest.raises(ValueError, match="momentum: expected None or a number in"):
        ClassStatistics(2, 3, momentum=1.0)
    found, x = ClassStatistics(2, 3), torch.randn(4, 3)
    for bad in (2, -1):
        with pytest.raises(ValueError, match="label: expected classes from 0 to 1, or 255, received 1 others"):
            found.update(x, torch.tensor([0, 1, bad, 255]))
    with pytest.raises(ValueError, match="x: expected finite rows, received 4 with nan or inf"):
        found.update(x * torch.nan, torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"x: expected shape \[N, 3\]"):
        found.update(x[:, :2], torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"label: expected shape \(4,\)"):
        found.update(x, torch.zeros(3).long())
    with pytest.raises(ValueError, match="other: expected statistics of"):
        found.merge(ClassStatistics(2, 3, covariance="full"))
    assert not found.count.any()
