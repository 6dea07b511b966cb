"""Constants that are compared only: errors and reports say so, by what becomes of them, not by a name."""

import numpy as np
import onnx.parser
import pytest
from skl2onnx import to_onnx
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import (
    KNeighborsClassifier,
    KNeighborsRegressor,
    RadiusNeighborsClassifier,
    RadiusNeighborsRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep, gradient_graph, gradient_report
from onnxcustom.exceptions import NonDifferentiableError

WORDS = "Constants that are compared only.*nearest neighbours.*linear models and neural networks have some"
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 4)).astype(np.float32), RNG.integers(0, 3, 40)

MODELS = {
    "classifier": (KNeighborsClassifier(3), "TopK"),
    "manhattan": (KNeighborsClassifier(3, metric="manhattan"), "TopK"),
    "behind a scaler": (make_pipeline(StandardScaler(), KNeighborsClassifier(3)), "TopK"),
    "regressor": (KNeighborsRegressor(3), "TopK"),
    "radius": (RadiusNeighborsClassifier(3.0, outlier_label=0), "Less"),
    "radius, regressor": (RadiusNeighborsRegressor(3.0), "Less"),
}


@pytest.mark.parametrize("name", MODELS)
def test_neighbours(name):
    estimator, op_type = MODELS[name]
    numbers = "Regressor" in repr(estimator)
    estimator.fit(X, Y.astype(np.float32) if numbers else Y)
    options = {} if numbers else {"options": {"zipmap": False}}
    model = to_onnx(estimator, X[:1], target_opset={"": 17, "ai.onnx.ml": 3}, **options)
    ways = [lambda: TrainingStep(model), lambda: gradient_graph(model)]
    if op_type == "TopK":  # onnxruntime 1.17 does not run what is written for a radius
        ways.append(lambda: (OnnxRegressor if numbers else OnnxClassifier)(model).fit(X, Y))
    for train in ways:
        with pytest.raises(NonDifferentiableError, match=WORDS) as caught:
            train()
        assert caught.value.op_type == op_type
    report = gradient_report(model)
    assert not report.trainable
    assert f"({op_type}): only places, labels or truth values" in report.untrainable
    assert "nearest neighbours" in report.why


NETWORK = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}> {
    a = MatMul(x, w)
    %s }"""


@pytest.mark.parametrize(
    ("nodes", "op_type"),
    [
        ("b = Greater(a, a) y = Cast<to = 1>(b)", "Greater"),
        ("b = Cast<to = 7>(a) y = Cast<to = 1>(b)", "Cast"),
        ("b = Cast<to = 7>(a) c = Greater(b, b) y = Cast<to = 1>(c)", "Cast"),
        ("b = ArgMax<axis = 1>(a) y = Cast<to = 1>(b)", "ArgMax"),
    ],
)
def test_networks(nodes, op_type):
    model = onnx.parser.parse_model(NETWORK % nodes)
    with pytest.raises(NonDifferentiableError, match=WORDS) as caught:
        TrainingStep(model)
    assert caught.value.op_type == op_type


def test_what_has_a_gradient_on_another_way_is_trained():
    """Weights of neighbours by their distance move; so does what a truth value multiplies."""
    model = onnx.parser.parse_model(NETWORK % "b = Greater(a, x0) c = Cast<to = 1>(b) y = Mul(a, c)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([0.5, 0.1, 0.2]), "x0"))
    assert TrainingStep(model).weights().keys() == {"w"}
    assert gradient_report(to_onnx(LinearRegression().fit(X, Y), X[:1], target_opset=17)).trainable
