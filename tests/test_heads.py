from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nearfar.config import HeadConfig
from nearfar.distributed import convert_sync_batch_norm
from nearfar.heads import Head, PrototypeHead


def _batch_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_mlp_equals_numpy(layers: int) -> None:
    torch.manual_seed(layers)
    head = Head(6, HeadConfig(layers=layers, hidden=5, dim=4, last_norm=True)).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    expected = x.numpy()
    linears = [m for m in head.layers if isinstance(m, nn.Linear)]
    assert len(linears) == layers
    for number, linear in enumerate(linears):
        assert linear.bias is None
        expected = _batch_norm(expected @ linear.weight.detach().numpy().T)
        if number < layers - 1:
            expected = np.maximum(expected, 0)
    assert np.allclose(head(x).detach().numpy(), expected)
    assert head.dim == 4


def test_last_norm_scales_and_never_shifts() -> None:
    head = Head(6, HeadConfig(last_norm=True))
    last = head.layers[-1]
    assert last.bias is None
    assert last.weight.requires_grad
    assert torch.allclose(head(torch.randn(32, 6)).mean(0), torch.zeros(128), atol=1e-5)
    convert_sync_batch_norm(head)
    assert head.layers[-1].bias is None
    assert head(torch.randn(4, 6)).shape == (4, 128)
    assert not any("bias" in name for name in head.state_dict() if name.startswith("layers.4"))


def test_kinds_and_norms() -> None:
    x = torch.randn(5, 6)
    none = Head(6, HeadConfig(kind="none", dim=99))
    assert none(x) is x
    assert none.dim == 6
    linear = Head(6, HeadConfig(kind="linear", layers=7, dim=3))
    assert [type(m) for m in linear.layers] == [nn.Linear]
    assert torch.equal(linear(x), x @ linear.layers[0].weight.T + linear.layers[0].bias)
    kinds = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    for norm, kind in kinds.items():
        layers = Head(6, HeadConfig(norm=norm)).layers
        assert [type(m) for m in layers] == [nn.Linear, kind, nn.ReLU, nn.Linear]
        assert (layers[0].bias is None) == (norm == "batch")
    plain = Head(6, HeadConfig(norm="none")).layers
    assert [type(m) for m in plain] == [nn.Linear, nn.ReLU, nn.Linear]
    assert plain[0].bias is not None
    assert plain[0].out_features == 6  # hidden 0: the feature width


def test_bad_input_is_named() -> None:
    head = Head(6, HeadConfig())
    with pytest.raises(ValueError, match="features: expected at least 2 rows for a head with batch norm in training"):
        head(torch.randn(1, 6))
    with pytest.raises(ValueError, match="at least 2 rows"):
        convert_sync_batch_norm(Head(6, HeadConfig()))(torch.randn(1, 6))
    assert head.eval()(torch.randn(1, 6)).shape == (1, 128)
    assert Head(6, HeadConfig(norm="layer"))(torch.randn(1, 6)).shape == (1, 128)
    with pytest.raises(ValueError, match="dim_in: expected 1 or more"):
        Head(0, HeadConfig())


def test_a_wrong_width_is_named() -> None:
    with pytest.raises(ValueError, match=r"features: expected shape \[N, 6\], received \(2, 5\)"):
        Head(6, HeadConfig())(torch.randn(2, 5))


def test_prototype_head_gives_cosines() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(6, HeadConfig(layers=2, hidden=5, dim=4, norm="none"), 7).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    first, _, last = head.layers
    hidden = np.maximum(x.numpy() @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    e = hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    c = head.prototypes.detach().numpy()
    expected = (e / np.linalg.norm(e, axis=1, keepdims=True)) @ (c / np.linalg.norm(c, axis=1, keepdims=True)).T
    assert np.allclose(head(x).detach().numpy(), expected)
    embedding = head.embed(x)
    assert embedding.shape == (9, head.dim) == (9, 4)
    assert torch.allclose(head.logits(embedding), head(x))
    assert torch.allclose(head.logits(embedding.unflatten(0, (3, 3))), head(x).unflatten(0, (3, 3)))


def test_only_directions_of_prototypes_count() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(6, HeadConfig(layers=1, dim=4), 7)
    x = torch.randn(9, 6)
    before = head(x)
    (grad,) = torch.autograd.grad(before.square().sum(), head.prototypes)
    assert torch.allclose((grad * head.prototypes).sum(1), torch.zeros(7), atol=1e-5)  # lengths get no gradient
    with torch.no_grad():
        head.prototypes.mul_(torch.linspace(0.1, 9, 7)[:, None])
    assert torch.allclose(head(x), before, atol=1e-5)
    with pytest.raises(ValueError, match="num_prototypes: expected 2 or more"):
        PrototypeHead(6, HeadConfig(), 1)
