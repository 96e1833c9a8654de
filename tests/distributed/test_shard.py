"""Training with sharded parameters, against one process that holds everything and against DDP.

Processes take long to start, so that one launch runs every case.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distributed.launch import launch
from distributed.sharded import fit, image_system, toy, train_all

WORLD = 2

# -- what only several processes can show ------------------------------------------------------------------------------


def beside_ddp(folder: str) -> dict[str, Any]:
    """What depends on the number of processes, the same for both ways to be parallel."""
    found: dict[str, Any] = {}
    for way in ("ddp", "fsdp"):
        found[f"accumulate {way}"] = fit(toy(), f"{folder}/a-{way}", parallel=way, accumulate=2, clip_norm=0.5)
        found[f"bf16 {way}"] = image_system("simclr, transformer", f"{folder}/b-{way}", parallel=way, precision="bf16")
    return found


def other_start(folder: str) -> dict[str, Any]:
    """Process 1 begins with other numbers, which must not matter."""
    from nearfar import distributed

    method = toy()
    with torch.no_grad():
        for tensor in (*method.parameters(), *method.buffers()):
            tensor.add_(distributed.rank())
    return fit(method, f"{folder}/start", parallel="fsdp", clip_norm=0.5)


def stopped(method: Any, output: str, at: int, **options: Any) -> None:
    """A run that leaves after a step as after a signal."""
    from nearfar.train import Interrupted

    def leave(trainer: Any, row: dict[str, Any]) -> None:
        if trainer.step == at:
            trainer._leave(signal.SIGTERM)

    with pytest.raises(Interrupted):
        fit(method, output, callbacks=(leave,), **options)


def resumes(folder: str) -> dict[str, Any]:
    """Sharded and resumed; sharded and resumed by DDP; the other way round; with dropout, to the bit."""
    from nearfar import distributed

    options: dict[str, Any] = {"clip_norm": 0.5}
    found: dict[str, Any] = {}
    for first, then in (("fsdp", "fsdp"), ("fsdp", "ddp"), ("ddp", "fsdp")):
        place = f"{folder}/{first}-{then}"
        stopped(toy(), place, 2, parallel=first, **options)
        if distributed.is_main() and (first, then) == ("fsdp", "ddp"):
            shutil.copytree(place, f"{folder}/fsdp-one")
        distributed.barrier()
        found[f"{first}, then {then}"] = fit(toy(), place, parallel=then, resume=True, **options)
    dropout: dict[str, Any] = {"parallel": "fsdp", "epochs": 2, "test": 15}
    fit(toy(dropout=0.3), f"{folder}/whole", **dropout)
    stopped(toy(dropout=0.3), f"{folder}/parts", 4, **dropout)
    fit(toy(dropout=0.3), f"{folder}/parts", resume=True, **dropout)
    return found


class Large(nn.Module):
    """A block of half a MiB; in its forward and backward, all tensors that this process holds are measured."""

    def __init__(self, seen: list[int] | None) -> None:
        super().__init__()
        self.up, self.down, self.seen = nn.Linear(8, 2**13), nn.Linear(2**13, 8), seen

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).relu()
        if self.seen is not None and y.requires_grad:
            self.seen.append(held())
            y.register_hook(lambda _: self.seen.append(held()))
        return x + self.down(y)


def held() -> int:
    """Bytes of all tensors in this process."""
    import gc

    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def memory(folder: str) -> dict[str, int]:
    """What a process holds of a model in eight blocks: after a run, and at most in a step."""
    from toys import Toy

    before, seen = held(), []
    method = Toy()
    method.encoder = nn.Sequential(*(Large(seen if k == 1 else None) for k in range(8)))
    whole = sum(p.numel() * p.element_size() for p in method.parameters())
    result = fit(method, f"{folder}/memory", parallel="fsdp")
    result = {name: value for name, value in result.items() if name.endswith("bytes")}
    return result | {"whole": whole, "rest": held() - before, "most": max(seen) - before}


def refuses(folder: str) -> dict[str, str]:
    """What each process says of what cannot be sharded."""
    from nearfar.method import Method

    class Tied(Method):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8)) for _ in range(2)))
            self.encoder[0][0].weight = self.encoder[1][0].weight

    class Alone(Tied):
        shard = "none"

    found = {}
    for kind in (Tied, Alone):
        try:
            fit(kind(), f"{folder}/{kind.__name__}", parallel="fsdp")
        except ValueError as error:
            found[kind.__name__] = str(error)
    return found


def everything(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {"cases": train_all(folder, "fsdp")}
    for part in (beside_ddp, other_start, resumes, memory, refuses):
        found[part.__name__] = part(folder)
    return found


pytestmark = pytest.mark.slow  # half a minute for the processes that all tests here share


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shard")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return launch(everything, WORLD, str(folder / "many"), timeout=500)


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return train_all(str(folder / "one"), "fsdp")  # in one process the choice says nothing


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, rtol: float, atol: float, what: str) -> None:
    assert len(found["loss"]) == len(expected["loss"])
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-5, atol=1e-5, msg=lambda m: f"{what}: {m}")
    assert found["state"].keys() == expected["state"].keys()
    for name, value in expected["state"].items():
        torch.testing.assert_close(
            found["state"][name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{what}, {n}: {m}"
        )


def test_sharded_processes_equal_one(one: dict[str, Any], found: list[dict[str, Any]]) -> None:
    for result in found:
        for case, expected in one.items():
            double = "norm" in expected
            tolerance = {"rtol": 1e-6, "atol": 1e-8} if double else {"rtol": 1e-3, "atol": 2e-4}
            assert_same(result["cases"][case], expected, what=case, **tolerance)
            if double:
                norms = result["cases"][case]["norm"]
                torch.testing.assert_close(norms, expected["norm"], rtol=1e-6, atol=0, msg=lambda m, c=case: f"{c} {m}")
                assert result["cases"][case]["scores"] == expected["scores"]
    assert len(one["not finite"]["loss"]) == 2  # a step that was not applied has none
    assert one["adamw, clipped, evaluated"]["norm"][0] > 0.5  # it is clipped
    assert one["adamw, clipped, evaluated"]["scores"]["knn"] > 0.5


def test_sharded_processes_equal_ddp(found: list[dict[str, Any]]) -> None:
    for result in found:
        both = result["beside_ddp"]
        for case, tolerance in (("accumulate", 1e-8), ("bf16", 2e-4)):
            assert_same(both[f"{case} fsdp"], both[f"{case} ddp"], rtol=1e-3, atol=tolerance, what=case)


def test_everybody_starts_with_the_numbers_of_the_first_process(
    one: dict[str, Any], found: list[dict[str, Any]]
) -> None:
    for result in found:
        assert_same(result["other_start"], one["adamw, clipped, evaluated"], rtol=1e-6, atol=1e-8, what="start")


def test_checkpoints_are_whole(folder: Path, one: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """A checkpoint of a sharded run goes on in one process, under DDP and sharded, and the other way round."""
    expected = one["adamw, clipped, evaluated"]
    for result in found:
        for way, resumed in result["resumes"].items():
            assert_same(resumed, expected, rtol=1e-6, atol=1e-8, what=way)
    with pytest.warns(UserWarning, match="written by 2 processes and goes on with 1"):
        alone = fit(toy(), str(folder / "many/fsdp-one"), resume=True, clip_norm=0.5)
    assert_same(alone, expected, rtol=1e-6, atol=1e-8, what="alone")


def test_the_files_of_a_sharded_checkpoint_are_those_of_any_other(
    folder: Path, one: dict[str, Any], found: list[dict[str, Any]]
) -> None:
    from nearfar.train import Run, checkpoint

    case = "adamw, clipped, evaluated"
    (model, state, manifest), (model_1, state_1, manifest_1) = (
        checkpoint.load(Run(folder / who / case).checkpoint("last")) for who in ("many", "one")
    )
    assert manifest["identity"] == manifest_1["identity"]
    assert (manifest["world"], manifest_1["world"]) == (WORLD, 1)
    assert {n: (v.shape, v.dtype) for n, v in model.items()} == {n: (v.shape, v.dtype) for n, v in model_1.items()}
    ours, theirs = state["optimisers"]["main"], state_1["optimisers"]["main"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, values in theirs["state"].items():
        torch.testing.assert_close(ours["state"][number], values, rtol=1e-5, atol=1e-8)


def test_stopped_and_resumed_equals_never_stopped_to_the_bit(folder: Path, found: list[dict[str, Any]]) -> None:
    from nearfar.train import Run, checkpoint

    whole, parts = (Run(folder / "many" / name) for name in ("whole", "parts"))
    assert parts.status["step"] == whole.status["step"] == 6
    assert parts.best == whole.best
    assert (parts.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    assert parts.scores == whole.scores
    assert parts.report.is_file()
    model, model_1 = (run.checkpoint("last") / checkpoint.MODEL for run in (whole, parts))
    assert model.read_bytes() == model_1.read_bytes()


def test_each_process_holds_its_part(found: list[dict[str, Any]]) -> None:
    for result in found:
        of = {name: value / result["memory"]["whole"] for name, value in result["memory"].items()}
        assert result["memory"]["whole"] > 4 * 2**20
        assert 0.49 < of["parameter_bytes"] < 0.51
        assert 0.98 < of["optimiser_bytes"] < 1.02  # two states of Adam
        assert of["rest"] < 0.55  # the run is over, its optimiser gone
        # In a step 4 / W: parameters, gradients, two states; and a few of eight blocks in buffers and computing.
        assert of["most"] < 4 / WORLD + 6 / 8


def test_what_cannot_be_sharded_is_refused_by_name(found: list[dict[str, Any]]) -> None:
    for result in found:
        assert "trainer.parallel: expected 'ddp' for a method whose blocks share" in result["refuses"]["Tied"]
        assert "encoder.0.0.weight = encoder.1.0.weight" in result["refuses"]["Tied"]
        assert "processes: expected one, since Alone does not split its batch" in result["refuses"]["Alone"]


# -- slow: more processes, a process that is killed, and the two programs that start them ------------------------------


def test_three_processes_equal_one(tmp_path: Path, one: dict[str, Any]) -> None:
    for result in launch(train_all, 3, str(tmp_path), "fsdp", timeout=280):
        for case, expected in one.items():
            tolerance = {"rtol": 1e-6, "atol": 1e-8} if "norm" in expected else {"rtol": 1e-3, "atol": 3e-4}
            assert_same(result[case], expected, what=case, **tolerance)


def killed(output: str, at: int, resume: bool) -> list[str]:
    import os

    def kill(trainer: Any, row: dict[str, Any]) -> None:
        if trainer.step == at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    fit(
        toy(dropout=0.3), output, parallel="fsdp", checkpoint_every=2, epochs=2, callbacks=(kill,), resume=resume
    )  # fmt: skip
    return []


def test_killed_and_resumed_equals_never_killed_to_the_bit(tmp_path: Path) -> None:
    from nearfar.train import Run, checkpoint

    launch(killed, 2, str(tmp_path / "whole"), 0, False)
    with pytest.raises(RuntimeError):
        launch(killed, 2, str(tmp_path / "parts"), 5, False)
    launch(killed, 2, str(tmp_path / "parts"), 0, True)
    files = [Run(tmp_path / name).checkpoint("last") / checkpoint.MODEL for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "program",
    [
        ["torch.distributed.run", "--nproc-per-node", "2"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
         "--mixed_precision=no", "--dynamo_backend=no"],
    ],
    ids=["torchrun", "accelerate"],
)  # fmt: skip
def test_started_by(program: list[str], tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    from nearfar.train import Run, checkpoint

    options = ["--trainer.parallel", "fsdp", "--trainer.device", "cpu", "--trainer.max-steps", "2",
               "--trainer.output", str(tmp_path / "run"), "--trainer.no-progress"]  # fmt: skip
    command = [sys.executable, "-m", *program, "-m", "nearfar.cli", "images", "train", "simclr_digits", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(tmp_path / "run")
    assert run.status["status"] == "finished"
    assert checkpoint.verify(run.checkpoint("last"))["world"] == 2
