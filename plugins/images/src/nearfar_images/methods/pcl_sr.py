"""PCL-SR: an L1 loss, a contrast with sharper and blurrier pictures, and the embedding in which they are compared.

Legend: B batch, V crops of a picture, C channels, S side of a crop, h w of the small picture, P positives, N negatives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch, View
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.data import Loader, Source
from nearfar.evaluate import Score
from nearfar.method import Engine, Method, Progress, Terms, Views
from nearfar.objectives import discriminator, map_contrast
from nearfar.rng import Rng
from nearfar.samplers import Sequential
from nearfar.wavelet import haar
from nearfar_images import restoration, upscalers
from nearfar_images.methods._fine_detail import FineDetail

if TYPE_CHECKING:
    from nearfar_images.systems.pcl_sr import NetworkConfig, PCLSRConfig


@runtime_checkable
class Embedder(Protocol):
    """What pictures are compared by."""

    def maps(self, image: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Maps [B, D, h, w] of pictures [B, C, S, S], with gradient to the pictures and none to parameters."""
        ...


class PCLSR(Method):
    """A network that enlarges pictures, and an embedding network that learns what fine detail looks like.

    Args:
        config: scale, contrast, embedding.
        info: its `shape` (C, S, S) gives the crops.
        network: yours instead of the config's, from [B, C, h, w] to [B, C, s h, s w], values in [0, 1].
        embedder: yours instead of a random one, with embedding="frozen".
        views: its `plain` prepares pictures for `features`.

    Attributes:
        network: G.
        embedder: E; None for the L1 loss alone.

    Raises:
        ValueError: crops that scale or wavelet do not divide; an embedder of yours that should learn.
        TypeError: an embedder without `maps`.

    Notes:
        An update makes two steps. The discriminator learns from the enlarged pictures without their gradient; then the
        network learns from L1 and the contrast, for which E is a fixed function (weights without gradient, batch norms
        by their running statistics) that lets the gradient of the enlarged picture through. Over several processes
        either step sends the gradients of both, zeros for the part that stands still.

    Source: Wu, Jiang, Liu, "A Practical Contrastive Learning Framework for Single-Image Super-Resolution", IEEE TNNLS
        2023.
    """

    cache = "no: it makes two updates"

    def __init__(
        self,
        config: PCLSRConfig,
        info: DataInfo,
        *,
        network: nn.Module | None = None,
        embedder: nn.Module | None = None,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        expect(len(info.shape) == 3 and info.shape[1] == info.shape[2], "info.shape", "(C, S, S)", info.shape)
        self.config, self.make_views = config, views
        channels, self.side = info.shape[:2]
        step = math.lcm(config.scale, 2)
        least = max(step, restoration.KERNELS[-1] + 1)
        expect(
            self.side % step == 0 and self.side >= least, "data.image_size",
            f"a multiple of {step} from {least} on, for scale {config.scale} and the wavelet", self.side,
        )  # fmt: skip
        self.network = network if network is not None else make_network(config.network, config.scale, channels)
        frozen = config.embedding == "frozen"
        expect(embedder is None or (frozen and config.contrast != "none"), "embedder",
               "none but with embedding 'frozen' and a contrast", type(embedder).__name__)  # fmt: skip
        self.embedder: Any = None
        if config.contrast != "none":
            bias = config.judge in ("bce", "lsgan")
            made = embedder if embedder is not None else FineDetail(channels, config.width, bias)
            has_maps = isinstance(made, Embedder)
            expect(has_maps, "embedder", "a method maps(image, layers)", type(made).__name__, TypeError)
            self.embedder = made.requires_grad_(not frozen)
        self.learns = self.embedder is not None and not frozen

    def train(self, mode: bool = True) -> PCLSR:
        """As usual, but a frozen embedding stays in evaluation mode."""
        super().train(mode)
        if self.embedder is not None and not self.learns:
            self.embedder.eval()
        return self

    def optimisers(self) -> dict[str, Iterable[nn.Parameter]]:
        """The network's, and the discriminator's where it learns."""
        groups: dict[str, Iterable[nn.Parameter]] = {"main": [p for p in self.network.parameters() if p.requires_grad]}
        if self.learns:
            groups["embedder"] = list(self.embedder.parameters())
        return groups

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """True crops as `views`, and for every crop its small version and its references.

        `low` is [B, V, C, h, w]; `positive` [B, V, P, C, S, S] begins with the true crop, `negative` [B, V, N, C, S, S]
        with the bicubic one.
        """
        index, config = batch["index"], self.config
        made, parts = [], []
        for v in range(config.num_crops):
            draws = rng.at(view=v)
            high = restoration.crops(batch["image"], index, draws, self.side)
            low = restoration.quantise(upscalers.reduce(high, config.scale))
            made.append(View(high))
            parts.append({"low": low})
            if self.embedder is None:
                continue
            bicubic = restoration.quantise(upscalers.enlarge(low, config.scale))
            num = config.num_samples
            sharper = restoration.sharpened(high, index, draws, num, config.sharpen)
            blurrier = restoration.blurred(high, index, draws, num, config.blur)
            parts[-1] |= {
                "positive": torch.cat([high[:, None], sharper], 1),
                "negative": torch.cat([bicubic[:, None], blurrier], 1),
            }
        rest = {name: value for name, value in batch.items() if name != "image"}
        return rest | {"views": made} | {name: torch.stack([p[name] for p in parts], 1) for name in parts[0]}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Enlarged crops [B, V, C, S, S]."""
        low = batch["low"]
        flat = low.flatten(0, 1)
        made = self.network(flat)
        upscalers.check_size(made, flat, self.config.scale)
        return {"restored": made.unflatten(0, low.shape[:2])}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The terms of both steps; no gradient of one meets the parameters of the other."""
        terms = self.restore(z, batch)
        return terms.add("embedder", self.judge(z, batch), count=len(batch["index"])) if self.learns else terms

    def update(self, batch: Batch, engine: Engine) -> Terms:
        """The discriminator's step, then the network's."""
        z = engine.call("encode", batch)
        judged: Tensor | None = None
        if self.learns:
            fixed = {name: value.detach() for name, value in z.items()}
            terms = engine.call("judge_terms", fixed, batch)
            judged = terms.total.detach()
            engine.backward(terms, name="embedder")
            if not engine.step("embedder"):
                return terms
        terms = engine.call("restore_terms", z, batch)
        engine.backward(terms)
        engine.step()
        return terms if judged is None else terms.log(embedder=judged)

    def restore_terms(self, z: Mapping[str, Tensor], batch: Batch) -> Terms:
        """L1 and the contrast; the discriminator's parameters take part with a gradient of zero."""
        terms = self.restore(z, batch)
        if self.learns:
            terms.values["l1"] = terms.values["l1"] + _nothing(self.embedder)
        return terms

    def judge_terms(self, z: Mapping[str, Tensor], batch: Batch) -> Terms:
        """The discriminator's loss; the network's parameters take part with a gradient of zero."""
        return Terms().add("judge", self.judge(z, batch) + _nothing(self.network), count=len(batch["index"]))

    def restore(self, z: Mapping[str, Tensor], batch: Batch) -> Terms:
        """L1 to the true crop, and the contrast."""
        made, true = _flat(z, batch)
        num = len(batch["index"])
        terms = Terms().add("l1", (made - true).abs().mean(), count=num)
        if self.embedder is None:
            return terms
        return terms.add("contrast", self.contrast(made, batch), weight=self.config.weight, count=num)

    def contrast(self, made: Tensor, batch: Batch) -> Tensor:
        """The contrast of enlarged crops [B V, C, S, S], a mean over layers."""
        config = self.config
        found = self.embedder.maps(made, config.layers)
        with torch.no_grad():
            sides = [self._references(batch[name]) for name in ("positive", "negative")]
        losses = [
            map_contrast(m, positive, negative, form=config.contrast, temperature=config.temperature)  # type: ignore[arg-type]
            for m, positive, negative in zip(found, *sides, strict=True)
        ]
        return torch.stack(losses).mean()

    def judge(self, z: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The discriminator's loss of enlarged crops without their gradient; in one pass, for one set of statistics."""
        made, true = _flat(z, batch)
        real, fake = [true], [made.detach()]
        if self.config.judge_samples:
            real.append(batch["positive"][:, :, 1:].flatten(0, 2))
            fake.append(batch["negative"][:, :, 1:].flatten(0, 2))
        logits = self.embedder(torch.cat([*real, *fake])).float()
        count = sum(map(len, real))
        sides = logits[:count].flatten(), logits[count:].flatten()
        form = self.config.judge
        whole = [distributed.gather(x) for x in sides] if form in ("dual", "relativistic") else [None, None]
        return discriminator(*sides, form=form, all_real=whole[0], all_fake=whole[1])

    def _references(self, pictures: Tensor) -> list[Tensor]:
        """Maps [B V, K, D, h, w] of each layer, of [B, V, K, C, S, S]."""
        found = self.embedder.maps(pictures.flatten(0, 2), self.config.layers)
        return [m.unflatten(0, (-1, pictures.shape[2])) for m in found]

    # -- what users keep -----------------------------------------------------------------------------------------------

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Fine detail of the plain view: E's maps averaged over positions, or without E energies of Haar's bands."""
        if self.make_views is None:
            raise TypeError("PCLSR: expected views, for features, received none")
        x = self.make_views.plain(batch["image"])
        if self.embedder is not None:
            return torch.cat([m.mean((2, 3)) for m in self.embedder.maps(x, self.config.layers)], 1)
        return torch.cat([band.square().mean((2, 3)) for band in haar(x)], 1).clamp_min(1e-12).log()

    @torch.no_grad()
    def scores(self, source: Source, device: torch.device | str = "cpu") -> dict[str, Score]:
        """PSNR, SSIM and detail of whole pictures that are reduced and enlarged again, borders of `scale` cut off.

        Rows that end in "_bicubic" are those of bicubic enlargement.
        """
        scale, step = self.config.scale, math.lcm(self.config.scale, 2)
        rows = []
        for batch in Loader(source, Sequential(len(source), 1)).epoch(0):
            high = batch["image"][0].to(device)[None].float() / 255
            height, width = (side - side % step for side in high.shape[2:])
            high = high[:, :, :height, :width]
            low = restoration.quantise(upscalers.reduce(high, scale))
            made = upscalers.tiled(self.network, low, scale)
            row = restoration.compare(made, high, border=scale)
            plain = restoration.compare(upscalers.enlarge(low, scale), high, border=scale)
            rows.append(row | {f"{name}_bicubic": plain[name] for name in ("psnr_y", "high_band_error")})
        return restoration.averaged(rows)


def make_network(config: NetworkConfig, scale: int, channels: int) -> nn.Module:
    """The network of a config, with the weights that it names."""
    network = upscalers.build(
        config.kind, scale, channels, width=config.width, blocks=config.blocks, groups=config.groups
    )
    if config.weights:
        upscalers.load_weights(network, config.weights)
    return network


def _flat(z: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Enlarged and true crops [B V, C, S, S]."""
    made = z["restored"].float().flatten(0, 1)
    true = torch.stack([view.data for view in batch["views"]], 1).flatten(0, 1)
    expect(made.shape == true.shape, "restored", f"the size of the true crops, {tuple(true.shape)}", tuple(made.shape))
    return made, true


def _nothing(module: nn.Module) -> Tensor:
    """Zero, with a gradient of zero to every parameter that several processes hold whole and send the gradient of."""
    parts = [p.flatten()[0] for p in module.parameters() if p.requires_grad and distributed.local(p) is p]
    return 0.0 * torch.stack(parts).float().sum() if parts else torch.zeros(())
