"""Recovers a scene from pixels alone, so that pictures nobody drew by rule can be judged too.

Analysis by synthesis. Pixels are named by the nearest colour of the palette, shades included; the ground is what the
border shows. For every colour that occurs, all shapes and sizes are laid over all positions (one Fourier product), the
best are fitted to the pixels by rendering them, and the one that explains most is taken away, until nothing is left
that could be a thing. What is hidden counts neither for nor against a shape. Shapes: H side of the image.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import torch
from torch import Tensor

from nearfar.checks import expect
from nearfar.worlds.compose import compose
from nearfar.worlds.factors import Factors
from nearfar.worlds.fitting import TURN_STEP, Guess, cover, fit, frame, window
from nearfar.worlds.naming import Names, noise_of
from nearfar.worlds.render import Render
from nearfar.worlds.scene import Scene, Thing
from nearfar.worlds.scenes import Scenes
from nearfar.worlds.shapes import SYMMETRY
from nearfar.worlds.style import blurred

_TOO_NOISY = 0.22  # standard deviation of what varies from pixel to pixel
_HIDDEN = 0.15  # what it costs to lie, unseen, under something else, a pixel
_EDGE = 0.8  # pixels to either side of an outline whose mixed colours are nobody's


def read(image: Tensor, world: Scenes | None = None) -> Scene | None:
    """The scene that a picture shows; None: unreadable.

    Args:
        image: uint8 [3, H, H] or float in [0, 1].
        world: its factors and render settings say what may be there; by default `Scenes()`. Joint distribution,
            weather, blur and noise are not used: a picture is read as it comes.

    Raises:
        ValueError: another shape or size.

    Notes: radii far from those of the factors are not looked for. A picture without things is a scene without things;
    noise, a ground of no known colour, and pictures most of whose colour no thing explains are unreadable.
    """
    world = world or Scenes()
    side = world.render.size
    expect(image.shape == (3, side, side), "image", f"shape [3, {side}, {side}]", tuple(image.shape))
    pixels = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    return _reader(world.factors, world.render)(pixels, world)


@functools.lru_cache(maxsize=8)
def _reader(factors: Factors, render: Render) -> _Reader:
    return _Reader(factors, render)


class _Reader:
    """Palette and templates of one world."""

    def __init__(self, factors: Factors, render: Render) -> None:
        self.factors, self.render, side = factors, render, render.size
        self.names = Names(factors, render)
        self.keys: list[tuple[str, float, float]] = []
        for shape, middle in itertools.product(factors.shapes, factors.radii):
            small, large = (middle * side * (1 + sign * factors.size_jitter) for sign in (-1, 1))
            num = max(1, math.ceil((large - small) / 0.7))
            for radius in (small + (i + 0.5) * (large - small) / num for i in range(num)):
                self.keys += [(shape, radius, angle) for angle in self._angles(shape)]
        step = torch.arange(side, dtype=torch.float32)
        step = torch.where(step >= side / 2, step - side, step)  # a template's centre is that of the first pixel
        y, x = torch.meshgrid(step, step, indexing="ij")
        masks = torch.stack([cover(shape, r, *frame(r, angle, x, y)) for shape, r, angle in self.keys])
        self.areas = masks.sum(dim=(1, 2))
        self.spectra = torch.fft.rfft2(masks).conj()
        self.radii = torch.tensor([radius for _, radius, _ in self.keys])

    def _angles(self, shape: str) -> list[float]:
        low, high = self.factors.turn
        if low == high or SYMMETRY[shape] == 0:
            return [low]
        span = min(high - low, SYMMETRY[shape])
        num = max(1, round(span / TURN_STEP))
        return [low + (i + 0.5) * span / num for i in range(num)]

    def __call__(self, image: Tensor, world: Scenes) -> Scene | None:
        noise = noise_of(image)
        if noise > _TOO_NOISY:
            return None
        smooth = blurred(image[None], min(1.2, 0.5 + 5 * noise))[0] if noise > 0.03 else image
        named = self.names(smooth)
        if named is None:
            return None
        label, ground, ground_rgb = named
        guesses = self._things(smooth, label, ground, ground_rgb)
        if guesses is None:
            return None
        texture = self.names.ground_texture(smooth, label == ground)
        return compose(world, self._ordered(guesses, label), self.names.colours[ground], texture)

    def _things(self, image: Tensor, label: Tensor, ground: int, ground_rgb: Tensor) -> list[Guess] | None:
        """Takes one thing after another away from what has a colour; None if too much is left over."""
        label = label.clone()
        found: list[Guess] = []
        coloured = int(((label >= 0) & (label != ground)).sum())
        least = 0.2 * float(self.areas.min())
        best: dict[int, tuple[float, Guess] | None] = {}
        while len(found) < self.factors.num[1] + 2:
            for colour in label.unique().tolist():
                if colour >= 0 and colour != ground and colour not in best:
                    best[colour] = self._best(image, label, colour, ground, ground_rgb, least)
            candidates: list[tuple[float, Guess]] = [item for item in best.values() if item is not None]
            if not candidates:
                break
            _, guess = max(candidates, key=lambda item: item[0])
            found.append(guess)
            x, y = self._offsets(guess)
            halo = self._cover(guess, guess.radius + _EDGE, x, y) > 0.02
            band = halo & ~(self._cover(guess, max(guess.radius - _EDGE, 0.5), x, y) > 0.98)
            touched = label[halo].unique().tolist()
            label[halo & (label == guess.colour)] = -2  # explained
            label[band & (label != ground)] = -2
            best = {colour: item for colour, item in best.items() if colour not in touched}
            best.pop(guess.colour, None)
        left = int(((label >= 0) & (label != ground)).sum())
        if left > max(0.35 * coloured, 6 * least) or (not found and coloured > least):
            return None
        return found

    def _offsets(self, guess: Guess) -> tuple[Tensor, Tensor]:
        """Offsets (x, y) of all pixels from a guess's centre."""
        step = torch.arange(self.render.size) + 0.5
        y, x = torch.meshgrid(step - guess.y, step - guess.x, indexing="ij")
        return x, y

    @staticmethod
    def _cover(guess: Guess, radius: float, x: Tensor, y: Tensor) -> Tensor:
        return cover(guess.shape, radius, *frame(radius, guess.angle, x, y))

    def _best(
        self, image: Tensor, label: Tensor, colour: int, ground: int, ground_rgb: Tensor, least: float
    ) -> tuple[float, Guess] | None:
        """The thing of a colour that explains most of its pixels, and how many."""
        mine = label == colour
        if int(mine.sum()) < least:
            return None
        weight = torch.where(mine, 1.0, torch.where(label == ground, -1.0, -_HIDDEN))
        score = torch.fft.irfft2(torch.fft.rfft2(weight) * self.spectra, s=weight.shape)
        side = self.render.size
        step = torch.arange(side) + 0.5
        inside = (step >= self.radii[:, None] - 1) & (step <= side - self.radii[:, None] + 1)
        score = score.masked_fill(~(inside[:, :, None] & inside[:, None, :]), -math.inf)
        value, place = score.flatten(1).max(dim=1)
        order = value.argsort(descending=True).tolist()
        highest = float(value[order[0]])
        if highest < least:
            return None
        tried: dict[str, Guess] = {}
        # Few pixels tell outlines apart badly before they are fitted.
        floor, most = (0.4, 8) if highest < 40 else (0.6, 4)
        for i in order:
            shape, radius, angle = self.keys[i]
            if float(value[i]) < floor * highest or len(tried) == most:
                break
            if shape not in tried:
                y, x = divmod(int(place[i]), side)
                tried[shape] = Guess(shape, colour, "plain", x + 0.5, y + 0.5, radius, angle)
        guesses, reach = list(tried.values()), math.ceil(self.radii.max()) + 2
        view = window(guesses, reach, image, label, ground, ground_rgb, self.names.rgb[colour])
        rough = [fit(guess, view, self.factors, self.render, (0.8, 0.4, 0.4), first=True) for guess in guesses]
        lowest = min(guess.error for guess in rough)
        fine = [
            fit(guess, view, self.factors, self.render, (0.2, 0.2, 0.1))
            for guess in rough
            if guess.error <= 1.5 * lowest + 0.5
        ]
        return highest, min(fine, key=lambda guess: guess.error)

    def _ordered(self, guesses: list[Guess], label: Tensor) -> list[Thing]:
        """Things from back to front: of two that overlap, the nearer one's colour is seen where both are."""
        covers = [self._cover(guess, guess.radius, *self._offsets(guess)) > 0.7 for guess in guesses]
        behind: list[set[int]] = [set() for _ in guesses]  # behind[i]: what must be drawn before thing i
        for i, j in itertools.combinations(range(len(guesses)), 2):
            both = label[covers[i] & covers[j]]
            mine, other = (int((both == guesses[k].colour).sum()) for k in (i, j))
            if mine != other:
                near, far = (i, j) if mine > other else (j, i)
                behind[near].add(far)
        order: list[int] = []
        while len(order) < len(guesses):
            left = [i for i in range(len(guesses)) if i not in order]
            order.append(next((i for i in left if behind[i] <= set(order)), left[0]))
        names, radii = self.names.colours, self.factors.radii
        things = []
        for rank, i in enumerate(order):
            guess = guesses[i]
            off = [abs(math.log(guess.radius / (radius * self.render.size))) for radius in radii]
            size = self.factors.sizes[off.index(min(off))]
            depth = 1 - (rank + 1) / (len(order) + 1)
            thing = Thing(guess.shape, names[guess.colour], size, guess.texture, guess.x, guess.y, guess.radius)
            things.append(dataclasses.replace(thing, angle=guess.angle, depth=depth))
        return things
