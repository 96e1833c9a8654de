"""CUT: a GAN whose output, patch by patch, tells its place in the input from the other places.

Legend: B images of both domains, V views, C channels, P places of a layer, D width of compared vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nearfar import distributed
from nearfar.adversarial import least_squares, r1
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.method import Engine, Method, Progress, Terms, Views
from nearfar.objectives import patch_nce
from nearfar.rng import Rng
from nearfar_images.translation import STEP, Generator, PatchDiscriminator, PatchHeads

if TYPE_CHECKING:
    from nearfar_images.systems.cut import CutConfig

SOURCE, TARGET = "a", "b"
"""names of the two sources: what is translated, and what it is to look like"""


class Cut(Method):
    """A generator from domain a to domain b, a discriminator of patches, and heads for the contrast of patches.

    Args:
        config: networks, layers, weights.
        info: its `shape` (C, S, S) gives channels.
        views: of pixels in [0, 1]; each is an image of its own, e.g. a crop of a single picture.

    Attributes:
        generator, discriminator, heads: the networks; no heads where the contrast has no weight.

    Raises:
        ValueError: images whose sides are no multiples of 4, or too small for the discriminator; normalised views.

    Notes:
        An update makes two steps. The discriminator learns from translations without their gradient; then generator
        and heads learn from GAN and contrast, for which the discriminator is a fixed function. The gradient of a query
        flows through the generator twice, as what made the output and as what describes it. Over several processes
        either step sends the gradients of all, zeros for the part that stands still; negatives beyond an image's own
        come from all processes.

    Source: Park, Efros, Zhang, Zhu, "Contrastive Learning for Unpaired Image-to-Image Translation", ECCV 2020.
    """

    cache = "no: it makes two updates"

    def __init__(self, config: CutConfig, info: DataInfo, views: Views) -> None:
        super().__init__()
        expect(len(info.shape) == 3, "info.shape", "(C, H, W)", info.shape)
        self.config, self.make_views = config, views
        mean = getattr(getattr(views, "config", None), "mean", ())
        expect(not mean, "views.mean", "none, since pixels are scaled to [-1, 1] anyhow", mean)
        self.generator = Generator(info.shape[0], width=config.width, num_blocks=config.num_blocks)
        self.discriminator = PatchDiscriminator(
            info.shape[0], width=config.discriminator_width, num_layers=config.discriminator_layers,
            norm=config.discriminator_norm,
        )  # fmt: skip
        side: int = getattr(views, "view_size", info.shape[1])
        for name, size in (("data.image_size", info.shape[1]), ("views.global_size", side)):
            expect(size % STEP == 0, name, f"a multiple of {STEP}", size)
        least = self.discriminator.least
        expect(side >= least, "method.discriminator_layers", f"fewer, or images of {least} pixels a side", side)
        with torch.no_grad():  # a dry run, so that the heads exist before the optimiser does
            maps = self.generator.taps(torch.zeros(1, info.shape[0], side, side), config.layers)
        self.num_cells = [m.shape[2] * m.shape[3] for m in maps]
        self.heads = PatchHeads([m.shape[1] for m in maps], config.dim) if config.weight else None

    def optimisers(self) -> dict[str, Iterable[nn.Parameter]]:
        """Generator and heads; the discriminator."""
        makers = [self.generator, *([self.heads] if self.heads is not None else [])]
        return {
            "main": [p for part in makers for p in part.parameters() if p.requires_grad],
            "discriminator": [p for p in self.discriminator.parameters() if p.requires_grad],
        }

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The views; `places`, of every layer [B, V, P] cells that differ; `mirror` [B, V] bool."""
        index, config = batch["index"], self.config
        made = self.make_views(batch["image"], index, rng)
        draws = [rng.at(view=v) for v in range(len(made))]
        places = []
        if self.heads is not None:
            for layer, num in zip(config.layers, self.num_cells, strict=True):
                cells = [draw.uniform(index, f"cut.places.{layer}", num) for draw in draws]
                places.append(torch.stack([x.topk(min(config.num_patches, num)).indices for x in cells], 1))
        mirror = torch.cat([draw.uniform(index, "cut.mirror") < config.mirror for draw in draws], 1)
        rest = {name: value for name, value in batch.items() if name != "image"}
        return rest | {"views": made, "places": places, "mirror": mirror}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """What the generator makes [B, V, C, S, S] of the images of a and, where it is compared, of b.

        Images of b that nothing is compared with stay as they are; mirrored ones come out mirrored.
        """
        x, rows = self._inputs(batch), self._made(batch)
        found = self.generator(x[rows].flatten(0, 1)).unflatten(0, (-1, x.shape[1]))
        made = x.to(found.dtype, copy=True)  # autocast chooses another
        made[rows] = found
        return {"made": made}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The terms of both steps; no gradient of one meets the parameters of the other."""
        terms, judged = self.translate_terms(z, batch), self.judge_terms(z, batch)
        for name, value in judged.values.items():
            terms.add(name, value, weight=judged.weights[name], count=judged.counts[name])
        return terms

    def update(self, batch: Batch, engine: Engine) -> Terms:
        """The discriminator's step, then the generator's."""
        z = engine.call("encode", batch)
        judged = engine.call("judge_terms", {name: value.detach() for name, value in z.items()}, batch)
        engine.backward(judged, name="discriminator")
        if not engine.step("discriminator"):
            return judged
        terms = engine.call("translate_terms", z, batch)
        engine.backward(terms)
        engine.step()
        return terms.log(discriminator=judged.total)

    def judge_terms(self, z: Mapping[str, Tensor], batch: Batch) -> Terms:
        """The discriminator's: half of either side, and the penalty; the makers' gradients are zero."""
        a, b = self._domains(batch)
        fake, real = z["made"][a].detach().flatten(0, 1), self._pixels(batch)[b].flatten(0, 1)
        score_fake, score_real = self.discriminator(fake), self.discriminator(real)
        terms = Terms().add("fake", least_squares(score_fake, 0), weight=0.5, count=len(fake))
        terms.add("real", least_squares(score_real, 1) + _nothing(self.generator, self.heads), weight=0.5,
                  count=len(real))  # fmt: skip
        if self.config.r1:
            terms.add("r1", r1(self.discriminator, real), weight=self.config.r1, count=len(real))
        return terms

    def translate_terms(self, z: Mapping[str, Tensor], batch: Batch) -> Terms:
        """GAN, contrast and identity of generator and heads; the discriminator's gradients are zero."""
        config, (a, b) = self.config, self._domains(batch)
        fake = z["made"][a].flatten(0, 1)
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        score = functional_call(self.discriminator, fixed, (fake,))
        terms = Terms().add("gan", least_squares(score, 1) + _nothing(self.discriminator), count=len(fake))
        if self.heads is not None:
            share = 0.5 if config.identity else 1.0
            terms.add("contrast", self.contrast(z["made"], batch, a), weight=share * config.weight, count=len(fake))
            if config.identity:
                same = self.contrast(z["made"], batch, b)
                terms.add("identity", same, weight=share * config.weight, count=int(b.sum()) * len(batch["views"]))
        if config.l1:
            off = (z["made"][b].float() - self._inputs(batch)[b]).abs().mean()
            terms.add("l1", off, weight=config.l1, count=int(b.sum()) * len(batch["views"]))
        return terms

    def contrast(self, made: Tensor, batch: Batch, rows: Tensor) -> Tensor:
        """PatchNCE of some rows' outputs [B, V, C, S, S] with their inputs, a mean over layers."""
        expect(self.heads is not None, "method.weight", "above 0", self.config.weight)
        config, generator = self.config, self.generator
        places = [place[rows].flatten(0, 1) for place in batch["places"]]
        mirror = batch["mirror"][rows].flatten()
        maps = [_mirrored(m, mirror) for m in generator.taps(made[rows].flatten(0, 1), config.layers)]
        queries = self.heads(maps, places)  # type: ignore[misc]
        with torch.no_grad():
            own = generator.taps(self._pixels(batch)[rows].flatten(0, 1), config.layers)
            keys = self.heads(own, places)  # type: ignore[misc]
        across = config.negatives != "image"
        losses = [
            patch_nce(q, k, temperature=config.temperature, across=across, within=config.negatives != "others",
                      extra=_elsewhere(k) if across else None)
            for q, k in zip(queries, keys, strict=True)
        ]  # fmt: skip
        return torch.stack(losses).mean()

    def _pixels(self, batch: Batch) -> Tensor:
        """Images [B, V, C, S, S] in [-1, 1]."""
        return torch.stack([view.data for view in batch["views"]], 1) * 2 - 1

    def _inputs(self, batch: Batch) -> Tensor:
        """The same as the generator sees them, some mirrored."""
        x = self._pixels(batch)
        return _mirrored(x.flatten(0, 1), batch["mirror"].flatten()).unflatten(0, x.shape[:2])

    def _domains(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Masks [B] of the images of a and of b."""
        names: Sequence[str] = batch.get("sources", ())
        expect(
            sorted(names) == [SOURCE, TARGET], "data.sources", f"two, named {SOURCE} and {TARGET}: "
            f"--data.sources {SOURCE}=FOLDER {TARGET}=FOLDER", ", ".join(names) or "none",
        )  # fmt: skip
        a, b = (batch["group"] == names.index(name) for name in (SOURCE, TARGET))
        expect(
            bool(a.any()) and bool(b.any()), "sampler.shares", "images of both domains in the batch of every process",
            f"{int(a.sum())} of {SOURCE} and {int(b.sum())} of {TARGET}",
        )  # fmt: skip
        return a, b

    def _made(self, batch: Batch) -> Tensor:
        """Mask [B] of the images that the generator is given."""
        a, b = self._domains(batch)
        return a | b if (self.heads is not None and self.config.identity) or self.config.l1 else a

    # -- what users keep -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def translate(self, image: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in [0, 1] of domain a as those of domain b, of the same size, in [0, 1].

        Raises:
            ValueError: other channels than it was trained for, or sides that are no multiples of 4.
        """
        return ((self.generator(image * 2 - 1) + 1) / 2).clamp(0, 1)

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """The generator's last residual block [B, 4 width], averaged over places of the plain view."""
        x = self.make_views.plain(batch["image"]) * 2 - 1
        return self.generator.taps(x, (self.generator.num_taps - 1,))[0].mean((2, 3))


def _mirrored(x: Tensor, rows: Tensor) -> Tensor:
    """Maps [N, C, H, W], those of the rows [N] mirrored left to right."""
    return torch.where(rows[:, None, None, None], x.flip(3), x)


def _elsewhere(key_BPD: Tensor) -> Tensor | None:
    """Keys [K, D] of the other processes."""
    if distributed.world() == 1:
        return None
    flat = key_BPD.flatten(0, 1)
    everyone, start = distributed.gather(flat, grad=False), distributed.offset(len(flat))
    return torch.cat([everyone[:start], everyone[start + len(flat) :]])


def _nothing(*parts: nn.Module | None) -> Tensor:
    """Zero, with a gradient of zero to every parameter that several processes hold whole and send the gradient of."""
    if distributed.world() == 1:
        return torch.zeros(())
    whole = [p for part in parts if part is not None for p in part.parameters()]
    met = [p.flatten()[0] for p in whole if p.requires_grad and distributed.local(p) is p]
    return 0.0 * torch.stack(met).float().sum() if met else torch.zeros(())
