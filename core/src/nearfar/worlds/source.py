"""A world as a source of labelled images for the trainer and the image plugin."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nearfar.batch import Batch, Ragged, collate, take
from nearfar.checks import expect, expect_choice
from nearfar.data.source import digest
from nearfar.worlds.factors import SCENE_FACTORS
from nearfar.worlds.layout import Layout

if TYPE_CHECKING:
    from nearfar.worlds.scenes import Scenes

_CHUNK = 512


class SceneSource:
    """Scenes 0 .. n - 1 of a seed, as `nearfar.data.Source`.

    Args:
        world: where they come from.
        n: how many.
        seed: which ones.
        label: factors that make the class: "num", those of the ground, or those of the largest thing, e.g. ("colour",
            "shape") with classes "red circle", ...; none: without labels.
        fields: further fields of a sample, e.g. "boxes", "caption", "mask_object".

    Notes: labels of all scenes are known by laying them out, which takes about a third of the time of drawing them.
    """

    def __init__(
        self, world: Scenes, n: int, seed: int = 0, *, label: Sequence[str] = ("shape",), fields: Sequence[str] = ()
    ) -> None:
        expect(n >= 0, "n", "0 or more", n)
        values = {**world.factors.names, "num": tuple(str(k) for k in range(world.factors.num[1] + 1))}
        values.pop("place", None)
        for factor in label:
            expect_choice("label", factor, values)
        self.world, self.n, self.seed, self.label, self.fields = world, n, seed, tuple(label), tuple(fields)
        self._sizes = [len(values[factor]) for factor in self.label]
        names = [""] if self.label else []
        for factor in self.label:
            names = [f"{first} {value}".strip() for first in names for value in values[factor]]
        self.class_names, self.num_classes = tuple(names), len(names)
        self.name = f"worlds {' '.join(self.label)}".strip()
        self.shape: tuple[int, ...] = (3, world.render.size, world.render.size)
        known = set(world.sample(1, seed)) - {"index", "image", "label"} if fields else set()
        for field in self.fields:
            expect_choice("fields", field, sorted(known))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Any]:
        """index, image, label and the further fields."""
        if not 0 <= i < self.n:
            raise IndexError(f"sample: expected a number from 0 to {self.n - 1}, received {i}")
        return self._samples(np.array([i]))[0]

    def batch(self, positions: np.ndarray) -> Batch:
        """Many samples at once."""
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) == 0:
            return take(collate([self[0]]), [])
        return collate(self._samples(positions))

    def _samples(self, positions: np.ndarray) -> list[dict[str, Any]]:
        batch = self.world.at(torch.from_numpy(positions), self.seed)
        labels = self._labels_of(Layout.of(batch)) if self.label else None
        samples = []
        for row, i in enumerate(positions.tolist()):
            sample: dict[str, Any] = {"index": i, "image": batch["image"][row]}
            if labels is not None:
                sample["label"] = int(labels[row])
            for field in self.fields:
                value = batch[field][row]
                sample[field] = value.clone() if isinstance(batch[field], Ragged) else value
            samples.append(sample)
        return samples

    @cached_property
    def labels(self) -> np.ndarray | None:  # int64 [N], as the protocol says
        if not self.label:
            return None
        parts = [torch.zeros(0, dtype=torch.int64)]
        for index in torch.arange(self.n).split(_CHUNK):
            if len(index):
                parts.append(self._labels_of(self.world.layout(index, self.seed)))
        return torch.cat(parts).numpy()

    def _labels_of(self, layout: Layout) -> torch.Tensor:
        largest = torch.where(layout.present, layout.radius, -1.0).argmax(dim=1)
        label = torch.zeros(len(layout), dtype=torch.int64)
        for factor, size in zip(self.label, self._sizes, strict=True):
            if factor == "num":
                value = layout.present.sum(dim=1)
            elif factor in SCENE_FACTORS:
                value = getattr(layout, factor)
            else:
                value = getattr(layout, factor).gather(1, largest[:, None])[:, 0]
            label = label * size + value
        return label

    def path(self, i: int) -> str:
        """The world's seed and the number."""
        return f"worlds[seed {self.seed}, scene {i}]"

    def fingerprint(self) -> str:
        """Hash of everything that the scenes depend on."""
        joint = self.world.joint
        settings = [dataclasses.asdict(part) for part in (self.world.factors, self.world.render)]
        return digest(
            "worlds-1", f"{settings} {self.world.say} {self.n} {self.seed} {self.label} {self.fields}",
            f"{joint.rules} {joint.unique}", joint.table.numpy(), joint.counts.numpy(),
        )  # fmt: skip
