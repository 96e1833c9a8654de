"""What several processes need from each other; in one process every function here is a no-op.

The gradient convention of the house: every process backpropagates W times its share of the global loss, and gradients
are averaged over the W processes. `gather` and `SyncBatchNorm` sum over processes in their backward, as the chain rule
asks; the average of the wrapper then turns W equal shares into the gradient of the whole.

Every function is a collective: all processes call it, in the same order. Shapes: N rows of this process, W processes,
C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nearfar.checks import expect

T = TypeVar("T")

# Torch renamed the one-tensor collectives; take whichever this version has, so that none of them warns.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def world() -> int:
    """Number of processes W; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def barrier() -> None:
    """Waits until every process is here."""
    if world() > 1:
        device = device_of(None)
        dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


def broadcast(obj: T, source: int = 0) -> T:
    """The object of process `source`, on every process.

    It travels pickled between processes of the same run, which trust each other; it is no way to read a file.
    """
    if world() == 1:
        return obj
    box: list[Any] = [obj]
    dist.broadcast_object_list(box, src=source, device=device_of(None))
    return box[0]


def gather_objects(obj: T) -> list[T]:
    """The object of every process, by rank; pickled between processes of the same run, as in `broadcast`."""
    if world() == 1:
        return [obj]
    every: list[Any] = [None] * world()
    dist.all_gather_object(every, obj)
    return every


def shuffled(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """module(x), each process given rows of all processes in a random order and returning its own, without gradient.

    Batch statistics then come from other samples than those a process scores, as MoCo asks of its keys. In one process
    it is module(x).
    """
    if world() == 1:
        return module(x)
    rows = gather(x, grad=False)
    order = torch.as_tensor(broadcast(torch.randperm(len(rows)).tolist()), device=x.device)
    result = gather(module(rows[order[shard(len(rows))]]), grad=False)
    start = offset(len(x))
    return result[order.argsort()[start : start + len(x)]]


def shard(num_rows: int) -> slice:
    """This process's part of `num_rows` rows: consecutive, in rank order, sizes at most one apart."""
    share, rest = divmod(num_rows, world())
    start = rank() * share + min(rank(), rest)
    return slice(start, start + share + (rank() < rest))


def offset(num_rows: int) -> int:
    """Rows of the processes before this one, where this one has `num_rows`."""
    if world() == 1:
        return 0
    sizes = _exchange(torch.tensor([num_rows], dtype=torch.int64), device_of(None))
    return int(sizes[: rank()].sum())


def reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over all processes, without gradient; `x` has one shape everywhere."""
    x = x.detach()
    if world() == 1:
        return x
    total = x.to(device_of(x), copy=True).contiguous()
    dist.all_reduce(total)
    return total.to(x.device)


def gather(x: Tensor, *, grad: bool = True) -> Tensor:
    """Rows of all processes in rank order; processes may have different numbers of rows, even none.

    Args:
        x: [N, ...] of any dtype; the trailing shape and dtype are the same everywhere.
        grad: let gradients flow back to the rows of every process. The backward is a collective too, so every process
            must use the result in what it backpropagates, and `x` must need a gradient everywhere or nowhere.

    Returns:
        [sum of N, ...]; `x` itself in one process (detached without `grad`).

    Raises:
        ValueError: on every process, when trailing shapes or dtypes differ; when `x` has no rows to gather (0-d).

    Notes:
        Costs one exchange of three integers a process and one all-gather of rows padded to the largest N; rows travel
        as bytes, so every dtype arrives exactly. The backward is one reduce-scatter; half precision is summed in fp32.
    """
    expect(x.ndim >= 1, "x", "a tensor with rows", f"shape {tuple(x.shape)}")
    if world() == 1:
        return x if grad else x.detach()
    sizes = _row_sizes(x)
    if grad and x.requires_grad:
        return _Gather.apply(x, sizes)
    return _gather_rows(x.detach(), sizes)


def local(x: Tensor) -> Tensor:
    """This process's part of a tensor that `trainer.parallel` "fsdp" has sharded, in the same memory; else `x`."""
    return x.to_local() if hasattr(x, "to_local") else x  # type: ignore[attr-defined]


def device_of(x: Tensor | None) -> torch.device:
    """Where a collective on `x` takes place: NCCL moves memory of the GPU, everything else goes over the CPU."""
    backend = str(dist.get_backend())
    if "nccl" in backend and ("gloo" not in backend or (x is not None and x.is_cuda)):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _exchange(x: Tensor, device: torch.device) -> Tensor:
    """[W, *x.shape]: every process's `x`, equal shapes."""
    out = torch.empty(world() * x.shape[0], *x.shape[1:], dtype=x.dtype, device=device)
    _all_gather(out, x.to(device).contiguous())
    return out.view(world(), *x.shape)


_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
)  # fmt: skip


def _row_sizes(x: Tensor) -> list[int]:
    """Rows of each process, after a check on every process that the rows are of one kind."""
    expect(x.dtype in _DTYPES, "x", f"one of {', '.join(map(str, _DTYPES))}", x.dtype, TypeError)
    shape = 0
    for side in x.shape[1:]:  # a number that differs where the trailing shapes do; exact integers, no hash of strings
        shape = (shape * 1_000_003 + side + 1) % (2**61 - 1)
    mine = torch.tensor([x.shape[0], _DTYPES.index(x.dtype), shape], dtype=torch.int64)
    every = _exchange(mine, device_of(x)).cpu()
    odd = (every[:, 1:] != every[:1, 1:]).any(1).nonzero().flatten().tolist()
    expect(
        not odd,
        "gather", "rows of one dtype and trailing shape on every process",
        f"{x.dtype} {tuple(x.shape[1:])} on process {rank()}; processes {odd} differ from process 0",
    )  # fmt: skip
    return every[:, 0].tolist()


def _gather_rows(x: Tensor, sizes: list[int]) -> Tensor:
    most, width = max(sizes), x.shape[1:].numel()
    if most == 0 or width == 0:
        return x.new_empty(sum(sizes), *x.shape[1:])
    rows = x.reshape(x.shape[0], width).contiguous().view(torch.uint8)
    padded = rows.new_zeros(most, width * x.element_size())
    padded[: len(rows)] = rows
    every = _exchange(padded, device_of(x))
    parts = [every[r, :size] for r, size in enumerate(sizes)]
    return torch.cat(parts).to(x.device).view(x.dtype).reshape(sum(sizes), *x.shape[1:])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _gather_rows(x, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        sizes: list[int] = ctx.sizes
        mine = sizes[rank()]
        if grad.numel() == 0:
            return grad[:mine], None
        wide = torch.float32 if grad.dtype in (torch.float16, torch.bfloat16) else grad.dtype
        padded = grad.new_zeros(world(), max(sizes), *grad.shape[1:], dtype=wide, device=device_of(grad))
        for r, part in enumerate(grad.split(sizes)):
            padded[r, : sizes[r]] = part
        out = torch.empty_like(padded[0])
        _reduce_scatter(out, padded.flatten(0, 1))
        return out[:mine].to(grad), None


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the statistics of all processes, on any device and for uneven batches.

    y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var over the rows of all processes. Output and gradients
    equal those of one process that holds the concatenated batch; parameters and buffers have the names of
    `nn.BatchNorm1d/2d/3d`, and the running statistics are the same numbers on every process.

    Args:
        num_features: channels C of the input [N, C, ...]; N may differ and may be 0 on some processes.

    Raises:
        ValueError: on every process, when all of them together hold a single value a channel.

    Notes:
        One all-gather of 2C + 1 numbers forward and one all-reduce of 2C numbers backward, in fp32 (fp64 for fp64).
        Means and squared deviations are merged pairwise-exactly, so that a large mean costs no precision. Outside
        training, and in one process, it is `nn.BatchNorm`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        expect(
            input.ndim >= 2 and input.shape[1] == self.num_features,
            "input", f"shape [N, {self.num_features}, ...]", tuple(input.shape),
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean_C, var_C, count = _SyncNorm.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self._track(mean_C, var_C, float(count))
        return output

    @torch.no_grad()
    def _track(self, mean_C: Tensor, var_C: Tensor, count: float) -> None:
        assert self.running_mean is not None  # for the type checker; the caller looked
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), share)
        self.running_var.lerp_((var_C * (count / (count - 1))).to(self.running_var.dtype), share)


class _SyncNorm(torch.autograd.Function):
    """Forward returns (output, mean [C], biased variance [C], count); gradients flow through the output only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = x.numel() // x.shape[1]
        if count:
            var, mean = torch.var_mean(x.to(wide), axes, correction=0)
        else:
            var = mean = x.new_zeros(x.shape[1], dtype=wide)
        mine = torch.cat([mean, var, mean.new_tensor([count])])
        every = _exchange(mine[None], device_of(x))[:, 0].to(x.device)
        means_WC, vars_WC, share_W1 = every[:, : len(mean)], every[:, len(mean) : -1], every[:, -1:]
        total = float(share_W1.sum())
        expect(total > 1, "input", "more than one value a channel over all processes when training", int(total))
        share_W1 = share_W1 / total
        mean = (share_W1 * means_WC).sum(0)
        var = (share_W1 * (vars_WC + (means_WC - mean).square())).sum(0)
        rstd = (var + eps).rsqrt()
        factor = rstd if weight is None else rstd * weight.to(wide)
        output = (x.to(wide) - mean.view(shape)) * factor.view(shape)
        if bias is not None:
            output = output + bias.to(wide).view(shape)
        count_ = torch.tensor(total, dtype=torch.float64)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.axes, ctx.shape, ctx.total = axes, shape, total
        ctx.mark_non_differentiable(mean, var, count_)
        return output.to(x.dtype), mean, var, count_

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        grad = grad.to(rstd.dtype)
        hat = (x.to(rstd.dtype) - mean.view(ctx.shape)) * rstd.view(ctx.shape)
        sums_2C = torch.stack([grad.sum(ctx.axes), (grad * hat).sum(ctx.axes)])
        grad_weight = sums_2C[1].to(weight.dtype) if weight is not None and ctx.needs_input_grad[1] else None
        grad_bias = sums_2C[0].to(bias.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            shared = (reduce_sum(sums_2C) / ctx.total).view(2, *ctx.shape)
            factor = rstd if weight is None else rstd * weight.to(rstd.dtype)
            grad_x = ((grad - shared[0] - hat * shared[1]) * factor.view(ctx.shape)).to(x.dtype)
        return grad_x, grad_weight, grad_bias, None


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def convert_sync_batch_norm(module: nn.Module) -> nn.Module:
    """The module with every batch norm replaced by `SyncBatchNorm`, in place except for a root that is one itself.

    Parameters and buffers are the same objects under the same names, so that optimisers, tied weights and state dicts
    stay valid.

    Raises:
        TypeError: for a subclass of torch's batch norms with a forward of its own, which a replacement would drop.
    """
    return _convert(module, "module", {})


def _convert(module: nn.Module, name: str, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:  # a module used in two places stays one module
        return done[id(module)]
    new = module
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, SyncBatchNorm):
        expect(
            type(module) in _BATCH_NORMS,
            name, "a batch norm of torch itself; leave batch statistics local to each process instead",
            type(module).__qualname__, TypeError,
        )  # fmt: skip
        new = SyncBatchNorm.__new__(SyncBatchNorm)
        new.__dict__.update(module.__dict__)
    done[id(module)] = new
    for key, child in list(module._modules.items()):  # named_children would leave out a second place
        if child is not None:
            setattr(new, key, _convert(child, f"{name}.{key}", done))
    return new
