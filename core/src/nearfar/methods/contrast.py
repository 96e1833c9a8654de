"""The declarative frame: views, pairs, query and key encoder, key store and loss, put together from a config.

SimCLR, SupCon, DCL and MoCo are values of `ContrastConfig`; a system that needs more writes its own Method.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nearfar import distributed, ring
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import ContrastConfig
from nearfar.heads import Head
from nearfar.memory import Queue
from nearfar.method import Method, Progress, Terms, Views
from nearfar.momentum import Teacher
from nearfar.objectives import DCL, InfoNCE, NTXent, SupCon
from nearfar.rng import Rng


class Contrast(Method):
    """A query meets its keys among all candidates: the frame of instance and supervised contrast.

    Args:
        config: which pairs are positive, how keys are encoded and stored, and the loss.
        encoder: module with `feature_dim`, from a view [B, ...] to features [B, feature_dim].
        views: makes the views of `field`.
        field: the batch's field that views are made of.

    Source: the frame follows Le-Khac, Healy, Smeaton, "Contrastive Representation Learning: A Framework and Review",
    IEEE Access 2020.
    """

    outputs = ("default", "embedding")

    def __init__(self, config: ContrastConfig, encoder: nn.Module, views: Views, *, field: str = "image") -> None:
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
            momentum = config.momentum if config.key_encoder == "ema" else 1.0
            self.teacher = Teacher(nn.Sequential(encoder, self.head), momentum=momentum)
        self.queue = Queue(config.queue, key=dim) if config.queue else None
        self.objective = _objective(config)
        norms = [n for n, m in self.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.cache = f"no: batch normalisation in {norms[0]} mixes samples" if norms else "exact"

    # -- the step ----------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with its random views; the raw field is dropped, since nothing after this needs it."""
        views = self.make_views(batch[self.field], batch["index"], rng)
        return {name: value for name, value in batch.items() if name != self.field} | {"views": views}

    @property
    def _query_views(self) -> int:
        """Views that take the query's turn; a key encoder without symmetry leaves the others to the keys."""
        return 1 if self.teacher is not None and not self.config.symmetric else 0

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Keys [B, V, D] of the teacher, without gradient; the views that are keys only, where not symmetric."""
        if self.teacher is None:
            return {}
        num = len(batch["views"])
        expect(num >= 2, "views.num_views", "2 or more, for a query and a key", num)
        views = batch["views"][self._query_views :]
        return {"key": self._encode_views(self.teacher, views, shuffle=self.config.shuffle_keys)}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings [B, V, D] of the query views in one forward."""
        views = batch["views"][: self._query_views or None]
        return {"embedding": self._encode_views(self._student, views)}

    def _student(self, x: Tensor) -> Tensor:
        return self.predictor(self.head(self.encoder(x)))

    @staticmethod
    def _encode_views(module: Any, views: list[Any], *, shuffle: bool = False) -> Tensor:
        x = torch.cat([view.data for view in views])
        z = distributed.shuffled(module, x) if shuffle else module(x)
        return z.unflatten(0, (len(views), -1)).transpose(0, 1)

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The objective over every query, against the candidates of all processes."""
        z_VBD = z["embedding"].transpose(0, 1)
        if self.teacher is not None:
            loss, stats = self._against_keys(z_VBD, targets["key"].transpose(0, 1))
        elif self._ring:
            loss, stats = self._around(z_VBD, batch)
        else:
            gathered, offset = self._gathered(z_VBD, batch)
            if self.config.pairs == "labels":
                loss, stats = self.objective(z_VBD, batch["label"], gathered=gathered, offset=offset, with_stats=True)
            else:
                loss, stats = self.objective(z_VBD, gathered=gathered, offset=offset, with_stats=True)
        terms = Terms().add("contrast", loss, count=stats.num_anchors)
        terms.log(anchors_without_positive=float(stats.num_empty))
        if stats.accuracy is not None:
            terms.log(accuracy=stats.accuracy)
        if isinstance(getattr(self.objective, "temperature", None), Tensor):
            terms.log(temperature=self.objective.temperature)
        return terms

    @property
    def _ring(self) -> bool:
        return self.config.candidates == "ring" and distributed.world() > 1

    def _around(self, z_VBD: Tensor, batch: Batch) -> tuple[Tensor, Any]:
        """The objective with candidates that travel instead of being gathered."""
        options: dict[str, Any] = {"temperature": self.objective.temperature, "with_stats": True}
        if self.config.pairs == "labels":
            return ring.supcon(z_VBD, batch["label"], **options)
        return (ring.dcl if self.config.loss == "dcl" else ring.nt_xent)(z_VBD, **options)

    def _gathered(self, z_VBD: Tensor, batch: Batch) -> tuple[Any, int]:
        """Candidates of all processes [V, N, D] (with their labels) and where this process's rows begin."""
        if distributed.world() == 1:
            return None, 0
        z_VND = distributed.gather(z_VBD.transpose(0, 1)).transpose(0, 1)
        offset = distributed.offset(z_VBD.shape[1])
        if self.config.pairs == "labels":
            return (z_VND, distributed.gather(batch["label"], grad=False)), offset
        return z_VND, offset

    def _against_keys(self, query_VBD: Tensor, key_VBD: Tensor) -> tuple[Tensor, Any]:
        """Every query view against the other views' keys and the queue; the mean over the pairs of views."""
        bank = self.queue.view("key") if self.queue is not None and len(self.queue) else None
        num = query_VBD.shape[0]
        pairs = [(0, v) for v in range(key_VBD.shape[0])] if self._query_views else [
            (q, k) for q in range(num) for k in range(num) if q != k
        ]  # fmt: skip
        total, stats = None, None
        for q, k in pairs:
            key = key_VBD[k]
            if self._ring:
                part, stats = ring.info_nce(
                    query_VBD[q], key, temperature=self.objective.temperature, with_stats=True  # type: ignore[arg-type]
                )
                total = part if total is None else total + part
                continue
            # Until the queue holds something, the other keys of the batch are the negatives.
            gathered = distributed.gather(key, grad=False) if bank is None else None
            offset = distributed.offset(key.shape[0]) if bank is None else 0
            part, stats = self.objective(
                query_VBD[q], key, queue=bank, in_batch=bank is None, gathered=gathered, offset=offset, with_stats=True
            )
            total = part if total is None else total + part
        assert total is not None  # `targets` saw to it that there are two views
        return total / len(pairs), stats

    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """The teacher follows the student; the keys of all processes join the queue."""
        if self.teacher is not None and self.config.key_encoder == "ema":
            self.teacher.update(nn.Sequential(self.encoder, self.head))
        if self.queue is not None:
            key_BVD = distributed.gather(targets["key"], grad=False)
            key = torch.nn.functional.normalize(key_BVD.transpose(0, 1).flatten(0, 1).float(), dim=-1)
            self.queue.push(key=key.to(self.queue.view("key").dtype))

    # -- what users keep -----------------------------------------------------------------------------------------------

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Encoder features [B, D] of the plain view, or the head's embedding."""
        feature = self.encoder(self.make_views.plain(batch[self.field]))
        return feature if output == "default" else self.head(feature)


def _objective(config: ContrastConfig) -> nn.Module:
    shared: dict[str, Any] = {"temperature": config.temperature, "learnable_temperature": config.learnable_temperature}
    if config.loss == "nt_xent":
        return NTXent(**shared)
    if config.loss == "dcl":
        return DCL(**shared, vmf_sigma=config.vmf_sigma or None)
    if config.loss == "supcon":
        return SupCon(**shared, positives=config.positives)
    return InfoNCE(**shared)
