"""CAPro: a classifier, a small classifier of embeddings, prototypes, and labels that are cleaned by all of them.

Legend: B batch, C classes, D embedding, F feature, K keys of the dictionary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import normalize

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.memory import Bank
from nearfar.method import Engine, Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.objectives import info_nce
from nearfar.prototypes import Prototypes
from nearfar.rng import Rng
from nearfar.views import ImageViews
from nearfar_images.methods.macrl import APART, without_colour

if TYPE_CHECKING:
    from nearfar_images.systems.capro import CAProConfig

DROPPED = -1


class Cleaned(NamedTuple):
    """What becomes of the labels of a batch.

    Args:
        label: int64 [B], corrected where it was.
        kept: bool [B], false for samples that belong to no class.
    """

    label: Tensor
    kept: Tensor


class CAPro(Frame):
    """The query is a crop with its own colours, the key a changed one; one classifier on features, one on embeddings.

    Args:
        config: seeds, stages, weights.
        info: numbers of samples and classes.
        encoder: from a view to features.
        views: two random views.

    Attributes:
        web: the label of every sample as it was met, by its index.
        anchor: bool [num_indices], the seeds.
        prototypes: one a class, from epoch `prototypes_from` on.

    Source: Qin et al., "CAPro: Webly Supervised Learning with Cross-Modality Aligned Prototypes", NeurIPS 2023.
    """

    outputs = ("default", "embedding", "key")
    config: CAProConfig
    anchor: Tensor

    def __init__(self, config: CAProConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        expect(info.num_classes >= 2, "info.num_classes", "2 or more", info.num_classes)
        self.makers: list[ImageViews] = []  # of other modalities both views are alike
        if isinstance(views, ImageViews):
            expect(views.config.num_views == 2, "views.num_views", "2", views.config.num_views)
            one = dataclasses.replace(views.config, num_views=1)
            self.makers = [ImageViews(part, views.size, views.channels) for part in (without_colour(one), one)]
        width, dim, num = int(encoder.feature_dim), self.head.dim, info.num_indices or info.num_samples  # type: ignore[arg-type]
        self.classifier, self.low = nn.Linear(width, info.num_classes), nn.Linear(dim, info.num_classes)
        self.reconstructor = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width))
        self.reconstructor.requires_grad_(config.reconstruction_weight > 0)
        self.prototypes = Prototypes(info.num_classes, dim, momentum=config.prototype_momentum, step="sample",
                                     ignore=DROPPED)  # fmt: skip
        self.web = Bank(num, label=(0, torch.long))
        self.register_buffer("anchor", torch.zeros(num, dtype=torch.bool))

    @property
    def ready(self) -> bool:
        """Whether there are prototypes."""
        return bool(self.prototypes.seen.any())

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The weak view and the strong one, with draws of their own."""
        if not self.makers:
            return super().views(batch, rng)
        rngs = (rng, dataclasses.replace(rng, seed=rng.seed + APART))
        made = [maker(batch["image"], batch["index"], one)[0] for maker, one in zip(self.makers, rngs, strict=True)]
        return {name: value for name, value in batch.items() if name != "image"} | {"views": made}

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Keys of the strong view, labels, indices, and which samples are seeds."""
        found = super().targets(batch, progress)
        index = batch["index"]
        return found | {"label": batch["label"], "index": index, "anchor": self.anchor[index]}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Features [B, F], logits [B, C] and embeddings [B, 1, D] of the weak view."""
        feature = self.encoder(batch["views"][0].data)
        return {
            "feature": feature, "logits": self.classifier(feature), "embedding": self.head(feature)[:, None],
        }  # fmt: skip

    def cleaned(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> Cleaned:
        """The labels that count, from `clean_from` on after cleaning."""
        label = targets["label"]
        if not self.ready or progress.epoch < self.config.clean_from:
            return Cleaned(label, torch.ones_like(label, dtype=torch.bool))
        z_BD = normalize(z["embedding"][:, 0].detach().float(), dim=1)
        alpha = self.config.alpha
        chance_BC = alpha * z["logits"].detach().float().softmax(1) + (1 - alpha) * self.near(z_BD).softmax(1)
        return clean(chance_BC, label, targets["anchor"], threshold=self.config.threshold)

    def near(self, z_BD: Tensor) -> Tensor:
        """Logits [B, C] of unit embeddings by the prototypes; 0 for a class without one."""
        return z_BD @ self.prototypes.vector.T / self.config.temperature

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The terms of the stage."""
        config, ready = self.config, self.ready
        label_B, kept_B = self.cleaned(z, targets, progress)
        label_B, num, total = label_B[kept_B], int(kept_B.sum()), len(kept_B)
        terms = Terms().add("classifier", mean_ce(z["logits"][kept_B], label_B), count=num)
        terms.log(kept=num / total, corrected=(label_B != targets["label"][kept_B]).float().sum() / total)
        z_BD = normalize(z["embedding"][:, 0].float(), dim=1)
        low_BC = self.low(z_BD)
        low = mean_ce(low_BC[kept_B], label_B)
        if config.beta and ready:
            with torch.no_grad():
                target_BC = self.bootstrapped(z_BD, targets["key"])
            low = (1 - config.beta) * low + config.beta * mean_ce(low_BC[kept_B], target_BC[kept_B])
        terms.add("low", low, count=num)
        if config.instance_weight:
            loss = self._instances(z_BD, targets["key"][:, 0])
            terms.add("instances", loss, weight=config.instance_weight, count=total)
        if config.reconstruction_weight:
            again = self.reconstructor(z_BD.detach() if ready else z_BD)
            loss = F.mse_loss(again, z["feature"].detach().float())
            terms.add("reconstruction", loss, weight=config.reconstruction_weight, count=total)
        if config.prototype_weight and ready:
            loss = mean_ce(self.near(z_BD)[kept_B], label_B)
            terms.add("prototypes", loss, weight=config.prototype_weight, count=num)
        if (
            config.final_from and progress.epoch >= config.final_from
        ):  # with weight 0, since DDP waits for every gradient
            terms.weights.update((name, 0.0) for name in terms.weights if name != "classifier")
        return terms

    def bootstrapped(self, z_BD: Tensor, key_BVD: Tensor) -> Tensor:
        """Targets [B, C] from the predictions of similar keys."""
        assert self.queue is not None  # config.queue is 1 or more
        keys = [self.queue.view("key")]
        if self.config.own_keys or not len(self.queue):
            keys.append(normalize(distributed.gather(key_BVD[:, 0], grad=False).float(), dim=1))
        key_KD = torch.cat(keys)
        alpha = self.config.alpha
        chance_KC = alpha * self.low(key_KD).softmax(1) + (1 - alpha) * self.near(key_KD).softmax(1)
        return bootstrap(z_BD, key_KD, chance_KC)

    def _instances(self, z_BD: Tensor, key_BD: Tensor) -> Tensor:
        """InfoNCE with the queue, or within the batch where nothing is stored yet."""
        assert self.queue is not None
        if len(self.queue):
            return info_nce(z_BD, key_BD, self.queue.view("key"), temperature=self.config.temperature)
        several = distributed.world() > 1
        gathered = distributed.gather(key_BD, grad=False) if several else None
        offset = distributed.offset(len(key_BD)) if several else 0
        return info_nce(z_BD, key_BD, in_batch=True, gathered=gathered, offset=offset,
                        temperature=self.config.temperature)  # fmt: skip

    def on_gradients(self, progress: Progress) -> None:
        """The encoder stands still in the first epochs; in the last ones everything but the classifier."""
        config = self.config
        if progress.epoch < config.frozen_epochs:
            _still(self.encoder)
        if config.final_from and progress.epoch >= config.final_from:
            for name, module in self.named_children():
                if name != "classifier":
                    _still(module)

    @torch.no_grad()
    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """Teacher, queue and the labels that were met; prototypes follow the samples that are kept."""
        super().after_update(z, targets, progress)
        self.web.write(distributed.gather(targets["index"], grad=False),
                       label=distributed.gather(targets["label"], grad=False))  # fmt: skip
        if self.ready:
            label, kept = self.cleaned(z, targets, progress)
            z_BD = normalize(z["embedding"][:, 0].float(), dim=1)
            self.prototypes.update(z_BD, label.masked_fill(~kept, DROPPED), distributed=distributed.world() > 1)

    # -- over the whole data -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def on_epoch(self, engine: Engine) -> None:
        """Reads the seeds before the first epoch; later makes the first prototypes of them."""
        if self.config.anchors and not bool(self.anchor.any()):
            index = read_anchors(self.config.anchors, len(self.anchor))
            self.anchor[index.to(self.anchor.device)] = True
        if engine.progress.epoch < self.config.prototypes_from or self.ready:
            return
        key, index = engine.features("key")
        self.begin(key.to(self.anchor.device), index.to(self.anchor.device))

    @torch.no_grad()
    def begin(self, key_ND: Tensor, index_N: Tensor) -> None:
        """Prototypes: the mean of each class's seeds, or of all its samples where it has none, of unit length."""
        met = self.web.seen[index_N]
        index_N, key_ND = index_N[met], normalize(key_ND[met].float(), dim=1)
        label_N, seed_N = self.web.view("label")[index_N], self.anchor[index_N]
        seeds_C = label_N[seed_N].bincount(minlength=len(self.prototypes.seen))
        chosen = seed_N | (seeds_C == 0)[label_N]
        self.prototypes.update(key_ND[chosen], label_N[chosen])

    # -- what users keep -----------------------------------------------------------------------------------------------

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Encoder features [B, F], the head's embedding, or "key", the teacher's embedding, of the plain view."""
        if output == "key":
            assert self.teacher is not None  # key_encoder is "ema"
            self.teacher.module.eval()  # its own mode is that of training, in which rows depend on each other
            key = self.teacher(self.make_views.plain(batch[self.field]))
            self.teacher.train(self.teacher.training)
            return key
        return super().features(batch, output)

    @torch.no_grad()
    def classify(self, batch: Batch) -> Tensor:
        """Logits [B, C] of the classifier for the plain view."""
        return self.classifier(self.features(batch))


def clean(
    chance: Float[Tensor, "B C"], label: Int[Tensor, " B"], anchor: Bool[Tensor, " B"], *, threshold: float = 0.6
) -> Cleaned:
    """Which labels are corrected, kept, or given up.

    The most probable class where its probability is `threshold` or more; else the label where its own is 1/C or more;
    else none. Seeds keep their labels.

    Args:
        chance: probabilities.
        label: as it came.
        anchor: seeds.
        threshold: in [0, 1].
    """
    best, found = chance.max(1)
    sure = best >= threshold
    fair = chance.gather(1, label[:, None])[:, 0] >= 1 / chance.shape[1]
    return Cleaned(torch.where(sure & ~anchor, found, label), sure | fair | anchor)


def bootstrap(z: Float[Tensor, "B D"], key: Float[Tensor, "K D"], chance: Float[Tensor, "K C"]) -> Float[Tensor, "B C"]:
    """t_i = sum_j w_ij b_j with w_ij = clamp(z_i . k_j, 0, 1) + 1e-7, scaled to sum 1; rows sum to 1.

    Args:
        z, key: of unit length.
        chance: b, the keys' probabilities.
    """
    weight = (z @ key.T).clamp(0, 1) + 1e-7
    target = weight / weight.sum(1, keepdim=True) @ chance
    return target / target.sum(1, keepdim=True)


def mean_ce(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy with labels [B] or probabilities [B, C]; 0 of no samples."""
    return F.cross_entropy(logits.float(), target) if len(logits) else logits.float().sum()


def read_anchors(path: str, num_indices: int) -> Tensor:
    """Indices of the seeds that a file names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: indices outside the data.
    """
    expect(Path(path).is_file(), "method.anchors", "a file", path, FileNotFoundError)
    with np.load(path, allow_pickle=False) as found:
        expect("anchor" in found.files, f"{path}: fields", "'anchor'", found.files)
        index = torch.from_numpy(found["anchor"].astype(np.int64))
    inside = index.ndim == 1 and len(index) > 0 and bool(((index >= 0) & (index < num_indices)).all())
    expect(inside, f"{path}: anchor", f"indices from 0 to {num_indices - 1}", tuple(index.shape))
    return index


def _still(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None
