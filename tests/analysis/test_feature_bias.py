"""The linear laboratory: the oracles, ties, spans, scores, files, and the joint loss.

Legend: N samples, D dimensions, P width of the embedding.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from nearfar.analysis.feature_bias import (
    Factors,
    FeatureOptions,
    Moments,
    descend,
    empirical,
    feature_weights,
    joint,
    laboratory,
    main,
    minimiser,
    of_file,
    population,
    spectral_gradient,
    spectral_loss,
    subclass_share,
    suppression,
)
from nearfar.objectives import nt_xent, spectral, supcon

SMALL = Factors(
    class_strength=1.0, subclass_strength=0.7, irrelevant=(1.5, 1.3), flips=(0.05, 0.1, 0.3, 0.0), dim=6, noise=0.2,
    augment_noise=0.3, correlation=0.4,
)  # fmt: skip
PLAIN = Factors(dim=12, noise=0.0)
"""class 1, subclass 0.7, five irrelevant features of 2, no noise, no augmentation"""


def root(matrix: np.ndarray) -> np.ndarray:
    value, vector = np.linalg.eigh(matrix)
    return (vector * np.sqrt(np.maximum(value, 0))) @ vector.T


def random_moments(dim: int, seed: int = 0, rank: int | None = None) -> Moments:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rank or 3 * dim, dim)) * np.linspace(1, 2, dim)
    keep = rng.uniform(0.2, 1, len(x))
    return Moments(x.T @ x / len(x), (x.T * keep) @ x / len(x))


# -- oracle 1 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("feature_bias", 1)
@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_drawn_batches_have_the_loss_of_the_trace_formula(beta: float) -> None:
    num = 200_000
    weight = np.random.default_rng(3).standard_normal((2, SMALL.dim)) * 0.5
    sample = SMALL.draw(num, seed=1)
    own = sample.augment(2) @ weight.T, sample.augment(3) @ weight.T
    order = np.argsort(sample.label, kind="stable")
    partner = np.empty(num, dtype=int)  # the next sample of the same class
    for c in (0, 1):
        rows = order[sample.label[order] == c]
        partner[rows] = np.roll(rows, 1)
    unsupervised = np.mean(np.sum(own[0] * own[1], 1))
    supervised = np.mean(np.sum(own[0] * own[1][partner], 1))
    repulsion = np.mean(np.sum(own[0] * np.roll(own[1], num // 3, 0), 1) ** 2)
    drawn = -2 * (beta * supervised + (1 - beta) * unsupervised) + repulsion
    assert drawn == pytest.approx(spectral_loss(weight, population(SMALL, beta)), rel=0.01)


def test_the_trace_formula_is_the_spectral_objective_of_everything_enumerated() -> None:
    """Without augmentation every sample is its own positive, and all pairs are independent draws."""
    factors = Factors(dim=8, irrelevant=(2.0,), noise=0.3)
    sample = factors.draw(40, seed=1)
    weight = np.random.default_rng(0).standard_normal((3, 8))
    z = torch.from_numpy(sample.x @ weight.T)
    expected = float(spectral(z, z, own_pairs=True))
    assert spectral_loss(weight, empirical(sample, 0.0)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.oracle("feature_bias", 1)
def test_gradient_is_that_of_autograd() -> None:
    rng = np.random.default_rng(0)
    moments = Moments(random_moments(5).second, rng.standard_normal((5, 5)))  # A need not be symmetric
    weight = torch.from_numpy(rng.standard_normal((3, 5))).requires_grad_()
    a, s = torch.from_numpy(moments.positive), torch.from_numpy(moments.second)
    gram = weight.t() @ weight
    loss = -2 * torch.trace(a @ gram) + torch.trace(s @ gram @ s @ gram)
    (expected,) = torch.autograd.grad(loss, weight)
    assert_allclose(spectral_gradient(weight.detach().numpy(), moments), expected.numpy(), rtol=1e-10)
    assert spectral_loss(weight.detach().numpy(), moments) == pytest.approx(float(loss.detach()), rel=1e-12)


def test_moments_of_the_sample_tend_to_those_of_the_population() -> None:
    sample = SMALL.draw(200_000, seed=5)
    for beta in (0.0, 0.5, 1.0):
        found, expected = empirical(sample, beta), population(SMALL, beta)
        assert_allclose(found.second, expected.second, atol=0.03)
        assert_allclose(found.positive, expected.positive, atol=0.03)
    views = sample.augment(6)
    assert_allclose(views.T @ views / len(views), population(SMALL, 0.0).second, atol=0.03)


# -- oracle 2 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("feature_bias", 2)
@pytest.mark.parametrize(("width", "rank"), [(2, None), (5, None), (2, 3)])
def test_descent_reaches_the_closed_form(width: int, rank: int | None) -> None:
    moments = random_moments(5, rank=rank)
    found, end = minimiser(moments, width), descend(moments, width, num_steps=20_000)
    side = root(moments.second)
    back = np.linalg.pinv(side, rcond=1e-6)
    value, vector = np.linalg.eigh(back @ moments.positive @ back)
    value, vector = value[::-1], vector[:, ::-1]
    least = -np.sum(np.maximum(value[:width], 0) ** 2)
    assert found.loss == pytest.approx(least, rel=1e-9)
    assert spectral_loss(found.weight, moments) == pytest.approx(least, rel=1e-9)
    assert end.losses[-1] == pytest.approx(least, rel=1e-6)
    closed = (vector[:, :width] * np.maximum(value[:width], 0)) @ vector[:, :width].T
    for weight, tolerance in ((found.weight, 1e-8), (end.weight, 1e-3)):
        assert_allclose(side @ weight.T @ weight @ side, closed, atol=tolerance)


def test_negative_eigenvalues_are_left_out_and_descent_only_falls() -> None:
    moments = Moments(np.diag([1.0, 2.0]), np.diag([0.5, -1.0]))
    found = minimiser(moments, 2)
    assert_allclose(found.eigenvalues, [0.5, -0.5], atol=1e-12)
    assert found.loss == pytest.approx(-0.25)
    assert_allclose(found.weight.T @ found.weight, np.diag([0.5, 0.0]), atol=1e-12)
    losses = descend(moments, 2, num_steps=300).losses
    assert all(b <= a + 1e-12 for a, b in pairwise(losses))


# -- oracle 3 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("feature_bias", 3)
def test_supervised_contrast_collapses_the_subclass() -> None:
    factors = Factors(dim=20)
    found = minimiser(population(factors, 1.0), 5)
    assert np.linalg.norm(found.weight[:, 1]) < 1e-6
    weights = feature_weights(found.weight, factors, population(factors, 1.0).second)
    assert weights[0] == pytest.approx(1.0, abs=1e-2)
    assert suppression(weights) == 0
    assert suppression(weights, 1) == pytest.approx(1, abs=1e-9)
    test = factors.draw(400, seed=1)
    assert subclass_share(test.x @ found.weight.T, test.label, test.subclass) < 1e-3


@pytest.mark.oracle("feature_bias", 3)
def test_other_minimisers_off_the_span_keep_the_subclass_at_training_points() -> None:
    """n < D: a row of W that reads every training point's subclass off its own noise need not change the loss."""
    factors = Factors(irrelevant=(2.0,), dim=40, noise=0.2)
    sample = factors.draw(20, seed=1)
    # the subclass feature is hidden from the moments: the training data as they would be without it
    hidden = sample.x.copy()
    hidden[:, 1] = 0
    moments = Moments(hidden.T @ hidden / 20, empirical(sample, 1.0).positive * np.outer(*[np.arange(40) != 1] * 2))
    found = minimiser(moments, 3)
    assert np.linalg.norm(found.weight[:, 1]) < 1e-6
    added = found.weight.copy()
    added[2, 1] += 3.0
    assert spectral_loss(added, moments) == pytest.approx(spectral_loss(found.weight, moments), rel=1e-12)
    before, after = (subclass_share(sample.x @ w.T, sample.label, sample.subclass) for w in (found.weight, added))
    assert before < 1e-6
    assert after > 0.5


def test_finite_over_parametrised_data_collapse_at_training_points() -> None:
    sample = Factors().draw(150, seed=0)
    moments = empirical(sample, 1.0)
    found = minimiser(moments, 5)
    assert_allclose(found.eigenvalues[:3], [1, 1, 0], atol=1e-8)
    z = sample.x @ found.weight.T
    assert subclass_share(z, sample.label, sample.subclass) < 1e-9


# -- oracle 4 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("feature_bias", 4)
def test_unsupervised_contrast_keeps_the_strongest() -> None:
    factors = Factors(irrelevant=(2.0, 1.8, 1.6, 0.5), dim=10, noise=0.0)
    moments = population(factors, 0.0)
    assert_allclose(minimiser(moments, 1).eigenvalues[:6], 1.0, atol=1e-12)

    def kept(width: int) -> list[int]:
        weights = feature_weights(minimiser(moments, width).weight, factors, moments.second)
        return np.flatnonzero(weights > 1e-6).tolist()

    assert kept(1) == [2]
    assert kept(3) == [2, 3, 4]  # class (1) and subclass (0.7) are suppressed
    assert kept(4) == [0, 2, 3, 4]
    assert kept(6) == kept(9) == [0, 1, 2, 3, 4, 5]
    weights = feature_weights(minimiser(moments, 6).weight, factors, moments.second)
    assert_allclose(weights, 1 / math.sqrt(6), rtol=1e-9)
    narrow = feature_weights(minimiser(moments, 3).weight, factors, moments.second)
    assert suppression(narrow) == pytest.approx(1.0)


@pytest.mark.oracle("feature_bias", 4)
def test_descent_from_small_weights_keeps_the_strongest_too() -> None:
    factors = Factors(irrelevant=(2.0, 1.8), dim=6, noise=0.0)
    moments = population(factors, 0.0)
    end = descend(moments, 2, num_steps=3000, scale=1e-6)
    weights = feature_weights(end.weight, factors, moments.second)
    assert_allclose(weights, [0, 0, math.sqrt(0.5), math.sqrt(0.5)], atol=0.03)


def test_a_better_augmentation_ends_suppression() -> None:
    factors = Factors(flips=(0.0, 0.0, *(0.5,) * 5), dim=12, noise=0.0)
    moments = population(factors, 0.0)
    weights = feature_weights(minimiser(moments, 2).weight, factors, moments.second)
    assert_allclose(weights, [math.sqrt(0.5), math.sqrt(0.5), 0, 0, 0, 0, 0], atol=1e-9)


# -- oracle 5 --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("feature_bias", 5)
@pytest.mark.parametrize("beta", [0.3, 0.5])
def test_joint_eigenvalues(beta: float) -> None:
    found = minimiser(population(PLAIN, beta), 12)
    assert_allclose(found.eigenvalues, [1.0] + [1 - beta] * 6, atol=1e-12)
    pure = population(PLAIN, 1.0).positive, population(PLAIN, 0.0).positive
    assert_allclose(population(PLAIN, beta).positive, beta * pure[0] + (1 - beta) * pure[1], atol=1e-15)
    assert_allclose(minimiser(population(PLAIN, 1.0), 3).eigenvalues, [1.0] + [0.0] * 6, atol=1e-12)
    assert_allclose(minimiser(population(PLAIN, 0.0), 3).eigenvalues, [1.0] * 7, atol=1e-12)


@pytest.mark.oracle("feature_bias", 5)
def test_joint_contrast_neither_suppresses_nor_collapses() -> None:
    moments = population(PLAIN, 0.5)
    narrow, wide = (feature_weights(minimiser(moments, p).weight, PLAIN, moments.second) for p in (1, 7))
    assert narrow[0] == pytest.approx(1)  # the class enters first
    assert wide[1] > 0.2  # and the subclass where there is room


@pytest.mark.oracle("feature_bias", 5)
def test_the_joint_objective_has_the_pure_ones_at_its_ends() -> None:
    z = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    both = supcon(z, labels, temperature=0.2), nt_xent(z, temperature=0.2)
    for beta in (0.0, 0.3, 1.0):
        found = joint(z, labels, beta=beta, temperature=0.2)
        torch.testing.assert_close(found, beta * both[0] + (1 - beta) * both[1])


# -- the rest --------------------------------------------------------------------------------------------------------


def test_subclass_share_by_hand() -> None:
    z = np.array([[0.0, 0], [0, 2], [4, 0], [4, 2]])
    label, subclass = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert subclass_share(z, label, subclass) == pytest.approx(4 / 20)  # 4 x 1 within of 4 x (4 + 1) in all
    assert subclass_share(z * [1, 0], label, subclass) == 0
    with pytest.raises(ValueError, match="subclass: expected a class with 2 subclasses or more"):
        subclass_share(z, label, label)


def test_files_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = Factors(dim=20).draw(300, seed=1)
    np.savez(tmp_path / "kept.npz", features=sample.x[:, :2], label=sample.label, subclass=sample.subclass)
    np.savez(tmp_path / "lost.npz", features=sample.x[:, :1], label=sample.label, subclass=sample.subclass)
    np.savez(tmp_path / "plain.npz", features=sample.x[:, :2].astype(np.float32), label=sample.label)
    kept, lost, plain = (of_file(str(tmp_path / f"{name}.npz")) for name in ("kept", "lost", "plain"))
    assert kept["probe_class"] == lost["probe_class"] == plain["probe_class"] == 1
    assert kept["probe_subclass"] == 1
    assert lost["probe_subclass"] < 0.65
    assert lost["subclass_share"] < 0.05 < 0.2 < kept["subclass_share"]
    assert "probe_subclass" not in plain
    files = [str(tmp_path / f"{name}.npz") for name in ("kept", "plain")]
    assert main([*files, "--json", "--out", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["files"][0]["width"] == 2
    plot = (tmp_path / "out" / "plot.svg").read_text()
    assert plot.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert main(files) == 0
    assert "kept.npz" in capsys.readouterr().out.replace("\n", "")


def test_laboratory_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--widths", "2", "7", "--dim", "20", "--samples", "60", "--steps", "20"]
    assert main([*words, "--json", "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    by_case = {(row["data"], row["loss"], row["width"]): row for row in report["rows"]}
    assert len(by_case) == 12
    assert by_case["population", "SCL", 7]["subclass_share"] < 1e-3
    assert by_case["population", "UCL", 2]["suppression"] == pytest.approx(1)
    assert by_case["population", "joint", 7]["probe_subclass"] == 1
    assert by_case["population", "UCL", 7]["descent_loss"] < 0
    assert (tmp_path / "plot.svg").is_file()
    assert main(words) == 0
    assert "population" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: population(PLAIN, 1.5), r"beta: expected a number in \[0, 1\]"),
        (lambda: empirical(PLAIN.draw(4), -0.1), r"beta: expected a number in \[0, 1\]"),
        (lambda: empirical(PLAIN.draw(1), 0.5), "sample: expected both classes"),
        (lambda: minimiser(population(PLAIN, 0.5), 0), "width: expected 1 or more"),
        (lambda: descend(population(PLAIN, 0.5), 0), "width: expected 1 or more"),
        (lambda: minimiser(Moments(np.zeros((2, 2)), np.zeros((2, 2))), 1), "largest variance: expected"),
        (lambda: Moments(np.eye(2), np.eye(3)), "positive: expected shape"),
        (lambda: Factors(dim=3), "dim: expected 7 or more"),
        (lambda: Factors(flips=(0.1,)), "flips: expected none, or 7"),
        (lambda: Factors(flips=(2.0,) * 7), "flips: expected probabilities"),
        (lambda: Factors(correlation=1.0), "correlation: expected a number"),
        (lambda: Factors(noise=-1.0), "noise: expected 0 or more"),
        (lambda: PLAIN.draw(0), "num: expected 1 or more"),
        (lambda: joint(torch.ones(2, 3, 2), torch.tensor([0, 1, 2]), beta=2.0), r"beta: expected a number in \[0, 1\]"),
    ],
)
def test_refuses(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_refuses_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="file: expected an .npz or .npy file"):
        main([str(tmp_path / "none.npz")])
    (tmp_path / "bad.npz").write_text("words")
    with pytest.raises(ValueError, match="bad.npz: expected arrays without Python objects"):
        main([str(tmp_path / "bad.npz")])
    (tmp_path / "x.csv").write_text("1")
    with pytest.raises(ValueError, match="suffix: expected '.npz' or '.npy'"):
        main([str(tmp_path / "x.csv")])

    def refused(match: str, **arrays: np.ndarray) -> None:
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(ValueError, match=match):
            main([str(tmp_path / "x.npz")])

    x, y = np.random.default_rng(0).standard_normal((8, 2)), np.arange(8) % 2
    refused("field 'features': expected rows", label=y)
    refused("field 'label': expected 8 labels", features=x)
    refused("field 'label': expected labels of at least 2 classes", features=x, label=0 * y)
    refused(r"field 'label': expected shape \(8,\)", features=x, label=y[:3])
    refused("field 'features': expected rows .* N >= 4", features=x[:0], label=y[:0])
    refused("field 'features': expected finite numbers", features=np.where(x == x[2, 0], np.nan, x), label=y)
    with pytest.raises(ValueError, match="samples: expected 4 or more"):
        laboratory(FeatureOptions(samples=2))
