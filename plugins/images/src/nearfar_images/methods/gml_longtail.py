"""GML: a cosine classifier with adjusted logits, and a contrast with keys of every class.

Legend: B batch, V views, N rows of all processes, K keys, C classes, F feature, D embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.contrast import contrast
from nearfar.heads import Head
from nearfar.memory import ClassQueue, class_slots
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.methods.frame import encode_views
from nearfar.momentum import Teacher
from nearfar.objectives import GML, log_likelihood

if TYPE_CHECKING:
    from nearfar_images.systems.gml_longtail import GMLConfig

DISTIL = 4.0
"""how much softer logits are where the teacher is met"""


class LongTail(Frame):
    """L = g CE(cos / t + log p, y) + b (L_con + L_bandwidth) + a KL(teacher || student), with p the classes' shares.

    The first view is classified, the second is the query, the third the key. Keys are kept as features, class by
    class, and embedded anew at every step; the present batch's join them before the loss. See
    `nearfar.objectives.gml` for L_con and L_bandwidth. Without the prior the classifier is what one uses: `classify`.

    Args:
        config: weights, queue, temperatures.
        info: its `class_counts` are the shares and lay out the queue.
        encoder: from a view to features.
        views: three random views.

    Source: Suh, Seo, "Long-Tailed Recognition by Mutual Information Maximization between Latent Features and
        Ground-Truth Labels", ICML 2023.
    """

    config: GMLConfig

    def __init__(self, config: GMLConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(dataclasses.replace(config, queue=1), encoder, views)
        self.config, self.queue = config, None  # keys stand in rings of their classes
        names = info.class_names or tuple(map(str, range(len(info.class_counts))))
        lacking = [name for name, num in zip(names, info.class_counts, strict=True) if num == 0]
        expect(len(info.class_counts) >= 2 and not lacking, "data", "two classes or more, each with training samples",
               f"none of {', '.join(lacking[:5])}" if lacking else f"{len(info.class_counts)} classes")  # fmt: skip
        counts = torch.tensor(info.class_counts)
        width = int(encoder.feature_dim)  # type: ignore[arg-type]
        self.classifier = nn.Parameter(torch.randn(len(counts), width) / width**0.5)
        self.objective = GML(counts.float(), config.temperature,
                             learnable_temperature=config.contrast == "gml" and config.contrast_weight > 0)  # fmt: skip
        self.key_head: Head | None = None
        if config.teacher:
            width = self._take_teacher(config)
        self.classifier.requires_grad_(config.supervised_weight > 0)
        self.head.requires_grad_(config.contrast_weight > 0)
        slots = class_slots(info.class_counts, config.queue, config.least)
        self.stored = ClassQueue(len(counts), slots, feature=width, index=(0, torch.long))

    def _take_teacher(self, config: GMLConfig) -> int:
        """Another run's encoder and classifier, which stand still; the width of its features."""
        from nearfar_images.pipeline import load_run

        taught = load_run(config.teacher).method
        known = isinstance(taught, LongTail) and len(taught.classifier) == len(self.classifier)
        expect(known, "method.teacher", f"a run of gml_longtail with {len(self.classifier)} classes", config.teacher)
        assert isinstance(taught, LongTail)
        self.teacher = Teacher(nn.Sequential(taught.encoder, nn.Identity()), momentum=1.0, mode="eval")
        self.register_buffer("teacher_classifier", taught.classifier.detach().clone())
        width = int(taught.encoder.feature_dim)  # type: ignore[arg-type]
        self.key_head = Head(width, config.head).requires_grad_(config.contrast_weight > 0)
        return width

    @property
    def query_views(self) -> int:
        """The first two of three views are the student's."""
        return 2

    # -- the step ----------------------------------------------------------------------------------------------------

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Features of the keys, with their labels and samples; the teacher's logits of the first view."""
        views = batch["views"]
        expect(len(views) == 3, "views.num_views", "3: classified, query and key", len(views))
        assert self.teacher is not None  # no key encoder of this system is shared
        encoder = self.teacher.module[0]  # type: ignore[index]
        with torch.no_grad():
            feature_BF = encode_views(encoder, views[2:], shuffle=self.config.shuffle_keys)[:, 0]
            found = {"feature": feature_BF, "label": batch["label"], "index": batch["index"]}
            if self.config.distil_weight:
                first_BF = encode_views(encoder, views[:1])[:, 0]
                found["logits"] = cosines(first_BF, self.get_buffer("teacher_classifier"))
        return found

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings of the queries [B, 1, D] and cosines [B, C] of the classified views."""
        feature_BVF = encode_views(self.encoder, batch["views"][:2])
        return {
            "embedding": self.head(feature_BVF[:, 1])[:, None],
            "logits": cosines(feature_BVF[:, 0], self.classifier),
        }

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The terms whose weight is not zero."""
        config, label_B, terms = self.config, batch["label"], Terms()
        log_prior_C = (self.objective.class_counts / self.objective.class_counts.sum()).log()
        scaled_BC = z["logits"].float() / config.classifier_temperature
        if config.supervised_weight:
            adjusted = scaled_BC + log_prior_C if config.adjust else scaled_BC
            loss = F.cross_entropy(adjusted, label_B)
            terms.add("classifier", loss, weight=config.supervised_weight, count=len(label_B))
            terms.log(accuracy=(z["logits"].argmax(1) == label_B).float().mean())
        if config.contrast_weight:
            self._contrast(terms, z["embedding"][:, 0], batch, targets)
        if config.distil_weight:
            taught = targets["logits"].float() / config.classifier_temperature
            loss = F.kl_div(
                (scaled_BC / DISTIL).log_softmax(1), (taught / DISTIL).log_softmax(1), log_target=True,
                reduction="batchmean",
            )  # fmt: skip
            terms.add("distil", loss * DISTIL**2, weight=config.distil_weight, count=len(label_B))
        return terms

    def _contrast(self, terms: Terms, query_BD: Tensor, batch: Batch, targets: Mapping[str, Any]) -> None:
        weight, label_B, index_B = self.config.contrast_weight, batch["label"], batch["index"]
        key_KD, label_K, index_K = self._keys(targets)
        if self.config.contrast == "supcon":
            loss, stats = contrast(query_BD, key_KD, labels=(label_B, label_K), temperature=self.config.temperature,
                                   with_stats="counts")  # fmt: skip
            terms.add("contrast", loss, weight=weight, count=stats.num_anchors)
            return
        loss = self.objective(query_BD, label_B, key_KD, label_K, part="contrast")
        terms.add("contrast", loss, weight=weight, count=len(label_B))
        # of leave-one-out: queries whose class has a key of another sample
        num_B = torch.bincount(label_K, minlength=len(self.classifier))[label_B]
        own_B = (index_B[:, None] == index_K).sum(1)
        rows = (num_B > own_B).nonzero()[:, 0]
        loss = 0.0 * self.objective.log_temperature.sum()
        if len(rows):
            loss = self.objective(query_BD[rows], label_B[rows], key_KD, label_K, part="bandwidth",
                                  ids=(index_B[rows], index_K))  # fmt: skip
        terms.add("bandwidth", loss, weight=weight, count=len(rows))
        terms.log(temperature=self.objective.temperature.mean())

    def _keys(self, targets: Mapping[str, Any] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Keys [K, D] embedded now, their classes and samples: those stored, and those of the whole batch."""
        label_K = self.stored.labels()
        filled = label_K >= 0
        feature_KF, index_K = self.stored.flat("feature")[filled], self.stored.flat("index")[filled]
        label_K = label_K[filled]
        if targets is not None:
            new = {name: distributed.gather(targets[name], grad=False) for name in ("feature", "index", "label")}
            feature_KF = torch.cat([feature_KF, new["feature"].to(feature_KF.dtype)])
            index_K, label_K = torch.cat([index_K, new["index"]]), torch.cat([label_K, new["label"]])
        if self.key_head is not None:
            return self.key_head(feature_KF), label_K, index_K
        assert self.teacher is not None
        with torch.no_grad():
            return self.teacher.module[1](feature_KF), label_K, index_K  # type: ignore[index]

    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """The teacher follows; features of all processes' keys take their places in their classes' rings."""
        super().after_update(z, targets, progress)
        if self.config.contrast_weight:
            feature, label, index = (distributed.gather(targets[n], grad=False) for n in ("feature", "label", "index"))
            self.stored.push(label, feature=feature.float(), index=index)

    # -- what users keep -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def classify(self, batch: Batch) -> Tensor:
        """Scores [B, C] of the plain view without the prior: cosines, or, where no classifier is learnt, log S_c."""
        if self.config.supervised_weight:
            return cosines(self.features(batch), self.classifier)
        key_KD, label_K, _ = self._keys(None)
        return log_likelihood(self.features(batch, "embedding"), key_KD, label_K, len(self.classifier),
                              temperature=self.objective.temperature)  # fmt: skip


def cosines(feature_BF: Tensor, classifier_CF: Tensor) -> Tensor:
    """Cosines [B, C] of features and the classes' weights."""
    return F.normalize(feature_BF, dim=1) @ F.normalize(classifier_CF, dim=1).t()
