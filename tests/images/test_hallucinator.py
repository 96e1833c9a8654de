"""Hallucinated positives as a system: the bases' own losses, what is added to them, gradients, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from images.vectors import batch, forward, make
from nearfar.config import ContrastConfig, HeadConfig
from nearfar.method import Progress
from nearfar.objectives import info_nce, nt_xent
from nearfar.rng import Rng
from nearfar_images.methods.hallucinator import extrapolate
from nearfar_images.systems.hallucinator import HallucinatorConfig

HEAD = HeadConfig(layers=2, hidden=6, dim=5, norm="none")
SIAM: dict[str, Any] = {
    "base": "simsiam", "key_encoder": "shared", "symmetric": True, "head": HEAD,
    "predictor": HeadConfig(layers=2, hidden=4, dim=5, norm="none"),
}  # fmt: skip
CLR: dict[str, Any] = {"base": "simclr", "key_encoder": "shared", "symmetric": True, "head": HEAD}
MOCO: dict[str, Any] = {"head": HEAD, "queue": 9}
BASES = {
    "moco": ContrastConfig(loss="info_nce", temperature=0.2, head=HEAD, key_encoder="ema", queue=9, symmetric=False),
    "simsiam": ContrastConfig(loss="regression", regression="cosine", head=HEAD, predictor=SIAM["predictor"]),
    "simclr": ContrastConfig(loss="nt_xent", temperature=0.2, head=HEAD),
}


class FirstHalf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, : x.shape[1] // 2]


def fill(method: Any) -> None:
    """A queue of keys that were there before."""
    if method.queue is not None:
        method.queue.push(key=F.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(1)), dim=1))


@pytest.mark.oracle("hallucinator", 1)
@pytest.mark.parametrize("name", ["moco", "simsiam"])
@pytest.mark.parametrize("filled", [True, False])
def test_nothing_added_is_the_base(name: str, filled: bool) -> None:
    options = MOCO if name == "moco" else SIAM
    own, base = make(HallucinatorConfig(ratio=0.0, **options)), make(BASES[name])
    own.module = FirstHalf()
    without = make(HallucinatorConfig(hallucinate="none", **options))
    for one in (own, base, without) if filled else ():
        fill(one)
    losses = [forward(one, batch(7))[2].total for one in (own, base, without)]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[2], losses[1])


def test_simclr_without_it_is_nt_xent() -> None:
    own, base = make(HallucinatorConfig(hallucinate="none", **CLR)), make(BASES["simclr"])
    torch.testing.assert_close(*(forward(one, batch(7))[2].total for one in (own, base)))


@pytest.mark.oracle("hallucinator", 2)
def test_extrapolation_leaves_the_partner() -> None:
    q, k = (F.normalize(torch.randn(50, 6, dtype=torch.float64), dim=1) for _ in range(2))
    c = (q * k).sum(1)
    before = c
    for r in (0.05, 0.1, 0.5, 2.0):
        found = F.cosine_similarity(extrapolate(q, k, r), k, dim=1)
        expected = ((1 + r) * c - r) / ((1 + r) ** 2 + r**2 - 2 * r * (1 + r) * c).sqrt()
        torch.testing.assert_close(found, expected)
        assert (found < before).all()
        before = found
    torch.testing.assert_close(extrapolate(q, k, 0.0), q)


@pytest.mark.oracle("hallucinator", 3)
def test_where_gradients_go() -> None:
    method = make(HallucinatorConfig(**MOCO))
    fill(method)
    viewed = method.views(batch(7), Rng(0))
    targets = {"key": method.targets(viewed, Progress())["key"].requires_grad_()}
    z = method.encode(viewed)["embedding"].detach().requires_grad_()
    method.loss({"embedding": z}, viewed, {"key": targets["key"].detach()}, Progress()).total.backward()
    assert (z.grad != 0).any()
    assert all((p.grad != 0).any() for p in method.module.parameters())
    assert not method.targets(viewed, Progress())["key"].requires_grad
    siam = make(HallucinatorConfig(ratio=0.5, **SIAM))
    p1, p2 = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    made = siam.hallucinate(p1, p2, 0.3)[4:]
    assert (torch.autograd.grad(made.sum(), p2)[0] != 0).any()  # the partner is not held still
    projection = siam.encode(siam.views(batch(7), Rng(0)))["projection"].detach().requires_grad_()
    embedding = torch.randn(7, 2, 5, requires_grad=True)
    loss = siam.loss({"embedding": embedding, "projection": projection}, {"seed": 0}, {}, Progress()).total
    grads = torch.autograd.grad(loss, [embedding, projection], allow_unused=True)
    assert (grads[0] != 0).any()
    assert grads[1] is None


@pytest.mark.oracle("hallucinator", 5)
@pytest.mark.parametrize("mode", ["both", "extrapolation"])
def test_duplicated_pairs_are_the_mean_of_both(mode: Any) -> None:
    method = make(HallucinatorConfig(hallucinate=mode, **MOCO))
    fill(method)
    q, targets, terms = forward(method, batch(7), Progress(step=3))
    key = F.normalize(targets["key"][:, 0], dim=1)
    ratio = 0.1 * float(Rng(0, 3).uniform(torch.arange(1), "hallucinator.ratio"))
    made = extrapolate(q[0], key, ratio)
    made = method.module(torch.cat([q[0], made], 1)) if mode == "both" else made
    each = [info_nce(one, key, method.queue.view("key"), temperature=0.2) for one in (q[0], made)]
    torch.testing.assert_close(terms.total, (each[0] + each[1]) / 2)
    assert terms.counts == {"moco": 14.0}


@pytest.mark.oracle("hallucinator", 5)
def test_both_directions_of_simsiam() -> None:
    method = make(HallucinatorConfig(**SIAM))
    viewed = method.views(batch(7), Rng(0))
    z = method.encode(viewed)
    terms = method.loss(z, viewed, {}, Progress())
    p, target = z["embedding"].transpose(0, 1), z["projection"].transpose(0, 1)
    ratios = 0.1 * Rng(0, 0).uniform(torch.arange(2), "hallucinator.ratio")[:, 0]
    losses = []
    for q, k in ((0, 1), (1, 0)):
        made = method.module(torch.cat([p[q], extrapolate(p[q], p[k], float(ratios[q]))], 1))
        losses += [-F.cosine_similarity(one, target[k], dim=1).mean() for one in (p[q], made)]
    torch.testing.assert_close(terms.total, torch.stack(losses).mean())


@pytest.mark.parametrize("keep", [True, False])
def test_simclr_by_hand(keep: bool) -> None:
    method = make(HallucinatorConfig(keep_twins=keep, **CLR))
    z, _, terms = forward(method, batch(5))
    both = method.hallucinate(z[0], z[1], 0.1 * float(Rng(0, 0).uniform(torch.arange(1), "hallucinator.ratio")))
    stacked = torch.cat([both, z[1], z[1]])
    if keep:
        expected = nt_xent(stacked[:10], stacked[10:], temperature=0.2)
    else:
        s = F.cosine_similarity(stacked[:, None], stacked[None], dim=2) / 0.2
        losses = []
        for i in range(20):
            partner = (i + 10) % 20
            kept = [j for j in range(20) if j % 5 != i % 5]
            losses.append(torch.logsumexp(torch.cat([s[i, [partner]], s[i, kept]]), 0) - s[i, partner])
        expected = torch.stack(losses).mean()
    torch.testing.assert_close(terms.total, expected)
    assert terms.counts == {"simclr": 20.0}


def test_lengths_may_be_taken_first() -> None:
    method = make(HallucinatorConfig(hallucinate="extrapolation", normalize_first=True, **MOCO))
    q, k = torch.randn(4, 5) * 3, torch.randn(4, 5)
    made = method.hallucinate(q, k, 0.2)[4:]
    torch.testing.assert_close(made, 1.2 * F.normalize(q, dim=1) - 0.2 * F.normalize(k, dim=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0"),
        ({"ratio": -0.1}, "method.ratio: expected a finite number of 0 or more"),
        ({"key_encoder": "shared"}, "method.key_encoder: expected 'shared' exactly without base 'moco'"),
        ({**CLR, "predictor": SIAM["predictor"]}, "method.predictor.kind: expected one exactly with base 'simsiam'"),
        ({**SIAM, "predictor": HeadConfig(dim=7)}, "method.predictor.dim: expected 5"),
        ({**CLR, "symmetric": False}, "method.symmetric: expected True with base"),
        ({"keep_twins": True}, "method.keep_twins: expected off"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HallucinatorConfig(**options)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"partner: expected the shape of query, \(4, 5\), received \(3, 5\)"):
        extrapolate(torch.zeros(4, 5), torch.zeros(3, 5), 0.1)
    with pytest.raises(ValueError, match="ratio: expected 0 or more"):
        extrapolate(torch.zeros(4, 5), torch.zeros(4, 5), -0.1)
    with pytest.raises(ValueError, match="views.num_views: expected 2 with base 'simclr', received 3"):
        forward(make(HallucinatorConfig(**CLR), num_views=3), batch(4))
