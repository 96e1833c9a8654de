"""Where a view came from: one affine map a sample, and what follows from it.

Coordinates are (x, y) with pixel edges on whole numbers: an image spans [0, width] x [0, height] and the centre of its
first pixel is (0.5, 0.5). Boxes are (x1, y1, x2, y2). Shapes: B samples, N points, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from nearfar.checks import expect


class Overlap(NamedTuple):
    """What two views of the same samples both show; a box has no area where `valid` is False.

    `source` [B, 4] is in source pixels, `first` and `second` [B, 4] in shares of each view's side, as the view stands
    after its flip; `valid` [B] says whether there is an overlap at all.
    """

    source: Tensor
    first: Tensor
    second: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Geometry:
    """The way from the pixels of a square view to those of its source.

    Args:
        matrix: [B, 2, 3], view (x, y, 1) -> source (x, y), flips included.
        flip: [B], mirrored left to right.
        vertical_flip: [B], mirrored top to bottom.
        box: [B, 4], smallest box of the source that holds the view; the crop itself when nothing is rotated.
        source: [B, 2], width and height of the sources.
        size: side of the view.
    """

    matrix: Float[Tensor, "B 2 3"]
    flip: Bool[Tensor, " B"]
    vertical_flip: Bool[Tensor, " B"]
    box: Float[Tensor, "B 4"]
    source: Shaped[Tensor, "B 2"]
    size: int

    def __len__(self) -> int:
        return len(self.matrix)

    def __getitem__(self, rows: slice | Tensor) -> Geometry:
        """The geometry of some rows."""
        parts = (self.matrix, self.flip, self.vertical_flip, self.box, self.source)
        return Geometry(*(part[rows] for part in parts), size=self.size)

    def map_points(self, points: Float[Tensor, "B N 2"], *, inverse: bool = False) -> Float[Tensor, "B N 2"]:
        """View pixels to source pixels; with `inverse` source pixels to view pixels."""
        fits = points.ndim == 3 and len(points) == len(self) and points.shape[2] == 2
        expect(fits, "points", f"shape [{len(self)}, N, 2]", tuple(points.shape))
        linear, offset = self.matrix[:, :, :2], self.matrix[:, None, :, 2]
        if inverse:
            return torch.linalg.solve(linear, (points - offset).transpose(1, 2)).transpose(1, 2)
        return points @ linear.transpose(1, 2) + offset

    def overlap(self, other: Geometry) -> Overlap:
        """What this view and another one of the same samples both show.

        Raises:
            ValueError: the views are of different sources, or one is rotated or sheared, so that its edges are no box.
        """
        expect(len(self) == len(other), "other", f"{len(self)} samples", len(other))
        expect(torch.equal(self.source, other.source), "other", "views of the same sources", "sources of other sizes")
        for view in (self, other):
            turned = view.matrix[:, [0, 1], [1, 0]].abs().amax() > 1e-6
            expect(not bool(turned), "overlap", "views without rotation and shear", "a rotated or sheared view")
        box = torch.cat([torch.maximum(self.box, other.box)[:, :2], torch.minimum(self.box, other.box)[:, 2:]], dim=1)
        valid = (box[:, 2:] > box[:, :2]).all(dim=1)
        box = torch.cat([box[:, :2], torch.maximum(box[:, 2:], box[:, :2])], dim=1)
        return Overlap(box, self._share(box), other._share(box), valid)

    def undo(
        self, maps: Float[Tensor, "B C h w"], out_size: int | tuple[int, int], box: Float[Tensor, "B 4"] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Maps that are aligned with the view, resampled bilinearly to a grid on the source.

        Args:
            maps: [B, C, h, w] over the whole view, of any resolution, e.g. an encoder's last layer.
            out_size: rows and columns of the grid, or one number for both.
            box: [B, 4] of the source, in its pixels, that the grid divides; by default the view's own.

        Returns:
            [B, C, H, W]; cells outside the view repeat its border.

        Notes: two views undone to the same box stand on the same grid whatever their crops and flips. For the box of
        `overlap` it samples where RoIAlign(aligned=True) with one sample a cell does, followed by the flip back.
        """
        expect(maps.ndim == 4 and len(maps) == len(self), "maps", f"shape [{len(self)}, C, h, w]", tuple(maps.shape))
        box = self.box if box is None else box
        expect(box.shape == (len(self), 4), "box", f"shape [{len(self)}, 4]", tuple(box.shape))
        rows, columns = (out_size, out_size) if isinstance(out_size, int) else out_size
        expect(rows >= 1 and columns >= 1, "out_size", "1 or more", out_size)
        x = (torch.arange(columns, device=box.device) + 0.5) / columns
        y = (torch.arange(rows, device=box.device) + 0.5) / rows
        share = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(1, -1, 2)
        points = box[:, None, :2] + share * (box[:, 2:] - box[:, :2])[:, None]
        grid = self.map_points(points, inverse=True) * (2 / self.size) - 1
        grid = grid.view(len(self), rows, columns, 2).to(maps.dtype)
        return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _share(self, box: Tensor) -> Tensor:
        """A box of the source in shares of the view."""
        corners = self.map_points(box.view(-1, 2, 2), inverse=True) / self.size
        return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
