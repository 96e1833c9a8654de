"""Contrast over classes with their prior: its oracles, the value by loops.

Legend: B queries, K keys, C classes, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from nearfar.objectives import GML, gml

F64 = torch.float64
Y, KEY_Y = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 1, 1, 1, 2, 0])
COUNTS = torch.tensor([50, 10, 3])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def stored(q: Tensor, k: Tensor, t: Tensor, ids: tuple[Tensor, Tensor] | None = None) -> Tensor:
    u, v, prior = normalize(q, dim=1), normalize(k, dim=1), COUNTS / COUNTS.sum()
    losses = []
    for i in range(len(q)):
        joint = []
        for c in range(len(COUNTS)):
            keys = [j for j in range(len(k)) if KEY_Y[j] == c and not (ids and ids[0][i] == ids[1][j])]
            joint.append(prior[c] * torch.stack([torch.exp(u[i] @ v[j] / t[c]) for j in keys]).mean())
        losses.append(-torch.log(joint[Y[i]] / torch.stack(joint).sum()))
    return torch.stack(losses)


@pytest.mark.oracle("gml_longtail", 2)
@pytest.mark.parametrize("tile", [0, 2])
@pytest.mark.parametrize("with_ids", [False, True])
def test_equals_loops(with_ids: bool, tile: int) -> None:
    q, k = draw(4, 3).requires_grad_(), draw(7, 3, seed=1).requires_grad_()
    t = torch.tensor([0.1, 0.3, 0.5], dtype=F64).requires_grad_()
    ids = (torch.tensor([5, 6, 7, 5]), torch.tensor([5, 1, 6, 2, 3, 4, 9])) if with_ids else None
    plain, left_out = stored(q, k, t), stored(q, k, t, ids)
    found = {
        part: gml(q, Y, k, KEY_Y, COUNTS, temperature=t, ids=ids, part=part, reduction="none", tile=tile)
        for part in ("contrast", "bandwidth", "both")
    }
    torch.testing.assert_close(found["contrast"], plain)
    torch.testing.assert_close(found["bandwidth"], left_out)
    torch.testing.assert_close(found["both"], plain + left_out)
    got = torch.autograd.grad(found["both"].mean(), (q, k, t))
    want = (*torch.autograd.grad(plain.mean(), (q, k)), *torch.autograd.grad(left_out.mean(), t))
    torch.testing.assert_close(got, want)


@pytest.mark.oracle("gml_longtail", 2)
def test_a_class_is_a_mean_of_its_keys() -> None:
    q, k = draw(4, 3), draw(7, 3, seed=1)
    twice, labels = torch.cat([k, k[KEY_Y == 1]]), torch.cat([KEY_Y, KEY_Y[KEY_Y == 1]])
    torch.testing.assert_close(gml(q, Y, twice, labels, COUNTS), gml(q, Y, k, KEY_Y, COUNTS))


@pytest.mark.oracle("gml_longtail", 1)
def test_one_key_a_class_is_an_adjusted_softmax() -> None:
    q, prototypes = draw(4, 3), draw(3, 3, seed=1)
    t = torch.tensor([0.1, 0.3, 0.5], dtype=F64)
    cosine = normalize(q, dim=1) @ normalize(prototypes, dim=1).t() / t
    log_prior = (COUNTS / COUNTS.sum()).double().log()
    each = torch.arange(3)
    found = gml(q, Y, prototypes, each, COUNTS, temperature=t, part="contrast")
    torch.testing.assert_close(found, cross_entropy(cosine + log_prior, Y), rtol=1e-6, atol=1e-6)
    even = gml(q, Y, prototypes, each, torch.ones(3), temperature=t, part="contrast")
    torch.testing.assert_close(even, cross_entropy(cosine, Y))


@pytest.mark.oracle("gml_longtail", 3)
def test_who_learns_from_what() -> None:
    q, k = draw(4, 3).requires_grad_(), draw(7, 3, seed=1).requires_grad_()
    t = torch.full((3,), 0.2, dtype=F64, requires_grad=True)
    for part, learns in (("contrast", (True, True, False)), ("bandwidth", (False, False, True))):
        loss = gml(q, Y, k, KEY_Y, COUNTS, temperature=t, part=part)
        grads = torch.autograd.grad(loss, (q, k, t), allow_unused=True)
        assert tuple(g is not None and bool((g != 0).any()) for g in grads) == learns


@pytest.mark.oracle("gml_longtail", 4)
def test_the_posterior_of_von_mises_classes() -> None:
    """Keys drawn on the circle around three directions; kernels of concentration 1 / t smooth a little."""
    concentration, centres = 8.0, torch.tensor([0.0, 1.2, 2.6])
    torch.manual_seed(0)
    angles = torch.distributions.VonMises(centres, torch.full((3,), concentration)).sample((6000,))
    key = torch.stack([angles.cos(), angles.sin()], -1).flatten(0, 1)
    labels = torch.arange(3).repeat(6000)
    at = torch.linspace(-0.5, 3.0, 15)
    query = torch.stack([at.cos(), at.sin()], 1)
    true = torch.softmax(concentration * torch.cos(at[:, None] - centres) + (COUNTS / 63).log(), 1)
    for c in range(3):
        y = torch.full((15,), c)
        loss = gml(query, y, key, labels, COUNTS, temperature=0.01, part="contrast", reduction="none")
        torch.testing.assert_close(torch.exp(-loss), true[:, c], rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cold_rows_are_finite(dtype: torch.dtype) -> None:
    for rows in (torch.ones(4, 3), draw(4, 3), torch.zeros(4, 3)):
        q, t = rows.to(dtype).requires_grad_(), torch.full((3,), 0.01, requires_grad=True)
        loss = gml(q, Y, draw(7, 3, seed=1).to(dtype), KEY_Y, COUNTS, temperature=t)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(q.grad).all()
        assert torch.isfinite(t.grad).all()


def test_derivatives() -> None:
    q, k = draw(4, 3).requires_grad_(), draw(7, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: gml(q, Y, k, KEY_Y, COUNTS, part="contrast", tile=0), (q, k))
    t = torch.tensor([0.1, 0.3, 0.5], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t: gml(q, Y, k, KEY_Y, COUNTS, temperature=t, part="bandwidth", tile=0), (t,)
    )  # fmt: skip


def test_module() -> None:
    q, k = draw(4, 3).float(), draw(7, 3, seed=1).float()
    module, fixed = GML(COUNTS), GML(COUNTS, learnable_temperature=False)
    torch.testing.assert_close(module(q, Y, k, KEY_Y), gml(q, Y, k, KEY_Y, COUNTS))
    torch.testing.assert_close(fixed(q, Y, k, KEY_Y), gml(q, Y, k, KEY_Y, COUNTS, part="contrast"))
    module(q, Y, k, KEY_Y).backward()
    assert (module.log_temperature.grad != 0).all()
    assert module.temperature.tolist() == pytest.approx([0.1] * 3)
    with torch.no_grad():
        module.log_temperature.fill_(math.log(1e-4))
    assert module.temperature.tolist() == pytest.approx([0.01] * 3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"class_counts": torch.tensor([1, 0, 2])}, "class_counts: expected numbers > 0"),
        ({"query_labels": torch.tensor([0, 1, 3, 0])}, "query_labels: expected classes from 0 to 2"),
        ({"key_labels": KEY_Y[:5]}, r"key_labels: expected shape \[7\]"),
        ({"key_labels": KEY_Y.clamp_max(1)}, "key: expected a key of every query's class"),
        ({"ids": (torch.arange(4), torch.tensor([9, 9, 9, 9, 9, 2, 9]))}, "and of another sample"),
        ({"temperature": torch.ones(2)}, r"temperature: expected shape \[\] or \[3\]"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"part": "all"}, "part: expected one of"),
        ({"reduction": "max"}, "reduction: expected one of"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {
        "query": draw(4, 3), "query_labels": Y, "key": draw(7, 3), "key_labels": KEY_Y, "class_counts": COUNTS,
    }  # fmt: skip
    with pytest.raises(ValueError, match=match):
        gml(**given | arguments)
