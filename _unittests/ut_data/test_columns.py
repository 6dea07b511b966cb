from __future__ import annotations

import numpy as np
import pytest

from onnxcustom.data.columns import Plan
from onnxcustom.data.frames import UnfitError
from onnxcustom.exceptions import InvalidDataError

TABLE = {
    "a": [1, 2],
    "b": [0.5, 1.5],
    "lists": [[1, 2, 3], [4, 5, 6]],
    "y": ["no", "yes"],
    "z": [3, 4],
    "w": [0.1, 0.2],
    "pictures": [[[1], [2]], [[3], [4]]],
}


def block(names=None, **words):
    names = names or list(TABLE)
    return Plan(**words).select(names, "the table").assemble(TABLE.__getitem__)


def test_all_other_columns_are_features():
    made = block(["a", "b", "y", "w"], target="y", sample_weight="w")
    np.testing.assert_array_equal(made.X, [[1, 0.5], [2, 1.5]])
    assert made.y.tolist() == ["no", "yes"]
    assert made.sample_weight.tolist() == [0.1, 0.2]


def test_without_a_target():
    made = block(["a", "b"])
    assert made.X.shape == (2, 2)
    assert made.y is None
    assert made.sample_weight is None


def test_the_index_of_pandas_is_no_feature():
    selection = Plan().select(["a", "__index_level_0__"], "the table")
    assert selection.names == ["a"]


def test_features_in_the_order_they_are_named():
    np.testing.assert_array_equal(block(columns=["b", "a"]).X, [[0.5, 1], [1.5, 2]])
    assert block(columns=["lists", "a"]).X.shape == (2, 4)
    assert block(columns="lists").X.shape == (2, 3)
    assert block(columns="a").X.shape == (2, 1)
    assert block(columns=["pictures"]).X.shape == (2, 2, 1)


def test_several_targets_stand_side_by_side():
    np.testing.assert_array_equal(block(columns=["a"], target=["z", "b"]).y, [[3, 0.5], [4, 1.5]])
    assert block(columns=["a"], target="lists").y.shape == (2, 3)
    made = block(columns=["a"], target={"out": "z", "other": ["b"]})
    assert made.y["out"].shape == (2,)
    assert made.y["other"].shape == (2, 1)


def test_inputs_of_the_model():
    made = block(inputs={"x": ["a", "b"], "tokens": "lists", "one": "z"}, target="y")
    assert {name: array.shape for name, array in made.X.items()} == {
        "x": (2, 2),
        "tokens": (2, 3),
        "one": (2,),
    }


def test_only_what_is_needed_is_read():
    selection = Plan(target="y", columns=["b", "a"]).select(list(TABLE), "the table")
    assert selection.names == ["b", "a", "y"]
    assert selection.numeric == {"a", "b"}
    assert Plan(target="y").targets.select(list(TABLE), "the table").names == ["y"]
    assert Plan(target=["z", "b"]).select(list(TABLE), "t").numeric >= {"z", "b"}


def test_description():
    assert Plan("y").describe() == {"X": "all other columns", "y": "y"}
    assert Plan("y", ["a", "b"], "w").describe() == {"X": "a, b", "y": "y", "sample_weight": "w"}
    assert not Plan().said
    assert Plan(sample_weight="w").said


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (["a"], {"target": "y"}, r"the table has no column 'y'; it has 'a'"),
        (["a"], {"columns": ["b", "c"]}, r"has no columns 'b', 'c'"),
        (["y"], {"target": "y"}, "none is left for the features"),
        (["a", "a", "y"], {"target": "y"}, "several columns called 'a'"),
        ([f"c{i}" for i in range(99)], {"target": "y"}, r"'c19' and 79 more"),
    ],
)
def test_columns_that_are_not_there(names, words, message):
    with pytest.raises(InvalidDataError, match=message):
        Plan(**words).select(names, "the table")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"columns": ["a"], "inputs": {"x": "a"}}, ValueError, "not both"),
        ({"columns": []}, ValueError, "columns names no column"),
        ({"columns": ["a", "a"]}, ValueError, "names a column twice"),
        ({"columns": ["a", "y"], "target": "y"}, ValueError, r"\['y'\] cannot be features and"),
        ({"columns": 3}, TypeError, "columns must be names of columns, not 3"),
        ({"target": [1]}, TypeError, "target must be names"),
        ({"target": {"out": 1}}, TypeError, r"target\['out'\] must be names"),
        ({"inputs": ["a"]}, TypeError, "inputs must be a dict"),
        ({"sample_weight": ["w"]}, TypeError, "sample_weight must name a column"),
    ],
)
def test_plans_that_are_none(words, error, message):
    with pytest.raises(error, match=message):
        Plan(**words)


def test_text_is_no_feature():
    with pytest.raises(
        UnfitError, match="column 'y', row 0: 'no' is no number: encode the column, or leave it out"
    ):
        block(columns=["a", "y"])
    with pytest.raises(UnfitError, match="column 'y', row 0"):
        block(inputs={"x": "y"})
