"""The gradient cache in a loop of one's own, against one backward through the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nearfar.gradcache import GradCache
from nearfar.objectives import NTXent, clip, nt_xent, supcon
from toys import mlp

SIZES = [1, 3, 7, 20, 50]  # one a chunk, two that do not divide 20, all at once, more than there are


def gradients(*modules: nn.Module) -> list[Tensor]:
    """Taken out, so that the next backward starts from nothing."""
    found = []
    for module in modules:
        for parameter in module.parameters():
            assert parameter.grad is not None
            found.append(parameter.grad)
            parameter.grad = None
    return found


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference of two gradients over the norm of the second."""
    a, b = (torch.cat([g.flatten().double() for g in grads]) for grads in (found, expected))
    return float((a - b).norm() / b.norm())


LABELS = torch.arange(20) // 3
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "nt_xent": lambda z: nt_xent(z.unflatten(0, (2, -1)), temperature=0.3),
    "supcon": lambda z: supcon(z[None], LABELS, temperature=0.3),
    "clip": lambda z: clip(z[:10], z[10:], scale=5.0),
}


@pytest.mark.oracle("gradcache", 1)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_the_whole_batch(loss: str, size: int) -> None:
    encoder, x = mlp(), torch.randn(20, 6, dtype=torch.float64)
    whole = LOSSES[loss](encoder(x))
    whole.backward()
    expected = gradients(encoder)
    cache = GradCache(encoder)
    value = LOSSES[loss](cache(x.split(size)))
    cache.backward(value)
    torch.testing.assert_close(value, whole, rtol=1e-12, atol=0)
    assert error(gradients(encoder), expected) < 1e-10


@pytest.mark.oracle("gradcache", 2)
@pytest.mark.parametrize("size", [1, 6, 20])
def test_dropout_is_that_of_one_pass_over_the_chunks(size: int) -> None:
    encoder, x = mlp(dropout=0.3), torch.randn(20, 6, dtype=torch.float64)
    torch.manual_seed(5)
    whole = LOSSES["nt_xent"](torch.cat([encoder(chunk) for chunk in x.split(size)]))
    after = torch.rand(3)
    whole.backward()
    expected = gradients(encoder)
    torch.manual_seed(5)
    cache = GradCache(encoder)
    value = LOSSES["nt_xent"](cache(x.split(size)))
    cache.backward(value)
    assert torch.equal(torch.rand(3), after)  # later draws are those of a plain step
    torch.testing.assert_close(value, whole)
    assert error(gradients(encoder), expected) < 1e-10
    another = LOSSES["nt_xent"](cache(x.split(size)))
    assert abs(float(another.detach() - whole.detach())) > 1e-6  # the masks do matter, and change from step to step


def test_draws_of_the_loss_go_on_after_it() -> None:
    encoder, x = mlp(dropout=0.3), torch.randn(20, 6, dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        return LOSSES["nt_xent"](z + 0.1 * torch.randn_like(z))

    torch.manual_seed(5)
    loss(torch.cat([encoder(chunk) for chunk in x.split(6)])).backward()
    after = torch.rand(3)
    expected = gradients(encoder)
    torch.manual_seed(5)
    cache = GradCache(encoder)
    cache.backward(loss(cache(x.split(6))))
    assert torch.equal(torch.rand(3), after)
    assert error(gradients(encoder), expected) < 1e-10


@pytest.mark.oracle("gradcache", 3)
@pytest.mark.parametrize("size", [3, 20])
def test_a_learnable_temperature_and_a_tied_encoder(size: int) -> None:
    """One encoder for both sides, its parameters in the loss too: a parameter of both, and one of the loss alone."""
    encoder, objective = mlp(), NTXent(temperature=0.2, learnable_temperature=True).double()
    x, y = torch.randn(2, 20, 6, dtype=torch.float64)

    def loss(z: dict[str, Tensor]) -> Tensor:
        return objective(torch.stack([z["x"], z["y"]])) + 0.1 * (z["x"] @ encoder[4].weight).square().mean()

    def encode(pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"x": encoder(pair[0]), "y": encoder(pair[1])}

    whole = loss(encode((x, y)))
    whole.backward()
    expected = gradients(encoder, objective)
    cache = GradCache(encode)
    value = loss(cache(list(zip(x.split(size), y.split(size), strict=True))))
    cache.backward(value)
    torch.testing.assert_close(value, whole)
    found = gradients(encoder, objective)
    assert error(found, expected) < 1e-10
    torch.testing.assert_close(found[-1], expected[-1])  # the temperature's own
    assert expected[-1].abs() > 1e-3


@pytest.mark.oracle("gradcache", 4)
def test_accumulating_the_losses_of_the_chunks_is_something_else() -> None:
    encoder, x = mlp(), torch.randn(2, 20, 6, dtype=torch.float64)

    def encode(views: Tensor) -> Tensor:
        return encoder(views).transpose(0, 1)

    nt_xent(encode(x).transpose(0, 1)).backward()
    expected = gradients(encoder)
    for part in x.split(5, dim=1):
        (nt_xent(encode(part).transpose(0, 1)) / 4).backward()
    assert error(gradients(encoder), expected) > 0.1
    cache = GradCache(encode)
    cache.backward(nt_xent(cache(x.split(5, dim=1)).transpose(0, 1)))
    assert error(gradients(encoder), expected) < 1e-10


def held(run: Callable[[], None]) -> int:
    """Most bytes that autograd kept at one time."""
    now = most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            now += self.bytes
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        run()
    return most


@pytest.mark.oracle("gradcache", 5)
def test_what_autograd_holds_of_the_encoder_does_not_grow_with_the_batch() -> None:
    encoder = nn.Sequential(nn.Linear(6, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 4)).double()

    def cached(x: Tensor) -> None:
        cache = GradCache(encoder)
        cache.backward(cache(x.split(8)).square().mean())

    sizes = (64, 512)
    batches = [torch.randn(size, 6, dtype=torch.float64) for size in sizes]
    plain = [held(lambda x=x: encoder(x).square().mean().backward()) for x in batches]
    ours = [held(lambda x=x: cached(x)) for x in batches]
    of_the_loss = [4 * size * 8 for size in sizes]  # the embeddings that the square keeps
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    assert plain[1] - weights > 7 * (plain[0] - weights)
    assert ours[0] < plain[0] / 3
    assert max(ours) <= ours[0] + of_the_loss[1]
    assert ours[1] < plain[1] / 12


def test_two_modalities_with_encoders_and_lengths_of_their_own() -> None:
    """A sample is an image and three texts; the second has thrice the rows."""
    image, text = mlp(), mlp(dim_in=5)
    x, y = torch.randn(10, 6, dtype=torch.float64), torch.randn(10, 3, 5, dtype=torch.float64)

    def encode(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor]]:
        return image(pair[0]), [text(pair[1].flatten(0, 1))]

    def loss(z: tuple[Tensor, list[Tensor]]) -> Tensor:
        logits = z[0] @ z[1][0].T
        return nn.functional.cross_entropy(logits, torch.arange(10) * 3)

    loss(encode((x, y))).backward()
    expected = gradients(image, text)
    cache = GradCache(encode)
    z = cache(list(zip(x.split(4), y.split(4), strict=True)))
    assert z[1][0].shape == (30, 8)
    cache.backward(loss(z))
    assert error(gradients(image, text), expected) < 1e-10


def test_what_the_loss_does_not_use_and_what_does_not_learn() -> None:
    """A frozen tower, integer outputs, and an output that the loss leaves out."""
    learned, frozen = mlp(), mlp().requires_grad_(False)
    x = torch.randn(10, 6, dtype=torch.float64)

    def encode(chunk: Tensor) -> dict[str, Tensor]:
        z = learned(chunk)
        return {"learned": z, "frozen": frozen(chunk), "sign": (chunk[:, 0] > 0).long(), "unused": 3 * z}

    def loss(z: dict[str, Tensor]) -> Tensor:
        return (z["learned"] * z["frozen"]).sum(1) @ z["sign"].double()

    loss(encode(x)).backward()
    expected = gradients(learned)
    cache = GradCache(encode)
    cache.backward(loss(cache(x.split(3))))
    assert error(gradients(learned), expected) < 1e-10
    assert all(p.grad is None for p in frozen.parameters())


def test_gradients_add_up() -> None:
    encoder, x = mlp(), torch.randn(8, 6, dtype=torch.float64)
    cache = GradCache(encoder)
    for _ in range(2):
        cache.backward(cache(x.split(3)).square().sum())
    (2 * encoder(x).square().sum()).backward()
    twice = gradients(encoder)
    cache.backward(cache(x.split(3)).square().sum())
    torch.testing.assert_close([g * 4 for g in gradients(encoder)], twice)


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_is_replayed_and_its_cache_of_weights_does_no_harm(inside: bool) -> None:
    encoder, x = mlp().float(), torch.randn(32, 6)

    def loss(z: Tensor) -> Tensor:
        assert z.dtype == torch.bfloat16
        return nt_xent(z.float().unflatten(0, (2, -1)), temperature=0.3)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = loss(encoder(x))
    whole.backward()
    expected = gradients(encoder)
    seen = []

    def encode(chunk: Tensor) -> Tensor:
        seen.append(encoder(chunk))
        return seen[-1]

    cache = GradCache(encode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(cache(x.split(8)))
        if inside:
            cache.backward(value)
    if not inside:
        cache.backward(value)
    assert [z.dtype for z in seen] == 8 * [torch.bfloat16]
    torch.testing.assert_close(value, whole, rtol=1e-3, atol=0)
    assert error(gradients(encoder), expected) < 1e-2


def test_a_scaled_loss_is_scaled_once() -> None:
    encoder, x = mlp().float(), torch.randn(24, 6)
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    LOSSES["nt_xent"](encoder(x)).backward()
    expected = gradients(encoder)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    cache = GradCache(encoder)
    cache.backward(scaler.scale(LOSSES["nt_xent"](cache(x.split(5)))))
    scaler.unscale_(optimiser)
    assert error(gradients(encoder), expected) < 1e-5


def test_clipped_steps_end_at_the_same_parameters() -> None:
    torch.manual_seed(1)
    plain, cached = mlp(), mlp()
    cached.load_state_dict(plain.state_dict())
    cache = GradCache(cached)
    optimisers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (plain, cached)]
    for step in range(5):
        x = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        LOSSES["nt_xent"](plain(x)).backward()
        cache.backward(LOSSES["nt_xent"](cache(x.split(6))))
        for module, optimiser in zip((plain, cached), optimisers, strict=True):
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimiser.step()
            optimiser.zero_grad()
    torch.testing.assert_close(list(cached.parameters()), list(plain.parameters()), rtol=1e-8, atol=1e-10)


# -- batch norms -------------------------------------------------------------------------------------------------------


def test_a_batch_norm_that_trains_is_refused_by_name_in_every_call() -> None:
    encoder, x = mlp(norm=nn.BatchNorm1d), torch.randn(8, 6, dtype=torch.float64)
    before = encoder[1].running_mean.clone()
    with pytest.raises(ValueError, match=r"no batch norm in training mode.*received 1 \(BatchNorm1d.*eval mode"):
        GradCache(encoder)(x.split(4))
    with pytest.raises(ValueError, match=r"received BatchNorm1d\(16"):
        GradCache(lambda chunk: encoder(chunk))(x.split(4))
    assert torch.equal(encoder[1].running_mean, before)
    cache = GradCache(encoder.eval())
    cache.backward(cache(x.split(4)).sum())
    encoder.train()
    with pytest.raises(ValueError, match="no batch norm in training mode"):
        cache(x.split(4))


def test_statistics_of_chunks_move_the_running_ones_once_a_chunk() -> None:
    encoder, x = mlp(norm=nn.BatchNorm1d), torch.randn(12, 6, dtype=torch.float64)
    twin = mlp(norm=nn.BatchNorm1d)
    twin.load_state_dict(encoder.state_dict())
    z = torch.cat([twin(chunk) for chunk in x.split(4)])
    LOSSES["nt_xent"](z).backward()
    cache = GradCache(encoder, batch_norm="chunk")
    cache.backward(LOSSES["nt_xent"](cache(x.split(4))))
    for (name, ours), theirs in zip(encoder.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m, n=name: f"{n}: {m}")
    assert int(encoder[1].num_batches_tracked) == 3
    assert encoder[1].track_running_stats
    assert error(gradients(encoder), gradients(twin)) < 1e-10  # of the chunked statistics, not of the whole batch's


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def linear() -> nn.Linear:
    return nn.Linear(6, 4)


@pytest.mark.parametrize(
    ("encode", "error", "message"),
    [
        (lambda x: x.sum(), TypeError, "encode: expected tensors with a row a sample, received a scalar tensor"),
        (lambda x: {"z": x.tolist()}, TypeError, "encode: expected tensors, or dicts, lists, tuples of them"),
        (lambda x: {}, TypeError, "encode: expected at least one tensor"),
        (lambda x: {str(len(x)): x}, ValueError, "encode: expected the structure of the chunk before"),
    ],
)
def test_outputs_that_cannot_be_cached(encode: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GradCache(encode)(torch.randn(5, 6).split(2))


def test_wrong_use_is_refused() -> None:
    x = torch.randn(6, 6)
    cache = GradCache(linear())
    with pytest.raises(ValueError, match="chunks: expected at least one, received 0"):
        cache([])
    with pytest.raises(ValueError, match="GradCache.backward: expected a call with chunks before each"):
        cache.backward(torch.zeros(()))
    with pytest.raises(ValueError, match=r"loss: expected a scalar, received shape \(6, 4\)"):
        cache.backward(cache(x.split(2)))
    with pytest.raises(ValueError, match="loss: expected one that depends on the embeddings, received one without"):
        cache.backward(cache(x.split(2)).detach().sum())
    cache(x.split(2))
    with pytest.raises(ValueError, match="loss: expected one that depends on the embeddings, received one that does"):
        cache.backward(linear()(x).sum())
    with pytest.raises(ValueError, match="batch_norm: expected one of 'refuse', 'chunk', received 'ignore'"):
        GradCache(linear(), batch_norm="ignore")
    cache = GradCache(linear().requires_grad_(False))
    with pytest.raises(ValueError, match="encode: expected an embedding that needs a gradient, received none"):
        cache.backward(cache(x.split(2)).sum())


def test_draws_that_cannot_be_replayed_are_noticed() -> None:
    encoder, generator = linear(), np.random.default_rng(0)
    cache = GradCache(lambda x: encoder(x * float(generator.random())))
    with pytest.raises(ValueError, match=r"the same output .* cannot be replayed: make them before"):
        cache.backward(cache(torch.randn(6, 6).split(2)).sum())
