from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import toy_plugin
from nearfar import __version__, plugin
from nearfar.cli import main


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy_plugin.write(tmp_path / "site", monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NEARFAR_TRACEBACK", raising=False)
    return tmp_path


def test_overview_names_commands_plugins_and_how_to_install_the_others(capsys: pytest.CaptureFixture):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        for part in ("nearfar systems", "nearfar doctor", "nearfar runs", "nearfar toy", "toys [to] learn from"):
            assert part in text
        for name, command in plugin.INSTALL.items():
            assert (command in text) == (name not in plugin.installed())
        assert "\x1b" not in text


def test_version(capsys: pytest.CaptureFixture):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"nearfar {__version__}"


def test_a_broken_plugin_is_shown_and_the_rest_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    toy_plugin.write(tmp_path / "more", monkeypatch, name="bad", broken="import not_there\n")
    assert main([]) == 0
    text = capsys.readouterr().out
    assert "No module named 'not_there'" in text
    assert "toys [to] learn from" in text
    assert main(["bad", "train"]) == 2
    assert "error: plugin 'bad' is installed but does not import" in capsys.readouterr().err


def test_systems_as_table_and_json(capsys: pytest.CaptureFixture):
    assert main(["systems", "--plugin", "toy"]) == 0
    text = capsys.readouterr().out
    assert "The alpha paper [v2]" in text
    assert "Toys 2020" in text
    assert "2 systems" in text
    assert main(["systems", "--json", "--plugin", "toy", "--positive", "label"]) == 0
    out = capsys.readouterr()
    assert [card["slug"] for card in json.loads(out.out)] == ["beta"]
    assert not out.err
    assert main(["systems", "--plugin", "toy", "--kind", "tool"]) == 0
    assert "0 systems" in capsys.readouterr().out


def test_systems_by_a_trait(capsys: pytest.CaptureFixture):
    assert main(["systems", "--plugin", "toy", "--by", "positive"]) == 0
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert words.index("transformation") < words.index("alpha") < words.index("label") < words.index("beta")
    assert main(["systems", "--json", "--plugin", "toy", "--by", "positive"]) == 0
    assert [card["slug"] for card in json.loads(capsys.readouterr().out)] == ["alpha", "beta"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["system"], "did you mean 'systems'?"),
        (["tay"], "did you mean 'toy'?"),
        (
            ["toy", "trian"],
            "toy command: expected one of 'train', 'fail', 'code', received 'trian'; did you mean 'train'?",
        ),
        (["dense", "train"], "pip install nearfar-dense"),
        (["image-text"], "pip install nearfar-image-text"),
        (["systems", "--plugin", "tay"], "did you mean 'toy'?"),
        (["systems", "--kind", "trian"], "did you mean 'train'?"),
        (["systems", "--by", "negatives"], "did you mean 'negative'?"),
        (["systems", "--jsn"], "--json"),
        (["toy", "train", "alpa"], "did you mean 'alpha'?"),
        (["toy", "train", "alpha", "--trainer.epoch", "3"], "--trainer.epochs"),
        (["runs", "no-such-folder"], "error: folder of runs: no-such-folder does not exist"),
    ],
)
def test_wrong_input_exits_with_2_and_the_nearest_match(words: list[str], said: str, capsys: pytest.CaptureFixture):
    assert main(words) == 2
    out = capsys.readouterr()
    assert said in out.err
    assert "Traceback" not in out.err
    assert not out.out


def test_a_plugins_command_gets_the_remaining_words(capsys: pytest.CaptureFixture):
    assert main(["toy", "train", "alpha", "--trainer.epochs", "3"]) == 0
    assert capsys.readouterr().out == "toy/alpha 3 0.3\n"
    assert main(["toy", "code", "7"]) == 7


def test_a_plugin_without_a_command_lists_them(capsys: pytest.CaptureFixture):
    for words in (["toy"], ["toy", "--help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert "nearfar toy train" in text
        assert "train a toy" in text
        assert "nearfar toy code" in text
    assert main(["toy", "train"]) == 0
    assert "alpha_long" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("ValueError", 2),
        ("TypeError", 2),
        ("FileNotFoundError", 2),
        ("ModuleNotFoundError", 2),
        ("NotADirectoryError", 2),
        ("OSError", 1),
        ("PermissionError", 1),
        ("FloatingPointError", 1),
        ("KeyboardInterrupt", 130),
        ("SystemExit", 1),
    ],
)
def test_errors_are_one_line_and_an_exit_code(kind: str, code: int, capsys: pytest.CaptureFixture):
    assert main(["toy", "fail", kind, "what [bold]went[/bold]\nwrong"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    if kind not in ("KeyboardInterrupt", "SystemExit"):
        assert lines[0] == "error: what [bold]went[/bold] wrong"


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["toy", "fail", "ZeroDivisionError", "a bug"])


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEARFAR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="oh"):
        main(["toy", "fail", "ValueError", "oh"])


def _fresh(words: list[str], *, site: Path) -> tuple[subprocess.CompletedProcess, float]:
    """Runs the command line in a fresh interpreter that exits with 99 if torch was imported."""
    code = f"""
import sys
from nearfar.cli import main
code = main({words!r})
sys.exit(99 if "torch" in sys.modules else code)
"""
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    start = time.perf_counter()
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    return done, time.perf_counter() - start


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["systems"],
        ["systems", "--json"],
        ["runs", "."],
        ["toy", "train", "alpha", "--help"],
        ["images"],
        ["images", "train"],
        ["images", "train", "simclr", "--help"],
        ["images", "train", "simclr", "--trainer.max-step", "3"],
    ],
)
def test_the_command_line_answers_without_torch(words: list[str], toy: Path):
    done, seconds = _fresh(words, site=toy / "site")
    wrong = "--trainer.max-step" in words
    assert done.returncode == (2 if wrong else 0), done.stderr
    assert ("--trainer.max-steps" in done.stderr) == wrong
    # About a quarter of a second on an idle machine; generous, because a loaded one takes longer.
    assert seconds < 5


@pytest.mark.parametrize("words", ["systems --json", "systems --json --plugin toy", "--version"])
def test_a_closed_pipe_is_no_error(words: str, toy: Path):
    command = f"{sys.executable} -m nearfar.cli {words} | true"
    paths = os.pathsep.join([str(toy / "site"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": ""}  # buffered, so that the end of the program writes
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
