"""The tensor that a loss is taken on, over opsets and spellings; where nothing says it, an error."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from onnxcustom import OnnxClassifier, TrainingStep
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.objective import CustomLoss

from .linear_classes import W, cross_entropy, data

WEIGHT = "float[4, 3] w = {1, 2, 0, -1, 0, 1, 2, 1, -1, 0.5, 0.5, 1}"
HIDDEN = """<ir_version: 6, opset_import: ["": OPSET]> g (float[N, 4] x) => (float[N, 3] p)
<WEIGHT, int64[1] three = {3}, int64[1] zero = {0}, int64[1] one = {1}, bool[2] both = {1, 1},
float tiny = {1e-7}, float unit = {1}> {
    a = MatMul(x, w)  s = Shape(x)  n = Gather(s, zero)  t = Concat <axis = 0> (n, three)
    u = Compress <axis = 0> (t, both)  z = Reshape(a, u)  END }"""


def model(end: str, opset: int = 11, shape: bool = True) -> onnx.ModelProto:
    text = HIDDEN.replace("OPSET", str(opset)).replace("WEIGHT", WEIGHT).replace("END", end)
    made = onnx.parser.parse_model(text)
    if not shape:
        made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


def log_sum(op, predicted, expected):
    """Cross-entropy by the builder."""
    found = op.ReduceSum(op.Exp(predicted), [1], keepdims=1)
    return op.Log(found) - op.GatherElements(predicted, op.Unsqueeze(expected, [1]), axis=1)


ENDS = {
    "softmax": "p = Softmax <axis = 1> (z)",
    "identity": "q = Softmax <axis = 1> (z)  p = Identity(q)",
    "cast": "q = Softmax <axis = 1> (z)  c = Cast <to = 11> (q)  p = Cast <to = 1> (c)",
    "dropout": "q = Softmax <axis = 1> (z)  d = Dropout(q)  p = Max(d)",
    "plus tiny": "q = Softmax <axis = 1> (z)  d = Add(q, tiny)  p = Mul(d, unit)",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 17, 21])
def test_ten_steps_where_only_the_output_declares_its_rank(opset, end):
    X, y = data()
    if opset == 21:
        pytest.importorskip("onnxruntime", minversion="1.18")
    for loss in ("softmax_crossentropy", CustomLoss(log_sum, labels=True, on="softmax")):
        step = TrainingStep(model(ENDS[end], opset), loss, "sgd", learning_rate=0.1)
        assert "on logits 'z' (before Softmax)" in repr(step)
        w = W.astype(np.float64)
        for _ in range(10):
            wanted, gradient = cross_entropy(w, X, y)
            np.testing.assert_allclose(step.run(X, y), wanted, rtol=1e-4)
            w = w - 0.1 * gradient
        np.testing.assert_allclose(step.weights()["w"], w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["softmax_crossentropy", CustomLoss(log_sum, labels=True, on="softmax")])
@pytest.mark.parametrize("opset", [9, 12])
def test_where_nothing_says_the_rank_an_error_asks(opset, loss):
    with pytest.raises(InvalidModelError, match=r"nothing says how many.*declare the shape.*on='output'"):
        TrainingStep(model(ENDS["softmax"], opset, shape=False), loss)


def test_it_can_be_answered():
    X, y = data()
    from onnxcustom.objective import SoftmaxCrossEntropyLearningLoss

    hidden = model(ENDS["softmax"], 11, shape=False)
    step = TrainingStep(hidden, SoftmaxCrossEntropyLearningLoss(from_logits=False), learning_rate=0.1)
    np.testing.assert_allclose(step.run(X, y), cross_entropy(W, X, y)[0], rtol=1e-5)
    assert "on 'p'" in repr(step)


@pytest.mark.parametrize(
    ("end", "loss", "words"),
    [
        (
            "q = Softmax(z)  p = Transpose <perm = [0, 1]> (q)",
            "softmax_crossentropy",
            r"changed by node .*Transpose",
        ),
        (
            "q = Sigmoid(z)  p = Transpose <perm = [0, 1]> (q)",
            "binary_crossentropy",
            r"changed by node .*Transpose",
        ),
        (
            "e = Exp(z)  c = Add(e, k)  p = Reciprocal(c)",
            "binary_crossentropy",
            r"are no tensor of the model",
        ),
        ("p = Softmax(z)", "binary_crossentropy", r"ends in a softmax"),
    ],
)
def test_probabilities_are_not_taken_for_scores(end, loss, words):
    made = model(end, 17)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "k"))
    with pytest.raises(InvalidModelError, match=words):
        TrainingStep(made, loss)


def test_a_factor_that_is_trained_is_no_sign():
    """1 / (1 + exp(m z)) is a sigmoid of z while m is -1; training m, its gradient would be zero."""
    made = model("e = Mul(m, z)  f = Exp(e)  c = Add(f, k)  p = Reciprocal(c)", 17)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.full(3, -1, np.float32), "m"))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "k"))
    with pytest.raises(InvalidModelError, match=r"among the weights to train"):
        TrainingStep(made, "binary_crossentropy")
    step = TrainingStep(made, "binary_crossentropy", freeze="m")
    assert "on logits 'z' (before Sigmoid)" in repr(step)


@pytest.mark.parametrize("opset", [9, 12, 13])
def test_classes_with_axes_of_length_one_behind(opset):
    """Convolutional classifiers of early opsets end in Softmax over (N, C, 1, 1)."""
    made = onnx.parser.parse_model(f"""<ir_version: 6, opset_import: ["": {opset}]>
    g (float[N, 4, 1, 1] x) => (float[N, 3, 1, 1] p) <float[3, 4, 1, 1] w =
    {{1, -1, 2, 0.5, 2, 0, 1, 0.5, 0, 1, -1, 1}}> {{ z = Conv(x, w)  p = Softmax <axis = 1> (z) }}""")
    X, y = data()
    step = TrainingStep(made, "softmax_crossentropy", learning_rate=0.1)
    assert "on logits 'z' (before Softmax)" in repr(step)
    found = step.run(X[:, :, None, None], y[:, None, None])
    np.testing.assert_allclose(found, cross_entropy(W, X, y)[0], rtol=1e-5)


def test_tokens_behind_log_softmax():
    made = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 5, 4] x) => (float[N, 5, 3] p) <{WEIGHT}> {{ z = MatMul(x, w)  p = LogSoftmax(z) }}""")
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(2, 5, 4)).astype(np.float32), rng.integers(0, 3, size=(2, 5))
    step = TrainingStep(made, "softmax_crossentropy", learning_rate=0.0)
    mean = cross_entropy(W, X.reshape(-1, 4), y.ravel())[0]
    found = step.run(X, y)
    assert np.isclose(found, mean, rtol=1e-5) or np.isclose(found, 5 * mean, rtol=1e-5)


def test_the_classifier_says_it_too():
    X, y = data(60)
    clf = OnnxClassifier(model(ENDS["softmax"]), max_iter=2, random_state=0).fit(X, y)
    assert "on logits 'z' (before Softmax)" in repr(clf.step_)
    np.testing.assert_allclose(clf.predict_proba(X).sum(axis=1), 1, rtol=1e-5)
