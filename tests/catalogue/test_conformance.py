"""Every system that trains keeps the promises of the Method contract, resumes to the bit, and splits over processes."""

from __future__ import annotations

import dataclasses
import importlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed.launch import launch
from nearfar import plugin
from nearfar.catalog import System, systems
from nearfar.config import (
    DataConfig,
    EncoderConfig,
    HeadConfig,
    OptimiserConfig,
    SamplerConfig,
    TrainerConfig,
    WMSEConfig,
)
from nearfar.data import Annotated, ArraySource, Concat, Data, Subset, without_test
from nearfar.method import Method
from nearfar.recipe import Recipe
from nearfar_images.systems.pcl_sr import NetworkConfig
from nearfar_sentences import templates
from nearfar_sentences.config import TextRecipe
from nearfar_sentences.data import TextSource

# Without dropout, which several processes draw apart, copies of a sentence are the same.
pytestmark = pytest.mark.filterwarnings("ignore:encoder. expected dropout")

# Changes of methods whose batch must have more samples than the embedding has features, or that mine the queue.
NARROW: dict[str, dict[str, Any]] = {
    "wmse": {"head": HeadConfig(hidden=8, dim=2, last_bias=False), "wmse": WMSEConfig(size=0)},
    "cut": {
        "width": 4, "num_blocks": 2, "layers": (0, 4, 12), "num_patches": 8, "dim": 8, "discriminator_layers": 2,
        "discriminator_width": 4, "l1": 1.0,
    },
    "pcl_sr": {"network": NetworkConfig(width=8, blocks=1), "width": 4, "num_crops": 2},
    "orl": {"head": HeadConfig(hidden=16, dim=8, last_bias=False), "predictor": HeadConfig(hidden=16, dim=8)},
    "topic_moo": {"dropout": 0.0},
    "mochi": {"num_hardest": 4, "num_pairs": 5, "num_with_query": 3, "pairs_from": 0, "with_query_from": 0},
}  # fmt: skip
TRAINS = [card for card in systems() if card.kind in ("train", "pipeline", "baseline")]


def small(slug: str, output: str, **trainer: Any) -> Any:
    """A system's own method on tiny samples of its plugin, with an encoder that any processor trains at once."""
    card = next(card for card in systems() if card.slug == slug)
    recipe = plugin.load_recipe(card.recipe)
    options = {
        "epochs": 1, "batch_size": 8, "drop_last": False, "log_every": 1, "evaluate_every": 0,
        "evaluate_before": False, "progress": False, "report": False,
        "device": "cpu", "output": output,
    } | trainer  # fmt: skip
    method = dataclasses.replace(recipe.method, **NARROW.get(slug, {}))
    if getattr(method, "queue", 0):
        method = dataclasses.replace(method, queue=20)
    if slug == "orl":
        method = dataclasses.replace(method, regions=toy_regions(output))
    return dataclasses.replace(
        recipe, method=method, trainer=TrainerConfig(**options), **SMALL[card.plugin](recipe)
    )  # fmt: skip


def toy_regions(output: str) -> str:
    """A file of two boxes, two neighbours and a pair with either for each of the toy images, beside a run's folder."""
    from nearfar_images.correspondence import Correspondence

    n = np.arange(21)
    boxes = np.stack([n % 4, n % 3, 8 + n % 4, 9 + n % 3, 4 + n % 5, n % 2, 10 + n % 5, 8 + n % 2], 1).reshape(-1, 4)
    near = np.stack([(n + 1) % 21, (n + 4) % 21], 1)
    pairs = np.stack([np.arange(42) % 2, np.arange(42) // 2 % 2], 1)
    place = Path(f"{output}-regions.npz")
    if not place.exists():  # processes and runs that share it write the same
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f"{place.stem}-{os.getpid()}.npz")
        Correspondence(n, boxes, np.arange(22) * 2, near, pairs, np.arange(43)).save(part)
        part.replace(place)
    return str(place)


def small_images(recipe: Recipe) -> dict[str, Any]:
    zipped = recipe.sampler.kind == "zipped"
    return {
        "sampler": SamplerConfig(kind="zipped", shares=("a=3", "b=5"), length="longest") if zipped else recipe.sampler,
        "data": DataConfig(image_size=16, channels=3),
        "encoder": EncoderConfig(name="convnet", width=4, dim=16),
    }


def small_sentences(recipe: TextRecipe) -> dict[str, Any]:
    """Without dropout, which several processes draw apart, and without Adam, which makes whole steps of the rounding of
    gradients that are zero, as those of a bias before batch statistics are."""
    encoder = dataclasses.replace(
        recipe.encoder, name="tiny", layers=2, dim=16, heads=2, vocabulary=200, max_length=16, dropout=0.0
    )
    return {"encoder": encoder, "optimiser": OptimiserConfig(name="sgd", lr=0.005)}


SMALL: dict[str, Any] = {"images": small_images, "sentences": small_sentences}


def trainer(method: Method, data: Data, recipe: Any, **options: Any) -> Any:
    """What trains a small recipe."""
    from nearfar.samplers import make_sampler
    from nearfar.train import Trainer

    config = recipe.trainer
    sampler = make_sampler(recipe.sampler, data.train, config.batch_size, seed=config.seed, drop_last=config.drop_last)
    return Trainer(method, data, config, optimiser=recipe.optimiser, sampler=sampler, **options)


def built(slug: str, recipe: Any) -> tuple[Data, Method]:
    """The data and the method of a small recipe."""
    owner = next(card.plugin for card in systems() if card.slug == slug)
    if owner == "sentences":
        data = sentences(alone=slug in COPIES)
    else:
        data = two_sources() if recipe.sampler.kind == "zipped" else images()
    return importlib.import_module(f"nearfar_{owner}.pipeline").build(recipe, data)


COPIES = {"micse"}
"""systems that compare copies of one sentence alone"""


def sentences(num: int = 21, *, alone: bool = False) -> Data:
    """Triplets of a grammar with classes and features of images; or the sentences alone."""
    text, positive, negative = templates.triplets(num, 0)
    if alone:
        return without_test(TextSource(text))
    features = np.random.default_rng(0).normal(size=(num, 6)).astype(np.float32)
    return without_test(
        TextSource(text, positive=positive, negative=negative, labels=[i % 3 for i in range(num)], image=features)
    )


def images(num: int = 21) -> Data:
    """Three kinds of pictures, with a number and a path of labels for systems that learn from those."""
    rng = np.random.default_rng(0)
    labels = np.arange(num) % 3
    pixels = rng.integers(0, 80, (num, 16, 16, 3), dtype=np.uint8)
    pixels[np.arange(num), :, :, labels] += 120
    path = np.stack([labels > 1, labels], 1).astype(np.int64)
    source = Annotated(ArraySource(pixels, labels, name="toy"), target=labels + np.arange(num) % 2 / 4, path=path)
    return without_test(source)  # nothing is scored


def two_sources() -> Data:
    """Nine of these pictures as source "a", the others as "b"."""
    source = images().train
    return without_test(Concat({"a": Subset(source, np.arange(9)), "b": Subset(source, np.arange(9, 21))}))


def train(slug: str, output: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Three steps, the last of an uneven batch; parameters and losses. `changes` are fields of the method's config."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="encoder: expected dropout")  # in processes of their own
    recipe = small(slug, output)
    recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, **changes or {}))
    data, method = built(slug, recipe)
    run = trainer(method, data, recipe).fit()
    return {
        "state": {name: value.clone() for name, value in method.state_dict().items()},
        "losses": [row["loss"] for row in run.metrics if "loss" in row],
    }


@pytest.mark.parametrize("card", TRAINS, ids=lambda card: card.slug)
def test_the_contract(card: System, tmp_path: Path) -> None:
    from nearfar.batch import collate
    from nearfar.testing import check_method

    data, method = built(card.slug, small(card.slug, str(tmp_path)))
    check_method(method, collate([data.train[i] for i in range(12)]))


RING = {"simclr": {"learnable_temperature": True}, "dcl": {}, "supcon": {}, "moco": {"queue": 0, "symmetric": True}}
"""changes of systems that also run with candidates that travel"""
OTHERWISE: dict[str, dict[str, Any]] = {
    "cut": {"negatives": "batch", "r1": 1.0, "mirror": 0.5, "identity": False, "l1": 0.0, "discriminator_norm": False},
}
"""changes of systems that meet other processes in another way too"""


GROUPS = 3
"""parts of the catalogue that are launched together: a process takes long to start, and a test should not"""


def train_all(output: str, group: int) -> dict[str, Any]:
    """Every system of a group, and those around the ring, one after the other."""
    slugs = [card.slug for card in TRAINS][group::GROUPS]
    found = {slug: train(slug, f"{output}/{slug}") for slug in slugs}
    for slug, changes in RING.items():
        if slug in slugs:
            found[f"{slug} ring"] = train(slug, f"{output}/{slug}-ring", {**changes, "candidates": "ring"})
    for slug, changes in OTHERWISE.items():
        if slug in slugs:
            found[f"{slug} otherwise"] = train(slug, f"{output}/{slug}-otherwise", changes)
    return found


@pytest.mark.parametrize("group", range(GROUPS))
def test_two_processes_equal_one(group: int, tmp_path: Path) -> None:
    one = train_all(str(tmp_path / "one"), group)
    two = launch(train_all, 2, str(tmp_path / "two"), group, timeout=250)
    for system, expected in one.items():
        assert len(expected["losses"]) == 3
        losses = torch.tensor(two[0][system]["losses"])
        torch.testing.assert_close(
            losses, torch.tensor(expected["losses"]), rtol=1e-4, atol=1e-5, msg=lambda m, s=system: f"{s}: {m}"
        )
        for result in two:
            for name, value in expected["state"].items():
                torch.testing.assert_close(
                    result[system]["state"][name], value, rtol=1e-3, atol=2e-4,
                    msg=lambda m, n=name, s=system: f"{s}, {n}: {m}",
                )  # fmt: skip


@pytest.mark.parametrize("card", TRAINS, ids=lambda card: card.slug)
def test_stopped_and_resumed_equals_never_stopped(card: System, tmp_path: Path) -> None:
    from nearfar.train import Interrupted, Run, Trainer

    def run(output: Path, stop_at: int = 0, resume: bool = False) -> None:
        recipe = small(card.slug, str(output), epochs=2)
        data, method = built(card.slug, recipe)

        def callback(trainer: Trainer, row: dict[str, Any]) -> None:
            if trainer.step == stop_at:
                trainer._leave(15)

        trainer(method, data, recipe, callbacks=[callback]).fit(resume)

    run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", stop_at=2)
    run(tmp_path / "parts", resume=True)
    files = [Run(tmp_path / name).checkpoint("last") / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()
