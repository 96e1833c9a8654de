"""Masked reconstruction: which patches are kept, what an encoder says of those, a decoder, and the loss of pixels.

Legend: B batch, C channels, H W pixels, h w patches, L = h w, K kept patches, N class tokens, F feature, P pixels of a
patch and channels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar.checks import expect
from nearfar.models.vit import Block
from nearfar_images.methods._patches import grid, see


class Masking(NamedTuple):
    """Which patches of each image are seen.

    Args:
        kept: int64 [B, K], ascending.
        mask: bool [B, L], true where a patch is removed.
        restore: int64 [B, L], where each patch stands among the kept and then the removed.
    """

    kept: Tensor
    mask: Tensor
    restore: Tensor


def check_masking(name: str, side: tuple[int, int], ratio: float, block: int) -> None:
    """ValueError unless the grid divides into blocks of which one stays at least and, with a ratio, one goes."""
    expect(0 <= ratio < 1, f"method.{name}", "a number in [0, 1)", ratio)
    divides = block >= 1 and side[0] % block == 0 and side[1] % block == 0
    expect(divides, "method.block", f"a divisor of both sides of the grid of {side[0]} x {side[1]} patches", block)
    blocks = side[0] * side[1] // block**2
    kept = int(blocks * (1 - ratio))
    fits = kept >= 1 and (ratio == 0 or kept < blocks)
    expect(fits, f"method.{name}", f"one that keeps one of the {blocks} blocks of patches and removes one", ratio)


def masking(
    noise_BM: Float[Tensor, "B M"], side: tuple[int, int], ratio: float, *, block: int = 1
) -> Masking:  # fmt: skip
    """Keeps the int(M (1 - ratio)) blocks with the least noise, whole.

    Args:
        noise_BM: a number for each of the M = h w / block^2 blocks, row after row.
        side: (h, w), multiples of `block`.
        ratio: share of the blocks that is removed, in [0, 1).
        block: side of a block in patches.

    Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, for blocks of 1; Yang et al., "In
        Pursuit of Pixel Supervision for Visual Pre-training", 2025.
    """
    h, w = side
    num_blocks = h * w // block**2
    removed_BM = noise_BM.argsort(dim=1, stable=True).argsort(dim=1) >= int(num_blocks * (1 - ratio))
    cells = removed_BM.unflatten(1, (h // block, w // block))
    mask = cells.repeat_interleave(block, 1).repeat_interleave(block, 2).flatten(1)
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    num_kept = int(num_blocks * (1 - ratio)) * block**2
    return Masking(order[:, :num_kept], mask, order.argsort(dim=1))


def visible(
    encoder: nn.Module, x: Tensor, masking: Masking, side: tuple[int, int], colour: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Features [B, F], class tokens [B, N, F] and kept patches [B, K, F] of what is not removed.

    Args:
        encoder: of `nearfar_images.encoders`. Transformers of nearfar and of timm see the kept patches alone; others
            see `colour` in the place of removed ones, their feature counts as the class token, and a patch is the
            cell of their map at its place.
        x: images [B, C, H, W].
        masking: of every image.
        side: (h, w).
        colour: [C].
    """
    model: Any = encoder.model
    if hasattr(model, "visible"):
        return model.visible(x, masking.kept)
    if _is_timm_vit(model):
        tokens = model._pos_embed(model.patch_embed(x))
        num = model.num_prefix_tokens
        tokens = torch.cat([tokens[:, :num], _rows(tokens[:, num:], masking.kept)], 1)
        tokens = model.norm(model.blocks(model.norm_pre(tokens)))
        return model.forward_head(tokens), tokens[:, :num], tokens[:, num:]
    feature, cells = see(encoder, x, masking.mask.unflatten(1, side), colour)
    height = round(math.sqrt(cells.shape[1] * x.shape[2] / x.shape[3]))
    dense = cells.transpose(1, 2).unflatten(2, (height, -1))
    patches = F.interpolate(dense, side, mode="nearest-exact").flatten(2).transpose(1, 2)
    return feature, feature[:, None], _rows(patches, masking.kept)


def patch_grid(encoder: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Patches (h, w) of images of a shape (C, H, W) that are removed or kept.

    A transformer's own; for other encoders of a side that divides the image's, 16 pixels or a quarter of it at most.
    """
    if not needs_colour(encoder):
        return grid(encoder, shape)
    common = math.gcd(shape[1], shape[2])
    patch = max(n for n in range(1, max(1, min(16, common // 4)) + 1) if common % n == 0)
    return shape[1] // patch, shape[2] // patch


def needs_colour(encoder: nn.Module) -> bool:
    """Whether removed patches are painted over instead of left out."""
    return not hasattr(encoder.model, "visible") and not _is_timm_vit(encoder.model)


def _is_timm_vit(model: Any) -> bool:
    return all(hasattr(model, name) for name in ("_pos_embed", "patch_embed", "blocks", "norm_pre", "forward_head"))


def _rows(x_BTD: Tensor, index_BK: Tensor) -> Tensor:
    return x_BTD.gather(1, index_BK[:, :, None].expand(-1, -1, x_BTD.shape[2]))


class Decoder(nn.Module):
    """From kept patches to the pixels of all: a learnt token stands where one was removed.

    Args:
        dim_in: F, of the encoder's tokens.
        num_patches: L.
        dim_out: P.
        width, depth, heads: of the transformer.
        num_prefix: N, class tokens that stand before the patches and are dropped at the end.
    """

    def __init__(
        self, dim_in: int, num_patches: int, dim_out: int, *, width: int, depth: int, heads: int, num_prefix: int
    ) -> None:
        super().__init__()
        expect(width % heads == 0, "method.decoder_dim", f"a multiple of method.decoder_heads {heads}", width)
        self.num_prefix = num_prefix
        self.embed = nn.Linear(dim_in, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(1, num_prefix + num_patches, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, dim_out)
        for parameter in (self.mask_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self, prefix: Float[Tensor, "B N F"], patches: Float[Tensor, "B K F"], restore: Int[Tensor, "B L"]
    ) -> Float[Tensor, "B L P"]:
        x_BKD = self.embed(patches)
        missing = self.mask_token.to(x_BKD.dtype).expand(len(x_BKD), restore.shape[1] - x_BKD.shape[1], -1)
        x_BLD = _rows(torch.cat([x_BKD, missing], 1), restore)
        x_BTD = torch.cat([self.embed(prefix), x_BLD], 1) + self.positions
        return self.out(self.norm(self.blocks(x_BTD)))[:, self.num_prefix :]


def patchify(x: Float[Tensor, "B C H W"], side: tuple[int, int]) -> Float[Tensor, "B L P"]:
    """Pixels of every patch, row after row within it, channels last.

    Raises:
        ValueError: sides of the image that the grid does not divide.
    """
    batch, channels, height, width = x.shape
    h, w = side
    expect(height % h == 0 and width % w == 0, "x", f"sides that are multiples of {h} and {w} patches", (height, width))
    cells = x.reshape(batch, channels, h, height // h, w, width // w)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Float[Tensor, "B L P"], side: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """The image [B, C, H, W] again, of a shape (C, H, W)."""
    channels, height, width = shape
    h, w = side
    cells = patches.reshape(len(patches), h, w, height // h, width // w, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), channels, height, width)


def normalise_patches(target: Float[Tensor, "B L P"], eps: float = 1e-6) -> Float[Tensor, "B L P"]:
    """Every patch less its mean, over the root of its (unbiased) variance plus `eps`."""
    target = target.float()
    variance = target.var(2, keepdim=True) if target.shape[2] > 1 else torch.zeros_like(target)
    return (target - target.mean(2, keepdim=True)) / (variance + eps).sqrt()


def pixel_loss(
    prediction: Float[Tensor, "B L P"], target: Float[Tensor, "B L P"], mask: Bool[Tensor, "B L"], *, power: int
) -> Float[Tensor, ""]:
    """Mean over removed patches and their pixels of |prediction - target|^power; 0 where nothing is removed."""
    error_BL = (prediction.float() - target.float()).abs().pow(power).mean(2)
    return (error_BL * mask).sum() / mask.sum().clamp(min=1)
