"""What is typed for options."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.cli.phrases import assigned, parse_phrase, parse_value, split_names


@pytest.mark.parametrize(
    ("texts", "known", "wanted"),
    [
        ([], [], []),
        (["a,b", "c"], ["a", "b", "c"], ["a", "b", "c"]),
        (["a, b"], ["a", "b"], ["a", "b"]),
        (["a,b"], ["a,b", "a", "b"], ["a,b"]),
        (['"a,b",c'], ["a,b", "c"], ["a,b", "c"]),
        (['"a ""b"""'], ['a "b"'], ['a "b"']),
        (["a , b"], ["a ", "b"], ["a ", "b"]),
        (["ä,日本"], ["ä", "日本"], ["ä", "日本"]),
        (["nope"], ["a"], ["nope"]),
    ],
)
def test_split_names(texts: list[str], known: list[str], wanted: list[str]) -> None:
    assert split_names(texts, known) == wanted


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
def test_every_column_can_be_named_alone(names: list[str]) -> None:
    assert split_names(names, names) == names


def test_assigned() -> None:
    names = ["x", "x=1", "y z"]
    assert assigned(["x=a,b", "x=1=c", "y z=d"], names, "--input") == {"x": "a,b", "x=1": "c", "y z": "d"}
    for texts in (["z=1"], ["x"], ["x=1", "x=2", "x=1=3", "x=1=4"]):
        with pytest.raises(click.UsageError, match="--input"):
            assigned(texts, names, "--input")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("adam", ("adam", {})),
        ("adam:wd=0.1", ("adam", {"wd": 0.1})),
        ("sgd:momentum=0.9,lazy_update=false", ("sgd", {"momentum": 0.9, "lazy_update": False})),
        ("milestones:milestones=[1, 2],gamma=0.5", ("milestones", {"milestones": [1, 2], "gamma": 0.5})),
        ("onecycle:anneal=linear", ("onecycle", {"anneal": "linear"})),
        ("x:a=none", ("x", {"a": None})),
    ],
)
def test_parse_phrase(text: str, wanted: object) -> None:
    assert parse_phrase(text, "--optimizer") == wanted


@pytest.mark.parametrize(
    "text", ["", ":", "adam:", "adam:wd", "adam:wd=1,wd=2", "adam:=1", "adam:a b=1", ":a=1"]
)
def test_phrases_that_are_none(text: str) -> None:
    with pytest.raises(click.UsageError, match="--optimizer"):
        parse_phrase(text, "--optimizer")


@given(st.text(max_size=50))
def test_any_text_is_a_phrase_or_an_error(text: str) -> None:
    try:
        name, options = parse_phrase(text, "--loss")
    except click.UsageError:
        return
    assert name
    assert all(key.isidentifier() for key in options)


def test_values_are_literals_never_code() -> None:
    assert parse_value("__import__('os')") == "__import__('os')"
    assert parse_value("(" * 5000) == "(" * 5000
