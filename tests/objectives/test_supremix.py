"""SupReMix: its oracles, the loss by loops, shards.

Legend: B batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import SupReMix, label_mixtures, supcon, supremix
from objectives.sharding import PARTS, over_parts

F64 = torch.float64
LABELS = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0, 5.0], dtype=F64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stored(z: Tensor, labels: Tensor, t: float, generator: torch.Generator, **options: Any) -> Tensor:
    """The loss of every anchor from mixtures that are made as vectors."""
    u, y = normalize(z.flatten(0, 1), dim=1), labels.repeat(len(z))
    num, mix, unit = len(u), options.get("mix", "both"), options.get("normalize_mixtures", False)
    power = 2 if options.get("distance_weight") == "square" else 1
    own = torch.arange(num)
    drawn = {
        side: label_mixtures(y, own, y, kind=side, num=options.get("num_mixtures", 64),
                             window=options.get("window", 5.0), generator=generator)
        for side in ("negative", "positive") if mix in ("both", side)
    }  # fmt: skip
    losses = []
    for i in range(num):
        entries = [(1 + (y[i] - y[c]).abs() ** power) * torch.exp(u[i] @ u[c] / t) for c in range(num) if c != i]
        positives = [u[i] @ u[c] / t for c in range(num) if c != i and y[c] == y[i]]
        for side, made in drawn.items():
            for j, k, share in zip(made.first[i], made.second[i], made.share[i], strict=True):
                if j < 0:
                    continue
                h = (share * u[j] + (1 - share) * u[k]).detach()
                h = normalize(h, dim=0) if unit else h
                mixed = share * y[j] + (1 - share) * y[k]
                entries.append((1 + (y[i] - mixed).abs() ** power) * torch.exp(u[i] @ h / t))
                if side == "positive":
                    positives.append(u[i] @ h / t)
        losses.append(torch.stack(entries).sum().log() - torch.stack(positives).mean())
    return torch.stack(losses)


@pytest.mark.oracle("supremix", 5)
@pytest.mark.oracle("supremix", 4)
@pytest.mark.parametrize("tile", [0, 5])
@pytest.mark.parametrize(
    "options",
    [{}, {"mix": "negative"}, {"mix": "positive"}, {"mix": "none"}, {"num_mixtures": 3}, {"normalize_mixtures": True},
     {"distance_weight": "square"}, {"window": 1.5}],
)  # fmt: skip
def test_equals_loops(options: dict[str, Any], tile: int) -> None:
    """Mixtures as vectors are constants there, so equal gradients also say that nothing reaches their parts."""
    z = draw(2, 6, 4).requires_grad_()
    expected = stored(z, LABELS, 0.3, seeded(), **options)
    found = supremix(z, LABELS, reduction="none", generator=seeded(), tile=tile, **options)
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(0, 1, len(found), dtype=F64)
    got, want = (torch.autograd.grad(x @ weights, z)[0] for x in (found, expected))
    torch.testing.assert_close(got, want)


@pytest.mark.oracle("supremix", 1)
@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_without_mixtures_and_weights_it_is_supcon(tolerance: float) -> None:
    z = draw(2, 6, 4)
    found = supremix(z, LABELS, tolerance=tolerance, mix="none", distance_weight="none")
    equal = (LABELS[:, None] - LABELS[None]).abs() <= tolerance
    torch.testing.assert_close(found, supcon(z, positive=equal, temperature=0.3))


@pytest.mark.oracle("supremix", 2)
def test_mixed_positives_have_the_anchors_label() -> None:
    y = draw(30, seed=3) * 4
    made = label_mixtures(y, torch.arange(30), y, kind="positive", num=50, window=3.0)
    exists = made.first >= 0
    mixed = made.share * y[made.first] + (1 - made.share) * y[made.second]
    torch.testing.assert_close(mixed[exists], y[:, None].expand_as(mixed)[exists])
    assert (y[made.first] < y[:, None])[exists].all()
    assert (y[made.second] < y[:, None] + 3)[exists].all()
    assert exists.any(1).sum() > 20
    line, slope = draw(3), draw(3, seed=1)
    z = line + y[:, None] * slope  # an affine function of the label: the mixture is the anchor
    whole = made.share[..., None] * z[made.first] + (1 - made.share[..., None]) * z[made.second]
    torch.testing.assert_close(whole[exists], z[:, None].expand_as(whole)[exists])


@pytest.mark.oracle("supremix", 3)
def test_mixed_negatives_are_harder() -> None:
    u, y = normalize(draw(12, 4), dim=1), torch.arange(12).double() % 4
    made = label_mixtures(y, torch.arange(12), y, kind="negative", num=20)
    exists = made.second >= 0
    assert exists.sum(1).unique().tolist() == [9]
    for i in range(12):
        k, share = made.second[i][exists[i]], made.share[i][exists[i]]
        assert sorted(k.tolist()) == [c for c in range(12) if y[c] != y[i]]
        h = share[:, None] * u[i] + (1 - share[:, None]) * u[k]
        torch.testing.assert_close(h @ u[i], share + (1 - share) * (u[k] @ u[i]))
        assert (h @ u[i] >= u[k] @ u[i]).all()


def test_draws_are_different_and_of_the_right_law() -> None:
    y = torch.arange(1000).double()
    made = label_mixtures(y, torch.arange(1000), y, kind="negative", num=100, beta=(2, 8), generator=seeded())
    assert all(len(set(row.tolist())) == 100 for row in made.second[::100])
    assert float(made.share.mean()) == pytest.approx(0.2, abs=0.003)
    assert float(made.share.var()) == pytest.approx(2 * 8 / (100 * 11), rel=0.03)
    assert int(torch.bincount(made.second.flatten(), minlength=1000).min()) > 50


@pytest.mark.oracle("supremix", 5)
def test_only_distances_of_labels_count() -> None:
    z = draw(2, 6, 4)
    losses = [supremix(z, y, mix="positive") for y in (LABELS, LABELS + 7, -LABELS)]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


@pytest.mark.oracle("supremix", 6)
def test_a_narrow_window_mixes_no_positives() -> None:
    z = draw(2, 6, 4)
    torch.testing.assert_close(supremix(z, LABELS, mix="positive", window=0.9), supremix(z, LABELS, mix="none"))
    assert float(supremix(z, LABELS, mix="positive")) != pytest.approx(float(supremix(z, LABELS, mix="none")))


def test_add_one_is_the_authors_divisor() -> None:
    z, y = draw(2, 4, 3), torch.tensor([0.0, 1.0, 2.0, 2.0], dtype=F64)
    plain, parity = (supremix(z, y, mix="none", reduction="none", add_one=one) for one in (False, True))
    count = torch.tensor([1.0, 1, 3, 3]).repeat(2).double()
    torch.testing.assert_close(parity, plain * count / (count + 1))


@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    z, y = draw(2, 7, 4).requires_grad_(), torch.tensor([1.0, 2, 3, 2, 1, 5, 4], dtype=F64)
    options: dict[str, Any] = {"window": 2.5, "num_mixtures": 3}
    whole = supremix(z, y, generator=seeded(), **options)
    parts = over_parts(
        sizes,
        lambda rows, offset: supremix(
            z[:, rows], y[rows], gathered=(z, y), offset=offset, with_stats=True, generator=seeded(), **options
        ),
    )  # fmt: skip
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


def test_derivative_of_anchor_and_temperature() -> None:
    z, t = draw(2, 3, 3).requires_grad_(), torch.tensor(0.4, dtype=F64, requires_grad=True)
    y = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    assert torch.autograd.gradcheck(lambda z, t: supremix(z, y, mix="none", temperature=t, tile=0), (z, t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cold_and_extreme_rows_are_finite(dtype: torch.dtype) -> None:
    for rows in (torch.ones(6, 4), draw(6, 4), torch.zeros(6, 4)):
        z = torch.stack([rows, -rows]).to(dtype).requires_grad_()
        loss = supremix(z, LABELS * 1000, window=5000.0, temperature=0.01, normalize_mixtures=True)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_module() -> None:
    module, z = SupReMix(learnable_temperature=True, mix="positive", window=2.0), draw(2, 6, 4).float()
    torch.testing.assert_close(module(z, LABELS), supremix(z, LABELS, mix="positive", window=2.0))
    module(z, LABELS).backward()
    assert module.tau.log_value.grad is not None
    with pytest.raises(ValueError, match="options: expected one of .* did you mean 'window'"):
        SupReMix(windows=3.0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"window": 0.0}, "window: expected a finite number > 0"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"tolerance": -1.0}, "tolerance: expected a number of 0 or more"),
        ({"mix": "all"}, "mix: expected one of"),
        ({"distance_weight": "cube"}, "distance_weight: expected one of"),
        ({"num_mixtures": 0}, "num_mixtures: expected 1 or more"),
        ({"beta": (0.5, 2)}, "beta: expected two whole numbers"),
        ({"reduction": "max"}, "reduction: expected one of"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        supremix(draw(2, 6, 4), LABELS, **arguments)


def test_refuses_views_and_labels() -> None:
    with pytest.raises(ValueError, match="views: expected 2 or more views, received 1"):
        supremix(draw(1, 6, 4), LABELS)
    with pytest.raises(ValueError, match="labels: expected finite labels"):
        supremix(draw(2, 6, 4), LABELS * float("nan"))
    with pytest.raises(ValueError, match=r"labels: expected labels of shape \[6\]"):
        supremix(draw(2, 6, 4), LABELS[:5])
