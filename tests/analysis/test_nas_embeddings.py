"""Embeddings of architectures: the oracles, the encoder, the search, the command.

Legend: A architectures, M initialisations, N probes, D input numbers, R components, E embedding.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nearfar.analysis.nas_embeddings import (
    ArchitectureEncoder,
    Search,
    best_so_far,
    describe,
    embed,
    expected_improvement,
    fit,
    guess,
    jacobian,
    main,
    project,
    random_search,
    rank_agreement,
    retrieval,
    search,
)
from nearfar.cli import main as nearfar
from nearfar.objectives import nt_xent

F64 = torch.float64


def mlp(width: int = 12) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


# -- oracle 1 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("nas_embeddings", 1)
def test_a_linear_model_has_rank_one() -> None:
    model = nn.Linear(5, 3).double()
    j = jacobian(model, draw(7, 5))
    torch.testing.assert_close(j, model.weight.detach().sum(0).expand(7, 5))
    e = project(j, 4)
    assert e[:, 0].abs().min().item() > 0.1
    assert e[:, 1:].abs().max().item() < 1e-12


# -- oracle 2 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("nas_embeddings", 2)
def test_the_projection_keeps_products_but_for_the_tail() -> None:
    j = jacobian(mlp(), draw(9, 5))
    torch.testing.assert_close(project(j, 5) @ project(j, 5).T, j @ j.T)
    e = project(j, 3)
    tail = torch.linalg.svdvals(j)[3:].square().sum()
    assert torch.trace(j @ j.T - e @ e.T).item() == pytest.approx(tail.item())
    _, _, v = torch.linalg.svd(j, full_matrices=False)
    plain = project(j, 3, canonical=False)
    torch.testing.assert_close(plain.abs(), (j @ v[:3].T).abs())
    torch.testing.assert_close(e.abs(), plain.abs())
    assert bool((e.gather(0, e.abs().argmax(0, keepdim=True)) > 0).all())


@pytest.mark.oracle("nas_embeddings", 2)
def test_the_order_of_probes_does_not_count() -> None:
    model, x, order = mlp(), draw(9, 5), torch.randperm(9)
    e, turned = project(jacobian(model, x), 4), project(jacobian(model, x[order]), 4)
    torch.testing.assert_close(turned, e[order])
    encoder = ArchitectureEncoder(4, hidden=16, dim=8).double()
    torch.testing.assert_close(encoder(turned[None]), encoder(e[None]))


@pytest.mark.oracle("nas_embeddings", 2)
def test_the_last_layer_scales_everything() -> None:
    model, x = mlp(), draw(9, 5)
    before = project(jacobian(model, x), 4)
    with torch.no_grad():
        model[2].weight.mul_(3)
    torch.testing.assert_close(project(jacobian(model, x), 4), 3 * before)


# -- oracle 3 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("nas_embeddings", 3)
def test_one_backward_is_jacrev_of_each_sample() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)).double()
    x = draw(6, 1, 4, 4)
    found = jacobian(model, x)
    summed = torch.func.jacrev(lambda one: model(one[None]).sum())
    expected = torch.stack([summed(one).flatten() for one in x]).detach()
    torch.testing.assert_close(found, expected)


def test_batch_norm_takes_the_statistics_of_the_probes() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double()
    x = draw(20, 5) + 2
    found = jacobian(model, x)
    hidden = model[0](x)
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0).detach())
    assert not model.training
    one = jacobian(model.eval(), x[:7])  # statistics of other probes
    assert not torch.allclose(one, found[:7])


# -- oracle 4 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("nas_embeddings", 4)
def test_the_contrast_in_closed_form() -> None:
    for num, t in ((4, 0.1), (7, 0.5)):
        z = 2 * torch.eye(num, dtype=F64)
        expected = math.log1p((2 * num - 2) * math.exp(-1 / t))
        assert float(nt_xent(z, z, temperature=t)) == pytest.approx(expected)


@pytest.mark.oracle("nas_embeddings", 4)
def test_training_minimises_that_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def spy(*z: Tensor, temperature: float) -> Tensor:
        both = nn.functional.normalize(torch.cat(z), dim=1)
        s = (both @ both.T / temperature).masked_fill(torch.eye(len(both), dtype=torch.bool), -torch.inf)
        num = len(z[0])
        partner = torch.arange(2 * num).roll(num)
        value = nn.functional.cross_entropy(s, partner)
        torch.testing.assert_close(value, nt_xent(*z, temperature=temperature))
        seen.append(value.item())
        return value

    monkeypatch.setattr("nearfar.analysis._nas_embeddings.nt_xent", spy)
    centre = torch.randn(12, 1, 6, 4)
    fit(centre + 0.1 * torch.randn(12, 3, 6, 4), hidden=16, dim=8, steps=120, lr=5e-3)
    assert seen[-1] < 0.7 * seen[0]


# -- oracle 5 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("nas_embeddings", 5)
def test_expected_improvement() -> None:
    rng = np.random.default_rng(0)
    mean, deviation = np.array([0.0, 1.0, -2.0, 0.3]), np.array([1.0, 0.5, 2.0, 0.1])
    drawn = np.maximum(mean + deviation * rng.standard_normal((400_000, 4)) - 0.4, 0).mean(0)
    np.testing.assert_allclose(expected_improvement(mean, deviation, 0.4), drawn, rtol=0.02, atol=1e-3)
    assert expected_improvement(np.array([-50.0]), np.array([1.0]), 0.0)[0] == pytest.approx(0, abs=1e-12)
    still = expected_improvement(np.array([1.5, 0.2]), np.zeros(2), 1.0)
    np.testing.assert_allclose(still, [0.5, 0.0])


# -- describe and fit -------------------------------------------------------------------------


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


def test_describe_keeps_what_is_finite() -> None:
    x = torch.randn(8, 5)
    found, finite = describe([lambda: mlp().float(), Broken], x, num_components=3, num_inits=2, seed=1)
    assert found.shape == (2, 2, 8, 3)
    assert finite.tolist() == [[True, True], [False, False]]
    assert not bool(found[1].any())
    assert not torch.equal(found[0, 0], found[0, 1])
    again, _ = describe([lambda: mlp().float(), Broken], x, num_components=3, num_inits=2, seed=1)
    assert torch.equal(found, again)


def test_architectures_are_told_apart() -> None:
    x = torch.randn(16, 5)
    widths = (2, 4, 8, 16, 32, 64, 128, 256)
    made, finite = describe([lambda w=w: mlp(w).float() for w in widths], x, num_components=4, num_inits=3)
    encoder = fit(made, finite=finite, hidden=32, dim=16, steps=40, lr=2e-3)
    embedding = embed(encoder, made)
    assert embedding.shape == (8, 3, 16)
    assert retrieval(embedding) > 2 / 8
    same = torch.eye(5)[:, None].expand(-1, 2, -1)
    assert retrieval(same) == 1
    assert retrieval(torch.stack([torch.eye(5), torch.eye(5).roll(1, 0)], 1)) == 0
    extra = torch.arange(8.0)[:, None]
    with_sizes = fit(made, extra=extra, hidden=8, dim=4, steps=2)
    assert embed(with_sizes, made, extra).shape == (8, 3, 4)
    with pytest.raises(ValueError, match="extra: expected 1 numbers an architecture, received 0"):
        embed(with_sizes, made)


# -- search -------------------------------------------------------------------------


def hill(num: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings on a line, and accuracies with one peak."""
    x = np.linspace(-3, 3, num)
    return np.stack([x, 0 * x], 1)[:, None].repeat(2, 1), np.exp(-((x - 1.2) ** 2))


def test_search_beats_chance_on_a_hill() -> None:
    x, y = hill()
    how = Search(budget=15)
    found, chance = [], []
    for seed in range(10):
        order = search(x, y, how, seed=seed)
        assert len(set(order.tolist())) == 15
        assert np.array_equal(order[:5], random_search(60, 15, seed=seed)[:5])
        found.append(best_so_far(y, order)[-1])
        chance.append(best_so_far(y, random_search(60, 15, seed=seed))[-1])
    assert np.mean(found) > np.mean(chance) + 0.01
    assert np.array_equal(search(x, 100 * y - 7, how, seed=1), search(x, y, how, seed=1))  # units do not count
    assert np.array_equal(search(50 * x, y, how, seed=1), search(x, y, how, seed=1))


def test_forest() -> None:
    x, y = hill()
    assert rank_agreement(x, y) > 0.8
    assert abs(rank_agreement(np.random.default_rng(0).standard_normal((60, 2, 3)), y)) < 0.3
    assert np.abs(guess(x[::2], y[::2], x[1::2]) - y[1::2]).mean() < 0.1


def test_what_does_not_fit_is_refused() -> None:
    x, y = hill(12)
    with pytest.raises(ValueError, match="num_components: expected a number from 1 to 5, received 6"):
        project(draw(9, 5), 6)
    with pytest.raises(ValueError, match="j: expected finite numbers"):
        project(draw(9, 5) * torch.nan, 2)
    with pytest.raises(ValueError, match="architectures: expected one or more"):
        describe([], draw(9, 5))
    with pytest.raises(ValueError, match="2 architectures or more with 2 finite"):
        fit(torch.randn(3, 2, 4, 2), finite=torch.tensor([[True, True], [True, False], [False, False]]))
    with pytest.raises(ValueError, match="jacobians: root mean square"):
        fit(torch.zeros(3, 2, 4, 2))
    with pytest.raises(ValueError, match=r"x: expected shape \[A, N, 4\]"):
        ArchitectureEncoder(4)(torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match="budget: expected at most the 12 architectures"):
        search(x, y, Search(budget=13))
    with pytest.raises(ValueError, match="budget: expected at least the 5 starts"):
        Search(budget=4)
    with pytest.raises(ValueError, match="embedding: median distance"):
        search(0 * x, y, Search(budget=6))
    with pytest.raises(ValueError, match=r"accuracy: expected shape \(12,\)"):
        guess(x, y[:5], x)


# -- the command -------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, finite = describe(
        [lambda w=w: mlp(w).float() for w in range(2, 14)], torch.randn(8, 5), num_components=3, num_inits=2
    )
    file = str(tmp_path / "space.npz")
    fields: dict[str, Any] = {"jacobian": made.numpy(), "finite": finite.numpy()}
    np.savez(file, **fields, accuracy=np.linspace(0.5, 0.9, 12), parameters=np.arange(2, 14) * 9 + 3)
    out = tmp_path / "out"
    small = ["--steps", "3", "--hidden", "8", "--dim", "4", "--search.budget", "7", "--runs", "2"]
    assert nearfar(["analyse", "nas_embeddings", file, *small, "--sizes", "--json", "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    assert (report["architectures"], report["held_out"], report["best"]) == (12, 2, 0.9)
    assert len(report["search"]) == len(report["random"]) == 7
    assert np.load(out / "embeddings.npz")["embedding"].shape == (12, 2, 4)
    assert {p.name for p in out.iterdir()} == {"report.json", "plot.svg", "embeddings.npz", "encoder.safetensors"}
    np.savez(file, **fields)
    assert main([file, *small, "--out", str(out)]) == 0
    assert "2 held out, 0.500 by chance" in capsys.readouterr().out
    cases = {
        "field 'jacobian': expected an array": {"finite": fields["finite"]},
        "A >= 10 and M >= 2": {"jacobian": fields["jacobian"][:4]},
        "field 'accuracy': expected shape [12]": fields | {"accuracy": np.zeros(3)},
        "field 'finite': expected booleans": {"jacobian": fields["jacobian"], "finite": np.ones((12, 2))},
        "field 'jacobian': expected finite numbers": {"jacobian": fields["jacobian"] * np.nan},
    }
    for text, given in cases.items():
        np.savez(file, **given)
        assert nearfar(["analyse", "nas_embeddings", file, *small]) == 2
        assert text in capsys.readouterr().err.replace("\n", " ")


def test_the_demonstration_has_its_arms() -> None:
    from nearfar import plugin
    from nearfar.analysis._demonstrations.nas_embeddings import ARMS, SPACE

    module = plugin.load("images").module("nas_embeddings")
    assert module.DEMONSTRATION.arms == ARMS
    assert plugin.locate(module.CARD.entry) is main
    assert len(SPACE) == 288
