"""ProtoNCE: loops over prototypes and clusterings, the concentration, ties to other objectives.

Legend: B batch, D embedding, K prototypes, N samples that were clustered.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.contrast import contrast
from nearfar.objectives import ProtoNCE, concentration, proto_nce
from nearfar.prototypes import kmeans
from objectives.sharding import PARTS, over_parts

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def clusterings(num: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Three of them, of different numbers of prototypes."""
    sizes, make = (4, 6, 9), torch.Generator().manual_seed(5)
    prototypes = [draw(k, 3, seed=k) for k in sizes]
    assignment = [torch.randint(0, k, (num,), generator=make) for k in sizes]
    phi = [0.1 + torch.rand(k, generator=make, dtype=F64) for k in sizes]
    return prototypes, assignment, phi


def by_loops(z: Tensor, prototypes: list[Tensor], assignment: list[Tensor], phi: list[Tensor]) -> np.ndarray:
    total = np.zeros(len(z))
    for c, s, f in zip(prototypes, assignment, phi, strict=True):
        for i in range(len(z)):
            x = z[i].detach().numpy()
            logits = []
            for k in range(len(c)):
                p = c[k].numpy()
                logits.append(float(x @ p / np.linalg.norm(x) / np.linalg.norm(p)) / float(f[k]))
            peak = max(logits)
            total[i] += peak + math.log(sum(math.exp(v - peak) for v in logits)) - logits[int(s[i])]
    return total / len(prototypes)


@pytest.mark.parametrize("tile", [None, 0, 3])
def test_equals_loops(tile: int | None) -> None:
    z = draw(7, 3)
    given = clusterings(7)
    expected = torch.from_numpy(by_loops(z, *given))
    torch.testing.assert_close(proto_nce(z, *given, reduction="none", tile=tile), expected)
    torch.testing.assert_close(proto_nce(z, *given, tile=tile), expected.mean())
    torch.testing.assert_close(ProtoNCE(tile)(z, *given), expected.mean())
    one = [part[1] for part in given]
    torch.testing.assert_close(proto_nce(z, *one, tile=tile), proto_nce(z, *[[part] for part in one], tile=tile))
    views = torch.stack([z, draw(7, 3, seed=1)])
    both = (proto_nce(views[0], *given) + proto_nce(views[1], *given)) / 2
    torch.testing.assert_close(proto_nce(views, *given, tile=tile), both)


def test_equal_concentrations_are_a_temperature() -> None:
    z, c, s = draw(7, 3), draw(5, 3, seed=1), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    found = proto_nce(z, c, s, torch.full((5,), 0.3))
    torch.testing.assert_close(found, contrast(z, c, targets=s, temperature=0.3))
    looser = proto_nce(z[:1], c, s[:1], torch.tensor([1.0, 0.3, 0.3, 0.3, 0.3]))
    assert not torch.isclose(looser, proto_nce(z[:1], c, s[:1], torch.full((5,), 0.3)))


def test_closed_forms() -> None:
    c = torch.eye(4, dtype=F64)
    phi = torch.tensor([0.5, 0.1, 0.2, 0.7], dtype=F64)
    found = proto_nce(3 * c, 2 * c, torch.arange(4), phi, reduction="none")
    torch.testing.assert_close(found, torch.log(1 + 3 * torch.exp(-1 / phi)))
    equal = torch.ones(4, 4, dtype=F64)  # all prototypes alike: the tightest takes all
    found = proto_nce(equal, equal, torch.arange(4), phi, reduction="none")
    torch.testing.assert_close(found, torch.logsumexp(1 / phi, 0) - 1 / phi)
    torch.testing.assert_close(proto_nce(equal, equal, torch.arange(4), torch.full((4,), 0.2)),
                               torch.tensor(math.log(4), dtype=F64))  # fmt: skip


def test_laws() -> None:
    z, (c, s, phi) = draw(7, 3), clusterings(7)
    whole, order = proto_nce(z, c, s, phi), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(proto_nce(z[order], c, [part[order] for part in s], phi), whole)
    turn = torch.linalg.qr(draw(3, 3, seed=9))[0]
    torch.testing.assert_close(proto_nce(5 * z @ turn, [2 * part @ turn for part in c], s, phi), whole)
    names = torch.tensor([2, 0, 3, 1])  # renamed prototypes
    renamed = proto_nce(z, c[0][names], torch.argsort(names)[s[0]], phi[0][names])
    torch.testing.assert_close(renamed, proto_nce(z, c[0], s[0], phi[0]))
    some = s[0].clone()
    some[:3] = -1  # without a prototype
    torch.testing.assert_close(proto_nce(z, c[0], some, phi[0]), proto_nce(z[3:], c[0], s[0][3:], phi[0]))


@pytest.mark.parametrize("sizes", PARTS)
def test_parts_equal_the_whole(sizes: list[int]) -> None:
    z, (c, s, phi) = draw(7, 3).requires_grad_(), clusterings(7)
    parts = over_parts(
        sizes, lambda rows, _: proto_nce(z[rows], c, [part[rows] for part in s], phi, with_stats=True)
    )  # fmt: skip
    whole = proto_nce(z, c, s, phi)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


def test_derivatives_and_extremes() -> None:
    c, s, phi = clusterings(7)
    leaves = (draw(7, 3).requires_grad_(), c[0].clone().requires_grad_(), phi[0].clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda z, c, phi: proto_nce(z, c, s[0], phi), leaves)
    for dtype in (torch.float16, torch.bfloat16):
        z = (1e4 * draw(7, 3)).to(dtype).requires_grad_()
        loss = proto_nce(z, c[0].to(dtype), s[0], torch.tensor([1e-4, 1.0, 1e3, 0.2]))
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_concentration_equals_loops() -> None:
    make = torch.Generator().manual_seed(0)
    distance = torch.rand(60, generator=make, dtype=F64)
    assignment = torch.randint(0, 5, (60,), generator=make)
    phi = []
    for k in range(5):
        own = [float(d) for d, s in zip(distance, assignment, strict=True) if s == k]
        phi.append(sum(own) / (len(own) * math.log(len(own) + 7)))
    low, high = np.percentile(phi, 20), np.percentile(phi, 80)
    expected = np.clip(phi, low, high)
    expected = 0.3 * expected / expected.mean()
    found = concentration(distance, assignment, 5, alpha=7.0, temperature=0.3, clip=(0.2, 0.8))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    raw = concentration(distance, assignment, 5, alpha=7.0, temperature=0.3, clip=(0.0, 1.0))
    np.testing.assert_allclose(raw.numpy(), 0.3 * np.array(phi) / np.mean(phi), rtol=1e-10)


def test_concentration_of_small_clusters() -> None:
    distance = torch.tensor([1.0, 1.0, 2.0, 2.0, 9.0, 0.0, 0.0, 5.0])
    assignment = torch.tensor([0, 0, 1, 1, 2, 3, 3, -1])  # one of a single sample, one of a point, one of none
    found = concentration(distance, assignment, 5, clip=(0.0, 1.0), temperature=0.2)
    torch.testing.assert_close(found, 0.2 * torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0]) / 1.8)
    alone = concentration(torch.tensor([3.0, 4.0]), torch.tensor([0, 1]), 3, temperature=0.2)
    torch.testing.assert_close(alone, torch.full((3,), 0.2))
    points = concentration(torch.zeros(4), torch.tensor([0, 0, 1, 1]), 2, temperature=0.5)
    torch.testing.assert_close(points, torch.full((2,), 0.5))


def test_from_clusters_to_the_loss() -> None:
    tight, loose = 0.05 * draw(30, 4) + torch.eye(4)[0], 0.5 * draw(30, 4, seed=1) + torch.eye(4)[1]
    x = torch.nn.functional.normalize(torch.cat([tight, loose]).float(), dim=1)
    clusters = kmeans(x, 2, seed=0)
    distance = (x - clusters.centroid[clusters.label]).norm(dim=1)
    phi = concentration(distance, clusters.label, 2)
    first = int(clusters.label[0])
    assert phi[first] < phi[1 - first]
    assert float(phi.mean()) == pytest.approx(0.2)
    assert proto_nce(x, clusters.centroid, clusters.label, phi) < 0.2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"prototypes": draw(5, 4)}, r"prototypes: expected shape \[K, 3\]"),
        ({"assignment": torch.zeros(6, dtype=torch.long)}, r"assignment: expected shape \[7\]"),
        ({"assignment": [torch.zeros(7, dtype=torch.long)] * 2}, "assignment: expected one tensor a clustering"),
        ({"concentration": torch.ones(4)}, r"concentration: expected shape \[5\]"),
        ({"concentration": torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])}, "concentration: expected numbers > 0"),
        ({"prototypes": [], "assignment": [], "concentration": []}, "expected one tensor a clustering"),
        ({"assignment": torch.full((7,), -1)}, "positives: expected at least one anchor"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {
        "z": draw(7, 3), "prototypes": draw(5, 3), "assignment": torch.zeros(7, dtype=torch.long),
        "concentration": torch.ones(5),
    }  # fmt: skip
    with pytest.raises(ValueError, match=match):
        proto_nce(**given | arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"distance": torch.ones(2, 2)}, r"distance: expected shape \[N\]"),
        ({"distance": torch.tensor([1.0, -1.0])}, "distance: expected finite numbers >= 0"),
        ({"assignment": torch.tensor([0])}, "assignment: expected shape"),
        ({"assignment": torch.tensor([0, 3])}, "assignment: expected numbers from -1 to 2"),
        ({"num_prototypes": 0}, "num_prototypes: expected 1 or more"),
        ({"alpha": 0.0}, "alpha: expected a finite number > 0"),
        ({"clip": (0.9, 0.1)}, "clip: expected two numbers"),
    ],
)
def test_concentration_refuses(arguments: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {"distance": torch.ones(2), "assignment": torch.tensor([0, 1]), "num_prototypes": 3}
    with pytest.raises(ValueError, match=match):
        concentration(**given | arguments)
