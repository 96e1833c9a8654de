"""Optimisers over a method's parameters: weight decay where it belongs, layer-wise rates, LARS, frozen parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nearfar.checks import expect
from nearfar.config import OptimiserConfig
from nearfar.distributed import local, reduce_sum


class LARS(Optimizer):
    r"""SGD whose step of each tensor is scaled by the ratio of its norm to its gradient's norm.

    With gradient :math:`g`, weight :math:`w`, decay :math:`\lambda` and trust :math:`\eta`:
    :math:`g' = g + \lambda w`, :math:`r = \eta \|w\| / \|g'\|` (1 where either norm is 0),
    :math:`v \leftarrow \mu v + r\,\mathrm{lr}\,g'`, :math:`w \leftarrow w - v`. The learning rate stands inside the
    momentum buffer, as in the SimCLR reference. Groups with ``adapt=False`` (biases, norms) keep r = 1. The norms of a
    sharded parameter are those of the whole, from one exchange a group.

    Args:
        params: parameters or groups; a group may hold ``adapt``.
        lr: learning rate.
        momentum: :math:`\mu`.
        weight_decay: :math:`\lambda`.
        trust: :math:`\eta`.

    Source: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        expect(lr >= 0, "lr", "0 or more", lr)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """One update; a closure, if given, is evaluated first and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            ratios = self._ratios(params, group) if group["adapt"] else [None] * len(params)
            for param, ratio in zip(params, ratios, strict=True):
                step = _decayed(param, group)
                if ratio is not None:
                    step = step * ratio
                state = self.state[param]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(param)
                velocity = local(state["momentum"]).mul_(group["momentum"]).add_(step, alpha=group["lr"])
                local(param).sub_(velocity)
        return loss

    @staticmethod
    def _ratios(params: list[nn.Parameter], group: dict[str, Any]) -> list[Tensor]:
        """r of each parameter."""
        pairs = [torch.stack([local(param).norm(), _decayed(param, group).norm()]) for param in params]
        cut = [i for i, param in enumerate(params) if local(param) is not param]
        if cut:
            squares = reduce_sum(torch.stack([pairs[i].double().square() for i in cut]))
            for i, pair in zip(cut, squares.sqrt(), strict=True):
                pairs[i] = pair.to(pairs[i].dtype)
        ratios = []
        for weight_norm, step_norm in pairs:
            ratio = group["trust"] * weight_norm / step_norm
            ratios.append(torch.where((weight_norm > 0) & (step_norm > 0), ratio, torch.ones_like(ratio)))
        return ratios


def _decayed(param: nn.Parameter, group: dict[str, Any]) -> Tensor:
    """g' of this process's part."""
    assert param.grad is not None  # the caller looked
    return local(param.grad).add(local(param), alpha=group["weight_decay"])


def freeze(method: nn.Module, prefixes: tuple[str, ...]) -> list[nn.Module]:
    """Switches gradients off for parameters under the prefixes; returns the modules that stay in eval mode."""
    for prefix in prefixes:
        frozen = [p for n, p in method.named_parameters() if n == prefix or n.startswith(prefix.rstrip(".") + ".")]
        known = ", ".join(n for n, _ in method.named_children())
        expect(bool(frozen), "optimiser.freeze", f"the start of a parameter's name (under {known})", prefix)
        for param in frozen:
            param.requires_grad_(False)
    return [
        module
        for name, module in method.named_modules()
        if any(name == p.rstrip(".") or name.startswith(p.rstrip(".") + ".") for p in prefixes)
    ]


def layer_depths(method: nn.Module) -> tuple[dict[str, int], int]:
    """Depth of every encoder parameter, counted from the input, and the number of layers.

    A layer is a child of the encoder, or a child of a child that is a list of blocks; loose parameters of the encoder
    (class token, positions) have depth 0.
    """
    encoder = getattr(method, "encoder", None)
    if not isinstance(encoder, nn.Module):
        return {}, 0
    while [n for n, _ in encoder.named_children()] == ["model"]:  # a wrapper around a library's model
        encoder = encoder.get_submodule("model")
    prefix = next(n for n, m in method.named_modules() if m is encoder)
    layers: list[str] = []
    for name, child in encoder.named_children():
        blocks = isinstance(child, nn.Sequential | nn.ModuleList) and len(child) > 1
        inner = [f"{name}.{n}" for n, m in child.named_children() if any(True for _ in m.parameters())]
        layers += inner if blocks else [name] if any(True for _ in child.parameters()) else []
    depths = {}
    for name, _ in encoder.named_parameters():
        depth = next((i for i, layer in enumerate(layers) if name.startswith(layer + ".")), 0)
        depths[f"{prefix}.{name}"] = depth
    return depths, len(layers)


def groups(method: nn.Module, params: Iterable[nn.Parameter], config: OptimiserConfig) -> list[dict[str, Any]]:
    """Parameter groups: no decay (and no LARS ratio) for vectors and scalars; a rate scale a layer where asked.

    Each group holds `lr_scale`, by which the schedule's rate is multiplied. Scalars have groups of their own, since
    they stay whole where the others are sharded, and a fused step takes one kind of tensor.
    """
    chosen = {id(p) for p in params}
    depths, num_layers = layer_depths(method) if config.layer_decay < 1 else ({}, 0)
    found: dict[tuple[int, float], dict[str, Any]] = {}
    for name, param in method.named_parameters():
        if id(param) not in chosen or not param.requires_grad:
            continue
        plain = param.ndim <= 1
        scale = config.layer_decay ** (num_layers - depths[name]) if name in depths else 1.0
        group = found.setdefault(
            (min(param.ndim, 2), scale),
            {"params": [], "weight_decay": 0.0 if plain else config.weight_decay, "lr_scale": scale},
        )
        group["params"].append(param)
        if config.name == "lars":
            group["adapt"] = not plain
    return list(found.values())


def build(method: nn.Module, params: Iterable[nn.Parameter], config: OptimiserConfig, lr: float) -> Optimizer:
    """The optimiser of a config over the given parameters of a method."""
    parts = groups(method, params, config)
    expect(bool(parts), "optimiser", "at least one trainable parameter", "none (is everything frozen?)")
    device = parts[0]["params"][0].device
    if config.name == "adamw":
        return torch.optim.AdamW(parts, lr=lr, betas=config.betas, fused=device.type == "cuda")
    if config.name == "sgd":
        return torch.optim.SGD(parts, lr=lr, momentum=config.momentum, nesterov=config.nesterov)
    return LARS(parts, lr=lr, momentum=config.momentum, trust=config.trust)


def set_rate(optimiser: Any, lr: float) -> None:
    """Writes the rate of the step into every group."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"]


def gradient_norm(params: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients together, over all processes where they are sharded."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return torch.zeros(())
    norms = torch._foreach_norm([local(g) for g in grads])  # type: ignore[reportPrivateImportUsage]
    cut = [local(g) is not g for g in grads]
    if not any(cut):
        return torch.stack(norms).norm()
    squares = torch.stack(norms).double().square()
    shared = squares.new_tensor(cut)
    return (reduce_sum(squares @ shared) + squares @ (1 - shared)).sqrt().to(norms[0].dtype)
