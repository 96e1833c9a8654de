"""The encoder, the method around it, and what both may know of the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nearfar.checks import expect, expect_positive

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The encoder that training leaves behind."""

    name: str = "auto"
    """"convnet", "tiny-vit", "timm/NAME", "torchvision/NAME"; auto: convnet up to 48 pixels, resnet18 above"""
    weights: str = ""
    """local file of weights to start from (safetensors, or a state dict that loads with weights_only)"""
    width: int = 32
    """first width of the small convolutional net"""
    dim: int = 128
    """width of the tiny vision transformer and of the convolutional net's features"""
    norm: Literal["batch", "group"] = "batch"
    """of the convolutional net; group: rows that do not depend on their batch, as trainer.cache needs"""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of the configs that build a Method; a system subclasses it."""

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        """The method for data described by `info`, around an encoder and a maker of views."""
        raise TypeError(f"{type(self).__name__} does not define build")


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a method may know of its data before it sees a batch."""

    num_samples: int
    shape: tuple[int, ...] = ()
    """of one dense sample as the encoder sees it, e.g. (3, 224, 224)"""
    num_classes: int = 0
    """0: no labels"""
    class_names: tuple[str, ...] = ()
    steps: int = 0
    """optimiser steps of the whole run"""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The head between features and the embedding that the loss sees; discarded after training."""

    kind: Literal["none", "linear", "mlp"] = "mlp"
    layers: int = 2
    """linear layers of the mlp"""
    hidden: int = 0
    """width between them; 0: the feature width"""
    dim: int = 128
    """width of the embedding"""
    norm: Literal["batch", "layer", "none"] = "batch"
    """between the layers"""
    last_norm: bool = False
    """a normalisation without shift after the last layer"""

    def __post_init__(self) -> None:
        expect(self.layers >= 1, "head.layers", "1 or more", self.layers)
        expect(self.dim >= 1, "head.dim", "1 or more", self.dim)


@dataclass(frozen=True, kw_only=True)
class ContrastConfig(MethodConfig):
    """The declarative frame: what is a query, what is a key, which pairs are positive, and what they pay."""

    pairs: Literal["views", "labels"] = "views"
    """positives: the other views of the same sample, or every sample of the same label"""
    loss: Literal["nt_xent", "dcl", "supcon", "info_nce"] = "nt_xent"
    """info_nce: queries against keys in one direction, as MoCo does"""
    temperature: float = 0.1
    learnable_temperature: bool = False
    positives: Literal["mean", "sum"] = "mean"
    """of supcon: mean outside the logarithm (L_out) or inside (L_in)"""
    vmf_sigma: float = 0.0
    """of dcl: width of the von Mises-Fisher weight on positives (DCLW); 0: none"""
    head: HeadConfig = field(default_factory=HeadConfig)
    key_encoder: Literal["shared", "ema", "frozen"] = "shared"
    momentum: float = 0.999
    """of the ema key encoder"""
    queue: int = 0
    """keys kept of former batches; 0: the batch alone"""
    symmetric: bool = True
    """each view takes its turn as the query"""
    predictor: HeadConfig = field(default_factory=lambda: HeadConfig(kind="none"))
    """on the query side only"""
    candidates: Literal["gather", "ring"] = "gather"
    """over several processes: hold the candidates of all, or let blocks of them travel (nearfar.ring)"""
    shuffle_keys: bool = False
    """the key encoder sees its batch in another order over several processes, against leaks through batch statistics"""

    def __post_init__(self) -> None:
        expect_positive("method.temperature", self.temperature)
        expect(0 <= self.momentum <= 1, "method.momentum", "a number in [0, 1]", self.momentum)
        expect(self.queue >= 0, "method.queue", "0 or more", self.queue)
        expect(self.vmf_sigma >= 0, "method.vmf_sigma", "0 or more", self.vmf_sigma)
        expect(
            self.queue == 0 or self.key_encoder != "shared",
            "method.queue", "0 when key_encoder is 'shared', since a queue needs keys without gradient", self.queue,
        )  # fmt: skip
        expect(
            (self.loss == "info_nce") == (self.key_encoder != "shared"),
            "method.loss", "'info_nce' exactly with a key encoder of its own, 'ema' or 'frozen'",
            f"{self.loss!r} with key_encoder {self.key_encoder!r}",
        )  # fmt: skip
        plain = self.vmf_sigma == 0 and self.positives == "mean" and self.queue == 0
        expect(
            self.candidates == "gather" or plain,
            "method.candidates", "'gather' with vmf_sigma, positives 'sum' or a queue", self.candidates,
        )  # fmt: skip
        expect(self.pairs == "views" or self.loss == "supcon", "method.loss", "'supcon' with pairs 'labels'", self.loss)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar.methods.contrast import Contrast

        return Contrast(self, encoder, views)
