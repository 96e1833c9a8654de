"""From a recipe to a run, and from a run to features: what the commands do, as functions.

run = train(load_recipe("sentences/simcse_manual"))
encoder = load_run(run.path).encoder
encoder.embed(["A sentence.", "Another."])
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.data import Data, Source, Subset, class_counts, whole
from nearfar.method import Method
from nearfar.plugin import load_recipe
from nearfar.recipe import read, update
from nearfar.samplers import Sampler, make_sampler
from nearfar.train import Run, Trainer, checkpoint
from nearfar_sentences.config import TextRecipe
from nearfar_sentences.data import TextSource, open_texts
from nearfar_sentences.encoder import TextEncoder, build_encoder

DESCRIPTION = "encoder.description"


@dataclass(frozen=True)
class LoadedRun:
    """A run's method with its trained weights, in evaluation mode, and where they come from."""

    method: Method
    recipe: TextRecipe
    info: DataInfo
    checkpoint: Path

    @property
    def encoder(self) -> TextEncoder:
        """The sentence encoder."""
        return self.method.encoder  # type: ignore[return-value]

    def embed(self, texts: Sequence[str], *, output: str = "default", batch_size: int = 64) -> Tensor:
        """What users keep of sentences [N, D], on the CPU; see `Method.features`."""
        return embed(self.method, texts, output=output, batch_size=batch_size)


def train(recipe: TextRecipe, *, resume: bool | str = False, data: Data | None = None) -> Run:
    """Trains a recipe and returns the run.

    Args:
        recipe: as registered, with the fields you changed.
        resume: True goes on in `recipe.trainer.output`; a path goes on in that run folder.
        data: instead of what `recipe.data` describes.

    Raises:
        ValueError: the recipe needs columns that the data lacks, or the folder holds another run.
    """
    recipe = resolve(recipe)
    data, method = build(recipe, data)
    trainer = Trainer(
        method, data, recipe.trainer, optimiser=recipe.optimiser, evaluate=recipe.evaluate, recipe=recipe,
        sampler=_sampler(recipe, data.train), workers=recipe.data.workers, max_bad_share=recipe.data.max_bad_share,
    )  # fmt: skip
    return trainer.fit(resume)


def resolve(recipe: TextRecipe) -> TextRecipe:
    """The recipe with the shape of the encoder that it starts from.

    A run keeps it in this form, so that it can be read where the other is not.
    """
    if not recipe.encoder.start:
        return recipe
    other = read_recipe(recipe.encoder.start).encoder
    own = {name: getattr(recipe.encoder, name) for name in ("start", "pooling", "max_length", "prefix", "lora_rank")}
    expect(own["lora_rank"] == 0, "encoder.lora_rank", "0 with encoder.start", own["lora_rank"])
    return dataclasses.replace(recipe, encoder=dataclasses.replace(other, **own))


def build(recipe: TextRecipe, data: Data | None = None, *, encoder: TextEncoder | None = None) -> tuple[Data, Method]:
    """The data and the method of a recipe, weights drawn by `trainer.seed`; a tokenizer of the training sentences.

    Args:
        recipe: as registered, or resolved.
        data: instead of what `recipe.data` describes.
        encoder: instead of what `recipe.encoder` describes; trained as it is, no copy.
    """
    data = open_texts(recipe.data, recipe.trainer.seed) if data is None else data
    train = data.train
    for column in recipe.method.needs_columns:
        has = getattr(whole(train), "column", lambda _: None)(column) is not None
        expect(has, f"recipe {recipe.name}: data.{column}", f"a column of {column}s", f"none in {train.name}")
    expect(
        not recipe.method.needs_labels or train.num_classes > 1,
        f"recipe {recipe.name}: data.label", "a column of labels", f"none in {train.name}",
    )  # fmt: skip
    steps = recipe.trainer.epochs * _sampler(recipe, train).num_batches(0)
    info = DataInfo(
        num_samples=len(train),
        num_indices=len(whole(train)),
        num_classes=train.num_classes,
        class_names=train.class_names,
        class_counts=class_counts(train),
        steps=min(steps, recipe.trainer.max_steps or steps),
        shape=image_shape(train),
    )
    texts = texts_of(train) if encoder is None and trains_tokenizer(recipe) else ()
    method = build_method(recipe, info, texts=texts, encoder=encoder)
    if recipe.method.reads_corpus:  # type: ignore[attr-defined]
        method.read_corpus(texts_of(train))  # type: ignore[operator]
    return data, method


def build_method(
    recipe: TextRecipe,
    info: DataInfo,
    *,
    texts: Sequence[str] = (),
    description: bytes | None = None,
    encoder: TextEncoder | None = None,
) -> Method:
    """The method of a recipe, for data described by `info`.

    Args:
        recipe: of the run.
        info: of the data.
        texts: what the tokenizer of a tiny encoder is trained on.
        description: of a checkpoint's encoder, instead.
        encoder: instead of what the recipe describes.
    """
    with _seeded(recipe.trainer.seed):
        if encoder is None:
            encoder = recipe.method.own_encoder(recipe.encoder, texts, description)  # type: ignore[attr-defined]
        if encoder is not None:
            pass
        elif recipe.encoder.start and description is None:
            before, config = load_run(recipe.encoder.start, "last").encoder, recipe.encoder
            pooling = before.pooling if config.pooling == "auto" else config.pooling
            encoder = TextEncoder(
                before.backbone, before.tokenizer, pooling=pooling, max_length=config.max_length, prefix=config.prefix
            )
        else:
            encoder = build_encoder(recipe.encoder, texts, description=description)
        return recipe.method.build(info, encoder, None)  # type: ignore[arg-type]


def trains_tokenizer(recipe: TextRecipe) -> bool:
    """Whether the encoder needs a tokenizer of the data's sentences."""
    return recipe.encoder.name == "tiny" and not recipe.encoder.start


def texts_of(source: Source) -> list[str]:
    """Every sentence of a source, of all its columns."""
    within, positions = source, None
    while isinstance(within, Subset):
        positions = within.positions if positions is None else within.positions[positions]
        within = within.source
    expect(isinstance(within, TextSource), "data", "a source of sentences", type(within).__name__, TypeError)
    assert isinstance(within, TextSource)
    rows = range(len(within)) if positions is None else positions.tolist()
    return [column[i] for column in within.columns.values() for i in rows]


def image_shape(source: Source) -> tuple[int, ...]:
    """(F,) of a source whose samples have F image features, else ()."""
    found = getattr(whole(source), "image", None)
    return () if found is None else (found.shape[1],)


def read_recipe(run: str | Path) -> TextRecipe:
    """The recipe that a run folder keeps; only registered names resolve.

    Raises:
        FileNotFoundError: no such folder, or no recipe in it.
        ValueError: the recipe is not one of this plugin, or a field of it is unknown.
    """
    path = Path(run)
    expect(path.is_dir(), "run", "the folder of a run", str(path), FileNotFoundError)
    name, values = read(path / "recipe.json")
    expect(name.startswith("sentences/"), f"run {path}: recipe", "a registered one, sentences/NAME", repr(name))
    return update(load_recipe(name), values)


def load_run(run: str | Path, which: str = "", *, recipe: TextRecipe | None = None) -> LoadedRun:
    """The method of a run folder; its data need not be there any more.

    Args:
        run: the folder.
        which: checkpoint "best", "last" or a step; empty: the best, or the last where no score has chosen one.
        recipe: instead of the folder's, for a recipe of your own code.

    Raises:
        FileNotFoundError: no such run or checkpoint.
        ValueError: its weights are not those of the recipe.
    """
    recipe = recipe or read_recipe(run)
    folder = Run(run)
    place = folder.checkpoint(which or ("best" if folder.best else "last"))
    weights, _, manifest = checkpoint.load(place)
    identity = manifest["identity"]
    shape = identity.get("data.shape", ())
    info = DataInfo(
        num_samples=identity["data.samples"],
        num_indices=identity["data.indices"],
        num_classes=identity.get("data.num_classes", 0),
        class_names=tuple(identity.get("data.class_names", ())),
        class_counts=tuple(identity.get("data.class_counts", ())),
        steps=folder.status.get("steps", 0),
        shape=tuple(shape) if isinstance(shape, list | tuple) else (),
    )
    kept = weights.get(DESCRIPTION)
    expect(kept is not None, f"checkpoint {place}", "weights of a sentence encoder", "others")
    assert kept is not None
    method = build_method(recipe, info, description=bytes(kept.cpu().numpy()))
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"checkpoint {place} belongs to another recipe than {run}/recipe.json: {error}") from None
    return LoadedRun(method.eval(), recipe, info, place)


@torch.no_grad()
def embed(method: Method, texts: Sequence[str], *, output: str = "default", batch_size: int = 64) -> Tensor:
    """What users keep of sentences [N, D] float32, on the CPU; sorted by length within.

    Raises:
        ValueError: no such output, or an empty sentence.
    """
    expect(output in method.outputs, "output", f"one of {', '.join(method.outputs)}", repr(output))
    method.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: list[Tensor] = []
    for start in range(0, len(order), batch_size):
        batch: Batch = {"text": [texts[i] for i in order[start : start + batch_size]]}
        found.append(method.features(batch, output).float().cpu())
    out = torch.cat(found)
    return torch.empty_like(out).index_copy_(0, torch.tensor(order), out)


def _sampler(recipe: TextRecipe, source: Source) -> Sampler:
    config = recipe.trainer
    return make_sampler(
        recipe.sampler, source, config.batch_size, seed=config.seed, drop_last=config.drop_last, epochs=config.epochs
    )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights drawn within depend on the seed alone, and the caller's random numbers go on as if nothing was drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
