"""Supervised training with cross-entropy: the line that systems without labels are held against.

Legend: B batch, V views, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar.batch import Batch
from nearfar.config import DataInfo
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame

if TYPE_CHECKING:
    from nearfar_images.systems.cross_entropy import CrossEntropyConfig


class CrossEntropy(Frame):
    """A linear classifier on the encoder's features, every view a sample of its own.

    Args:
        config: label smoothing.
        info: its `num_classes` is the width of the classifier.
        encoder: from a view to features.
        views: random views; one is enough.
    """

    outputs = ("default", "embedding")

    def __init__(self, config: CrossEntropyConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        self.label_smoothing = config.label_smoothing
        self.classifier = nn.Linear(self.head.dim, max(info.num_classes, 1))

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Logits [B, V, C] beside the embeddings."""
        z = super().encode(batch)
        return z | {"logits": self.classifier(z["embedding"])}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """Cross-entropy of every view with its sample's label."""
        logits = z["logits"].flatten(0, 1).float()
        label = batch["label"].repeat_interleave(z["logits"].shape[1])
        loss = nn.functional.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(1) == label).float().mean()
        return Terms().add("cross_entropy", loss, count=len(label)).log(accuracy=accuracy)

    @torch.no_grad()
    def classify(self, batch: Batch) -> Tensor:
        """Logits [B, C] of the plain view."""
        return self.classifier(self.features(batch, "embedding"))
