"""A run on shards that is killed and resumed ends as one that was never stopped, to the bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

import jobs
from data.shardfiles import shards, tar
from nearfar.config import ContrastConfig, DataConfig, HeadConfig, ImageViewConfig, SamplerConfig, TrainerConfig
from nearfar.data import open_data
from nearfar.methods import Contrast
from nearfar.models import ConvNet
from nearfar.samplers import make_sampler
from nearfar.train import CheckpointError, Run, Trainer
from nearfar.views import ImageViews


def train(root: str, output: str, resume: bool = False, kill_at: int = 0, workers: int = 0, signum: int = 0) -> Run:
    """Two epochs of four steps on pictures in shards, one of which is broken; a checkpoint every third step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if workers:
        multiprocessing.set_start_method("fork", force=True)
    place = Path(root)
    data = open_data(
        DataConfig(
            source="webdataset", root=str(place / "s-*.tar"), cache=str(place / "cache"), memory_gb=0.0, validation=0.2,
            max_bad_share=0.2,
        )
    )  # fmt: skip
    config = TrainerConfig(
        epochs=2, batch_size=8, log_every=1, evaluate_every=1, checkpoint_every=3, progress=False, device="cpu",
        output=output,
    )  # fmt: skip
    sampler = make_sampler(SamplerConfig(kind="shards", lanes=4, window=6), data.train, 8, seed=0)
    head = ContrastConfig(head=HeadConfig(hidden=8, dim=8))
    method = Contrast(head, ConvNet(3, width=8, dim=8), ImageViews(ImageViewConfig(), size=8, channels=3))

    def callback(trainer: Trainer, row: dict) -> None:
        if kill_at and trainer.step == kill_at:
            os.kill(os.getpid(), signum or signal.SIGKILL)

    trainer = Trainer(
        method, data, config, sampler=sampler, workers=workers, max_bad_share=0.2, callbacks=[callback]
    )  # fmt: skip
    return trainer.fit(resume=resume)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    shards(root, (14, 9, 17))
    path = root / "s-01.tar"
    raw = path.read_bytes()
    place = raw.index(b"IDAT", raw.index(b"0016.png"))
    path.write_bytes(raw[:place] + b"?" * 40 + raw[place + 40 :])
    return root


@pytest.mark.slow
def test_killed_inside_an_epoch_and_resumed(root: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert jobs.run(train, str(root), str(whole)) == 0
    assert jobs.run(train, str(root), str(broken), False, 5) == -signal.SIGKILL
    assert jobs.run(train, str(root), str(broken), True, 0, 2) == 0
    assert jobs.result(broken) == jobs.result(whole)
    assert Run(whole).metrics[-1]["step"] == 8
    faults = [fault for fault in Run(whole).faults if "reason" in fault]
    assert [(fault["index"], fault["path"]) for fault in faults] == [(16, f"{root}/s-01.tar/0016")]


def test_other_shards_are_other_data(root: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(root, tmp_path / "in")
    assert jobs.run(train, str(tmp_path / "in"), str(tmp_path / "run"), False, 5, 0, signal.SIGTERM) == 143
    (tmp_path / "in" / "s-02.tar").rename(tmp_path / "s-02.tar")
    tar(tmp_path / "in" / "s-02.tar", [])
    with pytest.raises(CheckpointError, match="data.fingerprint: there"):
        train(str(tmp_path / "in"), str(tmp_path / "run"), True)
