"""A nearfar model that the library mteb runs.

import mteb
from nearfar_sentences.mteb_model import MTEBModel
mteb.evaluate(MTEBModel.of_run("RUN"), mteb.get_tasks(["STS13"]))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.checks import expect

Embed = Callable[[Sequence[str]], Tensor]


class MTEBModel:
    """What mteb asks of an encoder, around any function from sentences to vectors.

    Args:
        embed: from sentences to vectors [N, D].
        name: "organisation/model", how results are filed.

    Raises:
        ImportError: mteb is not installed.
    """

    def __init__(self, embed: Embed, name: str = "nearfar/model") -> None:
        try:
            from mteb.models import ModelMeta
        except ImportError as error:
            raise ImportError("MTEBModel needs mteb: pip install mteb") from error
        expect(name.count("/") == 1, "name", "'organisation/model'", repr(name))
        self.embed = embed
        self.mteb_model_meta = ModelMeta.create_empty({"name": name, "revision": "local"})

    @classmethod
    def of_run(cls, run: str, *, checkpoint: str = "", name: str = "nearfar/model") -> MTEBModel:
        """The encoder of a run folder."""
        from nearfar_sentences.pipeline import load_run

        return cls(load_run(run, checkpoint).embed, name)

    def encode(self, inputs: Iterable[dict[str, Any]], **options: Any) -> np.ndarray:
        """Vectors [N, D] of batches that hold texts under "text"; mteb's other options change nothing."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.embed([text if text.strip() else "." for text in texts]).numpy()

    def similarity(self, first: Any, second: Any) -> Tensor:
        """Cosines [N, M] of two sets of vectors."""
        return _unit(first) @ _unit(second).T

    def similarity_pairwise(self, first: Any, second: Any) -> Tensor:
        """Cosines [N] of pairs of vectors."""
        return (_unit(first) * _unit(second)).sum(-1)


def _unit(vectors: Any) -> Tensor:
    x = torch.as_tensor(vectors, dtype=torch.float32)
    return normalize(x if x.ndim == 2 else x.unsqueeze(0), dim=1)
