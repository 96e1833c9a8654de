"""Every score of frozen features in one call."""

from __future__ import annotations

import functools
import logging

from jaxtyping import Float, Int
from torch import Tensor

from nearfar.config import EvaluateConfig
from nearfar.evaluate import inputs
from nearfar.evaluate.clustering import clustering
from nearfar.evaluate.geometry import geometry
from nearfar.evaluate.knn import knn
from nearfar.evaluate.probe import few_label_probe, linear_probe
from nearfar.evaluate.regression import regression_probe
from nearfar.evaluate.retrieval import retrieval
from nearfar.evaluate.score import Score, exact

log = logging.getLogger(__name__)


def evaluate_embedding(
    train_x: Float[Tensor, "N D"],
    train_y: Int[Tensor, " N"] | None,
    test_x: Float[Tensor, "Q D"],
    test_y: Int[Tensor, " Q"] | None,
    config: EvaluateConfig | None = None,
    *,
    targets: tuple[Float[Tensor, " N"], Float[Tensor, " Q"]] | None = None,
) -> dict[str, Score]:
    """Scores by name: what labels allow, and the geometry of the test features always.

    "knn", "linear" and "few_label" need labels of both sets, of at least two classes; "few_label" also `per_class`
    training labels of every class; "recall@1", "map" and "map@r" need test labels, and a class with two rows;
    "nmi" and "ari" come with `config.clusterings`; "mae", "rmse" and "r2" with targets, where those of the test differ.
    What is left out for want of labels is said once in the log (`nearfar.evaluate`). The measures of `geometry` follow
    as scores without interval.

    Args:
        train_x, train_y: features that neighbours and probes learn from, with class ids or None.
        test_x, test_y: features that are judged, with class ids or None.
        config: neighbours, labels a class, draws, confidence.
        targets: numbers that belong to train_x and test_x.

    Raises:
        ValueError: non-finite features (the row is named), unequal widths, more neighbours than training rows.
    """
    config = config or EvaluateConfig()
    level = config.confidence
    train_x, test_x = inputs.features("train_x", train_x), inputs.features("test_x", test_x)
    inputs.same_width(train_x, test_x)
    scores: dict[str, Score] = {}
    counts = None if train_y is None else inputs.labels("train_y", train_y, len(train_x)).unique(return_counts=True)[1]
    if train_y is None or test_y is None:
        _say("no labels of both sets: no knn, linear and few_label scores")
    elif counts is not None and len(counts) < 2:
        _say("labels of a single class: no knn, linear and few_label scores")
    else:
        data = train_x, train_y, test_x, test_y
        scores["knn"] = knn(*data, k=config.num_neighbours, confidence=level)
        scores["linear"] = linear_probe(*data, confidence=level)
        if counts is not None and int(counts.min()) >= config.per_class:
            scores["few_label"] = few_label_probe(
                *data, per_class=config.per_class, draws=config.few_label_draws, confidence=level
            )
        else:
            _say(f"a class with fewer than {config.per_class} training labels: no few_label score")
    if test_y is not None:
        test_y = inputs.labels("test_y", test_y, len(test_x))
        if int(test_y.unique(return_counts=True)[1].max()) >= 2:
            scores |= retrieval(test_x, test_y, ks=(1,), confidence=level)
        else:
            _say("no class with two test rows: no retrieval scores")
        if config.clusterings and len(test_y.unique()) >= 2:
            scores |= clustering(test_x, test_y, draws=config.clusterings, confidence=level)
    if targets is not None and len(targets[1].unique()) >= 2:
        scores |= regression_probe(train_x, targets[0], test_x, targets[1], confidence=level)
    if len(test_x) >= 2:
        scores |= {name: exact(value, len(test_x)) for name, value in geometry(test_x).items()}
    return scores


@functools.cache
def _say(message: str) -> None:
    log.warning(message)
