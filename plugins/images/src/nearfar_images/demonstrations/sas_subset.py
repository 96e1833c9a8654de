"""SimCLR on parts of the digits that SAS chooses, its reverse, or chance, from clusters of a short run's embeddings.

Legend: N images, D embedding, C classes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

PROXY_EPOCHS, EPOCHS, QUICK_EPOCHS, BATCH = 10, 30, 1, 64
NUM_CLUSTERS = 10


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores on digits after 30 epochs on a part of the training images; all of them have labels for the scores.

    Args:
        name: "full", or RULE_SHARE with a rule of sas, row_sum, random or reversed and a share in percent, of every
            cluster of the proxy's embeddings.
        seed: of weights, views, order and chance.
        quick: one epoch instead of thirty, of the proxy too.

    Returns:
        The scores; and but for "full" `early_difficulty`, the rank correlation of being chosen early with EL2N, and
        `difficulty`, the mean EL2N of what was chosen relative to that of all.
    """
    from nearfar.data import Data, Subset
    from nearfar_images import pipeline

    recipe = _recipe(seed, QUICK_EPOCHS if quick else EPOCHS)
    data, _ = pipeline.build(recipe)
    if name == "full":
        return _scores(recipe, data, data)
    rule, share = name.rsplit("_", 1)
    order, label = _order(rule, seed, quick)
    counts = np.bincount(label)
    kept = np.concatenate([order[label[order] == c][: int(int(share) * n / 100)] for c, n in enumerate(counts)])
    from nearfar.analysis.sas_subset import place_correlation

    hard = _difficulty(seed)
    part = Data(train=Subset(data.train, np.sort(kept)), test=data.test, holdout=data.holdout)
    return _scores(recipe, part, data) | {
        "early_difficulty": place_correlation(order, label, hard),
        "difficulty": float(hard[kept].mean() / hard.mean()),
    }


def _recipe(seed: int, epochs: int) -> Any:
    from nearfar.plugin import load

    recipe = load("images").recipe("simclr_digits")
    trainer = dataclasses.replace(
        recipe.trainer, epochs=epochs, batch_size=BATCH, seed=seed, evaluate_every=0, evaluate_before=False,
        progress=False, checkpoint_every=10**6,
    )  # fmt: skip
    optimiser = dataclasses.replace(recipe.optimiser, lr=recipe.optimiser.lr / 2)
    return dataclasses.replace(recipe, trainer=trainer, optimiser=optimiser)


def _trained(recipe: Any, data: Any) -> Any:
    """The method after training; nothing is scored on the way."""
    from nearfar.data import Subset
    from nearfar_images import pipeline

    data = dataclasses.replace(data, test=Subset(data.test, np.empty(0)))
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "run")
        trainer = dataclasses.replace(recipe.trainer, output=output)
        pipeline.train(dataclasses.replace(recipe, trainer=trainer), data=data)
        return pipeline.load_run(output, "last").method.cpu().eval()


def _scores(recipe: Any, part: Any, data: Any) -> dict[str, float]:
    from nearfar_images import pipeline

    found = pipeline.evaluate(_trained(recipe, part), data, recipe.evaluate)
    return {name: found[name].value for name in ("linear", "knn", "few_label")}


@cache
def _proxy(seed: int, quick: bool) -> tuple[Any, Any]:
    """Embeddings [N, D] of a short run on all training images, and their clusters [N]."""
    from nearfar.prototypes import kmeans
    from nearfar_images import pipeline

    recipe = _recipe(seed, QUICK_EPOCHS if quick else PROXY_EPOCHS)
    data, _ = pipeline.build(recipe)
    z, _ = pipeline.features(_trained(recipe, data), data.train, output="embedding")
    return z, kmeans(z, NUM_CLUSTERS, num_restarts=5, seed=seed).label


def _order(rule: str, seed: int, quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """All training images cluster after cluster, in each as the rule chooses them; and their clusters."""
    from nearfar.prototypes import class_subset

    z, label = _proxy(seed, quick)
    classes = label.numpy()
    if rule == "random":
        order = np.random.default_rng(seed).permutation(len(z))
        return order[np.argsort(classes[order], kind="stable")], classes
    objective = "row_sum" if rule == "row_sum" else "graph_cut"
    order = class_subset(z, label, share=1.0, objective=objective).index.numpy()
    if rule == "reversed":
        order = order[::-1][np.argsort(classes[order[::-1]], kind="stable")]
    return order, classes


@cache
def _difficulty(seed: int) -> np.ndarray:
    """EL2N [N] of the training images by five small networks, each after three passes over them and their labels."""
    import torch
    from torch import nn

    from nearfar.analysis.sas_subset import el2n
    from nearfar_images import pipeline

    data, _ = pipeline.build(_recipe(seed, 1))
    source = data.train
    x = torch.stack([torch.as_tensor(source[i]["image"]) for i in range(len(source))]).flatten(1).float() / 255
    y = torch.as_tensor(source.labels)
    logits = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(5):
            network = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 10))
            optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
            for rows in (rows for _ in range(3) for rows in torch.randperm(len(x)).split(64)):
                optimiser.zero_grad()
                nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
                optimiser.step()
            logits.append(network(x).detach())
    return el2n(torch.stack(logits), y).numpy()
