"""Digits on two levels of labels: how well the encoder, and each level's features, tell them apart."""

from __future__ import annotations

import torch

from nearfar_images.demonstrations import EPOCHS, QUICK_EPOCHS
from nearfar_images.demonstrations._fit import fit


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Linear probes of the encoder on both levels, and silhouettes of the masked embeddings of held-out digits.

    Args:
        name: a recipe without "_digits"; "untrained" is the encoder of "hmlc" before any step.
        seed: of weights, views and order.
        quick: two epochs instead of thirty.
    """
    from sklearn.metrics import silhouette_score

    from nearfar.data import column
    from nearfar.evaluate import linear_probe
    from nearfar.plugin import load
    from nearfar_images import pipeline
    from nearfar_images.data import open_images

    recipe = load("images").recipe(f"{'hmlc' if name == 'untrained' else name}_digits")
    data = open_images(recipe.data)
    epochs = 0 if name == "untrained" else QUICK_EPOCHS if quick else EPOCHS
    method = fit(recipe, data.train, seed, epochs=epochs)
    train_x, test_x = (pipeline.features(method, part)[0] for part in (data.train, data.test))
    train_y, test_y = (torch.from_numpy(column(part, "path")) for part in (data.train, data.test))
    embedding, _ = pipeline.features(method, data.test, output="embedding")
    with torch.no_grad():
        masks = method._masks(embedding[None])
    found = {}
    for h, level in enumerate(("coarse", "fine")):
        found[f"linear_{level}"] = linear_probe(train_x, train_y[:, h], test_x, test_y[:, h]).value
        z = embedding if masks is None else embedding * (masks[h, 0] if masks.ndim == 4 else masks[h])
        z = torch.nn.functional.normalize(z, dim=1)
        found[f"silhouette_{level}"] = float(silhouette_score(z.numpy(), test_y[:, h].numpy()))
    return found
