"""OBoW: small crops predict which visual words a slow teacher sees in the whole image.

Legend: B batch, V views, C features, D channels of a map, U positions, K words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.memory import Queue
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.prototypes import bag_of_words, word_distances
from nearfar.rng import Rng
from nearfar_images.methods._maps import stage_maps

if TYPE_CHECKING:
    from nearfar_images.systems.obow import OBoWConfig

SMALLEST = 5  # sides of a map: a border of one position is cut off, and 3 x 3 positions make a word
FOLLOW = 0.99  # of the moving average of the distance to the nearest word


class OBoW(Frame):
    """A student whose features of crops are held against word weights that a generator makes of the vocabulary.

    The teacher moves after each update, which is before the targets of the next one. Words join the vocabulary after
    the update too, so that targets and predictions of a step speak of the same words.

    Args:
        config: vocabulary, assignment, generator.
        info: its `shape` is that of the image that the teacher sees.
        encoder: from a view to features, with feature maps.
        views: random crops; `plain` is what the teacher sees.

    Attributes:
        words: the vocabulary, a queue with a field [K, D] a level.
        nearest: [L], moving average of the squared distance to the nearest word.

    Raises:
        ValueError: the encoder has too few maps of 5 x 5 positions at this size.

    Source: Gidaris et al., "OBoW: Online Bag-of-Visual-Words Generation for Self-Supervised Learning", CVPR 2021.
    """

    config: OBoWConfig
    nearest: Tensor

    def __init__(self, config: OBoWConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        shapes = _shapes(encoder, info.shape)
        fitting = [number for number, shape in enumerate(shapes) if min(shape[1:]) >= SMALLEST]
        expect(
            len(fitting) >= config.num_levels,
            "method.num_levels",
            f"at most the {len(fitting)} feature maps of {SMALLEST} x {SMALLEST} positions or more for images of "
            f"{info.shape}", config.num_levels,
        )  # fmt: skip
        self.levels = fitting[-config.num_levels :]
        dims = [shapes[number][0] for number in self.levels]
        self.generators = nn.ModuleList(Generator(dim, self.head.dim) for dim in dims)
        self.words = Queue(config.num_words, **{_field(level): dim for level, dim in enumerate(dims)})
        self.words.push(**{_field(i): torch.randn(config.num_words, dim).relu() for i, dim in enumerate(dims)})
        self.register_buffer("nearest", torch.full((len(dims),), 0.5))

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The crops, the whole image mirrored at times, and a random number that says which place becomes a word."""
        index, whole = batch["index"], self.make_views.plain(batch[self.field])
        mirrored = rng.uniform(index, "obow.flip")[:, 0] < self.config.flip
        whole = torch.where(mirrored[:, None, None, None], whole.flip(-1), whole)
        return super().views(batch, rng) | {"whole": whole, "place": rng.uniform(index, "obow.place")[:, 0]}

    @torch.no_grad()
    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Of each level the bag [B, K] that the teacher sees, and the words [B, D] and distance [] that are to join."""
        assert self.teacher is not None  # made by the frame, since key_encoder is "ema"
        maps = stage_maps(next(self.teacher.module.children()), batch["whole"])
        found: dict[str, Any] = {}
        for level, number in enumerate(self.levels):
            inner = maps[number].float()[:, :, 1:-1, 1:-1]
            distance_BUK = word_distances(inner.flatten(2).transpose(1, 2), self.words.view(_field(level)))
            nearest = self._nearest(level, distance_BUK.amin(2))
            found[f"nearest{level}"] = nearest
            found[f"bag{level}"] = bag_of_words(
                distance_BUK,
                sharpness=self.config.sharpness / nearest.clamp_min(1e-6),
                hard=self.config.assignment == "hard",
                pool=self.config.pool,
            )
            found[_field(level)] = self._words(inner, batch["place"])
        return found

    def _nearest(self, level: int, nearest_BU: Tensor) -> Tensor:
        """The moving average with this batch, of all processes; `after_update` keeps it."""
        count = nearest_BU.new_tensor(nearest_BU.numel())
        total, count = distributed.reduce_sum(torch.stack([nearest_BU.sum(), count]))
        return FOLLOW * self.nearest[level] + (1 - FOLLOW) * total / count

    def _words(self, inner: Tensor, place: Tensor) -> Tensor:
        """A word [B, D] of each map: the mean of 3 x 3 positions somewhere, or of all."""
        if self.config.word == "whole":
            return inner.mean((2, 3))
        places = avg_pool2d(inner, 3, stride=1).flatten(2)
        chosen = (place * places.shape[2]).long()
        return places.gather(2, chosen[:, None, None].expand(-1, places.shape[1], 1))[:, :, 0]

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """Divergence of the crops' predictions from the bags, a term for every kind of crop.

        KL(y | p) with p = softmax(kappa f W^T), f the features of a crop and W = generator(words) of unit rows.
        """
        feature_BVC = z["embedding"]
        losses, image, whole = [], [], []
        for level, generator in enumerate(self.generators):
            weight_KC = generator(self.words.view(_field(level)))
            logits_BVK = self.config.kappa * (feature_BVC @ weight_KC.T).float()
            bag_BK = targets[f"bag{level}"]
            entropy_B = torch.special.entr(bag_BK).sum(1)
            agreement_BV = torch.einsum("bvk,bk->bv", logits_BVK, bag_BK)
            losses.append(logits_BVK.logsumexp(2) - agreement_BV - entropy_B[:, None])
            image.append(entropy_B.exp().mean())
            whole.append(torch.special.entr(bag_BK.mean(0)).sum().exp())
        loss_BV = torch.stack(losses).mean(0)
        roles = [view.role for view in batch["views"]]
        terms = Terms()
        for role in dict.fromkeys(roles):
            kind = [number for number, one in enumerate(roles) if one == role]
            terms.add(role, loss_BV[:, kind].mean(), count=len(loss_BV))
        return terms.log(image_perplexity=torch.stack(image).mean(), batch_perplexity=torch.stack(whole).mean())

    @torch.no_grad()
    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """The teacher moves; the words of all processes take the places of the oldest."""
        super().after_update(z, targets, progress)
        self.nearest.copy_(torch.stack([targets[f"nearest{level}"] for level in range(len(self.levels))]))
        names = [_field(level) for level in range(len(self.levels))]
        self.words.push(**{name: distributed.gather(targets[name], grad=False) for name in names})


class Generator(nn.Module):
    """Words [K, D] to unit weights [K, C]; its batch norm always takes the statistics of the words at hand.

    Args:
        dim_in: D, channels of a word.
        dim: C, width of the features.
    """

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim_in, 2 * dim, bias=False)
        self.norm = nn.BatchNorm1d(2 * dim, track_running_stats=False)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, word: Tensor) -> Tensor:
        hidden = self.norm(self.hidden(normalize(word, dim=1))).relu()
        return normalize(self.out(hidden).float(), dim=1)


def _field(level: int) -> str:
    return f"word{level}"


@torch.no_grad()
def _shapes(encoder: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """(channels, height, width) of the encoder's maps for an image of a shape."""
    was = [module.training for module in encoder.modules()]
    parameter = next(encoder.parameters())
    maps = stage_maps(encoder.eval(), torch.zeros((1, *shape), device=parameter.device))
    for module, mode in zip(encoder.modules(), was, strict=True):
        module.training = mode
    return [tuple(one.shape[1:]) for one in maps]
