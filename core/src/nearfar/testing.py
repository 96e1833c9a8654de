"""Checks that every Method passes; authors of a system call them in a test of their own."""

from __future__ import annotations

import copy

import torch
from torch import nn

from nearfar.batch import Batch, size, take
from nearfar.method import BATCH_NORM, Method, Progress
from nearfar.rng import Rng


def check_method(method: Method, batch: Batch, *, rows: int | None = None) -> None:
    """Checks the contract of `nearfar.method.Method` on one raw batch.

    - `views` is a function of the seed, the epoch and the sample: repeated, or on a part of the batch, it is the same;
    - `encode` and `loss` change nothing in the module (running batch statistics apart);
    - `cache = "exact"` is true: encoding some rows gives those rows of the whole; where batch normalisation is the
      declared obstacle, it is the only one;
    - the terms are finite scalars, and a gradient reaches every trainable parameter that `optimisers` names;
    - `state_dict` holds what `after_update` changes: a copy loaded from it gives the same loss again;
    - `features` is finite, has one row a sample, and does not depend on the other rows in evaluation mode.

    Args:
        method: any method; it is copied, not changed.
        batch: raw samples as the loader gives them.
        rows: size of the part; default: half of the batch.

    Raises:
        AssertionError: names the broken promise.
    """
    method = copy.deepcopy(method)
    method.train()
    part = torch.arange(rows or size(batch) // 2)
    rng, progress = Rng(3, 1), Progress(0, 0, 0.0, 10)
    with torch.no_grad():
        viewed, again = method.views(batch, rng), method.views(batch, rng)
        _same_views(viewed, again, "views: two calls with the same randomness differ")
        _same_views(
            take(viewed, part), method.views(take(batch, part), rng), "views: a sample's view depends on its batch"
        )
        other = method.views(batch, rng.at(epoch=2))
        if viewed.get("views"):
            same = all(torch.equal(a.data, b.data) for a, b in zip(viewed["views"], other["views"], strict=True))
            assert not same, "views: another epoch gives the same views"
        targets = method.targets(viewed, progress)

    before = {name: value.clone() for name, value in method.state_dict().items()}
    z = method.encode(viewed)
    terms = method.loss(z, viewed, targets, progress)
    changed = [n for n, v in method.state_dict().items() if not torch.equal(v, before[n]) and not _statistic(method, n)]
    assert not changed, f"encode and loss change {changed}"
    assert all(len(value) == size(batch) for value in z.values()), "encode: the first dimension is not the batch"
    assert torch.isfinite(terms.total), "loss: not finite on a plain batch"

    terms.total.backward()
    named = {id(p) for params in method.optimisers().values() for p in params}
    lost = [n for n, p in method.named_parameters() if id(p) in named and p.requires_grad and p.grad is None]
    assert not lost, f"no gradient reaches {lost}, which an optimiser moves"

    assert method.cache == "exact" or method.cache.startswith("no: "), (
        f"cache: {method.cache!r} is neither exact nor 'no: reason'"
    )
    if method.cache == "exact" or method.cache.startswith(BATCH_NORM):
        quiet = _without_dropout(method)
        for module in quiet.modules() if method.cache != "exact" else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        with torch.no_grad():
            whole, some = quiet.encode(viewed), quiet.encode(take(viewed, part))
        for name, value in some.items():
            torch.testing.assert_close(
                value, whole[name][part], rtol=1e-4, atol=1e-5, msg=lambda m: f"cache is not exact: {m}"
            )

    with torch.no_grad():
        method.after_update({n: v.detach() for n, v in z.items()}, targets, progress)
    twin = copy.deepcopy(method)
    twin.load_state_dict(method.state_dict())
    losses = []
    for one in (_without_dropout(method), _without_dropout(twin)):
        with torch.no_grad():
            losses.append(one.loss(one.encode(viewed), viewed, one.targets(viewed, progress), progress).total)
    assert torch.equal(*losses), "state_dict: a copy loaded from it gives another loss"

    method.eval()
    for output in method.outputs:
        with torch.no_grad():
            kept, some = method.features(batch, output), method.features(take(batch, part), output)
        assert kept.ndim == 2, f"features({output!r}): expected [B, D], received {tuple(kept.shape)}"
        assert len(kept) == size(batch), f"features({output!r}): expected one row a sample"
        assert torch.isfinite(kept).all(), f"features({output!r}): not finite"
        torch.testing.assert_close(some, kept[part], rtol=1e-4, atol=1e-5)


def _statistic(method: nn.Module, name: str) -> bool:
    """Whether a state entry is a running batch statistic."""
    owner = method.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, nn.modules.batchnorm._BatchNorm)


def _without_dropout(method: Method) -> Method:
    """A copy in training mode whose dropout is off, since the same masks cannot be had on another batch size."""
    twin = copy.deepcopy(method)
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return twin


def _same_views(one: Batch, other: Batch, message: str) -> None:
    for a, b in zip(one.get("views", []), other.get("views", []), strict=True):
        torch.testing.assert_close(a.data, b.data, rtol=1e-4, atol=1e-4, msg=lambda m: f"{message}: {m}")
