"""The loss is taken on the scores whatever harmless nodes follow Softmax or Sigmoid; others are refused."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from onnxcustom import TrainingStep
from onnxcustom.exceptions import InvalidModelError, MissingRuntimeError

from .linear_classes import W, cross_entropy, data

CONSTANTS = (
    "float[4, 3] w = {1, 2, 0, -1, 0, 1, 2, 1, -1, 0.5, 0.5, 1}, float one = {1}, float half = {0.5}, "
    "float two = {2}, float thirty = {30}, float tiny = {1e-7}, float low = {0.1}, float minus = {-1}, "
    "float[1] unit = {1}, float[3] scale = {1, 2, 3}, int64[1] last = {-1}, int64[1] first = {0}, "
    "float[3, 3] v = {1, 2, 0, 0, 1, 1, 2, 1, 1}"
)


def reduce(to: str, kind: str, of: str, opset: int) -> str:
    """A reduction of the last axis that stays."""
    by_input = opset >= 13 if kind == "Sum" else opset >= 18
    if by_input:
        return f"{to} = Reduce{kind} <keepdims = 1> ({of}, last)"
    return f"{to} = Reduce{kind} <axes = [-1], keepdims = 1> ({of})"


def clip(to: str, of: str, low: float, opset: int) -> str:
    """Bounds as attributes or as inputs."""
    if opset >= 11:
        return f"{to} = Clip({of}, {'tiny' if low < 1e-3 else 'low'}, one)"
    return f"{to} = Clip <min = {low:.8f}, max = 1.0> ({of})"


def model(end: str, opset: int) -> onnx.ModelProto:
    for kind in ("Sum", "Max", "LogSumExp"):
        while (mark := f"{kind.upper()}[") in end:
            before, _, rest = end.partition(mark)
            inner, _, after = rest.partition("]")
            to, of = inner.split(",")
            end = before + reduce(to, kind, of, opset) + after
    while "CLIP[" in end:
        before, _, rest = end.partition("CLIP[")
        inner, _, after = rest.partition("]")
        to, of, low = inner.split(",")
        end = before + clip(to, of, float(low), opset) + after
    return onnx.parser.parse_model(
        f'<ir_version: 6, opset_import: ["": {opset}]> g (float[N, 4] x) => (float[A, B] p) <{CONSTANTS}> '
        f"{{ z = MatMul(x, w)  {end} }}"
    )


def log_loss(w: np.ndarray, X: np.ndarray, y: np.ndarray) -> float:
    p = 1 / (1 + np.exp(-(X.astype(np.float64) @ w)))
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(1).mean())


KEEPING = {
    "dropout": "p = Dropout(s)",
    "clip": "CLIP[p,s,1e-7]",
    "times one": "p = Mul(s, one)",
    "one times": "p = Mul(unit, s)",
    "by one": "p = Div(s, one)",
    "plus tiny": "p = Add(s, tiny)",
    "tiny plus": "p = Add(tiny, s)",
    "minus tiny": "p = Sub(s, tiny)",
    "max with tiny": "p = Max(s, tiny)",
    "min with one": "p = Min(one, s)",
    "max": "p = Max(s)",
    "max of the same": "p = Max(s, s)",
    "sum": "p = Sum(s)",
    "mean": "p = Mean(s)",
    "mean of the same": "p = Mean(s, s)",
    "abs": "p = Abs(s)",
    "relu": "p = Relu(s)",
    "concat": "p = Concat <axis = 1> (s)",
    "many": "a = Dropout(s)  CLIP[b,a,1e-7]  c = Concat <axis = 0> (b)  d = Add(c, tiny)  p = Identity(d)",
}
SPELLED = {
    "exp": "e = Exp(z)  SUM[t,e]  p = Div(e, t)",
    "without maximum": "MAX[m,z]  u = Sub(z, m)  e = Exp(u)  SUM[t,e]  p = Div(e, t)",
    "with reciprocal": "e = Exp(z)  SUM[t,e]  r = Reciprocal(t)  p = Mul(r, e)",
    "protected": "e = Exp(z)  SUM[t,e]  a = Add(t, tiny)  q = Div(e, a)  CLIP[p,q,1e-7]",
    "dropout inside": "e = Exp(z)  d = Dropout(e)  SUM[t,d]  p = Div(d, t)",
    "lp": "e = Exp(z)  p = LpNormalization <p = 1> (e)",
    "exp of log softmax": "l = LogSoftmax <axis = 1> (z)  p = Exp(l)",
    "exp, clip": "l = LogSoftmax <axis = 1> (z)  d = Dropout(l)  e = Exp(d)  CLIP[p,e,1e-7]",
    "log sum exp": "LOGSUMEXP[t,z]  u = Sub(z, t)  p = Exp(u)",
    "maximum and log": "MAX[m,z]  u = Sub(z, m)  e = Exp(u)  SUM[t,e]  l = Log(t)  "
    "a = Add(m, l)  q = Sub(z, a)  p = Exp(q)",
    "log of sum": "MAX[m,z]  u = Sub(z, m)  e = Exp(u)  SUM[t,e]  l = Log(t)  q = Sub(u, l)  p = Exp(q)",
}
SIGMOIDS = {
    "tanh": "h = Mul(half, z)  t = Tanh(h)  u = Mul(t, half)  p = Add(u, half)",
    "tanh by two": "h = Div(z, two)  t = Tanh(h)  u = Add(one, t)  p = Div(u, two)",
    "exp by sum": "e = Exp(z)  a = Add(e, one)  p = Div(e, a)",
    "softplus": "n = Neg(z)  o = Softplus(n)  l = Neg(o)  p = Exp(l)",
    "exp": "n = Neg(z)  e = Exp(n)  a = Add(e, one)  p = Div(one, a)",
}
OPSETS = [9, 12, 13, 18]


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize(
    "end", ["p = Dropout(s)", "CLIP[c,s,1e-7]  p = Dropout(c)", "p = Dropout(s, half, training)"]
)
def test_dropout_of_late_opsets(end, opset):
    made = model(f"s = Softmax(z)  {end}", opset)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(False), "training"))
    X, y = data()
    try:
        step = TrainingStep(made, "cross_entropy")
    except (InvalidModelError, MissingRuntimeError) as exc:
        pytest.skip(f"this onnxruntime is older than the opset: {exc}")
    np.testing.assert_allclose(step.run(X, y), cross_entropy(W, X, y)[0], rtol=1e-5)


def test_a_long_tail():
    """Thousands of nodes are followed without recursion."""
    from onnxcustom.graph import hidden_logits, prepare

    steps = "  ".join(f"a{i + 1} = Add(a{i}, low)" for i in range(3000))
    made = prepare(model(f"s = Softmax(z)  a0 = Abs(s)  {steps}  p = Add(a3000, a3000)", 17))
    assert hidden_logits(made, "p", ["w"]).startswith("comes from node")


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", [*KEEPING, *SPELLED])
def test_cross_entropy_is_that_of_the_scores(name, opset):
    end = SPELLED.get(name) or f"s = Softmax <axis = 1> (z)  {KEEPING[name]}"
    step = TrainingStep(model(end, opset), "cross_entropy", "sgd", learning_rate=0.1)
    X, y = data()
    w = W.astype(np.float64)
    for _ in range(3):
        wanted, gradient = cross_entropy(w, X, y)
        np.testing.assert_allclose(step.run(X, y), wanted, rtol=1e-4)
        w = w - 0.1 * gradient
    np.testing.assert_allclose(step.weights()["w"], w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", [*KEEPING, *SIGMOIDS])
def test_log_loss_is_that_of_the_scores(name, opset):
    end = f"s = Sigmoid(z)  {KEEPING[name]}" if name in KEEPING else SIGMOIDS[name]
    X, y = data()
    labels = np.eye(3, dtype=np.float32)[y]
    found = TrainingStep(model(end, opset), "binary_cross_entropy").run(X, labels)
    np.testing.assert_allclose(found, log_loss(W, X, labels), rtol=1e-4)


CHANGED = {
    "sum with itself": "p = Add(s, s)",
    "concatenated with itself": "p = Concat <axis = 1> (s, s)",
    "back and forth": "a = Transpose(s)  b = Dropout(a)  p = Transpose(b)",
    "smoothed": "a = Mul(s, half)  p = Add(a, low)",
    "cut off": "CLIP[p,s,0.1]",
    "root": "p = Sqrt(s)",
    "complement": "p = Sub(one, s)",
    "mixture": "a = Softmax <axis = 1> (x2)  b = Add(s, a)  p = Mul(b, half)",
}
ODD = {
    "sum over rows too": "e = Exp(z)  t = ReduceSum <keepdims = 1> (e)  p = Div(e, t)",
    "sum without axis": "e = Exp(z)  SUM[t,e]  r = Squeeze(t)  f = Unsqueeze(r, last)  p = Div(e, f)",
}


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("name", CHANGED)
def test_changed_probabilities_are_refused(name, loss):
    link = "Softmax <axis = 1>" if loss == "cross_entropy" else "Sigmoid"
    end = f"x2 = Neg(z)  s = {link} (z)  {CHANGED[name]}"
    with pytest.raises(
        InvalidModelError, match=r"holds probabilities: it comes from node .*is then changed by"
    ):
        TrainingStep(model(end, 17), loss)


@pytest.mark.parametrize("name", ODD)
def test_a_softmax_of_no_one_axis_is_refused(name):
    with pytest.raises(InvalidModelError, match=r"holds probabilities: it comes from .*a softmax"):
        TrainingStep(model(ODD[name], 17), "cross_entropy")


def test_a_tanh_without_scores_is_refused():
    end = "t = Tanh(z)  u = Mul(t, half)  p = Add(u, half)"
    with pytest.raises(InvalidModelError, match=r"written with Tanh .* times 2, are no tensor"):
        TrainingStep(model(end, 17), "binary_cross_entropy")


# What is computed of an inner Softmax or Sigmoid by weights, or with scores, is a score.
SCORES = {
    "attention": "s = Softmax(z)  p = MatMul(s, v)",
    "attention, residual": "s = Softmax(z)  a = MatMul(s, v)  p = Add(a, z)",
    "learned scale": "s = Softmax(z)  p = Mul(s, scale)",
    "gate": "s = Sigmoid(z)  p = Mul(s, z)",
    "softmax gate": "s = Softmax(z)  p = Mul(z, s)",
    "residual": "s = Softmax(z)  p = Add(s, z)",
    "soft bounds": "a = Div(z, thirty)  s = Tanh(a)  p = Mul(s, thirty)",
    "sigmoid bounds": "s = Sigmoid(z)  p = Mul(s, thirty)",
    "logarithm": "s = Softmax(z)  p = Log(s)",
    "log softmax": "l = LogSoftmax(z)  p = Dropout(l)",
    "exponential": "e = Exp(z)  p = Mul(e, half)",
    "scaled exponentials": "e = Exp(z)  f = Exp(x2)  SUM[t,f]  p = Div(e, t)",
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_taken_as_they_are(name):
    import onnxruntime

    made = model(f"x2 = Neg(z)  {SCORES[name]}", 17)
    X, y = data()
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    scores = session.run(None, {"x": X})[0].astype(np.float64)
    step = TrainingStep(made, "cross_entropy")
    assert "on 'p'" in repr(step)
    wanted = np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y])
    np.testing.assert_allclose(step.run(X, y), wanted, rtol=1e-4)
