"""The declarative frame as values: what is a query, what is a key, which pairs are positive, and what they pay."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nearfar.checks import expect, expect_positive
from nearfar.config.method import DataInfo, FrameConfig

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views


@dataclass(frozen=True)
class LossTraits:
    """What a loss of the frame can do.

    Args:
        family: as in `nearfar.catalog.Taxonomy`.
        form: what it is a function of: "views" of a batch against each other, "pairs" told by ids, "keys" that queries
            meet, statistics of the "whole" batch, "regression" of keys.
        reads: fields of ContrastConfig that it reads; the others must be left as they are.
        similarities: that it knows.
        teacher: keys may come from an encoder of their own, and queries from a predictor of their own.
        stores: where keys may be kept beside the batch.
        labels: pairs may be told by labels.
    """

    family: Literal["probabilistic", "energy", "mutual_information", "regression"]
    form: Literal["views", "pairs", "keys", "whole", "regression"]
    reads: tuple[str, ...]
    similarities: tuple[str, ...] = ("cosine",)
    teacher: bool = True
    stores: tuple[str, ...] = ("queue", "bank")
    labels: bool = False


_T = ("temperature", "learnable_temperature")
_EVERY = ("cosine", "dot", "bilinear", "distance")
_DISTANCE = ("cosine", "distance")

LOSSES: dict[str, LossTraits] = {
    "nt_xent": LossTraits("probabilistic", "views", (*_T, "candidates"), teacher=False, stores=()),
    "dcl": LossTraits("probabilistic", "views", (*_T, "candidates", "vmf_sigma"), teacher=False, stores=()),
    "supcon": LossTraits("probabilistic", "pairs", (*_T, "candidates", "positives"), labels=True),
    "info_nce": LossTraits("probabilistic", "keys", (*_T, "candidates"), _EVERY),
    "binary_nce": LossTraits("probabilistic", "keys", _T, _EVERY, labels=True),
    "triplet": LossTraits("energy", "pairs", ("margin", "mining"), _DISTANCE, labels=True),
    "pair_margin": LossTraits("energy", "pairs", ("margin",), _DISTANCE, labels=True),
    "jensen_shannon": LossTraits("mutual_information", "keys", _T, _EVERY, stores=("queue",)),
    "donsker_varadhan": LossTraits("mutual_information", "keys", _T, _EVERY, stores=("queue",)),
    "regression": LossTraits("regression", "regression", ("regression",), stores=()),
    "barlow": LossTraits("regression", "whole", ("barlow",), teacher=False, stores=()),
    "vicreg": LossTraits("regression", "whole", ("vicreg",), teacher=False, stores=()),
    "wmse": LossTraits("regression", "whole", ("wmse",), teacher=False, stores=()),
}


@dataclass(frozen=True, kw_only=True)
class BarlowConfig:
    """Weights of Barlow Twins."""

    off_diagonal: float = 0.0051
    """weight of correlations between different features"""
    scale: float = 1.0
    """multiplies the loss, whose sums grow with the embedding's width"""

    def __post_init__(self) -> None:
        _not_negative("method.barlow", self)
        expect_positive("method.barlow.scale", self.scale)


@dataclass(frozen=True, kw_only=True)
class VICRegConfig:
    """Weights of the three terms of VICReg."""

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self) -> None:
        _not_negative("method.vicreg", self)


@dataclass(frozen=True, kw_only=True)
class WMSEConfig:
    """How W-MSE whitens."""

    size: int = 0
    """samples that are whitened together, more than the embedding is wide; 0: the batch"""
    rounds: int = 1
    """how often a batch is cut anew into parts of that size"""
    form: Literal["cholesky", "zca"] = "cholesky"
    eps: float = 1e-3
    """share of the identity in each covariance"""

    def __post_init__(self) -> None:
        expect(self.size >= 0, "method.wmse.size", "0 or more", self.size)
        expect(self.rounds == 1 or (self.rounds > 1 and self.size > 0), "method.wmse.rounds",
               "1, or more with method.wmse.size", self.rounds)  # fmt: skip
        expect(0 <= self.eps < 1, "method.wmse.eps", "a number in [0, 1)", self.eps)


@dataclass(frozen=True, kw_only=True)
class ContrastConfig(FrameConfig):
    """The declarative frame: what is a query, what is a key, which pairs are positive, and what they pay."""

    pairs: Literal["views", "labels"] = "views"
    """positives: the other views of the same sample, or every sample of the same label"""
    loss: Literal[
        "nt_xent", "dcl", "supcon", "info_nce", "binary_nce", "triplet", "pair_margin", "jensen_shannon",
        "donsker_varadhan", "regression", "barlow", "vicreg", "wmse",
    ] = "nt_xent"  # fmt: skip
    """nt_xent, dcl, supcon: views of the batch against each other; info_nce, binary_nce, jensen_shannon,
    donsker_varadhan: queries against keys; triplet, pair_margin: distances; regression, barlow, vicreg, wmse: no
    negatives"""
    similarity: Literal["cosine", "dot", "bilinear", "distance"] = "cosine"
    """of a query and a key; distance: minus the squared distance; of triplet and pair_margin the distance itself, with
    cosine that of unit vectors"""
    bank: bool = False
    """keys are rows of a memory with one for every sample, which follows by `momentum`"""
    temperature: float = 0.1
    """divides similarities; a distance is not divided"""
    learnable_temperature: bool = False
    positives: Literal["mean", "sum"] = "mean"
    """of supcon: mean outside the logarithm (L_out) or inside (L_in)"""
    vmf_sigma: float = 0.0
    """of dcl: width of the von Mises-Fisher weight on positives (DCLW); 0: none"""
    margin: float = 0.2
    """of triplet and pair_margin"""
    mining: Literal["all", "semi_hard", "hard"] = "all"
    """triplets of a query"""
    regression: Literal["mse", "cosine"] = "mse"
    """of unit vectors: their squared distance (BYOL) or minus their cosine (SimSiam), which is half of it"""
    barlow: BarlowConfig = field(default_factory=BarlowConfig)
    vicreg: VICRegConfig = field(default_factory=VICRegConfig)
    wmse: WMSEConfig = field(default_factory=WMSEConfig)
    candidates: Literal["gather", "ring"] = "gather"
    """over several processes: hold the candidates of all, or let blocks of them travel (nearfar.ring)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_positive("method.temperature", self.temperature)
        expect(self.vmf_sigma >= 0, "method.vmf_sigma", "0 or more", self.vmf_sigma)
        expect(self.margin >= 0 and math.isfinite(self.margin), "method.margin", "a finite number of 0 or more",
               self.margin)  # fmt: skip
        _check_loss(self)
        _check_options(self)
        _check_encoders(self)

    @property
    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return self.pairs == "labels"

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar.methods.contrast import Contrast

        return Contrast(self, encoder, views, num_indices=info.num_indices or info.num_samples)


def _check_loss(config: ContrastConfig) -> None:
    """That the loss can do what the other fields ask of it."""
    traits = LOSSES[config.loss]
    store = "bank" if config.bank else "queue" if config.queue else ""
    for asked, able, what in (
        (config.key_encoder != "shared", lambda t: t.teacher, f"with key_encoder {config.key_encoder!r}"),
        (bool(store), lambda t: store in t.stores, f"with a {store}"),
        (config.pairs == "labels", lambda t: t.labels, "with pairs 'labels'"),
        (config.candidates == "ring", lambda t: "candidates" in t.reads, "with candidates 'ring'"),
    ):
        if asked and not able(traits):
            known = " or ".join(repr(name) for name, other in LOSSES.items() if able(other))
            expect(False, "method.loss", f"{known} {what}", repr(config.loss))
    known = " or ".join(map(repr, traits.similarities))
    expect(config.similarity in traits.similarities, "method.similarity", f"{known} with loss {config.loss!r}",
           repr(config.similarity))  # fmt: skip


def _check_options(config: ContrastConfig) -> None:
    """That nothing is set which the loss does not read."""
    reads = LOSSES[config.loss].reads
    for option in dataclasses.fields(config):
        if option.name not in _OPTIONS or option.name in reads:
            continue
        default = option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
        value = getattr(config, option.name)
        expect(value == default, f"method.{option.name}",
               f"its default with loss {config.loss!r}, which does not read it", value)  # fmt: skip
    scaled = config.temperature != 0.1 or config.learnable_temperature
    expect(config.similarity != "distance" or not scaled, "method.temperature",
           "its default with similarity 'distance', which is not divided", config.temperature)  # fmt: skip
    plain = not (config.vmf_sigma or config.positives == "sum" or config.queue or config.bank)
    plain = plain and config.similarity == "cosine" and (config.key_encoder == "shared" or config.loss == "info_nce")
    expect(config.candidates == "gather" or plain, "method.candidates",
           "'gather' with vmf_sigma, positives 'sum', a queue or bank, a similarity but the cosine, or a key encoder "
           "of its own beside info_nce", config.candidates)  # fmt: skip
    own = config.key_encoder == "shared" and not config.bank
    expect(config.positives == "mean" or own, "method.positives", "'mean' with keys of a teacher or a bank",
           config.positives)  # fmt: skip


def _check_encoders(config: ContrastConfig) -> None:
    """That query and key encoder fit the loss and each other."""
    expect(not config.bank or (config.key_encoder == "shared" and config.pairs == "views"), "method.bank",
           "off with a key encoder of its own or pairs 'labels', since its rows are the keys", config.bank)  # fmt: skip
    expect(not config.bank or config.momentum < 1, "method.momentum", "below 1 with a bank, whose rows would not move",
           config.momentum)  # fmt: skip
    mutual = LOSSES[config.loss].form in ("views", "pairs", "whole") and config.key_encoder == "shared"
    expect(config.symmetric or not (mutual or config.bank), "method.symmetric", "True where all views meet alike",
           config.symmetric)  # fmt: skip
    predictor = config.predictor.kind != "none"
    expect(config.loss != "regression" or predictor or config.key_encoder != "shared", "method.predictor",
           "one, or a key encoder of its own, with loss 'regression', which else is least for equal embeddings",
           repr(config.predictor.kind))  # fmt: skip
    expect(not predictor or config.head.kind == "none" or config.predictor.dim == config.head.dim,
           "method.predictor.dim", f"{config.head.dim}, that of method.head", config.predictor.dim)  # fmt: skip


_OPTIONS = (*_T, "positives", "vmf_sigma", "margin", "mining", "regression", "barlow", "vicreg", "wmse")


def _not_negative(where: str, weights: Any) -> None:
    for weight in dataclasses.fields(weights):
        value = getattr(weights, weight.name)
        expect(value >= 0 and math.isfinite(value), f"{where}.{weight.name}", "a finite number of 0 or more", value)
