"""Looks for regions that correspond across images, with what an image-level model has learnt.

found = discover(load_run("RUN"), open_images(config).train, "work")
found.save("regions.npz")

Legend: N images, R boxes of an image, S of its neighbour, K neighbours, M all boxes, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from nearfar import distributed
from nearfar.checks import expect
from nearfar.config import ImageViewConfig
from nearfar.data import Source, whole
from nearfar.evaluate import neighbours as nearest
from nearfar.rng import Rng
from nearfar.views import ImageViews
from nearfar_images import regions
from nearfar_images.correspondence import Correspondence
from nearfar_images.pipeline import LoadedRun, features, shape_of

BATCH = 256  # crops a forward
LEAST_SHARE = 0.2  # of the shorter side: what 96 pixels are of a usual photograph of COCO


def discover(
    loaded: LoadedRun, source: Source, folder: str | Path, *, num_neighbours: int = 10,
    proposals: str | regions.Proposals = "auto", least_side: int = 0, most_ratio: float = 3.0, most_iou: float = 0.5,
    most_boxes: int = 100, share: float = 0.1, workers: int = 0,
) -> Correspondence:  # fmt: skip
    """Looks for regions that correspond: neighbours of every image, its boxes, and the most similar pairs of them.

    Neighbours are nearest by the cosine of the run's embeddings, boxes by that of its features.

    Args:
        loaded: a run whose method has an encoder and a head.
        source: images; those that cannot be read are left out.
        folder: for a file of the boxes' features, which is removed in the end; shared where there are several
            processes.
        num_neighbours: K.
        proposals: name of `nearfar_images.regions.proposals`, or a function from an image uint8 [C, H, W] to boxes.
        least_side: of boxes that are kept; 0: a fifth of the image's shorter side.
        most_ratio, most_iou, most_boxes: see `nearfar_images.regions.keep_boxes`.
        share: of pairs, see `nearfar_images.regions.top_pairs`.
        workers: loader processes for the embeddings.

    Raises:
        ValueError: K that is not less than the number of images, an image without proposals, or a proposal outside of
            its image, which is named.

    Notes: N R forwards and N K products of R x S cosines. The file holds the N R features in half precision. Over
        several processes each looks at its part of the images.

    Source: Xie et al., "Unsupervised Object-Level Representation Learning from Scene Images", NeurIPS 2021.
    """
    method: Any = loaded.method
    able = isinstance(getattr(method, "encoder", None), nn.Module) and "embedding" in method.outputs
    expect(able, "run", "a method with an encoder and a head", type(method).__name__)
    make = regions.proposals(proposals)[1] if isinstance(proposals, str) else proposals
    expect(num_neighbours < len(source), "num_neighbours", f"fewer than the {len(source)} images", num_neighbours)
    z, delivered = features(method, source, output="embedding", workers=workers)
    index, first = np.unique(delivered.numpy(), return_index=True)  # others stand in for images that cannot be read
    expect(num_neighbours < len(index), "num_neighbours", f"fewer than the {len(index)} images that can be read",
           num_neighbours)  # fmt: skip
    _, near = nearest(z[torch.from_numpy(first)], k=num_neighbours)
    images, mine = whole(source), range(len(index))[distributed.shard(len(index))]

    def boxes_of(n: int) -> np.ndarray:
        image = np.asarray(images[int(index[n])]["image"])
        size, where = (image.shape[2], image.shape[1]), f"proposals of {images.path(int(index[n]))}"
        least = least_side or round(LEAST_SHARE * min(size))
        found = regions.check_boxes(make(image), size, where)
        return regions.keep_boxes(found, size, least_side=least, most_ratio=most_ratio, most_iou=most_iou,
                                  most=most_boxes)  # fmt: skip

    boxes = [one for part in distributed.gather_objects([boxes_of(n) for n in mine]) for one in part]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in boxes])])
    place = Path(folder) / "features.npy"
    _write_features(place, loaded, images, index, boxes, mine)
    feature = np.load(place, mmap_mode="r", allow_pickle=False)

    def feature_of(n: int) -> Tensor:
        return normalize(torch.from_numpy(np.array(feature[starts[n] : starts[n + 1]])).float(), dim=1)

    def pairs_of(n: int) -> list[np.ndarray]:
        own = feature_of(n)
        return [regions.top_pairs(own @ feature_of(k).T, share).numpy() for k in near[n].tolist()]

    pairs = [one for part in distributed.gather_objects([pairs_of(n) for n in mine]) for of in part for one in of]
    del feature
    distributed.barrier()
    if distributed.is_main():
        place.unlink()
    pair_starts = np.concatenate([[0], np.cumsum([len(one) for one in pairs])])
    return Correspondence(index, np.concatenate(boxes), starts, near.numpy(), np.concatenate(pairs), pair_starts)


def _write_features(
    place: Path, loaded: LoadedRun, images: Source, index: np.ndarray, boxes: list[np.ndarray], mine: range
) -> None:
    """Encoder features of every box in one file [M, F]; each process writes the rows of its images."""
    method: Any = loaded.method
    device = next(method.parameters()).device
    channels, side, _ = shape_of(loaded.recipe.data)
    same = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0}
    config = ImageViewConfig(num_views=1, mean=loaded.recipe.views.mean, std=loaded.recipe.views.std, **same)
    views = ImageViews(config, size=side, channels=channels)
    counts = np.array([len(one) for one in boxes])
    if distributed.is_main():
        shape = (int(counts.sum()), int(method.encoder.feature_dim))
        np.lib.format.open_memmap(place, "w+", np.float16, shape).flush()
    distributed.barrier()

    def crops() -> Iterator[Tensor]:
        for n in mine:
            picture = torch.as_tensor(images[int(index[n])]["image"])
            yield from (regions.cut(picture, box, side) for box in boxes[n].tolist())

    out = np.lib.format.open_memmap(place, "r+")
    at = int(counts[: mine.start].sum())
    for part in _parts(crops()):
        x = torch.stack(part).to(device)
        with torch.no_grad():
            rows = method.encoder(views(x, torch.zeros(len(x), dtype=torch.int64), Rng())[0].data)
        out[at : at + len(x)] = normalize(rows.float(), dim=1).half().cpu().numpy()
        at += len(x)
    out.flush()
    distributed.barrier()


def _parts(items: Iterator[Tensor]) -> Iterator[list[Tensor]]:
    part: list[Tensor] = []
    for item in items:
        part.append(item)
        if len(part) == BATCH:
            yield part
            part = []
    if part:
        yield part
