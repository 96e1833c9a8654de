"""Parameters, gradients and optimiser states in parts over several processes: torch's fully_shard (FSDP2).

Every parameter with a dimension is cut along its first one, as many parts as processes, and gathered only while it is
needed. The root, the method itself, is gathered whenever the engine calls it; the blocks of its encoders one at a time.
What is written and read is whole: the same names and numbers as of a run that is not sharded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree

from nearfar import distributed
from nearfar.checks import expect
from nearfar.method import Method, Terms

# FSDP finds the tensors of an output, whose backward it waits for, by torch's idea of a container.
_pytree.register_pytree_node(
    Terms,
    lambda terms: ([terms.values, terms.weights, terms.counts, terms.logs], None),
    lambda children, _: Terms(*children),
)


def shard(method: Method, device: torch.device) -> Any:
    """Shards a method in place over all processes and returns it; the first process's numbers are everybody's start.

    Raises:
        ValueError: a parameter belongs to two groups; both names are given.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    groups = blocks(method)
    _expect_apart(method, groups)
    _start_alike(method)
    mesh = init_device_mesh(device.type, (distributed.world(),))
    whole = {param for param in method.parameters() if param.ndim == 0}  # a scalar has nothing to cut
    method.register_forward_hook(_own_memory)
    for module in (*groups, method):  # a group takes what no group before it has taken
        fully_shard(module, mesh=mesh, ignored_params=whole)
    return method


def blocks(module: nn.Module) -> list[nn.Module]:
    """Modules that are gathered one at a time; everything else is gathered with the root.

    They are the members of every outermost list of blocks: of a ModuleList or Sequential that holds at least two
    members of one class which have parameters and are made of other modules. So a transformer gives its blocks and a
    convolutional net its blocks or stages, in a teacher too, and a net that is one chain of layers gives none.
    """
    if isinstance(module, nn.ModuleList | nn.Sequential):
        members = [m for m in module if any(True for _ in m.parameters()) and any(True for _ in m.children())]
        kinds = [type(m) for m in members]
        # a ModuleList or ModuleDict has no forward of its own before which it could be gathered
        called = not any(isinstance(m, nn.ModuleList | nn.ModuleDict) for m in members)
        if called and len(set(kinds)) < len(kinds):
            return members
    found: list[nn.Module] = []
    for child in module.children():
        found += [m for m in blocks(child) if all(m is not other for other in found)]
    return found


def _expect_apart(method: Method, groups: list[nn.Module]) -> None:
    """A parameter that two groups share would be cut twice and drift apart."""
    group_of = {id(m): number for number, group in enumerate(groups) for m in group.modules()}
    owner: dict[int, int] = {}
    for module in method.modules():
        number = group_of.get(id(module), -1)
        for param in module.parameters(recurse=False):
            if owner.setdefault(id(param), number) == number:
                continue
            names = [n for n, p in method.named_parameters(remove_duplicate=False) if p is param]
            expect(
                False, "trainer.parallel",
                "'ddp' for a method whose blocks share a parameter with another part", f"'fsdp' and {' = '.join(names)}"
            )  # fmt: skip


@torch.no_grad()
def _start_alike(method: Method) -> None:
    """As DDP does: parameters and buffers of process 0, so that a script that sets no seed is right as well."""
    for tensor in (*method.parameters(), *method.buffers()):
        if tensor.numel():
            flat = tensor.detach().contiguous()
            dist.broadcast(flat.view(-1).view(torch.uint8), src=0)
            tensor.copy_(flat)


def _own_memory(module: nn.Module, args: Any, output: Any) -> Any:
    """Outputs that are views as copies, since an in-place operation on a view would drop FSDP's hook on it."""
    return _pytree.tree_map(
        lambda x: x.clone() if isinstance(x, Tensor) and x.requires_grad and x._is_view() else x, output
    )


# -- gradients ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def average_scalars(params: Iterable[nn.Parameter]) -> None:
    """Averages the gradients of scalar parameters over processes, once a step; fully_shard has averaged the others."""
    scalars = [p for p in params if p.ndim == 0 and p.requires_grad]
    if not scalars:
        return
    grads = [p.new_zeros(()) if p.grad is None else p.grad for p in scalars]
    reached = [float(p.grad is not None) for p in scalars]
    mine = torch.stack([torch.stack([g.double() for g in grads]), grads[0].new_tensor(reached).double()])
    total, seen = distributed.reduce_sum(mine)
    for param, value, anywhere in zip(scalars, total / distributed.world(), seen.tolist(), strict=True):
        if anywhere:
            param.grad = value.to(param)


@torch.no_grad()
def clip(params: Iterable[nn.Parameter], norm: Tensor, largest: float) -> None:
    """Scales gradients whose norm over all processes is `norm` down to `largest`, as torch's own clipping does."""
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for param in params:
        if param.grad is not None:
            distributed.local(param.grad).mul_(factor.to(param.grad.device))


# -- checkpoints -------------------------------------------------------------------------------------------------------


def model_state(method: nn.Module) -> dict[str, Tensor]:
    """The whole state of a method; of a sharded one on the main process only, parameter by parameter, on the CPU."""
    return _gathered(method.state_dict())


def optimiser_state(optimiser: Optimizer) -> dict[str, Any]:
    """The whole state of an optimiser, likewise."""
    state = optimiser.state_dict()
    return {**state, "state": {number: _gathered(values) for number, values in state["state"].items()}}


def load_model(method: nn.Module, whole: Mapping[str, Tensor]) -> None:
    """Loads a whole state; each process of a sharded method takes its part."""
    own = method.state_dict()
    method.load_state_dict({name: _part(value, own.get(name)) for name, value in whole.items()})


def load_optimiser(optimiser: Optimizer, whole: dict[str, Any]) -> None:
    """Loads a whole state of the same groups, likewise."""
    params = [param for group in optimiser.param_groups for param in group["params"]]
    state = {
        number: {name: _part(value, params[number]) for name, value in values.items()}
        for number, values in whole["state"].items()
    }
    optimiser.load_state_dict({**whole, "state": state})


def _gathered(values: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in values.items():
        if hasattr(value, "full_tensor"):  # every process takes part, the main one keeps it
            value = value.full_tensor()
            if not distributed.is_main():
                continue
            value = value.cpu()
        result[name] = value
    return result


def _part(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor that belongs to a sharded parameter; everything else as it is."""
    if not hasattr(like, "full_tensor") or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # no process sends: each has read the whole from the file
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
