"""CAPro on digits as a search engine might find them: wrong labels, two names mixed up, texts that help or are missing.

Legend: N images, C classes, E width of a text.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearfar_images.demonstrations._fit import fit

EPOCHS, QUICK_EPOCHS, QUICK_NUM = 15, 1, 300
NOISE, MISSING, WIDTH = 0.4, 0.3, 32
MIXED = (3, 8)
"""two classes that half of the wrong labels confuse"""
ARMS: dict[str, dict[str, Any]] = {
    "capro": {},
    "mopro": {},
    "ce": {
        "beta": 0.0, "instance_weight": 0.0, "reconstruction_weight": 0.0, "prototype_weight": 0.0, "clean_from": 10**6,
        "prototypes_from": 10**6,
    },
}  # fmt: skip


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Accuracy of the classifier on held-out digits with true labels.

    "accuracy" over all; "polysemy" over the two classes that are mixed up; "corrected", with cleaning, the share of the
    training labels that are right in the end, where "noisy" of them were at the start.

    Args:
        name: "capro", seeds chosen by texts; "mopro", prototypes of whole classes, without texts; "ce", cross-entropy.
        seed: of noise, texts, weights, views and order.
        quick: one epoch of a few images instead of fifteen of all.
    """
    from nearfar.batch import collate
    from nearfar.data import ArraySource
    from nearfar.method import Progress
    from nearfar.plugin import load
    from nearfar_images.data import open_images
    from nearfar_images.webtext import choose_anchors, save_anchors, smooth_texts

    recipe = load("images").recipe("capro_digits")
    data = open_images(recipe.data)
    num = QUICK_NUM if quick else len(data.train)
    true = np.asarray(data.train.labels)[:num]
    images = np.stack([data.train[i]["image"] for i in range(num)])
    web, text, definition = noisy(true, data.train.num_classes, seed)
    train = ArraySource(images, web, name="web", layout="nchw", class_names=data.train.class_names)
    options = dict(ARMS[name])
    with tempfile.TemporaryDirectory() as folder:
        if name == "capro":
            label, pixels = torch.from_numpy(web), torch.from_numpy(images).flatten(1).float() + 1e-3
            chosen = choose_anchors(smooth_texts(text, pixels, self_weight=1.0), definition, label, num_anchors=20)
            options["anchors"] = str(Path(folder) / "anchors.npz")
            save_anchors(options["anchors"], chosen.nonzero()[:, 0])
        recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, **options))
        method = fit(recipe, train, seed, epochs=QUICK_EPOCHS if quick else EPOCHS)
    batch = collate([data.test[i] for i in range(len(data.test))])
    hit = method.classify(batch).argmax(1) == batch["label"]
    mixed = torch.isin(batch["label"], torch.tensor(MIXED))
    found = {"accuracy": float(hit.float().mean()), "polysemy": float(hit[mixed].float().mean())}
    if name == "ce":
        return found
    whole = collate([train[i] for i in range(len(train))])
    with torch.no_grad():
        feature = method.features(whole)
        z = {"logits": method.classifier(feature), "embedding": method.head(feature)[:, None]}
        seen = {"label": whole["label"], "anchor": method.anchor[whole["index"]]}
        label, kept = method.cleaned(z, seen, Progress(epoch=10**6))
    right = label == torch.from_numpy(true)
    return found | {
        "corrected": float(right[kept].float().mean()),
        "noisy": float((web == true).mean()),
        "kept": float(kept.float().mean()),
    }


def noisy(true: np.ndarray, num_classes: int, seed: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Web labels [N], texts [N, E] with rows of zeros where missing, and definitions [C, E].

    Two fifths of the labels are wrong: half of these by other classes at random, half because images of one of the two
    mixed classes are found under the other's name, as far as there are such images.
    """
    rng = np.random.default_rng(seed)
    web = true.copy()
    budget = int(NOISE * len(true)) // 2
    pair = np.flatnonzero(np.isin(true, MIXED))
    swapped = rng.permutation(pair)[: min(budget, len(pair) * 2 // 5)]
    web[swapped] = sum(MIXED) - true[swapped]
    rest = rng.permutation(np.setdiff1d(np.arange(len(true)), swapped))[: int(NOISE * len(true)) - len(swapped)]
    web[rest] = (true[rest] + rng.integers(1, num_classes, len(rest))) % num_classes
    definition = rng.normal(size=(num_classes, WIDTH))
    text = definition[true] + 1.5 * rng.normal(size=(len(true), WIDTH))
    text[rng.random(len(true)) < MISSING] = 0
    return web, torch.from_numpy(text).float(), torch.from_numpy(definition).float()
