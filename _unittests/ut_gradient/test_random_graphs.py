"""Random models: engine 'onnx', engine 'ort' and differences in float64 of the same function in NumPy.

Twenty models of seeds 0 to 39, the others with ``--exhaustive``;
``python _unittests/ut_gradient/test_random_graphs.py 1000 5000`` runs the models of these seeds.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_graphs import ROWS, TABLE, WIDTH, RandomGraph, Values, random_graph, run_seeds

from onnxcustom import OrtGradientForwardBackward, gradient_graph
from onnxcustom.exceptions import GradientNotImplementedError, NonDifferentiableError, UnknownNameError
from onnxcustom.gradient import GradientNames
from onnxcustom.runtime import create_session, training_available

pytest.importorskip("onnxruntime")
ENGINES = ["onnx", pytest.param("ort", marks=pytest.mark.ort)]


def feeds_of(seed: int) -> Values:
    """A batch."""
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(ROWS, WIDTH)), "ids": rng.integers(0, TABLE, ROWS)}


def differences(graph: RandomGraph, feeds: Values, along: Values, seeds: Values) -> float | None:
    """Derivative along a direction by central differences; None at a kink."""

    def objective(t: float) -> float:
        weights = {n: a + t * along[n] for n, a in graph.weights.items()}
        found = graph.values({**feeds, "x": feeds["x"] + t * along["x"]}, weights)
        return float(sum((seeds[n] * v).sum() for n, v in found.items()))

    found = [(objective(h) - objective(-h)) / (2 * h) for h in (1e-4, 1e-5)]
    return found[1] if abs(found[0] - found[1]) < 1e-5 * (1 + abs(found[1])) else None


def check(seed: int, engine: str) -> str:
    """Compare one model; 'right', 'refused' or 'kink'."""
    graph, feeds = random_graph(seed), feeds_of(seed)
    model = graph.model(np.float32, "N" if seed % 2 else ROWS)
    rng = np.random.default_rng(seed + 1)
    seeds = {n: rng.normal(size=v.shape) for n, v in graph.values(feeds, graph.weights).items()}
    along = {n: rng.normal(size=a.shape) for n, a in {"x": feeds["x"], **graph.weights}.items()}
    wanted = differences(graph, feeds, along, seeds)
    if wanted is None:
        return "kink"
    # A weight that is an output, too, has another name.
    called = {n: f"{n}_value" if n in graph.outputs else n for n in graph.weights}
    try:
        made = gradient_graph(model, wrt=list(called.values()), engine=engine)
    except (
        GradientNotImplementedError,
        NonDifferentiableError,
    ):  # the latter where places alone depend on it
        return "refused"
    names = GradientNames.of(made)
    given = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in feeds.items()}
    given |= {called[n]: a.astype(np.float32) for n, a in graph.weights.items()}
    given |= {names.seeds[n]: a.astype(np.float32) for n, a in seeds.items()}
    asked = {i.name for i in made.graph.input}
    outputs = [names.gradients[called.get(n, n)] for n in along]
    session = create_session(made)
    found = session.run(outputs, {n: a for n, a in given.items() if n in asked})
    got = sum(float((g.astype(np.float64) * along[n]).sum()) for n, g in zip(along, found, strict=True))
    size = 1 + sum(float(np.abs(g * along[n]).sum()) for n, g in zip(along, found, strict=True))
    assert abs(got - wanted) < 2e-4 * size, f"seed {seed}, engine {engine!r}: {got} in place of {wanted}"
    # The same by the two halves.
    function = OrtGradientForwardBackward(model, list(called.values()), engine=engine).new_instance()
    ordered = [given[n] for n in function._grad_input_names]
    values = function.forward(ordered, training=True)
    halves = function.backward([seeds[n].astype(np.float32) for n in function._output_names])
    for n, v in zip(function._output_names, values, strict=True):
        np.testing.assert_allclose(v.numpy(), graph.values(feeds, graph.weights)[n], rtol=1e-3, atol=1e-4)
    for whole, half in zip(found, halves, strict=True):
        np.testing.assert_allclose(half.numpy(), whole, rtol=1e-3, atol=1e-4 * size)
    return "right"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("first", [0, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_gradients(first: int, engine: str) -> None:
    counts = Counter(check(seed, engine) for seed in range(first, first + 20))
    assert counts["right"] >= (18 if engine == "onnx" else 10), counts


def test_a_weight_that_is_an_output_is_asked_for_by_its_own_name() -> None:
    model = random_graph(7).model()
    assert "b" in {v.name for v in model.graph.output}
    with pytest.raises(UnknownNameError, match="no weight 'b'; it has 'w', 'b_value'"):
        gradient_graph(model, wrt=["b"])


def test_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = differences
    monkeypatch.setattr(sys.modules[__name__], "differences", lambda *a: 1.01 * (right(*a) or 0) + 0.1)
    with pytest.raises(AssertionError, match="in place of"):
        check(0, "onnx")


if __name__ == "__main__":
    chosen = range(int(sys.argv[1]), int(sys.argv[2]))
    names = ["onnx"] + ["ort"] * training_available()
    sys.exit(sum(run_seeds(name, functools.partial(check, engine=name), chosen) for name in names))
