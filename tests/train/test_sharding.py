"""What of sharding shows in one process; tests/distributed/test_shard.py trains with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree

from nearfar.config import OptimiserConfig, TrainerConfig
from nearfar.method import Terms
from nearfar.models import ConvNet, TinyViT
from nearfar.momentum import Teacher
from nearfar.train import Trainer, optim, sharding
from toys import Toy, Vectors


def names(module: nn.Module) -> list[str]:
    found = sharding.blocks(module)
    return [name for name, m in module.named_modules() if any(m is block for block in found)]


def test_a_transformer_gives_its_blocks_and_a_teacher_too() -> None:
    module = nn.Module()
    module.encoder = TinyViT(1, 8, dim=16, depth=3)
    module.head = nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8))
    module.teacher = Teacher(nn.Sequential(module.encoder, module.head))
    blocks = [f"blocks.{k}" for k in range(3)]
    assert names(module) == [f"encoder.{b}" for b in blocks] + [f"teacher.module.0.{b}" for b in blocks]


def test_convolutional_nets_give_blocks_and_chains_of_layers_nothing() -> None:
    torchvision = pytest.importorskip("torchvision")
    assert names(ConvNet(1)) == [f"blocks.{k}" for k in range(4)]
    assert names(Toy()) == []
    with torch.device("meta"):
        resnet, swin = torchvision.models.resnet18(), torchvision.models.swin_t()
    assert names(resnet) == [f"layer{k}.{i}" for k in range(1, 5) for i in range(2)]
    assert names(swin) == [f"features.{k}" for k in range(8)]


def test_lists_that_cannot_be_called_are_looked_into() -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2))

    module = nn.Module()
    module.towers = nn.ModuleList(nn.ModuleList([block(), block()]) for _ in range(2))
    assert names(module) == ["towers.0.0", "towers.0.1", "towers.1.0", "towers.1.1"]
    shared = nn.Module()
    shared.a = shared.b = nn.Sequential(block(), block())
    assert len(sharding.blocks(shared)) == 2


def test_terms_are_a_container_of_tensors() -> None:
    terms = Terms().add("a", torch.ones(()), weight=2.0, count=3).log(b=1.5)
    leaves, structure = _pytree.tree_flatten(terms)
    assert sum(isinstance(leaf, torch.Tensor) for leaf in leaves) == 2
    assert _pytree.tree_unflatten(leaves, structure) == terms


def test_scalars_have_groups_of_their_own() -> None:
    model = nn.Module()
    model.encoder = nn.Linear(2, 2)
    model.temperature = nn.Parameter(torch.zeros(()))
    groups = optim.groups(model, model.parameters(), OptimiserConfig(weight_decay=0.1))
    assert [[p.ndim for p in g["params"]] for g in groups] == [[0], [2], [1]]
    assert [g["weight_decay"] for g in groups] == [0.0, 0.1, 0.0]


def test_in_one_process_there_is_nothing_to_shard(tmp_path: Path) -> None:
    config = TrainerConfig(
        epochs=1, batch_size=16, progress=False, device="cpu", output=str(tmp_path / "run"), parallel="fsdp"
    )
    method = Toy()
    trainer = Trainer(method, Vectors(32), config)
    assert trainer.fit().status["status"] == "finished"
    assert not trainer.engine.sharded
    assert type(method) is Toy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": True}, "trainer.compile: expected off with trainer.parallel 'fsdp', received True"),
        ({"precision": "fp16"}, "trainer.precision: expected 'no' or 'bf16' with trainer.parallel 'fsdp'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(parallel="fsdp", **options)


@pytest.mark.parametrize("plugin", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_plugins_of_accelerate_that_shard_are_refused(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")
    config = TrainerConfig(epochs=1, progress=False, device="cpu", output=str(tmp_path), batch_size=8)
    message = f"accelerate launch: expected no plugin that shards; .*received ACCELERATE_USE_{plugin}=true"
    with pytest.raises(ValueError, match=message):
        Trainer(Toy(), Vectors(16), config).fit()
