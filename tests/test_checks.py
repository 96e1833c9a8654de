from __future__ import annotations

import math

import pytest

from nearfar.checks import expect, expect_choice, expect_positive


def test_expect_names_argument_expected_and_received():
    with pytest.raises(ValueError, match=r"^tau: expected a number > 0, received -1$"):
        expect(False, "tau", "a number > 0", -1)
    with pytest.raises(TypeError, match="x: expected a tensor"):
        expect(False, "x", "a tensor", [], TypeError)
    expect(True, "tau", "anything", None)


def test_expect_choice_names_the_nearest():
    expect_choice("loss", "dcl", ["dcl", "clip"])
    with pytest.raises(
        ValueError, match=r"loss: expected one of 'nt_xent', 'clip', received 'ntxent'; did you mean 'nt_xent'\?"
    ):
        expect_choice("loss", "ntxent", ["nt_xent", "clip"])
    with pytest.raises(ValueError, match=r"received 'zzz'$"):
        expect_choice("loss", "zzz", ["nt_xent", "clip"])


def test_expect_choice_reads_its_choices_once():
    with pytest.raises(ValueError, match="'a', 'b'"):
        expect_choice("x", "q", iter(["a", "b"]))


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_expect_positive_refuses(value: float):
    with pytest.raises(ValueError, match="lr: expected a finite number > 0"):
        expect_positive("lr", value)


def test_expect_positive_accepts():
    expect_positive("lr", 1e-12)
