# ruff: noqa: E501 - a node of ONNX text stays on its line
from __future__ import annotations

import numpy as np
import onnx
import pytest
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from onnxcustom import TrainingStep, gradient_report
from onnxcustom.exceptions import InvalidModelError, UnknownNameError
from onnxcustom.graph import prepare
from onnxcustom.objective import BinaryCrossEntropyLearningLoss, SquareLearningLoss
from onnxcustom.runtime import create_session
from onnxcustom.step.targets import (
    float_outputs,
    prediction_tensors,
    select_targets,
    tensor_shape,
)

TEXT = """<ir_version: 8, opset_import: ["": 18]>
g (float[N,2] x) => (int64[N] best, float[N,3] p, float[N,1] s, double[N,T,4] t)
<float[2,3] w = {1, 2, 3, 4, 5, 6}, float[2,1] v = {1, 2}, double[1,1,4] q = {1, 2, 3, 4}, int64[1] one = {1}>
{
    z = MatMul(x, w) p = Softmax(z) best = ArgMax <axis = 1, keepdims = 0> (p)
    m = MatMul(x, v) s = Sigmoid(m)
    d = Cast <to = 11> (x) e = Unsqueeze(d, one) f = ReduceSum <keepdims = 1> (d, one)
    h = Unsqueeze(f, one) k = Mul(h, q) t = Softmax <axis = -1> (k)
}"""


@pytest.fixture
def model():
    return prepare(onnx.parser.parse_model(TEXT))


@pytest.fixture(scope="module")
def zipmap():
    X = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    est = LogisticRegression().fit(X, X[:, 0] > 0)
    return prepare(to_onnx(est, X[:1], target_opset={"": 18, "ai.onnx.ml": 3}))


def test_outputs(model, zipmap):
    assert float_outputs(model) == ["p", "s", "t"]
    assert prediction_tensors(model) == {"p": "p", "s": "s", "t": "t"}
    assert float_outputs(zipmap) == []
    assert list(prediction_tensors(zipmap)) == ["output_probability"]


def test_the_first_output_by_default(model, zipmap):
    (target,) = select_targets(model, "squared_error")
    assert (target.output, target.value, target.weight, target.columns) == ("p", "p", 1.0, 3)
    (target,) = select_targets(zipmap, "binary_crossentropy")
    assert target.output == "output_probability"
    assert target.value != "output_probability"
    assert target.columns == 1


def test_losses_by_output(model):
    loss = {"s": BinaryCrossEntropyLearningLoss(), "p": "softmax_crossentropy", "t": "softmax_crossentropy"}
    s, p, t = select_targets(model, loss, {"p": 2})
    assert (s.output, s.value, s.weight, s.axis, s.columns) == ("s", "m", 1.0, 1, 1)
    assert (p.output, p.value, p.weight, p.axis, p.columns) == ("p", "z", 2.0, 1, 3)
    assert (t.output, t.value, t.axis, t.columns) == ("t", "k", 2, 4)


def test_a_loss_on_the_output_itself(model):
    (s,) = select_targets(model, {"s": SquareLearningLoss()})
    assert s.value == "s"


@pytest.mark.parametrize(
    ("loss", "factors", "error", "message"),
    [
        (
            {"nope": "square"},
            None,
            UnknownNameError,
            r"no output 'nope'; its outputs are \['best', 'p', 's', 't'\]",
        ),
        ({}, None, UnknownNameError, "No loss given"),
        ("square", {"nope": 1}, UnknownNameError, "no output 'nope'"),
        ("square", {"s": 1}, UnknownNameError, r"loss_weights names \['s'\], which have no loss"),
        ("square", {"p": np.inf}, ValueError, r"output 'p' must be a number in \[0, inf\), not inf"),
        ("square", {"p": -1.0}, ValueError, "not -1.0"),
        ({"best": "square"}, None, InvalidModelError, r"'best' is not a floating-point.*\['p', 's', 't'\]"),
        ({"best": "bce"}, None, InvalidModelError, "'best' is not a floating-point"),
        ({"p": "bce"}, None, InvalidModelError, "a final sigmoid reads, but output 'p' ends in a softmax"),
        ({"s": "cross_entropy"}, None, InvalidModelError, "output 's' ends in a sigmoid"),
        ("nope", None, UnknownNameError, "nope"),
    ],
)
def test_errors(model, loss, factors, error, message):
    with pytest.raises(error, match=message):
        select_targets(model, loss, factors)


def test_no_output_to_train():
    model = prepare(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[N,2] x) => (int64[N] best) { best = ArgMax <axis = 1, keepdims = 0> (x) }""")
    )
    with pytest.raises(InvalidModelError, match=r"outputs \['best'\] is a floating-point"):
        select_targets(model, "squared_error")


def test_a_loss_the_model_computes_itself():
    model = prepare(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[N,2] x) => (float loss) { loss = ReduceSum <keepdims = 0> (x) }""")
    )
    (target,) = select_targets(model, "squared_error")  # of all rows, which are one to it
    assert (target.rows, target.shape) == (None, ())


def test_shapes(model):
    assert tensor_shape(model, "p")[1] == 3
    assert tensor_shape(model, "x") == ["N", 2]
    assert tensor_shape(model, "nope") is None


# -- outputs that are decisions ----------------------------------------------------------------------------

ENDS = {
    "index": "y = ArgMax <axis = -1, keepdims = 0> (s)",
    "kept": "y = ArgMax <axis = -1, keepdims = 1> (s)",
    "cast": "a = ArgMax <axis = 1, keepdims = 1> (s) k = Constant <value = int64[1] {1}> () c = Squeeze (a, k) y = Cast <to = 7> (c)",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_model_that_gives_out_classes_alone_trains_by_their_scores(end):
    """As the same model does that gives out the scores; what comes out of it still gives out classes."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (OUTPUT)
        <float[2, 3] w = {1, 0, -1, 0.5, 1, -1}, float[3] b = {0, 0, 0}> { z = MatMul (x, w) s = Add (z, b) END }"""
    kind = "int64[N, 1] y" if end == "kept" else "int64[N] y"
    classes = onnx.parser.parse_model(text.replace("OUTPUT", kind).replace("END", ENDS[end]))
    scores = onnx.parser.parse_model(text.replace("OUTPUT", "float[N, 3] s").replace("END", ""))
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    y = (x[:, 0] > 0) + (x[:, 1] > 0).astype(np.int64)
    one, two = (TrainingStep(m, "softmax_crossentropy", "adam") for m in (classes, scores))
    assert [one.run(x, y) for _ in range(10)] == [two.run(x, y) for _ in range(10)]
    np.testing.assert_array_equal(one.predict(x)["y"], two.predict(x)["s"])
    assert gradient_report(classes).trainable
    trained = create_session(one.trained_model())
    (found,) = trained.run(None, {"x": x})
    np.testing.assert_array_equal(np.ravel(found), two.predict(x)["s"].argmax(axis=1))


def test_a_place_of_something_else_is_no_decision():
    text = """<ir_version: 8, opset_import: ["": 17]> g (int64[N, 2] x) => (int64[N] y)
        { y = ArgMax <axis = -1, keepdims = 0> (x) }"""
    assert prediction_tensors(prepare(onnx.parser.parse_model(text))) == {}
