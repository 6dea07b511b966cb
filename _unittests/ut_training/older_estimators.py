"""Writes `older_estimators.pickle` beside it, by the version of the package that is there, for later ones.

Every entry is a pickled estimator and what it predicts; those that train have done so for two epochs, and
their weights after another one are beside it. Run it before a change of what an estimator consists of, or of
where its class is, and commit the file with the change.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

from onnxcustom import OnnxClassifier, OnnxRegressor, OrtGradientForwardBackward
from onnxcustom.training.optimizers_partial import OrtGradientForwardBackwardOptimizer

LINE = """<ir_version: 8, opset_import: ["": 17]>
line (float[N, 3] x) => (float[N, 1] y) <float[3, 1] w = {0.5, 0, -1}, float[1, 2] more = {1, 2}> {
    y = MatMul(x, w) }"""
CLASSES = """<ir_version: 8, opset_import: ["": 17]>
classes (float[N, 3] x) => (float[N, 3] p) <float[3, 3] w = {1, 0, 0, 0, 2, 0, 0, 0, 1}> {
    z = MatMul(x, w)  p = Softmax(z) }"""
PLACES = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])


def model(text: str) -> onnx.ModelProto:
    """A model of its text."""
    return onnx.parser.parse_model(text)


def rows() -> np.ndarray:
    """Twelve rows."""
    return np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def targets() -> dict[str, np.ndarray]:
    """Expected values, by estimator."""
    numbers, flags = rows().sum(axis=1), (rows() > 0).astype(np.int64)
    words = np.array(["a", "b", "c"], dtype=object)[PLACES]
    return {
        "regressor": numbers,
        "classifier": words,
        "of several labels": flags,
        "optimizer": numbers.reshape(-1, 1),
    }


def estimators() -> dict[str, Any]:
    """Those that train."""
    independent = model(CLASSES.replace("Softmax", "Sigmoid"))
    options: dict[str, Any] = {"batch_size": 5, "max_iter": 2, "random_state": 3}
    return {
        "regressor": OnnxRegressor(
            model(LINE), optimizer="adam", learning_rate=0.01, penalty="l2", warm_start=True, **options
        ),
        "classifier": OnnxClassifier(
            model(CLASSES), learning_rate=0.1, class_weight={"a": 2.0}, freeze=(), **options
        ),
        "of several labels": OnnxClassifier(independent, optimizer="nag", learning_rate=0.1, **options),
        "optimizer": OrtGradientForwardBackwardOptimizer(
            model(LINE), ["w"], learning_rate="SGDNesterov", learning_loss="absolute_error", **options
        ),
    }


def main() -> None:
    """Write the file."""
    X, entries = rows(), {}
    for name, estimator in estimators().items():
        y = targets()[name]
        fresh = pickle.dumps(estimator)
        written = pickle.dumps(estimator.fit(X, y))
        predicted = np.asarray(estimator.predict(X)).tolist()
        weights = {k: np.array(v) for k, v in estimator.partial_fit(X, y).weights_.items()}
        entries[name] = fresh, written, predicted, {k: v.tolist() for k, v in weights.items()}
    session = pickle.dumps(OrtGradientForwardBackward(model(LINE), ["w"]))
    Path(__file__).with_suffix(".pickle").write_bytes(pickle.dumps((entries, session)))


if __name__ == "__main__":
    main()
