"""Where samples come from, which stand together, and how they are seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.config._checks import fraction, ordered


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from and how they are read."""

    root: str = ""
    """folder of images (labelled: one subfolder a class; or flat), or the folder that holds a named dataset; of
    webdataset a folder, pattern or address of tar files; of hf a folder, a parquet file, or a name on the hub"""
    source: str = "folder"
    """"folder", "webdataset" (tar shards), "hf" (Hugging Face datasets), "digits" (shipped with scikit-learn), or a
    dataset that the plugin knows by name, e.g. fashion-mnist"""
    sources: tuple[str, ...] = ()
    """in place of root NAME=FOLDER of each of several, e.g. of two domains; they become one, whose batches sampler.kind
    mixes"""
    image_column: str = ""
    """where the image is: a column of hf, an extension of webdataset; empty: the only one there"""
    label_column: str = ""
    """where the label is: a column of hf, an extension or json.FIELD of webdataset; empty: label, or cls; none: no
    labels"""
    columns: tuple[str, ...] = ()
    """of hf and webdataset: further fields of every sample by name, e.g. txt for captions"""
    target: str = ""
    """the column of a number that every sample has, for regression; of folder in its metadata.csv"""
    levels: tuple[str, ...] = ()
    """columns of labels from coarse to fine, the finest becomes the label; of folder: folder1, folder2, ..., names of
    nested folders, or columns of its metadata.csv"""
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
        fraction("data.validation", self.validation)
        expect(self.validation < 1, "data.validation", "a share below 1", self.validation)
        fraction("data.max_bad_share", self.max_bad_share)
        expect(
            self.image_size == 0 or self.image_size >= 4, "data.image_size", "0 or at least 4 pixels", self.image_size
        )
        expect(self.channels in (0, 1, 3), "data.channels", "0, 1 or 3", self.channels)
        named = self.image_column or self.label_column or self.columns
        expect(
            not named or self.source in ("webdataset", "hf"), "data.source",
            "'webdataset' or 'hf' with data.image_column, data.label_column or data.columns", repr(self.source),
        )  # fmt: skip
        if parse_sources(self.sources):
            expect(not self.root, "data.root", "nothing with data.sources", repr(self.root))
            expect(
                self.source != "digits", "data.source", "one that is read from folders, with data.sources", "'digits'"
            )
            alone = not self.target and not self.levels
            expect(alone, "data.sources", "none with data.target or data.levels", self.sources)
        expect(self.workers >= 0, "data.workers", "0 or more", self.workers)
        expect(self.memory_gb >= 0, "data.memory_gb", "0 or more", self.memory_gb)
        expect_positive("data.cache_gb", self.cache_gb)


def parse_sources(sources: tuple[str, ...]) -> dict[str, str]:
    """Name -> folder of texts NAME=FOLDER."""
    found: dict[str, str] = {}
    for text in sources:
        name, _, folder = text.partition("=")
        fits = bool(name and folder) and name not in found
        expect(fits, "data.sources", "NAME=FOLDER, each name once", repr(text))
        found[name] = folder
    return found


GROUPED = ("single-group", "mixed-groups", "zipped")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Which samples stand together in a batch of trainer.batch_size."""

    kind: Literal[
        "shuffle", "per-class", "hierarchical", "balanced", "single-group", "mixed-groups", "zipped", "no-duplicates",
        "shards", "by-length",
    ] = "shuffle"  # fmt: skip
    """every sample once; so many a class; so many a node of every level; drawn by class size; each batch from one
    group; each batch from all groups; a stated number of every source, each at its own pace; no two samples of a batch
    with the same key; every sample once, from few shards at a time; every sample once, beside others of its length"""
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
    shares: tuple[str, ...] = ()
    """of every group, or source by name, NAME=NUMBER; samples of a batch (zipped), or in place of power the proportions
    of batches (single-group) and places (mixed-groups)"""
    order: Literal["shuffle", "interleave"] = "shuffle"
    """of the batches of single-group; interleave: groups in turn, as often as their shares say"""
    length: str = "total"
    """of an epoch of mixed-groups and zipped: total: as many samples as there are; shortest, longest: until the first,
    the last group is through; NAME: until that one is"""
    lanes: int = 8
    """of shards: places that are read at the same time, equally many samples of each in a batch"""
    window: int = 4096
    """of shards: samples of a lane that change places with one another; of by-length: that are sorted together"""
    budget: int = 0
    """of by-length: largest samples of a batch times the longest one's length, in words of a sentence; 0: all batches
    have trainer.batch_size samples"""

    def __post_init__(self) -> None:
        for name in ("num_per_class", "lanes", "window"):
            expect(getattr(self, name) >= 1, f"sampler.{name}", "1 or more", getattr(self, name))
        expect(self.budget == 0 or (self.budget > 0 and self.kind == "by-length"), "sampler.budget",
               "0, or more with kind 'by-length'", self.budget)  # fmt: skip
        parse_shares(self.shares)
        if self.shares:
            expect_choice("sampler.kind with shares", self.kind, GROUPED)
            expect(self.power == 1, "sampler.power", "1 with sampler.shares", self.power)
        expect(self.kind != "zipped" or bool(self.shares), "sampler.shares", "NAME=NUMBER of every source with kind "
               "'zipped'", self.shares)  # fmt: skip
        expect((self.kind == "hierarchical") == bool(self.nums), "sampler.nums", "numbers exactly with kind "
               "'hierarchical'", self.nums)  # fmt: skip


def parse_shares(shares: tuple[str, ...]) -> dict[str, float]:
    """Name -> number of texts NAME=NUMBER."""
    found: dict[str, float] = {}
    for text in shares:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        fits = bool(name) and name not in found and math.isfinite(value) and value > 0
        expect(fits, "sampler.shares", "NAME=NUMBER with a number above 0, each name once", text)
        found[name] = value
    return found


@dataclass(frozen=True, kw_only=True)
class ImageViewConfig:
    """Random views of an image; a probability or range of zero switches a step off."""

    num_views: int = 2
    """independent views of every sample"""
    global_size: int = 0
    """side of these views in pixels; 0: data.image_size, at which evaluation sees images"""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """share of the image's area that a crop takes"""
    local_views: int = 0
    """further views, smaller and of smaller crops, with everything else drawn as for the others (multi-crop)"""
    local_size: int = 0
    """side of the local views in pixels; 0: half of the others', rounded up"""
    local_scale: tuple[float, float] = (0.05, 0.2)
    """share of the image's area that the crop of a local view takes"""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """width over height of a crop"""
    centred_views: int = 0
    """so many of the views, the first ones, are crops about a centre that is drawn within a box of the image"""
    centre_box: tuple[float, float] = (0.25, 0.75)
    """of these: from where to where the box goes on either axis, as a share of the side"""
    centre_beta: float = 0.1
    """of these: parameter of the centre's symmetric Beta distribution; 1: uniform, below: rather at the borders"""
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
        for name in ("crop_scale", "local_scale"):
            low, high = getattr(self, name)
            ordered(f"views.{name}", (low, high))
            expect(low > 0 and high <= 1, f"views.{name}", "shares in (0, 1]", (low, high))
        for name in ("global_size", "local_views", "local_size"):
            expect(getattr(self, name) >= 0, f"views.{name}", "0 or more", getattr(self, name))
        expect(0 <= self.centred_views <= self.num_views, "views.centred_views", "0 to views.num_views",
               self.centred_views)  # fmt: skip
        ordered("views.centre_box", self.centre_box)
        expect(self.centre_box[1] <= 1, "views.centre_box", "shares in [0, 1]", self.centre_box)
        expect_positive("views.centre_beta", self.centre_beta)
        ordered("views.crop_ratio", self.crop_ratio)
        expect(self.crop_ratio[0] > 0, "views.crop_ratio", "ratios > 0", self.crop_ratio)
        ordered("views.zoom", self.zoom)
        expect(self.zoom[0] > 0, "views.zoom", "factors > 0", self.zoom)
        ordered("views.gain", self.gain)
        ordered("views.blur_sigma", self.blur_sigma)
        for name in ("flip", "vertical_flip", "jitter", "grayscale", "blur", "solarize"):
            fraction(f"views.{name}", getattr(self, name))
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
