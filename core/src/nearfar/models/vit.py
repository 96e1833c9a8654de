"""A small vision transformer.

Letters: B batch, C input channels, D width, T tokens, K kept patches, H W pixels, h w patches.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
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
        pooling: "cls" takes the class token, of several their mean; "mean" averages the patch tokens.
        num_cls: class tokens where pooling is "cls"; several start from random values, since equal ones stay equal.

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
        num_cls: int = 1,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("patch", patch), ("dim", dim), ("depth", depth), ("heads", heads),
                            ("num_cls", num_cls)):  # fmt: skip
            expect(value >= 1, name, "1 or more", value)
        expect(size >= patch and size % patch == 0, "size", f"a multiple of the patch of {patch} pixels", size)
        expect(dim % heads == 0, "dim", f"a multiple of {heads} heads", dim)
        expect_choice("pooling", pooling, ("cls", "mean"))
        self.channels, self.patch, self.pooling, self.feature_dim = channels, patch, pooling, dim
        side = size // patch
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(1, dim, side, side))
        self.num_cls = num_cls if pooling == "cls" else 0
        self.cls = nn.Parameter(torch.zeros(1, num_cls, dim)) if pooling == "cls" else None
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        nn.init.trunc_normal_(self.positions, std=0.02)
        if self.cls is not None and num_cls > 1:
            nn.init.trunc_normal_(self.cls, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        return self._pooled(self._tokens(x)[0])

    def dense(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Features by patch, normalised as the pooled ones are."""
        x_BTD, side = self._tokens(x)
        return x_BTD[:, self.num_cls :].transpose(1, 2).unflatten(2, side)

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
        return self._pooled(x_BTD), x_BTD[:, self.num_cls :]

    def visible(
        self, x: Float[Tensor, "B C H W"], kept: Int[Tensor, "B K"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B N D"], Float[Tensor, "B K D"]]:
        """Features, class tokens [B, N, D] and patches of pictures of which only some patches are encoded.

        Args:
            x: pictures.
            kept: numbers of the patches that are seen, row after row; the others cost nothing.
        """
        x_BTD = self._patches(x)[0]
        x_BKD = x_BTD.gather(1, kept[:, :, None].expand(-1, -1, x_BTD.shape[2]))
        x_BTD = self._blocks(x_BKD)
        return self._pooled(x_BTD), x_BTD[:, : self.num_cls], x_BTD[:, self.num_cls :]

    def _pooled(self, x_BTD: Tensor) -> Tensor:
        return x_BTD[:, : self.num_cls or None].mean(1)

    def _tokens(
        self, x: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        x_BTD, side = self._patches(x, mask, mask_token)
        return self._blocks(x_BTD), side

    def _patches(
        self, x: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Embedded patches with their positions [B, T, D], and their grid."""
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
        return (x_BDhw + positions).flatten(2).transpose(1, 2), side

    def _blocks(self, x_BTD: Tensor) -> Tensor:
        if self.cls is not None:
            x_BTD = torch.cat([self.cls.expand(x_BTD.shape[0], -1, -1), x_BTD], 1)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD)


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
