"""Regions of images and which of them correspond across images: kept in a file, and read beside the images.

Legend: N images, R boxes of an image, K neighbours, P pairs of an image and a neighbour, M and Q all boxes and pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.data import Source, Subset
from nearfar.data.source import BadSample, Fault, digest
from nearfar.data.wrapped import this_pass
from nearfar.rng import Rng
from nearfar_images import regions


@dataclass(frozen=True)
class Correspondence:
    """Boxes of every image, its neighbours, and for each of them the pairs of boxes that belong together.

    Args:
        index: int64 [N], the images' numbers in their source.
        boxes: int64 [M, 4], (x1, y1, x2, y2), image after image.
        box_starts: int64 [N + 1]; image n has the boxes from box_starts[n] on.
        neighbours: int64 [N, K], rows of this table, nearest first.
        pairs: int64 [Q, 2], numbers of a box of the image and of one of the neighbour, each counted within its image.
        pair_starts: int64 [N K + 1]; neighbour k of image n has the pairs from pair_starts[n K + k] on.

    Raises:
        ValueError: parts that do not fit each other.
    """

    index: np.ndarray
    boxes: np.ndarray
    box_starts: np.ndarray
    neighbours: np.ndarray
    pairs: np.ndarray
    pair_starts: np.ndarray

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            array = np.asarray(getattr(self, field.name))
            expect(array.dtype.kind in "iu", f"regions: {field.name}", "integers", array.dtype, TypeError)
            object.__setattr__(self, field.name, array.astype(np.int64))
        num = len(self.index)
        good = self.index.shape == (num,) and num > 1 and len(np.unique(self.index)) == num and self.index.min() >= 0
        expect(bool(good), "regions: index", "numbers of 0 or more, each once", self.index.shape)
        expect(self.neighbours.ndim == 2 and len(self.neighbours) == num and self.neighbours.shape[1] >= 1,
               "regions: neighbours", f"shape [{num}, K]", self.neighbours.shape)  # fmt: skip
        good = (self.neighbours >= 0) & (self.neighbours < num) & (self.neighbours != np.arange(num)[:, None])
        expect(bool(good.all()), "regions: neighbours", "rows of other images", "others")
        for values, starts, groups, width in (
            ("boxes", "box_starts", num, 4), ("pairs", "pair_starts", self.neighbours.size, 2),
        ):  # fmt: skip
            array, begin = getattr(self, values), getattr(self, starts)
            expect(array.ndim == 2 and array.shape[1] == width, f"regions: {values}", f"shape [_, {width}]",
                   array.shape)  # fmt: skip
            fits = begin.shape == (groups + 1,) and begin[0] == 0 and begin[-1] == len(array)
            expect(bool(fits and (np.diff(begin) > 0).all()), f"regions: {starts}",
                   f"{groups + 1} rising numbers from 0 to {len(array)}", begin.shape)  # fmt: skip
        good = (self.boxes[:, :2] >= 0).all() and (self.boxes[:, 2:] > self.boxes[:, :2]).all()
        expect(bool(good), "regions: boxes", "(x1, y1, x2, y2) of some area", "others")
        count, which = np.diff(self.box_starts), np.arange(self.neighbours.size).repeat(np.diff(self.pair_starts))
        most = np.stack([count[which // self.num_neighbours], count[self.neighbours.ravel()[which]]], 1)
        expect(bool((self.pairs >= 0).all() and (self.pairs < most).all()), "regions: pairs",
               "numbers of boxes that the images have", "others")  # fmt: skip

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_neighbours(self) -> int:
        """K."""
        return self.neighbours.shape[1]

    def boxes_of(self, n: int) -> np.ndarray:
        """Boxes [R, 4] of image n."""
        return self.boxes[self.box_starts[n] : self.box_starts[n + 1]]

    def pairs_of(self, n: int, k: int) -> np.ndarray:
        """Pairs [P, 2] of image n and its neighbour k."""
        place = n * self.num_neighbours + k
        return self.pairs[self.pair_starts[place] : self.pair_starts[place + 1]]

    def draw(self, rows: np.ndarray, index: Tensor, rng: Rng) -> dict[str, np.ndarray]:
        """For each image one of its boxes, one of its neighbours, and one of the pairs with that, all uniformly.

        Args:
            rows: [B] of this table.
            index: [B] stable numbers of the samples.
            rng: of the draws.

        Returns:
            "box", "query" and "key": boxes [B, 4], the last one of the neighbour; "neighbour": its row [B].
        """
        u = rng.uniform(index, "regions.draw", 3).double().numpy()

        def one_of(starts: np.ndarray, group: np.ndarray, draw: np.ndarray) -> np.ndarray:
            return starts[group] + (draw * (starts[group + 1] - starts[group])).astype(np.int64)

        k = (u[:, 0] * self.num_neighbours).astype(np.int64)
        neighbour = self.neighbours[rows, k]
        pair = self.pairs[one_of(self.pair_starts, rows * self.num_neighbours + k, u[:, 2])]
        return {
            "box": self.boxes[one_of(self.box_starts, rows, u[:, 1])],
            "query": self.boxes[self.box_starts[rows] + pair[:, 0]],
            "key": self.boxes[self.box_starts[neighbour] + pair[:, 1]],
            "neighbour": neighbour,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The parts by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def save(self, path: str | Path) -> None:
        """Writes a .npz file."""
        np.savez(path, **self.arrays())  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> Correspondence:
        """Reads it back.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file lacks an array, has another, or they do not fit.
        """
        expect(Path(path).is_file(), "method.regions", "a file of regions", str(path), FileNotFoundError)
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            with np.load(path, allow_pickle=False) as found:
                have = {name: found[name] for name in found.files}
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"method.regions: expected an .npz file of numbers, received {path}: {error}") from error
        expect(sorted(have) == sorted(names), f"method.regions: {path}", f"arrays {', '.join(names)}", sorted(have))
        return cls(**have)


class RegionSource:
    """A source whose samples also have `patches`, uint8 [4, C, S, S], drawn anew in each pass of a loader.

    Patch 0 is a box of the image and 1 that box jittered; 2 is another of its boxes and 3 the box of a neighbour that
    corresponds to it.

    Args:
        source: where images come from, with the numbers that `found` names.
        found: boxes, neighbours and pairs.
        side: S.
    """

    def __init__(self, source: Source, found: Correspondence, side: int) -> None:
        expect(side >= 1, "side", "1 pixel or more", side)
        expect(int(found.index.max()) < len(source), "method.regions", f"numbers of the {len(source)} images of "
               f"{source.name}", int(found.index.max()))  # fmt: skip
        self.source, self.found, self.side = source, found, side
        self.name, self.shape, self.labels = source.name, source.shape, source.labels
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.rows = np.full(len(source), -1)
        self.rows[found.index] = np.arange(len(found))
        if hasattr(source, "batch"):
            self.batch = self._batch

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self.source[i]
        return {**sample, "patches": self._patches([sample["image"]], np.array([i]))[0]}

    def _batch(self, positions: np.ndarray) -> Batch:
        batch: Batch = self.source.batch(positions)  # type: ignore[attr-defined]
        images = [batch["image"][b] for b in range(len(positions))]
        return {**batch, "patches": torch.from_numpy(self._patches(images, np.asarray(positions)))}

    def _patches(self, images: Sequence[Any], positions: np.ndarray) -> np.ndarray:
        """[B, 4, C, S, S]."""
        rows = self.rows[positions]
        for i in positions[rows < 0].tolist():  # it could not be read when regions were looked for
            raise BadSample(Fault(i, self.path(i), "it has no regions"))
        index, rng = torch.from_numpy(positions.astype(np.int64)), Rng(*this_pass())
        drawn = self.found.draw(rows, index, rng)
        draws = rng.uniform(index, "regions.jitter", 4 * regions.TRIES).view(len(rows), -1, 4)
        pictures = [torch.as_tensor(image) for image in images]
        sizes = torch.tensor([[picture.shape[2], picture.shape[1]] for picture in pictures])
        for b, (width, height) in enumerate(sizes.tolist()):
            regions.check_boxes(np.stack([drawn["box"][b], drawn["query"][b]]), (width, height),
                                f"method.regions: boxes of {self.path(int(positions[b]))}")  # fmt: skip
        near = regions.jitter(torch.from_numpy(drawn["box"]), sizes, draws)
        out = np.empty((len(rows), 4, len(pictures[0]), self.side, self.side), np.uint8)
        for b, picture in enumerate(pictures):
            other = int(self.found.index[drawn["neighbour"][b]])
            neighbour = torch.as_tensor(self.source[other]["image"])
            regions.check_boxes(drawn["key"][b : b + 1], (neighbour.shape[2], neighbour.shape[1]),
                                f"method.regions: boxes of {self.path(other)}")  # fmt: skip
            chosen = ((picture, drawn["box"][b]), (picture, near[b]), (picture, drawn["query"][b]),
                      (neighbour, drawn["key"][b]))  # fmt: skip
            for p, (whole_image, box) in enumerate(chosen):
                out[b, p] = regions.cut(whole_image, box.tolist(), self.side).numpy()
        return out

    def column(self, name: str) -> np.ndarray | None:
        """A column of the source."""
        return getattr(self.source, "column", lambda _: None)(name)

    def path(self, i: int) -> str:
        """Where the image came from."""
        return self.source.path(i)

    def fingerprint(self) -> str:
        """Hash of the source's fingerprint and of the regions."""
        return digest(self.source.fingerprint(), str(self.side), *self.found.arrays().values())


def with_regions(source: Source, found: Correspondence, side: int) -> Source:
    """The source around `RegionSource`, at the bottom of its subsets, so that samples keep their numbers."""
    if isinstance(source, Subset):
        return Subset(with_regions(source.source, found, side), source.positions, source.name)
    bare = source.source if isinstance(source, RegionSource) else source
    return RegionSource(bare, found, side)
