"""The declarative frame: views, pairs, query and key encoder, key store and loss, put together from a config.

SimCLR, SupCon, MoCo, BYOL, VICReg and others are values of `ContrastConfig`; a system that needs more writes its own
Method.

Legend: B batch, V views, N rows of all processes, K queue, D embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nearfar import distributed, ring
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import ContrastConfig
from nearfar.config.contrast import LOSSES
from nearfar.contrast import Stats
from nearfar.memory import Bank
from nearfar.method import Progress, Terms, Views
from nearfar.methods._losses import Keys, Similarity, make_objective, meet
from nearfar.methods.frame import Frame
from nearfar.rng import Rng


class Contrast(Frame):
    """Queries meet keys, or views each other, under any loss of the frame.

    Args:
        config: which pairs are positive, how keys are encoded and stored, and the loss.
        encoder: module with `feature_dim`, from a view [B, ...] to features [B, feature_dim].
        views: makes the views of `field`.
        field: the batch's field that views are made of.
        num_indices: every sample's index is below this; needed with `config.bank`.

    Source: the frame follows Le-Khac, Healy, Smeaton, "Contrastive Representation Learning: A Framework and Review",
    IEEE Access 2020.
    """

    config: ContrastConfig

    def __init__(
        self, config: ContrastConfig, encoder: nn.Module, views: Views, *, field: str = "image", num_indices: int = 0
    ) -> None:
        queued = {"label": (0, torch.long)} if config.pairs == "labels" else None
        super().__init__(config, encoder, views, field=field, queued=queued)
        self.traits = LOSSES[config.loss]
        self.objective = make_objective(config)
        self.similarity = Similarity(config.similarity, self.head.dim)
        self.bank: Bank | None = None
        if config.bank:
            expect(num_indices >= 1, "num_indices", "the number of samples with method.bank", num_indices)
            self.bank = Bank(num_indices, key=self.head.dim)
            # directions that mean nothing yet, as in the paper; a sample's first visit replaces its row
            self.bank.view("key").copy_(nn.functional.normalize(torch.randn(num_indices, self.head.dim), dim=1))

    # -- the step ----------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with its random views; of W-MSE also the draws by which it is cut into parts."""
        viewed = super().views(batch, rng)
        if self.config.loss == "wmse":
            viewed["parts"] = rng.uniform(batch["index"], "parts", self.config.wmse.rounds)
        return viewed

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Keys of the teacher, and what is stored beside keys: labels in a queue, indices in a bank."""
        found = super().targets(batch, progress)
        if self.bank is not None:
            found["index"] = batch["index"]
        if self.queue is not None and self.config.pairs == "labels":
            found["label"] = batch["label"]
        return found

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The objective over every query, against the keys of all processes."""
        z_VBD = z["embedding"].transpose(0, 1)
        if self.traits.form == "regression":
            loss, stats = self._regress(z, targets)
        elif self.traits.form == "whole":
            loss, stats = self._whole(z_VBD, batch), Stats(1, 0, None)
        elif self.bank is not None:
            loss, stats = self._against_bank(z_VBD, batch["index"])
        elif self.traits.form == "keys" or self.teacher is not None:
            loss, stats = self._against_keys(z, batch, targets)
        else:
            loss, stats = self._among_views(z_VBD, batch)
        terms = Terms().add("contrast", loss, count=stats.num_anchors)
        if self.traits.form in ("views", "pairs", "keys"):
            terms.log(anchors_without_positive=float(stats.num_empty))
        if stats.accuracy is not None:
            terms.log(accuracy=stats.accuracy)
        temperature = getattr(self.objective, "temperature", None)
        return terms.log(temperature=temperature) if isinstance(temperature, Tensor) else terms

    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """The teacher follows the student; keys of all processes join the queue, or move the rows of the bank."""
        super().after_update(z, targets, progress)
        if self.bank is not None:
            unit = nn.functional.normalize(z["embedding"].to(self.bank.view("key").dtype), dim=-1)
            index = distributed.gather(targets["index"], grad=False)
            new = distributed.gather(unit.mean(1), grad=False)
            self.bank.write(index, momentum=self.config.momentum, normalize=True, key=new)

    def enqueued(self, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Rows that join the queue; of unit length for the cosine, which keeps them in range, else as they are."""
        rows = super().enqueued(targets)
        if self.config.similarity != "cosine":
            keys = distributed.gather(targets["key"], grad=False).transpose(0, 1).flatten(0, 1)
            rows["key"] = keys.to(rows["key"].dtype)
        if "label" in targets:
            rows["label"] = distributed.gather(targets["label"], grad=False).repeat(targets["key"].shape[1])
        return rows

    # -- the forms of a loss -------------------------------------------------------------------------------------------

    def _regress(self, z: Mapping[str, Tensor], targets: Mapping[str, Any]) -> tuple[Tensor, Stats]:
        """Every query view predicts the keys of the others, which stand still."""
        z_VBD = z["embedding"].transpose(0, 1)
        key_VBD = targets["key"].transpose(0, 1) if self.teacher is not None else z["projection"].transpose(0, 1)
        if self.teacher is None and not self.config.symmetric:
            z_VBD, key_VBD = z_VBD[:1], key_VBD[1:]
        return self.objective(z_VBD, key_VBD), Stats(z_VBD.shape[1], 0, None)

    def _whole(self, z_VBD: Tensor, batch: Batch) -> Tensor:
        """A loss of the whole batch's statistics, which every process computes."""
        if self.config.loss != "wmse":
            return self.objective(self.everyone(z_VBD))
        parts = distributed.gather(batch["parts"], grad=False)
        return self.objective(self.everyone(z_VBD), order=parts.argsort(dim=0, stable=True).t())

    def _among_views(self, z_VBD: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        """Views of the batch against each other."""
        if self.config.candidates == "ring" and distributed.world() > 1:
            return self._around(z_VBD, batch)
        gathered, offset = self.gathered(z_VBD)
        options: dict[str, Any] = {"offset": offset, "with_stats": True}
        if self.traits.form == "views":
            return self.objective(z_VBD, gathered=gathered, **options)
        num_all = z_VBD.shape[1] if gathered is None else gathered.shape[1]
        own, every = self._ids(batch, num_all, offset)
        if len(z_VBD) == 1 and len(every.unique()) == num_all:
            warnings.warn("method: one view and no label twice in the batch, so that nothing is learnt", stacklevel=2)
            return z_VBD.sum() * 0.0, Stats(0, num_all, None)
        return self.objective(z_VBD, own, gathered=None if gathered is None else (gathered, every), **options)

    def _around(self, z_VBD: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        """The same with candidates that travel instead of being gathered."""
        options: dict[str, Any] = {"temperature": self.objective.temperature, "with_stats": True}
        if self.traits.form == "pairs":
            own, _ = self._ids(batch, 0, distributed.offset(z_VBD.shape[1]))
            return ring.supcon(z_VBD, own, **options)
        return (ring.dcl if self.config.loss == "dcl" else ring.nt_xent)(z_VBD, **options)

    def _against_keys(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any]) -> tuple[Tensor, Stats]:
        """Every query view against the other views' keys and the queue; the mean over all anchors of all pairs."""
        query_VBD = z["embedding"].transpose(0, 1)
        key_VBD = (z.get("projection", z["embedding"]) if self.teacher is None else targets["key"]).transpose(0, 1)
        parts = [self._pair(query_VBD[q], key_VBD[k], batch) for q, k in self.pairs(len(query_VBD), len(key_VBD))]
        losses, stats = zip(*parts, strict=True)
        counts = torch.tensor([float(one.num_anchors) for one in stats], device=losses[0].device)
        loss = (torch.stack(losses) * counts).sum() / counts.sum().clamp_min(1.0)
        hits = [one.accuracy for one in stats if one.accuracy is not None]
        accuracy = torch.stack(hits).mean() if hits else None
        return loss, Stats(int(counts.sum()), sum(one.num_empty for one in stats), accuracy)

    def _pair(self, query: Tensor, key: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        """The queries of one view against the keys of another, and the queue."""
        if self.config.candidates == "ring" and distributed.world() > 1:
            options: dict[str, Any] = {"temperature": self.objective.temperature, "with_stats": True}
            return ring.info_nce(query, key, **options)
        several = distributed.world() > 1
        offset = distributed.offset(len(query)) if several else 0
        every = distributed.gather(key, grad=self.teacher is None) if several else key
        rows = torch.arange(len(query), device=query.device) + offset
        queue = None
        if self.queue is not None and len(self.queue):
            stored = self.queue.view("key")
            apart = torch.full((len(stored),), -1, device=stored.device)  # no query's own, whatever sample it is of
            queue = stored, self.queue.view("label") if self.config.pairs == "labels" else apart
        keys = Keys(every, rows, self._ids(batch, len(every), offset), queue)
        return meet(self.objective, self.similarity, query, keys)

    def _against_bank(self, z_VBD: Tensor, index: Tensor) -> tuple[Tensor, Stats]:
        """Every view against the rows of all samples met so far, its own the positive."""
        assert self.bank is not None
        met = self.bank.seen.clone()
        met[distributed.gather(index, grad=False) if distributed.world() > 1 else index] = True
        stored = self.bank.view("key")[met]  # without the rows of samples that are held out
        own = (met.cumsum(0) - 1)[index].repeat(len(z_VBD))
        keys = Keys(stored, own, (own, torch.arange(len(stored), device=stored.device)))
        return meet(self.objective, self.similarity, z_VBD.flatten(0, 1), keys)

    def _ids(self, batch: Batch, num_all: int, offset: int) -> tuple[Tensor, Tensor]:
        """What makes a positive of this process's samples and of all `num_all`: their labels, or their numbers."""
        if self.config.pairs == "labels":
            label = batch["label"]
            return label, distributed.gather(label, grad=False) if distributed.world() > 1 else label
        numbers = torch.arange(num_all, device=batch["index"].device)
        return torch.arange(len(batch["index"]), device=batch["index"].device) + offset, numbers

    def pairs(self, num_views: int, num_keys: int) -> list[tuple[int, int]]:
        """(query view, key view) of every pair that meets; the first view alone asks where not symmetric."""
        if self.teacher is None and not self.config.symmetric:
            return [(0, k) for k in range(1, num_keys)]
        return super().pairs(num_views, num_keys)
