"""A small vision transformer.

Letters: B batch, C input channels, D width, T tokens, H W pixels, h w patches.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar.checks import expect, expect_choice


class TinyViT(nn.Module):
    """Patches, learned positions, pre-norm transformer blocks, a last norm; features are one token or the mean of all.

    Args:
        channels: of the pictures.
        size: side in pixels that positions are learned for; other sizes interpolate them.
        patch: side of a patch; pictures have sides that are multiples of it.
        dim: width D, a multiple of `heads`.
        depth: blocks.
        heads: of the attention.
        pooling: "cls" takes a class token, "mean" averages the patch tokens.

    Attributes:
        feature_dim: D.

    Notes:
        0.80M parameters and 51 million multiply-adds a view at the defaults, for one channel and 32 pixels. Its rows do
        not depend on each other. Source: Dosovitskiy et al., ICLR 2021.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        patch: int = 4,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        pooling: Literal["cls", "mean"] = "cls",
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("patch", patch), ("dim", dim), ("depth", depth), ("heads", heads)):
            expect(value >= 1, name, "1 or more", value)
        expect(size >= patch and size % patch == 0, "size", f"a multiple of the patch of {patch} pixels", size)
        expect(dim % heads == 0, "dim", f"a multiple of {heads} heads", dim)
        expect_choice("pooling", pooling, ("cls", "mean"))
        self.channels, self.patch, self.pooling, self.feature_dim = channels, patch, pooling, dim
        side = size // patch
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(1, dim, side, side))
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if pooling == "cls" else None
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        x_BTD = self._tokens(x)[0]
        return x_BTD[:, 0] if self.pooling == "cls" else x_BTD.mean(1)

    def dense(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Features by patch, normalised as the pooled ones are."""
        x_BTD, side = self._tokens(x)
        patches = x_BTD if self.cls is None else x_BTD[:, 1:]
        return patches.transpose(1, 2).unflatten(2, side)

    def tokens(
        self,
        x: Float[Tensor, "B C H W"],
        mask: Bool[Tensor, "B T"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B T D"]]:
        """Features, and those of every patch, row after row; masked patches are hidden before the first block.

        Args:
            x: pictures.
            mask: true where a patch is hidden; its position stays known.
            mask_token: what stands in a hidden patch's place; learnt by whoever masks, since most do not.

        Raises:
            ValueError: a mask of another number of patches, or one of mask and mask_token without the other.
        """
        expect((mask is None) == (mask_token is None), "mask_token", "a tensor [D] exactly with a mask",
               "none" if mask_token is None else "one without a mask")  # fmt: skip
        x_BTD = self._tokens(x, mask, mask_token)[0]
        patches = x_BTD if self.cls is None else x_BTD[:, 1:]
        return x_BTD[:, 0] if self.pooling == "cls" else patches.mean(1), patches

    def _tokens(
        self, x: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        patch = self.patch
        expect(
            x.ndim == 4 and x.shape[1] == self.channels and x.shape[2] % patch == 0 and x.shape[3] % patch == 0,
            "x", f"shape [B, {self.channels}, H, W], H and W multiples of {patch}", tuple(x.shape),
        )  # fmt: skip
        x_BDhw = self.embed(x)
        side = (x_BDhw.shape[2], x_BDhw.shape[3])
        positions = self.positions
        if side != tuple(positions.shape[2:]):
            positions = F.interpolate(positions, side, mode="bicubic", align_corners=False)
        if mask is not None and mask_token is not None:
            shape = (x.shape[0], side[0] * side[1])
            expect(tuple(mask.shape) == shape, "mask", f"shape {shape}", tuple(mask.shape))
            hidden = mask.view(-1, 1, *side)
            x_BDhw = torch.where(hidden, mask_token.to(x_BDhw.dtype).view(1, -1, 1, 1), x_BDhw)
        x_BTD = (x_BDhw + positions).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x_BTD = torch.cat([self.cls.expand(x.shape[0], -1, -1), x_BTD], 1)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD), side


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), the mlp four times as wide inside."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        qkv = self.qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1))  # [B, T, 3, heads, D / heads]
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.project(attended)
        return x + self.mlp(self.norm_mlp(x))
