"""Writes `older_steps.pickle` beside it, by the version of the package that is there: later ones read it.

Every entry is a pickled training step in mid-training, and the weights, the statistics and the count after
three more steps. Run it before a change of what a step consists of, and commit the file with the change.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx.parser

from onnxcustom import TrainingStep

MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3] x) => (float[N, 2] y) <float[3, 4] a = {1, 0, 2, 0, 1, 3, 0, 1, 0, 2, 0, 1},
  float[4] one = {1, 2, 1, 2}, float[4] zero = {0, 1, 0, 1}, float[4] mean = {0, 0, 1, 0},
  float[4] var = {1, 2, 1, 1}, float[4, 2] b = {1, 0, 0, 1, 1, 1, 0, 1}> {
    h = MatMul(x, a)  n = BatchNormalization(h, one, zero, mean, var)  t = Tanh(n)  y = MatMul(t, b) }"""
OPTIONS = {
    "plain": {"optimizer": "sgd", "learning_rate": 0.1},
    "adam, statistics": {"optimizer": "adam", "learning_rate": 0.01, "batch_norm": "update"},
    "frozen, penalty": {"optimizer": "nag", "learning_rate": 0.01, "freeze": ["a"], "penalty": "l2"},
    "weighted": {"optimizer": "adagrad", "learning_rate": 0.05, "sample_weight": True, "passes": False},
    "settings": {"optimizer": "rmsprop", "learning_rate": 0.01, "recompute": True, "engine": "onnx"},
}


def batch() -> tuple[np.ndarray, np.ndarray]:
    """One batch of eight rows."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)


def main() -> None:
    """Write the file."""
    from onnxcustom.optim import Adam

    X, y = batch()
    steps = {}
    for name, options in {**OPTIONS, "accumulated": {"optimizer": Adam(0.01, accumulate=2)}}.items():
        step = TrainingStep(onnx.parser.parse_model(MODEL), **options)
        for _ in range(3):
            step.run(X, y)
        written = pickle.dumps(step)
        for _ in range(3):
            step.run(X, y)
        steps[name] = (written, step.weights(), step.statistics(), step.iteration)
    Path(__file__).with_suffix(".pickle").write_bytes(pickle.dumps(steps))


if __name__ == "__main__":
    main()
