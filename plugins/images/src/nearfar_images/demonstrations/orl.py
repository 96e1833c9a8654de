"""ORL on scenes of three digits on clutter: are regions drawn together of the same digit, and do features gain by it?

Legend: N scenes, O objects of a scene, C classes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.config import DataConfig, EncoderConfig, ImageViewConfig, TrainerConfig
from nearfar.data import ArraySource, Data, digits
from nearfar.recipe import Recipe

if TYPE_CHECKING:
    from nearfar_images.correspondence import Correspondence

SIDE, OBJECTS, CLASSES = 96, 3, 10
DIGIT = (26, 34)
"""least and largest side of a digit in pixels"""
NUM_TRAIN, NUM_TEST, BATCH = 512, 256, 64
EPOCHS, QUICK_EPOCHS, QUICK_PART = 16, 1, 4
IMAGE = 64
"""side of the views; patches of regions have three sevenths of it"""
VIEWS = ImageViewConfig(crop_scale=(0.3, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, gain=(0.6, 1.4), noise=0.05)
COVERED = 0.5
"""share of an object's area from which on a box shows it"""


@dataclass(frozen=True)
class Scenes:
    """Images uint8 [N, 96, 96, 1], the boxes [N, O, 4] and classes [N, O] of what they show."""

    images: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray

    @property
    def labels(self) -> Tensor:
        """[N, C] of zeros and ones: which classes a scene shows."""
        labels = torch.zeros(len(self.classes), CLASSES)
        return labels.scatter_(1, torch.from_numpy(self.classes), 1.0)


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Mean average precision of a linear probe for the digits of held-out scenes; of "orl" also which pairs it found.

    Args:
        name: "orl": BYOL, regions, and ORL for as many steps; "byol": BYOL for the steps of one of the two runs;
            "byol_long": for those of both; "untrained".
        seed: of scenes, weights, views and order.
        quick: one epoch of a quarter of the scenes instead of sixteen of all.
    """
    from nearfar.plugin import load_recipe
    from nearfar_images import pipeline
    from nearfar_images.demonstrations.scenes import multi_label_map
    from nearfar_images.orl import STAGES, prior

    part = QUICK_PART if quick else 1
    train, test = make(NUM_TRAIN // part, seed, held_out=False), make(NUM_TEST // part, seed, held_out=True)
    source = ArraySource(train.images, None, name="scenes", layout="nhwc")
    data = Data(source, ArraySource(test.images[:4], None, name="scenes", layout="nhwc"))
    epochs = (QUICK_EPOCHS if quick else EPOCHS) * (2 if name == "byol_long" else 1)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = on_scenes(load_recipe("images/orl_digits"), seed, epochs, str(Path(folder) / "run"))
        if name != "orl":
            recipe = prior(recipe)
        method: Any = pipeline.build(recipe, data)[1] if name == "untrained" else None
        if method is None:
            run = pipeline.train(recipe, data=data)
            method = pipeline.load_run(run.path, "last").method
        if name == "orl":
            from nearfar_images.correspondence import Correspondence

            place = Path(folder) / "run" / STAGES / "regions" / "artefacts" / "regions" / "arrays.npz"
            found = pair_scores(Correspondence.load(place), train)
        z = [
            pipeline.features(method.eval(), ArraySource(one.images, None, name="scenes", layout="nhwc"))[0]
            for one in (train, test)
        ]
    return {"multi_label_map": multi_label_map(z[0], train.labels, z[1], test.labels)} | found


def on_scenes(recipe: Recipe, seed: int, epochs: int, output: str) -> Recipe:
    """A recipe with the data, views, encoder and length that every arm has."""
    method: Any = recipe.method
    return dataclasses.replace(
        recipe,
        method=dataclasses.replace(method, most_boxes=100),
        data=DataConfig(image_size=IMAGE, channels=1),
        views=VIEWS,
        encoder=EncoderConfig(name="convnet", width=16, dim=128),
        trainer=TrainerConfig(
            epochs=epochs, batch_size=BATCH, seed=seed, evaluate_every=0, evaluate_before=False, progress=False,
            report=False, checkpoint_every=10**6, device="cpu", output=output,
        ),
    )  # fmt: skip


def make(num: int, seed: int, *, held_out: bool) -> Scenes:
    """Three digits a scene, apart from each other, on soft blobs and fragments of other digits.

    Args:
        num: N.
        seed: of everything.
        held_out: of the quarter of the digits that training scenes never show.
    """
    rng = np.random.default_rng([seed, int(held_out)])
    source = digits()
    assert source.labels is not None  # scikit-learn's digits have them
    pool = np.flatnonzero((np.arange(len(source)) % 4 == 3) == held_out)
    small = torch.stack([torch.from_numpy(source[int(i)]["image"]) for i in pool]).float()
    large = {side: F.interpolate(small, (side, side), mode="bilinear")[:, 0].round().to(torch.uint8).numpy()
             for side in range(DIGIT[0], DIGIT[1] + 1)}  # fmt: skip
    labels = source.labels[pool]
    images = np.zeros((num, SIDE, SIDE, 1), np.uint8)
    boxes, classes = np.zeros((num, OBJECTS, 4), np.int64), np.zeros((num, OBJECTS), np.int64)
    blobs = F.interpolate(torch.from_numpy(rng.random((num, 1, 8, 8))), (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    canvas = (80 * blobs[:, 0]).numpy()
    for n in range(num):
        for _ in range(12):
            x, y, u, v = *rng.integers(SIDE - 8, size=2), *rng.integers(DIGIT[0] - 8, size=2)
            fragment = large[DIGIT[0]][rng.integers(len(pool)), v : v + 8, u : u + 8]
            canvas[n, y : y + 8, x : x + 8] = np.maximum(canvas[n, y : y + 8, x : x + 8], 0.6 * fragment)
        for o, (x, y, side) in enumerate(_places(rng)):
            which = rng.integers(len(pool))
            area = canvas[n, y : y + side, x : x + side]
            np.maximum(area, large[side][which], out=area)
            boxes[n, o], classes[n, o] = (x, y, x + side, y + side), labels[which]
        images[n, :, :, 0] = canvas[n].round()
    return Scenes(images, boxes, classes)


def _places(rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Corner and side of objects that do not overlap."""
    found: list[tuple[int, int, int]] = []
    while len(found) < OBJECTS:
        side = int(rng.integers(DIGIT[0], DIGIT[1] + 1))
        x, y = (int(value) for value in rng.integers(SIDE - side + 1, size=2))
        if all(x >= a + s or a >= x + side or y >= b + s or b >= y + side for a, b, s in found):
            found.append((x, y, side))
    return found


def shown(boxes: np.ndarray, scenes: Scenes, n: int) -> np.ndarray:
    """The class [R] that each box of scene n shows the most of, -1 where it shows less than half of every object."""
    from nearfar.views.boxes import area, intersection

    objects = torch.from_numpy(scenes.boxes[n])
    share = intersection(torch.from_numpy(boxes), objects).double() / area(objects)
    most, which = share.max(dim=1)
    return np.where(most.numpy() >= COVERED, scenes.classes[n][which.numpy()], -1)


def pair_scores(found: Correspondence, scenes: Scenes) -> dict[str, float]:
    """Of the pairs whose regions both show an object: how many show the same class ("pair_precision"), how many would
    if they were put together by chance ("pair_chance"), and the share of all pairs that these are ("pair_objects")."""
    of = [shown(found.boxes_of(n), scenes, int(found.index[n])) for n in range(len(found))]
    same = both = 0
    for n in range(len(found)):
        for k in range(found.num_neighbours):
            pair = found.pairs_of(n, k)
            first, second = of[n][pair[:, 0]], of[found.neighbours[n, k]][pair[:, 1]]
            good = (first >= 0) & (second >= 0)
            both, same = both + int(good.sum()), same + int((good & (first == second)).sum())
    counts = np.bincount(np.concatenate(of)[np.concatenate(of) >= 0], minlength=CLASSES)
    share = counts / max(counts.sum(), 1)
    return {
        "pair_precision": same / max(both, 1),
        "pair_chance": float((share**2).sum()),
        "pair_objects": both / len(found.pairs),
    }
