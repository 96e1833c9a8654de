"""The encoder, the method around it, and what both may know of the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nearfar.checks import expect

if TYPE_CHECKING:
    from torch import nn

    from nearfar.data import Source
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

    @property
    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return False

    @property
    def needs_columns(self) -> tuple[str, ...]:
        """What samples must have beside them: "target" (data.target), "path" (data.levels)."""
        return ()

    @property
    def stages(self) -> str:
        """The "module:function" of what trains in several runs, called as (recipe, resume=, data=); empty: one run."""
        return ""

    def source_for(self, source: Source, size: int) -> Source:
        """The training samples as the method reads them: the source, or one around it with further fields.

        Args:
            source: of raw samples.
            size: side in pixels of the images that the encoder sees.
        """
        return source

    def without_weights(self) -> MethodConfig:
        """The config without files of weights to start from, for a method whose weights are replaced or random."""
        return self

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        """The method for data described by `info`, around an encoder and a maker of views."""
        raise TypeError(f"{type(self).__name__} does not define build")


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a method may know of its data before it sees a batch."""

    num_samples: int
    num_indices: int = 0
    """a sample's index is below this; more than num_samples where others are held out; 0: num_samples"""
    shape: tuple[int, ...] = ()
    """of one dense sample as the encoder sees it, e.g. (3, 224, 224)"""
    num_classes: int = 0
    """0: no labels"""
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    """training samples of every class; empty: no labels"""
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
    last_bias: bool = True
    """of the last layer, where no normalisation follows; off where what comes next takes the mean out again"""

    def __post_init__(self) -> None:
        expect(self.layers >= 1, "head.layers", "1 or more", self.layers)
        expect(self.dim >= 1, "head.dim", "1 or more", self.dim)


@dataclass(frozen=True, kw_only=True)
class FrameConfig(MethodConfig):
    """What stands around the objective: heads, how keys are encoded, what is kept of former batches."""

    head: HeadConfig = field(default_factory=HeadConfig)
    predictor: HeadConfig = field(default_factory=lambda: HeadConfig(kind="none"))
    """on the query side only"""
    key_encoder: Literal["shared", "ema", "frozen"] = "shared"
    momentum: float = 0.999
    """of the ema key encoder"""
    momentum_end: float = 0.0
    """momentum that a cosine leads to by the end of training; 0: constant"""
    queue: int = 0
    """keys kept of former batches; 0: the batch alone"""
    symmetric: bool = True
    """each view takes its turn as the query"""
    shuffle_keys: bool = False
    """the key encoder sees its batch in another order over several processes, against leaks through batch statistics"""

    def __post_init__(self) -> None:
        expect(0 <= self.momentum <= 1, "method.momentum", "a number in [0, 1]", self.momentum)
        rises = self.momentum_end == 0 or self.momentum <= self.momentum_end <= 1
        expect(rises, "method.momentum_end", "0, or a number from method.momentum to 1", self.momentum_end)
        expect(self.queue >= 0, "method.queue", "0 or more", self.queue)
        expect(
            self.queue == 0 or self.key_encoder != "shared",
            "method.queue", "0 when key_encoder is 'shared', since a queue needs keys without gradient", self.queue,
        )  # fmt: skip
