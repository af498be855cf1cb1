"""Budgets as text."""

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_adv.attacks import PGD, Radius


@settings(max_examples=50)
@given(value=st.floats(-1e6, 1e6))
def test_numbers_are_kept(value):
    assert Radius(value) == value
    assert Radius(repr(value)) == value
    assert repr(Radius(value)) == repr(value)
    assert Radius(f"{value!r}/255") == value / 255


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (" 16 / 255 ", 16 / 255), ("0.03", 0.03), ("1e-3", 1e-3), ("0", 0), ("1", 1)],
)
def test_text(text, value):
    radius = Radius(text)
    assert radius == value
    assert isinstance(radius, float)
    assert PGD(eps=radius).eps == value


@pytest.mark.parametrize("bad", ["", "8/", "/255", "8/0", "8/255/3", "a/b", "eight", "nan", "inf", "1/inf/", None, [8]])
def test_anything_else_is_refused(bad):
    with pytest.raises(ValueError, match="a radius must be"):
        Radius(bad)


def test_copies():
    radius = Radius("8/255")
    for other in (copy.deepcopy(radius), copy.copy(radius), pickle.loads(pickle.dumps(radius))):
        assert other == radius
        assert type(other) is type(radius)
    assert copy.deepcopy(PGD(eps=radius)) == PGD(eps=8 / 255)
