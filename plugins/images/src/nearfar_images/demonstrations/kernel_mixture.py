"""Kernels on digits, each with its best temperature of four; and contrast beside spectral clustering on a random graph.

Legend: N samples, D embedding.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

EPOCHS, QUICK_EPOCHS = 10, 1
TEMPERATURES = (0.1, 0.2, 0.4, 0.8)
RECIPES = {
    "gaussian": "kernel_mixture_gaussian_digits",
    "laplacian": "kernel_mixture_laplacian_digits",
    "loss_sum": "kernel_mixture_digits",
    "kernel_sum": "kernel_mixture_kernel_sum_digits",
    "concat": "kernel_mixture_concat_digits",
}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores on digits of the temperature that training images choose; of "blocks", agreement with the true groups.

    Args:
        name: a kernel, "untrained", "blocks" (contrast) or "blocks_spectral" (scikit-learn's spectral clustering).
        seed: of weights, views and order, or of the graph.
        quick: one epoch and one temperature instead of ten and four.
    """
    from nearfar.plugin import load
    from nearfar_images.demonstrations._trained import trained, untrained

    if name.startswith("blocks"):
        return _blocks(name, seed)
    recipes = load("images")
    if name == "untrained":
        _, _, scores = untrained(recipes.recipe("kernel_mixture_digits"), seed)
        return {k: scores[k] for k in ("linear", "knn", "few_label")}
    recipe = recipes.recipe(RECIPES[name])
    tried = []
    for temperature in TEMPERATURES[2:3] if quick else TEMPERATURES:
        changed = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, temperature=temperature))  # type: ignore[call-arg]
        data, method, scores = trained(changed, seed, QUICK_EPOCHS if quick else EPOCHS)
        tried.append((_on_training_images(method, data), temperature, scores))
    _, temperature, scores = max(tried, key=lambda found: found[0])
    return {k: scores[k] for k in ("linear", "knn", "few_label")} | {"temperature": temperature}


def _on_training_images(method: Any, data: Any) -> float:
    """kNN of one half of the training images among the other, which chooses the temperature."""
    from nearfar.data import labels_of
    from nearfar.evaluate import knn
    from nearfar_images.pipeline import features

    z, index = features(method, data.train)
    y = labels_of(data.train, index)
    assert y is not None  # digits have labels
    return knn(z[::2], y[::2], z[1::2], y[1::2]).value


def _blocks(name: str, seed: int) -> dict[str, float]:
    import torch
    from sklearn.cluster import SpectralClustering
    from sklearn.metrics import adjusted_rand_score

    from nearfar.analysis.kernel_mixture import block_graph, embed, leading_eigenspace, principal_angles
    from nearfar.prototypes import kmeans

    graph, group = block_graph((30, 30, 30), 0.5, 0.05, seed=seed)
    space = leading_eigenspace(graph, 2)
    if name == "blocks":
        z = embed(graph, 2, seed=seed)
        found = kmeans(z, 3, spherical=False, num_restarts=10, seed=seed).label
        degrees = math.degrees(float(principal_angles(space, z).max()))
    else:
        spectral = SpectralClustering(3, affinity="precomputed", random_state=seed)
        found, degrees = torch.as_tensor(spectral.fit_predict(graph.numpy())), 0.0
    return {"ari": float(adjusted_rand_score(group, found)), "degrees": degrees}
