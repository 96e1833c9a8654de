"""What a contrast refuses, and how it says so.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.contrast import contrast

B, N, D = 6, 8, 5
LABELS = (torch.tensor([0, 1, 2, 0, 1, 5]), torch.tensor([1, 0, 0, 2, 1, 3, 3, 1]))
TARGETS = torch.tensor([3, 0, -1, 7, 2, 0])
POSITIVE = torch.rand(B, N, generator=torch.Generator().manual_seed(3)) < 0.3


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "exactly one of them, received none"),
        ({"targets": torch.arange(B), "labels": LABELS}, "exactly one of them"),
        ({"targets": torch.full((B,), N)}, f"targets: expected values from -1 to {N - 1}"),
        ({"targets": torch.arange(B - 1)}, r"targets: expected shape \[6\]"),
        ({"labels": torch.arange(B)}, "labels: expected .*6 anchor ids, 8 candidate ids"),
        ({"positive": torch.ones(B, B, dtype=torch.bool)}, "positive: expected shape"),
        ({"weight": torch.ones(B, N)}, "weight: expected soft weights exactly with positives='soft'"),
        ({"targets": TARGETS, "positives": "soft"}, "weight: expected soft weights"),
        ({"weight": torch.ones(B, N), "positives": "soft", "margin": 0.1}, "none with positives='soft'"),
        ({"targets": TARGETS, "positives": "median"}, "positives: expected one of"),
        ({"targets": TARGETS, "denominator": "negative"}, "did you mean 'negatives'"),
        ({"targets": TARGETS, "directions": "rows"}, "did you mean 'row'"),
        ({"targets": TARGETS, "directions": "self"}, "candidate: expected none"),
        ({"targets": TARGETS, "reduction": "max"}, "reduction: expected one of"),
        ({"targets": TARGETS, "empty": "none"}, "empty: expected one of"),
        ({"targets": TARGETS, "similarity": "l2"}, "similarity: expected one of"),
        ({"targets": TARGETS, "normalize": ("both",)}, "normalize: expected one of"),
        ({"targets": TARGETS, "temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"targets": TARGETS, "temperature": torch.tensor(-1.0)}, "temperature: expected a finite number > 0"),
        ({"targets": TARGETS, "temperature": torch.ones(2)}, "temperature: expected a number, or shape"),
        ({"targets": TARGETS, "extra": (torch.ones(3, D + 1),)}, "extra: expected shape"),
        ({"targets": TARGETS, "extra": (torch.ones(3, D),), "directions": "both"}, "none of them with directions="),
        ({"targets": TARGETS, "per_anchor": torch.ones(B, D)}, "per_anchor: expected shape"),
        ({"targets": TARGETS, "log_weight": torch.ones(B)}, "log_weight: expected shape"),
        ({"targets": TARGETS, "own": torch.full((B,), N)}, "own: expected values"),
        ({"targets": TARGETS, "with_stats": "all"}, "with_stats: expected True, False or 'counts'"),
        ({"targets": TARGETS, "tile": -1}, "tile: expected None or 0 or more"),
        ({"targets": TARGETS, "ignore": torch.arange(B)}, "ignore: expected .*6 anchor ids, 8 candidate ids"),
        ({"targets": TARGETS, "extra": (torch.ones(3, D),), "extra_ids": (torch.arange(2),)}, "expected ids"),
        ({"targets": TARGETS, "extra": (torch.ones(3, D),), "extra_ids": (torch.arange(3),)}, "none without ignore"),
        ({"targets": TARGETS, "own_positive": torch.ones(B, D)}, "own_positive: expected shape"),
        ({"targets": TARGETS, "per_anchor": (torch.ones(4, D), torch.full((B, 2), 4))}, "indices from -1 to 3"),
        ({"targets": TARGETS, "per_anchor": (torch.ones(4, D), torch.arange(B))}, r"integers \[6, P\] into the pool"),
        ({"targets": TARGETS, "per_anchor_log_weight": torch.ones(B, 2)}, "none without per_anchor"),
        ({"targets": TARGETS, "per_anchor": torch.ones(B, 2, D), "per_anchor_log_weight": torch.ones(B, 3)},
         "per_anchor_log_weight: expected shape"),
        ({"targets": TARGETS, "anchor_weight": torch.ones(N)}, r"anchor_weight: expected shape \[6\]"),
        ({"targets": TARGETS, "anchor_weight": torch.ones(B, requires_grad=True)}, "expected no gradient"),
        ({"targets": TARGETS, "anchor_weight": torch.ones(B), "directions": "both"}, "as many candidates as anchors"),
        ({"positive": lambda rows: POSITIVE[:, :3]}, r"positive\(rows\): expected shape \[\d+, \d+\]"),
        ({"targets": TARGETS, "denominator": lambda rows: rows}, r"denominator\(rows\): expected shape"),
        ({"positive": lambda rows: POSITIVE[rows], "directions": "both"}, "positive: expected a tensor with"),
    ],
)  # fmt: skip
def test_complaints(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        contrast(draw(B, D), draw(N, D), **arguments)


def test_more_complaints() -> None:
    with pytest.raises(ValueError, match=r"candidate: expected shape \[N, 5\]"):
        contrast(draw(B, D), draw(N, D + 1), targets=TARGETS)
    with pytest.raises(ValueError, match="candidate: expected a tensor"):
        contrast(draw(B, D), targets=TARGETS)
    with pytest.raises(ValueError, match="own: expected none with directions='self'"):
        contrast(draw(B, D), targets=torch.arange(B), own=torch.arange(B), directions="self")
    with pytest.raises(ValueError, match="logits: expected no anchor"):
        contrast(draw(B, D), logits=draw(B, N), targets=TARGETS)
    with pytest.raises(TypeError, match="targets: expected integers"):
        contrast(draw(B, D), draw(N, D), targets=torch.ones(B))
    with pytest.raises(TypeError, match="positive: expected dtype"):
        contrast(draw(B, D), draw(N, D), positive=POSITIVE.long())
    with pytest.raises(TypeError, match="floating point"):
        contrast(torch.ones(B, D, dtype=torch.long), draw(N, D), targets=TARGETS)


@pytest.mark.parametrize("tile", [0, 4])
def test_a_row_that_is_not_a_number_makes_the_loss_not_a_number(tile: int) -> None:
    """Never a finite loss over what is left: the trainer looks for the fault and skips the step."""
    z = torch.randn(12, 4)
    z[3, 1] = torch.nan
    loss = contrast(z, labels=torch.arange(6).repeat(2), directions="self", tile=tile)
    assert torch.isnan(loss)
