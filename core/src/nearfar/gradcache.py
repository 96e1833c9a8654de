"""The gradient cache: a loss over a large batch, its exact gradient, and the memory of one small chunk.

Letters: B samples of all chunks together, b of one chunk, K chunks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from nearfar._replay import (
    autocast_again,
    autocast_state,
    random_state,
    restore_random_state,
    same_random_state_after,
)
from nearfar.checks import expect, expect_choice


class GradCache:
    """Backpropagates a loss over all chunks through an encoder that holds the graph of one chunk at a time.

    dL/dw = direct part + sum over chunks of <dL/dz_chunk, dz_chunk/dw>

    so the loss needs the embeddings alone, and the encoder a chunk's share of dL/dz alone:

    1. every chunk is encoded without a graph, and the random state it met is kept;
    2. the loss over all embeddings is backpropagated to them, and to parameters that the loss itself uses;
    3. every chunk meets its random state again, is encoded with a graph, and passes its share of dL/dz on.

    In anybody's own loop:

        cache = GradCache(encoder)
        z = cache(images.split(64))
        loss = nt_xent(z.unflatten(0, (2, -1)))
        cache.backward(loss)                        # instead of loss.backward()
        optimiser.step()

    Args:
        encode: from a chunk to its embeddings: a tensor [b, ...], or dicts, lists and tuples of such tensors, for
            instance one of each modality. Each row must depend on its own sample alone.
        wrapper: the DistributedDataParallel or fully_shard module that `encode` calls, so that gradients are reduced
            once, with the last chunk; default: `encode` itself where it is a module. Every process needs as many
            chunks as the others under fully_shard, and at least one under DDP.
        batch_norm: what a batch norm in training mode does to `encode`. "refuse" raises; "chunk" takes the statistics
            of each chunk, so that the gradient is not that of the whole batch, and lets every chunk move the running
            statistics once. A batch norm in eval mode is always welcome.

    Raises:
        ValueError: in a call, a batch norm in training mode, or outputs of another structure than the chunk before;
            in `backward`, no call before it, a loss that is no scalar or does not depend on the embeddings, an
            embedding without gradient, or an encoder that gives another output the second time.
        TypeError: an output that is not a tensor with rows.

    Notes:
        Costs one more forward of the encoder, so at most 4/3 of the plain step's work; memory is that of one chunk's
        graph, of all embeddings, and of the loss. Replayed are autocast and torch's global random state on the CPU and
        every device; draws from NumPy, Python or a Generator of your own belong in front of the cache. With a
        GradScaler pass the scaled loss, once. Gradients add up in `.grad` as always.
        Source: Gao, Zhang, Han, Callan, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
        RepL4NLP 2021.
    """

    def __init__(
        self, encode: Callable[[Any], Any], *, wrapper: nn.Module | None = None, batch_norm: str = "refuse"
    ) -> None:
        expect_choice("batch_norm", batch_norm, ("refuse", "chunk"))
        self.encode, self.batch_norm = encode, batch_norm
        self.wrapper = encode if wrapper is None and isinstance(encode, nn.Module) else wrapper
        self._norms: list[nn.Module] | None = None
        self._compared = False
        self._pending: _Pending | None = None

    def __call__(self, chunks: Sequence[Any]) -> Any:
        """Embeddings of all chunks without graph, in the structure that `encode` gives, as leaves for the loss."""
        expect(len(chunks) >= 1, "chunks", "at least one", len(chunks))
        states, rows, parts = [], [], []
        structure: TreeSpec | None = None
        with torch.no_grad(), self._watched():
            for chunk in chunks:
                states.append(random_state())
                outputs, found = _flatten(self.encode(chunk))
                structure = structure or found
                expect(found == structure, "encode", f"the structure of the chunk before, {structure}", found)
                parts.append(outputs)
                rows.append([len(output) for output in outputs])
            leaves = [torch.cat(column) for column in zip(*parts, strict=True)]
        for leaf in leaves:
            leaf.requires_grad_(leaf.is_floating_point() or leaf.is_complex())
        # Casts of weights that were made without a graph must not serve the passes with one.
        torch.clear_autocast_cache()
        self._pending = _Pending(chunks, states, rows, leaves, autocast_state())
        assert structure is not None  # there was a chunk
        return tree_unflatten(leaves, structure)

    def backward(self, loss: Tensor, *, backward: Callable[[Tensor], Any] = Tensor.backward) -> None:
        """Fills `.grad` of every parameter as the loss's own backward would have after a plain forward.

        Args:
            loss: scalar, made of what the last call returned; scaled already where a scaler is in use.
            backward: what backpropagates the loss to the embeddings, e.g. `accelerator.backward`.
        """
        expect(self._pending is not None, "GradCache.backward", "a call with chunks before each", "none")
        pending, self._pending = self._pending, None
        assert pending is not None  # for the type checker
        expect(loss.numel() == 1, "loss", "a scalar", f"shape {tuple(loss.shape)}")
        expect(loss.requires_grad, "loss", "one that depends on the embeddings", "one without gradient")
        reached = _leaves_of(loss) if self._expects_every_hook else []
        with self.no_sync():
            backward(loss)
        grads = [leaf.grad for leaf in pending.leaves]
        expect(any(g is not None for g in grads), "loss", "one that depends on the embeddings", "one that does not")
        own = {id(leaf) for leaf in pending.leaves}
        direct = [leaf for leaf in reached if id(leaf) not in own]
        starts = [0] * len(grads)
        with same_random_state_after():
            for k, chunk in enumerate(pending.chunks):
                last = k == len(pending.chunks) - 1
                with contextlib.nullcontext() if last else self.no_sync():
                    outputs = self._encode_again(pending, k, chunk)
                    ends = [start + count for start, count in zip(starts, pending.rows[k], strict=True)]
                    pairs = [
                        (output, grad[start:end])
                        for output, grad, start, end in zip(outputs, grads, starts, ends, strict=True)
                        if grad is not None and output.requires_grad
                    ]
                    expect(bool(pairs), "encode", "an embedding that needs a gradient", "none")
                    # A reducer waits for a gradient of each parameter in this backward: those that the loss alone
                    # uses have theirs already, and get a zero more.
                    ties = [(leaf.flatten()[:0].sum(), None) for leaf in direct] if last else []
                    tensors, gradients = zip(*pairs, *ties, strict=True)
                    torch.autograd.backward(tensors, gradients)
                starts = ends

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Within it gradients stay on this process; for a loss that calls the wrapper's forward."""
        wrapper: Any = self.wrapper
        if hasattr(wrapper, "set_requires_gradient_sync"):
            return _unreduced(wrapper)
        return wrapper.no_sync() if hasattr(wrapper, "no_sync") else contextlib.nullcontext()

    @property
    def _expects_every_hook(self) -> bool:
        ddp = self.wrapper
        return isinstance(ddp, nn.parallel.DistributedDataParallel) and not ddp.find_unused_parameters

    def _encode_again(self, pending: _Pending, k: int, chunk: Any) -> list[Tensor]:
        restore_random_state(pending.states[k])
        with autocast_again(pending.autocast), self._quiet_norms():
            outputs, _ = _flatten(self.encode(chunk))
        rows = [len(output) for output in outputs]
        expect(rows == pending.rows[k], "encode", f"{pending.rows[k]} rows again for the same chunk", rows)
        if not self._compared:
            self._compared = True
            for output, leaf in zip(outputs, pending.leaves, strict=True):
                _expect_same(output.detach(), leaf.detach()[: len(output)])
        return outputs

    # -- batch norms ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """The first call learns which batch norms `encode` passes through; every call refuses those that train."""
        if self._norms is not None:
            for norm in self._norms:
                self._admit(norm)
            yield
            return
        found: list[nn.Module] = []
        with watch_batch_norms(found, self._admit):
            yield
        self._norms = found

    def _admit(self, norm: nn.Module) -> None:
        if norm.training and self.batch_norm == "refuse":
            named = self.wrapper.named_modules() if self.wrapper is not None else ()
            name = next((f"{n} ({norm})" for n, module in named if module is norm), str(norm))
            raise ValueError(
                f"batch_norm: expected no batch norm in training mode, whose statistics mix the samples of a chunk, "
                f"received {name}; put it into eval mode, use a group or layer norm, or choose batch_norm='chunk' and "
                "accept a gradient that is not that of the whole batch"
            )

    @contextlib.contextmanager
    def _quiet_norms(self) -> Iterator[None]:
        """Running statistics have been moved by the first pass; the second leaves them."""
        norms: list[Any] = [norm for norm in self._norms or () if norm.training and norm.track_running_stats]
        for norm in norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True


@contextlib.contextmanager
def watch_batch_norms(found: list[nn.Module], seen: Callable[[nn.Module], None] | None = None) -> Iterator[None]:
    """Collects every batch norm that a forward pass within calls, once each; `seen` is called before it works."""

    def look(module: nn.Module, _: Any) -> None:
        if isinstance(module, _BatchNorm):
            if seen is not None:
                seen(module)
            if all(module is not other for other in found):
                found.append(module)

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


@dataclass
class _Pending:
    """What the second pass needs of the first."""

    chunks: Sequence[Any]
    states: list[tuple[Tensor, Any]]
    rows: list[list[int]]
    """[K][output]"""
    leaves: list[Tensor]
    autocast: list[tuple[str, bool, torch.dtype]]


def _flatten(outputs: Any) -> tuple[list[Tensor], TreeSpec]:
    leaves, structure = tree_flatten(outputs)
    for leaf in leaves:
        expect(isinstance(leaf, Tensor), "encode", "tensors, or dicts, lists, tuples of them", type(leaf), TypeError)
        expect(leaf.ndim >= 1, "encode", "tensors with a row a sample", "a scalar tensor", TypeError)
    expect(bool(leaves), "encode", "at least one tensor", "none", TypeError)
    return leaves, structure


def _expect_same(again: Tensor, first: Tensor) -> None:
    """Generous enough for half precision, and for kernels that choose another order of summation."""
    if torch.equal(again, first) or not first.isfinite().all():
        return
    difference = float((again.double() - first.double()).abs().max())
    largest = float(first.double().abs().max())
    expect(
        difference <= 2e-2 * largest,
        "encode", "the same output for the same chunk and random state (draws from NumPy, Python or a Generator of its "
        "own cannot be replayed: make them before)",
        f"a difference of {difference:.3g} among values up to {largest:.3g}",
    )  # fmt: skip


def _leaves_of(loss: Tensor) -> list[Tensor]:
    """Leaves of the graph that the loss is the root of."""
    found, seen, nodes = [], set(), [loss.grad_fn]
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [following for following, _ in node.next_functions]
    return found


@contextlib.contextmanager
def _unreduced(wrapper: Any) -> Iterator[None]:
    wrapper.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        wrapper.set_requires_gradient_sync(True)
