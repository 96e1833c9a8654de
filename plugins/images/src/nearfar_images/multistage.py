"""MCL around any recipe: each stage a run of its own whose batches come from one cluster each, and all joined.

runs = multistage(load_recipe("images/simclr_digits"), "work", num_stages=1, num_clusters=10)
features, index = pipeline.features(Joined(runs), source)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from nearfar.batch import Batch
from nearfar.checks import expect, expect_choice
from nearfar.data import Data
from nearfar.method import Method
from nearfar.prototypes import kmeans
from nearfar.recipe import Recipe
from nearfar.samplers import Sampler, SingleGroup
from nearfar.train import Context, Labels, Pipeline, Stage, Trainer, train_stage
from nearfar_images import pipeline
from nearfar_images.data import open_images
from nearfar_images.methods.mcl_multistage import fuse, pack

STARTS = ("scratch", "stage0", "previous")


def multistage(
    recipe: Recipe,
    folder: str | Path,
    *,
    num_stages: int = 1,
    num_clusters: int = 10,
    history: str = "all",
    start: str = "scratch",
    data: Data | None = None,
    resume: bool = False,
) -> list[Path]:
    """Trains the recipe's method in stages; batches of a later stage hold samples of one pseudo-label.

    Args:
        recipe: any of this plugin; its method and its loss stay as they are.
        folder: where each stage has a folder.
        num_stages: after the first.
        num_clusters: K, of each stage's features before the next.
        history: "all": the pseudo-label is the tuple of a sample's clusters under all former stages; "last": under the
            last one.
        start: "scratch" draws weights anew; "stage0", "previous": those that stage left.
        data: instead of what the recipe describes.
        resume: keep stages that are done, and let an unfinished one go on.

    Returns:
        The folders of the runs, a stage each; `nearfar_images.pipeline.load_run` reads them.

    Raises:
        ValueError: no cluster that fills a batch; unknown options.

    Notes: what does not fill a batch of its cluster is left out of an epoch; SingleGroup.num_left_out counts it.

    Source: Zhang et al., "Learning the Unlearned", ECCV 2024.
    """
    expect(num_stages >= 0, "num_stages", "0 or more", num_stages)
    expect_choice("history", history, ("all", "last"))
    expect_choice("start", start, STARTS)
    found = open_images(recipe.data) if data is None else data
    options = {
        "recipe": recipe.name, "values": dataclasses.asdict(recipe), "data": found.train.fingerprint(),
        "history": history, "start": start, "num_clusters": num_clusters,
    }  # fmt: skip
    stages: list[Stage] = []
    for t in range(num_stages + 1):
        inputs = tuple(name for s in range(t) for name in (f"stage{s}.run", f"cluster{s}.labels"))
        stages.append(Stage(f"stage{t}", train_stage(_maker(recipe, found, t)), inputs, options))
        if t < num_stages:
            stages.append(
                Stage(f"cluster{t}", _clusterer(found, t), (f"stage{t}.run",), {"num_clusters": num_clusters})
            )
    left = Pipeline(folder, stages).run(resume=resume)
    return [Path(left[f"stage{t}.run"].path) for t in range(num_stages + 1)]  # type: ignore[attr-defined]


def groups(labels: Sequence[Any], num_clusters: int, history: str) -> torch.Tensor:
    """The pseudo-label of every sample from its clusters under each former stage."""
    cluster = torch.stack([torch.as_tensor(part) for part in labels], 1)
    return pack(cluster if history == "all" else cluster[:, -1:], num_clusters)


def _maker(recipe: Recipe, data: Data, t: int) -> Any:
    def make(context: Context) -> Trainer:
        config = dataclasses.replace(recipe.trainer, seed=recipe.trainer.seed + t)
        own = dataclasses.replace(recipe, trainer=config)
        _, method = pipeline.build(own, data)
        sampler: Sampler | None = None
        if t:
            labels = [context.inputs[f"cluster{s}.labels"].labels for s in range(t)]
            group = groups(labels, context.options["num_clusters"], context.options["history"])
            sampler = SingleGroup(group.numpy(), config.batch_size, order="interleave", seed=config.seed)
            if context.options["start"] != "scratch":
                before = 0 if context.options["start"] == "stage0" else t - 1
                taught = pipeline.load_run(context.inputs[f"stage{before}.run"].path, "last").method
                method.load_state_dict(taught.state_dict())
        return Trainer(
            method, data, config, optimiser=recipe.optimiser, evaluate=recipe.evaluate,
            recipe=pipeline.resolve(own, data.train), sampler=sampler, workers=recipe.data.workers,
        )  # fmt: skip

    return make


def _clusterer(data: Data, t: int) -> Any:
    def cluster(context: Context) -> Mapping[str, Labels]:
        method = pipeline.load_run(context.inputs[f"stage{t}.run"].path, "last").method
        feature, _ = pipeline.features(method, data.train)
        found = kmeans(normalize(feature, dim=1), context.options["num_clusters"], spherical=False, tolerance=1e-5,
                       seed=t)  # fmt: skip
        return {"labels": Labels(found.label.cpu().numpy())}

    return cluster


class Joined(Method):
    """The features of several runs side by side, of unit length together.

    Args:
        runs: folders of runs, whose last checkpoints are read.
        per_stage: scale each run's features to unit length before.
    """

    def __init__(self, runs: Sequence[str | Path], *, per_stage: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(pipeline.load_run(run, "last").method for run in runs)
        self.per_stage = per_stage
        self.eval()

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Joined features [B, sum of F]."""
        return fuse([part.features(batch) for part in self.parts], per_stage=self.per_stage)  # type: ignore[operator]
