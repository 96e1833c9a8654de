"""What a run leaves for people: the report, and the batches that went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nearfar import report as pages
from nearfar.batch import Batch, to
from nearfar.data import Loader, Source, labels_of, whole
from nearfar.evaluate import neighbours
from nearfar.rng import Rng
from nearfar.samplers import Sequential

if TYPE_CHECKING:
    from nearfar.train.engine import Engine
    from nearfar.train.trainer import Trainer

MAP_POINTS, QUERIES, NEIGHBOURS, SAMPLES = 1500, 8, 6, 8


def describe_bad_step(step: int, engine: Engine, batch: Batch) -> str:
    """Says whether the batch, the loss or the gradient was not finite, and for which samples."""
    bad = [
        int(batch["index"][row])
        for view in batch.get("views", [])
        if view.data.is_floating_point()
        for row in (~torch.isfinite(view.data.flatten(1)).all(dim=1)).nonzero().flatten().tolist()
    ]
    if bad:
        names = ", ".join(map(str, sorted(set(bad))[:5]))
        return f"step {step}: the batch holds NaN or infinity in {len(set(bad))} samples (index {names})"
    loss = engine.reduced.get("loss", float("nan"))
    if loss != loss or loss in (float("inf"), float("-inf")):
        return f"step {step}: the loss is {loss} for a finite batch"
    return f"step {step}: the gradient's norm is {engine.gradient_norm} at a loss of {loss:.4g}"


def keep_batch(folder: Path, step: int, batch: Batch) -> Path:
    """Writes a batch's indices and views so that they can be looked at; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    tensors: dict[str, Tensor] = {"index": batch["index"].cpu()}
    tensors |= {f"view{i}": view.data.detach().cpu().contiguous() for i, view in enumerate(batch.get("views", []))}
    save_file(tensors, path)
    return path


def report(trainer: Trainer, features: Tensor, index: Tensor, source: Source) -> Path:
    """Writes the run's page: curves, scores before and after, a map of the embedding, neighbours, samples of views.

    Args:
        trainer: at the end of its run.
        features: [N, D], of every sample of `source`, for the map and the neighbours.
        index: [N], which samples they are of, where unreadable ones were replaced.
        source: what they are of.
    """
    run = trainer.run
    labels = labels_of(source, index)
    pages.write_report(
        run.report,
        title=f"{run.recipe.get('recipe', 'run')}",
        recipe=run.recipe,
        metrics=run.metrics,
        timings=run.timings,
        scores=run.scores,
        embedding=_map(features, labels, source),
        neighbours=_neighbours(features, labels, index, source),
        views=_views(trainer),
        environment=run._json("environment.json"),
        notes=[str(fault.get("fault") or fault.get("reason")) for fault in run.faults],
    )
    return run.report


def _map(features: Tensor, labels: Tensor | None, source: Source) -> pages.Embedding | None:
    if len(features) < 5:
        return None
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:MAP_POINTS].sort().values
    return pages.Embedding(
        points=pages.map2d(features[chosen].numpy(), seed=0),
        labels=None if labels is None else labels[chosen].numpy(),
        class_names=source.class_names,
    )


def _picture(image: Tensor) -> Any:
    """uint8 [H, W, C] of an image [C, H, W]; one that is not uint8 is stretched to its own range."""
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        low, high = image.amin(), image.amax()
        image = (image - low) / (high - low).clamp(min=1e-6) * 255
    return image.float().round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _raw(source: Source, position: int) -> Tensor:
    return torch.as_tensor(source[position]["image"])


def _has_images(source: Source, position: int) -> bool:
    return getattr(source[position].get("image"), "ndim", 0) == 3


def _neighbours(
    features: Tensor, labels: Tensor | None, index: Tensor, source: Source
) -> list[pages.NeighbourRow] | None:
    if len(features) < NEIGHBOURS + 2 or not _has_images(whole(source), int(index[0])):
        return None
    queries = torch.linspace(0, len(features) - 1, QUERIES).long().unique()
    order = neighbours(features, features[queries], k=NEIGHBOURS + 1)[1]
    rows = []
    for query, found in zip(queries.tolist(), order.tolist(), strict=True):
        others = [i for i in found if i != query][:NEIGHBOURS]
        rows.append(
            pages.NeighbourRow(
                query=_picture(_raw(whole(source), int(index[query]))),
                images=[_picture(_raw(whole(source), int(index[i]))) for i in others],
                right=None if labels is None else [bool(labels[i] == labels[query]) for i in others],
            )
        )
    return rows


def _views(trainer: Trainer) -> list[list[Any]] | None:
    """Rows of views of the same sample, as training sees them."""
    source = trainer.data.train
    loader = Loader(source, Sequential(len(source), SAMPLES), max_bad_share=trainer.max_bad_share)
    batch = next(loader.epoch(0))
    if "image" not in batch:
        return None
    with torch.no_grad():
        batch = trainer.method.views(to(batch, trainer.accelerator.device), Rng(trainer.config.seed, 0))
    views = batch.get("views")
    if not views or views[0].data.ndim != 4:
        return None
    return [[_picture(view.data[i]) for view in views] for i in range(len(batch["index"]))]
