"""The declarative frame: views, pairs, query and key encoder, key store and loss, put together from a config.

SimCLR, SupCon, DCL and MoCo are values of `ContrastConfig`; a system that needs more writes its own Method.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nearfar import distributed, ring
from nearfar.batch import Batch
from nearfar.config import ContrastConfig
from nearfar.method import Progress, Terms, Views
from nearfar.methods.frame import Frame
from nearfar.objectives import DCL, InfoNCE, NTXent, SupCon


class Contrast(Frame):
    """A query meets its keys among all candidates: the frame of instance and supervised contrast.

    Args:
        config: which pairs are positive, how keys are encoded and stored, and the loss.
        encoder: module with `feature_dim`, from a view [B, ...] to features [B, feature_dim].
        views: makes the views of `field`.
        field: the batch's field that views are made of.

    Source: the frame follows Le-Khac, Healy, Smeaton, "Contrastive Representation Learning: A Framework and Review",
    IEEE Access 2020.
    """

    config: ContrastConfig

    def __init__(self, config: ContrastConfig, encoder: nn.Module, views: Views, *, field: str = "image") -> None:
        super().__init__(config, encoder, views, field=field)
        self.objective = _objective(config)

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The objective over every query, against the candidates of all processes."""
        z_VBD = z["embedding"].transpose(0, 1)
        if self.teacher is not None:
            loss, stats = self._against_keys(z_VBD, targets["key"].transpose(0, 1))
        elif self._ring:
            loss, stats = self._around(z_VBD, batch)
        else:
            gathered, offset = self._with_labels(z_VBD, batch)
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

    def _with_labels(self, z_VBD: Tensor, batch: Batch) -> tuple[Any, int]:
        """Candidates of all processes, with their labels where those decide, and where this process's rows begin."""
        gathered, offset = self.gathered(z_VBD)
        if gathered is not None and self.config.pairs == "labels":
            return (gathered, distributed.gather(batch["label"], grad=False)), offset
        return gathered, offset

    def _against_keys(self, query_VBD: Tensor, key_VBD: Tensor) -> tuple[Tensor, Any]:
        """Every query view against the other views' keys and the queue; the mean over the pairs of views."""
        bank = self.queue.view("key") if self.queue is not None and len(self.queue) else None
        pairs = self.pairs(query_VBD.shape[0], key_VBD.shape[0])
        total, stats = None, None
        for q, k in pairs:
            key = key_VBD[k]
            if self._ring:
                part, stats = ring.info_nce(
                    query_VBD[q],
                    key,
                    temperature=self.objective.temperature,
                    with_stats=True,  # type: ignore[arg-type]
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


def _objective(config: ContrastConfig) -> nn.Module:
    shared: dict[str, Any] = {"temperature": config.temperature, "learnable_temperature": config.learnable_temperature}
    if config.loss == "nt_xent":
        return NTXent(**shared)
    if config.loss == "dcl":
        return DCL(**shared, vmf_sigma=config.vmf_sigma or None)
    if config.loss == "supcon":
        return SupCon(**shared, positives=config.positives)
    return InfoNCE(**shared)
