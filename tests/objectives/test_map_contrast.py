"""Contrast of maps with references of a sample's own: loops, closed forms, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nearfar.objectives import map_contrast, map_cosine

B, P, N, C, H, W = 3, 2, 4, 5, 2, 3


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, C, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(u: Tensor, v: Tensor) -> float:
    values = []
    for y in range(H):
        for x in range(W):
            a, b = u[:, y, x].tolist(), v[:, y, x].tolist()
            lengths = math.sqrt(sum(i * i for i in a)) * math.sqrt(sum(j * j for j in b))
            values.append(sum(i * j for i, j in zip(a, b, strict=True)) / lengths)
    return sum(values) / len(values)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_both_forms_against_loops(temperature: float) -> None:
    anchor, positive, negative = maps(B), maps(B, P, seed=1), maps(B, N, seed=2)
    for form in ("info_nce", "cosine"):
        expected = []
        for i in range(B):
            p = [cosine(anchor[i], m) for m in positive[i]]
            n = [cosine(anchor[i], m) for m in negative[i]]
            if form == "cosine":
                expected.append(sum(n) / N - sum(p) / P)
                continue
            away = sum(math.exp(s / temperature) for s in n)
            each = [-math.log(math.exp(s / temperature) / (math.exp(s / temperature) + away)) for s in p]
            expected.append(sum(each) / P)
        options = {"form": form, "temperature": temperature}
        found = map_contrast(anchor, positive, negative, **options, reduction="none")
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
        torch.testing.assert_close(map_contrast(anchor, positive, negative, **options), found.mean())
        torch.testing.assert_close(map_contrast(anchor, positive, negative, **options, reduction="sum"), found.sum())


@pytest.mark.oracle("pcl_sr", 2)
def test_closed_forms() -> None:
    anchor, negative = maps(B), maps(B, N, seed=2)
    own = anchor[:, None]
    found = map_contrast(anchor, own, negative, form="cosine", reduction="none")
    torch.testing.assert_close(found, map_cosine(own, negative).mean(1) - 1)
    alike = map_contrast(anchor, own, own.expand(-1, N, -1, -1, -1))
    torch.testing.assert_close(alike, torch.tensor(math.log(1 + N), dtype=torch.float64))
    opposite = map_contrast(anchor, own, -own.expand(-1, N, -1, -1, -1))
    torch.testing.assert_close(opposite, torch.tensor(math.log(1 + N * math.exp(-2)), dtype=torch.float64))


def test_gradient() -> None:
    anchor, positive, negative = (x.requires_grad_() for x in (maps(1), maps(1, 1, seed=1), maps(1, 2, seed=2)))
    for form in ("info_nce", "cosine"):
        assert torch.autograd.gradcheck(lambda *x, f=form: map_contrast(*x, form=f), (anchor, positive, negative))


def test_lengths_do_not_matter_and_nothing_is_like_nothing() -> None:
    anchor, positive, negative = maps(B), maps(B, P, seed=1), maps(B, N, seed=2)
    lengths = torch.rand(B, 1, H, W, dtype=torch.float64) + 0.5
    torch.testing.assert_close(
        map_contrast(anchor * lengths, positive, negative), map_contrast(anchor, positive, negative)
    )
    zero = torch.zeros(B, C, H, W, dtype=torch.float64, requires_grad=True)
    loss = map_contrast(zero, positive, negative)
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + N), dtype=torch.float64))
    loss.backward()
    assert zero.grad is not None
    assert not zero.grad.any()


def test_low_precision_is_summed_in_single() -> None:
    anchor, positive, negative = maps(B), maps(B, P, seed=1), maps(B, N, seed=2)
    half = map_contrast(anchor.bfloat16(), positive.bfloat16(), negative.bfloat16(), temperature=0.01)
    assert half.dtype == torch.float32
    assert torch.isfinite(half)


def test_bad_input_is_refused() -> None:
    anchor, positive, negative = maps(B), maps(B, P), maps(B, N)
    with pytest.raises(ValueError, match=r"positive: expected shape \[3, K, 5, 2, 3\], K >= 1, received \(2, 2, 5"):
        map_contrast(anchor, positive[:2], negative)
    with pytest.raises(ValueError, match=r"negative: expected shape .* received \(3, 0, 5, 2, 3\)"):
        map_contrast(anchor, positive, negative[:, :0])
    with pytest.raises(ValueError, match="negative: expected shape"):
        map_contrast(anchor, positive, negative[..., :2])
    with pytest.raises(ValueError, match=r"second: expected maps of \(5, 2, 3\), received \(5, 2, 2\)"):
        map_cosine(anchor, positive[..., :2])
    with pytest.raises(ValueError, match="form: expected one of 'info_nce', 'cosine', received 'cosinus'"):
        map_contrast(anchor, positive, negative, form="cosinus")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0"):
        map_contrast(anchor, positive, negative, temperature=0.0)
