"""What systems around random views share: encoder, heads, key encoder, queue, and what users keep.

A system adds its `loss`, and where it needs more, its `targets` or `after_update`.

Legend: B batch, V views, N rows of all processes, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import FrameConfig
from nearfar.heads import Head
from nearfar.memory import Queue
from nearfar.method import BATCH_NORM, Method, Progress, Views
from nearfar.momentum import Teacher, cosine_momentum
from nearfar.rng import Rng


class Frame(Method):
    """Embeddings of every view of a sample, and keys of a teacher or a queue to hold against them.

    `encode` gives "embedding" [B, V, D], what the predictor (or, without one, the head) says of the query views; with
    a predictor and a shared key encoder also "projection" [B, V, D], what the head says before it.

    Args:
        config: heads, key encoder, queue.
        encoder: module with `feature_dim`, from a view [B, ...] to features [B, feature_dim].
        views: makes the views of `field`.
        field: the batch's field that views are made of.
        queued: fields of the queue beside "key", as `nearfar.memory.Queue` takes them; `enqueued` fills them.
    """

    outputs = ("default", "embedding")

    def __init__(
        self,
        config: FrameConfig,
        encoder: nn.Module,
        views: Views,
        *,
        field: str = "image",
        queued: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.make_views = views
        self.field = field
        self.encoder = encoder
        self.head = Head(int(encoder.feature_dim), config.head)  # type: ignore[arg-type]
        dim = self.head.dim
        self.predictor = Head(dim, config.predictor)
        self.teacher: Teacher | None = None
        if config.key_encoder != "shared":
            follows = config.key_encoder == "ema"
            self.teacher = Teacher(
                nn.Sequential(encoder, self.head),
                momentum=config.momentum if follows else 1.0,
                mode="train" if follows else "eval",  # one that stands still keeps its batch statistics too
            )
        self.queue = Queue(config.queue, key=dim, **queued or {}) if config.queue else None
        norms = [n for n, m in self.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.cache = f"{BATCH_NORM} in {norms[0]} mixes samples" if norms else "exact"

    # -- the step ----------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with its random views; the raw field is dropped, since nothing after this needs it."""
        views = self.make_views(batch[self.field], batch["index"], rng)
        return {name: value for name, value in batch.items() if name != self.field} | {"views": views}

    @property
    def query_views(self) -> int:
        """Views that take the query's turn, 0 for all; a key encoder without symmetry leaves the others to the keys."""
        return 1 if self.teacher is not None and not self.config.symmetric else 0

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Keys [B, V, D] of the teacher, without gradient; the views that are keys only, where not symmetric."""
        if self.teacher is None:
            return {}
        num = len(batch["views"])
        expect(num >= 2, "views.num_views", "2 or more, for a query and a key", num)
        views = batch["views"][self.query_views :]
        return {"key": encode_views(self.teacher, views, shuffle=self.config.shuffle_keys)}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings [B, V, D] of the query views in one forward."""
        views = batch["views"][: self.query_views or None]
        projection = encode_views(lambda x: self.head(self.encoder(x)), views)
        if self.config.predictor.kind == "none":
            return {"embedding": projection}
        embedding = self.predictor(projection.flatten(0, 1)).unflatten(0, projection.shape[:2])
        return {"embedding": embedding} if self.teacher is not None else {
            "embedding": embedding, "projection": projection
        }  # fmt: skip

    def gathered(self, z_VBD: Tensor) -> tuple[Tensor | None, int]:
        """Embeddings of all processes [V, N, D], with gradient, and where this process's rows begin.

        (None, 0) in one process, where objectives take the candidates from the anchors.
        """
        if distributed.world() == 1:
            return None, 0
        return self.everyone(z_VBD), distributed.offset(z_VBD.shape[1])

    def everyone(self, z_VBD: Tensor) -> Tensor:
        """Embeddings of all processes [V, N, D] with gradient, for losses of the whole batch's statistics."""
        if distributed.world() == 1:
            return z_VBD
        return distributed.gather(z_VBD.transpose(0, 1)).transpose(0, 1)

    def pairs(self, num_views: int, num_keys: int) -> list[tuple[int, int]]:
        """(query view, key view) of every pair that meets: the first against all keys, or all that differ."""
        if self.query_views:
            return [(0, k) for k in range(num_keys)]
        return [(q, k) for q in range(num_views) for k in range(num_keys) if q != k]

    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """The teacher follows the student; the keys of all processes join the queue."""
        if self.teacher is not None and self.config.key_encoder == "ema":
            config = self.config
            end = config.momentum_end or config.momentum
            momentum = cosine_momentum(progress.fraction, start=config.momentum, end=end)
            self.teacher.update(nn.Sequential(self.encoder, self.head), momentum)
        if self.queue is not None:
            self.queue.push(**self.enqueued(targets))

    def enqueued(self, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Rows of all processes that join the queue, view after view: normalised keys."""
        assert self.queue is not None
        key_BVD = distributed.gather(targets["key"], grad=False)
        key = nn.functional.normalize(key_BVD.transpose(0, 1).flatten(0, 1).float(), dim=-1)
        return {"key": key.to(self.queue.view("key").dtype)}

    # -- what users keep -----------------------------------------------------------------------------------------------

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Encoder features [B, D] of the plain view, or the head's embedding."""
        feature = self.encoder(self.make_views.plain(batch[self.field]))
        return feature if output == "default" else self.head(feature)


def encode_views(module: Any, views: list[Any], *, shuffle: bool = False) -> Tensor:
    """What a module says of each view [B, V, D], in one forward over all views of the same size.

    Batch statistics are those of the views of one size.

    Args:
        module: from data [V * B, ...] to rows [V * B, D], for any of the sizes that occur.
        views: of the same samples.
        shuffle: in another order over all processes.
    """
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number, view in enumerate(views):
        by_size.setdefault(tuple(view.data.shape[1:]), []).append(number)
    parts = []
    for numbers in by_size.values():
        x = torch.cat([views[number].data for number in numbers])
        z = distributed.shuffled(module, x) if shuffle else module(x)
        parts.append(z.unflatten(0, (len(numbers), -1)))
    if len(parts) == 1:
        return parts[0].transpose(0, 1)
    order = torch.tensor([number for numbers in by_size.values() for number in numbers])
    return torch.cat(parts)[order.argsort().to(parts[0].device)].transpose(0, 1)
