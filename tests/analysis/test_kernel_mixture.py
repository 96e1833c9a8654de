"""The theorem on graphs, spectra and clusters beside scikit-learn, free embeddings, files.

Legend: N nodes, D dimensions.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import laplacian as scipy_laplacian
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from nearfar.analysis.kernel_mixture import (
    block_graph,
    eigengap,
    embed,
    identities,
    laplacian,
    leading_eigenspace,
    main,
    principal_angles,
    similarity_graph,
    spectral_clusters,
    spectrum,
    transition,
)
from nearfar.objectives import kernel_info_nce
from nearfar.prototypes import kmeans

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def random_graph(num: int, seed: int = 1) -> Tensor:
    return torch.rand(num, num, generator=torch.Generator().manual_seed(seed), dtype=F64).fill_diagonal_(0)


# -- the theorem -----------------------------------------------------------------------------------------------------


@pytest.mark.oracle("kernel_mixture", 3)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_expected_loss_is_cut_and_repulsion(temperature: float) -> None:
    """The left side by a double loop over numbers, the cut by its sum over edges."""
    pi, z = random_graph(8), draw(8, 3)
    pi = pi / pi.sum(1, keepdim=True)
    k = [[math.exp(-float((a - b).square().sum()) / temperature) for b in z] for a in z]
    repulsion = [math.log(sum(k[i][j] for j in range(8) if j != i)) for i in range(8)]
    loss = -sum(float(pi[i, j]) * (math.log(k[i][j]) - repulsion[i]) for i in range(8) for j in range(8) if j != i)
    cut = sum(float(pi[i, j] * (z[i] - z[j]).square().sum()) for i in range(8) for j in range(8)) / temperature
    found = identities(pi, z, temperature=temperature)
    assert found["loss"] == pytest.approx(loss, abs=1e-10)
    assert found["cut"] == pytest.approx(cut, abs=1e-10)
    assert found["repulsion"] == pytest.approx(sum(repulsion), abs=1e-10)
    assert abs(found["gap"]) < 1e-10
    assert identities(7 * pi + 3 * torch.eye(8, dtype=F64), z, temperature=temperature) == pytest.approx(found)


@pytest.mark.oracle("kernel_mixture", 3)
def test_two_views_are_the_graph_of_the_objective() -> None:
    """Whose loss is a mean over the 2B embeddings, where the theorem has a sum."""
    z = normalize(draw(2, 5, 3), dim=2)
    graph = torch.zeros(10, 10, dtype=F64)
    for i in range(5):
        graph[i, i + 5] = graph[i + 5, i] = 1
    found = identities(graph, z.flatten(0, 1), temperature=0.7)
    assert found["loss"] / 10 == pytest.approx(float(kernel_info_nce(z, gamma=2.0, temperature=0.7)), rel=1e-10)


@pytest.mark.oracle("kernel_mixture", 3)
def test_two_sides_are_clip() -> None:
    x, y, t = draw(6, 3), draw(6, 3, seed=1), 0.8
    logits = -(x[:, None] - y).square().sum(2) / t
    truth = torch.arange(6)
    expected = cross_entropy(logits, truth, reduction="sum") + cross_entropy(logits.t(), truth, reduction="sum")
    graph = torch.zeros(12, 12, dtype=F64)
    graph[truth, truth + 6] = graph[truth + 6, truth] = 1
    side = torch.arange(2).repeat_interleave(6)
    found = identities(graph, torch.cat([x, y]), temperature=t, side=side)
    assert found["loss"] == pytest.approx(float(expected), abs=1e-10)
    assert abs(found["gap"]) < 1e-10
    graph[0, 1] = 1
    with pytest.raises(ValueError, match="graph: expected edges between the sides only"):
        identities(graph, torch.cat([x, y]), side=side)


# -- spectra and clusters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalized", [False, True])
def test_laplacian_is_scipys(normalized: bool) -> None:
    graph = random_graph(7)
    expected = scipy_laplacian(((graph + graph.t()) / 2).numpy(), normed=normalized)
    np.testing.assert_allclose(laplacian(graph, normalized=normalized).numpy(), expected, atol=1e-12)


def test_parts_without_an_edge_are_zeros_of_the_spectrum() -> None:
    graph, group = block_graph((6, 5, 7), 1.0, 0.0)
    value, vector = spectrum(graph)
    torch.testing.assert_close(value[:3], torch.zeros(3, dtype=F64), atol=1e-12, rtol=0)
    assert value[3] > 0.5
    assert value.max() <= 2
    torch.testing.assert_close(
        laplacian(graph, normalized=True) @ vector, vector * value, atol=1e-10, rtol=0
    )  # fmt: skip
    assert eigengap(value) == 3
    assert adjusted_rand_score(group, spectral_clusters(graph, 3)) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_those_of_scikit_learn(seed: int) -> None:
    graph, group = block_graph((25, 30, 35), 0.5, 0.05, seed=seed)
    theirs = SpectralClustering(3, affinity="precomputed", random_state=0).fit_predict(graph.numpy())
    ours = spectral_clusters(graph, 3, seed=seed)
    assert adjusted_rand_score(theirs, ours) > 0.95
    assert adjusted_rand_score(group, ours) > 0.95


def test_similarity_graph_is_scikit_learns() -> None:
    z = draw(40, 5)
    listed = kneighbors_graph(normalize(z, dim=1).numpy(), 4, include_self=False).toarray()
    np.testing.assert_array_equal(similarity_graph(z, 4).numpy(), np.maximum(listed, listed.T))


# -- contrast beside spectral clustering -----------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "mixing", "dim"), [(2.0, 1.0, 2), (1.0, 1.0, 2), (1.0, 0.5, 2), (2.0, 1.0, 3)])
def test_free_embeddings_find_the_groups_and_the_eigenspace(gamma: float, mixing: float, dim: int) -> None:
    graph, group = block_graph((30, 30, 30), 0.5, 0.05)
    z = embed(graph, dim, gamma=gamma, mixing=mixing, seed=1)
    found = kmeans(z, 3, spherical=False, num_restarts=10).label
    assert adjusted_rand_score(group, found) > 0.95
    space = leading_eigenspace(graph, 2)
    assert math.degrees(principal_angles(space, z).max()) < 30
    assert math.degrees(principal_angles(space, draw(90, dim)).max()) > 60  # as any other plane


def test_free_embeddings_are_at_a_minimum() -> None:
    graph = random_graph(6)
    z = embed(graph, 2, temperature=0.7, num_steps=2000)
    assert abs(float(z.mean())) < 1e-10
    least = identities(graph, z, temperature=0.7)["loss"]
    for seed in range(5):
        assert identities(graph, z + 0.05 * draw(6, 2, seed=seed), temperature=0.7)["loss"] > least


def test_the_temperature_of_one_kernel_only_scales() -> None:
    graph, _ = block_graph((8, 8), 0.9, 0.1)
    losses = [identities(graph, embed(graph, 2, temperature=t), temperature=t)["loss"] for t in (0.5, 2.0)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_angles_between_known_planes() -> None:
    a = torch.eye(3, dtype=F64)[:, :2]
    b = torch.tensor([[1.0, 0], [0, 0.5], [0, math.sqrt(0.75)]], dtype=F64)
    torch.testing.assert_close(principal_angles(a, 5 * b), torch.tensor([0.0, math.pi / 3], dtype=F64))


# -- files -----------------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    centre = 5 * torch.eye(3, 4, dtype=F64)
    label = torch.arange(60) % 3
    x = centre[label] + 0.5 * draw(60, 4)
    np.savez(tmp_path / "x.npz", features=x.float(), views=(x + 0.1 * draw(60, 4, seed=1)).float(), label=label)
    graph, group = block_graph((20, 20), 0.7, 0.05)
    np.savez(tmp_path / "graph.npz", graph=graph, label=np.array(["a", "b"])[group])
    np.save(tmp_path / "x.npy", x)
    files = [str(tmp_path / name) for name in ("x.npz", "graph.npz", "x.npy")]
    assert main([*files, "--json", "--embed", "2", "--neighbours", "8", "--out", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert (tmp_path / "out" / "plot.svg").read_text().startswith("<svg xmlns")
    one, two, three = report["files"]
    assert (one["suggested"], one["clusters"], sorted(one["sizes"])) == (3, 3, [20, 20, 20])
    assert one["agreement"]["ari"] == two["agreement"]["ari"] == two["free"]["agreement"]["ari"] == 1
    for name in ("identity", "pairs"):
        assert abs(one[name]["gap"]) < 1e-8 * one[name]["loss"]
    assert "identity" not in two
    assert "agreement" not in three
    assert three["eigenvalues"] == pytest.approx(one["eigenvalues"], abs=1e-6)
    with np.load(tmp_path / "out" / "2.npz") as kept:
        assert adjusted_rand_score(group, kept["cluster"]) == 1
        assert kept["embedding"].shape == (40, 2)
    assert main([files[0], "--max-rows", "30", "--clusters", "4", "--json"]) == 0
    part = json.loads(capsys.readouterr().out)["files"][0]
    assert (part["rows"], part["clusters"], sum(part["sizes"])) == (30, 4, 30)
    assert main([files[0], "--embed", "2"]) == 0
    assert "spectral clusters and labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda g: transition(g[:2]), r"graph: expected shape \[N, N\]"),
        (lambda g: transition(-g), "graph: expected finite weights of 0 or more"),
        (lambda g: transition(g * 0), "graph: expected an edge at every node"),
        (lambda g: transition(g.triu()), "graph: expected a weight above 0 in every row"),
        (lambda g: identities(g, draw(4, 2)), r"z: expected shape \[5, D\]"),
        (lambda g: identities(g, draw(5, 2), temperature=0.0), "temperature: expected a finite number > 0"),
        (lambda g: identities(g, draw(5, 2), side=torch.zeros(5)), "side: expected 5 numbers, both 0 and 1"),
        (lambda g: spectral_clusters(g, 5), "num_clusters: expected 2 to 4"),
        (lambda g: eigengap(torch.zeros(2)), "value: expected 3 eigenvalues or more"),
        (lambda g: embed(g, 0), "dim: expected 1 or more"),
        (lambda g: embed(g, 2, gamma=3.0), r"gamma: expected a number in \(0, 2\]"),
        (lambda g: embed(g, 2, mixing=2.0), r"mixing: expected a number in \[0, 1\]"),
        (lambda g: principal_angles(g, g[:2]), r"b: expected shape \[5, Q\]"),
        (lambda g: leading_eigenspace(g, 5), "num: expected 1 to 4"),
        (lambda g: block_graph((1,), 0.5, 0.5), "sizes: expected groups of 2 nodes or more"),
        (lambda g: block_graph((3, 3), 1.5, 0.5), "inside: expected a probability"),
    ],
)
def test_refuses(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(random_graph(5))


def test_refuses_files(tmp_path: Path) -> None:
    def refused(match: str, *words: str, **arrays: Any) -> None:
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(ValueError, match=match):
            main([str(tmp_path / "x.npz"), *words])

    x, g = draw(6, 3).numpy(), random_graph(6).numpy()
    refused("x.npz: expected a field 'features' or 'graph', received the fields label", label=np.arange(6))
    refused("field 'features': expected 4 rows or more", features=x[:3])
    refused("field 'graph': expected shape", graph=g[:5])
    refused("field 'graph': expected weights of 0 or more", graph=-g)
    refused("field 'graph': expected a weight above 0 in every row", graph=np.triu(g))
    refused("field 'features': expected one row a node of the graph", graph=g, features=x[:5])
    refused(r"field 'views': expected shape \(6, 3\)", "--neighbours", "2", features=x, views=x[:5])
    refused("neighbours: expected 1 to 5, received 10", features=x)
    refused("field 'label': expected labels of at least 2 classes", graph=g, label=np.zeros(6, dtype=int))
    with pytest.raises(ValueError, match="files: expected one or more"):
        main([])
