"""A world: scenes by the batch, and everything that can be said, asked, changed or moved in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.ragged import Ragged
from nearfar.rng import Rng
from nearfar.worlds.ask import QUESTIONS, Questions, questions
from nearfar.worlds.edit import EDITS, Edited, edit
from nearfar.worlds.factors import Factors
from nearfar.worlds.grammar import Noun
from nearfar.worlds.joint import Joint
from nearfar.worlds.layout import Layout
from nearfar.worlds.motion import Motion, clip
from nearfar.worlds.render import Render, render_layout, settle
from nearfar.worlds.say import Captions, Say, captions
from nearfar.worlds.scene import ASIDE, BIGGER, IN_FRONT, Scene, Thing
from nearfar.worlds.source import SceneSource


class Scenes:
    """A world of scenes.

    Args:
        factors: what there is.
        joint: how often which combination occurs; by default all alike.
        render: how it is drawn.
        say: which captions go with the pictures.

    >>> batch = Scenes().sample(4, seed=0)
    >>> batch["image"].shape, len(batch["caption"])
    (torch.Size([4, 3, 64, 64]), 4)
    """

    def __init__(
        self,
        factors: Factors | None = None,
        joint: Joint | None = None,
        render: Render | None = None,
        say: Say | None = None,
    ) -> None:
        self.factors = factors or (joint.factors if joint else Factors())
        self.joint = joint or Joint(self.factors)
        self.render, self.say = render or Render(), say or Say()
        expect(self.joint.factors == self.factors, "joint", "one over the same factors", "one over others")

    def sample(self, n: int, seed: int = 0, start: int = 0) -> Batch:
        """Scenes number start .. start + n - 1 of a seed; a scene does not depend on the batch it stands in.

        Returns:
            what `at` returns.
        """
        expect(n >= 0, "n", "0 or more", n)
        return self.at(torch.arange(start, start + n), seed)

    def at(self, index: Tensor, seed: int = 0) -> Batch:
        """The scenes with these numbers, with pixels, all labels and one caption each.

        Args:
            index: int64 [B].

        Returns:
            Fields by scene: index, image uint8 [B, 3, H, W]; num, background, ground int64 [B], ground_rgb [B, 3],
            phase [B, 2]; mask_instance (k + 1 is thing k), mask_object (1 + shape) and mask_part (1 upper, 2 lower)
            uint8, depth_map and saliency float32 [B, H, W], 0 or the farthest on the ground; caption list[str],
            caption_true bool [B]. By thing, Ragged, from back to front: boxes [., 4] of what is seen, visible, shape,
            colour, size, texture, centre [., 2], radius, angle, contrast, depth, rgb [., 3]. relations [., 3]: thing,
            number in `RELATIONS`, thing. overlap [n, n]: share of the smaller one's area that two things both cover.
        """
        rng = Rng(seed)
        return self.draw(settle(self.joint, self.render, index, rng), rng)

    def layout(self, index: Tensor, seed: int = 0) -> Layout:
        """What `at` would draw, without drawing it."""
        return settle(self.joint, self.render, index, Rng(seed))

    def captions(self, batch: Batch, say: Say, seed: int = 0) -> Captions:
        """Captions of another kind for scenes of this world."""
        return captions(self.scenes(batch), say, self.factors, batch["index"], Rng(seed))

    def questions(
        self,
        batch: Batch,
        kinds: Sequence[str] = QUESTIONS,
        num: int = 1,
        *,
        yes: float = 0.5,
        nouns: Sequence[Noun] = (),
        seed: int = 0,
    ) -> Questions:
        """Questions about scenes of this world with their answers; arguments as for `nearfar.worlds.ask.questions`."""
        scenes, rng = self.scenes(batch), Rng(seed)
        return questions(scenes, self.factors, batch["index"], rng, kinds=kinds, num=num, yes=yes, nouns=nouns)

    def edit(
        self, batch: Batch, kinds: Sequence[str] = EDITS, num: tuple[int, int] = (1, 1), *, seed: int = 0
    ) -> Edited:
        """Scenes of this world and how they look after a told change; arguments as for `nearfar.worlds.edit.edit`."""
        return edit(self, batch, Rng(seed), kinds, num)

    def clip(self, batch: Batch, motion: Motion | None = None, *, seed: int = 0) -> Batch:
        """Clips in which the things of these scenes move; see `nearfar.worlds.motion.clip`."""
        return clip(self, batch, motion or Motion(), Rng(seed))

    def source(
        self, n: int, seed: int = 0, *, label: Sequence[str] = ("shape",), fields: Sequence[str] = ()
    ) -> SceneSource:
        """Scenes 0 .. n - 1 of a seed for a Trainer or a Loader; arguments as for `SceneSource`."""
        return SceneSource(self, n, seed, label=label, fields=fields)

    def scenes(self, batch: Batch) -> list[Scene]:
        """The scenes of a batch in words and numbers; of clips the first frame, with motion."""
        names = self.factors.names

        def named(name: str) -> list[str]:
            return [names[name][i] for i in batch[name].values.tolist()]

        def first(name: str) -> list[list[float]]:
            tracks = batch[name].values
            return (tracks[:, 0] if tracks.ndim == 3 else tracks).tolist()

        numbers = [batch[name].values.tolist() for name in ("radius", "angle", "contrast", "depth")]
        visible = batch["visible"].values.tolist()
        motion = batch["motion"].values.tolist() if "motion" in batch else [None] * len(visible)
        columns = (named("shape"), named("colour"), named("size"), named("texture"), first("centre"), *numbers)
        things = [
            Thing(shape, colour, size, texture, x, y, r, angle, contrast, depth, tuple(box), seen, step and tuple(step))
            for shape, colour, size, texture, (x, y), r, angle, contrast, depth, box, seen, step in zip(
                *columns, first("boxes"), visible, motion, strict=True
            )
        ]
        offsets = batch["boxes"].offsets.tolist()
        backgrounds, grounds = batch["background"].tolist(), batch["ground"].tolist()
        width = height = self.render.size
        shared = [batch["overlap"][i].tolist() for i in range(len(backgrounds))]
        return [
            Scene(
                tuple(things[start:stop]), names["background"][b], names["ground"][g], width, height,
                tuple(tuple(row) for row in overlap),
            )
            for start, stop, b, g, overlap in zip(
                offsets[:-1], offsets[1:], backgrounds, grounds, shared, strict=True
            )
        ]  # fmt: skip

    def draw(self, layout: Layout, rng: Rng, frame: int = 0) -> Batch:
        """Pixels, labels and captions of a layout, as `at` returns them.

        Args:
            frame: of a clip: noise and light are drawn for each anew, weather stays.
        """
        drawn = render_layout(layout, self.factors, self.render, rng, frame)
        batch: dict[str, Any] = {**layout.columns(), **drawn}
        batch["relations"] = relations(layout, batch.pop("shared"), self.render.size)
        said = captions(self.scenes(batch), self.say, self.factors, layout.index, rng)
        batch["caption"], batch["caption_true"] = said.text, said.true
        return batch


def relations(layout: Layout, overlap: Tensor, size: int) -> Ragged:
    """Scene graphs: int64 [., 3], rows (thing, number in `RELATIONS`, thing), as `Scene.graph` gives them, other order.

    Args:
        overlap: [B, K, K], shares of the smaller area.
    """
    x, y = layout.centre.unbind(dim=-1)

    def pairs(values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:, :, None], values[:, None, :]

    (x_i, x_j), (y_i, y_j), (r_i, r_j) = pairs(x), pairs(y), pairs(layout.radius)
    later = pairs(torch.arange(x.shape[1]).expand_as(x))
    (c_i, c_j), (s_i, s_j) = pairs(layout.colour), pairs(layout.shape)
    table = torch.stack(
        [
            x_j - x_i > ASIDE * size, y_j - y_i > ASIDE * size, (later[0] > later[1]) & (overlap > IN_FRONT),
            r_i > BIGGER * r_j, c_i == c_j, s_i == s_j,
        ], dim=1,
    )  # fmt: skip
    there = layout.present[:, :, None] & layout.present[:, None]
    there &= ~torch.eye(x.shape[1], dtype=torch.bool)
    row, relation, i, j = (table & there[:, None]).nonzero(as_tuple=True)
    values = torch.stack([i, relation, j], dim=1)
    return Ragged.from_lengths(values, torch.bincount(row, minlength=len(layout)))
