"""The typed options of every part that a recipe puts together; importing this module loads no torch.

Every field is a flag on the command line (`--trainer.batch-size 512`) and a key of the run's recipe.json. Values are
checked when a config is made, so that a wrong one is refused before any work starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nearfar.checks import expect, expect_positive

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views


def _fraction(name: str, value: float) -> None:
    expect(0.0 <= value <= 1.0, name, "a number in [0, 1]", value)


def _ordered(name: str, value: tuple[float, float], low: float = 0.0) -> None:
    expect(low <= value[0] <= value[1], name, f"two numbers, {low} <= low <= high", value)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from and how they are read."""

    root: str = ""
    """folder of images (labelled: one subfolder a class; or flat), or the folder that holds a named dataset; of
    webdataset a folder, pattern or address of tar files; of hf a folder, a parquet file, or a name on the hub"""
    source: str = "folder"
    """"folder", "webdataset" (tar shards), "hf" (Hugging Face datasets), "digits" (shipped with scikit-learn), or a
    dataset that the plugin knows by name, e.g. fashion-mnist"""
    image_column: str = ""
    """where the image is: a column of hf, an extension of webdataset; empty: the only one there"""
    label_column: str = ""
    """where the label is: a column of hf, an extension or json.FIELD of webdataset; empty: label, or cls; none: no
    labels"""
    columns: tuple[str, ...] = ()
    """of hf and webdataset: further fields of every sample by name, e.g. txt for captions"""
    validation: float = 0.1
    """share of the training data held out when the source has no split of its own"""
    image_size: int = 0
    """square side in pixels of the views the encoder sees; 0 takes the source's own size, 224 for photographs"""
    channels: int = 0
    """1 or 3; 0 takes the source's own"""
    workers: int = 0
    """loader processes; results do not depend on the number"""
    memory_gb: float = 4.0
    """cap of the decoded uint8 memory map; a larger source is decoded anew each epoch"""
    cache: str = ""
    """folder of the memory map, of shards' indices and copies; empty: nearfar's folder in the user's cache"""
    cache_gb: float = 50.0
    """cap of the copies of webdataset shards that lie on other machines"""
    max_bad_share: float = 0.01
    """share of unreadable samples that may be replaced before the run stops"""

    def __post_init__(self) -> None:
        _fraction("data.validation", self.validation)
        expect(self.validation < 1, "data.validation", "a share below 1", self.validation)
        _fraction("data.max_bad_share", self.max_bad_share)
        expect(
            self.image_size == 0 or self.image_size >= 4, "data.image_size", "0 or at least 4 pixels", self.image_size
        )
        expect(self.channels in (0, 1, 3), "data.channels", "0, 1 or 3", self.channels)
        named = self.image_column or self.label_column or self.columns
        expect(
            not named or self.source in ("webdataset", "hf"), "data.source",
            "'webdataset' or 'hf' with data.image_column, data.label_column or data.columns", repr(self.source),
        )  # fmt: skip
        expect(self.workers >= 0, "data.workers", "0 or more", self.workers)
        expect(self.memory_gb >= 0, "data.memory_gb", "0 or more", self.memory_gb)
        expect_positive("data.cache_gb", self.cache_gb)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Which samples stand together in a batch of trainer.batch_size."""

    kind: Literal[
        "shuffle", "per-class", "hierarchical", "balanced", "single-group", "mixed-groups", "no-duplicates", "shards"
    ] = "shuffle"
    """every sample once; so many a class; so many a node of every level; drawn by class size; each batch from one
    group; each batch from all groups; no two samples of a batch with the same key; every sample once, from few shards
    at a time"""
    column: str = ""
    """the source's column of labels, paths, groups, keys or shards; empty: label, path, group, key or shard, as the
    kind asks"""
    num_per_class: int = 4
    """of per-class; the batch size is a multiple of it"""
    nums: tuple[int, ...] = ()
    """of hierarchical: nodes per parent on every level and samples per node; their product is the batch size"""
    balance: Literal["instance", "class", "sqrt", "effective", "progressive"] = "class"
    """of balanced: shares as they are, equal, by the root of a class's size, by its effective number, or from instance
    to class over the run"""
    beta: float = 0.9999
    """of the effective number"""
    power: float = 1.0
    """of groups: batches, or places, in proportion to a group's size to this power; 0: alike"""
    order: Literal["shuffle", "interleave"] = "shuffle"
    """of the batches of single-group"""
    length: Literal["total", "shortest", "longest"] = "total"
    """of an epoch of mixed-groups: as many samples as there are, or until a group is through"""
    lanes: int = 8
    """of shards: places that are read at the same time, equally many samples of each in a batch"""
    window: int = 4096
    """of shards: samples of a lane that change places with one another"""

    def __post_init__(self) -> None:
        for name in ("num_per_class", "lanes", "window"):
            expect(getattr(self, name) >= 1, f"sampler.{name}", "1 or more", getattr(self, name))
        expect((self.kind == "hierarchical") == bool(self.nums), "sampler.nums", "numbers exactly with kind "
               "'hierarchical'", self.nums)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageViewConfig:
    """Random views of an image; a probability or range of zero switches a step off."""

    num_views: int = 2
    """independent views of every sample"""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """share of the image's area that a crop takes"""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """width over height of a crop"""
    rotate: float = 0.0
    """largest rotation in radians, either way"""
    zoom: tuple[float, float] = (1.0, 1.0)
    """isotropic scaling of the content about the centre"""
    aspect: float = 0.0
    """largest log of the ratio between horizontal and vertical scaling"""
    shear: float = 0.0
    """largest shear, either way"""
    shift: float = 0.0
    """largest translation as a share of the side, either way"""
    flip: float = 0.5
    """probability of a horizontal flip"""
    vertical_flip: float = 0.0
    """probability of a vertical flip"""
    jitter: float = 0.8
    """probability of colour jitter"""
    brightness: float = 0.4
    """factor drawn from 1 +- this"""
    contrast: float = 0.4
    """factor drawn from 1 +- this"""
    saturation: float = 0.4
    """factor drawn from 1 +- this"""
    hue: float = 0.1
    """hue shift in turns, either way"""
    grayscale: float = 0.2
    """probability of grey"""
    blur: float = 0.0
    """probability of Gaussian blur"""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """standard deviation of the blur in pixels"""
    blur_kernel: int = 0
    """odd kernel size in pixels; 0: about a tenth of the side"""
    solarize: float = 0.0
    """probability of inverting pixels above one half"""
    gain: tuple[float, float] = (1.0, 1.0)
    """global intensity factor"""
    noise: float = 0.0
    """standard deviation of additive Gaussian noise, in units of the full range"""
    mean: tuple[float, ...] = ()
    """subtracted per channel, in [0, 1] units; empty: not normalised"""
    std: tuple[float, ...] = ()
    """divides per channel"""
    exact_colour: bool = False
    """random order and clamping after each colour step, as torchvision does; off: one affine map a sample"""

    def __post_init__(self) -> None:
        expect(self.num_views >= 1, "views.num_views", "1 or more", self.num_views)
        _ordered("views.crop_scale", self.crop_scale)
        expect(
            self.crop_scale[0] > 0 and self.crop_scale[1] <= 1, "views.crop_scale", "shares in (0, 1]", self.crop_scale
        )
        _ordered("views.crop_ratio", self.crop_ratio)
        expect(self.crop_ratio[0] > 0, "views.crop_ratio", "ratios > 0", self.crop_ratio)
        _ordered("views.zoom", self.zoom)
        expect(self.zoom[0] > 0, "views.zoom", "factors > 0", self.zoom)
        _ordered("views.gain", self.gain)
        _ordered("views.blur_sigma", self.blur_sigma)
        for name in ("flip", "vertical_flip", "jitter", "grayscale", "blur", "solarize"):
            _fraction(f"views.{name}", getattr(self, name))
        for name in ("rotate", "aspect", "shear", "shift", "brightness", "contrast", "saturation", "noise"):
            expect(getattr(self, name) >= 0, f"views.{name}", "0 or more", getattr(self, name))
        expect(0 <= self.hue <= 0.5, "views.hue", "a number in [0, 0.5]", self.hue)
        expect(
            self.blur_kernel == 0 or self.blur_kernel % 2 == 1,
            "views.blur_kernel",
            "0 or an odd number",
            self.blur_kernel,
        )
        expect(len(self.mean) == len(self.std), "views.std", "as many values as views.mean", self.std)
        expect(all(s > 0 for s in self.std), "views.std", "values > 0", self.std)


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
class OptimiserConfig:
    """One optimiser and its learning rate over the run."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = 2e-3
    """peak learning rate; with lr_scaling its value at a batch of 256"""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """linear: times batch/256; sqrt: times sqrt(batch/256)"""
    weight_decay: float = 1e-4
    """left out for biases, norms and scalars"""
    momentum: float = 0.9
    """of sgd and lars"""
    betas: tuple[float, float] = (0.9, 0.999)
    """of adamw"""
    nesterov: bool = False
    trust: float = 1e-3
    """trust coefficient of lars"""
    warmup_epochs: float = 0.0
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """after the warm-up"""
    final_lr: float = 0.0
    """learning rate at the end as a share of the peak"""
    layer_decay: float = 1.0
    """learning rate of a layer = lr * layer_decay^(layers above it)"""
    freeze: tuple[str, ...] = ()
    """parameters whose name starts with one of these stay as they are, their modules in eval mode"""

    def __post_init__(self) -> None:
        expect_positive("optimiser.lr", self.lr)
        expect(self.weight_decay >= 0, "optimiser.weight_decay", "0 or more", self.weight_decay)
        expect(0 <= self.momentum < 1, "optimiser.momentum", "a number in [0, 1)", self.momentum)
        expect(self.warmup_epochs >= 0, "optimiser.warmup_epochs", "0 or more", self.warmup_epochs)
        expect(0 < self.layer_decay <= 1, "optimiser.layer_decay", "a number in (0, 1]", self.layer_decay)
        _fraction("optimiser.final_lr", self.final_lr)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long, how big, how often."""

    epochs: int = 100
    max_steps: int = 0
    """stop after this many optimiser steps; 0: after the epochs"""
    batch_size: int = 256
    """samples an optimiser step sees, over all processes and accumulated parts together"""
    accumulate: int = 1
    """parts a batch is cut into; candidates are those of the same part"""
    cache: int = 0
    """samples a process encodes at a time, with the loss and gradient of the whole batch; 0: all at once"""
    cache_batch_norm: Literal["refuse", "chunk", "freeze"] = "refuse"
    """of an encoder whose batch is cached: chunk: statistics of each chunk, inexact; freeze: the running statistics"""
    drop_last: bool = True
    """leave out a last batch that is smaller than the others"""
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    clip_norm: float = 0.0
    """largest gradient norm; 0: not clipped"""
    device: Literal["auto", "cpu"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """over several processes: ddp: each holds the whole model; fsdp: each holds a part of parameters, gradients and
    optimiser states; in one process it says nothing"""
    compile: bool = False
    """torch.compile the method"""
    sync_batch_norm: bool = True
    """batch statistics over all processes"""
    output: str = ""
    """run folder; empty: runs/<system>-<date>"""
    checkpoint_every: int = 0
    """steps between checkpoints; 0: every epoch"""
    keep: int = 2
    """newest checkpoints kept, besides the best"""
    evaluate_every: int = 10
    """epochs between evaluations on the validation split; 0: only at the end"""
    monitor: str = "knn"
    """evaluation score that chooses the best checkpoint"""
    patience: int = 0
    """evaluations without a better score before the run stops early; 0: never"""
    log_every: int = 10
    """steps between rows of metrics.jsonl"""
    trackers: tuple[str, ...] = ()
    """Accelerate trackers by name, e.g. tensorboard, wandb"""
    max_bad_steps: int = 5
    """non-finite losses that are skipped before the run stops"""
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "keep", "log_every"):
            expect(getattr(self, name) >= 1, f"trainer.{name}", "1 or more", getattr(self, name))
        for name in (
            "max_steps", "cache", "clip_norm", "checkpoint_every", "evaluate_every", "patience", "max_bad_steps"
        ):  # fmt: skip
            expect(getattr(self, name) >= 0, f"trainer.{name}", "0 or more", getattr(self, name))
        expect(
            self.cache == 0 or self.accumulate == 1,
            "trainer.accumulate", "1 with trainer.cache, which bounds memory already and keeps every candidate",
            self.accumulate,
        )  # fmt: skip
        whole = self.parallel == "ddp"
        expect(whole or not self.compile, "trainer.compile", "off with trainer.parallel 'fsdp'", self.compile)
        expect(
            whole or self.precision != "fp16",
            "trainer.precision", "'no' or 'bf16' with trainer.parallel 'fsdp'", self.precision,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Scores of frozen features."""

    num_neighbours: int = 5
    """of the kNN classifier"""
    per_class: int = 10
    """labels a class of the few-label probe"""
    few_label_draws: int = 5
    """random draws of those labels"""
    confidence: float = 0.95
    """of the intervals"""

    def __post_init__(self) -> None:
        expect(self.num_neighbours >= 1, "evaluate.num_neighbours", "1 or more", self.num_neighbours)
        expect(self.per_class >= 1, "evaluate.per_class", "1 or more", self.per_class)
        expect(0 < self.confidence < 1, "evaluate.confidence", "a number in (0, 1)", self.confidence)


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
