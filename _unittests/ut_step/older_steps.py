"""Writes pickles of training steps by the version of the package that is there: later ones read them.

Every entry is a pickled step in mid-training, the weights, the statistics and the count after three more
steps, and what `state_dict` gave, which `older_steps.pickle` lacks. Run it, with the name of a file, before
a change of what a step consists of, and commit the file with the change.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import onnx.parser

from onnxcustom import TrainingStep
from onnxcustom.optim import SGD, Adam, Exp, LearningRateSGD, ReduceOnPlateau

MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3] x) => (float[N, 2] y) <float[3, 4] a = {1, 0, 2, 0, 1, 3, 0, 1, 0, 2, 0, 1},
  float[4] one = {1, 2, 1, 2}, float[4] zero = {0, 1, 0, 1}, float[4] mean = {0, 0, 1, 0},
  float[4] var = {1, 2, 1, 1}, float[4, 2] b = {1, 0, 0, 1, 1, 1, 0, 1}> {
    h = MatMul(x, a)  n = BatchNormalization(h, one, zero, mean, var)  t = Tanh(n)  y = MatMul(t, b) }"""
DROPOUT = MODEL.replace("t = Tanh(n)", "r = Tanh(n) t = Dropout(r)")
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


def made() -> dict[str, TrainingStep]:
    """Steps in mid-training by name."""
    X, y = batch()
    options = {
        **OPTIONS,
        "accumulated": {"optimizer": Adam(0.01, accumulate=2)},
        "scheduled": {
            "optimizer": SGD(Exp(0.1, 0.9, True), momentum=Exp(0.9, 0.99, True), begin_num_update=2)
        },
        "plateau": {"optimizer": Adam(ReduceOnPlateau(0.01, patience=0))},
        "rate": {"optimizer": LearningRateSGD(0.1)},
    }
    steps = {}
    for name, given in options.items():
        step = TrainingStep(onnx.parser.parse_model(MODEL), **given)
        for _ in range(3):
            step.run(X, y)
        if name == "plateau":
            for loss in (1.0, 2.0, 2.0):
                step.optimizer.report_epoch(loss)
        if name == "rate":
            step.optimizer.set_learning_rate(Exp(0.05, 0.5, True))
        steps[name] = step
    # Weights that joined later, and constants that another step has handed on.
    model, rule = onnx.parser.parse_model(MODEL), Adam(0.01, frozen=["a"])
    part = TrainingStep(model, optimizer=rule, batch_norm="update")
    for _ in range(2):
        part.run(X, y)
    joined = TrainingStep(model, optimizer=Adam(0.01))
    joined.take_over(part)
    joined.run(X, y)
    steps["joined"] = joined
    left = TrainingStep(model, optimizer=rule)
    left.take_over(joined)
    left.run(X, y)
    steps["left"] = left
    dropped = TrainingStep(onnx.parser.parse_model(DROPOUT), optimizer=Adam(0.01), dropout="on", seed=5)
    dropped.run(X, y)
    steps["dropped"] = dropped
    return steps


def main(path: Path) -> None:
    """Write the file."""
    X, y = batch()
    steps = {}
    for name, step in made().items():
        written, saved = pickle.dumps(step), step.state_dict()
        for _ in range(3):
            step.run(X, y)
        steps[name] = (written, step.weights(), step.statistics(), step.iteration, saved)
    path.write_bytes(pickle.dumps(steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
