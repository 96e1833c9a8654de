"""Digits on two levels of labels: how well the encoder, and each level's features, tell them apart."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch

from nearfar_images.demonstrations import EPOCHS, QUICK_EPOCHS


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
    from nearfar.train import Trainer
    from nearfar_images import pipeline

    recipe = load("images").recipe(f"{'hmlc' if name == 'untrained' else name}_digits")
    with tempfile.TemporaryDirectory() as folder:
        trainer = dataclasses.replace(
            recipe.trainer, epochs=QUICK_EPOCHS if quick else EPOCHS, evaluate_every=0, evaluate_before=False,
            checkpoint_every=10**6, progress=False, seed=seed, output=str(Path(folder) / "run"),
        )  # fmt: skip
        recipe = dataclasses.replace(recipe, trainer=trainer)
        data, method = pipeline.build(recipe)
        if name != "untrained":
            Trainer(method, data, recipe.trainer, optimiser=recipe.optimiser).fit()
    method = method.cpu().eval()
    train_x, test_x = (pipeline.features(method, part)[0] for part in (data.train, data.test))
    train_y, test_y = (torch.from_numpy(column(part, "path")) for part in (data.train, data.test))
    embedding, _ = pipeline.features(method, data.test, output="embedding")
    with torch.no_grad():
        masks = method._masks(embedding[None])  # type: ignore[operator]
    found = {}
    for h, level in enumerate(("coarse", "fine")):
        found[f"linear_{level}"] = linear_probe(train_x, train_y[:, h], test_x, test_y[:, h]).value
        z = embedding if masks is None else embedding * (masks[h, 0] if masks.ndim == 4 else masks[h])
        z = torch.nn.functional.normalize(z, dim=1)
        found[f"silhouette_{level}"] = float(silhouette_score(z.numpy(), test_y[:, h].numpy()))
    return found
