"""Batches of arrays like the last one: looked at in less time, trained and refused as ever."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxcustom import TrainingStep
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.runtime import to_ortvalue

_REGRESSION = "line (float[N, 3] x) => (float[N, 1] p) <float[3, 1] w = {1, 0, -1}> { p = MatMul(x, w) }"
_CLASSES = (
    "net (float[N, 3] x) => (float[N, 3] p) <float[3, 3] w = {1, 0, 0, 0, 1, 0, 0, 0, 1}> "
    "{ p = MatMul(x, w) }"
)
_RELU = "net (float[N, 3] x) => (float[N, 1] p) <float[3, 1] w = {1, 0, 1}> { r = Relu(x) p = MatMul(r, w) }"
_TWO = (
    "net (float[N, 3] x, float[N, 3] z) => (float[N, 1] p) <float[3, 1] w = {1, 0, 1}> "
    "{ s = Add(x, z) p = MatMul(s, w) }"
)


def _step(text: str, loss: str = "squared_error", rule: Any = "sgd") -> TrainingStep:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> ' + text)
    return TrainingStep(model, loss, rule, learning_rate=0.01, threads=1)


def _data(rows: int = 4, labels: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 3)).astype(np.float32)
    return X, rng.integers(0, 3, rows) if labels else rng.normal(size=(rows, 1)).astype(np.float32)


@pytest.mark.parametrize("rows", [4, 4000])  # copied, and borrowed
@pytest.mark.parametrize(
    ("text", "loss"), [(_REGRESSION, "squared_error"), (_CLASSES, "cross_entropy"), (_CLASSES, "focal")]
)
def test_steps_are_those_of_values(text: str, loss: str, rows: int) -> None:
    ours, other = _step(text, loss), _step(text, loss)
    X, y = _data(rows, loss != "squared_error")
    for i in range(10):  # in the same memory, some batches shorter
        X[:], y[:] = _data(rows, loss != "squared_error", seed=i)
        n = rows - 1 if i in (4, 5) else rows
        wanted = other.run_batch([to_ortvalue(X[:n].copy()), to_ortvalue(y[:n].copy())])
        assert ours.run(X[:n], y[:n]) == wanted
    np.testing.assert_array_equal(ours.weights()["w"], other.weights()["w"])


def test_other_layouts_dtypes_and_columns() -> None:
    ours, other = _step(_REGRESSION), _step(_REGRESSION)
    X, y = _data()
    for given, expected in [
        (X, y),
        (X[::-1], y[::-1]),
        (np.asfortranarray(X), y.ravel()),
        (X.astype(np.float64), y.astype(np.float64)),
        (X, y.ravel()),
        (X, y.ravel()),
        (X.tolist(), y.tolist()),
        (X.astype(">f4"), y),
    ]:
        values = [np.ascontiguousarray(a, np.float32) for a in (given, np.reshape(expected, (-1, 1)))]
        assert ours.run(given, expected) == other.run_batch([to_ortvalue(v) for v in values])


def test_several_inputs() -> None:
    ours, other = _step(_TWO), _step(_TWO)
    for i in range(10):
        (X, y), (Z, _) = _data(seed=i), _data(seed=i + 20)
        pair = {"x": X, "z": Z} if i % 2 else {"z": Z, "x": X}
        assert ours.run(pair, y) == other.run_batch([to_ortvalue(a) for a in (X, Z, y)])


@pytest.mark.parametrize("rows", [4, 4000])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(number: float, rows: int) -> None:
    step = _step(_RELU)  # which lets no NaN through on some processors
    X, y = _data(rows)
    step.run(X, y)
    step.run(X, y)
    before = step.weights()["w"]
    for where in (X, y):
        kept = where[1, 0]
        where[1, 0] = number
        with pytest.raises(InvalidDataError, match=r"NaN|infinity"):
            step.run(X, y)
        where[1, 0] = kept
    np.testing.assert_array_equal(step.weights()["w"], before)
    assert step.iteration == 2


def test_sums_that_overflow_are_no_infinity() -> None:
    ours, other = _step(_REGRESSION), _step(_REGRESSION)
    X, y = _data()
    for last in (1, 3e38):
        X[2:] = [[0, last, 0], [0, last, 0]]  # with a weight of 0
        assert ours.run(X, y) == other.run_batch([to_ortvalue(X), to_ortvalue(y)])
        for step in (ours, other):
            step.set_weights({"w": np.zeros((3, 1), np.float32)})


@pytest.mark.parametrize("label", [-1, 3, 2**40, -(2**63)])
def test_labels_that_are_no_classes_are_refused(label: int) -> None:
    step = _step(_CLASSES, "cross_entropy")
    X, y = _data(labels=True)
    step.run(X, y)
    y[2] = label
    with pytest.raises(InvalidDataError, match="classes"):
        step.run(X, y)
    assert step.iteration == 1


def test_ignored_labels_come_and_go() -> None:
    ours, other = _step(_CLASSES, "cross_entropy"), _step(_CLASSES, "cross_entropy")
    X, y = _data(labels=True)
    for i in range(10):
        labels = y.copy()
        labels[: i % 3] = -100
        assert ours.run(X, labels) == other.run_batch([to_ortvalue(X), to_ortvalue(labels)])


def test_batches_that_do_not_fit_are_refused_as_ever() -> None:
    step = _step(_REGRESSION)
    X, y = _data()
    step.run(X, y)
    with pytest.raises(InvalidDataError, match="3 columns"):
        step.run(X[:, :2], y)
    with pytest.raises(InvalidDataError, match="inconsistent"):
        step.run(X, y[:2])
    with pytest.raises(InvalidDataError, match="masked"):
        step.run(np.ma.masked_array(X, X > 0), y)


def test_weights_in_between() -> None:
    ours, other = _step(_REGRESSION), _step(_REGRESSION)
    X, y = _data()
    w = np.array([1, 2, 0, 1], np.float32)
    for i in range(10):
        more = (w,) if i % 3 == 2 else ()
        assert ours.run(X, y, *more) == other.run_batch([to_ortvalue(a) for a in (X, y, *more)])


@pytest.mark.parametrize("rows", [4, 4000])
def test_weights_are_looked_at_in_every_batch(rows: int) -> None:
    ours, other = _step(_REGRESSION), _step(_REGRESSION)
    X, y = _data(rows)
    w = np.ones(rows, np.float32)
    for i in range(10):  # the same arrays, with new numbers
        X[:], y[:] = _data(rows, seed=i)
        w[:] = np.arange(rows) % (i + 2)
        assert ours.run(X, y, w) == other.run_batch([to_ortvalue(a.copy()) for a in (X, y, w)])
        assert ours.run(X, y) == other.run_batch([to_ortvalue(a.copy()) for a in (X, y)])
    before = ours.weights()["w"]
    for number in (np.nan, np.inf, -1):
        w[1] = number
        with pytest.raises(InvalidDataError, match="sample_weight"):
            ours.run(X, y, w)
    np.testing.assert_array_equal(ours.weights()["w"], before)


@pytest.mark.parametrize("rows", [4, 9000])
def test_places_that_a_table_does_not_have_are_refused(rows: int) -> None:
    text = "net (int64[N] x) => (float[N, 1] p) <float[3, 1] w = {1, 0, 1}> { p = Gather <axis = 0> (w, x) }"
    ours, other = _step(text), _step(text)
    X, y = np.arange(rows) % 3, np.ones((rows, 1), np.float32)
    for i in range(5):
        X[:] = (np.arange(rows) + i) % 3 - (i == 3)  # -1 is the last one
        assert ours.run(X, y) == other.run_batch([to_ortvalue(X.copy()), to_ortvalue(y)])
    X[2] = 3
    with pytest.raises(InvalidDataError, match="holds 3 in row 2"):
        ours.run(X, y)
    assert ours.iteration == 5


@pytest.mark.parametrize("rows", [4, 4000])
def test_what_a_caller_overwrites_after_a_batch_counts_no_more(rows: int) -> None:
    ours, other = (_step(_REGRESSION, "squared_error", "sgd:accumulate=3") for _ in range(2))
    X, y = _data(rows)
    for i in range(4):
        X[:], y[:] = _data(rows, seed=i)
        assert ours.run(X, y) == other.run(X.copy(), y.copy())
        X[:], y[:] = np.nan, np.nan
    assert ours.apply_accumulated() == other.apply_accumulated()
    np.testing.assert_array_equal(ours.weights()["w"], other.weights()["w"])


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_other_kinds_of_data_after_arrays(loss: str) -> None:
    text = _CLASSES if loss == "cross_entropy" else _REGRESSION
    ours, other = _step(text, loss), _step(text, loss)
    X, y = _data(labels=loss == "cross_entropy")
    read_only = X.copy()
    read_only.flags.writeable = False
    others = [X.tolist(), X.astype(np.float16), np.repeat(X, 2, axis=1)[:, ::2], read_only, {"x": X}]
    for given in others:
        wanted = np.ascontiguousarray(given["x"] if isinstance(given, dict) else given, np.float32)
        for data in (X, given):
            values = [to_ortvalue(X if data is X else wanted), to_ortvalue(y)]
            assert ours.run(data, y) == other.run_batch(values)
