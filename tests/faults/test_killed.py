"""SIGKILL from outside, at whatever instruction it hits, then --resume: the end is that of a run never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jobs
from nearfar.train import Artefact, Context, Features, Labels, Pipeline, Run, Stage, Trainer, train_stage

# -- a queue and a teacher ---------------------------------------------------------------------------------------------

TINY = {
    "encoder.width": 4, "encoder.dim": 8, "method.head.hidden": 8, "method.head.dim": 8, "data.image_size": 8,
    "method.queue": 100,  # wraps around within every batch and a half
    "trainer.batch_size": 64, "trainer.max_steps": 12, "trainer.checkpoint_every": 5, "trainer.log_every": 1,
    "trainer.evaluate_every": 0, "trainer.progress": False, "trainer.device": "cpu",
}  # fmt: skip


def queue_run(output: str, resume: bool = False) -> None:
    """MoCo on digits, with a queue of 100 keys."""
    import torch

    from nearfar.plugin import load_recipe
    from nearfar.recipe import update
    from nearfar_images.pipeline import train

    torch.set_num_threads(1)
    values: dict = {}
    for name, value in (TINY | {"trainer.output": output}).items():
        *path, last = name.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    train(update(load_recipe("images/moco_digits"), values), resume=resume)


def small_queue_run(output: str, resume: bool = False) -> None:
    """The same on a few random pictures, without the plugin."""
    import torch

    from nearfar.config import ContrastConfig, EvaluateConfig, HeadConfig, ImageViewConfig, OptimiserConfig
    from nearfar.config import TrainerConfig as Options
    from nearfar.data import ArraySource, Data
    from nearfar.methods import Contrast
    from nearfar.models import ConvNet
    from nearfar.views import ImageViews

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (300, 1, 8, 8), dtype=np.uint8)
    train, test = (ArraySource(part, np.arange(len(part)) % 3) for part in (images[:256], images[256:]))
    method = ContrastConfig(
        loss="info_nce", key_encoder="ema", momentum=0.9, queue=100, symmetric=False, head=HeadConfig(hidden=8, dim=8)
    )
    options = Options(epochs=3, batch_size=64, checkpoint_every=5, log_every=1, progress=False, device="cpu",
                      evaluate_every=0, output=output)  # fmt: skip
    Trainer(
        Contrast(method, ConvNet(1, width=4, dim=8), ImageViews(ImageViewConfig(), size=8, channels=1)),
        Data(train, test), options, optimiser=OptimiserConfig(lr=0.01), evaluate=EvaluateConfig(per_class=2),
    ).fit(resume)  # fmt: skip


@pytest.mark.parametrize("job", [small_queue_run, pytest.param(queue_run, marks=pytest.mark.slow)])
def test_a_queue_and_its_teacher_go_on(tmp_path: Path, job: Callable[..., None]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert jobs.run(job, str(whole)) == 0
    jobs.kill(job, str(parts), when=lambda: jobs.rows(parts) >= 7)
    run = Run(parts)
    assert run.status["status"] == "running"
    assert run.checkpoints[-1].name in ("step-000000005", "step-000000010")
    assert jobs.run(job, str(parts), True) == 0
    assert jobs.result(whole) == jobs.result(parts)
    from safetensors.numpy import load_file

    state = load_file(run.checkpoint("last") / "model.safetensors")
    queued = [name for name in state if name.startswith("queue.")]
    assert any(state[name].shape == (100, 8) for name in queued)
    assert any(name.startswith("teacher.") for name in state)


@pytest.mark.slow
def test_the_command_line_goes_on(tmp_path: Path) -> None:
    flags = [word for name, value in TINY.items() for word in _flag(name, value)]

    def start(output: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "nearfar.cli", "images", "train", "moco_digits", *flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*command, "--trainer.output", str(output), *more], env=environment, stdout=subprocess.DEVNULL
        )

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start(whole).wait(120) == 0
    for kill_at in (3, 8):  # once before the first checkpoint, once after it
        process = start(parts, "--resume")
        while jobs.rows(parts) < kill_at:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        assert process.wait(60) < 0
        assert Run(parts).status["status"] == "running"
    assert start(parts, "--resume").wait(120) == 0
    assert jobs.result(whole) == jobs.result(parts)


def _flag(name: str, value: object) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        head, _, tail = flag.rpartition(".")
        return [f"--{head}.{tail}" if value else f"--{head}.no-{tail}"]
    return [f"--{flag}", str(value)]


# -- a pipeline --------------------------------------------------------------------------------------------------------


def staged(folder: str, hurry: bool = True) -> None:
    """Train, embed and cluster, train on the clusters; the middle stage dawdles, half done, unless told to hurry."""
    import torch

    from nearfar.config import EvaluateConfig, OptimiserConfig, TrainerConfig
    from nearfar.data import Data
    from toys import Toy, Vectors

    torch.set_num_threads(1)

    def make(context: Context) -> Trainer:
        torch.manual_seed(4)
        train = Vectors(40)
        if context.inputs:
            train.labels = context.inputs["cluster.labels"].labels
            train.y = torch.from_numpy(train.labels)
        return Trainer(
            Toy(dropout=0.2, centre=True), Data(train=train, test=Vectors(15, seed=3)),
            TrainerConfig(epochs=2, batch_size=8, log_every=1, checkpoint_every=2, progress=False, device="cpu"),
            optimiser=OptimiserConfig(lr=0.01), evaluate=EvaluateConfig(num_neighbours=3, per_class=2),
        )  # fmt: skip

    def cluster(context: Context) -> dict[str, Artefact]:
        from safetensors.torch import load_file

        method = Toy(dropout=0.2, centre=True).eval()
        method.load_state_dict(load_file(context.inputs["pretrain.run"].run.checkpoint("last") / "model.safetensors"))
        with torch.no_grad():
            x = method.features({"x": Vectors(40).x}).numpy()
        (context.folder / "half-done").touch()
        while not hurry:
            time.sleep(0.01)
        return {"labels": Labels((x @ x[:3].T).argmax(1)), "features": Features(x, np.arange(40))}

    Pipeline(folder, [
        Stage("pretrain", train_stage(make)),
        Stage("cluster", cluster, ("pretrain.run",)),
        Stage("finetune", train_stage(make), ("cluster.labels",)),
    ]).run(resume=True)  # fmt: skip


def hashes(folder: Path) -> dict[str, object]:
    """Hashes of everything that the stages left; a run's is that of its last model."""
    return {stage.name: json.loads((stage / "done.json").read_text())["outputs"] for stage in sorted(folder.iterdir())}


def models(folder: Path) -> list[bytes]:
    runs = [Run(folder / stage / "run") for stage in ("pretrain", "finetune")]
    return [(run.checkpoint("last") / "model.safetensors").read_bytes() for run in runs]


@pytest.mark.slow
def test_a_pipeline_goes_on_in_every_kind_of_stage(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert jobs.run(staged, str(whole)) == 0
    jobs.kill(staged, str(parts), when=lambda: jobs.rows(parts / "pretrain" / "run") >= 5)
    assert not (parts / "pretrain" / "done.json").exists()
    jobs.kill(staged, str(parts), False, when=lambda: (parts / "cluster" / "half-done").exists())
    pretrained = (parts / "pretrain" / "done.json").read_bytes()
    jobs.kill(staged, str(parts), when=lambda: jobs.rows(parts / "finetune" / "run") >= 5)
    assert jobs.run(staged, str(parts)) == 0
    assert (parts / "pretrain" / "done.json").read_bytes() == pretrained  # done once
    assert hashes(whole)["cluster"] == hashes(parts)["cluster"]
    assert models(whole) == models(parts)
    assert Run(parts / "finetune" / "run").metrics == Run(whole / "finetune" / "run").metrics
