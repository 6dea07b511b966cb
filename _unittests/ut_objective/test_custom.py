"""Custom losses: functions of the builder and ONNX models, differentiated by the gradient engine."""

import copy
import pickle

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from scipy.special import softmax
from sklearn.base import clone

from onnxcustom import OnnxRegressor, TrainingStep
from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.graph.building.builder import Builder
from onnxcustom.objective import CustomLoss, Loss, SoftmaxCrossEntropyLearningLoss

pytest.importorskip("onnxruntime")


def run(loss, y, p, w=None):
    value, gradient = loss.loss_gradient("cpu", y, p, w)
    return value.numpy(), gradient.numpy()


def log_cosh(op, predicted, expected):
    d = predicted - expected
    return op.Log((op.Exp(d) + op.Exp(-d)) * 0.5)


def log_cosh_rows(op, predicted, expected):
    return op.ReduceSum(log_cosh(op, predicted, expected), [1], keepdims=0)


def log_cosh_pair(op, predicted, expected):
    return log_cosh(op, predicted, expected), op.Tanh(predicted - expected)


def constant_margin(op, predicted, expected):
    return op.Relu(0.5 - (predicted - expected))


def cross_entropy(op, predicted, expected):
    log_p = op.LogSoftmax(predicted, axis=1)
    return -op.GatherElements(log_p, op.Unsqueeze(expected, [1]), axis=1)


def mean_square(op, predicted, expected):
    d = predicted - expected
    return op.ReduceMean(d * d, keepdims=0)


def nonsense(op, predicted, expected):
    return 3


MODEL = """<ir_version: 7, opset_import: ["": 13]>
square (float[N,C] predicted, float[N,C] expected) => (float[N,C] losses)
<float factor = {3}> { d = Sub(predicted, expected)  s = Mul(d, d)  losses = Mul(s, factor) }"""
# Positions count where the names are others; here the model sums the columns itself.
ROWS = """<ir_version: 7, opset_import: ["": 13]>
square (float[N,C] guess, float[N,C] truth) => (float[N] losses)
<float factor = {3}, int64[1] axes = {1}>
{ d = Sub(guess, truth)  s = Mul(d, d)  t = Mul(s, factor)  losses = ReduceSum<keepdims=0>(t, axes) }"""
WEIGHTED = """<ir_version: 7, opset_import: ["": 13]>
square (float[N,C] predicted, float[N,C] expected, float[N] w) => (float[N,C] losses)
<float factor = {3}, int64[1] axes = {1}>
{ d = Sub(predicted, expected)  s = Mul(d, d)  t = Mul(s, factor)  u = Unsqueeze(w, axes)
  losses = Mul(t, u) }"""
LABELS = """<ir_version: 7, opset_import: ["": 13]>
nll (float[N,C] predicted, int64[N] expected) => (float[N] losses)
<int64[1] axes = {1}>
{ l = LogSoftmax<axis=1>(predicted)  i = Unsqueeze(expected, axes)  g = GatherElements<axis=1>(l, i)
  s = Squeeze(g, axes)  losses = Neg(s) }"""
SCALAR = """<ir_version: 7, opset_import: ["": 13]>
mean (float[N,C] predicted, float[N,C] expected) => (float losses)
{ d = Sub(predicted, expected)  losses = ReduceMean<keepdims=0>(d) }"""
ONE_INPUT = """<ir_version: 7, opset_import: ["": 13]>
one (float[N,C] predicted) => (float[N,C] losses) { losses = Abs(predicted) }"""


def parse(text):
    return onnx.parser.parse_model(text)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=(2, 5, 2)).astype(np.float32)
    return y, p, np.linspace(0, 1, 5, dtype=np.float32)


@pytest.mark.parametrize("function", [log_cosh, log_cosh_rows, log_cosh_pair])
@pytest.mark.parametrize("weighted", [False, True])
def test_function(batch, function, weighted):
    y, p, w = batch
    rows = np.log(np.cosh(p - y)).sum(axis=1)
    scale = w if weighted else np.ones_like(w)
    loss = CustomLoss(function)
    value, gradient = run(loss, y, p, w if weighted else None)
    np.testing.assert_allclose(value, (scale * rows).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, scale[:, None] * np.tanh(p - y), rtol=1e-5, atol=1e-6)
    scores = loss.loss_scores("cpu", y, p, w if weighted else None).numpy()
    np.testing.assert_allclose(scores, scale * rows, rtol=1e-4, atol=1e-6)


def test_function_on_vectors_and_columns(batch):
    y, p = batch[0][:, 0], batch[1][:, 0]
    for a, b in [(y, p), (y[:, None], p), (y, p[:, None])]:
        value, gradient = run(CustomLoss(log_cosh), a, b)
        np.testing.assert_allclose(value, np.log(np.cosh(p - y)).sum(), rtol=1e-5)
        np.testing.assert_allclose(gradient.ravel(), np.tanh(p - y), rtol=1e-5)


def test_function_with_constants(batch):
    y, p, _ = batch
    value, gradient = run(CustomLoss(constant_margin), y, p)
    np.testing.assert_allclose(value, np.maximum(0, 0.5 - (p - y)).sum(), rtol=1e-5)
    np.testing.assert_array_equal(gradient, -1.0 * (0.5 - (p - y) > 0))


@pytest.mark.parametrize(
    "make", [lambda: CustomLoss(cross_entropy, labels=True), lambda: CustomLoss(parse(LABELS))]
)
def test_labels(batch, make):
    p, y = batch[1], np.array([0, 1, 1, 0, 1])
    loss, theirs = make(), SoftmaxCrossEntropyLearningLoss()
    for target in (y, y[:, None], y.astype(np.int32)):
        for w in (None, batch[2]):
            ours, known = run(loss, target, p, w), run(theirs, y, p, w)
            np.testing.assert_allclose(ours[0], known[0], rtol=1e-5)
            np.testing.assert_allclose(ours[1], known[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [MODEL, ROWS, WEIGHTED], ids=["elementwise", "rows", "weighted"])
@pytest.mark.parametrize("weighted", [False, True])
def test_model(batch, text, weighted):
    y, p, w = batch
    scale = w if weighted else np.ones_like(w)
    value, gradient = run(CustomLoss(parse(text)), y, p, w if weighted else None)
    np.testing.assert_allclose(value, (3 * scale[:, None] * (p - y) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 6 * scale[:, None] * (p - y), rtol=1e-5)


def test_model_in_every_form(batch, tmp_path):
    y, p, _ = batch
    proto = parse(MODEL)
    path = tmp_path / "loss.onnx"
    onnx.save(proto, path)
    for form in (proto, proto.SerializeToString(), path, str(path), ir.from_proto(proto)):
        loss = Loss.select(form)
        assert isinstance(loss, CustomLoss)
        np.testing.assert_allclose(run(loss, y, p)[1], 6 * (p - y), rtol=1e-5)


@pytest.mark.parametrize("opset", [pytest.param(15, marks=pytest.mark.ort), 18, 20])
def test_model_of_another_opset_joins_a_graph(opset):
    op = Builder(opset)
    p, y = op.input("p", ir.DataType.FLOAT, ["N", 2]), op.input("y", ir.DataType.FLOAT, ["N", 2])
    terms = CustomLoss(parse(MODEL)).build(op, p, y)
    for output in (terms.loss, terms.gradient, terms.scores):
        output.value.dtype = ir.DataType.FLOAT
    graph = op.graph([p, y], [terms.loss, terms.gradient, terms.scores])
    onnx.checker.check_model(ir.to_proto(ir.Model(graph, ir_version=8)), full_check=True)


def test_two_of_them_in_one_graph():
    op = Builder(19)
    p, y = (
        op.input("predicted", ir.DataType.FLOAT, ["N", 2]),
        op.input("expected", ir.DataType.FLOAT, ["N", 2]),
    )
    made = [CustomLoss(source).build(op, p, y) for source in (log_cosh, log_cosh, parse(MODEL), parse(MODEL))]
    outputs = [m.gradient for m in made]
    for output in outputs:
        output.value.dtype = ir.DataType.FLOAT
    model = ir.to_proto(ir.Model(op.graph([p, y], outputs), ir_version=8))
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("loss", [log_cosh, parse(MODEL)], ids=["function", "model"])
def test_pickle_copy_and_clone(batch, loss):
    y, p, _ = batch
    loss = CustomLoss(loss)
    before = run(loss, y, p)
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss), clone(loss)):
        np.testing.assert_array_equal(run(other, y, p)[1], before[1])


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (mean_square, "one number for the whole batch"),
        (parse(SCALAR), "one number for the whole batch"),
    ],
    ids=["function", "model"],
)
def test_a_loss_without_rows_is_refused(batch, loss, words):
    with pytest.raises(InvalidDataError, match=words):
        run(CustomLoss(loss), *batch[:2])


def test_bad_losses_are_refused(batch):
    y, p, _ = batch
    with pytest.raises(InvalidModelError, match="returned int"):
        run(CustomLoss(nonsense), y, p)
    with pytest.raises(InvalidModelError, match=r"inputs \['predicted'\]"):
        run(CustomLoss(parse(ONE_INPUT)), y, p)
    with pytest.raises(InvalidModelError, match=r"predicted.*FLOAT.*DOUBLE"):
        run(CustomLoss(parse(MODEL)), y, p.astype(np.float64))
    with pytest.raises(InvalidModelError):
        run(CustomLoss(b"not a model"), y, p)
    with pytest.raises(UnknownNameError, match="'tanh'"):
        run(CustomLoss(log_cosh, on="tanh"), y, p)
    with pytest.raises(UnknownNameError, match=r"engine|'abacus'"):
        run(CustomLoss(log_cosh, engine="abacus"), y, p)


def place_and_kind(op, predicted, expected):
    d = op.Slice(predicted, [0], [2], [1]) - op.Slice(expected, [0], [2], [1])
    scores = op.LogSoftmax(op.Slice(predicted, [2], [5], [1]), axis=1)
    kind = op.Cast(op.Slice(expected, [2], [3], [1]), to=7)
    return op.ReduceSum(d * d, [1], keepdims=1) - op.GatherElements(scores, kind, axis=1)


def test_columns_of_several_kinds_are_expected():
    """Two numbers and a class, side by side: ten steps, and those of an estimator, are those of NumPy."""
    rng = np.random.default_rng(8)
    X, W = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 4), (4, 5)))
    y = np.column_stack([rng.normal(size=(6, 2)), [0, 1, 2, 2, 1, 0]]).astype(np.float32)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> m (float[N, 4] X) => (float[N, 5] Y) { Y = MatMul(X, W) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "W"))
    loss = CustomLoss(place_and_kind, target=("float32", ["N", 3]))
    net = OnnxRegressor(model, loss=loss, learning_rate=0.05, batch_size=6, shuffle=False, max_iter=10)
    step, w = TrainingStep(model, loss=loss, learning_rate=0.05), W.astype(np.float64)
    for _ in range(10):
        z = X @ w
        p = softmax(z[:, 2:], axis=1)
        d, chosen = z[:, :2] - y[:, :2], np.eye(3)[y[:, 2].astype(int)]
        wanted = ((d**2).sum(1) - np.log((p * chosen).sum(1))).mean()
        assert step.run(X, y) == pytest.approx(wanted, rel=1e-5)
        w -= 0.05 / 6 * X.T @ np.concatenate([2 * d, p - chosen], axis=1)
    np.testing.assert_allclose(step.weights()["W"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.fit(X, y).weights_["W"], w, rtol=1e-4, atol=1e-5)
