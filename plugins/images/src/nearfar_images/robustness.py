"""How much of a frozen encoder's accuracy is left when its pictures get worse, or after it is trained further."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import EvaluateConfig, OptimiserConfig, TrainerConfig
from nearfar.data import Data, labels_of
from nearfar.evaluate import Score, bootstrap, predict, wilson
from nearfar.method import Method
from nearfar.ragged import Ragged
from nearfar_images import pipeline
from nearfar_images.corruptions import CORRUPTIONS, corrupt

if TYPE_CHECKING:
    from nearfar_images.methods.cross_entropy import CrossEntropy
    from nearfar_images.pipeline import LoadedRun


class Corrupted(Method):
    """Another method's features of corrupted pictures."""

    def __init__(self, method: Method, name: str, degree: int, seed: int = 0) -> None:
        super().__init__()
        self.method, self.name, self.degree, self.seed = method, name, degree, seed
        self.outputs = method.outputs

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Features [B, D] of the batch after the corruption."""
        image, index = batch["image"], batch["index"]
        if isinstance(image, Ragged):
            worse: Ragged | Tensor = Ragged.of([
                corrupt(image[i].unsqueeze(0), index[i : i + 1], self.name, self.degree, seed=self.seed)[0]
                for i in range(len(image))
            ])  # fmt: skip
        else:
            worse = corrupt(image, index, self.name, self.degree, seed=self.seed)
        return self.method.features(batch | {"image": worse}, output)


def robustness(
    method: Method,
    data: Data,
    config: EvaluateConfig | None = None,
    *,
    output: str = "default",
    corruptions: Sequence[str] = CORRUPTIONS,
    degrees: Sequence[int] = (1, 3, 5),
    workers: int = 0,
) -> dict[str, Score]:
    """Nearest-neighbour accuracy on corrupted test pictures, with clean training pictures as the bank.

    Args:
        method: from `load_run` or `load_encoder`.
        data: with labels and a test part.
        config: neighbours and confidence.
        output: one of the method's outputs.
        corruptions, degrees: which; a corruption's score is the mean over its degrees.
        workers: loader processes.

    Returns:
        "clean", one score a corruption, and "corrupted", the mean over all of them; intervals are of a bootstrap over
        test pictures, "clean" of Wilson.

    Raises:
        ValueError: no labels, no test part, or nothing to do.
    """
    config = config or EvaluateConfig()
    expect(
        len(corruptions) > 0 and len(degrees) > 0, "corruptions, degrees", "one or more of each", (corruptions, degrees)
    )
    expect(len(data.test) > 0, "data", "a test part", "none")
    train_x, train_index = pipeline.features(method, data.train, output=output, workers=workers)
    train_y = labels_of(data.train, train_index)
    expect(train_y is not None and data.test.labels is not None, "data", "labels", "none")
    assert train_y is not None

    def right(judged: Method) -> Tensor:
        x, index = pipeline.features(judged, data.test, output=output, workers=workers)
        truth = labels_of(data.test, index)
        assert truth is not None
        return (predict(train_x, train_y, x, k=config.num_neighbours) == truth).double()

    clean = right(method)
    scores = {"clean": wilson(int(clean.sum()), len(clean), config.confidence)}
    every = []
    for name in corruptions:
        hits = torch.stack([right(Corrupted(method, name, degree)) for degree in degrees]).mean(0)
        every.append(hits)
        scores[name] = bootstrap(hits, config.confidence)
    scores["corrupted"] = bootstrap(torch.stack(every).mean(0), config.confidence)
    return scores


def fine_tune(
    loaded: LoadedRun, data: Data, *, epochs: int = 10, rate: float = 1e-3, batch_size: int = 128, seed: int = 0
) -> tuple[CrossEntropy, Score]:
    """Trains the whole encoder further with labels, and its accuracy on the test part.

    Args:
        loaded: the run whose encoder is trained further; it stays as it is.
        data: with labels and a test part.
        epochs, rate, batch_size: AdamW with a cosine schedule, decay of the rate by 0.9 a layer.
        seed: of the classifier, the views and the order.

    Returns:
        The trained classifier and its test accuracy with Wilson's interval.

    Raises:
        ValueError: no labels or no test part.
    """
    from nearfar.batch import to
    from nearfar.data import Loader
    from nearfar.samplers import Sequential
    from nearfar_images.systems.cross_entropy import CrossEntropyConfig, cross_entropy

    expect(data.train.num_classes > 1 and len(data.test) > 0, "data", "labels and a test part", data.train.name)
    with tempfile.TemporaryDirectory() as folder:
        recipe = dataclasses.replace(
            loaded.recipe,
            name=cross_entropy().name,
            method=CrossEntropyConfig(),
            encoder=dataclasses.replace(loaded.recipe.encoder, weights=""),
            optimiser=OptimiserConfig(lr=rate, weight_decay=0.05, layer_decay=0.9, warmup_epochs=min(1.0, epochs / 10)),
            trainer=TrainerConfig(
                epochs=epochs, batch_size=min(batch_size, len(data.train)), seed=seed, evaluate_every=0,
                evaluate_before=False, progress=False, output=str(Path(folder) / "run"), keep=1,
            ),
        )  # fmt: skip
        _, method = pipeline.build(recipe, data)
        method.encoder.load_state_dict(loaded.method.encoder.state_dict())
        pipeline.fit(recipe, data, method)
    method.eval()
    device = next(method.parameters()).device
    hits = total = 0
    loader = Loader(data.test, Sequential(len(data.test), 256))
    for batch in loader.epoch(0):
        label = batch["label"].to(device)
        hits += int((method.classify(to(batch, device)).argmax(1) == label).sum())
        total += len(label)
    return method, wilson(hits, total, loaded.recipe.evaluate.confidence)
