"""Pickles of estimators of the version before go on, wherever their classes are now."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from onnxcustom import OrtGradientForwardBackward

from .older_estimators import estimators, rows, targets

onnxruntime = pytest.importorskip("onnxruntime")
WRITTEN, SESSION = pickle.loads(Path(__file__).with_name("older_estimators.pickle").read_bytes())


@pytest.mark.parametrize("name", WRITTEN)
def test_fitted_ones_predict_and_go_on(name: str) -> None:
    _, written, predicted, weights = WRITTEN[name]
    estimator, X = pickle.loads(written), rows()
    found = np.asarray(estimator.predict(X))
    if found.dtype.kind == "f":
        np.testing.assert_allclose(found, predicted, rtol=1e-5, atol=1e-6)
    else:
        assert found.tolist() == predicted
    estimator.partial_fit(X, targets()[name])
    for key, array in estimator.weights_.items():
        np.testing.assert_allclose(array, weights[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", WRITTEN)
def test_fresh_ones_are_what_is_made_today(name: str) -> None:
    fresh, _, _, weights = WRITTEN[name]
    estimator, today = pickle.loads(fresh), estimators()[name]
    assert repr(estimator) == repr(today)
    assert estimator.get_params().keys() == today.get_params().keys()
    X, y = rows(), targets()[name]
    estimator.fit(X, y).partial_fit(X, y)
    for key, array in estimator.weights_.items():
        np.testing.assert_allclose(array, weights[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_forward_and_backward() -> None:
    session = pickle.loads(SESSION)
    assert isinstance(session, OrtGradientForwardBackward)
    function, X = session.new_instance(), rows()
    weight = np.array([[0.5], [0], [-1]], dtype=np.float32)
    (y,) = function.forward([X, weight], training=True)
    np.testing.assert_allclose(y.numpy(), X @ weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "path",
    [
        "onnx_classifier.OnnxClassifier",
        "onnx_regressor.OnnxRegressor",
        "optimizers_partial.OrtGradientForwardBackwardOptimizer",
        "ortgradient.OrtGradientForwardBackward",
        "ortgradient.OrtGradientForwardBackwardFunction",
        "frozen_steps.FrozenStep",
        "from_sklearn.ConversionReport",
        "from_sklearn.StepRow",
    ],
)
def test_where_pickles_look_for_classes(path: str) -> None:
    module, name = path.split(".")
    assert isinstance(getattr(importlib.import_module(f"onnxcustom.training.{module}"), name), type)
