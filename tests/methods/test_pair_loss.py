"""The frame as a function: masks by loops, and the identities that tie its families together.

Legend: Q queries, K keys, D embedding.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from nearfar.methods import pair_loss
from nearfar.methods.masked import LOSSES
from nearfar.objectives import mutual_information, nt_xent, pair_margin, supcon, triplet

F64 = torch.float64
Q, K, D = 5, 8, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def masks(seed: int = 0) -> tuple[Tensor, Tensor]:
    """P and N, apart, with keys in neither; every query has both."""
    kind = torch.randint(0, 3, (Q, K), generator=torch.Generator().manual_seed(seed))
    kind[:, 0], kind[:, 1] = 0, 1
    return kind == 0, kind == 1


def by_loops(q: Tensor, k: Tensor, positive: Tensor, negative: Tensor, loss: str, similarity: str, t: float) -> Tensor:
    if similarity == "cosine":
        q, k = normalize(q, dim=1), normalize(k, dim=1)

    def square(i: int, j: int) -> Tensor:
        return (q[i] - k[j]).square().sum()

    def s(i: int, j: int) -> Tensor:
        return -square(i, j) if similarity == "distance" else q[i] @ k[j] / t

    def d(i: int, j: int) -> Tensor:
        return 1 - q[i] @ k[j] if similarity == "cosine" else square(i, j)

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean()

    ps = [[j for j in range(K) if positive[i, j]] for i in range(Q)]
    ns = [[j for j in range(K) if negative[i, j]] for i in range(Q)]
    each = []
    if loss == "jensen_shannon":
        pair = [softplus(-s(i, j)) for i in range(Q) for j in ps[i]]
        return mean(pair) + mean([softplus(s(i, j)) for i in range(Q) for j in ns[i]])
    if loss == "donsker_varadhan":
        pair = [s(i, j) for i in range(Q) for j in ps[i]]
        return mean([s(i, j).exp() for i in range(Q) for j in ns[i]]).log() - mean(pair)
    if loss == "triplet":
        hinges = [torch.relu(d(i, p) - d(i, n) + 0.3) for i in range(Q) for p in ps[i] for n in ns[i]]
        return mean([h for h in hinges if h > 0])
    for i in range(Q):
        low = sum(s(i, n).exp() for n in ns[i])
        if loss == "info_nce":
            each.append(mean([-(s(i, p).exp() / (s(i, p).exp() + low)).log() for p in ps[i]]))
        elif loss == "supcon":
            every = low + sum(s(i, p).exp() for p in ps[i])
            each.append(mean([-(s(i, p).exp() / every).log() for p in ps[i]]))
        elif loss == "binary_nce":
            c = math.log(len(ns[i]))
            each.append(sum(softplus(c - s(i, p)) for p in ps[i]) + sum(softplus(s(i, n) - c) for n in ns[i]))
        else:
            far = mean([torch.relu(0.3 - square(i, n).sqrt()).square() for n in ns[i]])
            each.append(mean([square(i, p) for p in ps[i]]) + far)
    return mean(each)


CASES = [(loss, s) for loss in LOSSES for s in ("cosine", "dot", "distance")
         if s != "dot" or loss not in ("triplet", "pair_margin")]  # fmt: skip
each_case = pytest.mark.parametrize(("loss", "similarity"), CASES)


@each_case
@pytest.mark.oracle("crl_framework", 2)
def test_masks_equal_loops(loss: str, similarity: str) -> None:
    q, k = draw(Q, D).requires_grad_(), draw(K, D, seed=1).requires_grad_()
    positive, negative = masks()
    found = pair_loss(q, k, positive, negative, loss=loss, similarity=similarity, temperature=0.4, margin=0.3)
    expected = by_loops(q, k, positive, negative, loss, similarity, 0.4)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (q, k)), torch.autograd.grad(expected, (q, k)))


@each_case
@pytest.mark.oracle("crl_framework", 2)
def test_neither_the_order_of_keys_nor_one_in_no_mask_matters(loss: str, similarity: str) -> None:
    q, k = draw(Q, D), draw(K, D, seed=1)
    positive, negative = masks()
    options: dict[str, Any] = {"loss": loss, "similarity": similarity}
    expected = pair_loss(q, k, positive, negative, **options)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(pair_loss(q, k[order], positive[:, order], negative[:, order], **options), expected)
    more = torch.cat([k, 100 * draw(3, D, seed=3)])
    none = torch.zeros(Q, 3, dtype=torch.bool)
    wider = [torch.cat([mask, none], 1) for mask in (positive, negative)]
    torch.testing.assert_close(pair_loss(q, more, *wider, **options), expected)


@pytest.mark.oracle("crl_framework", 3)
def test_triplet_on_the_sphere_is_the_margin_of_cosines() -> None:
    q, k = normalize(draw(Q, D), dim=1), normalize(draw(K, D, seed=1), dim=1)
    positive, negative = masks()
    s = q @ k.t()
    hinges = [torch.relu(2 * (s[i, n] - s[i, p]) + 0.4)
              for i in range(Q) for p in range(K) for n in range(K) if positive[i, p] and negative[i, n]]  # fmt: skip
    hinges = [h for h in hinges if h > 0]
    found = pair_loss(q, k, positive, negative, loss="triplet", similarity="distance", margin=0.4)
    torch.testing.assert_close(found, torch.stack(hinges).mean())
    halved = pair_loss(q, k, positive, negative, loss="triplet", similarity="cosine", margin=0.2)
    torch.testing.assert_close(found, 2 * halved)
    z, labels = draw(6, D), torch.tensor([0, 1, 0, 1, 2, 2])
    one, other = ({"distance": "squared", "margin": 0.4}, {"distance": "cosine", "margin": 0.2})
    torch.testing.assert_close(triplet(z, labels, **one), 2 * triplet(z, labels, **other))


@pytest.mark.oracle("crl_framework", 3)
def test_one_negative_links_the_families() -> None:
    q, k = draw(Q, D), draw(2, D, seed=1)
    positive = torch.tensor([[True, False]]).expand(Q, 2)
    s = normalize(q, dim=1) @ normalize(k, dim=1).t() / 0.1
    found = pair_loss(q, k, positive, ~positive)
    torch.testing.assert_close(found, softplus(s[:, 1] - s[:, 0]).mean())
    found = [pair_loss(q, k, positive, ~positive, loss=loss) for loss in ("binary_nce", "jensen_shannon")]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], (softplus(-s[:, 0]) + softplus(s[:, 1])).mean())


def test_ids_as_masks_give_the_objectives() -> None:
    z, labels = draw(6, D), torch.tensor([0, 1, 0, 1, 2, 2])
    apart = ~torch.eye(6, dtype=torch.bool)
    positive, negative = (labels[:, None] == labels) & apart, labels[:, None] != labels
    torch.testing.assert_close(pair_loss(z, z, positive, negative, loss="supcon"), supcon(z, labels))
    torch.testing.assert_close(pair_loss(z, z, positive, negative, loss="triplet", margin=0.2),
                               triplet(z, labels, distance="cosine"))  # fmt: skip
    torch.testing.assert_close(
        pair_loss(z, z, positive, negative, loss="pair_margin", margin=1.0), pair_margin(z, labels)
    )
    torch.testing.assert_close(pair_loss(z, z, positive, negative), nt_xent(z[[0, 1, 4]], z[[2, 3, 5]]))
    own = torch.eye(6, dtype=torch.bool)
    x = draw(6, D, seed=1)
    for bound in ("jensen_shannon", "donsker_varadhan"):
        expected = mutual_information(z, x, bound=bound, temperature=0.1, normalize=True)
        torch.testing.assert_close(pair_loss(z, x, own, ~own, loss=bound), expected)


def test_queries_without_positives_leave_the_mean() -> None:
    q, k = draw(Q, D), draw(K, D, seed=1)
    positive, negative = masks()
    lacking = positive.clone()
    lacking[2] = False
    rest = [0, 1, 3, 4]
    for loss in ("info_nce", "supcon", "binary_nce", "pair_margin"):
        expected = pair_loss(q[rest], k, positive[rest], negative[rest], loss=loss)
        torch.testing.assert_close(pair_loss(q, k, lacking, negative, loss=loss), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_query_with_a_positive_gives_zero_and_a_warning(loss: str) -> None:
    q, k = draw(Q, D).requires_grad_(), draw(K, D, seed=1).requires_grad_()
    positive, negative = masks()
    with pytest.warns(UserWarning, match="pair_loss: no query has the pairs"):
        found = pair_loss(q, k, torch.zeros_like(positive), negative, loss=loss)
    assert found == 0
    assert all(not grad.any() for grad in torch.autograd.grad(found, (q, k)))


def test_without_negatives_nothing_is_to_be_told() -> None:
    q, k = draw(Q, D), draw(K, D, seed=1)
    positive, _ = masks()
    none = torch.zeros_like(positive)
    assert pair_loss(q, k, positive, none) == 0
    for loss in ("jensen_shannon", "donsker_varadhan"):
        with pytest.raises(ValueError, match=f"negative: expected at least one negative with loss '{loss}'"):
            pair_loss(q, k, positive, none, loss=loss)


def test_a_learnt_temperature_gets_a_gradient() -> None:
    t = torch.tensor(0.3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: pair_loss(draw(Q, D), draw(K, D, seed=1), *masks(), temperature=t), (t,))


def test_half_precision_is_summed_in_full() -> None:
    q, k = draw(Q, D), draw(K, D, seed=1)
    for loss in LOSSES:
        found = pair_loss(q.half(), k.half(), *masks(), loss=loss)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), pair_loss(q, k, *masks(), loss=loss), rtol=1e-2, atol=1e-3)


@pytest.mark.oracle("crl_framework", 4)
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"negative": torch.ones(Q, K, dtype=torch.bool)}, ValueError,
         r"positive, negative: expected masks that are apart, received \d+ pairs in both"),
        ({"negative": torch.ones(Q, K)}, TypeError, "negative: expected dtype bool, received torch.float32"),
        ({"positive": torch.ones(Q, K + 1, dtype=torch.bool)}, ValueError, r"positive: expected shape \(5, 8\)"),
        ({"key": torch.ones(K, D + 1)}, ValueError, r"key: expected shape \[K, 4\], received \(8, 5\)"),
        ({"query": torch.ones(D)}, ValueError, r"query: expected shape \[Q, D\], received \(4,\)"),
        ({"loss": "info_nec"}, ValueError, r"loss: .*did you mean 'info_nce'\?"),
        ({"similarity": "cosin"}, ValueError, r"similarity of info_nce: .*did you mean 'cosine'\?"),
        ({"loss": "triplet", "similarity": "dot"}, ValueError, "similarity of triplet: expected one of 'cosine', 'dis"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a finite number > 0"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_by_name(changes: dict, error: type[Exception], message: str) -> None:
    positive, negative = masks()
    given = {"query": draw(Q, D), "key": draw(K, D), "positive": positive, "negative": negative} | changes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=message):
            pair_loss(**given)
