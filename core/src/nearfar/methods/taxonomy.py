"""Where a config of the declarative frame stands in the taxonomy of contrast."""

from __future__ import annotations

from nearfar.catalog import Taxonomy
from nearfar.config import ContrastConfig
from nearfar.config.contrast import LOSSES


def describe(config: ContrastConfig) -> Taxonomy:
    """What makes a positive, where negatives come from, how keys are encoded and which family the loss is of.

    Args:
        config: of the declarative frame; what its views are made from is not part of it, so that positives are told as
            "transformation" or "label".

    Example:
        >>> from nearfar.config import ContrastConfig
        >>> from nearfar.methods import describe
        >>> moco = ContrastConfig(loss="info_nce", key_encoder="ema", queue=4096)
        >>> describe(moco).negative, describe(moco).key
        ('memory', 'momentum')
    """
    traits = LOSSES[config.loss]
    if traits.form in ("whole", "regression"):
        negative = "none"
    elif config.mining != "all":
        negative = "mined"
    else:
        negative = "memory" if config.queue or config.bank else "batch"
    follows = config.bank or config.key_encoder == "ema"
    return Taxonomy(
        positive="label" if config.pairs == "labels" else "transformation",
        negative=negative,
        key="momentum" if follows else "frozen" if config.key_encoder == "frozen" else "shared",
        loss=traits.family,
    )
