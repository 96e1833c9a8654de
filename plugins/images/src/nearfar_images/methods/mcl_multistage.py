"""MCL in one run: stages of SimCLR whose negatives share the clusters of the stages before.

Legend: B batch, N rows of all processes, V views, D embedding, F feature, T stages.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.contrast import contrast
from nearfar.method import Engine, Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.prototypes import kmeans

if TYPE_CHECKING:
    from nearfar_images.systems.mcl_multistage import MCLConfig


class MCL(Frame):
    """One encoder that learns, those of the former stages, and every sample's clusters under them.

    A stage lasts an equal share of the run, and the next one begins with the first epoch after it: the data is embedded
    and clustered, the encoder is put away, and the one that learns starts as `config.start` says.

    Args:
        config: stages, clusters, temperature.
        info: numbers of samples and indices.
        encoder: from a view to features.
        views: random views, two or more.

    Attributes:
        stage: [], the present one, from 0.
        past: T - 1 encoders with their heads; of a stage that is to come, the weights that its successor starts from.
        cluster: int64 [num_indices, T - 1], -1 where there is none yet.

    Source: Zhang et al., "Learning the Unlearned: Mitigating Feature Suppression in Contrastive Learning", ECCV 2024.
    """

    outputs = ("default", "embedding", "stage")
    config: MCLConfig
    stage: Tensor
    cluster: Tensor

    def __init__(self, config: MCLConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        fits = config.num_clusters <= info.num_samples
        expect(fits, "method.num_clusters", f"at most the {info.num_samples} samples", config.num_clusters)
        self.past = nn.ModuleList(
            shuffled(nn.Sequential(self.encoder, self.head), seed=t + 1) for t in range(config.num_stages)
        ).requires_grad_(False)
        num = info.num_indices or info.num_samples
        self.register_buffer("stage", torch.zeros((), dtype=torch.long))
        self.register_buffer("cluster", torch.full((num, config.num_stages), -1))

    def train(self, mode: bool = True) -> MCL:
        """Former stages stay in evaluation mode."""
        super().train(mode)
        self.past.eval()
        return self

    def group(self, index: Tensor) -> Tensor:
        """The pseudo-label [B] of samples: their clusters under former stages, packed; all 0 in the first stage."""
        stage = int(self.stage)
        first = max(stage - 1, 0) if self.config.history == "last" else 0
        return pack(self.cluster[index, first:stage], self.config.num_clusters)

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Pseudo-labels of this process's samples [B] and of those of all processes [N]."""
        own = self.group(batch["index"])
        return {"own": own, "group": distributed.gather(own, grad=False)}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """NT-Xent where only samples of one pseudo-label meet."""
        z_VBD = z["embedding"].transpose(0, 1)
        every_VND, num_views, num = self.everyone(z_VBD), len(z_VBD), z_VBD.shape[1]
        total = every_VND.shape[1]
        offset = distributed.offset(num) if distributed.world() > 1 else 0
        rows = torch.arange(num, device=z_VBD.device) + offset
        own = (torch.arange(num_views, device=z_VBD.device)[:, None] * total + rows).flatten()
        sample = torch.arange(total, device=z_VBD.device)
        loss, stats = contrast(
            z_VBD.flatten(0, 1), every_VND.flatten(0, 1),
            labels=(rows.repeat(num_views), sample.repeat(num_views)), own=own,
            group=(targets["own"].repeat(num_views), targets["group"].repeat(num_views)),
            temperature=self.config.temperature, with_stats="counts",
        )  # fmt: skip
        group = targets["group"]
        alone = ((group[:, None] == group).sum(1) == 1).float().mean()
        return Terms().add("contrast", loss, count=stats.num_anchors).log(stage=self.stage.float(), alone=alone)

    # -- from stage to stage -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def on_epoch(self, engine: Engine) -> None:
        """Begins the next stage where its share of the run has come."""
        stages = self.config.num_stages + 1
        while int(self.stage) < min(int(engine.progress.fraction * stages + 1e-9), stages - 1):
            feature, index = engine.features("stage")
            self.begin(feature.to(self.cluster.device), index.to(self.cluster.device))

    def begin(self, feature_NF: Tensor, index_N: Tensor) -> None:
        """Clusters the features of the stage that ends, puts its encoder away, and starts the next one."""
        stage = int(self.stage)
        found = kmeans(normalize(feature_NF.float(), dim=1), self.config.num_clusters, spherical=False, tolerance=1e-5,
                       seed=stage)  # fmt: skip
        self.cluster[index_N, stage] = found.label
        current = nn.Sequential(self.encoder, self.head)
        ended = copy.deepcopy(current.state_dict())
        if self.config.start == "scratch":
            current.load_state_dict(self.past[stage].state_dict())
        self.past[stage].load_state_dict(ended)
        if self.config.start == "stage0":
            current.load_state_dict(self.past[0].state_dict())
        self.stage += 1

    # -- what users keep -----------------------------------------------------------------------------------------------

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """The joined features [B, (stage + 1) F] of all stages so far; "stage": those of the present one [B, F]."""
        if output != "default":
            return super().features(batch, "default" if output == "stage" else output)
        x = self.make_views.plain(batch[self.field])
        encoders = [self.past[t].get_submodule("0") for t in range(int(self.stage))]
        return fuse([encoder(x) for encoder in (*encoders, self.encoder)], per_stage=self.config.per_stage)


def fuse(
    features: Sequence[Float[Tensor, "B _"]], *, per_stage: bool = False
) -> Float[Tensor, "B F"]:  # fmt: skip
    """Features of all stages side by side, of unit length together.

    F(x) = [f_0(x); ...; f_T(x)] / norm

    Args:
        features: of every stage, of any widths.
        per_stage: scale each to unit length before, so that cosines become the mean of the stages' cosines.
    """
    expect(len(features) >= 1, "features", "one stage or more", "none")
    parts = [normalize(part, dim=1) for part in features] if per_stage else list(features)
    return normalize(torch.cat(parts, 1), dim=1)


def pack(cluster: Int[Tensor, "B T"], num_clusters: int) -> Int[Tensor, " B"]:
    """One number for a sample's clusters: p = ((c_0 K) + c_1) K + ...; 0 where there are none; K^T at most 2^62."""
    packed = cluster.new_zeros(len(cluster))
    for t in range(cluster.shape[1]):
        packed = packed * num_clusters + cluster[:, t]
    return packed


def unpack(packed: Int[Tensor, " B"], num_clusters: int, num_stages: int) -> Int[Tensor, "B T"]:
    """The clusters again."""
    powers = [num_clusters**t for t in reversed(range(num_stages))]
    return torch.stack([packed // power % num_clusters for power in powers], 1)


def shuffled(module: nn.Module, seed: int) -> nn.Module:
    """A copy whose parameters have their values in another order: a fresh start that needs no recipe for weights."""
    twin = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            flat = parameter.flatten()
            order = torch.randperm(len(flat), generator=generator).to(flat.device)
            parameter.copy_(flat[order].view_as(parameter))
    return twin
