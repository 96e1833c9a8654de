"""Sparse codes: the oracles, storage and search, training.

Legend: B batch, N rows, D embedding, H latents.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.analysis._csr_codes import dense_scores, principal
from nearfar.analysis._csr_sparse import dead
from nearfar.analysis.csr_sparse import (
    Objective,
    SparseCoder,
    code_contrast,
    encode,
    fit,
    load,
    loss,
    save,
    scores,
    search,
    top,
)
from nearfar.objectives import nt_xent

F64 = torch.float64


def coder(dim: int = 6, hidden: int = 16, **options: Any) -> SparseCoder:
    made = SparseCoder(dim, hidden, **options).double()
    with torch.no_grad():
        made.bias.normal_(0, 0.1)
        made.centre.normal_(0, 0.1)
    return made


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


# -- oracle 1 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("csr_sparse", 1)
@pytest.mark.parametrize("k", [1, 3, 16])
def test_codes_are_sparse_and_not_negative(k: int) -> None:
    made, x = coder(), draw(20, 6)
    z = made.code(x, k)
    assert int((z != 0).sum(1).max()) <= k
    assert bool((z >= 0).all())
    a = made.activation(x)
    expected = [
        [max(v, 0.0) if i in np.argsort(-row)[:k] else 0.0 for i, v in enumerate(row)] for row in a.detach().numpy()
    ]
    torch.testing.assert_close(z.detach(), torch.tensor(expected, dtype=F64))


@pytest.mark.oracle("csr_sparse", 1)
def test_everything_kept_is_a_tied_linear_autoencoder() -> None:
    made, x = coder(), draw(20, 6)
    with torch.no_grad():
        made.bias.zero_()
        made.weight.abs_()
        made.centre.fill_(-10.0)
        x = x.abs()  # so that no activation is negative
    w, c = made.weight, made.centre
    torch.testing.assert_close(made(x, 16), (x - c) @ w.T @ w + c)
    square = SparseCoder(6, 6).double()
    with torch.no_grad():
        square.weight.copy_(torch.linalg.qr(draw(6, 6))[0])
    torch.testing.assert_close(square(x, 6), (x @ square.weight.T).relu() @ square.weight)


# -- oracle 2 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("csr_sparse", 2)
def test_codes_are_nested() -> None:
    made, x = coder(), draw(20, 6)
    small, large = made.code(x, 3), made.code(x, 12)
    used = small > 0
    assert torch.equal(small[used], large[used])
    assert int((large > 0).sum()) > int(used.sum())


# -- oracle 3 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("csr_sparse", 3)
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_contrast_is_nt_xent_of_codes_given_twice(temperature: float) -> None:
    z = top(draw(9, 30), 5).requires_grad_()
    found, empty = code_contrast(z, temperature=temperature)
    assert empty == 0
    s = F.cosine_similarity(z[:, None], z[None], dim=-1) / temperature
    others = s.exp().sum(1) - s.diagonal().exp()
    by_hand = -(math.exp(1 / temperature) / (math.exp(1 / temperature) + 2 * others)).log().mean()
    torch.testing.assert_close(found, by_hand)
    expected = nt_xent(z, z, temperature=temperature)
    torch.testing.assert_close(found, expected)
    (grad,), (other,) = torch.autograd.grad(found, z), torch.autograd.grad(expected, z)
    torch.testing.assert_close(grad, other)


@pytest.mark.oracle("csr_sparse", 3)
def test_the_contrast_of_orthogonal_codes() -> None:
    found, _ = code_contrast(3 * torch.eye(7, dtype=F64), temperature=0.2)
    assert float(found) == pytest.approx(math.log1p(2 * 6 * math.exp(-5)))


def test_other_forms_of_the_contrast() -> None:
    z, other = top(draw(6, 20), 4), top(draw(6, 20), 4)
    dots = z @ z.T
    torch.testing.assert_close(
        code_contrast(z, form="dot")[0], (dots.logsumexp(1) - dots.diagonal()).mean()
    )  # the paper's
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    s = F.cosine_similarity(z[:, None], z[None], dim=-1) / 0.2
    s = s.masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf)
    same = (labels[:, None] == labels) & ~torch.eye(6, dtype=torch.bool)
    rows = [float((s[i].logsumexp(0) - s[i][same[i]]).mean()) if same[i].any() else 0.0 for i in range(6)]
    assert float(code_contrast(z, labels=labels)[0]) == pytest.approx(sum(rows) / 6)
    s = F.cosine_similarity(z[:, None], other[None], dim=-1) / 0.2
    torch.testing.assert_close(code_contrast(z, other=other)[0], F.cross_entropy(s, torch.arange(6)))


def test_empty_codes_are_left_out_and_counted() -> None:
    z = top(draw(6, 20), 4)
    z[2] = 0
    z.requires_grad_()
    found, empty = code_contrast(z)
    assert empty == 1
    torch.testing.assert_close(found, code_contrast(z[[0, 1, 3, 4, 5]])[0])
    found.backward()
    assert bool(z.grad.isfinite().all())
    value, empty = code_contrast(torch.zeros(4, 5))
    assert (float(value), empty) == (0.0, 4)


# -- oracle 4 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("csr_sparse", 4)
def test_latents_left_out_get_no_gradient() -> None:
    made, x = coder(), draw(1, 6)
    used = (made.code(x, 3) > 0)[0]
    loss(made, x.expand(2, -1), Objective(k=3, num_dead=1))["k"].backward()
    assert bool((made.weight.grad[~used] == 0).all())
    assert bool((made.bias.grad[~used] == 0).all())
    assert bool((made.weight.grad[used] != 0).any(1).all())


@pytest.mark.oracle("csr_sparse", 4)
def test_the_residual_sends_no_gradient_into_the_codes() -> None:
    made, x = coder(), draw(8, 6)
    idle = torch.zeros(16, dtype=torch.bool)
    idle[[2, 5, 11]] = True
    made.idle[idle] = 100
    with torch.no_grad():
        made.bias[idle] = -1.5  # not among the largest, yet positive for some rows
    assert not bool((made.code(x, 3) > 0)[:, idle].any())
    part = loss(made, x, Objective(k=3, num_dead=2))["dead"]
    part.backward()
    assert bool((made.weight.grad[~idle] == 0).all())
    assert bool((made.bias.grad[~idle] == 0).all())
    a, c = made.activation(x).detach(), made.centre.detach()
    r = x - made(x, 3).detach() + c
    z = top(torch.where(idle, a, -torch.inf), 2)
    expected = F.mse_loss(z @ made.weight.detach() + c, r) / F.mse_loss(r.mean(0).expand_as(r), r)
    torch.testing.assert_close(part.detach(), expected)


# -- oracle 5 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("csr_sparse", 5)
def test_an_unused_latent_is_revived() -> None:
    objective = Objective(k=1, num_dead=8, dead_after=3, contrast_weight=0.0)
    made = SparseCoder(3, 8).double()
    with torch.no_grad():
        made.weight.copy_(F.normalize(torch.eye(8, 3, dtype=F64) + 0.01, dim=1))
        made.bias.copy_(torch.tensor([5.0, 4, 3, 2, 1, 0.5, 0.5, 0.5]))  # the last four stay behind the four largest
    x = draw(6, 3) * 0.01
    for step in range(1, 5):
        parts = loss(made, x, objective)
        made.zero_grad()
        parts["loss"].backward()
        assert bool(dead(made, objective)[7]) == (step == 4)
        assert bool(made.weight.grad[7].any()) == (step == 4)
    made.zero_grad()
    without = Objective(k=1, num_dead=8, dead_after=3, contrast_weight=0.1, dead_weight=0.0)
    loss(made, x, without)["loss"].backward()
    assert not bool(made.weight.grad[7].any())
    assert int(made.idle[0]) == 0


def test_nothing_dead_costs_nothing() -> None:
    parts = loss(coder(), draw(8, 6), Objective(k=3, num_dead=2))
    assert parts["dead"].item() == 0
    weights = {"k": 1.0, "wide": 1 / 8, "dead": 1 / 32, "contrast": 0.1}
    assert parts["loss"].item() == pytest.approx(sum(w * parts[n].item() for n, w in weights.items()))
    made = coder()
    made.idle.fill_(100)
    same = draw(1, 6).expand(4, -1)  # the residual does not vary
    assert loss(made, same, Objective(k=3, num_dead=2))["dead"].item() == 0


# -- the coder --------------------------------------------------------------------------------------------------------


def test_scale_and_layer_norm_are_put_back() -> None:
    x = draw(50, 6) * 7 + 3
    made = coder()
    made.start(x)
    torch.testing.assert_close(made.centre * made.scale, x.mean(0))
    standard = x / made.scale
    assert float((standard - standard.mean(0)).square().mean()) == pytest.approx(1.0)
    z = made.code(x, 4)
    torch.testing.assert_close(made(x, 4), made.scale * (z @ made.weight + made.centre))
    normed = coder(layer_norm=True)
    normed.start(x)
    moved = 5 * x + draw(50, 1)
    torch.testing.assert_close(normed.code(moved, 4), normed.code(x, 4))
    mean, deviation = moved.mean(1, keepdim=True), moved.std(1, keepdim=True, correction=0)
    torch.testing.assert_close((normed(moved, 4) - mean) / deviation, normed.scale * normed.decode(normed.code(x, 4)))


def test_training_explains_more_and_is_repeatable() -> None:
    atoms = F.normalize(torch.randn(20, 8), dim=1)
    weight = torch.zeros(400, 20).scatter_(1, torch.randint(0, 20, (400, 2)), 1.0)
    x = weight @ atoms
    seen: list[float] = []
    options: dict[str, Any] = {"steps": 40, "batch": 64, "lr": 8e-3}
    objective = Objective(k=2, num_dead=8)
    made = fit(x, objective, **options, say=lambda step, parts: seen.append(parts["k"].item()))
    assert seen[-1] < 0.7 * seen[0]
    again = fit(x, objective, **options)
    torch.manual_seed(1)  # only the seed given counts
    assert torch.equal(made.weight, fit(x, objective, **options).weight)
    assert torch.equal(made.weight, again.weight)
    labels = torch.randint(0, 4, (400,))
    for given in ({"labels": labels}, {"pair": x.roll(1, 0)}):
        other = fit(x, objective, **(options | {"steps": 2}), **given)
        assert bool(other.weight.isfinite().all())


# -- codes ------------------------------------------------------------------------------------------------------------


def test_codes_are_stored_sparsely_and_searched() -> None:
    made, bank, query = coder(), draw(30, 6), draw(7, 6)
    codes, queries = encode(made, bank, 4), encode(made, query, 4)
    z, q = made.code(bank, 4).detach().float(), made.code(query, 4).detach().float()
    np.testing.assert_allclose(codes.toarray(), z.numpy(), rtol=1e-6)
    value, index = search(codes, queries, 5)
    cosine = F.normalize(q, dim=1) @ F.normalize(z, dim=1).T
    expected, order = cosine.sort(dim=1, descending=True, stable=True)
    np.testing.assert_allclose(value, expected[:, :5], rtol=1e-5)
    assert np.array_equal(index, order[:, :5].numpy())
    value, _ = search(codes, queries, 30, cosine=False)
    np.testing.assert_allclose(value, (q @ z.T).sort(1, descending=True).values, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="k: expected a number from 1 to 30"):
        search(codes, queries, 31)
    with pytest.raises(ValueError, match="query: width: expected 16, received 15"):
        search(codes, queries[:, :15], 1)


def test_scores_against_plain_sums() -> None:
    made, bank, query = coder(), draw(40, 6), draw(12, 6)
    labels = (torch.arange(40) % 3, torch.arange(12) % 3)
    found = scores(made, bank, query, 3, labels)
    out = made(query, 3).detach()
    assert found["explained"] == pytest.approx(
        1 - float((out - query).square().sum() / (query - bank.mean(0)).square().sum())
    )
    true = (F.normalize(query, dim=1) @ F.normalize(bank, dim=1).T).argsort(1, descending=True)[:, :10].tolist()
    z, q = (F.normalize(made.code(x, 3).detach(), dim=1) for x in (bank, query))
    near = (q @ z.T).argsort(dim=1, descending=True, stable=True).tolist()
    shares = [len({*t} & {*n[:10]}) / 10 for t, n in zip(true, near, strict=True)]
    assert found["recall"] == pytest.approx(sum(shares) / 12)
    right = [labels[0][n[0]] == labels[1][i] for i, n in enumerate(near)]
    assert found["nearest"] == pytest.approx(sum(map(float, right)) / 12)
    assert found["entries"] == pytest.approx(float((q > 0).sum(1).double().mean()))
    mean, axes = principal(bank, 6)
    turned = ((bank - mean) @ axes.T + mean @ axes.T, query @ axes.T)  # a rotation keeps all cosines
    assert dense_scores(turned, (bank, query), labels)["recall"] == 1.0


def test_a_coder_is_saved_and_loaded(tmp_path: Path) -> None:
    made, x = coder(layer_norm=True), draw(9, 6)
    made.start(x)
    save(made, tmp_path / "coder.safetensors", 5)
    found, k = load(tmp_path / "coder.safetensors")
    assert k == 5
    assert torch.equal(found(x, 3), made(x, 3))
    (tmp_path / "no.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        load(tmp_path / "no.safetensors")
    from safetensors.torch import save_file

    save_file({"weight": x}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="expected a file that this analysis wrote"):
        load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "k: expected 1 or more"),
        ({"num_dead": 0}, "num_dead: expected 1 or more"),
        ({"dead_after": 0}, "dead_after: expected 1 or more"),
        ({"dead_weight": -1.0}, "dead_weight: expected 0 or more"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"contrast": "euclid"}, "contrast: expected one of 'cosine', 'dot'"),
    ],
)
def test_wrong_objectives_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**fields)


def test_what_does_not_fit_is_refused() -> None:
    made, x = coder(), draw(8, 6)
    with pytest.raises(ValueError, match="k: expected at most the 16 latents there are, received 17"):
        loss(made, x, Objective(k=17, num_dead=2))
    with pytest.raises(ValueError, match="num_dead: expected at most the 16 latents"):
        loss(made, x, Objective(k=2))
    with pytest.raises(ValueError, match="k: expected a number from 1 to 16"):
        made.code(x, 17)
    with pytest.raises(ValueError, match=r"x: expected shape \[B, 6\]"):
        made.code(draw(8, 5), 2)
    with pytest.raises(ValueError, match="x: deviation of the rows: expected a finite number > 0"):
        made.start(torch.ones(4, 6, dtype=F64))
    with pytest.raises(ValueError, match="labels: expected none beside pairs"):
        code_contrast(x, other=x, labels=torch.zeros(8).long())
    with pytest.raises(ValueError, match="x: expected 2 rows or more"):
        fit(x[:1], Objective())
