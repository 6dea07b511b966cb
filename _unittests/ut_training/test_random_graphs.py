"""Random models under every update rule: passes change nothing, models handed out load on a bare onnxruntime.

``python _unittests/ut_training/test_random_graphs.py 1000 2000`` runs the models of these seeds.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_graphs import ROWS, TABLE, WIDTH, random_graph

from onnxcustom import TrainingStep, optim
from onnxcustom.exceptions import ConvergenceError, NoTrainableWeightError
from onnxcustom.runtime import training_available

ort = pytest.importorskip("onnxruntime")
RULES = sorted(optim.rule_names())
SEEDS = 3 * len(RULES)


def loads(content: bytes) -> Any:
    """A session as anybody makes it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def check(seed: int, engine: str) -> str:
    """Train one model both ways."""
    graph, rng = random_graph(seed), np.random.default_rng(seed)
    model = graph.model(np.float32, "N" if seed % 2 else ROWS)
    rule = RULES[seed % len(RULES)]
    X = {"x": rng.normal(size=(ROWS, WIDTH)).astype(np.float32), "ids": rng.integers(0, TABLE, ROWS)}
    y = {name: rng.normal(size=(ROWS, WIDTH)).astype(np.float32) for name in graph.outputs}
    options: dict[str, Any] = {"accumulate": 2} if seed % 5 == 0 else {}
    if rule == "test":
        options["rescale_grad"] = 1e-3  # it climbs
    trained = {}
    for passes in (True, False):
        optimizer = optim.create(rule, learning_rate=0.01, **options)
        losses = dict.fromkeys(y, "squared_error")
        try:
            step = TrainingStep(model, losses, optimizer, engine=engine, passes=passes, threads=1)
        except NoTrainableWeightError:
            return "no output depends on a weight"
        try:
            objectives = [step.run(X, y) for _ in range(4)]
        except ConvergenceError:
            return "diverged"
        trained[passes] = (objectives, step.weights())
    for fast, plain in zip(trained[True][0], trained[False][0], strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-3, atol=1e-5, err_msg=f"seed {seed}, {rule}")
    moved = 4 * 0.01 if rule in _BY_SIGN else 1e-3
    for name, array in trained[False][1].items():
        np.testing.assert_allclose(
            trained[True][1][name], array, rtol=1e-3, atol=2 * moved, err_msg=f"seed {seed}, {rule}, {name}"
        )
    made = step.trained_model()
    session = loads(made.SerializeToString())
    predicted = dict(zip(graph.outputs, session.run(list(graph.outputs), X), strict=True))
    for name, array in step.predict(X).items():
        np.testing.assert_allclose(predicted[name], array, rtol=1e-4, atol=1e-5)
    loads(step.model.SerializeToString())
    return "right"


# Where only signs of gradients count, rounding decides about those that are nearly 0.
_BY_SIGN = {"signum", "signsgd", "lion"}


@pytest.mark.parametrize("engine", ["onnx", pytest.param("ort", marks=pytest.mark.ort)])
@pytest.mark.parametrize("rule", range(len(RULES)), ids=RULES)
def test_passes(rule: int, engine: str) -> None:
    counts = Counter(check(seed, engine) for seed in range(rule, SEEDS, len(RULES)))
    assert counts["right"] >= 2, counts


if __name__ == "__main__":
    start, end = int(sys.argv[1]), int(sys.argv[2])
    for name in ["onnx"] + ["ort"] * training_available():
        results: Counter[str] = Counter()
        for number in range(start, end):
            try:
                results[check(number, name)] += 1
            except Exception as exc:
                results["wrong"] += 1
                print(
                    name, number, RULES[number % len(RULES)], type(exc).__name__, str(exc)[:700], flush=True
                )
        print(name, dict(results))
