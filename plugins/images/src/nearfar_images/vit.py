"""What passes through the blocks of a vision transformer, tokens, attention, branches, and measures of it.

Legend: B images, H heads, T tokens, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.analysis._vit_attention import AttentionMetrics, mask_iou, mass_mask, peak, saliency_iou
from nearfar.analysis._vit_features import CKA, cka, keypoint_transfer, purity
from nearfar.checks import expect
from nearfar.models.vit import TinyViT

__all__ = [
    "CKA", "AttentionMetrics", "Taps", "cka", "keypoint_transfer", "mask_iou", "mass_mask", "peak", "purity",
    "saliency_iou", "tapped",
]  # fmt: skip


@dataclass
class Taps:
    """What the last forward left, one entry a block.

    Args:
        num_prefix: tokens before the patches.
        tokens: [B, T, D] after every block.
        attention: [B, H, T, T], rows are sources.
        branches: (skip input, attention's addition, skip input, MLP's addition), each [B, T, D].
    """

    num_prefix: int
    tokens: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    branches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def clear(self) -> None:
        """Forgets it."""
        for kept in (self.tokens, self.attention, self.branches):
            kept.clear()

    def stacked(self) -> Tensor:
        """Attention of all blocks, [B, L, H, T, T]."""
        return torch.stack(self.attention, 1)


@dataclass(frozen=True)
class Block:
    """Where to listen in one block: the whole, the attention's query and key, and what both branches add."""

    whole: nn.Module
    looks: nn.Module
    attention: Callable[[tuple[Any, ...], Any], Tensor]
    """of the inputs and the output of `looks`"""
    first: nn.Module
    second: nn.Module


@contextlib.contextmanager
def tapped(model: nn.Module) -> Iterator[Taps]:
    """Listens to every block of a vision transformer while its forward runs; the forward itself is unchanged.

    Attention is computed a second time from query and key, since fused kernels do not give it.

    Args:
        model: `TinyViT`, or timm's or torchvision's VisionTransformer, or a module whose `model` is one.

    Raises:
        TypeError: another model, or one whose attention is of another kind.
    """
    num_prefix, blocks = _blocks(model)
    taps = Taps(num_prefix)
    with contextlib.ExitStack() as stack:
        for block in blocks:
            for handle in _listen(block, taps):
                stack.callback(handle.remove)
        yield taps


def _listen(block: Block, taps: Taps) -> list[Any]:
    added: dict[str, Tensor] = {}

    def looked(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        taps.attention.append(block.attention(inputs, output).detach())

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            added[name] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    def passed(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, out = inputs[0].detach(), output.detach()
        taps.tokens.append(out)
        taps.branches.append((x, added["first"], out - added["second"], added["second"]))

    return [
        block.looks.register_forward_hook(looked),
        block.first.register_forward_hook(keep("first")),
        block.second.register_forward_hook(keep("second")),
        block.whole.register_forward_hook(passed),
    ]


def _blocks(model: nn.Module) -> tuple[int, list[Block]]:
    """Tokens before the patches, and the blocks of any of the known transformers."""
    from timm.models.vision_transformer import VisionTransformer
    from torchvision.models import VisionTransformer as Torchvision

    inner = getattr(model, "model", model)
    if isinstance(inner, TinyViT):
        blocks = [Block(b, b.qkv, _of_qkv(b.heads), b.project, b.mlp) for b in inner.blocks]  # type: ignore[arg-type, union-attr]
        return (0 if inner.cls is None else 1), blocks
    if isinstance(inner, Torchvision):
        layers: Any = inner.encoder.layers
        return 1, [Block(b, b.self_attention, _of_torch(b.self_attention), b.dropout, b.mlp) for b in layers]
    if isinstance(inner, VisionTransformer):
        return int(inner.num_prefix_tokens), [_timm(b) for b in inner.blocks]
    raise TypeError(
        f"model: expected TinyViT, or a VisionTransformer of timm or torchvision, received {type(inner).__name__}"
    )


def _timm(block: Any) -> Block:
    parts = ("attn", "drop_path1", "drop_path2")
    known = all(hasattr(block, name) for name in parts) and hasattr(block.attn, "qkv") and hasattr(block.attn, "q_norm")
    expect(known, "model", "blocks with one layer for query, key and value", type(block).__name__, TypeError)
    attn = block.attn

    def attention(inputs: tuple[Any, ...], output: Any) -> Tensor:
        x = inputs[0]
        qkv = attn.qkv(x).reshape(*x.shape[:2], 3, attn.num_heads, -1)
        query, key = attn.q_norm(qkv[:, :, 0].transpose(1, 2)), attn.k_norm(qkv[:, :, 1].transpose(1, 2))
        return ((query * attn.scale) @ key.transpose(-1, -2)).softmax(-1)

    return Block(block, attn, attention, block.drop_path1, block.drop_path2)


def _of_qkv(heads: int) -> Callable[[tuple[Any, ...], Any], Tensor]:
    """Attention of the output [B, T, 3 D] of one layer for query, key and value."""
    return lambda inputs, output: _softmax(output[..., : 2 * output.shape[-1] // 3], heads)


def _of_torch(module: nn.MultiheadAttention) -> Callable[[tuple[Any, ...], Any], Tensor]:
    """Attention of the input of `nn.MultiheadAttention`."""

    def attention(inputs: tuple[Any, ...], output: Any) -> Tensor:
        assert module.in_proj_weight is not None  # one input for query, key and value
        width = 2 * module.embed_dim
        bias = None if module.in_proj_bias is None else module.in_proj_bias[:width]
        return _softmax(nn.functional.linear(inputs[0], module.in_proj_weight[:width], bias), module.num_heads)

    return attention


def _softmax(query_key: Tensor, heads: int) -> Tensor:
    query, key = query_key.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
