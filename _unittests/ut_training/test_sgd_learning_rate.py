"""Calls of old, at the import path of old."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from onnxcustom import optim
from onnxcustom.runtime import to_ortvalue
from onnxcustom.training import sgd_learning_rate
from onnxcustom.training.sgd_learning_rate import (
    BaseLearningRate,
    LearningRateSGD,
    LearningRateSGDNesterov,
)

pytest.importorskip("onnxruntime")


def test_same_classes_as_in_optim():
    for name in sgd_learning_rate.__all__:
        assert getattr(sgd_learning_rate, name) is getattr(optim, name)


def test_defaults():
    values = list(LearningRateSGD().loop())
    assert len(values) == 1000
    assert values[0] == 0.01
    assert 0.001 < values[-1] < values[0]
    assert list(LearningRateSGD(learning_rate="optimal").loop())[-1] > 0.009


@pytest.mark.parametrize("name", ["EXC", "CST"])
def test_unknown_schedule(name):
    with pytest.raises(ValueError, match=name):
        LearningRateSGD(learning_rate=name)


def test_positional_arguments():
    rule = LearningRateSGDNesterov(1e-4, 0.001, 0.5, "constant", 0.8, False)
    own = {
        "eta0": 1e-4,
        "alpha": 0.001,
        "power_t": 0.5,
        "learning_rate": "constant",
        "momentum": 0.8,
        "nesterov": False,
    }
    assert own.items() <= rule.get_params().items()


@pytest.mark.parametrize("name", ["SGD", "sgd", "LearningRateSGD"])
def test_select_means_the_class_of_this_module(name):
    assert type(BaseLearningRate.select(name)) is LearningRateSGD


def test_a_training_loop_on_c_ortvalues():
    device = to_ortvalue(np.zeros(1)) and "cpu"
    rule = LearningRateSGDNesterov(0.1, learning_rate="constant", momentum=0.5, nesterov=True)
    rule.build_onnx_function(15, device, 1)
    arrays = [np.array([[1.0], [2.0]], np.float32), np.array([[4.0], [8.0]], np.float32)]
    weight, gradient = (to_ortvalue(a)._ortvalue for a in arrays)
    zero = np.zeros((2, 1), np.float32)
    velocity = to_ortvalue(zero)._ortvalue
    rule.init_learning_rate()
    for t in range(1, 3):
        weight, velocity = rule.update_weights(0, device, weight, gradient, 2, velocity)
        rule.update_learning_rate(t)
    w, v, g = np.array([[1.0], [2.0]]), np.zeros((2, 1)), arrays[1] / 2
    for _ in range(2):
        v = 0.5 * v - 0.1 * g
        w = w + 0.5 * v - 0.1 * g
    np.testing.assert_allclose(weight.numpy(), w, rtol=1e-6)
    np.testing.assert_allclose(velocity.numpy(), v, rtol=1e-6)


def test_pickle_before_and_after_building():
    rule = LearningRateSGD(0.5)
    pickle.loads(pickle.dumps(rule)).init_learning_rate()
    rule.build_onnx_function(15, "cpu", 1)
    rule.init_learning_rate().update_learning_rate(1)
    again = pickle.loads(pickle.dumps(rule))
    assert again.value == rule.value
    np.testing.assert_allclose(again.update_weights(0, "cpu", np.zeros(1), np.ones(1), 1), [-rule.value])
