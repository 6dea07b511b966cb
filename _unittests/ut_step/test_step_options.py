"""Options that update rules share, inside a training step: against NumPy and against plain steps."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcustom import TrainingStep, optim
from onnxcustom.exceptions import (
    CallOrderError,
    ConvergenceError,
    InvalidDataError,
    NoTrainableWeightError,
    UnknownNameError,
)
from onnxcustom.graph import weight_roles
from onnxcustom.graph.preparation.prepare import prepare

pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=(12, 1))


def linear(dtype: Any = np.float64) -> onnx.ModelProto:
    tensors = {"w": np.array([[1], [-2], [3]], dtype), "b": np.array([0.5], dtype)}
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["z"]), onnx.helper.make_node("Add", ["z", "b"], ["y"])],
        "line",
        [onnx.helper.make_tensor_value_info("x", kind, ["N", 3])],
        [onnx.helper.make_tensor_value_info("y", kind, ["N", 1])],
        [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def gradients(weights: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Gradient of the mean of half the squared errors."""
    error = (x @ weights["w"] + weights["b"] - y) / len(x)
    return {"w": x.T @ error, "b": error.sum(axis=0)}


def close(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], **tolerance: Any) -> None:
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, **{"rtol": 1e-10, "atol": 1e-12, **tolerance})


# -- which weight, and how much -----------------------------------------------------------------


def test_decay_goes_to_matrices_and_not_to_biases():
    step = TrainingStep(linear(), optimizer=optim.SGD(0.1, wd=0.5))
    w = step.weights()
    step.run(X, Y)
    g = gradients(w, X, Y)
    close(step.weights(), {"w": w["w"] - 0.1 * (g["w"] + 0.5 * w["w"]), "b": w["b"] - 0.1 * g["b"]})


@pytest.mark.parametrize("key", ["b", "*", 1])
def test_a_multiplier_by_name_pattern_or_index_overrules_the_role(key):
    step = TrainingStep(linear(), optimizer=optim.SGD(0.1, wd=0.5, wd_mult={key: 2.0}, lr_mult={key: 3.0}))
    w = step.weights()
    step.run(X, Y)
    g = gradients(w, X, Y)
    rate, wd = (0.3, 1.0) if key == "*" else (0.1, 0.5)
    close(
        step.weights(),
        {"w": w["w"] - rate * (g["w"] + wd * w["w"]), "b": w["b"] - 0.3 * (g["b"] + 1.0 * w["b"])},
    )


def test_roles_of_weights():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2] x, int64[N] i) => (float[N, 2] y)
        <float[2, 2] w = {1, 0, 0, 1}, float[2] b = {1, 1}, float[2] s = {1, 2}, float[2] t = {1, 2},
         float[2, 2] e = {1, 2, 3, 4}, float[2, 2] tied = {1, 2, 3, 4}> {
            e1 = Gather (e, i)
            z = Gemm <transB = 1> (x, w, b)
            n = LayerNormalization (z, s, t)
            p = MatMul (n, tied)  q = Add (p, tied)
            y = Add (q, e1)
        }"""
    )
    assert weight_roles(prepare(model), ["w", "b", "s", "t", "e", "tied"]) == {
        "w": "weight", "b": "bias", "s": "normalization", "t": "bias", "e": "unknown", "tied": "weight",
    }  # fmt: skip


def test_frozen_weights_stay_and_cost_nothing():
    step = TrainingStep(linear(), optimizer=optim.Adam(0.1, frozen=["w*"]))
    assert list(step.weights()) == list(step.state()) == ["b"]
    step.run(X, Y)
    assert not any("w_" in i.name for i in step.model.graph.input)
    kept = {i.name: i for i in step.trained_model().graph.initializer}["w"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(kept), [[1], [-2], [3]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frozen": ["v"]}, UnknownNameError, r"frozen names 'v', .*\['w', 'b'\]"),
        ({"lr_mult": {"bias*": 2}}, UnknownNameError, r"lr_mult names 'bias\*'"),
        ({"wd_mult": {2: 2}}, UnknownNameError, "wd_mult names 2"),
        ({"frozen": ["*"]}, NoTrainableWeightError, "Every weight is frozen"),
    ],
)
def test_names_the_model_lacks(options, error, message):
    with pytest.raises(error, match=message):
        TrainingStep(linear(), optimizer=optim.SGD(**options))


# -- regularization -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["SGD", "Adam", "AdaGrad", "Ftrl"])
def test_l1_stops_at_zero(rule):
    step = TrainingStep(linear(), optimizer=optim.create(rule, lr=0.01, l1=1e4))
    step.run(X, Y)
    np.testing.assert_array_equal(step.weights()["w"], 0)
    assert step.weights()["b"][0] != 0


def test_l1_moves_towards_zero_by_rate_times_l1():
    step = TrainingStep(linear(), optimizer=optim.SGD(0.1, l1=0.7))
    w = step.weights()
    step.run(X, Y)
    g = gradients(w, X, Y)
    new = w["w"] - 0.1 * g["w"]
    close(step.weights(), {"w": np.sign(new) * np.maximum(np.abs(new) - 0.07, 0), "b": w["b"] - 0.1 * g["b"]})


@pytest.mark.parametrize("limit", [1e-3, 0.5, 1e6])
def test_the_norm_of_all_gradients_is_clipped(limit):
    step = TrainingStep(linear(), optimizer=optim.SGD(0.1, clip_global_norm=limit))
    w = step.weights()
    step.run(X, Y)
    g = gradients(w, X, Y)
    norm = np.sqrt(sum((a**2).sum() for a in g.values()))
    factor = min(1.0, limit / norm)
    close(step.weights(), {n: w[n] - 0.1 * factor * g[n] for n in w})


# -- schedules ------------------------------------------------------------------------------------


def test_momentum_and_decay_follow_schedules():
    step = TrainingStep(
        linear(), optimizer=optim.SGD(lambda t: 0.1 / t, momentum=lambda t: 1 - 1 / t, wd=lambda t: 0.1 * t)
    )
    w, m = step.weights(), {"w": 0.0, "b": 0.0}
    for t in range(1, 6):
        g = gradients(w, X, Y)
        g["w"] = g["w"] + 0.1 * t * w["w"]
        m = {n: (1 - 1 / t) * m[n] + 0.1 / t * g[n] for n in w}
        w = {n: w[n] - m[n] for n in w}
        step.run(X, Y)
    close(step.weights(), w)


def test_a_schedule_need_not_know_of_steps_that_are_never_done():
    rates = [0.1, 0.2]
    step = TrainingStep(linear(), optimizer=optim.SGD(lambda t: rates[t - 1]))
    for _ in rates:
        step.run(X, Y)
    before = step.weights()
    with pytest.raises(IndexError):
        step.run(X, Y)
    close(step.weights(), before, rtol=0, atol=0)


def test_no_session_after_the_first_step(monkeypatch):
    step = TrainingStep(linear(), optimizer=optim.SGD(optim.Exp(0.1, 0.5, True), momentum=optim.Fixed(0.5)))
    step.run(X, Y)
    monkeypatch.setattr("onnxcustom.step.program.create_session", None)
    step.optimizer.set_learning_rate(optim.Step(0.1, 2, decay_on_iteration=True))
    for _ in range(4):
        step.run(X, Y)


def test_updates_counted_as_done_move_the_clock():
    late, seen = optim.SGD(lambda t: seen.append(t) or 0.1, begin_num_update=10), []
    step = TrainingStep(linear(), optimizer=late)
    step.run(X, Y)
    step.run(X, Y)
    assert seen == [11, 12, 13]
    assert step.iteration == 2


def test_options_that_change_under_a_step_are_an_error():
    """They are part of its graphs; the learning rate is not."""
    step = TrainingStep(linear(), optimizer=optim.SGD(0.1))
    step.run(X, Y)
    step.optimizer.set_params(learning_rate=0.2).init_learning_rate()
    step.run(X, Y)
    step.optimizer.set_params(momentum=0.9, frozen=["w"]).init_learning_rate()
    before = step.weights()
    with pytest.raises(CallOrderError, match=r"options of the optimizer have changed.*take_over"):
        step.run(X, Y)
    close(step.weights(), before, rtol=0, atol=0)


# -- accumulation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["SGD", "Adam"])
@pytest.mark.parametrize("cuts", [[4, 4, 4], [2, 7, 3]])
def test_batches_accumulated_count_like_one_large_batch(rule, cuts):
    whole = TrainingStep(linear(), optimizer=optim.create(rule, lr=0.1))
    parts = TrainingStep(linear(), optimizer=optim.create(rule, lr=0.1, accumulate=3))
    for _ in range(3):
        whole.run(X, Y)
        for start, stop in zip(np.cumsum([0, *cuts]), np.cumsum(cuts), strict=False):
            before = parts.weights()
            parts.run(X[start:stop], Y[start:stop])
            if stop < 12:
                close(parts.weights(), before, rtol=0, atol=0)
        close(parts.weights(), whole.weights())
    assert parts.iteration == whole.iteration == 3
    assert parts.optimizer.t == 4


def test_what_was_accumulated_is_part_of_a_pickle():
    one = TrainingStep(linear(), optimizer=optim.Adam(0.1, accumulate=3))
    one.run(X[:4], Y[:4])
    one.run(X[4:8], Y[4:8])
    other = pickle.loads(pickle.dumps(one))
    for step in (one, other):
        step.run(X[8:], Y[8:])
    close(other.weights(), one.weights(), rtol=0, atol=0)


# -- numbers that are none ----------------------------------------------------------------------------


def root(dtype: str = "float") -> onnx.ModelProto:
    """A model whose gradient is infinite times zero where a row is zero, while its value is finite."""
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net ({dtype}[N, 2] x) => ({dtype}[N, 1] y) <{dtype}[2, 1] w = {{1, 1}}, {dtype}[1] b = {{0}}> {{
            a = Mul (x, x)  z = MatMul (a, w)  r = Sqrt (z)  y = Add (r, b) }}"""
    )


RULES = [
    optim.SGD(0.1),
    optim.SGD(0.1, clip_gradient=1.0),
    optim.SGD(0.1, clip_global_norm=1.0),
    optim.SGD(0.1, momentum=0.9, accumulate=2),
    optim.Adam(0.1),
    optim.Adam(0.1, l1=0.1, wd=0.1, clip_gradient=1.0),
    optim.RMSProp(clip_weights=2.0),
    *(optim.create(name) for name in optim.rule_names()),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_gradient_that_is_no_number_is_an_error_and_changes_nothing(rule):
    x, y = np.array([[1, 2], [0, 0]], np.float32), np.ones((2, 1), np.float32)
    step = TrainingStep(root(), optimizer=rule)
    step.run(x[:1], y[:1])
    weights, state = step.weights(), step.state()
    with pytest.raises(ConvergenceError, match=r"gradient or update of 'w' holds NaN or infinity at step"):
        step.run(x, y)
    close(step.weights(), weights, rtol=0, atol=0)
    for name, states in state.items():
        close(step.state()[name], states, rtol=0, atol=0)
    assert step.skipped == 0
    step.run(x[:1], y[:1])


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_steps_without_a_number_can_be_skipped_and_are_counted(rule):
    x, y = np.array([[1, 2], [0, 0]], np.float32), np.ones((2, 1), np.float32)
    rule = type(rule)(**{**rule.get_params(), "skip_nonfinite": True})
    steps = [TrainingStep(root(), optimizer=rule) for _ in range(2)]
    for k in range(6):
        for step in steps:
            step.run(x[:1], y[:1])
        if k % 2:
            steps[0].run(x, y)
    close(steps[0].weights(), steps[1].weights(), rtol=0, atol=0)
    assert (steps[0].skipped, steps[1].skipped) == (3, 0)
    assert steps[0].optimizer.t == steps[1].optimizer.t


# -- weights that come and go ---------------------------------------------------------------------------


def test_freezing_and_adding_a_weight_keeps_the_state_of_the_others():
    both = TrainingStep(linear(), optimizer=optim.Adam(0.1))
    for _ in range(3):
        both.run(X, Y)
    one = TrainingStep(linear(), optimizer=optim.Adam(0.2, frozen=["b"]))
    one.take_over(both)
    close(one.state()["w"], both.state()["w"], rtol=0, atol=0)
    assert (one.iteration, one.optimizer.t, one.optimizer.value) == (3, 4, 0.2)
    one.run(X, Y)
    assert "b" not in one.weights()

    again = TrainingStep(linear(), optimizer=optim.Adam(0.1))
    again.take_over(one)
    weights = again.weights()
    close({"b": weights["b"]}, {"b": both.weights()["b"]}, rtol=0, atol=0)
    close(again.state()["w"], one.state()["w"], rtol=0, atol=0)
    g = gradients(weights, X, Y)["b"]
    again.run(X, Y)
    # The first step of Adam is one of the learning rate, whenever it is.
    np.testing.assert_allclose(again.weights()["b"], weights["b"] - 0.1 * np.sign(g), rtol=1e-6)
    other = pickle.loads(pickle.dumps(again))
    assert other.run(X, Y) == again.run(X, Y)
    close(other.weights(), again.weights(), rtol=0, atol=0)


def test_a_weight_that_joins_changes_what_is_updated_together():
    old = TrainingStep(linear(np.float32), optimizer=optim.Adam(0.1, frozen=["w"]))
    old.run(X, Y)
    new = TrainingStep(linear(np.float32), optimizer=optim.Adam(0.1))
    new.take_over(old)
    flat = TrainingStep(linear(np.float32), optimizer=optim.Adam(0.1), passes=False)
    flat.take_over(old)
    for _ in range(3):
        assert new.run(X, Y) == pytest.approx(flat.run(X, Y), rel=1e-6)
    close(new.weights(), flat.weights(), rtol=1e-6)


def test_another_optimizer_begins_anew():
    old = TrainingStep(linear(), optimizer=optim.Adam(0.1))
    old.run(X, Y)
    new = TrainingStep(linear(), optimizer=optim.RAdam(0.1))
    new.take_over(old)
    close(new.weights(), old.weights(), rtol=0, atol=0)
    assert new.iteration == 0
    assert not any(a.any() for states in new.state().values() for a in states.values())


# -- half precision -------------------------------------------------------------------------------------


def test_master_copies_keep_what_half_precision_would_lose():
    options = {"learning_rate": 1e-4, "rescale_grad": 1e-2}
    kept = TrainingStep(linear(np.float16), optimizer=optim.SGD(**options, multi_precision=True))
    lost = TrainingStep(linear(np.float16), optimizer=optim.SGD(**options))
    precise = TrainingStep(linear(np.float32), optimizer=optim.SGD(**options))
    x, y = X.astype(np.float16), Y.astype(np.float16)
    for _ in range(50):
        for step in (kept, lost):
            step.run(x, y)
        precise.run(X, Y)
    wanted = precise.weights()["w"] - [[1], [-2], [3]]
    master = kept.state()["w"]["master"]
    assert master.dtype == np.float32
    np.testing.assert_allclose(master - [[1], [-2], [3]], wanted, rtol=2e-2)
    np.testing.assert_array_equal(kept.weights()["w"], master.astype(np.float16))
    np.testing.assert_array_equal(lost.weights()["w"], [[1], [-2], [3]])


@pytest.mark.parametrize(
    "rule", ["Adam", "AdamW", "AMSGrad", "Adamax", "Nadam", "FTML", "RMSProp", "RAdam", "AdaGrad"]
)
def test_a_gradient_of_zero_is_no_trouble_in_half_precision(rule):
    """A column of zeros: an epsilon of 1e-8 is 0 in half precision, and 0 / 0 is no number."""
    x = X.astype(np.float16)
    x[:, 1] = 0
    step = TrainingStep(linear(np.float16), optimizer=optim.create(rule))
    for _ in range(8):
        step.run(x, Y.astype(np.float16))
    assert step.weights()["w"][1] == pytest.approx(-2, rel=2e-2)


def test_the_state_of_a_master_copy_is_single_precision():
    step = TrainingStep(linear(np.float16), optimizer=optim.Adam(multi_precision=True))
    step.run(X.astype(np.float16), Y.astype(np.float16))
    assert {a.dtype.name for a in step.state()["w"].values()} == {"float32"}
    assert step.weights()["w"].dtype == np.float16
    plain = TrainingStep(linear(np.float32), optimizer=optim.Adam(multi_precision=True))
    assert list(plain.state()["w"]) == ["m", "v"]


def test_an_input_without_rows():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2] x, float f) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> {
            z = MatMul (x, w)  y = Mul (z, f) }"""
    )
    # Rows of (4, 6) times 2 in place of 1.
    assert TrainingStep(model).run({"x": np.ones((3, 2)), "f": 2}, np.ones((3, 2))) == (49 + 121) / 2
    with pytest.raises(InvalidDataError, match="Input 'f' wants one number"):
        TrainingStep(model).run({"x": np.ones((3, 2)), "f": [1, 2]}, np.ones((3, 2)))
