"""What a step is given: refused by name before anything changes, or taken as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcustom import TrainingStep
from onnxcustom.exceptions import (
    CheckpointError,
    InvalidDataError,
    InvalidParameterError,
    OnnxCustomError,
    UnknownNameError,
)
from onnxcustom.optim import SGD, Adam
from onnxcustom.runtime import to_ortvalue

pytest.importorskip("onnxruntime")

NORM = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] a = {1, 0, 2, 1}, float[2] s = {1, 2},
  float[2] b = {0, 1}, float[2] m = {0, 1}, float[2] v = {1, 2}> {
    h = MatMul(x, a)  y = BatchNormalization(h, s, b, m, v) }"""
X = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)


def model(text: str = NORM) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def step_of(**options: Any) -> TrainingStep:
    return TrainingStep(model(), **options)


def same(one: Any, other: Any) -> None:
    for found, wanted in zip(one, other, strict=True):
        assert found.keys() == wanted.keys()
        for key in wanted:
            np.testing.assert_equal(found[key], wanted[key])


BAD: dict[str, tuple[Callable[[TrainingStep], Any], Any, str]] = {
    "take_over(None)": (lambda s: s.take_over(None), InvalidDataError, "takes a TrainingStep, not None"),  # type: ignore[arg-type]
    "no tensors": (lambda s: s.load_state_dict(None, None), CheckpointError, "must be arrays by name"),  # type: ignore[arg-type]
    "no state": (lambda s: s.load_state_dict(s.state_dict()[0], None), CheckpointError, "not None"),  # type: ignore[arg-type]
    "no batch": (lambda s: s.run_batch([]), InvalidDataError, r"2 values, \['x', 'y_expected'\]"),
    "half a batch": (lambda s: s.run_batch([X]), InvalidDataError, "1 were given"),
    "one row for six": (
        lambda s: s.run_batch([to_ortvalue(X), to_ortvalue(X[:1])]),
        InvalidDataError,
        "'x' has 6, 'y' has 1",
    ),
    "iteration": (
        lambda s: setattr(s, "iteration", "a"),
        InvalidParameterError,
        "iteration must be an integer",
    ),
    "iteration -1": (lambda s: setattr(s, "iteration", -1), ValueError, r"iteration must be in \[0"),
    "variance": (
        lambda s: s.set_statistics({"v": np.float32([1, -1])}),
        InvalidDataError,
        "variance 'v' has negative",
    ),
    "shape": (lambda s: s.set_statistics({"m": np.zeros(3, np.float32)}), InvalidDataError, "tensor 'm'|'m'"),
    "unknown": (lambda s: s.set_statistics({"q": np.zeros(2, np.float32)}), UnknownNameError, "'q'"),
    "weights None": (lambda s: s.set_weights(None), InvalidDataError, "weights must be in a dict"),  # type: ignore[arg-type]
    "weights list": (lambda s: s.start_from([X]), InvalidDataError, "weights must be in a dict"),  # type: ignore[arg-type]
    "weights ragged": (lambda s: s.set_weights({"a": [[1], [1, 2]]}), InvalidDataError, "'a' is no array"),  # type: ignore[dict-item]
    "state 3": (lambda s: s.set_state({"a": 3}), InvalidDataError, "weight 'a' must be in a dict"),  # type: ignore[dict-item]
    "state None": (lambda s: s.set_state(None), InvalidDataError, "states must be in a dict"),  # type: ignore[arg-type]
    "statistics": (lambda s: s.set_statistics(X), InvalidDataError, "statistics must be in a dict"),  # type: ignore[arg-type]
    "batch None": (lambda s: s.run_batch(None), InvalidDataError, "list of OrtValues, not None"),  # type: ignore[arg-type]
    "arrays": (lambda s: s.run_batch([X, X]), InvalidDataError, "holds a ndarray.*takes arrays"),
    "batch dict": (lambda s: s.run_batch({"x": X, "y": X}), InvalidDataError, "list of OrtValues"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("mode", ["frozen", "update"])
@pytest.mark.parametrize("name", BAD)
def test_refused_and_nothing_is_changed(name: str, mode: str) -> None:
    call, error, message = BAD[name]
    step = step_of(optimizer="adam", batch_norm=mode)
    step.run(X, X)
    before = step.state_dict()
    with pytest.raises(error, match=message) as info:
        call(step)
    assert not name.startswith(("shape", "variance")) or "Weight" not in str(info.value)
    same(step.state_dict(), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": "2"}, InvalidParameterError, "threads must be an integer"),
        ({"threads": 1.5}, InvalidParameterError, "threads must be an integer"),
        ({"threads": 0}, InvalidParameterError, "threads must be in"),
        ({"seed": "a"}, InvalidParameterError, "seed must be an integer"),
        ({"seed": 2**70}, InvalidParameterError, "seed must be in"),
        ({"loss_weights": 2.0}, InvalidParameterError, "loss_weights must be factors by the name"),
        ({"loss_weights": [("y", 2.0)]}, InvalidParameterError, "loss_weights must be factors by the name"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        step_of(**options)


@pytest.mark.parametrize("part", ["weights/a", "state/a/m", "statistics/v"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_checkpoints_of_numbers_that_are_none(part: str, value: float) -> None:
    step = step_of(optimizer="adam", batch_norm="update")
    step.run(X, X)
    tensors, state = step.state_dict()
    tensors[part] = np.full_like(tensors[part], value)
    before = step.state_dict()
    if value == -1 and part != "statistics/v":
        step.load_state_dict(tensors, state)
        return
    with pytest.raises(CheckpointError, match="negative" if value == -1 else f"'{part}' holds NaN"):
        step.load_state_dict(tensors, state)
    same(step.state_dict(), before)


@pytest.mark.parametrize("change", ["set_statistics", "start_from", "take_over"])
def test_a_state_of_before_other_constants_goes_on(change: str) -> None:
    """The model has its own again, and training goes on to the bits of a step that never had others."""
    step, alone = step_of(freeze=["a"]), step_of(freeze=["a"])
    for _ in range(2):
        alone.run(X, X)
        step.run(X, X)
    saved = step.state_dict()
    if change == "set_statistics":
        step.set_statistics({"m": np.float32([5, 5])})
    elif change == "start_from":
        step.start_from({"a": np.ones((2, 2), np.float32), "s": np.float32([3, 3])})
    else:
        other = step_of(batch_norm="update")
        other.run(X, X)
        step.take_over(other)
    between = step.state_dict()
    assert any(name.startswith("constants/") for name in between[0])
    step.run(X, X)
    step.load_state_dict(*saved)
    same(step.state_dict(), saved)
    assert step.run(X, X) == alone.run(X, X)
    same(step.state_dict(), alone.state_dict())
    step.load_state_dict(*between)
    same(step.state_dict(), between)
    again = step_of(freeze=["a"])
    again.load_state_dict(*between)
    assert again.run(X, X) == step.run(X, X)


def test_a_step_of_another_model_is_no_step_to_go_on_from() -> None:
    line = """<ir_version: 8, opset_import: ["": 17]> line (float[N, 2] x) => (float[N, 2] y)
    <float[2, 2] w = {1, 0, 0, 1}, float[2] b = {1, 1}> { z = MatMul(x, w)  y = Add(z, b) }"""
    other, step = TrainingStep(model(line)), step_of(optimizer="adam")
    before = step.state_dict()
    with pytest.raises(UnknownNameError, match=r"changes \['w'\].*same model"):
        step.take_over(other)
    other = TrainingStep(model(NORM.replace("2, 2] a = {1, 0, 2, 1}", "2, 2] a = {1, 0, 2, 1}")))
    wide = NORM.replace("[N, 2] y", "[N, 3] y").replace("[2, 2] a = {1, 0, 2, 1}", "[2, 3] a = {1,0,2,1,1,1}")
    for name in "sbmv":
        wide = wide.replace(f"float[2] {name} = {{", f"float[3] {name} = {{1, ")
    with pytest.raises(OnnxCustomError, match="'a'"):
        step.take_over(TrainingStep(model(wide), optimizer="adam"))
    same(step.state_dict(), before)


@pytest.mark.parametrize("rule", [SGD(0.1, accumulate=4), SGD(0.1, accumulate=3, frozen=["a"]), Adam(0.1)])
def test_batches_that_are_left_out_are_said(rule: Any) -> None:
    other, step = step_of(optimizer=SGD(0.1, accumulate=3)), step_of(optimizer=rule)
    other.run(X, X)
    with pytest.warns(UserWarning, match=r"gradients of 1 batches.*apply_accumulated"):
        step.take_over(other)
    assert step.pending == 0
    other.apply_accumulated()
    step.take_over(other)  # warnings are errors
    np.testing.assert_array_equal(step.weights()["s"], other.weights()["s"])


def test_batches_go_on_where_only_the_loss_is_another() -> None:
    other, step = (step_of(loss=loss, optimizer=SGD(0.1, accumulate=2)) for loss in ("absolute", "square"))
    other.run(X, X)
    step.take_over(other)
    assert step.pending == 1
