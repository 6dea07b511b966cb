"""Cards of models: what is written is read, what is anything else is as good as none."""

from __future__ import annotations

import dataclasses
import json

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.cli.card import KEY, Card, read_card, write_card

CARD = Card("classification", {"x": ["a", "b"]}, ["y"], "p", ["no", "yes"], "softmax")
CLASSES = [None, ["a", "b"], [0, 1, 7], [False, True], [0.5, 1.5]]


def with_text(text: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, {"mine": "kept", KEY: text})
    return model


@pytest.mark.parametrize("classes", CLASSES)
def test_there_and_back(classes: list | None) -> None:
    card = Card("regression", {"ä, b": ["é"]}, ["y", "z"], "out", classes, "scores", True)
    model = with_text("old")
    write_card(model, card)
    write_card(model, card)
    assert read_card(onnx.load_from_string(model.SerializeToString())) == card
    assert sorted(p.key for p in model.metadata_props) == ["mine", KEY]
    assert [p.value for p in model.metadata_props if p.key == "mine"] == ["kept"]


def test_axes() -> None:
    model = onnx.ModelProto()
    card = Card(*dataclasses.astuple(CARD)[:7], batch_axis={"x": 1, "r": None}, class_axis=2)
    write_card(model, card)
    assert read_card(model) == card
    # Without any, programs of before read it.
    write_card(model, CARD)
    assert "axis" not in model.metadata_props[0].value


def test_no_card() -> None:
    assert read_card(onnx.ModelProto()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"task": "cooking"},
        {"columns": ["a"]},
        {"columns": {"x": "ab"}},
        {"columns": {"x": [1]}},
        {"target": "y"},
        {"output": None},
        {"classes": "ab"},
        {"classes": ["a", 1]},
        {"classes": ["a", "a"]},
        {"classes": [["a"], ["b"]]},
        {"classes": [float("nan"), 1.0]},
        {"link": "cosine"},
        {"link": ["softmax"]},
        {"multilabel": 1},
        {"more": 1},
        {"batch_axis": [1]},
        {"batch_axis": {"x": "1"}},
        {"batch_axis": {"x": True}},
        {"class_axis": 1.0},
    ],
    ids=str,
)
def test_cards_that_are_none(change: dict) -> None:
    model = onnx.ModelProto()
    write_card(model, CARD)
    document = {**json.loads(model.metadata_props[0].value), **change}
    assert read_card(with_text(json.dumps(document))) is None


@given(
    st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps)
)
def test_any_text(text: str) -> None:
    if "\ud800" <= max(text, default="") <= "\udfff":
        return
    try:
        model = with_text(text)
    except UnicodeEncodeError:
        return
    assert read_card(model) is None


def test_deep_and_long_ones() -> None:
    assert read_card(with_text("[" * 100_000)) is None
    assert read_card(with_text(" " * (1 << 23))) is None
