"""Clips: the things of a scene move straight on, each at its own speed.

Shapes: B clips, T frames, N things of a batch, K the most things of a clip.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nearfar.batch import Batch
from nearfar.checks import expect, expect_choice
from nearfar.ragged import Ragged
from nearfar.rng import Rng
from nearfar.worlds.grammar import DIRECTIONS, Every, Moves, reword, text
from nearfar.worlds.layout import Layout
from nearfar.worlds.say import Say, describe
from nearfar.worlds.scene import Scene

if TYPE_CHECKING:
    from nearfar.worlds.scenes import Scenes


@dataclass(frozen=True)
class Motion:
    """How things move.

    Args:
        frames: of a clip.
        speeds: whole pixels a frame along each axis that a direction has; each thing draws one. 0 stands still.
        directions: from `nearfar.worlds.grammar.DIRECTIONS`; each thing draws one.
    """

    frames: int = 8
    speeds: tuple[int, ...] = (0, 1, 2)
    directions: tuple[str, ...] = ("left", "right", "up", "down")

    def __post_init__(self) -> None:
        expect(self.frames >= 2, "frames", "2 or more", self.frames)
        expect(len(self.speeds) > 0 and min(self.speeds) >= 0, "speeds", "whole numbers from 0", self.speeds)
        expect(len(self.directions) > 0, "directions", "at least one", self.directions)
        for name in self.directions:
            expect_choice("directions", name, DIRECTIONS)


def clip(world: Scenes, batch: Batch, motion: Motion, rng: Rng) -> Batch:
    """Clips of the things of a batch, moved to where their whole way lies within the picture.

    Returns:
        Fields as of the batch for frame 0, but for pixels: video uint8 [B, T, 3, H, W], mask_instance uint8
        [B, T, H, W]; by thing, Ragged: boxes and centre [., T, 4 or 2], motion float [., 2] in pixels a frame,
        direction int64, place in `DIRECTIONS` or their number for what stands still. The caption says how every thing
        moves, and is true.

    Raises:
        ValueError: a way that is longer than the picture.
    """
    layout = Layout.of(batch)
    num, most = layout.present.shape
    u = rng.uniform(layout.index, "worlds.motion", 2 * most).view(num, most, 2)
    speed = torch.tensor(motion.speeds)[(u[:, :, 0] * len(motion.speeds)).long()]
    chosen = (u[:, :, 1] * len(motion.directions)).long()
    step = speed[:, :, None] * torch.tensor([DIRECTIONS[name] for name in motion.directions])[chosen]
    number = torch.tensor([list(DIRECTIONS).index(name) for name in motion.directions])[chosen]
    number = torch.where(speed == 0, len(DIRECTIONS), number)
    side, way = world.render.size, step * (motion.frames - 1)
    reach = (layout.radius + 1)[:, :, None]
    low, high = reach - way.clamp_max(0), side - reach - way.clamp_min(0)
    longest = float((low - high)[layout.present].max()) if bool(layout.present.any()) else 0.0
    expect(longest <= 0, "motion", f"ways within {side} pixels", f"{longest:.1f} pixels more")
    start = torch.maximum(torch.minimum(layout.centre, high), low)
    frames = [
        world.draw(dataclasses.replace(layout, centre=start + t * step), rng, frame=t) for t in range(motion.frames)
    ]
    lengths = batch["num"]
    clip: Batch = {name: value for name, value in frames[0].items() if name != "image"}
    clip["video"] = torch.stack([frame["image"] for frame in frames], dim=1)
    clip["mask_instance"] = torch.stack([frame["mask_instance"] for frame in frames], dim=1)
    for name in ("boxes", "centre"):
        tracks = torch.stack([frame[name].values for frame in frames], dim=1)
        clip[name] = Ragged.from_lengths(tracks, lengths)
    clip["motion"] = Ragged.from_lengths(step[layout.present].float(), lengths)
    clip["direction"] = Ragged.from_lengths(number[layout.present], lengths)
    directions = [clip["direction"][i].tolist() for i in range(len(layout))]
    told = zip(world.scenes(clip), directions, strict=True)
    clip["caption"] = [_told(scene, numbers, world.say) for scene, numbers in told]
    clip["caption_true"] = torch.ones(len(layout), dtype=torch.bool)
    return clip


def _told(scene: Scene, directions: list[int], say: Say) -> str:
    """What every thing does, e.g. "a red circle moves left and a blue star stands still"."""
    names = [*DIRECTIONS, "not"]
    nouns = [describe(scene, i, say.mention or ("shape", "colour")) for i in range(len(scene.things))]
    moves = dict.fromkeys(Moves(noun, names[number]) for noun, number in zip(nouns, directions, strict=True))
    return reword(text(Every(tuple(moves))), say.words)
