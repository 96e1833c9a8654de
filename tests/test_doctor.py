from __future__ import annotations

import json
from pathlib import Path

import pytest

import toy_plugin
from nearfar import doctor
from nearfar.cli import main
from nearfar.doctor import Check


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own and one plugin that works."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    toy_plugin.write(tmp_path / "site", monkeypatch)
    return tmp_path


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_packages_are_those_that_nearfar_asks_for():
    found = named(doctor.packages())
    assert {"python", "torch", "numpy", "tyro", "rich", "safetensors", "accelerate"} <= set(found)
    assert all(found[name].status == "ok" for name in ("python", "torch", "tyro"))


@pytest.mark.parametrize(
    ("found", "status"), [("2.8.1+cpu", "broken"), ("2.9.0", "ok"), ("2.10.0.dev1", "ok"), ("3", "ok")]
)
def test_versions_compare_as_numbers(monkeypatch: pytest.MonkeyPatch, found: str, status: str):
    monkeypatch.setattr(doctor, "version", lambda name: found)
    check = doctor._required("torch", "2.9")
    assert check.status == status
    assert ("pip install 'torch>=2.9'" in check.advice) == (status == "broken")


def test_a_missing_package_is_broken():
    check = doctor._required("no-such-distribution-anywhere", "1")
    assert (check.status, check.value) == ("broken", "not installed")


def test_devices_and_room(home: Path):
    assert {"cpu", "threads", "distributed"} <= set(named(doctor.devices()))
    found = named(doctor.room())
    assert found["disk"].value.endswith(str(home))
    assert (found["cache"].status, found["cache"].value) == ("ok", str(home / "cache" / "nearfar"))
    assert not list((home / "cache" / "nearfar").iterdir())


def test_a_cache_that_cannot_be_written_is_broken(home: Path):
    (home / "cache").write_text("a file where a folder should be")
    check = named(doctor.room())["cache"]
    assert check.status == "broken"
    assert "XDG_CACHE_HOME" in check.advice


def test_plugins_that_work_and_that_do_not(home: Path, monkeypatch: pytest.MonkeyPatch):
    assert named(doctor.plugins())["toy"] == Check("plugins", "toy", "2 systems, 3 commands")
    toy_plugin.write(home / "more", monkeypatch, name="bad", broken="import not_there\n")
    found = named(doctor.plugins())
    assert found["toy"].status == "ok"
    assert found["bad"].status == "broken"
    assert "not_there" in found["bad"].value


def test_the_sums_come_out():
    (check,) = doctor.sums()
    assert check.status == "ok", check.value


def test_wrong_sums_are_broken(monkeypatch: pytest.MonkeyPatch):
    import nearfar.contrast

    right = nearfar.contrast.contrast
    monkeypatch.setattr(nearfar.contrast, "contrast", lambda *a, **k: right(*a, **k) * 1.01)
    (check,) = doctor.sums()
    assert check.status == "broken"


def test_a_look_that_fails_is_broken_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch):
    def devices() -> list[Check]:
        raise RuntimeError("no driver")

    monkeypatch.setattr(doctor, "devices", devices)
    monkeypatch.setattr(doctor, "plugins", list)
    found = named(doctor.examine())
    assert (found["devices"].status, found["devices"].value) == ("broken", "RuntimeError: no driver")
    assert "disk" in found
    assert "contrast" in found


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("broken", 1)])
def test_exit_code_and_both_forms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, status: str, code: int
):
    check = Check("room", "disk [x]", "none [y]", status, "make room [z]")  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "examine", lambda: [check])
    assert main(["doctor"]) == code
    text = capsys.readouterr().out
    for part in ("none [y]", "make room [z]", status):
        assert part in text
    assert ("Broken: disk [x]" in text) == bool(code)
    assert main(["doctor", "--json"]) == code
    out = capsys.readouterr()
    assert not out.err
    assert json.loads(out.out) == {
        "ok": not code,
        "checks": [
            {"group": "room", "name": "disk [x]", "value": "none [y]", "status": status, "advice": "make room [z]"}
        ],
    }
