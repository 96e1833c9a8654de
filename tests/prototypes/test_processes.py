"""Two and three processes, uneven and empty ones too, against one with the rows of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distributed.launch import launch
from nearfar import distributed
from nearfar.prototypes import ClassStatistics, Prototypes, kmeans, repair_clusters, sinkhorn, swapped_prediction

SIZES = {1: (60,), 2: (41, 19), 3: (25, 0, 35)}
KINDS = {"whole": {}, "random": {"init": "random"}, "minibatch": {"batch_size": 16, "num_iterations": 5},
         "euclidean": {"spherical": False}, "repaired": {"min_size": 6}}  # fmt: skip


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Rows in float64, so that no rounding moves a row to another cluster; labels; scores."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 5, (60,), generator=generator)
    label[::7] = 255
    return x, label, torch.rand(60, 8, generator=generator, dtype=torch.float64)


def everything(x: Tensor, label: Tensor, scores: Tensor, sizes: tuple[int, ...]) -> dict[str, Any]:
    """What this process finds with its part; the state of Modules whole."""
    far = len(sizes) > 1
    mine = distributed.rank()
    x, label, scores = (part.split(list(sizes))[mine] for part in (x, label, scores))
    share, out = torch.arange(1.0, 9, dtype=torch.float64), {}
    for form, eps in (("scaling", 0.05), ("log", 0.05), ("auto", 1e-3)):
        out[f"codes {form} {eps}"] = sinkhorn(scores, eps=eps, form=form, distributed=far)
    out["codes of shares"] = sinkhorn(
        scores, prototype_share=share, sample_weight=scores[:, 0], num_iterations=7, distributed=far
    )
    for name, options in KINDS.items():
        found = kmeans(x, 7, seed=2, distributed=far, **options)
        out[f"label {name}"] = found.label
        out[f"equal {name}"] = [found.centroid, found.size, torch.tensor(found.inertia, dtype=torch.float64)]
    thin = (label % 5) * (label != 255) + 3 * (label == 255)
    centroid = torch.eye(6, 4, dtype=torch.float64)
    out["label mended"], moved = repair_clusters(x, thin, centroid, min_size=9, distributed=far)
    out["equal mended"] = [moved]
    for form in ("diagonal", "full"):
        statistics = ClassStatistics(5, 4, covariance=form).double()
        statistics.update(x, label, distributed=far)
        statistics.update(x + 1, label, distributed=far)
        out[f"equal {form}"] = list(statistics.buffers())
        alone = ClassStatistics(5, 4, covariance=form).double()
        alone.update(x, label)
        alone.update(x + 1, label)
        if far:
            alone.merge_processes()
        out[f"equal {form} merged"] = list(alone.buffers())
    for step in ("batch", "sample"):
        prototypes = Prototypes(5, 4, step=step, momentum=0.8).double()
        prototypes.update(x, label, distributed=far)
        prototypes.update(x * 2 + 1, label, distributed=far)
        out[f"equal {step}"] = list(prototypes.buffers())
    return out


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_processes_equals_one(world: int) -> None:
    expected = everything(*inputs(), SIZES[1])
    results = launch(everything, world, *inputs(), SIZES[world])
    for name, value in expected.items():
        if name.startswith("equal"):
            for i, part in enumerate(value):
                for result in results:
                    assert torch.equal(result[name][i], results[0][name][i]), f"{name} differs between processes"
                torch.testing.assert_close(results[0][name][i], part, msg=lambda m, name=name: f"{name}: {m}")
        else:
            found = torch.cat([result[name] for result in results])
            torch.testing.assert_close(found, value, msg=lambda m, name=name: f"{name}: {m}")


def complaints(x: Tensor) -> list[str]:
    """What this process says when the rows of the last one are bad."""
    x = x.split(list(SIZES[2]))[distributed.rank()].clone()
    label = torch.zeros(len(x), dtype=torch.long)
    if distributed.rank() == 1:
        x[0, 0], label[0] = torch.nan, 9
    calls = (
        lambda: sinkhorn(x, distributed=True),
        lambda: sinkhorn(x.nan_to_num(0), sample_weight=x[:, 0], distributed=True),
        lambda: kmeans(x, 2, distributed=True),
        lambda: kmeans(x.nan_to_num(1), 90, distributed=True),
        lambda: Prototypes(3, 4).update(x, label, distributed=True),
        lambda: ClassStatistics(3, 4).update(x, label, distributed=True),
    )
    said = []
    for call in calls:
        try:
            call()
        except ValueError as error:
            said.append(str(error))
        else:
            said.append("nothing")
    return said


def swapped(scores: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sum of the loss over this process's samples, and its gradient."""
    mine = scores.split(list(sizes), dim=1)[distributed.rank()].clone().requires_grad_()
    loss = swapped_prediction(mine, distributed=len(sizes) > 1) * mine.shape[1]
    return loss.detach(), torch.autograd.grad(loss, mine)[0]


def both(x: Tensor, scores: Tensor) -> tuple[list[str], tuple[Tensor, Tensor]]:
    return complaints(x), swapped(scores, (8, 3))


@pytest.mark.slow
def test_complaints_reach_all_and_the_swapped_prediction_balances_over_all() -> None:
    scores = torch.rand(3, 11, 5, dtype=torch.float64)
    results = launch(both, 2, inputs()[0].abs(), scores)
    starts = (
        "scores: expected finite",
        "sample_weight: expected finite",
        "x: expected finite features, received 1",
        "num_clusters: expected a number from 1 to 60",
        "label: expected classes",
        "label: expected classes",
    )
    for said, _ in results:
        assert [text.startswith(start) for text, start in zip(said, starts, strict=True)] == [True] * 6, said
    loss, grad = swapped(scores, (11,))
    torch.testing.assert_close(torch.stack([found[0] for _, found in results]).sum(), loss)
    torch.testing.assert_close(torch.cat([found[1] for _, found in results], dim=1), grad)
