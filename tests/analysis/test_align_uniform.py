"""Alignment and uniformity of files: reference values, bounds, samples of rows, views, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import hyp0f1, i0, ive

from nearfar.analysis.align_uniform import main, measure, simplex_bound, uniform_law
from nearfar.evaluate import geometry
from nearfar.objectives import alignment


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.oracle("align_uniform", 1)
@pytest.mark.parametrize("t", [0.1, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("dim", [2, 3, 5, 128])
def test_the_value_of_an_even_sphere(dim: int, t: float) -> None:
    found = uniform_law(dim, t)
    assert found == pytest.approx(-2 * t + math.log(float(hyp0f1(dim / 2, t * t))), rel=1e-10, abs=1e-12)
    if dim == 2:
        assert found == pytest.approx(-2 * t + math.log(float(i0(2 * t))), rel=1e-10, abs=1e-12)
    if dim == 3:
        assert found == pytest.approx(-2 * t + math.log(math.sinh(2 * t) / (2 * t)), rel=1e-10, abs=1e-12)


@pytest.mark.oracle("align_uniform", 1)
def test_known_values_and_limits() -> None:
    assert uniform_law(2) == pytest.approx(-1.5750, abs=5e-5)
    assert uniform_law(3) == pytest.approx(-4 + math.log(27.2899 / 4), abs=5e-5)
    assert uniform_law(128) == pytest.approx(-3.94, abs=5e-3)
    assert uniform_law(10**7, 1.5) == pytest.approx(-3.0, abs=1e-5)
    assert uniform_law(2, 500.0) == pytest.approx(math.log(float(ive(0, 1000.0))), rel=1e-9)  # 0F1 itself overflows


@pytest.mark.oracle("align_uniform", 1)
def test_twenty_thousand_drawn_rows_agree() -> None:
    found = measure(draw(20_000, 3, seed=1).float())
    assert found["uniformity"] == pytest.approx(found["uniform_law"], abs=1e-2)
    assert found["filled"] == pytest.approx(1, abs=1e-2)


@pytest.mark.oracle("align_uniform", 3)
@pytest.mark.parametrize("num", [2, 3, 8])
def test_a_simplex_attains_the_bound_and_nothing_passes_it(num: int) -> None:
    corners = torch.eye(num, dtype=torch.float64) - 1 / num
    assert measure(corners, t=1.5)["uniformity"] == pytest.approx(simplex_bound(num, 1.5), rel=1e-12)
    for seed in range(3):
        found = measure(draw(num, 3, seed=seed))
        assert found["uniformity"] >= found["simplex_bound"] == simplex_bound(num)


def test_measures_equal_those_of_every_evaluation() -> None:
    x = draw(300, 8) * 5
    views = x + draw(300, 8, seed=1)
    found, expected = measure(x, views), geometry(x, views)
    for name in ("alignment", "uniformity"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9)
    assert measure(x, views, alpha=1.0)["alignment"] == pytest.approx(float(alignment(x, views, alpha=1.0)))
    assert found["unrelated"] == pytest.approx(2, abs=0.2)
    norms = torch.linalg.vector_norm(x, dim=1)
    assert (found["least_norm"], found["greatest_norm"]) == (float(norms.min()), float(norms.max()))
    sampled = measure(x, views, max_rows=100)
    assert sampled["alignment"] == found["alignment"]
    assert sampled["uniformity"] != found["uniformity"]
    assert sampled == measure(x, views, max_rows=100)


def test_one_dimension_and_collapse() -> None:
    line = torch.tensor([[1.0], [-1.0], [2.0], [-3.0]] * 100, dtype=torch.float64)
    assert measure(line)["filled"] == pytest.approx(1, abs=0.01)
    assert measure(torch.ones(5, 3))["uniformity"] == pytest.approx(0, abs=1e-6)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = draw(50, 4).numpy()
    y = x + 0.1 * draw(50, 4, seed=1).numpy()
    np.savez(tmp_path / "pairs.npz", features=x, views=y)
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    np.save(tmp_path / "y.npy", y)
    files = [str(tmp_path / name) for name in ("pairs.npz", "x.npy")]
    assert main([*files, "--json", "--out", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    pairs, alone = report["files"]
    assert pairs["alignment"] < 0.1 < pairs["unrelated"]
    assert "alignment" not in alone
    assert pairs["uniformity"] == pytest.approx(alone["uniformity"], rel=1e-5)
    assert (tmp_path / "out" / "plot.svg").read_text().startswith("<svg xmlns")
    assert main([files[1], "--views", str(tmp_path / "y.npy"), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)["files"][0]
    assert other["alignment"] == pytest.approx(pairs["alignment"], rel=1e-4)
    assert main([*files, "--t", "1", "--alpha", "1"]) == 0
    assert "uniformity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: uniform_law(1), "dim: expected 2 or more"),
        (lambda: uniform_law(3, 0.0), "t: expected a finite number > 0"),
        (lambda: simplex_bound(1), "num: expected 2 or more"),
        (lambda: measure(draw(1, 3)), r"x: expected shape \[N, D\], N >= 2"),
        (lambda: measure(draw(4, 3), draw(3, 3)), r"views: expected shape \(4, 3\)"),
        (lambda: measure(torch.zeros(4, 3)), "x: expected rows that are not zero, received 4 zero rows"),
        (lambda: measure(draw(4, 3) / 0), "x: expected finite numbers"),
        (lambda: measure(draw(4, 3), max_rows=1), "max_rows: expected 2 or more"),
        (lambda: measure(draw(4, 3), draw(4, 3), alpha=0.0), "alpha: expected a finite number > 0"),
    ],
)
def test_refuses(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_refuses_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=np.eye(3), views=np.eye(2))
    path = str(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"x.npz: field 'views': expected shape \(3, 3\)"):
        main([path])
    with pytest.raises(ValueError, match="views: expected none, or 1, one a file, received 2"):
        main([path, "--views", path, path])
    np.savez(tmp_path / "y.npz", embedding=np.eye(3))
    with pytest.raises(ValueError, match="y.npz: field 'features': expected rows .* received the fields embedding"):
        main([str(tmp_path / "y.npz")])
    with pytest.raises(FileNotFoundError, match="file: expected an .npz or .npy file"):
        main([str(tmp_path / "none.npz")])
