from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nearfar.train import CheckpointError, checkpoint

MODEL = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
STATE = {"step": 4, "random": {"torch": torch.get_rng_state()}, "list": [1, 2.5, "x", None, True]}


def write(folder: Path, step: int = 4) -> Path:
    return checkpoint.save(folder, step, MODEL, STATE, {"identity": {"a": 1}, "world": 1})


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path)
    model, state, manifest = checkpoint.load(path)
    assert set(model) == {"w", "n"}
    assert torch.equal(model["w"], MODEL["w"])
    assert state["list"] == STATE["list"]
    assert torch.equal(state["random"]["torch"], STATE["random"]["torch"])
    assert manifest["identity"] == {"a": 1}
    assert checkpoint.step_of(path) == 4


def test_shared_and_strided_tensors_are_kept(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    path = checkpoint.save(tmp_path, 1, {"a": base, "b": base, "t": base.T, "row": base[1]}, {}, {})
    model, _, _ = checkpoint.load(path)
    assert torch.equal(model["a"], base)
    assert torch.equal(model["b"], base)
    assert torch.equal(model["t"], base.T)
    assert torch.equal(model["row"], base[1])


@pytest.mark.parametrize("file", [checkpoint.MODEL, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "half", "flipped"])
def test_a_broken_newest_falls_back_to_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    older, newer = write(tmp_path, 4), write(tmp_path, 8)
    place = newer / file
    data = bytearray(place.read_bytes())
    if damage == "missing":
        place.unlink()
    elif damage == "half":
        place.write_bytes(bytes(data[: len(data) // 2]))
    else:
        data[0 if file == checkpoint.MANIFEST else len(data) // 2] ^= 0xFF
        place.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match=r"step-000000008.*going on from step-000000004"):
        assert checkpoint.newest(tmp_path) == older


def test_all_broken_is_an_error_that_names_them(tmp_path: Path) -> None:
    for step in (1, 2):
        (write(tmp_path, step) / checkpoint.STATE).unlink()
    with pytest.raises(CheckpointError, match=r"no usable checkpoint: .*step-000000002.*step-000000001"):
        checkpoint.newest(tmp_path)


def test_none_at_all(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "absent") is None


def test_a_partial_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step-000000009.partial").mkdir()
    write(tmp_path, 4)
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step-000000004"]


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(CheckpointError, match="expected schema 1, received 99"):
        checkpoint.verify(path)


def test_pickled_code_in_a_state_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "pwned",))

    path = write(tmp_path)
    torch.save({"x": Evil()}, path / checkpoint.STATE)
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest["files"][checkpoint.STATE] = {
        "bytes": (path / checkpoint.STATE).stat().st_size,
        "sha256": checkpoint.file_hash(path / checkpoint.STATE),
    }
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoint.load(path)
    assert not (tmp_path / "pwned").exists()


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, keep=2, also={1})
    assert [checkpoint.step_of(p) for p in checkpoint.found(tmp_path)] == [1, 4, 5]


FULL = """
import resource, sys, torch
from pathlib import Path
from nearfar.train import checkpoint
folder = Path(sys.argv[1])
small = {"w": torch.ones(8)}
checkpoint.save(folder, 1, small, {"big": 1}, {})
limit = int(sys.argv[2])
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
large = torch.ones(1 << 20)
model, state = ({"w": large}, {}) if sys.argv[3] == "model" else (small, {"big": large})
try:
    checkpoint.save(folder, 2, model, state, {})
except OSError as error:
    print(error); raise SystemExit(7)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs file size limits")
@pytest.mark.parametrize("which", ["model", "state"])
def test_a_disk_that_takes_no_more_leaves_earlier_checkpoints_whole(tmp_path: Path, which: str) -> None:
    """A real write failure in a process of its own: no file may grow past 64 kB there."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), "65536", which], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 7, done.stderr
    assert "step-000000002 could not be written" in done.stdout
    assert "Earlier checkpoints are intact" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    checkpoint.verify(tmp_path / "step-000000001")
