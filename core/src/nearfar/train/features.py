"""Features of a whole source from a method in evaluation mode, on one process or shared among several."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nearfar import distributed
from nearfar.batch import Batch, to
from nearfar.data import Loader, Source
from nearfar.evaluate import Score
from nearfar.method import Method
from nearfar.samplers import Sequential
from nearfar.train import randomness


@torch.no_grad()  # inference_mode would mark what a sharded method gathers, and training could not use it again
def extract(
    method: Method,
    source: Source,
    *,
    output: str = "default",
    batch_size: int = 256,
    workers: int = 0,
    max_bad_share: float = 0.01,
    device: torch.device | str = "cpu",
    call: Callable[[Batch, str], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features and indices of every sample without augmentation.

    Args:
        method: its `features` is called in evaluation mode; the mode it was in is put back.
        source: what is embedded.
        output: one of the method's `outputs`.
        batch_size: samples a forward over all processes.
        workers: loader processes.
        max_bad_share: share of unreadable samples that may be replaced; the indices say by which.
        device: where the method is.
        call: what gives the features of a batch and an output, where the method's `features` must not be called alone.

    Returns:
        Features [N, D] float32 and indices [N], on the CPU, in the source's order; the same on every process.
        Labels that go with them: `nearfar.data.labels_of(source, indices)`.

    Raises:
        ValueError: the method has no such output.
    """
    if output not in method.outputs:
        raise ValueError(f"output: expected one of {', '.join(method.outputs)}, received {output!r}")
    was_training = method.training
    method.eval()
    sampler = Sequential(len(source), batch_size)
    loader = Loader(source, sampler, workers=workers, max_bad_share=max_bad_share,
                    rank=distributed.rank(), world=distributed.world())  # fmt: skip
    rows, indices = [], []
    for batch in loader.epoch(0):
        batch = to(batch, device, non_blocking=True)
        feature = (call or method.features)(batch, output).float()
        # Every process holds a slice of each global batch, so gathering per batch keeps the order.
        rows.append(distributed.gather(feature, grad=False).cpu())
        indices.append(distributed.gather(batch["index"], grad=False).cpu())
    method.train(was_training)
    return torch.cat(rows), torch.cat(indices)


def own_scores(method: Method, score: Callable[[], dict[str, Score]]) -> dict[str, Score]:
    """What `score`, around `Method.scores`, says in evaluation mode; the mode and random numbers go on as before."""
    was_training, drawn = method.training, randomness.capture()
    method.eval()
    found = score()
    method.train(was_training)
    randomness.restore(drawn)
    return found
