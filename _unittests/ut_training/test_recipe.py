"""A recipe gives graphs and holds nothing that training changes; a state is what training changes."""

from __future__ import annotations

import dataclasses
import importlib
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep
from onnxcustom.graph import to_proto

from .older_steps import MODEL, OPTIONS, batch

WRITTEN = Path(__file__).with_name("older_steps.pickle")


def step_of(**options) -> TrainingStep:
    return TrainingStep(onnx.parser.parse_model(MODEL), **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_pickled_recipe_gives_the_same_graphs(name: str) -> None:
    step = step_of(**OPTIONS[name])
    step.run(*batch())
    copy = pickle.loads(pickle.dumps(step.recipe))
    assert vars(copy).keys() == {field.name for field in dataclasses.fields(copy)}  # nothing that was derived
    for phase in ("update",) if step.optimizer.accumulate == 1 else ("update", "accumulate", "apply"):
        one, other = (to_proto(r.compose(r.weighted, phase).model) for r in (step.recipe, copy))
        assert one == other


def test_recipe_of_a_step_that_trains_stays() -> None:
    """What training changes is in the state: the recipe, and the model in it, are what they were."""
    step = step_of(optimizer="adam", batch_norm="update")
    before = pickle.dumps(step.recipe.replace(rule=None))
    for _ in range(3):
        step.run(*batch())
    step.set_weights({name: 2 * array for name, array in step.weights().items()})
    assert pickle.dumps(step.recipe.replace(rule=None)) == before


def test_what_does_not_change_is_derived_once() -> None:
    step = step_of()
    recipe, base, trunk = step.recipe, step.recipe.base, step.recipe.trunk
    other = recipe.replace(recompute=True)
    assert (other.base, other.trunk, other.axes) == (base, trunk, recipe.axes)
    assert other.graph() is not recipe.graph()
    retargeted = recipe.replace(targets=recipe.targets)
    assert retargeted.base is base
    assert retargeted.trunk is not trunk
    assert recipe.replace(proto=recipe.proto).base is not base


def test_pickles_of_the_version_before() -> None:
    """They go on where they were: to the same bits where they were written, nearly so on other runtimes."""
    X, y = batch()
    for name, (written, weights, statistics, iteration) in pickle.loads(WRITTEN.read_bytes()).items():
        step = pickle.loads(written)
        for _ in range(3):
            step.run(X, y)
        assert step.iteration == iteration, name
        for found, wanted in ((step.weights(), weights), (step.statistics(), statistics)):
            assert found.keys() == wanted.keys()
            for key, array in wanted.items():
                np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6, err_msg=f"{name}: {key}")


# -- preparations ------------------------------------------------------------------------------------


@pytest.fixture
def preparations(monkeypatch) -> list[int]:
    """A number that grows with every preparation of a model."""
    # `onnxcustom.graph.prepare` as an attribute is the function.
    module = importlib.import_module("onnxcustom.graph.prepare")
    count, real = [0], module._prepare

    def counting(*args, **kwargs):
        count[0] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "_prepare", counting)
    return count


@pytest.mark.parametrize("Estimator", [OnnxClassifier, OnnxRegressor])
def test_a_fit_prepares_its_model_once(Estimator: type, preparations: list[int]) -> None:
    text = """<ir_version: 8, opset_import: ["": 15]>
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 2] w = {1, 0, 2, 0, 1, 3}> {
            z = MatMul(x, w) y = Softmax(z) }"""
    X, y = batch()
    labels = (y[:, 0] > 0).astype(np.int64)
    Estimator(onnx.parser.parse_model(text), max_iter=2).fit(X, labels if Estimator is OnnxClassifier else y)
    assert preparations == [1]


def test_a_step_and_a_gradient_prepare_once(preparations: list[int]) -> None:
    from onnxcustom import gradient_graph, gradient_report

    X, y = batch()
    model = onnx.parser.parse_model(MODEL)
    for done, use in enumerate(
        (lambda: step_of().run(X, y), lambda: gradient_graph(model), lambda: gradient_report(model)), 1
    ):
        use()
        assert preparations == [done]
