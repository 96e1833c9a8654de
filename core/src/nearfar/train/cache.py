"""What the trainer asks of a method before it caches its batches: what it declares, and whether that is true."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar._replay import same_random_state_after
from nearfar.batch import Batch, size, split
from nearfar.checks import expect
from nearfar.config import TrainerConfig
from nearfar.gradcache import watch_batch_norms
from nearfar.method import BATCH_NORM, Method

CHOICES = (
    "choose trainer.cache_batch_norm 'freeze' (running statistics, for trained encoders) or 'chunk' (statistics of "
    "each chunk: inexact), or an encoder and head without it, e.g. encoder.norm 'group' and method.head.norm 'layer'"
)


def expect_cacheable(method: Method, config: TrainerConfig) -> None:
    """Refuses, before any work, a method that declares that its batch cannot be cached.

    Raises:
        ValueError: says the method's own reason.
    """
    if not config.cache or method.cache == "exact":
        return
    reason = method.cache.removeprefix("no: ")
    if method.cache.startswith(BATCH_NORM):
        expect(
            config.cache_batch_norm != "refuse",
            "trainer.cache", f"0 for {type(method).__name__} ({reason}); {CHOICES}", config.cache,
        )  # fmt: skip
        return
    expect(False, "trainer.cache", f"0 for {type(method).__name__} ({reason})", config.cache)


def chunk_sizes(rows: int, chunk: int) -> list[int]:
    """Sizes of the nearly equal chunks of this process's rows, as many on every process, since they reduce together.

    Args:
        rows: samples of this process.
        chunk: most samples of one; 0: all in one. A process that has fewer samples than the others need chunks makes
            theirs larger by one.
    """
    if not chunk:
        return [rows]
    everyone = distributed.gather(torch.tensor([rows]), grad=False).tolist()
    num = min(min(everyone), max(-(-count // chunk) for count in everyone))
    return [rows // num + (k < rows % num) for k in range(num)]


def probe(
    method: Method, encode: Callable[[Batch], dict[str, Tensor]], batch: Batch, config: TrainerConfig
) -> list[nn.Module]:
    """Encodes two chunks of the first batch together and apart; returns the batch norms that `encode` passes through.

    Random state, modes and running statistics are afterwards what they were. Draws would differ between together and
    apart, so where two runs differ, the parts that may draw are put into eval mode: those without parameters or buffers
    (dropout and its kind), and if that does not help, all.

    Raises:
        ValueError: on every process, when a batch norm trains and no choice was made for it, when a row depends on
            other rows, or when `encode` writes a buffer.
    """
    norms: list[nn.Module] = []
    half = min(config.cache, size(batch) // 2)
    with torch.no_grad(), same_random_state_after(), _modes_after(method) as was:
        for module in method.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False
        with watch_batch_norms(norms):
            encode(split(batch, [max(half, 1), size(batch) - max(half, 1)])[0])
        norms = [norm for norm in norms if was[norm]]
        fault = _batch_norm_fault(method, norms, config)
        if not fault and half:
            fault = _fault(method, encode, batch, half, config)
    faults = [(process, text) for process, text in enumerate(distributed.gather_objects(fault)) if text]
    if faults:
        raise ValueError(faults[0][1] + (f" (process {faults[0][0]})" if distributed.world() > 1 else ""))
    return norms


def _batch_norm_fault(method: Method, norms: list[nn.Module], config: TrainerConfig) -> str:
    if not norms or config.cache_batch_norm != "refuse":
        return ""
    names = [name for name, module in method.named_modules() if any(module is norm for norm in norms)]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"trainer.cache: expected an encoder without batch normalisation in training mode, received {names[0]}{more} "
        f"in {type(method).__name__}; {CHOICES}"
    )


def _fault(method: Method, encode: Any, batch: Batch, half: int, config: TrainerConfig) -> str:
    versions = {name: buffer._version for name, buffer in method.named_buffers()}
    first, second, _ = split(batch, [half, half, size(batch) - 2 * half])
    both = split(batch, [2 * half, size(batch) - 2 * half])[0]
    tolerance = 1e-3 if config.precision == "no" else 5e-2
    quiet = _quietly(method, encode, first, tolerance)
    if quiet:
        together, apart = encode(both), [encode(first), encode(second)]
        for name, whole in together.items():
            parts = torch.cat([part[name] for part in apart])
            if whole.shape != parts.shape:
                return (
                    f"{type(method).__name__}.encode: expected a row a sample in {name!r}, received shape "
                    f"{tuple(whole.shape)} for {2 * half} samples and {tuple(parts.shape)} for {half} twice"
                )
            largest = difference(whole, parts)
            if largest > tolerance:
                return (
                    f"{type(method).__name__}.cache: expected 'no: reason', received {method.cache!r}, but a row of "
                    f"{name!r} depends on other samples: encoded in two chunks of {half} it differs by up to "
                    f"{largest:.3g} of its largest value"
                )
    else:
        warnings.warn(
            f"{type(method).__name__}.encode draws random numbers in eval mode too, so that its cache, "
            f"{method.cache!r}, could not be checked",
            stacklevel=2,
        )
    written = [name for name, buffer in method.named_buffers() if buffer._version != versions.get(name)]
    if written:
        return f"{type(method).__name__}.encode: expected to write nothing, received a change of {', '.join(written)}"
    return ""


def _quietly(method: Method, encode: Any, chunk: Batch, tolerance: float) -> bool:
    """Puts as few modules into eval mode as it takes for `encode` to repeat itself; False where it never does."""
    for stage in ("as it trains", "without dropout", "in eval mode"):
        if stage != "as it trains":
            for module in method.modules():
                bare = not [*module.parameters(), *module.buffers()]
                module.training = module.training and stage == "without dropout" and not bare
        runs = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            runs.append(encode(chunk))
        if all(difference(one, runs[1][name]) <= tolerance for name, one in runs[0].items()):
            return True
    return False


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, as a share of the largest value; of what is not finite nothing is said."""
    one, other = one.double(), other.double()
    if torch.equal(one, other) or not (one.isfinite().all() and other.isfinite().all()):
        return 0.0
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))


@contextmanager
def _modes_after(method: Method) -> Iterator[dict[nn.Module, bool]]:
    """The modules' modes; afterwards they are in them again."""
    was = {module: module.training for module in method.modules()}
    try:
        yield was
    finally:
        for module, mode in was.items():
            module.training = mode
