"""What the attention of a vision transformer does, head by head: how far it looks, where to, and how alike.

Legend: B images, L blocks, H heads, T tokens, S = h w patches, P tokens before them (class token, registers).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearfar.checks import expect


class AttentionMetrics:
    """Statistics of attention over any number of batches; all are means over images.

    Args:
        grid: (h, w), the patches, row after row.
        num_prefix: P; the first of them, where there is one, is taken for the class token.

    Attributes:
        num_images: seen so far.

    Notes:
        Holds sums of [L, H, T, T] in float64, so that batches may come in any size. Source: Walmer et al., "Teaching
        Matters: Investigating the Role of Supervision in Vision Transformers", CVPR 2023.
    """

    def __init__(self, grid: tuple[int, int], *, num_prefix: int = 1) -> None:
        expect(min(grid) >= 2, "grid", "2 patches or more on each side", grid)
        expect(num_prefix >= 0, "num_prefix", "0 or more", num_prefix)
        self.grid, self.num_prefix, self.num_images = grid, num_prefix, 0
        self.num_patches = grid[0] * grid[1]
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, attention: Float[Tensor, "B L H T T"]) -> None:
        """Adds a batch; rows are sources and sum to 1.

        Raises:
            ValueError: another number of tokens than grid and prefix make, rows that do not sum to 1.
        """
        num = self.num_prefix + self.num_patches
        shape = tuple(attention.shape)
        expect(len(shape) == 5 and shape[3:] == (num, num), "attention", f"shape [B, L, H, {num}, {num}]", shape)
        a = attention.detach().double()
        expect(bool(((a.sum(-1) - 1).abs() < 1e-2).all()), "attention", "rows that sum to 1", "others")
        raw = a[..., self.num_prefix :, self.num_prefix :]
        pure, null = spatial(raw)
        self.num_images += len(a)
        found = {
            "raw": a.sum(0),
            "pure": pure.sum(0),
            "null": null.sum((0, 3)).double(),
            "position_deviation": raw.std(-2, correction=0).mean(-1).sum(0),
            "head_deviation": raw.std(2, correction=0).mean((-1, -2)).sum(0),
        }
        for name, value in found.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def result(self) -> dict[str, Tensor]:
        """All statistics by name, float64.

        distance [L, H]: from a patch to what it attends to, in sides of the image;
        aligned [L, H, 2h-1, 2w-1]: attention by shift from its source, which is the middle, summed over targets and
        averaged over sources; offset [L, H]: how far its centre of mass is from the middle, which is at 1 from an edge;
        is_offset [L, H]: whether the shift attended to most is one of the eight next to the source, 1 or 0;
        null [L, H]: share of patches that attend to no patch; position_deviation [L, H], head_deviation [L]: of raw
        attention between patches, over sources and over heads; on_token_all [L, H, T], on_token_spatial [L, H, T],
        on_token_pure [L, H, S]: attention that tokens get from all, from patches, and from patches among patches alone;
        with a class token on_token_cls [L, H, T], what it attends to, and spatial_to_cls [L, H], what patches give it.

        Raises:
            ValueError: nothing was added.
        """
        expect(self.num_images > 0, "attention", "a batch or more", "none")
        mean = {name: value / self.num_images for name, value in self._sums.items()}
        raw, pure, p = mean["raw"], mean["pure"], self.num_prefix
        map_LHyx = aligned(pure, self.grid)
        found = {
            "distance": (pure * distances(self.grid).to(pure.device)).sum((-1, -2)) / self.num_patches,
            "aligned": map_LHyx,
            "offset": offset(map_LHyx),
            "is_offset": is_offset(map_LHyx).double(),
            "null": mean["null"] / self.num_patches,
            "position_deviation": mean["position_deviation"],
            "head_deviation": mean["head_deviation"],
            "on_token_all": raw.mean(-2),
            "on_token_spatial": raw[..., p:, :].mean(-2),
            "on_token_pure": pure.mean(-2),
        }
        if p:
            found |= {"on_token_cls": raw[..., 0, :], "spatial_to_cls": raw[..., p:, 0].mean(-1)}
        return found


def spatial(raw: Float[Tensor, "*N S S"]) -> tuple[Float[Tensor, "*N S S"], Bool[Tensor, "*N S"]]:
    """Attention among patches alone, each row divided by its sum; and which rows are zero, which stay so."""
    total = raw.sum(-1, keepdim=True)
    return raw / total.where(total > 0, torch.ones_like(total)), total[..., 0] == 0


def distances(grid: tuple[int, int]) -> Float[Tensor, "S S"]:
    """Euclidean distances between patches, whose outermost centres lie on the edges of the unit square."""
    place = torch.cartesian_prod(*(torch.linspace(0, 1, side, dtype=torch.float64) for side in grid))
    return torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist")


def aligned(attention: Float[Tensor, "*N S S"], grid: tuple[int, int]) -> Float[Tensor, "*N y x"]:
    """Attention by shift from its source, averaged over sources: a canvas of 2h-1 by 2w-1 with the source amidst."""
    h, w = grid
    row, column = (part.flatten() for part in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    y = row[None] - row[:, None] + h - 1
    x = column[None] - column[:, None] + w - 1
    place = (y * (2 * w - 1) + x).flatten().to(attention.device)
    flat = attention.flatten(-2)
    canvas = flat.new_zeros(*flat.shape[:-1], (2 * h - 1) * (2 * w - 1)).index_add_(-1, place, flat)
    return canvas.unflatten(-1, (2 * h - 1, 2 * w - 1)) / (h * w)


def offset(aligned_map: Float[Tensor, "*N y x"]) -> Float[Tensor, "*N"]:
    """How far a map's centre of mass is from its middle, axes from -1 to 1: a patch is 1 / (n - 1); 0 if empty."""
    total = aligned_map.sum((-1, -2)).clamp_min(1e-300)
    v, u = (torch.linspace(-1, 1, n, dtype=aligned_map.dtype).to(aligned_map.device) for n in aligned_map.shape[-2:])
    down, right = (aligned_map.sum(-1) * v).sum(-1) / total, (aligned_map.sum(-2) * u).sum(-1) / total
    return torch.hypot(down, right)


def peak(aligned_map: Float[Tensor, "*N y x"]) -> tuple[Tensor, Tensor]:
    """(down, right): the shift in patches that a map is largest at."""
    height, width = aligned_map.shape[-2:]
    at = aligned_map.flatten(-2).argmax(-1)
    return at // width - height // 2, at % width - width // 2


def is_offset(aligned_map: Float[Tensor, "*N y x"]) -> Bool[Tensor, "*N"]:
    """Whether heads attend most to one fixed neighbour of the source: Offset Local Attention Heads."""
    down, right = peak(aligned_map)
    return (down.abs() <= 1) & (right.abs() <= 1) & ((down != 0) | (right != 0))


def mass_mask(attention: Float[Tensor, "*N S"], mass: float = 0.6) -> Bool[Tensor, "*N S"]:
    """The fewest patches that hold at least this share of the attention; nothing where there is none.

    Args:
        attention: of one source, not negative.
        mass: the share, in (0, 1).
    """
    expect(0 < mass < 1, "mass", "a number in (0, 1)", mass)
    value, order = attention.sort(dim=-1, stable=True)
    total = value.sum(-1, keepdim=True)
    kept = (value.cumsum(-1) > (1 - mass + 1e-6) * total) & (total > 0)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def mask_iou(first: Bool[Tensor, "*N S"], second: Bool[Tensor, "*N S"]) -> Float[Tensor, "*N"]:
    """Intersection over union; two empty masks agree, 1."""
    union = (first | second).sum(-1)
    return torch.where(union > 0, (first & second).sum(-1) / union.clamp_min(1), 1.0)


def saliency_iou(
    attention: Float[Tensor, "B L H T T"], mask: Bool[Tensor, "B S"], *, num_prefix: int = 1, mass: float = 0.6
) -> Float[Tensor, "B L H"]:
    """Intersection over union of an object's mask with the patches that hold most of the attention.

    The attention is that of the class token, or the mean over patches where there is none. `.amax(-1)` is that of the
    best head of every block.

    Args:
        attention: rows are sources.
        mask: patches of the object.
        num_prefix: tokens before the patches.
        mass: share of the attention that counts.
    """
    rows = attention[..., 0, num_prefix:] if num_prefix else attention.mean(-2)
    expect(mask.shape == (len(attention), rows.shape[-1]), "mask", f"shape {(len(attention), rows.shape[-1])}",
           tuple(mask.shape))  # fmt: skip
    return mask_iou(mass_mask(rows, mass), mask[:, None, None].expand_as(rows))
