"""Features of a folder of images as a table, on disk and for search.

Legend: N images, D feature.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nearfar.checks import expect, expect_choice
from nearfar.config import DataConfig
from nearfar.data import ImageFiles, Source, open_folder
from nearfar.data.open import shorter_side
from nearfar.evaluate import neighbours
from nearfar.method import Method
from nearfar_images.pipeline import features

log = logging.getLogger(__name__)
SUFFIXES = (".npz", ".safetensors", ".npy")


@dataclass(frozen=True)
class Gallery:
    """Images of a folder with their features, in natural order of their paths.

    Args:
        features: float32 [N, D].
        paths: one an image.
        labels: int64 [N], the image's subfolder by number; None for a flat folder.
        class_names: of the labels.
        skipped: files that could not be read.
    """

    features: np.ndarray
    paths: tuple[str, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Neighbour:
    """One result of a search."""

    path: str
    similarity: float


def embed(
    method: Method, root: str | Path, config: DataConfig, *, output: str = "default", workers: int = 0
) -> Gallery:
    """Features of every image below a folder.

    Args:
        method: from `load_run` or `load_encoder`.
        root: the folder; with folders `train` and `test` in it, both.
        config: resolved, for how files are read.
        output: one of the method's outputs, e.g. "embedding".
        workers: loader processes.

    Raises:
        ValueError, FileNotFoundError: no folder, no images, or too many that cannot be read.
    """
    opened = open_folder(root, channels=config.channels, shorter=shorter_side(config))
    parts = [opened] if isinstance(opened, ImageFiles) else [opened.train, opened.test]
    return _joined([_embed(method, part, output, workers) for part in parts])


def embed_files(
    method: Method,
    root: str | Path,
    files: Sequence[str],
    config: DataConfig,
    *,
    output: str = "default",
    workers: int = 0,
) -> Gallery:
    """Features of some files below a folder; those that cannot be read are left out and named."""  # fmt: skip
    source = ImageFiles(root, list(files), channels=config.channels, shorter=shorter_side(config))
    return _embed(method, source, output, workers)


def _embed(method: Method, source: Source, output: str, workers: int) -> Gallery:
    found, index = features(method, source, output=output, workers=workers)
    # The loader puts the next readable image in the place of one that is not; here such rows are left out.
    own = index == torch.arange(len(source))
    rows = own.nonzero()[:, 0].tolist()
    skipped = tuple(source.path(i) for i in (~own).nonzero()[:, 0].tolist())
    if skipped:
        log.warning("%s: left out %d images that cannot be read: %s", source.name, len(skipped), ", ".join(skipped[:5]))
    labels = None if source.labels is None else source.labels[rows]
    return Gallery(found[own].numpy(), tuple(source.path(i) for i in rows), labels, source.class_names, skipped)


def _joined(parts: list[Gallery]) -> Gallery:
    labels = [part.labels for part in parts if part.labels is not None]
    return Gallery(
        np.concatenate([part.features for part in parts]),
        tuple(path for part in parts for path in part.paths),
        np.concatenate(labels) if len(labels) == len(parts) else None,
        parts[0].class_names,
        tuple(path for part in parts for path in part.skipped),
    )


def check_suffix(path: str | Path) -> None:
    """Raises ValueError unless `save` knows the suffix."""
    expect_choice("out: suffix", Path(path).suffix, SUFFIXES)


def save(gallery: Gallery, path: str | Path) -> Path:
    """Writes a gallery; the suffix chooses the form.

    .npz holds arrays `features`, `index`, `path`, and where there are labels `label` and `class_name`; .safetensors
    holds `features`, `index` and `label` with paths and class names as JSON in its metadata; .npy the features alone.

    Raises:
        ValueError: another suffix.
    """
    place = Path(path)
    check_suffix(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"features": gallery.features, "index": np.arange(len(gallery))}
    if gallery.labels is not None:
        arrays["label"] = gallery.labels
    if place.suffix == ".npy":
        np.save(place, gallery.features, allow_pickle=False)
    elif place.suffix == ".npz":
        texts = {"path": np.array(gallery.paths)}
        if gallery.labels is not None:
            texts["class_name"] = np.array(gallery.class_names)
        np.savez(place, **arrays, **texts)  # type: ignore[arg-type]
    else:
        from safetensors.numpy import save_file

        metadata = {"path": json.dumps(gallery.paths), "class_name": json.dumps(gallery.class_names)}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, place, metadata)
    return place


def embed_image(method: Method, path: str | Path, config: DataConfig, *, output: str = "default") -> np.ndarray:
    """The feature [1, D] of one image file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read as an image.
    """
    place = Path(path)
    expect(place.is_file(), "query", "an image file", str(path), FileNotFoundError)
    return embed_files(method, place.parent, [place.name], config, output=output).features


def search(
    method: Method, query: str | Path, gallery: Gallery, config: DataConfig, *, k: int = 5, output: str = "default"
) -> list[Neighbour]:
    """The k images of a gallery most similar to a query image by cosine, nearest first; the query itself left out.

    Raises:
        FileNotFoundError: no such query.
        ValueError: fewer than k images to choose from.
    """
    feature = embed_image(method, query, config, output=output)
    here = Path(query).resolve()
    rows = [i for i, path in enumerate(gallery.paths) if Path(path).resolve() != here]
    expect(1 <= k <= len(rows), "k", f"a number from 1 to {len(rows)}, the images to choose from", k)
    similarity, order = neighbours(torch.from_numpy(gallery.features[rows]), torch.from_numpy(feature), k=k)
    chosen = zip(order[0].tolist(), similarity[0].tolist(), strict=True)
    return [Neighbour(gallery.paths[rows[i]], value) for i, value in chosen]


def contact_sheet(path: str | Path, query: str | Path, found: list[Neighbour], recipe: dict) -> Path:
    """One HTML file with the query and its neighbours as pictures."""
    from PIL import Image

    from nearfar.report import NeighbourRow, write_report

    def picture(file: str | Path) -> np.ndarray:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))

    names = [Path(query).name, *(f"{Path(item.path).name} {item.similarity:.3f}" for item in found)]
    row = NeighbourRow(
        query=picture(query), images=[picture(item.path) for item in found], right=None, names=names
    )  # fmt: skip
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_report(
        place, title=f"nearest to {Path(query).name}", recipe=recipe, metrics=[], scores={}, environment={},
        neighbours=[row],
    )  # fmt: skip
    return place
