"""What a run must remember to go on as if it had never stopped, into a checkpoint and back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from nearfar import distributed
from nearfar.train import checkpoint, identity, randomness, sharding
from nearfar.train.run import environment

if TYPE_CHECKING:
    from nearfar.train.trainer import Trainer

KEPT = ("step", "epoch", "position", "bad_steps", "best", "stale", "evaluated_at", "window")


def save(trainer: Trainer) -> None:
    """Writes a checkpoint of the step the trainer stands at, once, and removes old ones."""
    if trainer.saved_at == trainer.step:
        return
    run, scaler = trainer.run, trainer.accelerator.scaler
    random = distributed.gather_objects(randomness.capture())
    # Parts of a sharded run come together, so every process takes part.
    model = sharding.model_state(trainer.method)
    optimisers = {name: sharding.optimiser_state(o) for name, o in trainer.engine.optimisers.items()}
    if distributed.is_main():
        folder = run.path / "checkpoints"
        state = {
            "optimisers": optimisers,
            "scaler": {} if scaler is None else scaler.state_dict(),
            "random": random,
            "sampler": trainer.sampler.state_dict(),
            "trainer": {name: getattr(trainer, name) for name in KEPT} | {"warned": sorted(trainer.warned)},
            "logs": {file: run.size(file) for file in ("metrics.jsonl", "faults.jsonl")},
        }
        meta = {"identity": trainer.identity, "world": distributed.world(), "versions": environment()["versions"]}
        checkpoint.save(folder, trainer.step, model, state, meta)
        if trainer.best:
            run.write("checkpoints/best.json", trainer.best)
        checkpoint.prune(folder, trainer.config.keep, {trainer.best["step"]} if trainer.best else set())
        run.set_status("running", step=trainer.step, steps=trainer.steps, epoch=trainer.epoch)
    trainer.saved_at = trainer.step
    distributed.barrier()


def restore(trainer: Trainer, path: Path) -> None:
    """Puts the trainer where a checkpoint was written, its logs cut back to there.

    Raises:
        CheckpointError: the checkpoint is of another recipe or other data; every difference is named.
    """
    model, state, manifest = checkpoint.load(path)
    identity.compare(path, manifest["identity"], trainer.identity)
    sharding.load_model(trainer.method, model)
    for name, optimiser in trainer.engine.optimisers.items():
        sharding.load_optimiser(optimiser, state["optimisers"][name])
    if state["scaler"] and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.sampler.load_state_dict(state["sampler"])
    for name in KEPT:
        setattr(trainer, name, state["trainer"][name])
    trainer.warned = set(state["trainer"]["warned"])
    trainer.saved_at = trainer.step
    if distributed.is_main():
        for file, size in state["logs"].items():
            trainer.run.truncate(file, size)
    if manifest["world"] == distributed.world():
        randomness.restore(state["random"][distributed.rank()])
    else:
        warnings.warn(
            f"checkpoint {path} was written by {manifest['world']} processes and goes on with "
            f"{distributed.world()}: dropout draws will differ", stacklevel=2,
        )  # fmt: skip
