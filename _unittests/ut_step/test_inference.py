from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest

from onnxcustom.exceptions import EvaluationError
from onnxcustom.graph import prepare, weights
from onnxcustom.runtime import parse_device, to_ortvalue
from onnxcustom.step.compose import compose_forward
from onnxcustom.step.inference import Forward

pytest.importorskip("onnxruntime")


@pytest.fixture
def model(linear_model):
    return linear_model(3)


@pytest.fixture
def forward(model):
    return Forward(compose_forward(prepare(model), ["y"], ["w", "b"]), parse_device("cpu"))


def test_forward_runs_on_the_weights_it_is_given(model, forward):
    X, own = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), weights(model)
    for factor in (1, 2):
        w, b = factor * own["w"], factor * own["b"]
        (y,) = forward.run({"x": X, "w": to_ortvalue(w), "b": b, "not an input": X})
        np.testing.assert_allclose(y, X @ w + b, rtol=1e-5, atol=1e-6)


def test_results_are_not_overwritten(model, forward):
    own = weights(model)
    first = forward.run({"x": np.ones((2, 3), np.float32), **own})[0]
    kept = first.copy()
    forward.run({"x": np.zeros((2, 3), np.float32), **own})
    np.testing.assert_array_equal(first, kept)


def test_threads(model, forward):
    own = weights(model)
    X = [np.full((4, 3), i, np.float32) for i in range(16)]
    expected = [forward.run({"x": x, **own})[0] for x in X]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda x: forward.run({"x": x, **own})[0], X * 4))
    for array, wanted in zip(made, expected * 4, strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_what_does_not_fit_is_an_error(model, forward):
    with pytest.raises(EvaluationError, match="mlp"):
        forward.run({"x": np.ones((2, 4), np.float32), **weights(model)})
