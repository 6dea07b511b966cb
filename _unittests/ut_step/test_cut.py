"""A step cut at its gradients: the two parts, run one after the other, are the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcustom import TrainingStep, optim
from onnxcustom.graph import to_proto
from onnxcustom.step.recipe import Recipe
from onnxcustom.step.step_graph import ComposedStep

onnxruntime = pytest.importorskip("onnxruntime")

MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3] x) => (float[N, 2] y) <float[3, 4] a = {1, 0, 2, 0, 1, 3, 0, 1, 0, 2, 0, 1},
  float[4] c = {1, 2, 1, 2}, float[4, 2] b = {1, 0, 0, 1, 1, 1, 0, 1}> {
    h = MatMul(x, a)  n = Add(h, c)  t = Tanh(n)  y = MatMul(t, b) }"""
TABLE = """<ir_version: 8, opset_import: ["": 17]> g (int64[N] x) => (float[N, 2] y)
<float[5, 2] a = {1, 0, 0, 1, 1, 1, 2, 2, 1, 3}, float[2] b = {0, 1}> { e = Gather(a, x)  y = Add(e, b) }"""
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": (MODEL, {"optimizer": optim.SGD(0.1)}),
    "adam, penalty": (MODEL, {"optimizer": optim.Adam(0.1), "penalty": "l2"}),
    "norm": (MODEL, {"optimizer": optim.NAG(0.1, momentum=0.9, clip_global_norm=0.5, wd=0.01)}),
    "schedule": (MODEL, {"optimizer": optim.SGD(0.1, momentum=optim.Exp(0.9, 0.9, True))}),
    "table": (TABLE, {"optimizer": optim.Adam(0.1, lazy_update=False)}),
    "plain": (MODEL, {"optimizer": optim.RMSProp(0.1), "passes": False, "penalty": "l1"}),
}


def batch(model: str, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 5, rows) if model is TABLE else rng.normal(size=(rows, 3)).astype(np.float32)
    return x, rng.normal(size=(rows, 2)).astype(np.float32)


def run(composed: ComposedStep, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(
        to_proto(composed.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]
    given = {n: np.asarray(feeds[n], np.float32 if n != "x" else None) for n in names}
    return dict(zip(outputs, session.run(None, given), strict=True))


class Parts:
    """Training by the two parts, gradients averaged in between over batches by their rows."""

    def __init__(self, step: TrainingStep) -> None:
        self.recipe: Recipe = step.recipe
        self.before = self.recipe.compose(False, "gradient", lean=False)
        self.behind = self.recipe.compose(False, "apply", lean=False)
        self.tensors: dict[str, np.ndarray] = {**step.weights()}
        for w, states in self.behind.state.items():
            first = self.recipe.rule.create_state(self.tensors[w])
            self.tensors.update({old: first[s] for s, (old, _) in states.items()})

    def scalars(self, step: TrainingStep) -> dict[str, float]:
        values = {name: step.optimizer.values[name] for name in self.behind.hyper}
        named = {self.behind.hyper[name]: value for name, value in values.items()}
        return {"learning_rate": step.optimizer.value, "step": step.optimizer.t, "batch_rows": 0, **named}

    def update(self, step: TrainingStep, batches: list[tuple[np.ndarray, np.ndarray]]) -> float:
        rows = sum(len(x) for x, _ in batches)
        means: dict[str, Any] = dict.fromkeys(self.before.gradients, 0.0)
        loss = 0.0
        for x, y in batches:
            counts = {name: len(x) for name in self.before.counts.values()}
            feeds = {"x": x, "y_expected": y, **counts, **self.tensors, **self.scalars(step)}
            made = run(self.before, feeds)
            loss += len(x) / rows * float(made[self.before.loss])
            for w, output in self.before.gradients.items():
                means[w] = means[w] + np.float64(len(x) / rows) * made[output]
        taken = {self.behind.gradients[w]: mean for w, mean in means.items()}
        made = run(self.behind, {**self.tensors, **taken, **self.scalars(step)})
        news = dict(self.behind.weights)
        for states in self.behind.state.values():
            news.update({old: new for old, new in states.values() if new is not None})
        self.tensors.update({old: made[new] for old, new in news.items()})
        return loss


@pytest.mark.parametrize("cuts", [[8], [2, 5, 1]])
@pytest.mark.parametrize("name", STEPS)
def test_the_parts_are_the_step(name: str, cuts: list[int]) -> None:
    """Ten updates; the gradient is that of the whole batch, however it is cut, and has the penalty once."""
    text, options = STEPS[name]
    step = TrainingStep(onnx.parser.parse_model(text), **options)
    parts = Parts(step)
    assert not parts.before.weights
    assert not parts.behind.batch
    for k in range(10):
        x, y = batch(text, 8, k)
        ends = np.cumsum(cuts)
        pieces = [(x[e - n : e], y[e - n : e]) for n, e in zip(cuts, ends, strict=True)]
        loss = parts.update(step, pieces)
        assert step.run(x, y) == pytest.approx(loss, rel=1e-5)
        for weight, array in step.weights().items():
            np.testing.assert_allclose(parts.tensors[weight], array, rtol=2e-4, atol=2e-5)


def test_a_penalty_counts_once_where_batches_are_accumulated() -> None:
    """As in one update on all of their rows; the state in between holds no part of it."""
    model = onnx.parser.parse_model(MODEL)
    whole = TrainingStep(model, optimizer=optim.Adam(0.1), penalty="l2")
    parts, plain = (
        TrainingStep(model, optimizer=optim.Adam(0.1, accumulate=2), penalty=p) for p in ("l2", None)
    )
    for k in range(5):
        x, y = batch(MODEL, 8, k)
        whole.run(x, y)
        for rows in (slice(3), slice(3, 8)):
            parts.run(x[rows], y[rows])
            if not k and parts.pending:
                plain.run(x[rows], y[rows])
                for w in ("a", "b", "c"):
                    name = f"accumulated/{w}"
                    np.testing.assert_array_equal(parts.state_dict()[0][name], plain.state_dict()[0][name])
        for weight, array in whole.weights().items():
            np.testing.assert_allclose(parts.weights()[weight], array, rtol=2e-4, atol=2e-5)


def test_batches_that_an_older_version_accumulated_with_a_penalty_are_left_out() -> None:
    """It had the penalty's gradient in them, which would count twice."""
    step = TrainingStep(onnx.parser.parse_model(MODEL), optimizer=optim.Adam(0.1, accumulate=2), penalty="l2")
    step.run(*batch(MODEL, 8, 0))
    tensors, state = step.state_dict()
    del state["penalties_apart"]
    with pytest.warns(UserWarning, match=r"1 batches .* older version"):
        step.load_state_dict(tensors, state)
    assert step.pending == 0
    step.run(*batch(MODEL, 8, 1))
    assert step.pending == 1
