"""update_weights: in place, through IO binding, with clear errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcustom import optim
from onnxcustom.exceptions import CallOrderError, InvalidDataError
from onnxcustom.optim import SGD, Adam, BaseLearningRate, LearningRateSGD, LearningRateSGDNesterov
from onnxcustom.runtime import to_ortvalue

ort = pytest.importorskip("onnxruntime")


def c_ortvalue(array: np.ndarray) -> Any:
    return to_ortvalue(array)._ortvalue


@pytest.mark.parametrize("wrap", [to_ortvalue, c_ortvalue, lambda a: a], ids=["python", "c", "numpy"])
def test_weight_is_updated_in_place_and_returned(wrap):
    rule = LearningRateSGD(0.5, learning_rate="constant").init_learning_rate()
    rule.build_onnx_function(15, "cpu", 2)
    array, gradient = np.ones((2, 3), np.float32), np.full((2, 3), 4, np.float32)
    weight = wrap(array)
    assert rule.update_weights(1, "cpu", weight, wrap(gradient), 2) is weight
    np.testing.assert_array_equal(array, np.zeros((2, 3)))
    np.testing.assert_array_equal(gradient, np.full((2, 3), 4))


@pytest.mark.parametrize("pack", ["alone", "list", "tuple", "dict"])
def test_state_is_updated_in_place_and_returned(pack):
    rule = LearningRateSGDNesterov(0.5, learning_rate="constant", momentum=0.5, nesterov=False)
    rule.init_learning_rate()
    w, v = np.zeros(2), np.array([1.0, 2.0])
    velocity = {
        "alone": c_ortvalue(v),
        "list": [to_ortvalue(v)],
        "tuple": (v,),
        "dict": {"velocity": v},
    }[pack]
    new_w, new_v = rule.update_weights(0, "cpu", w, np.array([1.0, 0.0]), 1, velocity)
    assert new_w is w
    assert new_v is velocity
    np.testing.assert_array_equal(v, [0.0, 1.0])
    np.testing.assert_array_equal(w, [0.0, 1.0])


def test_first_step_makes_the_state_itself():
    rule = Adam(0.1).init_learning_rate()
    w = np.zeros(2)
    _, state = rule.update_weights(0, "cpu", w, np.array([1.0, -1.0]), 1)
    np.testing.assert_allclose(state[0].numpy(), [0.1, -0.1])
    np.testing.assert_allclose(state[1].numpy(), [0.001, 0.001])
    rule.update_learning_rate(1)
    with pytest.raises(CallOrderError, match=r"Step 2 of Adam needs, as velocity, the state \('m', 'v'\)"):
        rule.update_weights(0, "cpu", w, np.array([1.0, -1.0]), 1)
    assert rule.update_weights(0, "cpu", w, np.array([1.0, -1.0]), 1, state)[1] is state


def test_strided_and_foreign_arrays_are_updated_too():
    rule = SGD(1.0).init_learning_rate()
    base = np.zeros((3, 4))
    rule.update_weights(0, "cpu", base.T[::2], np.ones((2, 3))[:, ::-1], 1)
    np.testing.assert_array_equal(base, [[-1, 0, -1, 0]] * 3)
    swapped = np.zeros(3, ">f8")
    rule.update_weights(0, "cpu", swapped, np.ones(3), 1)
    np.testing.assert_array_equal(swapped, [-1, -1, -1])


def test_several_weights_and_dtypes_share_one_rule():
    rule = SGD(1.0, momentum=0.5).init_learning_rate()
    rule.build_onnx_function(18, "cpu", 3)
    weights = [np.zeros(2, np.float32), np.zeros((2, 2), np.float64), np.zeros((), np.float32)]
    states = [np.zeros_like(w) for w in weights]
    for t in (1, 2):
        for i, (w, v) in enumerate(zip(weights, states, strict=True)):
            rule.update_weights(i, "cpu", w, np.full_like(w, i + 1), 1, v)
        rule.update_learning_rate(t)
    for i, w in enumerate(weights):
        np.testing.assert_array_equal(w, np.full_like(w, -2.5 * (i + 1)))


def test_half_precision():
    rule = SGD(0.5).init_learning_rate()
    w = np.zeros(2, np.float16)
    rule.update_weights(0, "cpu", w, np.ones(2, np.float16), 2)
    np.testing.assert_array_equal(w, [-0.25, -0.25])


class Swapping(BaseLearningRate):
    """Reads everything again after it has computed the new values: no buffer may be overwritten early."""

    learning_rate = 1.0
    state = ("a", "b")

    def __init__(self):
        pass

    def update(self, op, w, g, s, lr, t):
        total = op.ReduceSum(w, keepdims=0)
        return s.a + total, {"a": op.Identity(s.b) + w * 0, "b": w}


def test_rules_that_read_after_writing_are_safe():
    rule = Swapping().init_learning_rate()
    w, a, b = np.array([1.0, 2.0]), np.array([10.0, 20.0]), np.array([100.0, 200.0])
    for n in range(2):
        expected = a + w.sum(), b.copy(), w.copy()
        rule.update_weights(n, "cpu", w, np.zeros(2), 1, (a, b))
        for got, wanted in zip((w, a, b), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


class Permuting(BaseLearningRate):
    """Its last node mixes places: it may not write where it reads."""

    learning_rate = 1.0

    def __init__(self):
        pass

    def update(self, op, w, g, s, lr, t):
        return op.Transpose(w, perm=[1, 0]), {}


def test_rules_that_mix_places_are_safe():
    rule = Permuting().init_learning_rate()
    w = np.arange(256.0).reshape(16, 16)
    expected = w.T.copy()
    rule.update_weights(0, "cpu", w, np.zeros((16, 16)), 1)
    np.testing.assert_array_equal(w, expected)


class Forgetful(BaseLearningRate):
    learning_rate = 1.0
    state = ("m",)

    def __init__(self):
        pass

    def update(self, op, w, g, s, lr, t):
        return w - lr * g, {}


def test_a_rule_that_forgets_state_is_told():
    with pytest.raises(ValueError, match=r"Forgetful.update returned state"):
        optim.update_model(Forgetful())


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("batch 0", {"batch_size": 0}, ValueError, r"batch_size must be in \(0, inf\)"),
    ("batch negative", {"batch_size": -2}, ValueError, r"batch_size must be in \(0, inf\)"),
    ("gradient shape", {"gradienti": np.zeros(3)}, InvalidDataError, r"gradient has shape \(3,\)"),
    ("gradient dtype", {"gradienti": np.zeros(2, np.float32)}, InvalidDataError, "dtype float32"),
    ("weight dtype", {"statei": np.zeros(2, np.int64)}, InvalidDataError, "weight must be a floating-point"),
    ("weight type", {"statei": [0.0, 0.0]}, TypeError, "weight must be an OrtValue or an array"),
    ("state missing", {"velocity": {"m": np.zeros(2)}}, InvalidDataError, r"keeps the state \('m', 'v'\)"),
    ("state count", {"velocity": [np.zeros(2)]}, InvalidDataError, r"keeps the state \('m', 'v'\)"),
    (
        "state shape",
        {"velocity": [np.zeros(2), np.zeros(3)]},
        InvalidDataError,
        r"state 'v' has shape \(3,\)",
    ),
    ("index negative", {"n_bind": -1}, ValueError, r"n_bind is the index of a weight, in \[0, 2\)"),
    ("index too large", {"n_bind": 2}, ValueError, r"n_bind is the index of a weight, in \[0, 2\)"),
    ("index no number", {"n_bind": "w"}, ValueError, r"n_bind is the index of a weight"),
    ("device", {"device": "tpu"}, ValueError, "'tpu' is not a device"),
]


@pytest.mark.parametrize(("change", "kind", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_changes_nothing(change, kind, message):
    rule = Adam().init_learning_rate()
    rule.build_onnx_function(18, "cpu", 2)
    w, m, v = np.ones(2), np.ones(2), np.ones(2)
    call: dict[str, Any] = {
        "n_bind": 0,
        "device": "cpu",
        "statei": w,
        "gradienti": np.ones(2),
        "batch_size": 1,
    }
    with pytest.raises(kind, match=message):
        rule.update_weights(**{**call, "velocity": [m, v], **change})
    for array in (w, m, v):
        np.testing.assert_array_equal(array, [1, 1])


def test_read_only_weights_are_refused():
    rule = SGD().init_learning_rate()
    w = np.zeros(2)
    w.flags.writeable = False
    with pytest.raises(InvalidDataError, match="read-only"):
        rule.update_weights(0, "cpu", w, np.zeros(2), 1)


def test_state_for_a_rule_that_keeps_none():
    with pytest.raises(InvalidDataError, match="velocity must be None"):
        SGD().init_learning_rate().update_weights(0, "cpu", np.zeros(2), np.zeros(2), 1, np.zeros(2))


@pytest.mark.parametrize("opset", [0, 6, 1000])
def test_opset_out_of_range(opset):
    with pytest.raises(ValueError, match=r"opset must be in \[7,"):
        SGD().build_onnx_function(opset, "cpu", 1)


def test_integers_cannot_be_updated():
    with pytest.raises(InvalidDataError, match="floating-point"):
        optim.update_model(SGD(), dtype=np.int32)


def test_state_made_at_the_first_step_owns_its_memory():
    rule = LearningRateSGDNesterov(1.0, learning_rate="constant").init_learning_rate()
    weight, gradient = np.zeros(1000), np.ones(1000)
    state = rule.update_weights(0, "cpu", weight, gradient, 1)[1].numpy()
    rule.update_weights(0, "cpu", weight, gradient, 1)
    np.full(1000, 7.0)
    assert (state == -1).all()


def test_one_method_runs_every_update():
    calls = []

    class Watched(LearningRateSGD):
        def _call_iobinding(self, sess, bind):
            calls.append(sess)
            return super()._call_iobinding(sess, bind)

    rule = Watched(1.0).init_learning_rate()
    assert rule.update_weights(0, "cpu", np.ones(2), np.ones(2), 1).tolist() == [0, 0]
    assert len(calls) == 1
