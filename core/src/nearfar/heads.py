"""The head between features and the embedding that the loss sees, and one that ends in prototypes.

Legend: N rows, E embedding, K prototypes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearfar._similarity import normalize
from nearfar.checks import expect
from nearfar.config import HeadConfig
from nearfar.distributed import SyncBatchNorm, world


class Head(nn.Module):
    """Features [N, dim_in] to embeddings [N, dim]; discarded after training.

    Kind "none" is the identity and "linear" one linear layer. Kind "mlp" has `layers` linear layers; every one but the
    last is followed by its normalisation and a ReLU. A linear layer before a batch norm carries no bias, since the
    norm takes the mean out again; before a layer norm, which does not, or before none it carries one. With `last_norm`
    the last layer has no bias either, and is followed by a batch norm that scales and does not shift; without it
    `last_bias` decides.

    Args:
        dim_in: width of the features.
        config: its shape.

    Attributes:
        dim: width of the embedding; `dim_in` for kind "none".

    Raises:
        ValueError: in training, a single row for a head with batch norm, whose output would be zero whatever it says.

    Notes:
        Source: the nonlinear head of Chen et al., SimCLR, ICML 2020; kind, depth and last norm are its options.
    """

    def __init__(self, dim_in: int, config: HeadConfig | None = None) -> None:
        super().__init__()
        config = config or HeadConfig()
        expect(dim_in >= 1, "dim_in", "1 or more", dim_in)
        self.dim_in, self.config = dim_in, config
        self.dim = dim_in if config.kind == "none" else config.dim
        self.layers = nn.Sequential(*_layers(dim_in, config))

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        expect(
            features.ndim == 2 and features.shape[1] == self.dim_in,
            "features", f"shape [N, {self.dim_in}]", tuple(features.shape),
        )  # fmt: skip
        expect(
            features.shape[0] >= 2 or not self.training or not any(_needs_rows(layer) for layer in self.layers),
            "features", "at least 2 rows for a head with batch norm in training", features.shape[0],
        )  # fmt: skip
        return self.layers(features)


class PrototypeHead(Head):
    """Features [N, dim_in] to logits over prototypes [N, K]: cosines between an embedding and every prototype.

    logits = (e / |e|) (c / |c|)',  e = the `Head` that `config` describes

    Args:
        dim_in: width of the features.
        config: of the head before the prototypes; its `dim` is the width E in which they meet, the bottleneck.
        num_prototypes: K.

    Attributes:
        prototypes: c [K, E]; only their directions count (a weight norm whose lengths are held at 1).

    Raises:
        ValueError: fewer than 2 prototypes, and as `Head`.

    Notes:
        `logits(embed(features))` in two steps, for callers that keep embeddings, which are K / E times smaller. Source:
        Caron et al., DINO, ICCV 2021; activations are ReLU as in every `Head` here, GELU in the paper.
    """

    def __init__(self, dim_in: int, config: HeadConfig, num_prototypes: int) -> None:
        super().__init__(dim_in, config)
        expect(num_prototypes >= 2, "num_prototypes", "2 or more", num_prototypes)
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, self.dim))
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        return self.logits(self.embed(features))

    def embed(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        """Embeddings of unit length."""
        return normalize(super().forward(features))

    def logits(self, embedding: Float[Tensor, "*N E"]) -> Float[Tensor, "*N K"]:
        """Products of embeddings, of unit length or sums of such, with the prototypes' directions."""
        return embedding @ normalize(self.prototypes).t()


def _needs_rows(layer: nn.Module) -> bool:
    alone = world() == 1 or not isinstance(layer, SyncBatchNorm)  # statistics of this process's rows only
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and alone


def _layers(dim_in: int, config: HeadConfig) -> list[nn.Module]:
    if config.kind == "none":
        return []
    depth = config.layers if config.kind == "mlp" else 1
    hidden = config.hidden or dim_in
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers.append(nn.Linear(dim_in, hidden, bias=config.norm != "batch"))
        if config.norm != "none":
            layers.append(nn.BatchNorm1d(hidden) if config.norm == "batch" else nn.LayerNorm(hidden))
        layers.append(nn.ReLU())
        dim_in = hidden
    layers.append(nn.Linear(dim_in, config.dim, bias=config.last_bias and not config.last_norm))
    if config.last_norm:
        norm = nn.BatchNorm1d(config.dim)
        norm.register_parameter("bias", None)
        layers.append(norm)
    return layers
