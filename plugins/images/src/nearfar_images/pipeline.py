"""From a recipe to a run, and from a run to scores: what the commands do, as functions.

run = train(load_recipe("images/simclr_digits"))
loaded = load_run(run.path)
scores = evaluate(loaded.method, open_images(loaded.recipe.data))
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataConfig, DataInfo, EncoderConfig, EvaluateConfig, ImageViewConfig
from nearfar.data import Data, Source, class_counts, labelled, labels_of, targets_of, view_size, whole
from nearfar.evaluate import Score, evaluate_embedding
from nearfar.method import Method, Views
from nearfar.plugin import load_recipe, locate
from nearfar.recipe import Recipe, read, update
from nearfar.samplers import Sampler, make_sampler
from nearfar.train import Run, Trainer, checkpoint
from nearfar.train.features import extract, own_scores
from nearfar.views import ImageViews
from nearfar_images import encoders
from nearfar_images.data import open_images


class Frozen(Method):
    """An encoder that is not trained, as a Method: only its features.

    Args:
        encoder: from images [B, C, H, W] to features [B, D].
        views: its `plain` makes the images.
    """

    def __init__(self, encoder: nn.Module, views: Views) -> None:
        super().__init__()
        self.encoder = encoder
        self.make_views = views

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Features [B, D] of the plain view."""
        return self.encoder(self.make_views.plain(batch["image"]))


@dataclass(frozen=True)
class LoadedRun:
    """A run's method with its trained weights, in evaluation mode, and where they come from."""

    method: Method
    recipe: Recipe
    info: DataInfo
    checkpoint: Path


# -- training ----------------------------------------------------------------------------------------------------------


def resolve_data(config: DataConfig, source: Source) -> DataConfig:
    """The config with image size and channels decided for a source."""
    channels = config.channels or (source.shape[0] if source.shape else 3)
    return dataclasses.replace(config, image_size=view_size(config, source), channels=channels)


def resolve(recipe: Recipe, source: Source) -> Recipe:
    """The recipe with image size, channels and encoder decided for a source.

    A run keeps it in this form, so that it can be read where its data is not.
    """
    data = resolve_data(recipe.data, source)
    encoder = dataclasses.replace(recipe.encoder, name=encoders.resolve(recipe.encoder.name, shape_of(data)))
    return dataclasses.replace(recipe, data=data, encoder=encoder)


def shape_of(config: DataConfig) -> tuple[int, int, int]:
    """(C, H, W) of the images that an encoder sees, of a resolved config."""
    expect(config.image_size > 0 and config.channels > 0, "data", "image_size and channels above 0", config)
    return config.channels, config.image_size, config.image_size


def build(recipe: Recipe, data: Data | None = None) -> tuple[Data, Method]:
    """The data and the method of a recipe, weights drawn by `trainer.seed`.

    Args:
        recipe: as registered, or resolved.
        data: instead of what `recipe.data` describes.

    Raises:
        ValueError, FileNotFoundError: data, encoder or views cannot be made; the message says why.
    """
    data = open_images(recipe.data) if data is None else data
    data = dataclasses.replace(data, train=recipe.method.source_for(data.train, view_size(recipe.data, data.train)))
    config, train = recipe.trainer, data.train
    steps = config.epochs * _sampler(recipe, train).num_batches(0)
    info = DataInfo(
        num_samples=len(train),
        num_indices=len(whole(train)),
        num_classes=train.num_classes,
        class_names=train.class_names,
        class_counts=class_counts(train),
        steps=min(steps, config.max_steps or steps),
    )
    return data, build_method(resolve(recipe, train), info)


def _sampler(recipe: Recipe, source: Source) -> Sampler:
    config = recipe.trainer
    return make_sampler(
        recipe.sampler, source, config.batch_size, seed=config.seed, drop_last=config.drop_last, epochs=config.epochs
    )


def build_method(recipe: Recipe, info: DataInfo) -> Method:
    """The method of a resolved recipe, for data described by `info`, whose shape is taken from the recipe."""
    shape = shape_of(recipe.data)
    views = ImageViews(recipe.views, size=shape[1], channels=shape[0])
    with _seeded(recipe.trainer.seed):
        encoder = encoders.build(recipe.encoder, shape)
        return recipe.method.build(dataclasses.replace(info, shape=shape), encoder, views)


def train(recipe: Recipe, *, resume: bool | str = False, data: Data | None = None) -> Run:
    """Trains a recipe and returns the run.

    Args:
        recipe: as registered, with the fields you changed.
        resume: True goes on in `recipe.trainer.output`; a path goes on in that run folder.
        data: instead of what `recipe.data` describes.

    Raises:
        ValueError: the recipe needs labels and the data has none, or the folder holds another run.

    Notes: a method that is trained in stages leaves the runs of the earlier ones in `stages` within the folder.
    """
    if recipe.method.stages:
        return locate(recipe.method.stages)(recipe, resume=resume, data=data)
    data = open_images(recipe.data) if data is None else data
    expect(
        not recipe.method.needs_labels or data.train.num_classes > 1,
        f"recipe {recipe.name}: data", "labels: one subfolder a class", f"none in {data.train.name}",
    )  # fmt: skip
    for field in recipe.method.needs_columns:
        has = getattr(whole(data.train), "column", lambda _: None)(field) is not None
        options = {"target": "data.target", "path": "data.levels", "group": "data.sources (NAME=FOLDER of each)"}
        option = options.get(field, "data")
        expect(has, f"recipe {recipe.name}: {option}", f"what gives samples a {field}", f"none in {data.train.name}")
    data, method = build(recipe, data)
    return fit(resolve(recipe, data.train), data, method, resume=resume)


def fit(recipe: Recipe, data: Data, method: Method, *, resume: bool | str = False) -> Run:
    """Trains a method that `build` made, by its resolved recipe."""
    return trainer(recipe, data, method).fit(resume)


def trainer(recipe: Recipe, data: Data, method: Method) -> Trainer:
    """What trains a method that `build` made, by its resolved recipe."""
    return Trainer(
        method, data, recipe.trainer, optimiser=recipe.optimiser, evaluate=recipe.evaluate, recipe=recipe,
        sampler=_sampler(recipe, data.train),
        workers=recipe.data.workers, max_bad_share=recipe.data.max_bad_share,
    )  # fmt: skip


# -- what a run left ---------------------------------------------------------------------------------------------------


def read_recipe(run: str | Path) -> Recipe:
    """The recipe that a run folder keeps; only registered names resolve, no code of the folder's choice is run.

    Raises:
        FileNotFoundError: no such folder, or no recipe in it.
        ValueError: the recipe is not one of this plugin, or a field of it is unknown.
    """
    path = Path(run)
    expect(path.is_dir(), "run", "the folder of a run", str(path), FileNotFoundError)
    name, values = read(path / "recipe.json")
    expect(name.startswith("images/"), f"run {path}: recipe", "a registered one, images/NAME", repr(name))
    return update(load_recipe(name), values)


def load_run(run: str | Path, which: str = "", *, recipe: Recipe | None = None) -> LoadedRun:
    """The trained method of a run folder; its data need not be there any more.

    Args:
        run: the folder.
        which: checkpoint "best", "last" or a step; empty: the best, or the last where no score has chosen one.
        recipe: instead of the folder's, for a recipe of your own code.

    Raises:
        FileNotFoundError: no such run or checkpoint; the steps that exist are named.
        CheckpointError: the checkpoint is broken.
        ValueError: its weights are not those of the recipe.
    """
    recipe = recipe or read_recipe(run)
    folder = Run(run)
    place = folder.checkpoint(which or ("best" if folder.best else "last"))
    weights, _, manifest = checkpoint.load(place)
    identity = manifest["identity"]
    info = DataInfo(
        num_samples=identity["data.samples"],
        num_indices=identity["data.indices"],
        num_classes=identity.get("data.num_classes", 0),
        class_names=tuple(identity.get("data.class_names", ())),
        class_counts=tuple(identity.get("data.class_counts", ())),
        steps=folder.status.get("steps", 0),
    )
    method = build_method(_without_weights(recipe), info)
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"checkpoint {place} belongs to another recipe than {run}/recipe.json: {error}") from None
    return LoadedRun(method.eval(), recipe, info, place)


def untrained(loaded: LoadedRun) -> Method:
    """The method of a run with random weights, to compare with."""
    return build_method(_without_weights(loaded.recipe), loaded.info).eval()


def load_encoder(
    config: EncoderConfig, data: DataConfig, *, mean: Sequence[float] = (), std: Sequence[float] = (), seed: int = 0
) -> Frozen:
    """An encoder without a run.

    Args:
        config: name and, if any, local weights.
        data: resolved, for the shape of the images.
        mean, std: of the normalisation that the weights were trained with, in [0, 1] units.
        seed: of random weights.
    """
    shape = shape_of(data)
    views = ImageViews(ImageViewConfig(mean=tuple(mean), std=tuple(std)), size=shape[1], channels=shape[0])
    with _seeded(seed):
        return Frozen(encoders.build(config, shape), views).eval()


def load_pixels(data: DataConfig) -> Frozen:
    """The pixels themselves as features, to compare with."""
    shape = shape_of(data)
    return Frozen(nn.Flatten(), ImageViews(ImageViewConfig(), size=shape[1], channels=shape[0])).eval()


def features(
    method: Method, source: Source, *, output: str = "default", batch_size: int = 256, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Features [N, D] and indices [N] of every image of a source, without augmentation, on the CPU.

    The method is moved to the accelerator where there is one.

    Raises:
        ValueError: the method has no such output.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = device or torch.device("cpu")
    method = method.to(device)
    return extract(method, source, output=output, batch_size=batch_size, workers=workers, device=device)


def evaluate(
    method: Method, data: Data, config: EvaluateConfig | None = None, *, output: str = "default", workers: int = 0
) -> dict[str, Score]:
    """A method's own scores on the test part of the data, or else those of its frozen features.

    For the latter see `nearfar.evaluate.evaluate_embedding`.

    Raises:
        ValueError: the data has no test part.
    """
    expect(len(data.test) > 0, "data", "a test part: folders train and test, or data.validation > 0", "none")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if own := own_scores(method.to(device or "cpu"), lambda: method.scores(data.test, device or "cpu")):
        return own
    train, test = labelled(data.train), labelled(data.test)
    (train_x, train_index), (test_x, test_index) = (
        features(method, part, output=output, workers=workers) for part in (train, test)
    )
    train_y, test_y = labels_of(train, train_index), labels_of(test, test_index)
    targets = targets_of(train, train_index, test, test_index)
    return evaluate_embedding(train_x, train_y, test_x, test_y, config, targets=targets)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights drawn within depend on the seed alone, and the caller's random numbers go on as if nothing was drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _without_weights(recipe: Recipe) -> Recipe:
    """For a method whose weights are replaced, or random: the file that training started from is not needed."""
    encoder = dataclasses.replace(recipe.encoder, weights="")
    return dataclasses.replace(recipe, encoder=encoder, method=recipe.method.without_weights())
