"""The step along which no objective gets worse: closed forms, a grid, and gradients put in place."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distributed.launch import launch
from nearfar import distributed
from nearfar.method import Terms
from nearfar.train import min_norm_backward, min_norm_weights


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights_of(*vectors: Tensor) -> Tensor:
    stack = torch.stack(vectors)
    return min_norm_weights(stack @ stack.t())


def test_two_vectors_have_the_closed_form() -> None:
    for seed in range(20):
        g1, g2 = draw(5, seed=seed), draw(5, seed=seed + 100) * 3
        found = weights_of(g1, g2)
        steps = torch.linspace(0, 1, 20001, dtype=torch.float64)
        norms = (steps[:, None] * g1 + (1 - steps)[:, None] * g2).norm(dim=1)
        assert float(found[0]) == pytest.approx(float(steps[norms.argmin()]), abs=1e-4)


def test_special_pairs() -> None:
    g = draw(5)
    assert weights_of(g, g).tolist() == [0.5, 0.5]
    assert weights_of(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).tolist() == [0.5, 0.5]
    assert weights_of(3 * g, g).tolist() == [0.0, 1.0]  # <g1, g2> >= |g2|^2
    assert weights_of(g, 3 * g).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("num", [2, 3, 5])
def test_no_term_gets_worse(num: int) -> None:
    for seed in range(10):
        g = draw(num, 8, seed=seed)
        found = min_norm_weights(g @ g.t())
        assert float(found.sum()) == pytest.approx(1)
        assert (found >= 0).all()
        d = found @ g
        assert ((g @ d) >= d @ d - 1e-6).all()


def test_three_vectors_against_a_grid() -> None:
    g = draw(3, 4)
    best = min(
        float((torch.tensor([a, b, 100 - a - b]).double() / 100 @ g).norm())
        for a, b in itertools.product(range(101), repeat=2)
        if a + b <= 100
    )
    found = float((min_norm_weights(g @ g.t()) @ g).norm())
    assert found <= best + 1e-9
    assert found == pytest.approx(best, abs=2e-2)


def terms_of(encoder: nn.Module, decoder: nn.Module, x: Tensor, count: int) -> Terms:
    z = encoder(x)
    return Terms().add("contrast", z.square().mean(), count=count).add("elbo", decoder(z).mean(), count=count)


def modules() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(4, 3).double(), nn.Linear(3, 2).double()


def test_gradients_are_put_in_place() -> None:
    encoder, decoder = modules()
    x = draw(6, 4)
    weights = min_norm_backward(terms_of(encoder, decoder, x, 6), encoder.parameters(), decoder.parameters())
    each = []
    for name in ("contrast", "elbo"):
        one, other = modules()
        terms_of(one, other, x, 6).values[name].backward()
        each.append((torch.cat([p.grad.flatten() for p in one.parameters()]), other.weight.grad))
    expected = weights_of(each[0][0], each[1][0])
    assert list(weights.values()) == pytest.approx(expected.tolist())
    found = torch.cat([p.grad.flatten() for p in encoder.parameters()])
    torch.testing.assert_close(found, expected[0] * each[0][0] + expected[1] * each[1][0])
    torch.testing.assert_close(decoder.weight.grad, each[1][1])


def test_normalised_gradients_count_alike() -> None:
    encoder, decoder = modules()
    terms = terms_of(encoder, decoder, draw(6, 4), 6)
    terms.weights["elbo"] = 1000.0
    plain = min_norm_backward(terms, encoder.parameters())
    equal = min_norm_backward(terms, encoder.parameters(), normalize=True)
    assert plain["contrast"] > 0.99
    assert equal["contrast"] == pytest.approx(0.5, abs=1e-6)


def over_processes(x: Tensor) -> list[Any]:
    encoder, decoder = modules()
    rows = x.split([4, 2])[distributed.rank()]
    weights = min_norm_backward(terms_of(encoder, decoder, rows, len(rows)), encoder.parameters(), decoder.parameters())
    return [weights["contrast"], encoder.weight.grad, decoder.weight.grad]


@pytest.mark.slow
def test_two_processes_equal_one() -> None:
    x = draw(6, 4)
    encoder, decoder = modules()
    weights = min_norm_backward(terms_of(encoder, decoder, x, 6), encoder.parameters(), decoder.parameters())
    for found, of_encoder, of_decoder in launch(over_processes, 2, x):
        assert found == pytest.approx(weights["contrast"])
        torch.testing.assert_close(of_encoder, encoder.weight.grad)
        torch.testing.assert_close(of_decoder, decoder.weight.grad)


def test_refuses() -> None:
    encoder, _ = modules()
    with pytest.raises(ValueError, match="terms: expected two or more"):
        min_norm_backward(Terms().add("one", encoder(draw(2, 4)).mean()), encoder.parameters())
    with pytest.raises(ValueError, match="shared: expected parameters that the terms reach"):
        min_norm_backward(
            Terms().add("a", encoder(draw(2, 4)).mean()).add("b", encoder(draw(2, 4)).sum()), modules()[1].parameters()
        )
    with pytest.raises(ValueError, match=r"gram: expected shape \[T, T\]"):
        min_norm_weights(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="gram: expected finite numbers"):
        min_norm_weights(torch.full((2, 2), float("nan")))
