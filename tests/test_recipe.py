from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from nearfar import recipe as recipes
from nearfar.config import ContrastConfig, DataConfig, HeadConfig, ImageViewConfig, MethodConfig, TrainerConfig
from nearfar.recipe import Recipe, fingerprint, read, save, to_dict, update


@dataclass(frozen=True, kw_only=True)
class Inner:
    flag: bool = False
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Outer(MethodConfig):
    inner: Inner = field(default_factory=Inner)
    word: str = "a"
    choice: Literal["x", "y"] = "x"
    count: int = 1
    rate: float = 0.5
    maybe: int | None = None


def base() -> Recipe:
    return Recipe(name="toy/alpha", method=ContrastConfig(temperature=0.3), trainer=TrainerConfig(epochs=7))


def changed(**parts: dict) -> Recipe:
    return update(base(), parts)


def test_file_round_trip(tmp_path: Path):
    wanted = Recipe(
        name="toy/alpha",
        method=ContrastConfig(head=HeadConfig(kind="linear", dim=7), key_encoder="ema", loss="info_nce", queue=64),
        data=DataConfig(root="träume/ö", channels=3),
        views=ImageViewConfig(crop_scale=(0.08, 1.0), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)),
        trainer=TrainerConfig(epochs=3, trackers=("tensorboard",)),
    )
    save(wanted, tmp_path / "recipe.json")
    name, values = read(tmp_path / "recipe.json")
    assert name == "toy/alpha"
    assert update(base(), values) == wanted


def test_file_holds_schema_name_and_values_only():
    data = to_dict(base())
    assert set(data) == {"schema", "recipe", "values"}
    assert data["schema"] == recipes.SCHEMA
    assert "name" not in data["values"]
    assert json.loads(json.dumps(data)) == data


def test_update_changes_what_is_named_and_nothing_else():
    before = base()
    after = update(before, {"trainer": {"epochs": 3}, "method": {"head": {"dim": 9}}})
    assert after.trainer == dataclasses.replace(before.trainer, epochs=3)
    assert after.method.head == HeadConfig(dim=9)  # type: ignore[attr-defined]
    assert (after.data, after.views, after.optimiser, after.name) == (
        before.data,
        before.views,
        before.optimiser,
        before.name,
    )
    assert before == base()
    assert update(before, {}) == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainr": {}}, r"^trainr: .*unknown key; did you mean 'trainer'\?"),
        ({"trainer": {"epoch": 3}}, r"^trainer\.epoch: .*did you mean 'epochs'\?"),
        ({"method": {"head": {"dims": 3}}}, r"^method\.head\.dims: .*did you mean 'dim'\?"),
        ({"method": {"zzzz": 3}}, r"^method\.zzzz: .*received an unknown key$"),
        ({"trainer": {"epochs": 0}}, r"^trainer\.epochs: expected 1 or more"),
        (
            {"trainer": {"precision": "fp8"}},
            r"^trainer\.precision: expected one of 'no', 'bf16', 'fp16', received 'fp8'",
        ),
        ({"views": {"crop_scale": [0.1]}}, r"^views\.crop_scale: expected 2 values"),
    ],
)
def test_update_refuses_values_by_name(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        update(base(), values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainer": 3}, r"^trainer: expected an object of fields, received 3"),
        ({"trainer": {"epochs": "3"}}, r"^trainer\.epochs: expected int, received '3'"),
        ({"trainer": {"epochs": 3.0}}, r"^trainer\.epochs: expected int, received 3\.0"),
        ({"trainer": {"epochs": True}}, r"^trainer\.epochs: expected int, received True"),
        ({"trainer": {"epochs": None}}, r"^trainer\.epochs: expected int, received None"),
        ({"trainer": {"compile": 1}}, r"^trainer\.compile: expected bool, received 1"),
        ({"trainer": {"output": 1}}, r"^trainer\.output: expected str, received 1"),
        ({"optimiser": {"lr": "x"}}, r"^optimiser\.lr: expected float, received 'x'"),
        ({"optimiser": {"lr": True}}, r"^optimiser\.lr: expected float, received True"),
        ({"views": {"crop_scale": "01"}}, r"^views\.crop_scale: expected a list, received '01'"),
        ({"views": {"crop_scale": [0.1, "1"]}}, r"^views\.crop_scale: expected float, received '1'"),
        ({"trainer": {"trackers": [1]}}, r"^trainer\.trackers: expected str, received 1"),
    ],
)
def test_update_refuses_types_by_name(values: dict, message: str):
    with pytest.raises(TypeError, match=message):
        update(base(), values)


def test_update_knows_nested_optional_and_variable_values():
    values = {"inner": {"flag": True, "sizes": [3], "pair": [1, 2]}, "choice": "y", "rate": 2, "maybe": 4}
    made = update(Outer(), values)
    assert made == Outer(inner=Inner(flag=True, sizes=(3,), pair=(1.0, 2.0)), choice="y", rate=2.0, maybe=4)
    assert isinstance(made.rate, float)
    assert isinstance(made.inner.pair[0], float)
    assert update(made, {"maybe": None}).maybe is None
    assert update(made, {"inner": {"sizes": []}}).inner.sizes == ()
    with pytest.raises(TypeError, match="maybe: expected int, received 'x'"):
        update(Outer(), {"maybe": "x"})


def test_checks_that_span_fields_see_all_changes_at_once():
    made = changed(method={"queue": 64, "key_encoder": "ema", "loss": "info_nce"})
    assert made.method.queue == 64  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"method\.queue"):
        changed(method={"queue": 64})


@pytest.mark.parametrize(
    "parts",
    [
        {"trainer": {"seed": 1}},
        {"trainer": {"epochs": 8}},
        {"trainer": {"precision": "bf16"}},
        {"method": {"temperature": 0.31}},
        {"method": {"head": {"dim": 64}}},
        {"data": {"validation": 0.2}},
        {"views": {"hue": 0.11}},
        {"optimiser": {"betas": [0.9, 0.98]}},
    ],
)
def test_fingerprint_follows_what_decides_results(parts: dict):
    assert fingerprint(changed(**parts)) != fingerprint(base())


@pytest.mark.parametrize(
    "parts",
    [
        {
            "trainer": {
                "output": "elsewhere",
                "progress": False,
                "keep": 5,
                "trackers": ["wandb"],
                "checkpoint_every": 7,
            }
        },
        {"data": {"workers": 4, "memory_gb": 1.0, "cache": "there"}},
    ],
)
def test_fingerprint_ignores_where_and_how_a_run_is_written(parts: dict):
    assert fingerprint(changed(**parts)) == fingerprint(base())


def test_fingerprint_names_the_recipe_and_repeats():
    assert fingerprint(base()) == fingerprint(base())
    assert len(fingerprint(base())) == 16
    assert fingerprint(dataclasses.replace(base(), name="toy/beta")) != fingerprint(base())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON, received text that does not parse"),
        ("", "expected JSON"),
        ("[]", "expected the keys 'schema', 'recipe' and 'values'"),
        ('{"schema": 1, "recipe": 3, "values": {}}', "expected the keys"),
        ('{"schema": 1, "recipe": "toy/alpha"}', "expected the keys"),
        ('{"schema": 99, "recipe": "toy/alpha", "values": {}}', "expected schema 1, received 99"),
        ('{"recipe": "toy/alpha", "values": {}}', "expected schema 1, received None"),
    ],
)
def test_read_refuses_files_by_name(tmp_path: Path, text: str, message: str):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "broken.json" in str(caught.value)


def test_read_refuses_bytes_that_are_no_text(tmp_path: Path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="expected JSON"):
        read(tmp_path / "x.json")


def test_read_names_a_file_that_is_missing(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        read(tmp_path / "none.json")
