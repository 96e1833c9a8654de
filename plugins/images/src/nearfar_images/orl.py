"""ORL in its three stages: an image-level run, regions that correspond, and the run that learns from them.

run = train(load_recipe("images/orl"))          # or: nearfar images train orl --data.root FOLDER
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearfar import distributed
from nearfar.checks import expect
from nearfar.config import ContrastConfig
from nearfar.data import Data
from nearfar.recipe import Recipe, fingerprint, save
from nearfar.train import Arrays, Context, Interrupted, Pipeline, Run, Stage, Trainer, checkpoint, train_stage
from nearfar.train.checkpoint import file_hash
from nearfar.train.device import accelerator
from nearfar.train.run import new_folder
from nearfar_images import pipeline, regions
from nearfar_images.data import open_images
from nearfar_images.discovery import discover
from nearfar_images.systems.orl import ORLConfig

STAGES = "stages"
"""folder within the run's that holds the earlier stages"""


def train(
    recipe: Recipe, *, resume: bool | str = False, data: Data | None = None,
    proposals: regions.Proposals | None = None,
) -> Run:  # fmt: skip
    """Trains BYOL on whole images, looks for regions with it, and trains ORL from fresh weights.

    Args:
        recipe: its method is an `ORLConfig` without regions.
        resume: keep stages that are done and unchanged, let an unfinished one go on; True: in
            `recipe.trainer.output`, a path: in that run folder.
        data: instead of what `recipe.data` describes.
        proposals: from an image uint8 [C, H, W] to boxes, instead of `method.proposals`.

    Returns:
        The last run. Its folder has the earlier ones in `stages/image/run` and `stages/regions`, whose
        `artefacts/regions/arrays.npz` is a file for `method.regions`.

    Raises:
        ValueError: the folder holds another run; what `nearfar_images.discovery.discover` raises.

    Source: Xie et al., "Unsupervised Object-Level Representation Learning from Scene Images", NeurIPS 2021.
    """
    config = recipe.method
    if not isinstance(config, ORLConfig):
        raise TypeError(f"recipe.method: expected an ORLConfig, received {type(config).__name__}")
    accelerator(recipe.trainer)  # opens the process group, so that stages know who writes
    found = open_images(recipe.data) if data is None else data
    expect(config.num_neighbours < len(found.train), "method.num_neighbours",
           f"fewer than the {len(found.train)} images", config.num_neighbours)  # fmt: skip
    path = resume if isinstance(resume, str) else recipe.trainer.output
    folder = Path(distributed.broadcast(str(path or new_folder(recipe.name))))
    recipe = pipeline.resolve(recipe, found.train)  # as the folder keeps it, so that stages are the same on resume
    recipe = dataclasses.replace(
        recipe, method=dataclasses.replace(config, regions=""),
        trainer=dataclasses.replace(recipe.trainer, output=str(folder)),
    )  # fmt: skip
    run, stages = Run(folder), _pipeline(recipe, config, found, folder, proposals)
    if checkpoint.newest(folder / "checkpoints") is not None:  # earlier stages that would change are not thrown away
        expect(bool(resume), "trainer.output", "an empty folder, or resume", f"{folder}, which holds a run")
        states = stages.status()
        expect(set(states.values()) == {"done"}, "resume", "the recipe and the data of the run's earlier stages",
               f"{folder / STAGES}, whose stages are {states}")  # fmt: skip
    distributed.barrier()
    if distributed.is_main() and not (folder / "recipe.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        save(recipe, folder / "recipe.json")  # so that --resume FOLDER finds it
    try:
        stages.run(resume=bool(resume))
    except BaseException as error:
        if distributed.is_main():
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            run.set_status("interrupted" if stopped else "failed", step=0, message=str(error))
        raise
    place = folder / STAGES / "regions" / "artefacts" / "regions" / "arrays.npz"
    with_regions = dataclasses.replace(recipe, method=dataclasses.replace(config, regions=str(place), prior=""))
    read, method = pipeline.build(with_regions, found)
    return pipeline.fit(recipe, read, method, resume=bool(resume))


def prior(recipe: Recipe) -> Recipe:
    """The image-level run: BYOL with the same encoder, heads, views and optimiser."""
    config: Any = recipe.method
    shared = {name: getattr(config, name) for name in ("head", "predictor", "key_encoder", "momentum", "momentum_end")}
    epochs = config.prior_epochs or recipe.trainer.epochs
    return dataclasses.replace(
        recipe,
        name="images/byol",
        method=ContrastConfig(loss="regression", **shared),
        trainer=dataclasses.replace(recipe.trainer, epochs=epochs, report=False),
    )


def _pipeline(
    recipe: Recipe, config: ORLConfig, data: Data, folder: Path, proposals: regions.Proposals | None
) -> Pipeline:
    image = prior(recipe)

    def make(context: Context) -> Trainer:
        read, method = pipeline.build(image, data)
        return pipeline.trainer(image, read, method)

    def look(context: Context) -> Mapping[str, Arrays]:
        run = config.prior or context.inputs["image.run"].path
        found = discover(
            pipeline.load_run(run, "last"), data.train, context.folder, num_neighbours=config.num_neighbours,
            proposals=proposals or config.proposals, least_side=config.least_side, most_ratio=config.most_ratio,
            most_iou=config.most_iou, most_boxes=config.most_boxes, share=config.pair_share,
            workers=recipe.data.workers,
        )  # fmt: skip
        return {"regions": Arrays(found.arrays())}

    def known(one: Recipe) -> dict[str, str]:
        plain = dataclasses.replace(one, data=dataclasses.replace(one.data, root=""))
        return {"recipe": fingerprint(plain), "data": data.train.fingerprint()}

    named = ("num_neighbours", "least_side", "most_ratio", "most_iou", "most_boxes", "pair_share")
    chosen = regions.proposals(config.proposals)[0] if proposals is None else _name(proposals)
    options = {name: getattr(config, name) for name in named} | {"proposals": chosen, "data": known(recipe)["data"]}
    if config.prior:
        options["prior"] = file_hash(Run(config.prior).checkpoint("last") / "manifest.json")
        return Pipeline(folder / STAGES, [Stage("regions", look, options=options)])
    return Pipeline(folder / STAGES, [
        Stage("image", train_stage(make), options=known(image)),
        Stage("regions", look, inputs=("image.run",), options=options),
    ])  # fmt: skip


def _name(proposals: regions.Proposals) -> str:
    """What tells a user's function from another one."""
    return f"{proposals.__module__}:{getattr(proposals, '__qualname__', type(proposals).__qualname__)}"
