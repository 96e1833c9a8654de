"""MLS: multi-label self-supervision against a dictionary, labels found by the encoder before its head.

Rebuilt from the paper's abstract and figure.

Legend: B batch, V views, N entries of the dictionary, D embedding, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame, encode_views
from nearfar.objectives import info_nce, multi_label, nearest_labels

if TYPE_CHECKING:
    from nearfar_images.systems.mls import MLSConfig


class MLS(Frame):
    """A query says yes or no to every entry of a dictionary: the keys of its batch and those of former ones.

    The keys of the batch, of all processes, stand first, so that every query finds its own other view among them. They
    join the queue after the update: features before the head and embeddings behind it in one ring, row by row.

    Args:
        config: dictionary, labels, warm-up.
        encoder: from a view to features.
        views: two or more random views.

    Source: Zhu, Fu, Wu, "Multi-Label Self-Supervised Learning with Scene Images", ICCV 2023.
    """

    config: MLSConfig

    def __init__(self, config: MLSConfig, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views, queued={"feature": int(encoder.feature_dim)})  # type: ignore[arg-type]

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings [B, V, D] of the query views, and their features [B, V, F] without gradient."""
        z = encode_views(lambda x: _both(self.encoder, self.head, x), batch["views"][: self.query_views or None])
        feature, embedding = z.split((self.head.dim_in, self.head.dim), dim=2)
        return {"embedding": embedding, "feature": feature.detach()}

    @torch.no_grad()
    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """The teacher's embeddings [B, W, D] and features [B, W, F] of the key views."""
        assert self.teacher is not None  # the config refuses a shared key encoder
        num = len(batch["views"])
        expect(num >= 2, "views.num_views", "2 or more, for a query and a key", num)
        encoder, head = self.teacher.module.children()
        views = batch["views"][self.query_views :]
        z = encode_views(lambda x: _both(encoder, head, x), views, shuffle=self.config.shuffle_keys)
        feature, key = z.split((self.head.dim_in, self.head.dim), dim=2)
        return {"key": key, "key_feature": feature}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """Binary cross-entropy with the dictionary; InfoNCE with the same one at first, and while it is too short."""
        config, num = self.config, len(z["embedding"])
        offset = distributed.offset(num)
        own = torch.arange(offset, offset + num, device=z["embedding"].device)
        labelled, contrasted, entries = [], [], 0
        for q, k in self.pairs(z["embedding"].shape[1], targets["key"].shape[1]):
            query = z["embedding"][:, q]
            dictionary, features = self._dictionary(targets, k)
            entries = len(dictionary)
            ready = progress.fraction >= config.warm_up and entries > config.num_positives
            if ready:
                labels = nearest_labels(
                    z["feature"][:, q], features, config.num_positives, own if config.force_own else None
                )
                odds = config.num_positives / (entries - config.num_positives)
                labelled.append(
                    multi_label(
                        query,
                        dictionary,
                        labels,
                        temperature=config.temperature,
                        bias=math.log(odds) if config.bias == "prior" else 0.0,
                        positive_weight=max(1.0, min(1 / odds, config.positive_weight)),
                    )
                )
            if not ready or config.contrast_weight:
                contrasted.append(
                    info_nce(
                        query,
                        dictionary[own],
                        in_batch=True,
                        gathered=dictionary,
                        offset=offset,
                        temperature=config.temperature,
                    )
                )
        terms = Terms().log(dictionary=float(entries))
        if labelled:
            terms.add("multi_label", torch.stack(labelled).mean(), count=num)
        if contrasted:
            weight = config.contrast_weight if labelled else 1.0
            terms.add("contrast", torch.stack(contrasted).mean(), weight=weight, count=num)
        return terms

    def _dictionary(self, targets: Mapping[str, Any], view: int) -> tuple[Tensor, Tensor]:
        """Unit embeddings [N, D] and features [N, F] of the key view of all processes, then of the queue."""
        assert self.queue is not None  # the config asks for one
        joined = []
        for name, field in (("key", "key"), ("key_feature", "feature")):
            rows = distributed.gather(targets[name][:, view].contiguous(), grad=False)
            joined.append(torch.cat([normalize(rows.float(), dim=1), self.queue.view(field)]))
        return joined[0], joined[1]

    def enqueued(self, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Unit rows of all processes for both fields, view after view."""
        feature = distributed.gather(targets["key_feature"], grad=False).transpose(0, 1).flatten(0, 1)
        return super().enqueued(targets) | {"feature": normalize(feature.float(), dim=1)}


def _both(encoder: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    """Features and embeddings side by side [N, F + D]."""
    feature = encoder(x)
    return torch.cat([feature, head(feature)], 1)
